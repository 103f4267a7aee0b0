"""The files that training reads: fetched, checked, and read in pieces.

    file = check_file("rows.jsonl", "--train_file", "rows")     DataFile: kind, count and sha256
    texts(file, 0, file.count)                                  its pieces, or its prompts and completions in turn

A file may be larger than memory: nothing here holds more than a piece of it.
"""

import codecs
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice

from mot.data.cache import FORMAT, cached
from mot.runtime.remote import fetch

LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can spell one, UTF-8 cannot
BLOCK = 2**20  # bytes or characters read at a time
PIECE, LONGEST_PIECE = 2**12, 2**18  # characters: the least that a piece has, and the most


@dataclass(frozen=True)
class DataFile:
    """A file that has passed every check. `count`: its characters (kind "text") or its rows."""

    where: str  # flag and path as the user gave them
    path: str  # of the local copy
    kind: str  # "text", "rows" or "chat"
    parts: int  # texts of a row: prompt, completion and, if rows have keys, key; 0 for a text
    sha256: str
    count: int
    changed: int  # time of the last change, in nanoseconds since 1970


def check_file(path: str, flag: str, kind: str) -> DataFile:
    """Fetch, hash and check a file of kind "text" or "rows". Content that was checked before is only hashed.

    If the first row has `messages`, the kind becomes "chat". Raises ValueError naming `flag` for a file that is
    missing, empty, binary or not UTF-8, and for a row that `read_rows` or `read_chats` rejects.
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
            return f"text 0 {characters}"
        first = next((row for _, row in _json_lines(local, where)), None)
        parts = 3 if isinstance(first, dict) and "key" in first else 2
        if isinstance(first, dict) and "messages" in first:
            return f"chat {parts} {sum(1 for _ in read_chats(local, where))}"
        return f"rows {parts} {sum(1 for _ in read_rows(local, where))}"

    found_kind, parts, found = cached({"format": FORMAT, "file": digest, "count": kind}, count).split()
    if not int(found):
        raise ValueError(f"{where}: is empty; give a file with text in it")
    return DataFile(where, local, found_kind, int(parts), digest, int(found), changed)


def check_text(path: str, where: str) -> int:
    """Number of characters of a UTF-8 text file, without the byte order mark.

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
            if broken is None:  # else only look for a zero byte: then the file is binary, which explains more
                try:
                    characters += len(decoder.decode(block, final=not block))
                except UnicodeDecodeError as e:  # e.object: bytes held back from earlier blocks, and this block
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
                raise ValueError(f"{where}: line {number} is not JSON ({e.msg}); fix or remove it") from None


def read_rows(path: str, where: str) -> Iterator[tuple[str, ...]]:
    """(prompt, completion) of every line of a .jsonl file, and its key if the lines have keys.

    Raises ValueError beginning with `where` and the line.
    """
    for number, row, key in _with_keys(_json_lines(path, where), where):
        for name in ("prompt", "completion"):
            if not isinstance(row, dict) or not isinstance(row.get(name), str):
                raise ValueError(
                    f"{where}: line {number} has no text `{name}`; "
                    'every row needs {"prompt": "...", "completion": "..."}'
                )
        if LONE_SURROGATE.search(row["prompt"] + row["completion"]):
            raise ValueError(f"{where}: line {number} has half of a surrogate pair; fix or remove it")
        if not row["completion"]:
            raise ValueError(f"{where}: line {number} has an empty `completion`; fix or remove it")
        yield row["prompt"], row["completion"], *key


def _with_keys(lines: Iterable[tuple[int, object]], where: str) -> Iterator[tuple[int, object, tuple[str, ...]]]:
    """(number, row, (key,)), or (number, row, ()) if the rows have no keys. Raises ValueError if only some have one."""
    keyed = None
    for number, row in lines:
        has_key = isinstance(row, dict) and "key" in row
        keyed = has_key if keyed is None else keyed
        if has_key != keyed:
            raise ValueError(
                f"{where}: line {number} has {'a' if has_key else 'no'} `key` and the lines before it have "
                f"{'none' if has_key else 'one'}; give every row a `key`, or none"
            )
        if has_key and (not isinstance(row["key"], str) or not row["key"]):
            raise ValueError(
                f"{where}: line {number}: `key` is {json.dumps(row['key'])[:40]}; it must be a text that says what "
                "should differ between thoughts"
            )
        if has_key and LONE_SURROGATE.search(row["key"]):
            raise ValueError(f"{where}: line {number} has half of a surrogate pair; fix or remove it")
        yield number, row, (row["key"],) if has_key else ()


def read_chats(path: str, where: str) -> Iterator[tuple[list[dict[str, str]], ...]]:
    """(messages,) of every line of a .jsonl file, or (messages, key).

    Raises ValueError beginning with `where` and the line.
    """
    for number, row, key in _with_keys(_json_lines(path, where), where):
        messages = row.get("messages") if isinstance(row, dict) else None
        well_formed = isinstance(messages, list) and all(
            isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
            for m in messages
        )
        if not well_formed:
            raise ValueError(
                f"{where}: line {number} has no `messages`; "
                'every row needs {"messages": [{"role": "user", "content": "..."}, ...]}'
            )
        if len(messages) < 2 or messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip():
            raise ValueError(
                f"{where}: line {number} does not end with an answer of the assistant to an earlier turn; "
                "fix or remove it"
            )
        if any(LONE_SURROGATE.search(m["content"]) for m in messages):
            raise ValueError(f"{where}: line {number} has half of a surrogate pair; fix or remove it")
        yield messages, *key


def _blocks(path: str, start: int, stop: int) -> Iterator[str]:
    """Characters start .. stop - 1 of a text file, a block at a time."""
    position = 0
    with open(path, encoding="utf-8-sig", newline="\n") as file:
        while position < stop and (block := file.read(BLOCK)):
            yield block[max(0, start - position) : stop - position]
            position += len(block)


def texts(source: DataFile, start: int, stop: int, every: int = 1) -> Iterator[str]:
    """Pieces of characters start .. stop - 1 of a text, or the prompt, completion and key of those rows in turn.

    every: of so many pieces, or rows, yield only the first.
    """
    if source.kind == "text":
        return islice(pieces(_blocks(source.path, start, stop)), 0, None, every)
    return chain.from_iterable(islice(read_rows(source.path, source.where), start, stop, every))


# A pre-tokenizer like GPT-2's splits by ` ?letters`, ` ?digits`, ` ?others` or `white space`, and never looks back. So
# every match that ends in a non-space ends before the next white space, and a new match begins there: a text cut at
# such a place keeps its ids. GPT-4's kind also joins `.` and a line break, so the first choice is a single space
# between words, which is safe for both. (Python's \s has four characters more than theirs, hence the list.)
CUTS = [re.compile(r"(?<=\S) (?=\S)"), re.compile(r"(?<=\S)[ \n\r\t]")]


def pieces(blocks: Iterable[str], least: int = PIECE, most: int = LONGEST_PIECE) -> Iterator[str]:
    """Blocks of one text, as pieces of `least` .. `most` characters (the last may be shorter).

    The places of the cuts depend on the text alone, not on its blocks. The ids of the pieces, joined, are the ids of
    the text. This always holds for characters. For byte-level BPE it fails where more than `most` characters follow
    each other without white space. A tokenizer that marks the beginning of a text (SentencePiece) marks every piece.
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
    """The end of the piece that begins at `start`."""
    for place in CUTS:
        # One character more: a space must be seen together with the character after it.
        if found := place.search(text, start + least, start + most + 1):
            return found.start()
    return min(start + most, len(text))
