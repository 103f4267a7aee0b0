"""The prompts of an evaluation: files of every shape, and one clear line for those that cannot be read."""

import gzip
import json

import pytest

from mot.evaluation.prompts import CUT, EvaluationPrompt, cut_prompts, read_prompts, split, task_prompts


def written(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def test_lines_of_text(tmp_path):
    path = written(tmp_path, "p.txt", "one\r\n\ntwo words \none\n")
    assert read_prompts(path, "--prompts") == [EvaluationPrompt("one"), EvaluationPrompt("two words ")]


def test_rows_of_one_prompt_are_put_together(tmp_path):
    rows = [
        {"prompt": "a", "completion": " x"},
        {"prompt": "b"},
        {"prompt": "a", "references": [" y", " z"]},
        {"prompt": "a", "completion": " x"},
    ]
    path = written(tmp_path, "p.jsonl", "\n".join(map(json.dumps, rows)))
    assert read_prompts(path, "--prompts") == [EvaluationPrompt("a", (" x", " y", " z")), EvaluationPrompt("b")]


@pytest.mark.parametrize("name", ["p.txt", "p.JSONL", "p.ndjson", "p"])
def test_rows_are_rows_whatever_the_name(tmp_path, name):
    rows = "".join(json.dumps({"prompt": p, "completion": " x"}) + "\n" for p in "ab")
    expected = [EvaluationPrompt("a", (" x",)), EvaluationPrompt("b", (" x",))]
    assert read_prompts(written(tmp_path, name, rows), "--prompts") == expected
    assert read_prompts(written(tmp_path, name, gzip.compress(rows.encode())), "--prompts") == expected


def test_rows_as_training_reads_them(tmp_path):
    path = written(tmp_path, "p.csv", "prompt,completion\na, x\nb, y\n")
    assert read_prompts(path, "--prompts") == [EvaluationPrompt("a", (" x",)), EvaluationPrompt("b", (" y",))]
    path = written(tmp_path, "p.json", json.dumps([{"instruction": "a", "input": "b", "output": "c"}]))
    assert read_prompts(path, "--prompts") == [EvaluationPrompt("a\n\nb\n\n", ("c",))]
    with pytest.raises(ValueError, match=r"^--text .*p.json: has rows"):
        cut_prompts(path, 3)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.jsonl", "[" * 100_000, "line 1 cannot be read as JSON"),
        ("p.jsonl", '{"prompt": "a", "n": ' + "9" * 5000 + "}", "line 1 cannot be read as JSON"),
        ("p.jsonl", '{"prompt": "\\ud800"}', "line 1 has half of a surrogate pair"),
        ("p.txt", "the king".encode("utf-16"), "is UTF-16"),
        ("p.txt", "", "is empty"),
        ("p.txt", " \n\n", "is empty"),
        ("p.txt", b"a\0b", "is binary"),
        ("p.txt", "é".encode("latin1"), "is not UTF-8"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": ', r"line 2 is not JSON"),
        ("p.jsonl", '{"prompt": "a"}\n["a"]', r"line 2 has no text `prompt`"),
        ("p.jsonl", '{"prompt": 3}', r"line 1 has no text `prompt`"),
        ("p.jsonl", '\n{"prompt": " "}', r"line 2 has no text `prompt`"),
        ("p.jsonl", '{"prompt": "a", "references": "b"}', r"line 1: `references` must be a list"),
        ("p.jsonl", '{"prompt": "a", "references": [""]}', r"line 1: `references` must be a list"),
        ("p.jsonl", '{"prompt": "a", "completion": null}', r"line 1: `references` must be a list"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, words):
    with pytest.raises(ValueError, match=f"^--prompts .*{words}"):
        read_prompts(written(tmp_path, name, content), "--prompts")


def test_files_that_are_not_there():
    with pytest.raises(ValueError, match=r"--prompts nowhere\.txt: no such file"):
        read_prompts("nowhere.txt", "--prompts")
    with pytest.raises(ValueError, match=r"--text nowhere\.txt: no such file"):
        cut_prompts("nowhere.txt", 3)


def test_prompts_cut_from_a_text_begin_with_words_and_are_spread_over_it(tmp_path):
    text = " ".join(f"word{i}" for i in range(2000))
    prompts = cut_prompts(written(tmp_path, "t.txt", text), 10)
    assert len(prompts) == 10
    assert all(len(a.prompt) == CUT and a.prompt.startswith("word") and a.prompt in text for a in prompts)
    first, last = text.index(prompts[0].prompt), text.index(prompts[-1].prompt)
    assert first < len(text) / 10 < 0.8 * len(text) < last + CUT < len(text)
    with pytest.raises(ValueError, match="has 799 characters"):
        cut_prompts(written(tmp_path, "short.txt", text[:799]), 10)


def test_no_prompt_is_in_both_splits():
    prompts = task_prompts("forks")
    validation, test = split(prompts)
    assert not set(validation) & set(test)
    assert len(validation) + len(test) == len(prompts) == 512
    assert len(task_prompts("circle")) == len(task_prompts("chains")) == 1
