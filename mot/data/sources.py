"""The files that training reads: checked, and read in pieces.

    file = check_file("rows.jsonl", "--train_file")     DataFile: kind, count and sha256
    texts(file)                                         its pieces, or the texts of its rows in turn
    train, held_out = split(file)                       two `Part`s and a note
    rows(file, held_out)                                the rows of a part

A file may be larger than memory: nothing here holds more than a piece of it, and about 60 bytes for each row while rows
are split.
"""

import codecs
import hashlib
import json
import os
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain, groupby, islice

import numpy as np

from mot.data.cache import FORMAT, cached, sha256
from mot.data.files import files_of
from mot.data.formats import BLOCK, format_of, open_binary, open_text, reading, records
from mot.data.pieces import by_document, pieces
from mot.data.rows import Shape, makes_rows, shape_of, texts_of
from mot.model.tokenizer import END


@dataclass(frozen=True)
class DataFile:
    """One or several files that have passed every check. `count`: their characters (kind "text") or rows."""

    where: str  # flag and path as the user gave them
    names: tuple[str, ...]  # flag and path of each file
    paths: tuple[str, ...]  # of the local copies
    format: str  # as in mot/data/formats.py
    shape: Shape | None  # of rows; a text has none
    sha256: str
    count: int
    changed: tuple[int, ...]  # times of the last change, in nanoseconds since 1970

    @property
    def kind(self) -> str:
        """ "text", or the kind of its rows: "rows", "chat" or "documents"."""
        return self.shape.kind if self.shape else "text"

    @property
    def parts(self) -> int:
        """Texts of a row: prompt, completion and, if rows have keys, key; 0 for a text and for documents."""
        return self.shape.parts if self.shape else 0

    def size(self) -> int:
        """Bytes of all files, as they lie on the disk."""
        return sum(os.path.getsize(path) for path in self.paths)


@dataclass(frozen=True)
class Part:
    """The characters or rows of a file with start <= place < stop, or with `outside`, the others.

    by: what the place of a row is: the 64-bit hash of its "prompt", "row" or "number", or (also of characters) its
    "place" in the file.
    """

    by: str
    start: int
    stop: int
    outside: bool = False


FORMATS = {"text": "text", "lines": ".jsonl", "json": "JSON", "csv": "a table", "parquet": "Parquet"}  # in messages


def check_file(path: str, flag: str, columns: dict[str, str] | None = None, as_text: bool = False) -> DataFile:
    """Fetch, hash and check files of text or of rows. Content that was checked before is only hashed.

    columns: our names of columns and the file's. as_text: whatever they look like, they are plain text. Raises
    ValueError naming `flag` for a file that is missing, empty, binary or not UTF-8, and for a row that cannot be read.
    """
    where, columns = f"{flag} {path}", columns or {}
    files = [(local, name, f"{flag} {name}") for name, local in files_of(path, flag)]
    changed, digests = [], []
    for local, _, name in files:
        with reading(name), open(local, "rb") as file:
            changed.append(os.fstat(file.fileno()).st_mtime_ns)
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    format = _common_format(files, where, columns)
    format = "text" if as_text else format
    digest = digests[0] if len(digests) == 1 else sha256(json.dumps(digests).encode())
    about = {"format": FORMAT, "file": digest, "as": format, "columns": columns}

    def facts() -> str:
        if format != "parquet":
            characters = [check_text(local, name) for local, _, name in files]
        if format == "text":
            return json.dumps([None, sum(characters) + len(END) * (len(files) - 1)])
        found = chain.from_iterable(records(local, format, name) for local, _, name in files)
        first = next(found, None)
        if first is None:
            return json.dumps([None, 0])
        shape = shape_of(first[1], columns, first[0])
        return json.dumps([asdict(shape), sum(1 for _ in texts_of(chain([first], found), shape))])

    shape, count = json.loads(cached(about, facts))
    if not count:
        raise ValueError(f"{where}: is empty; give a file with text in it")
    if shape:
        shape = Shape(**{name: tuple(v) if isinstance(v, list) else v for name, v in shape.items()})
    if columns and not shape:
        raise ValueError(f"{where}: is plain text, and --columns are of rows; leave it out, or give a file of rows")
    paths, _, names = zip(*files, strict=True)
    return DataFile(where, names, paths, format, shape, digest, count, tuple(changed))


def _common_format(files: list[tuple[str, str, str]], where: str, columns: dict[str, str]) -> str:
    """The format of all files (local path, name, flag and name). Raises ValueError if they are not of one format."""
    formats = [format_of(*file, lambda names: makes_rows(names, columns)) for file in files]
    for format, (_, _, name) in zip(formats, files, strict=True):
        if format != formats[0]:
            raise ValueError(
                f"{where}: {files[0][2]} is {FORMATS[formats[0]]} and {name} is {FORMATS[format]}; give files of one "
                "kind, e.g. by a pattern"
            )
    return formats[0]


def check_text(path: str, where: str) -> int:
    """Number of characters of a UTF-8 text file, without the byte order mark.

    Raises ValueError beginning with `where` if it cannot be read, is empty, binary or not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    position, characters, blank, broken = 0, 0, True, None
    with reading(where), open_binary(path) as file:
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


def rows(file: DataFile, part: Part | None = None) -> Iterator[tuple]:
    """The rows of a part of a file, or of all of it, as `texts_of` yields them."""
    return (row for _, row in numbered(file, part))


def numbered(file: DataFile, part: Part | None = None) -> Iterator[tuple[int, tuple]]:
    """(number, row) of the rows of a part. The first row of the file has number 1."""
    found = chain.from_iterable(records(p, file.format, w) for p, w in zip(file.paths, file.names, strict=True))
    for number, row in enumerate(texts_of(found, file.shape), 1):
        if part is None or (part.start <= _place(part.by, number, row) < part.stop) != part.outside:
            yield number, row


def _place(by: str, number: int, row: tuple) -> int:
    if by == "place":
        return number - 1
    hashed = row if by == "row" else number
    if by == "prompt":  # of a conversation, what comes before the assistant's last turn
        hashed = row[0][:-1] if isinstance(row[0], list) else row[0]
    return int.from_bytes(hashlib.blake2b(json.dumps(hashed).encode(), digest_size=8).digest())


def split(file: DataFile) -> tuple[Part, Part, str]:
    """(what to train on, what to hold out, a note for the user): about a tenth is held out.

    Of a text, the last tenth of its characters. Of rows, a range of the hashes of their prompts: no prompt is in both
    parts, and the order of the file does not matter. If all rows have one prompt, the rows are hashed. If all rows are
    equal, their numbers are. Raises ValueError if there is only one row.
    """
    if file.kind == "text":
        cut = file.count * 9 // 10
        note = "held out: the last 10 % of the text (--eval_file gives another)"
        return Part("place", 0, cut), Part("place", cut, file.count), note
    if file.count < 2:
        raise ValueError(f"{file.where}: one row cannot be split; give more rows, or --eval_file")
    about = {"format": FORMAT, "file": file.sha256, "split of": asdict(file.shape), "as": file.format}
    by, start, stop, held_out, groups = json.loads(cached(about, lambda: json.dumps(_split_rows(file))))
    note = f"held out: {held_out:,} of {file.count:,} rows, shuffled"
    if by == "prompt" and file.kind != "documents":
        note += f" by prompt: {groups[0]:,} of {groups[1]:,} prompts, none of them trained on"
    elif by == "row":
        note += "; all rows have one prompt"
    elif by == "number":
        note += "; all rows are equal"
    return Part(by, start, stop, outside=True), Part(by, start, stop), note


def _split_rows(file: DataFile) -> tuple[str, int, int, int, tuple[int, int]]:
    """(what is hashed, hashes start and stop of the held-out rows, their number, different hashes of them and in all).

    The hashes are one after the other in sorted order, as many as come nearest to a tenth of the rows.
    """
    for by in ("prompt", "row", "number"):
        hashes = np.frombuffer(array("Q", (_place(by, number, row) for number, row in numbered(file))), np.uint64)
        different, rows_of = np.unique(hashes, return_counts=True)
        if len(different) > 1:
            break
    tenth, before = -(-file.count // 10), np.concatenate([[0], np.cumsum(rows_of)])
    first = np.arange(len(different))
    last = np.searchsorted(before, before[:-1] + tenth)  # the first end behind a tenth of the rows
    ends = np.stack([np.maximum(last - 1, first + 1), np.minimum(last, len(different))])
    held_out = before[ends] - before[first]
    misses = np.where(held_out < file.count, abs(held_out - tenth), file.count)
    start = int(misses.min(0).argmin())
    end = int(ends[misses[:, start].argmin(), start])
    stop = int(different[end]) if end < len(different) else 2**64
    return by, int(different[start]), stop, int(before[end] - before[start]), (end - start, len(different))


def _blocks(file: DataFile, start: int, stop: int) -> Iterator[str]:
    """Characters start .. stop - 1 of a text, a block at a time. Between two files there is an END."""
    position = 0
    for number, (path, where) in enumerate(zip(file.paths, file.names, strict=True)):
        with reading(where), open_text(path, newline="\n") as opened:
            block = END if number else opened.read(BLOCK)
            while position < stop and block:
                yield block[max(0, start - position) : stop - position]
                position += len(block)
                block = opened.read(BLOCK)


def documents(file: DataFile, part: Part | None = None) -> Iterator[Iterator[str]]:
    """The documents of a text, or of rows of documents, each as pieces. Take them in order, each before the next.

    After the last document of rows comes an empty one.
    """
    if file.kind == "text":
        part = part or Part("place", 0, file.count)
        for _, blocks in groupby(by_document(_blocks(file, part.start, part.stop)), key=lambda numbered: numbered[0]):
            yield pieces(block for _, block in blocks)
    else:
        for (text,) in rows(file, part):
            yield pieces([text])
        yield iter(())


def texts(file: DataFile, every: int = 1) -> Iterator[str]:
    """The pieces of a text, or the prompt, completion and key of all rows in turn.

    every: of so many pieces, or rows, yield only the first.
    """
    if not file.parts:
        return islice(chain.from_iterable(documents(file)), 0, None, every)
    return chain.from_iterable(islice(rows(file), 0, None, every))
