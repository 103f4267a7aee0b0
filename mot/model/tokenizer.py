"""Tokenizers with thought tokens: characters, byte-level BPE, or one that exists already.

tokenizer = build_tokenizer(texts, vocab_size=100, num_thoughts=8)    # characters, because 100 < 257
thought_ids(tokenizer, 8)                                             # [66, 67, ...]
for ids in encode_all(tokenizer, pieces(blocks), "--train_file x"):   # a text of any size, little of it in memory
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

END, PAD, UNKNOWN = "<|endoftext|>", "<|pad|>", "<|unknown|>"
SMALLEST_BPE = 257  # 256 bytes and one merge: a smaller vocabulary can only mean characters
PIECE, LONGEST_PIECE = 2**12, 2**18  # characters: a piece of text has at least so many; more only if it cannot be cut
TOGETHER, TEXTS_TOGETHER = (
    2**20,
    2**12,
)  # characters, texts: encoded in one call; its memory is 100 times the characters


def thought_token(k: int) -> str:
    return f"<|thought_{k}|>"


def build_tokenizer(texts: Iterable[str], vocab_size: int, num_thoughts: int) -> PreTrainedTokenizerFast:
    """Train a tokenizer: one token per character below a `vocab_size` of 257, else byte-level BPE of at most that size.

    End, padding and the `num_thoughts` thought tokens come on top of `vocab_size`. Raises ValueError if the text has
    more distinct characters than `vocab_size` below 257.
    """
    return complete(train_engine(texts, vocab_size), num_thoughts)


def train_engine(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """The part of `build_tokenizer` that reads texts, each once; nothing of them is kept."""
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
        with _every_core():
            engine.train_from_iterator(texts, trainer)
    return engine


def complete(engine: Tokenizer, num_thoughts: int) -> PreTrainedTokenizerFast:
    """A trained engine with end, padding and thought tokens."""
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
    """A tokenizer by path or hub id, with padding and thought tokens added. Raises ValueError where there is none."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as e:
        raise ValueError(
            f"--tokenizer {name}: cannot be loaded ({' '.join(str(e).split())[:120]}); give a directory or a hub id"
        ) from None
    if tokenizer.eos_token is None:
        tokenizer.add_special_tokens({"eos_token": END})
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": PAD})
    tokenizer.padding_side = "left"
    return add_thoughts(tokenizer, num_thoughts)


def add_thoughts(tokenizer: PreTrainedTokenizerBase, num_thoughts: int) -> PreTrainedTokenizerBase:
    """Add the thought tokens; none for one thought, which is a plain language model."""
    if num_thoughts > 1:
        names = [thought_token(k) for k in range(num_thoughts)]
        # Otherwise they would take the place of a chat model's own, <|im_start|> and the like.
        tokenizer.add_special_tokens({"additional_special_tokens": names}, replace_extra_special_tokens=False)
    return tokenizer


def thought_ids(tokenizer: PreTrainedTokenizerBase, num_thoughts: int) -> list[int]:
    """Token ids of the N thoughts; empty for N = 1."""
    return [] if num_thoughts == 1 else tokenizer.convert_tokens_to_ids([thought_token(k) for k in range(num_thoughts)])


def opening(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before every text: a beginning-of-text token, or nothing. Prompts and windows begin with it."""
    plain, special = (tokenizer("a", add_special_tokens=added)["input_ids"] for added in (False, True))
    return next(special[:i] for i in range(len(special)) if special[i : i + len(plain)] == plain)


def chat_prompt(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    """A conversation as the chat template writes it, up to where the assistant is to speak. Raises ValueError."""
    return _template(tokenizer, messages, add_generation_prompt=True)


def chat_texts(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> tuple[str, str]:
    """(prompt, completion) of a conversation: all turns before the last, and the last with its end. Raises ValueError."""
    prompt, whole = chat_prompt(tokenizer, messages[:-1]), _template(tokenizer, messages, add_generation_prompt=False)
    # Some templates write earlier turns differently once there is a later one, e.g. without their reasoning.
    return prompt, whole.removeprefix(prompt).rstrip() if whole.startswith(prompt) else messages[-1]["content"]


def _template(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise ValueError(f"the tokenizer {tokenizer.name_or_path} has no chat template; give a prompt of plain text")
    try:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, tokenize=False)
    except TemplateError as e:
        raise ValueError(f"the tokenizer's chat template refuses it ({e}); mend or remove it") from None


def encode_chat(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """What a chat template wrote, to ids: special tokens spelt out in it are special, and it brings its own opening."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def ends_turn(tokenizer: PreTrainedTokenizerBase, token_id: int) -> bool:
    """Is it a token that a template writes, and nobody says?"""
    return token_id in tokenizer.added_tokens_decoder and tokenizer.added_tokens_decoder[token_id].special


def identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """All that decides the ids of ordinary text: two tokenizers of one identity encode alike, whatever N is."""
    if not tokenizer.is_fast:
        return json.dumps([repr(tokenizer), tokenizer.get_vocab()], sort_keys=True)
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    thought = re.compile(re.escape(thought_token(0)).replace("0", r"\d+"))
    content["added_tokens"] = [t for t in content["added_tokens"] if not thought.fullmatch(t["content"])]
    return json.dumps(content, sort_keys=True) + tokenizer.eos_token


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], where: str) -> list[list[int]]:
    """Texts as they are, to ids: special tokens spelt out in a text stay text.

    Raises ValueError naming `where` if a text has a character that a character tokenizer does not know.
    """
    return [ids.tolist() for ids in encode_all(tokenizer, texts, where)]


def encode_all(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], where: str) -> Iterator[np.ndarray]:
    """`encode` for any number of texts: yields the ids of each, in order, and holds a megabyte of text at a time."""
    if tokenizer.unk_token == UNKNOWN:
        yield from _look_up(tokenizer, texts, where)
        return
    for batch in _together(texts):
        with _every_core():
            rows = tokenizer(batch, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        yield from (np.array(ids, np.int64) for ids in rows)


def _look_up(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], where: str) -> Iterator[np.ndarray]:
    # The library takes 20 minutes for a gigabyte of characters, a table of code points seconds.
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


def _together(texts: Iterable[str]) -> Iterator[list[str]]:
    batch, characters = [], 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= TOGETHER or len(batch) == TEXTS_TOGETHER:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


@contextmanager
def _every_core() -> Iterator[None]:
    """Let the library's own threads work. Elsewhere `mot.cli` forbids them, lest worker processes forked later warn."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


# A pre-tokenizer of GPT-2's kind splits by ` ?letters`, ` ?digits`, ` ?others`, `white space` and never looks back. So
# every match that ends in a non-space ends before the next white space, whatever that is, and a new one begins there:
# text cut at such a place has the ids of the whole. GPT-4's kind also joins `.` and a line break, so the first choice is
# a single space between words, which is safe for both. (Python's \s has four characters more than theirs, hence the list.)
CUTS = [re.compile(r"(?<=\S) (?=\S)"), re.compile(r"(?<=\S)[ \n\r\t]")]


def pieces(blocks: Iterable[str], least: int = PIECE, most: int = LONGEST_PIECE) -> Iterator[str]:
    """Blocks of one text to pieces of `least` .. `most` characters, the last any, whose ids joined are the text's ids.

    Where the pieces end depends on the text only, not on its blocks. That the ids are those of the whole holds for
    characters always; for byte-level BPE unless `most` characters go by without white space after a word; a tokenizer
    that puts a mark before every text (SentencePiece) marks every piece.
    """
    text, start = "", 0
    for block in blocks:
        text, start = text[start:] + block, 0
        while len(text) - start > most:
            stop = _cut(text, start, least, most)
            yield text[start:stop]
            start = stop
    while len(text) - start > least:
        stop = _cut(text, start, least, most)
        yield text[start:stop]
        start = stop
    if text[start:]:
        yield text[start:]


def _cut(text: str, start: int, least: int, most: int) -> int:
    """Where the piece that begins at `start` ends."""
    for place in CUTS:
        # One character more, for a space must be seen with what follows it.
        if found := place.search(text, start + least, start + most + 1):
            return found.start()
    return min(start + most, len(text))
