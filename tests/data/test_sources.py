"""Files are read as they were written, in pieces, and checked as if they were read whole."""

import json
import re
from itertools import pairwise

import pytest
from data_helpers import BPE, characters, encode, mixed, write_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from mot.data import sources as sources_module
from mot.data.sources import check_file, check_text, pieces, read_rows
from mot.model.tokenizer import build_tokenizer


@settings(deadline=None, max_examples=300)
@given(text=mixed, least=st.integers(1, 6), cuts=st.lists(st.integers(0, 60)))
def test_pieces_of_a_text_have_the_ids_of_the_whole(text, least, cuts):
    places = sorted({0, len(text), *(c for c in cuts if c < len(text))})
    blocks = [text[a:b] for a, b in pairwise(places)]
    parts = list(pieces(blocks, least, 10**6))
    assert "".join(parts) == text
    assert all(len(part) >= least for part in parts[:-1])
    for tokenizer in (BPE, *([characters(text)] if text else [])):
        assert [i for part in parts for i in encode(tokenizer, part)] == encode(tokenizer, text)


@settings(deadline=None, max_examples=300)
@given(text=mixed, least=st.integers(1, 4), more=st.integers(0, 9), size=st.integers(1, 9))
def test_where_a_text_is_cut_depends_on_the_text_alone(text, least, more, size):
    blocks = [text[i : i + size] for i in range(0, len(text), size)]
    parts = list(pieces(blocks, least, least + more))
    assert parts == list(pieces([text], least, least + more))
    assert all(least <= len(part) <= least + more for part in parts[:-1])
    assert "".join(parts) == text


json_text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)


@settings(deadline=None)
@given(rows=st.lists(st.tuples(json_text | st.just(""), json_text), min_size=1, max_size=4), ascii=st.booleans())
def test_rows_are_read_as_they_were_written(tmp_path_factory, rows, ascii):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [json.dumps({"prompt": p, "completion": c}, ensure_ascii=ascii) for p, c in rows]
    for newline in ("\n", "\r\n", "\n\n"):
        path.write_bytes(newline.join(lines).encode())
        assert list(read_rows(str(path), "--train_file x")) == rows


def test_the_mark_that_some_editors_put_before_utf8_is_no_part_of_it(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", ("a", "b"))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert list(read_rows(str(path), "--train_file x")) == [("a", "b")]
    assert check_text(str(path), "--train_file x") == len(path.read_bytes()) - 3


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.sampled_from([b"\xef\xbb\xbf", "é中".encode(), b"ab", b" \n", b"\xff", b"\xc3", b"\0"])).map(b"".join)
)
def test_a_file_is_checked_in_blocks_as_it_would_be_whole(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("checked") / "file"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources_module, "BLOCK", 4)
        try:
            found = check_text(str(path), "x")
        except ValueError as e:
            found = str(e)
    if not content.strip():
        assert "is empty" in found
    elif b"\0" in content:
        assert f"a zero byte at {content.index(0)})" in found
    else:
        try:
            content.decode()
        except UnicodeDecodeError as e:
            place = f"(byte {e.start})"
        else:
            place = None
        assert place in found if place else found == len(content.decode("utf-8-sig"))


ROW = {"prompt": "a", "completion": "b"}
CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


@pytest.mark.parametrize("row", [ROW, CHAT], ids=["rows", "chat"])
@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ([{"key": "x"}, {}], "line 2 has no `key` and the lines before it have one; give every row a `key`, or none"),
        ([{}, {}, {"key": "x"}], "line 3 has a `key` and the lines before it have none; give every row a `key`, or no"),
        ([{"key": ""}], 'line 1: `key` is ""; it must be a text'),
        ([{"key": 7}], "line 1: `key` is 7; it must be a text"),
        ([{"key": "x"}, {"key": None}], "line 2: `key` is null; it must be a text"),
        ([{"key": "\ud83d"}], "line 1 has half of a surrogate pair"),
    ],
)
def test_a_key_is_in_all_rows_or_in_none_and_a_text(tmp_path, row, keys, said):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row | key) + "\n" for key in keys))
    with pytest.raises(ValueError, match=f"^--train_file {re.escape(str(path))}: {re.escape(said)}") as e:
        check_file(str(path), "--train_file", "rows")
    assert "\n" not in str(e.value)


def test_rows_with_keys(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(ROW | {"key": key}) + "\n" for key in "xyz"))
    assert list(read_rows(str(path), "x")) == [("a", "b", "x"), ("a", "b", "y"), ("a", "b", "z")]
    assert check_file(str(path), "--train_file", "rows").parts == 3


def test_restaurants_are_3879_rows(shared_data):
    rows = list(read_rows(str(shared_data / "e2e" / "train.jsonl"), "--train_file x"))
    assert len(rows) == 3879
    assert all("[" in prompt and completion.startswith(" ") for prompt, completion in rows)
    tokenizer = build_tokenizer([text for row in rows[:200] for text in row], 500, 8)
    for prompt, completion in rows[::50]:
        assert tokenizer.decode(encode(tokenizer, prompt + completion)) == prompt + completion
