"""What the tests of data and tokenizers share: tokenizers, files of rows, loaded data in one value."""

import json

from hypothesis import strategies as st

from mot.data.load import load_data
from mot.model import tokenizer as tokenizer_module
from mot.model.tokenizer import END, build_tokenizer
from mot.training.settings import TrainSettings


def encode(tokenizer, text: str) -> list[int]:
    """One text; the library takes many."""
    return tokenizer_module.encode(tokenizer, [text], "text")[0]


BPE = build_tokenizer(["the king of night speaks softly to the sleeping sea. " * 20], 300, 4)


def characters(text: str, num_thoughts: int = 4):
    return build_tokenizer([text], 256, num_thoughts)


def few_characters(text: str) -> bool:
    return 0 < len(set(text)) < 200


mixed = st.lists(
    st.sampled_from(
        [*" \n\t\r\x1c\x85\xa0\u2003\u200b", "\r\n", "\n\n", "  ", *"aZé中7!.,", "'s", "'ll", "the king", END]
    )
).map("".join)


def load(path, **changes):
    return load_data(TrainSettings(train_file=str(path), **({"vocab_size": 100, "seq_length": 32} | changes)))


def said(tokenizer, part) -> str:
    """The text of a part's windows."""
    return "".join(tokenizer.decode(part[i]) for i in range(len(part)))


def write_rows(path, *rows: tuple[str, str]):
    path.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in rows))
    return path


def whole(data) -> tuple:
    """Everything that data is, in memory."""
    parts = [(str(list(part)), part.tokens()) for part in (data.train, data.eval)]
    return data.fingerprint, data.notes, data.tokenizer.backend_tokenizer.to_str(), parts
