"""Tokenizers with thought tokens: characters, byte-level BPE, or an existing tokenizer.

tokenizer = build_tokenizer(texts, vocab_size=100, num_thoughts=8)    # characters, because 100 < 257
thought_ids(tokenizer, 8)                                             # [66, 67, ...]
for ids in encode_all(tokenizer, texts, "--train_file x"):            # any number of texts, few of them in memory
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mot.runtime.flags import one_line

END, PAD, UNKNOWN = "<|endoftext|>", "<|pad|>", "<|unknown|>"
LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # a byte of a command line that is not UTF-8, or half of a JSON pair
LONGEST_WORD = 2**12  # characters; the trainer of BPE takes time with the square of the longest word
RUNS = re.compile(rf"(\S{{{LONGEST_WORD}}}|\s{{{LONGEST_WORD}}})")
SMALLEST_BPE = 257  # 256 bytes and one merge; a smaller vocabulary means characters
# Most characters and texts that are encoded in one call. The call takes 100 bytes of memory for each character.
BATCH_CHARACTERS, BATCH_TEXTS = 2**20, 2**12


def thought_token(k: int) -> str:
    return f"<|thought_{k}|>"


def build_tokenizer(texts: Iterable[str], vocab_size: int, num_thoughts: int) -> PreTrainedTokenizerFast:
    """Train a tokenizer: one token per character if `vocab_size` < 257, else byte-level BPE of at most that size.

    End-of-text, padding and the `num_thoughts` thought tokens are not counted in `vocab_size`. Raises ValueError if
    `vocab_size` < 257 and the text has more distinct characters.
    """
    return complete(train_engine(texts, vocab_size), num_thoughts)


def train_engine(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """The part of `build_tokenizer` that reads the texts, each of them once."""
    if vocab_size < SMALLEST_BPE:
        seen = set()
        for text in texts:
            seen.update(text)
        characters = sorted(seen)
        if len(characters) > vocab_size:
            raise ValueError(
                f"--vocab_size {vocab_size}: the text has {len(characters)} distinct characters; "
                f"give --vocab_size {len(characters)} or more, or {SMALLEST_BPE} or more for byte-level BPE"
            )
        engine = Tokenizer(models.WordLevel({c: i for i, c in enumerate([*characters, UNKNOWN])}, unk_token=UNKNOWN))
        engine.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
        engine.decoder = decoders.Fuse()
    else:
        engine = Tokenizer(models.BPE())
        engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        engine.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, min_frequency=2, initial_alphabet=alphabet, show_progress=False
        )
        with _all_cores():
            engine.train_from_iterator(_short_words(texts), trainer)
    return engine


def _short_words(texts: Iterable[str]) -> Iterator[str]:
    """The texts, cut where a word, or a run of white space, is longer than LONGEST_WORD."""
    for text in texts:
        yield from filter(None, RUNS.split(text))


def complete(engine: Tokenizer, num_thoughts: int) -> PreTrainedTokenizerFast:
    """A trained engine with end-of-text, padding and thought tokens."""
    unknown = {"unk_token": UNKNOWN} if isinstance(engine.model, models.WordLevel) else {}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=engine,
        eos_token=END,
        bos_token=END,
        pad_token=PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **unknown,
    )
    return add_thoughts(tokenizer, num_thoughts)


def load_tokenizer(name: str, num_thoughts: int) -> PreTrainedTokenizerBase:
    """A tokenizer by path or hub id, with padding and thought tokens. Raises ValueError if it cannot be used."""
    tokenizer = open_tokenizer(name, f"--tokenizer {name}")
    if tokenizer.eos_token is None:
        tokenizer.add_special_tokens({"eos_token": END})
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": PAD})
    tokenizer.padding_side = "left"
    entries, most = len(add_thoughts(tokenizer, num_thoughts)), max(tokenizer.get_vocab().values()) + 1
    if entries != most:
        raise ValueError(
            f"--tokenizer {name}: has {entries} entries with ids up to {most - 1}; number them from 0 without holes"
        )
    return tokenizer


def open_tokenizer(name: str, where: str) -> PreTrainedTokenizerBase:
    """A fast tokenizer by path or hub id, as it is. Raises ValueError beginning with `where`."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as e:  # of a damaged file the libraries raise anything, also plain Exception
        reason = one_line(e, 120) or type(e).__name__
        raise ValueError(f"{where}: its tokenizer cannot be loaded ({reason}); give a directory or a hub id") from None
    if not tokenizer.is_fast:
        raise ValueError(f"{where}: its tokenizer has no tokenizer.json; convert it to a fast one and save it there")
    return tokenizer


def add_thoughts(tokenizer: PreTrainedTokenizerBase, num_thoughts: int) -> PreTrainedTokenizerBase:
    """Add the thought tokens. One thought is a plain language model and gets none."""
    if num_thoughts > 1:
        names = [thought_token(k) for k in range(num_thoughts)]
        # By default they would replace a chat model's own special tokens, such as <|im_start|>.
        tokenizer.add_special_tokens({"additional_special_tokens": names}, replace_extra_special_tokens=False)
    return tokenizer


def thought_ids(tokenizer: PreTrainedTokenizerBase, num_thoughts: int) -> list[int]:
    """Token ids of the N thoughts; empty for N = 1."""
    return [] if num_thoughts == 1 else tokenizer.convert_tokens_to_ids([thought_token(k) for k in range(num_thoughts)])


def opening(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that the tokenizer puts before every text: a beginning-of-text token, or nothing."""
    plain, special = (tokenizer("a", add_special_tokens=added)["input_ids"] for added in (False, True))
    return next(special[:i] for i in range(len(special)) if special[i : i + len(plain)] == plain)


def identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """Everything that decides the ids of ordinary text: tokenizers of equal identity encode alike, whatever N is."""
    if not tokenizer.is_fast:
        return json.dumps([repr(tokenizer), tokenizer.get_vocab()], sort_keys=True)
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    thought = re.compile(re.escape(thought_token(0)).replace("0", r"\d+"))
    content["added_tokens"] = [t for t in content["added_tokens"] if not thought.fullmatch(t["content"])]
    return json.dumps(content, sort_keys=True) + tokenizer.eos_token


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], where: str) -> list[list[int]]:
    """Token ids of each text. Special tokens spelt out in a text stay ordinary text.

    Raises ValueError naming `where` if a text has a character that a character tokenizer does not know.
    """
    return [ids.tolist() for ids in encode_all(tokenizer, texts, where)]


def encode_all(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], where: str) -> Iterator[np.ndarray]:
    """`encode` for any number of texts: yields the ids (int64) of each, in order, from batches of about a megabyte."""
    if tokenizer.unk_token == UNKNOWN:
        yield from _look_up(tokenizer, texts, where)
        return
    for batch in _batches(texts):
        if wrong := next((match for text in batch if (match := LONE_SURROGATE.search(text))), None):
            raise ValueError(
                f"{where}: has {wrong[0]!a}, which is no character but a broken byte or half of a pair; remove it"
            )
        with _all_cores():
            rows = tokenizer(batch, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        yield from (np.array(ids, np.int64) for ids in rows)


def _look_up(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], where: str) -> Iterator[np.ndarray]:
    # The library takes 20 minutes for a gigabyte of characters; a table of code points takes seconds.
    known = {ord(c): i for c, i in tokenizer.get_vocab().items() if len(c) == 1}
    table = np.full(max(known, default=0) + 2, tokenizer.unk_token_id, np.int64)
    table[list(known)] = list(known.values())
    for text in texts:
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
        ids = table[np.minimum(points, len(table) - 1)]
        if (ids == tokenizer.unk_token_id).any():
            character = next(c for c in text if ord(c) not in known)
            raise ValueError(f"{where}: has the character {character!r}, which the model has never seen; leave it out")
        yield ids


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch, characters = [], 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= BATCH_CHARACTERS or len(batch) == BATCH_TEXTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


@contextmanager
def _all_cores() -> Iterator[None]:
    """Allow the library's own threads. Elsewhere `mot.cli` forbids them, because forked workers would warn."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before
