"""From text or rows to branchable batches: prompt, branch point, continuation.

    data = load_data(settings)             # reads, trains the tokenizer, tokenises, splits
    loader over data.train, collate data.collate -> {"window": [B, L]} or {"prompt": [B, P], ...}
    branch(batch, point)                   -> {"prompt", "prompt_mask", "completion", "completion_mask"}

Plain text has no prompt of its own: a window of L tokens is cut at a branch point that the caller draws. Rows have one,
between `prompt` and `completion`: prompts are padded on the left and completions on the right, so that a batch has one
branch point. Chat rows branch before their last turn. Whatever a tokenizer opens every text with (a beginning-of-text
token, or nothing) opens windows and prompts here too, so that a model is asked as it was trained. Shapes: see
mot/thoughts.py.

A file may be larger than memory. It is read in pieces, tokenised once into `cache_dir()/tokens`, and read from there
through short-lived memory maps. `Batches` is the order in which a run sees its rows.
"""

import codecs
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path

import numpy as np
import tokenizers
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedTokenizerBase

from mot.data.settings import DataSettings, TokenizerSettings
from mot.model.tokenizer import (
    PIECE,
    SMALLEST_BPE,
    build_tokenizer,
    chat_prompt,
    chat_texts,
    complete,
    encode,
    encode_all,
    encode_chat,
    ends_turn,
    identity,
    load_tokenizer,
    opening,
    pieces,
    train_engine,
)
from mot.runtime.files import atomic_write, cache_dir, sync
from mot.runtime.remote import fetch

Pairs = list[tuple[str, str]]  # (prompt, completion)
Prompt = str | list[dict[str, str]] | list[int]  # text, a conversation, or token ids
FORMAT = 2  # of everything in the cache: a new number makes every old entry unknown
HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair: JSON can spell it, UTF-8 cannot
BLOCK = 2**20  # bytes or characters read at a time
BPE_BYTES = 2**25  # byte-level BPE is trained on at most so much: it takes 700 bytes for every different word it sees


@dataclass
class Data:
    """What a run trains on. `notes` are lines to say aloud: sizes reached, rows cut.

    `fingerprint` is a sha256 of all tokens, of what is trained on and what is held out, and of their kind: the same for
    the same data wherever it lies, another if one token or the split differs. `seq_length` is not part of it. `general` is
    text of another kind, to see what training does to that; it is no part of the fingerprint either.
    """

    tokenizer: PreTrainedTokenizerBase
    train: "Windows | Rows"
    eval: "Windows | Rows"
    collate: Callable[[list], dict[str, Tensor]]
    notes: list[str]
    fingerprint: str
    general: "Windows | None" = None


# What a run reads from -----------------------------------------------------------------------------------------------


class Mapped:
    """A one-dimensional array in a file; a slice of it is a copy in memory.

    The map lives as long as the copying, so what was read does not add up in the process. The open file outlives its
    name: a cache that is emptied does not end a run. Pickling takes the name, not the content.
    """

    def __init__(self, path: Path, dtype: str):
        self.path, self.dtype = path, np.dtype(dtype)
        self.file = open(path, "rb", buffering=0)  # noqa: SIM115
        self.length = os.fstat(self.file.fileno()).st_size // self.dtype.itemsize

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, part: slice) -> np.ndarray:
        first, stop, _ = part.indices(self.length)
        if first >= stop:
            return np.empty(0, self.dtype)
        return np.array(np.memmap(self.file, self.dtype, "r", first * self.dtype.itemsize, (stop - first,)))

    def __reduce__(self):
        return Mapped, (self.path, self.dtype.str)


class Windows(Dataset):
    """Consecutive windows of `length` tokens of one long text, int64 [length]; `ids` is an integer array or `Mapped`.

    Each begins with the tokens `first`, which are not the text's.
    """

    def __init__(self, ids: "np.ndarray | Mapped", length: int, first: list[int] | None = None):
        self.ids, self.length, self.first = ids, length, np.array(first or [], np.int64)
        self.step = length - len(self.first)

    def __len__(self) -> int:
        return len(self.ids) // self.step

    def __getitem__(self, i: int) -> Tensor:
        if not 0 <= i < len(self):
            raise IndexError(i)
        text = self.ids[i * self.step : (i + 1) * self.step].astype(np.int64)
        return torch.from_numpy(np.concatenate([self.first, text]))

    def tokens(self) -> int:
        return len(self) * self.length

    def mean_lengths(self) -> tuple[float, float]:
        """Mean tokens before and behind a branch point that is drawn uniformly."""
        return self.length / 2, self.length / 2


class Rows(Dataset):
    """Pairs of token ids (prompt, completion), completions cut so that no pair has more than `length` tokens.

    `ids` holds all prompts and completions in turn; row i is ids[bounds[2i]:bounds[2i+1]] and ids[bounds[2i+1]:bounds[2i+2]].
    Both are integer arrays or `Mapped`.
    """

    def __init__(self, ids: "np.ndarray | Mapped", bounds: "np.ndarray | Mapped", length: int):
        self.ids, self.bounds, self.length = ids, bounds, length

    def __len__(self) -> int:
        return len(self.bounds) // 2

    def __getitem__(self, i: int) -> tuple[list[int], list[int]]:
        if not 0 <= i < len(self):
            raise IndexError(i)
        first, branch_point, stop = self.bounds[2 * i : 2 * i + 3].tolist()
        row = self.ids[first : min(stop, first + self.length)].tolist()
        return row[: branch_point - first], row[branch_point - first :]

    def lengths(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Lengths of the prompts and of the atomic_write rows before they are cut, a million rows at a time."""
        for i in range(0, len(self), 2**20):
            bounds = self.bounds[2 * i : 2 * (i + 2**20) + 1]
            yield np.diff(bounds)[::2], np.diff(bounds[::2])

    def tokens(self) -> int:
        return sum(int(np.minimum(rows, self.length).sum()) for _, rows in self.lengths())

    def mean_lengths(self) -> tuple[float, float]:
        """Mean tokens of a prompt and of a continuation."""
        prompts = sum(int(np.minimum(prompts, self.length).sum()) for prompts, _ in self.lengths())
        return prompts / len(self), (self.tokens() - prompts) / len(self)


class Batches(Sampler[list[int]]):
    """The order in which a run sees its rows; for `DataLoader(batch_sampler=...)`.

    The order is endless: one permutation of range(rows) after another, each from (seed, epoch). Batch b of the atomic_write run
    takes the next batch_size * world places of it, process `rank` the rank-th batch_size of those; so a batch may reach
    into the next epoch and none is short. Yields the lists of batches start .. batches - 1, and begins at once wherever
    `start` is. Takes 4 bytes per row.
    """

    def __init__(
        self, rows: int, batch_size: int, seed: int, batches: int, start: int = 0, rank: int = 0, world: int = 1
    ):
        assert 0 < rows < 2**31, rows
        assert 0 <= rank < world, (rank, world)
        self.rows, self.batch_size, self.seed, self.batches = rows, batch_size, seed, batches
        self.start, self.rank, self.world = start, rank, world
        self.epoch, self.order = -1, None

    def __len__(self) -> int:
        return max(0, self.batches - self.start)

    def __iter__(self) -> Iterator[list[int]]:
        for b in range(self.start, self.batches):
            first = (b * self.world + self.rank) * self.batch_size
            yield self._places(first, first + self.batch_size)

    def _places(self, first: int, stop: int) -> list[int]:
        batch = []
        while first < stop:
            epoch, place = divmod(first, self.rows)
            if epoch != self.epoch:
                self.epoch, self.order = epoch, None  # the old one goes before the new one comes
                g = torch.Generator().manual_seed(int(_sha256(f"order {self.seed} {epoch}".encode())[:15], 16))
                self.order = torch.randperm(self.rows, generator=g, dtype=torch.int32)
            rows = self.order[place : place + stop - first].tolist()
            batch += rows
            first += len(rows)
        return batch


# From what the settings name to Data ---------------------------------------------------------------------------------


def load_data(
    settings: DataSettings,
    task_rows: tuple[Pairs, Pairs] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    general_file: str | None = None,
) -> Data:
    """Read, tokenise and split what the settings name; a task's (training, held-out) rows are given.

    Without a `tokenizer` the settings say which. A file without `--eval_file` is split by its characters, or rows: the last
    tenth is held out. What was tokenised before is taken from the cache. Raises ValueError naming the flag, the line and
    the way out.
    """
    data = _task_data(settings, *task_rows, tokenizer) if task_rows else _file_data(settings, tokenizer)
    if general_file:
        source = read_source(general_file, "--general_file", "text")
        part = tokenised(source, 0, source.count, data.tokenizer, source.where)
        _check(settings, data.tokenizer, part, source.where, 0, data.notes)
        data.general = _dataset(settings, data.tokenizer, part)
    return data


def _file_data(settings: DataSettings, tokenizer: PreTrainedTokenizerBase | None) -> Data:
    kind = "rows" if settings.train_file.endswith(".jsonl") else "text"
    if settings.eval_file and settings.eval_file.endswith(".jsonl") != (kind == "rows"):
        raise ValueError(
            f"--eval_file {settings.eval_file}: must be of the kind of --train_file, {'.jsonl rows' if kind == 'rows' else 'plain text'}"
        )
    flags = ("--train_file", "--eval_file") if settings.eval_file else ("--train_file",)
    sources = [read_source(getattr(settings, flag[2:]), flag, kind) for flag in flags]
    first, count = sources[0], sources[0].count
    if settings.eval_file:
        if sources[1].kind != first.kind:
            raise ValueError(f"{sources[1].where}: must be of the kind of --train_file; one of them has `messages`")
        parts = [(s, 0, s.count, s.where) for s in sources]
    elif kind == "rows" and count < 2:
        raise ValueError(f"{first.where}: one row cannot be split; give more rows, or --eval_file")
    else:
        cut = count * 9 // 10
        held_out = first.where + (" (last 10 %)" if kind == "text" else "")
        parts = [(first, 0, cut, first.where), (first, cut, count, held_out)]
    tokenizer, notes = (tokenizer, []) if tokenizer else _tokenizer(settings, sources)
    if first.kind == "chat" and not tokenizer.chat_template:
        raise ValueError(f"{first.where}: has `messages`, {NO_TEMPLATE}")
    cached = []
    for source, start, stop, where in parts:
        cached.append(tokenised(source, start, stop, tokenizer, where))
        before = 0 if source.kind == "text" else start
        _check(settings, tokenizer, cached[-1], where, before, notes)
    return _data(settings, tokenizer, cached, notes)


NO_TEMPLATE = "and the tokenizer has no chat template; give rows with `prompt` and `completion`, or another tokenizer"


def _task_data(
    settings: DataSettings, train: Pairs, held_out: Pairs, tokenizer: PreTrainedTokenizerBase | None
) -> Data:
    where = f"--task {settings.task}"
    if tokenizer:
        pass
    elif settings.tokenizer:
        tokenizer = load_tokenizer(settings.tokenizer, settings.num_thoughts)
    else:  # a task's answers are symbols, one token each
        texts = chain.from_iterable(train + held_out)
        tokenizer = build_tokenizer(texts, SMALLEST_BPE - 1, settings.num_thoughts)
    notes, parts = [], []
    for rows, before in ((train, 0), (held_out, len(train))):
        ids = list(_encode_rows(tokenizer, chain.from_iterable(rows), where))
        bounds = np.cumsum([0, *map(len, ids)]).astype("<i8")
        ids = np.concatenate(ids).astype(_dtype(tokenizer))
        parts.append(Tokens(ids, bounds, (_sha256(ids.tobytes()), _sha256(bounds.tobytes()))))
        _check(settings, tokenizer, parts[-1], where, before, notes)
    return _data(settings, tokenizer, parts, notes)


def _data(settings: DataSettings, tokenizer: PreTrainedTokenizerBase, parts: "list[Tokens]", notes: list[str]) -> Data:
    train, held_out = (_dataset(settings, tokenizer, part) for part in parts)
    text = isinstance(train, Windows)
    collate = collate_windows if text else partial(collate_rows, pad=tokenizer.pad_token_id)
    fingerprint = _sha256(json.dumps(["text" if text else "rows", *(part.sha256 for part in parts)]).encode())
    return Data(tokenizer, train, held_out, collate, notes, fingerprint)


def _dataset(settings: DataSettings, tokenizer: PreTrainedTokenizerBase, part: "Tokens") -> Windows | Rows:
    if part.bounds is None:
        return Windows(part.ids, settings.seq_length, opening(tokenizer))
    return Rows(part.ids, part.bounds, settings.seq_length)


def _check(
    settings: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    part: "Tokens",
    where: str,
    before: int,
    notes: list[str],
) -> None:
    """Does `seq_length` suit the part? Its first row is row `before` of the file."""
    data, L = _dataset(settings, tokenizer, part), settings.seq_length
    if isinstance(data, Windows):
        if not len(data):
            raise ValueError(
                f"--seq_length {L}: {where} has only {len(part.ids)} tokens; give more text or a smaller --seq_length"
            )
        return
    longest, row, shortened = -1, 0, 0
    for prompts, rows in data.lengths():
        if prompts.max() > longest:
            longest, row = int(prompts.max()), before + int(prompts.argmax()) + 1
        shortened += int((rows > L).sum())
        before += len(prompts)
    if longest >= L:
        raise ValueError(
            f"--seq_length {L}: row {row} has a prompt of {longest} tokens and no room "
            f"for a completion; give --seq_length {longest + 64} or more"
        )
    if shortened:
        notes.append(f"{shortened} of {len(data)} rows cut to --seq_length {L}")


def _tokenizer(settings: TokenizerSettings, sources: "list[Source]") -> tuple[PreTrainedTokenizerBase, list[str]]:
    if settings.tokenizer:
        return load_tokenizer(settings.tokenizer, settings.num_thoughts), []
    kind, characters = sources[0].kind, settings.vocab_size < SMALLEST_BPE
    if kind == "chat":
        raise ValueError(f"{sources[0].where}: has `messages`, {NO_TEMPLATE}")
    read = sources if kind == "rows" else sources[:1]
    every = 1 if characters else -(-sum(os.path.getsize(s.path) for s in read) // BPE_BYTES)
    about = {
        "format": FORMAT,
        "tokenizers": tokenizers.__version__,
        "files": [s.sha256 for s in read],
        "kind": kind,
        "vocab_size": settings.vocab_size,
        "every": every,
    }
    texts = chain.from_iterable(_texts(s, 0, s.count, every) for s in read)
    engine = remembered(about, lambda: train_engine(texts, settings.vocab_size).to_str())
    tokenizer = complete(tokenizers.Tokenizer.from_str(engine), settings.num_thoughts)
    name = "characters" if characters else "byte-level BPE"
    size = len(tokenizer) - len(tokenizer.all_special_tokens)
    notes = [f"tokenizer: {name}, {size:,} entries of the {settings.vocab_size:,} asked for"]
    if every > 1:
        piece = "row" if kind == "rows" else f"piece of about {PIECE:,} characters"
        notes.append(f"tokenizer: trained on one {piece} of every {every}, for it would take too much memory")
    return tokenizer, notes


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt], where: str = "--prompt"
) -> list[list[int]]:
    """Prompts' ids, as training reads them: text behind the tokenizer's opening, a conversation as its template has it.

    The end-of-text token stands for an empty prompt, for there must be a last position to route from. Ids stay as they are.
    """
    first = opening(tokenizer)
    texts = iter(encode(tokenizer, [p for p in prompts if isinstance(p, str)], where))
    rows = []
    for prompt in prompts:
        if isinstance(prompt, str):
            rows.append(first + next(texts))
        elif prompt and isinstance(prompt[0], dict):
            rows.append(encode_chat(tokenizer, chat_prompt(tokenizer, prompt)))
        else:
            rows.append(list(prompt))
    return [row or [tokenizer.eos_token_id] for row in rows]


def _encode_rows(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], where: str) -> Iterator[np.ndarray]:
    """Prompts and completions in turn, to ids: prompts as in `encode_prompts`, completions with the end-of-text token."""
    first, end = opening(tokenizer), tokenizer.eos_token_id
    for i, ids in enumerate(encode_all(tokenizer, texts, where)):
        row = [ids, [end]] if i % 2 else [first, ids] if first or len(ids) else [[end]]
        yield np.concatenate(row).astype(np.int64)


def _encode_chats(tokenizer: PreTrainedTokenizerBase, chats: Iterable[list[dict]], where: str) -> Iterator[np.ndarray]:
    """Prompts and completions of conversations in turn, to ids. A last turn that has no end gets the end-of-text token."""
    for messages in chats:
        try:
            prompt, completion = (encode_chat(tokenizer, text) for text in chat_texts(tokenizer, messages))
        except ValueError as e:
            raise ValueError(f"{where}: {str(messages)[:80]}...: {e}") from None
        if not ends_turn(tokenizer, completion[-1]):
            completion.append(tokenizer.eos_token_id)
        yield np.array(prompt, np.int64)
        yield np.array(completion, np.int64)


# Files --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """A file that was looked through and found good. `count` is its characters (kind "text") or its rows."""

    where: str  # flag and path as the user gave them
    path: str  # where it lies on this machine
    kind: str  # "text", "rows" or "chat"
    sha256: str
    count: int
    changed: int  # nanoseconds since 1970


def read_source(path: str, flag: str, kind: str) -> Source:
    """Fetch, hash and check a file, little of it in memory; a content that was checked before is hashed only.

    Rows whose first has `messages` are of kind "chat". Raises ValueError naming `flag` if it is missing, empty, binary or not UTF-8, and for rows that `read_rows` refuses.
    """
    local, where = fetch(path, flag), f"{flag} {path}"
    if not os.path.isfile(local):
        raise ValueError(f"{where}: no such file; give the path of a text or .jsonl file")
    with open(local, "rb") as file:
        changed = os.fstat(file.fileno()).st_mtime_ns
        digest = hashlib.file_digest(file, "sha256").hexdigest()

    def count() -> str:
        characters = check_text(local, where)
        if kind == "text":
            return f"text {characters}"
        if next((isinstance(row, dict) and "messages" in row for _, row in _json_lines(local, where)), False):
            return f"chat {sum(1 for _ in read_chats(local, where))}"
        return f"rows {sum(1 for _ in read_rows(local, where))}"

    its_kind, found = remembered({"format": FORMAT, "file": digest, "count": kind}, count).split()
    if not int(found):
        raise ValueError(f"{where}: is empty; give a file with text in it")
    return Source(where, local, its_kind, digest, int(found), changed)


def check_text(path: str, where: str) -> int:
    """Characters of a UTF-8 text file, the mark before them not counted.

    Raises ValueError beginning with `where` if it is empty, binary or not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    position, characters, blank, broken = 0, 0, True, None
    with open(path, "rb") as file:
        while True:
            block = file.read(BLOCK)
            if b"\0" in block:
                zero = position + block.index(0)
                raise ValueError(f"{where}: is binary (a zero byte at {zero}); give plain UTF-8 text")
            blank = blank and not block.strip()
            if broken is None:  # else only a zero byte further on is of interest: binary is the better word for it
                try:
                    characters += len(decoder.decode(block, final=not block))
                except UnicodeDecodeError as e:  # e.object: what the decoder held back of earlier blocks, and this one
                    broken = position + len(block) - len(e.object) + e.start
            position += len(block)
            if not block:
                break
    if blank:
        raise ValueError(f"{where}: is empty; give a file with text in it")
    if broken is not None:
        raise ValueError(f"{where}: is not UTF-8 (byte {broken}); convert it, e.g. iconv -f latin1 -t utf-8")
    return characters


def _json_lines(path: str, where: str) -> Iterator[tuple[int, object]]:
    with open(path, encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as e:
                raise ValueError(f"{where}: line {number} is not JSON ({e.msg}); mend or remove it") from None


def read_rows(path: str, where: str) -> Iterator[tuple[str, str]]:
    """(prompt, completion) of every line of a .jsonl file. Raises ValueError beginning with `where` and the line."""
    for number, row in _json_lines(path, where):
        for key in ("prompt", "completion"):
            if not isinstance(row, dict) or not isinstance(row.get(key), str):
                raise ValueError(
                    f'{where}: line {number} has no text `{key}`; every row needs {{"prompt": "...", "completion": "..."}}'
                )
        if HALF.search(row["prompt"] + row["completion"]):
            raise ValueError(f"{where}: line {number} has half of a surrogate pair; mend or remove it")
        if not row["completion"]:
            raise ValueError(f"{where}: line {number} has an empty `completion`; mend or remove it")
        yield row["prompt"], row["completion"]


def read_chats(path: str, where: str) -> Iterator[list[dict[str, str]]]:
    """The messages of every line of a .jsonl file. Raises ValueError beginning with `where` and the line."""
    for number, row in _json_lines(path, where):
        messages = row.get("messages") if isinstance(row, dict) else None
        fine = isinstance(messages, list) and all(
            isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
            for m in messages
        )
        if not fine:
            raise ValueError(
                f'{where}: line {number} has no `messages`; every row needs {{"messages": [{{"role": "user", "content": "..."}}, ...]}}'
            )
        if len(messages) < 2 or messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip():
            raise ValueError(
                f"{where}: line {number} does not end with an answer of the assistant to something; mend or remove it"
            )
        if any(HALF.search(m["content"]) for m in messages):
            raise ValueError(f"{where}: line {number} has half of a surrogate pair; mend or remove it")
        yield messages


def _blocks(path: str, start: int, stop: int) -> Iterator[str]:
    """Characters start .. stop - 1 of a text file, a block at a time."""
    position = 0
    with open(path, encoding="utf-8-sig", newline="\n") as file:
        while position < stop and (block := file.read(BLOCK)):
            yield block[max(0, start - position) : stop - position]
            position += len(block)


def _texts(source: Source, start: int, stop: int, every: int = 1) -> Iterator[str]:
    """Pieces of characters start .. stop - 1 of a text, or prompts and completions of such rows; one of every so many."""
    if source.kind == "text":
        return islice(pieces(_blocks(source.path, start, stop)), 0, None, every)
    return chain.from_iterable(islice(read_rows(source.path, source.where), start, stop, every))


# The cache: what a file came to, under the hash of all that it came from ----------------------------------------------


@dataclass(frozen=True)
class Tokens:
    """Token ids, unsigned, of a text (`bounds` None) or of prompts and completions in turn (int64 `bounds` of each)."""

    ids: np.ndarray | Mapped
    bounds: np.ndarray | Mapped | None
    sha256: tuple[str, ...]  # of each


def tokenised(source: Source, start: int, stop: int, tokenizer: PreTrainedTokenizerBase, where: str) -> Tokens:
    """Tokens of characters, or rows, start .. stop - 1 of the file: from the cache, or now, once and for all.

    An entry is a directory: `ids`, for rows `bounds`, and meta.json, which says what they came from and their sha256. It is
    built beside its place and moved there atomic_write. Every opening reads it all once (a second or two per gigabyte, as
    hashing the source does) and builds a damaged one anew. Of several processes one builds and the others wait.
    Raises ValueError naming `where` for an unknown character, and if the cache cannot be written.
    """
    dtype, names = _dtype(tokenizer), ["ids"] if source.kind == "text" else ["ids", "bounds"]
    template = {"template": _sha256(str(tokenizer.chat_template).encode())} if source.kind == "chat" else {}
    about = {
        "format": FORMAT,
        "file": source.sha256,
        "kind": source.kind,
        "from": start,
        "to": stop,
        "tokenizer": _sha256(identity(tokenizer).encode()),
        "dtype": dtype,
    } | template
    entry = cache_dir() / "tokens" / _key(about)
    if not _sound(entry, about, names):
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            with open(entry.with_suffix(".lock"), "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # the system lets go of it however a process ends
                if not _sound(entry, about, names):
                    _build(entry, about, names, _encoded(source, start, stop, tokenizer, where), source)
        except OSError as e:
            raise ValueError(
                f"{source.where}: its tokens cannot be kept in {cache_dir()} ({e.strerror}); "
                "make room there, or set MOT_CACHE to another directory"
            ) from None
    ids = Mapped(entry / "ids", dtype)
    bounds = Mapped(entry / "bounds", "<i8") if "bounds" in names else None
    return Tokens(ids, bounds, tuple(json.loads((entry / "meta.json").read_text())["sha256"].values()))


def _encoded(
    source: Source, start: int, stop: int, tokenizer: PreTrainedTokenizerBase, where: str
) -> Iterator[np.ndarray]:
    if source.kind == "chat":
        return _encode_chats(tokenizer, islice(read_chats(source.path, source.where), start, stop), where)
    encoder = encode_all if source.kind == "text" else _encode_rows
    return encoder(tokenizer, _texts(source, start, stop), where)


def _build(entry: Path, about: dict, names: list[str], chunks: Iterator[np.ndarray], source: Source) -> None:
    partial_entry = entry.with_suffix(".partial")
    shutil.rmtree(partial_entry, ignore_errors=True)  # of a process that was killed
    partial_entry.mkdir()
    try:
        with ExitStack() as stack:
            files = {name: stack.enter_context(open(partial_entry / name, "wb")) for name in names}
            end = 0
            if "bounds" in files:
                files["bounds"].write(end.to_bytes(8, "little"))
            for ids in chunks:
                files["ids"].write(ids.astype(about["dtype"]).tobytes())
                end += len(ids)
                if "bounds" in files:
                    files["bounds"].write(end.to_bytes(8, "little"))
            for file in files.values():
                _flush(file)
        if os.stat(source.path).st_mtime_ns != source.changed:
            raise ValueError(f"{source.where}: was changed while it was read; start again")
        with open(partial_entry / "meta.json", "wb") as file:
            file.write(_meta(partial_entry, about, names))
            _flush(file)
        sync(partial_entry)
        shutil.rmtree(entry, ignore_errors=True)  # a damaged one
        partial_entry.rename(entry)
        sync(entry.parent)
    finally:
        shutil.rmtree(partial_entry, ignore_errors=True)


def _meta(entry: Path, about: dict, names: list[str]) -> bytes:
    """What meta.json must say, given the files beside it."""
    digests = {}
    for name in names:
        with open(entry / name, "rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return json.dumps({"about": about, "sha256": digests}, indent=1).encode()


def _sound(entry: Path, about: dict, names: list[str]) -> bool:
    try:
        return (entry / "meta.json").read_bytes() == _meta(entry, about, names)
    except OSError:
        return False


def remembered(about: dict, make: Callable[[], str]) -> str:
    """What `make` gave when it was asked before about the same, else what it gives now. Errors are not remembered."""
    path = cache_dir() / "facts" / _key(about)
    with suppress(OSError):
        digest, _, value = path.read_bytes().partition(b"\n")
        if digest.decode("latin1") == _sha256(_key(about).encode() + value):  # else it is damaged
            return value.decode()
    value = make()
    try:
        with atomic_write(path) as part:
            part.write_bytes(_sha256(_key(about).encode() + value.encode()).encode() + b"\n" + value.encode())
    except OSError as e:
        raise ValueError(
            f"MOT_CACHE {cache_dir()}: cannot be written ({e.strerror}); set it to another directory"
        ) from None
    return value


def _key(about: dict) -> str:
    return _sha256(json.dumps(about, sort_keys=True).encode())[:32]


def _dtype(tokenizer: PreTrainedTokenizerBase) -> str:
    return "<u2" if max(tokenizer.get_vocab().values()) < 2**16 else "<u4"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _flush(file) -> None:
    file.flush()
    os.fsync(file.fileno())


# Batches ------------------------------------------------------------------------------------------------------------


def collate_windows(windows: list[Tensor]) -> dict[str, Tensor]:
    """{"window": [B, L]}"""
    return {"window": torch.stack(windows)}


def collate_rows(pairs: list[tuple[list[int], list[int]]], pad: int) -> dict[str, Tensor]:
    """{"prompt": [B, P] padded left, "completion": [B, T] padded right, and a mask (1: real) of each}."""
    P, T = (max(len(row[i]) for row in pairs) for i in (0, 1))
    return {
        "prompt": torch.tensor([[pad] * (P - len(p)) + p for p, _ in pairs]),
        "prompt_mask": torch.tensor([[0] * (P - len(p)) + [1] * len(p) for p, _ in pairs]),
        "completion": torch.tensor([c + [pad] * (T - len(c)) for _, c in pairs]),
        "completion_mask": torch.tensor([[1] * len(c) + [0] * (T - len(c)) for _, c in pairs]),
    }


def by_length(batch: dict[str, Tensor], parts: int) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """The rows in at most `parts` batches, those with completions of like length together: (rows [R], batch without needless pads)."""
    length_B = batch["completion_mask"].sum(1)
    if (length_B == length_B[0]).all():
        parts = 1
    for rows in length_B.argsort(stable=True).chunk(parts):
        part = {name: t[rows] for name, t in batch.items()}
        P, T = (int(part[f"{side}_mask"].sum(1).max()) for side in ("prompt", "completion"))
        begin = part["prompt"].shape[1] - P
        yield rows, {name: t[:, begin:] if name.startswith("prompt") else t[:, :T] for name, t in part.items()}


def branch(batch: dict[str, Tensor], point: int) -> dict[str, Tensor]:
    """Cut windows [B, L] at `point` (1 .. L-1) into prompt and completion; rows have their branch point and stay as they are."""
    if "window" not in batch:
        return batch
    prompt, completion = batch["window"][:, :point], batch["window"][:, point:]
    return {
        "prompt": prompt,
        "prompt_mask": torch.ones_like(prompt),
        "completion": completion,
        "completion_mask": torch.ones_like(completion),
    }
