"""Text to token ids, the same way for training, thinking and serving.

    encode_prompts(tokenizer, ["ROMEO:", messages, [17, 4]])     [[...], [...], [17, 4]]
    encode_rows(tokenizer, texts, 2, "--train_file x")           ids of the two texts of every row in turn
    encode_file(file, 0, file.count, tokenizer, file.where)      Tokens of a file, through the cache

Some tokenizers put a token before every text (beginning of text). That token comes before windows and prompts here too,
so that a model is asked in the form in which it was trained.
"""

import os
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
from transformers import PreTrainedTokenizerBase

from mot.data.cache import FORMAT, Tokens, cached_tokens, sha256
from mot.data.sources import DataFile, read_chats, texts
from mot.model.chat import chat_prompt, chat_texts, encode_chat, ends_turn
from mot.model.tokenizer import encode, encode_all, identity, opening
from mot.runtime.files import cache_dir

Prompt = str | list[dict[str, str]] | list[int]  # text, a conversation, or token ids


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt], where: str = "--prompt"
) -> list[list[int]]:
    """Token ids of prompts, as in training. A text follows the tokenizer's opening, a conversation its chat template.

    An empty prompt becomes the end-of-text token, because the router needs a last position. Token ids stay as they are.
    Raises ValueError naming `where` for an unknown character, and for a conversation that the template rejects.
    """
    first = opening(tokenizer)
    encoded = iter(encode(tokenizer, [p for p in prompts if isinstance(p, str)], where))
    rows = []
    for prompt in prompts:
        if isinstance(prompt, str):
            rows.append(first + next(encoded))
        elif prompt and isinstance(prompt[0], dict):
            rows.append(encode_chat(tokenizer, chat_prompt(tokenizer, prompt)))
        else:
            rows.append(list(prompt))
    return [row or [tokenizer.eos_token_id] for row in rows]


def encode_rows(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], parts: int, where: str
) -> Iterator[np.ndarray]:
    """Ids (int64) of the `parts` texts of every row in turn.

    A prompt is encoded as in `encode_prompts`; a completion and a key are followed by the end-of-text token.
    """
    first, end = opening(tokenizer), tokenizer.eos_token_id
    for i, ids in enumerate(encode_all(tokenizer, texts, where)):
        if i % parts:
            row = [ids, [end]]
        elif first or len(ids):
            row = [first, ids]
        else:
            row = [[end]]
        yield np.concatenate(row).astype(np.int64)


def encode_chats(
    tokenizer: PreTrainedTokenizerBase, chats: Iterable[tuple[list[dict], ...]], where: str
) -> Iterator[np.ndarray]:
    """Ids (int64) of prompts and completions of conversations in turn, and of keys if they have keys.

    A key is written as the assistant's last turn is. A last turn without an end-of-turn token gets the end-of-text
    token. Raises ValueError naming `where`.
    """
    for messages, *key in chats:
        for i, content in enumerate([messages[-1]["content"], *key]):
            turns = [*messages[:-1], messages[-1] | {"content": content}]
            try:
                prompt, completion = (encode_chat(tokenizer, text) for text in chat_texts(tokenizer, turns))
            except ValueError as e:
                raise ValueError(f"{where}: {str(messages)[:80]}...: {e}") from None
            if not ends_turn(tokenizer, completion[-1]):
                completion.append(tokenizer.eos_token_id)
            if i == 0:
                yield np.array(prompt, np.int64)
            yield np.array(completion, np.int64)


def encode_file(file: DataFile, start: int, stop: int, tokenizer: PreTrainedTokenizerBase, where: str) -> Tokens:
    """Tokens of characters, or rows, start .. stop - 1 of the file, from the cache if they were encoded before.

    Raises ValueError naming `where` for an unknown character, if the file changes meanwhile, and if the cache cannot be
    written.
    """
    about = {
        "format": FORMAT,
        "file": file.sha256,
        "kind": file.kind,
        "from": start,
        "to": stop,
        "tokenizer": sha256(identity(tokenizer).encode()),
        "dtype": id_dtype(tokenizer),
    }
    if file.kind == "chat":
        about["template"] = sha256(str(tokenizer.chat_template).encode())
    try:
        return cached_tokens(
            about,
            id_dtype(tokenizer),
            lambda: _encode_parts(file, start, stop, tokenizer, where),
            file.parts,
        )
    except OSError as e:
        raise ValueError(
            f"{file.where}: its tokens cannot be kept in {cache_dir()} ({e.strerror}); "
            "make room there, or set MOT_CACHE to another directory"
        ) from None


def _encode_parts(
    file: DataFile, start: int, stop: int, tokenizer: PreTrainedTokenizerBase, where: str
) -> Iterator[np.ndarray]:
    if file.kind == "chat":
        yield from encode_chats(tokenizer, islice(read_chats(file.path, file.where), start, stop), where)
    elif file.kind == "rows":
        yield from encode_rows(tokenizer, texts(file, start, stop), file.parts, where)
    else:
        yield from encode_all(tokenizer, texts(file, start, stop), where)
    if os.stat(file.path).st_mtime_ns != file.changed:
        raise ValueError(f"{file.where}: was changed while it was read; start again")


def id_dtype(tokenizer: PreTrainedTokenizerBase) -> str:
    """The smallest unsigned integer type, little-endian, that holds every id of the tokenizer."""
    return "<u2" if max(tokenizer.get_vocab().values()) < 2**16 else "<u4"
