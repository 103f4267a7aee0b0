"""Which columns make a row, and what each shape of a record becomes."""

import json
from itertools import pairwise

import pytest
from data_helpers import load

from mot.data.load import load_data
from mot.data.rows import shape_of, texts_of
from mot.data.sources import check_file
from mot.training.settings import TrainSettings

USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


def texts(record: dict, columns: dict | None = None):
    shape = shape_of(record, columns or {}, "x: line 1")
    return shape.kind, next(texts_of([("x: line 1", record)], shape))


@pytest.mark.parametrize(
    ("record", "columns", "expected"),
    [
        ({"prompt": "a", "completion": "b"}, {}, ("rows", ("a", "b"))),
        ({"prompt": "a", "response": "b", "key": "k"}, {}, ("rows", ("a", "b", "k"))),
        ({"question": "a", "answer": "b"}, {}, ("rows", ("a\n\n", "b"))),
        ({"instruction": "a", "input": "x", "output": "b"}, {}, ("rows", ("a\n\nx\n\n", "b"))),
        ({"instruction": "a", "input": "", "output": "b"}, {}, ("rows", ("a\n\n", "b"))),
        ({"instruction": "a", "output": "b"}, {}, ("rows", ("a\n\n", "b"))),
        ({"instruction": "a", "context": "x", "response": "b"}, {}, ("rows", ("a\n\nx\n\n", "b"))),
        ({"text": "a"}, {}, ("documents", ("a",))),
        ({"messages": [USER, ANSWER]}, {}, ("chat", ([USER, ANSWER],))),
        ({"messages": [USER, ANSWER], "key": "k"}, {}, ("chat", ([USER, ANSWER], "k"))),
        ({"prompt": [USER], "completion": [ANSWER]}, {}, ("chat", ([USER, ANSWER],))),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "s"},
            {},
            ("chat", ([{"role": "system", "content": "s"}, USER, ANSWER],)),
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, ANSWER]},
            {},
            ("chat", ([USER, ANSWER],)),
        ),
        ({"q": "a", "a": "b", "prompt": "no"}, {"prompt": "q", "completion": "a"}, ("rows", ("a", "b"))),
        ({"q": "a", "a": "b", "t": "k"}, {"prompt": "q", "completion": "a", "key": "t"}, ("rows", ("a", "b", "k"))),
        ({"prompt": "a", "completion": "b", "body": "c"}, {"text": "body"}, ("documents", ("c",))),
        ({"chat": [USER, ANSWER]}, {"messages": "chat"}, ("chat", ([USER, ANSWER],))),
    ],
)
def test_shapes(record, columns, expected):
    assert texts(record, columns) == expected


@pytest.mark.parametrize(
    ("record", "columns", "says"),
    [
        ({"a": "b"}, {}, "x: line 1 has no text `prompt`.* It has `a`: name its columns, e.g. --columns"),
        ({}, {}, "x: line 1 has no text `prompt`.* It has nothing"),
        (
            {"prompt": "a", "completion": "b"},
            {"prompt": "q"},
            "prompt=q: x: line 1 has no `q`, only",
        ),
        ({"question": "a", "answer": 7}, {}, "x: line 1 has no text `answer`; every row needs texts"),
        ({"instruction": "a", "input": 7, "output": "b"}, {}, "x: line 1 has no text `input`"),
        (
            {"messages": [USER, {"role": "assistant", "content": [{"type": "image_url"}]}]},
            {},
            "type 'image_url'",
        ),
        ({"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [1]}]}, {}, "no `messages` of texts"),
        ({"conversations": [{"from": "tool", "value": "a"}]}, {}, "a turn from 'tool'; there is human"),
        ({"conversations": [{"from": ["x"], "value": "a"}]}, {}, "a turn from "),
        ({"text": None}, {}, "has no text `text`; every row needs"),
        ({"text": "\ud800"}, {}, "half of a surrogate pair"),
    ],
)
def test_what_cannot_be_read(record, columns, says):
    with pytest.raises(ValueError, match=says) as e:
        texts(record, columns)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ("prompt", "'prompt' is not understood"),
        ("", "is not understood"),
        ("prompt=a,prompt=b", "each once"),
        ("foo=a", "'foo=a' is not understood"),
        ("prompt=", "is not understood"),
        ("prompt=a,text=b", "give prompt and completion, or messages, or text"),
    ],
)
def test_columns_that_are_not_understood(columns, says):
    with pytest.raises(ValueError, match=rf"^--columns {columns}: .*{says}"):
        TrainSettings(train_file="x", columns=columns).validate()


def test_columns_are_of_rows_and_text_has_none(text_file, tmp_path):
    with pytest.raises(ValueError, match=r"--columns .*plain text has no columns"):
        TrainSettings(train_file="x", columns="text=a", as_text=True).validate()
    with pytest.raises(ValueError, match=r"is plain text, and --columns are of rows"):
        load(text_file, columns="text=a")


def test_columns_that_are_not_read_are_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"question": f"q{i}", "answer": "a", "id": i}) + "\n" for i in range(10)))
    notes = load(path).notes
    assert "columns that are not read: id" in notes
    assert any(note.startswith("rows: the prompt is `question`, ") and "`answer`" in note for note in notes)


def test_rows_of_text_are_documents_of_one_text(tmp_path):
    """Each ends with the end-of-text token; one spelt out in a document is text."""
    path = tmp_path / "text.jsonl"
    documents = [f"document {i} <|endoftext|> of the king. " for i in range(40)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    data = load(path, eval_file=str(path), seq_length=8)
    assert check_file(str(path), "x").kind == "documents"
    end, ids = data.tokenizer.eos_token_id, data.train.ids[:].tolist()
    ends = [i for i, token in enumerate(ids) if token == end]
    assert [data.tokenizer.decode(ids[a + 1 : b]) for a, b in pairwise([-1, *ends])] == documents
    assert ends[-1] == len(ids) - 1
    held_out = load(path, seq_length=8)
    assert held_out.notes[-1] == "held out: 4 of 40 rows, shuffled"
    assert (
        load_data(
            TrainSettings(train_file=str(path), vocab_size=100, seq_length=8), general_file=str(path)
        ).general.tokens()
        == data.train.tokens()
    )
