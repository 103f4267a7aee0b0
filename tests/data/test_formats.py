"""A file is what its content is, whatever its name; the same rows in every format; foreign files by name."""

import bz2
import csv
import gzip
import io
import json
import lzma
import random
import string

import pyarrow
import pyarrow.parquet
import pytest
from data_helpers import load, write_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from mot.data import formats
from mot.data.formats import format_of, records
from mot.data.load import load_data
from mot.data.sources import check_file, rows
from mot.training.settings import TrainSettings

ROWS = [{"prompt": f"q {i}", "completion": f' a, "{i}"\nb\té', "key": f"k{i}"} for i in range(20)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def table(delimiter: str) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, ROWS[0], delimiter=delimiter, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(ROWS)
    return file.getvalue()


def parquet() -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), file)
    return file.getvalue()


EVERY_FORMAT = {
    "lines": LINES,
    "lines with a byte order mark": "\ufeff" + LINES,
    "array": json.dumps(ROWS),
    "array, indented": json.dumps(ROWS, indent=2, ensure_ascii=False),
    "objects, indented": "\n".join(json.dumps(row, indent=2) for row in ROWS),
    "commas": table(","),
    "tabs": table("\t"),
    "semicolons": table(";"),
    "parquet": parquet(),
    "gzip": gzip.compress(LINES.encode()),
    "bzip2": bz2.compress(table(",").encode()),
    "xz": lzma.compress(json.dumps(ROWS).encode()),
}


@pytest.mark.parametrize("name", ["file.txt", "file", "file.JSONL", "file.dat?download=true"])
@pytest.mark.parametrize("made", EVERY_FORMAT)
def test_rows_are_rows_in_every_format_and_under_every_name(tmp_path, made, name):
    content = EVERY_FORMAT[made]
    if name == "file.JSONL" and "lines" not in made and made != "gzip":
        pytest.skip("a name that promises other content")
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    file = check_file(str(tmp_path / name), "--train_file")
    assert (file.kind, file.parts, file.count) == ("rows", 3, 20)
    assert list(rows(file)) == [(row["prompt"], row["completion"], row["key"]) for row in ROWS]


@pytest.mark.parametrize("flag", ["--train_file", "--general_file"])
def test_json_rows_are_text_only_where_it_is_asked_for(tmp_path, text_file, flag):
    path = tmp_path / "rows.JSONL"
    path.write_text(LINES)
    given = {"train_file": str(path), "seq_length": 32, "vocab_size": 100}
    if flag == "--general_file":
        with pytest.raises(ValueError, match=r"--general_file .*rows.JSONL: has rows; .*--as_text"):
            load_data(TrainSettings(**given | {"train_file": str(text_file)}), general_file=str(path))
    as_text = load_data(TrainSettings(**given, as_text=True))
    assert as_text.tokenizer.decode(as_text.train[0]) == LINES[:32]


@pytest.mark.parametrize(
    "content",
    [
        '{"a": 1} is JSON, said the king',
        "{the king}\n",
        "[Illustration]\n{",
        "prompt, completion and key are words",
        "prompt completion\n",
        '"prompt"\n',
        "[1, 2]\n",
        "{",
        "",
    ],
)
def test_text_that_only_resembles_rows(tmp_path, content):
    (tmp_path / "file.txt").write_text(content)
    known = lambda names: {"prompt", "completion"} <= names  # noqa: E731
    assert format_of(str(tmp_path / "file.txt"), "file.txt", "x", known) == (
        "lines" if content.startswith('{"a"') else "text"
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("the king".encode("utf-16"), "is UTF-16; convert it: iconv -f utf-16 "),
        ("the king of night".encode("utf-16-le"), "is UTF-16; convert it: iconv -f utf-16le "),
        ("the king of night".encode("utf-16-be"), "is UTF-16; convert it: iconv -f utf-16be "),
        ("the king".encode("utf-32"), "is UTF-32; convert it: iconv"),
        (b"PK\x03\x04rest", "is a zip archive .*unzip"),
        (b"%PDF-1.7", "is a PDF document; .*pdftotext"),
        (b"\x28\xb5\x2f\xfdrest", "is compressed by zstd; .*zstd -d"),
        (b"SQLite format 3\0", "is an SQLite database"),
        (b"x" * 257 + b"ustar", "is a tar archive; .*tar -xf"),
        (b"PAR1" + b"x" * 99, "cannot be read as Parquet"),
        (gzip.compress(LINES.encode())[:-9], "cannot be read"),
        (gzip.compress(LINES.encode())[:40] + b"x" * 99, "cannot be read"),
        (lzma.compress(LINES.encode())[:-9], "cannot be read"),
    ],
)
def test_foreign_and_broken_files_are_named_for_what_they_are(tmp_path, content, says):
    (tmp_path / "file.txt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"^--train_file .*file.txt: .*{says}") as e:
        check_file(str(tmp_path / "file.txt"), "--train_file")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("f.jsonl", "[" * 100_000, "line 1 cannot be read as JSON .*nested too deeply"),
        ("f.jsonl", LINES + '{"prompt": ' + "[" * 100_000, "line 21 cannot be read as JSON .*nested too deeply"),
        ("f.json", "[" + "[" * 100_000, "line 1 cannot be read as JSON .*nested too deeply"),
        ("f.jsonl", '{"prompt": "a", "completion": "b", "n": ' + "9" * 5000 + "}", "line 1 .*too many digits"),
        ("f.json", '[{"prompt": "a", "n": ' + "9" * 5000 + "}]", "line 1 .*too many digits"),
        ("f.json", json.dumps(ROWS, indent=0)[:-40], r"line \d+ begins a record that is not JSON"),
        ("f.json", json.dumps(ROWS) + "x", "has more text after its array"),
        ("f.json", json.dumps(ROWS)[:-1], "ends the file inside an array"),
        ("f.json", "[1, 2]", "line 1 has no text `prompt`"),
        ("f.json", "[]", "is empty"),
        ("f.json", json.dumps({"data": ROWS}), "line 1 has no text `prompt`.* It has `data`"),
        ("f.csv", "a,b\n1,2\n", "line 2 has no text `prompt`.* It has `a`, `b`: .*--columns"),
        ("f.csv", "prompt,completion\na,b\na,b,c\n", "line 3 has 3 fields and the first line 2"),
        ("f.csv", "prompt,completion\na,b\na\n", "line 3 has 1 fields and the first line 2"),
        ("f.csv", "prompt,completion,prompt\na,b,c\n", "two columns have one name"),
        ("f.csv", 'prompt,completion\na,b\na,"b', "line 3 "),
        ("f.csv", "prompt,completion\na,\n", "line 2 has an empty `completion`"),
        ("f.csv", "prompt,completion\n", "is empty"),
        ("f.parquet", "abc", "is not a Parquet file"),
    ],
)
def test_broken_rows_are_one_line_with_their_place(tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"^--train_file .*{name}: .*{says}") as e:
        check_file(str(tmp_path / name), "--train_file")
    assert "\n" not in str(e.value)


json_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.dictionaries(st.text(min_size=1, max_size=5), json_value, max_size=4), min_size=1, max_size=5),
    st.sampled_from([None, 0, 2]),
    st.sampled_from([True, False]),
    st.integers(1, 40),
)
def test_json_is_read_in_blocks_as_it_would_be_whole(tmp_path_factory, values, indent, array, block):
    path = tmp_path_factory.mktemp("json") / "f.json"
    text = json.dumps(values, indent=indent) if array else "\n".join(json.dumps(v, indent=indent) for v in values)
    path.write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "BLOCK", block)
        assert [value for _, value in records(str(path), "json", "x")] == values


some_bytes = st.sampled_from([c.encode() if isinstance(c, str) else c for c in EVERY_FORMAT.values()])
some_name = st.sampled_from(["a.jsonl", "a.json", "a.csv", "a", "a.gz", "a.parquet"])


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200) | some_bytes, st.integers(0, 3000), st.integers(0, 3000), some_name)
def test_whatever_a_file_holds_it_is_read_or_refused_in_one_line(tmp_path_factory, content, cut, flip, name):
    content = bytearray(content[: len(content) - cut % (len(content) + 1)])
    if content:
        content[flip % len(content)] ^= 1 << flip % 8
    path = tmp_path_factory.mktemp("fuzz") / name
    path.write_bytes(content)
    said = "--train_file "
    try:
        file = check_file(str(path), "--train_file")
        assert file.kind == "text" or len(list(rows(file))) == file.count
    except ValueError as e:
        said = str(e)
    assert said.startswith("--train_file ")
    assert "\n" not in said


def test_a_large_array_is_not_held_in_memory(tmp_path):
    import tracemalloc

    draw = random.Random(0)
    row = [{"prompt": "".join(draw.choices(string.ascii_letters, k=100)), "completion": "b"} for _ in range(100_000)]
    (tmp_path / "f.json").write_text(json.dumps(row))
    tracemalloc.start()
    assert sum(1 for _ in records(str(tmp_path / "f.json"), "json", "x")) == 100_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (tmp_path / "f.json").stat().st_size / 2


def test_several_files_are_one(tmp_path):
    """By a directory, a pattern and commas, in the order of their names, without hidden files and descriptions."""
    parts = [[(f"{n}{i}", "c") for i in range(10)] for n in "ab"]
    for name, part in zip("ab", parts, strict=True):
        write_rows(tmp_path / f"{name}.jsonl", *part)
    for other in (".hidden.jsonl", "README.md", "dataset_info.json"):
        (tmp_path / other).write_text("{}")
    for path in (tmp_path, tmp_path / "*.jsonl", f"{tmp_path}/a.jsonl,{tmp_path}/b.jsonl", f"file://{tmp_path}"):
        file = check_file(str(path), "--train_file")
        assert list(rows(file)) == parts[0] + parts[1]
    (tmp_path / "b.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(ValueError, match=r"^--train_file .*b.jsonl: line 1 has no text `completion`"):
        check_file(str(tmp_path), "--train_file")
    (tmp_path / "b.jsonl").write_text("plain text")
    with pytest.raises(ValueError, match=r"line 1 is not JSON"):
        check_file(str(tmp_path), "--train_file")
    (tmp_path / "b.jsonl").rename(tmp_path / "b.txt")
    with pytest.raises(ValueError, match=r"b.txt is text; give files of one kind"):
        check_file(str(tmp_path), "--train_file")


def test_the_splits_of_a_directory_are_not_mixed(tmp_path):
    for name in ("train-00", "train-01", "test-00"):
        write_rows(tmp_path / f"{name}.jsonl", *[(f"{name} {i}", "c") for i in range(5)])
    with pytest.raises(ValueError, match=r"has several splits \(test, train\); .*train\*"):
        check_file(str(tmp_path), "--train_file")
    assert check_file(f"{tmp_path}/**/train*", "--train_file").count == 10


def test_files_that_are_texts_are_documents(tmp_path):
    for name, text in (("a", "the king " * 30), ("b", "of night " * 30)):
        (tmp_path / f"{name}.txt").write_text(text)
    one, several = tmp_path / "one", load(tmp_path)
    one.write_text("the king " * 30 + "<|endoftext|>" + "of night " * 30)
    assert several.fingerprint == load(one).fingerprint
    end = several.tokenizer.eos_token_id
    ids = [int(i) for part in (several.train, several.eval) for window in part for i in window]
    assert ids.count(end) == 1
    assert ids.index(end) == 270


def test_standard_input_is_read_once_and_kept(tmp_path, monkeypatch):
    class Pipe:
        buffer = io.BytesIO(LINES.encode())

    monkeypatch.setattr("sys.stdin", Pipe)
    assert check_file("-", "--train_file").count == 20
