"""A verifier is found by its name, and what a user's function does wrong is one line."""

import pytest

from mot import tasks
from mot.tasks.verifier import identity, load_verifier, require_some_valid

GOOD = "def check(prompt, text):\n    return text.strip() or None\n"


def named(tmp_path, code: str) -> str:
    (tmp_path / "v.py").write_text(code)
    return f"{tmp_path / 'v.py'}:check"


def test_a_function_of_a_file_and_a_task(tmp_path):
    verify = load_verifier(named(tmp_path, GOOD))
    assert (verify("p", " a "), verify("p", " ")) == ("a", None)
    prompt, completion = tasks.held_out("forks")[0]
    assert load_verifier("forks")(prompt, completion) in prompt


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            "def check(prompt, text):\n    return 7\n",
            r"returned 7 for the prompt 'p' and the text 'x'; it must",
        ),
        ("def check(prompt, text):\n    return text == 'x'\n", "returned True for the prompt 'p' and the text 'x'"),
        ("def check(prompt, text):\n    raise KeyError('no')\n", r"raised KeyError \('no'\) for the prompt 'p' and"),
        ("def check(prompt):\n    return None\n", r"raised TypeError \(.*\) for the prompt 'p'"),
        ("import time\ndef check(p, t):\n    time.sleep(9)\n", "took longer than 1 s for the prompt 'p' and"),
        (
            "def check(p, t):\n    while True:\n        pass\n",
            "took longer than 1 s for the prompt",
        ),
        (
            "def check(p, t):\n    while 1:\n        try:\n            0\n        except Exception:\n            0\n",
            "took longer than 1 s",
        ),
    ],
)
def test_what_a_function_does_wrong_is_one_line_with_the_prompt(tmp_path, code, said):
    name = named(tmp_path, code)
    verify = load_verifier(name)
    with pytest.raises(ValueError, match=f"^--verifier {name}: {said}") as e:
        verify("p", "x")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("other = 1\n", r"has no function check; give FILE.py:FUNCTION\(prompt, text\)"),
        ("check = 1\n", "has no function check"),
        ("def check(:\n", "raised SyntaxError: .*; correct it"),
        ("import no_such_module\n", "raised ModuleNotFoundError: No module named 'no_such_module'; correct it"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(tmp_path, code, said):
    name = named(tmp_path, code)
    with pytest.raises(ValueError, match=f"^--verifier {name}: .*{said}"):
        load_verifier(name)


@pytest.mark.parametrize("name", ["v", "v.py", "v.txt:check", "v.py:", "v.py:a b", ":check", "", "unknown_task"])
def test_a_name_that_names_nothing_says_what_to_give(name):
    with pytest.raises(ValueError, match=r"must be FILE.py:FUNCTION, or a task \(forks, "):
        load_verifier(name)


def test_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"no such file .*none\.py; give the path of a Python file"):
        load_verifier(f"{tmp_path}/none.py:check")


def test_a_verifier_that_accepts_nothing_is_refused(tmp_path):
    verify = load_verifier(named(tmp_path, "def check(prompt, text):\n    return None\n"))
    with pytest.raises(ValueError, match=r"^--verifier v: accepts none of the first 2 completions, such as 'b' to"):
        require_some_valid(verify, [("a", "b"), ("c", "d")], "--verifier v")
    require_some_valid(load_verifier(named(tmp_path, GOOD)), [("a", " "), ("c", "d")], "--verifier v")


def test_another_content_is_another_verifier(tmp_path):
    name = named(tmp_path, GOOD)
    first = identity(name)
    assert identity(named(tmp_path, GOOD + "# changed\n")) != first
    assert identity("forks") == "forks"
