"""What a data file is, by its content more than by its name, and its records one at a time.

    format_of("rows.JSONL", "rows.JSONL", "--train_file rows.JSONL")     "lines"
    for place, record in records(path, "lines", where): ...              ("--train_file rows.JSONL: line 3", {...})

Formats: "text", "lines" (one JSON object a line), "json" (an array, or objects one after the other), "csv" (commas,
semicolons or tabs) and "parquet". All but Parquet may be compressed by gzip, bzip2 or xz. What begins as JSON objects,
or as a table of known columns, is never text. No file is held in memory as a whole.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mot.runtime.flags import one_line
from mot.runtime.remote import EXTRA, is_remote

BLOCK = 2**20  # bytes or characters read at a time
LONGEST_RECORD = 2**26  # characters of one record of a JSON array or a CSV file
COMPRESSED = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open))
READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)  # of a disk, and of compressed files that break off
JSON_OBJECT = re.compile(r'\s*(?:\[\s*)?\{\s*(?:"(?:[^"\\]|\\.)*"\s*:|\})')
TO_JSONL = "convert it to .jsonl, .csv or Parquet"
FOREIGN = (  # (first bytes, what the file is, what to do)
    (b"\xff\xfe\0\0", "UTF-32", "convert it: iconv -f utf-32 -t utf-8 FILE > NEW"),
    (b"\0\0\xfe\xff", "UTF-32", "convert it: iconv -f utf-32 -t utf-8 FILE > NEW"),
    (b"\xff\xfe", "UTF-16", "convert it: iconv -f utf-16 -t utf-8 FILE > NEW"),
    (b"\xfe\xff", "UTF-16", "convert it: iconv -f utf-16 -t utf-8 FILE > NEW"),
    (b"PK\x03\x04", "a zip archive (or an Office document)", "unpack it first: unzip -p FILE > NEW"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "unpack it first: zstd -d FILE -o NEW"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first: 7z e FILE"),
    (b"Rar!", "a rar archive", "unpack it first: unrar x FILE"),
    (b"%PDF-", "a PDF document", "convert it: pdftotext FILE NEW"),
    (b"ARROW1", "an Arrow file", TO_JSONL),
    (b"SQLite format 3\0", "an SQLite database", TO_JSONL),
    (b"\x89HDF", "an HDF5 file", TO_JSONL),
)


def format_of(path: str, name: str, where: str, known: Callable[[set[str]], bool] = lambda names: False) -> str:
    """The format of the local file `path`. Raises ValueError beginning with `where` if it is of a foreign format.

    name: as the user gave it, possibly an address with a query. known: do these columns make rows?
    """
    suffix = suffix_of(name)
    with reading(where), open_binary(path) as file:
        start = file.read(512)
        if start.startswith(b"PAR1"):
            return "parquet"
        for magic, what, remedy in FOREIGN:
            if start.startswith(magic):
                raise ValueError(f"{where}: is {what}; {remedy}")
        if start[257:262] == b"ustar":
            raise ValueError(f"{where}: is a tar archive; unpack it first: tar -xf FILE")
        for order, zeros, others in (("le", start[1::2], start[::2]), ("be", start[::2], start[1::2])):
            if len(start) > 8 and zeros.count(0) > 0.7 * len(zeros) and 0 not in others:
                raise ValueError(f"{where}: is UTF-16; convert it: iconv -f utf-16{order} -t utf-8 FILE > NEW")
        start += file.read(BLOCK - len(start))
    if suffix == "parquet":
        raise ValueError(f"{where}: is not a Parquet file, whatever its name; give another, or name it for what it is")
    # A block may end inside a character, which is no reason to call it broken here.
    text = start.decode("utf-8-sig", "ignore")
    first = next((line for line in text.split("\n") if line.strip()), "")
    if suffix in ("jsonl", "ndjson"):
        return "lines"
    if suffix == "json" or JSON_OBJECT.match(text):
        whole = JSON_OBJECT.match(first) and not first.lstrip().startswith("[")
        return "lines" if whole and (len(first) == len(text) or _is_json(first)) else "json"
    if suffix in ("csv", "tsv"):
        return "csv"
    delimiter = delimiter_of(first)
    names = {name.strip().strip('"') for name in first.split(delimiter)}
    return "csv" if len(names) > 1 and known(names) else "text"


def suffix_of(name: str) -> str:
    """The suffix of a path or address in lower case, without a query and without that of a compression."""
    if is_remote(name):
        name = name.split("?")[0].split("#")[0]
    name = re.sub(r"\.(gz|bz2|xz)$", "", name.lower())
    return name.rsplit("/", 1)[-1].rpartition(".")[2]


def open_binary(path: str) -> io.BufferedIOBase:
    """A file of bytes, decompressed while it is read if it is compressed by gzip, bzip2 or xz."""
    with open(path, "rb") as file:
        start = file.read(6)
    opener = next((opener for magic, opener in COMPRESSED if start.startswith(magic)), open)
    return opener(path, "rb")


def open_text(path: str, newline: str) -> io.TextIOWrapper:
    """`open_binary` as UTF-8 text, without a byte order mark. `newline` is as in `open`."""
    return io.TextIOWrapper(open_binary(path), encoding="utf-8-sig", newline=newline)


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Turn an error of the disk, or of a broken compressed file, into a ValueError beginning with `where`."""
    try:
        yield
    except READ_ERRORS as e:
        reason = getattr(e, "strerror", None) or one_line(e) or type(e).__name__
        raise ValueError(f"{where}: cannot be read ({reason}); check its permissions, or copy it again") from None


def records(path: str, format: str, where: str) -> Iterator[tuple[str, object]]:
    """(place, record) of every record of a file of another format than "text".

    place: `where` and the line or the row, for messages. A record of a table is a dict; of JSON, anything. Raises
    ValueError that begins with the place.
    """
    read = {"lines": _lines, "json": _values, "csv": _table, "parquet": _parquet}[format]
    with reading(where):
        yield from read(path, where)


def parse_json(text: str, place: str) -> object:
    """The value of a JSON text. Raises ValueError beginning with `place`."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as e:
        raise ValueError(f"{place} is not JSON ({e.msg}); fix or remove it") from None
    except (ValueError, RecursionError) as e:  # a number of thousands of digits; brackets in brackets
        raise ValueError(f"{place} cannot be read as JSON ({_reason(e)}); fix or remove it") from None


def _reason(error: Exception) -> str:
    return "brackets are nested too deeply" if isinstance(error, RecursionError) else "a number has too many digits"


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _lines(path: str, where: str) -> Iterator[tuple[str, object]]:
    with open_text(path, newline="\n") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                place = f"{where}: line {number}"
                yield place, parse_json(line, place)


def _values(path: str, where: str) -> Iterator[tuple[str, object]]:
    """The items of a JSON array, or the values of a file that holds several, one after the other."""
    decode, text, line, array = json.JSONDecoder().raw_decode, "", 1, None
    with open_text(path, newline="\n") as file:
        ended = False
        while True:
            begin = len(text) - len(text.lstrip(" \t\r\n,"))
            line, text = line + text.count("\n", 0, begin), text[begin:]
            if array is None and text:
                array = text[0] == "["
                if array:
                    text = text[1:]
                    continue
            if array and text.startswith("]"):
                text = text[1:] + file.read()
                if text.strip():
                    raise ValueError(f"{where}: has more text after its array (line {line}); remove it")
                return
            place = f"{where}: line {line}"
            value, stop, error = None, 0, None
            if text:
                try:
                    value, stop = decode(text)
                except json.JSONDecodeError as e:
                    error = e
                except (ValueError, RecursionError) as e:
                    raise ValueError(f"{place} cannot be read as JSON ({_reason(e)}); fix or remove it") from None
            # A number at the end of what was read may go on.
            if stop and (ended or stop < len(text)):
                yield place, value
                line, text = line + text.count("\n", 0, stop), text[stop:]
                continue
            more = "" if ended or len(text) > LONGEST_RECORD else file.read(max(BLOCK, len(text)))
            ended = ended or not more
            if not more and error:
                raise ValueError(f"{place} begins a record that is not JSON ({error.msg}); fix or remove it")
            if not more and not text:
                if array:
                    raise ValueError(f"{place} ends the file inside an array; give the whole file")
                return
            text += more


def delimiter_of(header: str) -> str:
    """What separates the columns of a table with this first line: the most frequent of comma, tab and semicolon."""
    return max(",\t;", key=header.count)


def _table(path: str, where: str) -> Iterator[tuple[str, dict[str, str]]]:
    csv.field_size_limit(LONGEST_RECORD)
    with open_text(path, newline="") as file:
        header = file.readline(BLOCK)
        while header and not header.strip():
            header = file.readline(BLOCK)
        delimiter = delimiter_of(header)
        (names,) = list(csv.reader([header], delimiter=delimiter)) or [[]]
        names = [name.strip() for name in names]
        if len(set(names)) < len(names):
            raise ValueError(f"{where}: two columns have one name; its first line must name every column")
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        while True:
            place = f"{where}: line {reader.line_num + 2}"
            try:
                fields = next(reader, None)
            except csv.Error as e:
                raise ValueError(f"{place} cannot be read ({one_line(e)}); check its quotes") from None
            if fields is None:
                return
            if not fields:
                continue
            if len(fields) != len(names):
                raise ValueError(f"{place} has {len(fields)} fields and the first line {len(names)}; fix or remove it")
            yield place, dict(zip(names, fields, strict=True))


def _parquet(path: str, where: str) -> Iterator[tuple[str, dict]]:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise ValueError(f"{where}: Parquet needs pyarrow; {EXTRA.format('data')}") from None
    number = 0
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for record in batch.to_pylist():
                    number += 1
                    yield f"{where}: row {number}", record
    except pyarrow.ArrowException as e:
        raise ValueError(f"{where}: cannot be read as Parquet ({one_line(e)}); copy it again") from None
