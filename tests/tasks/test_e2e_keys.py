"""Keys of restaurant descriptions: every row gets one, its plan. Bad files are rejected before anything is written."""

import json
import subprocess
import sys

import pytest

from mot.data.sources import check_file, rows
from mot.tasks import e2e, e2e_keys

PROMPT = "name[Aromi], eatType[coffee shop], customer rating[high], area[riverside]"
ROW = {"prompt": PROMPT, "completion": " By the river is Aromi. It is a highly rated coffee shop."}


def keys(path, out) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "mot.tasks.e2e", "keys", str(path), str(out)], capture_output=True, text=True
    )


def test_the_command_writes_rows_that_training_reads(tmp_path):
    (tmp_path / "in.jsonl").write_text(json.dumps(ROW | {"id": 7}) + "\n\n" + json.dumps(ROW) + "\n")
    run = keys(tmp_path / "in.jsonl", tmp_path / "new" / "out.jsonl")
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout == f"{tmp_path}/new/out.jsonl: 2 rows with keys\n"
    plan = "area name . rating eatType"
    written = [json.loads(line) for line in (tmp_path / "new" / "out.jsonl").open()]
    assert written == [ROW | {"id": 7, "key": plan}, ROW | {"key": plan}]
    assert list(rows(check_file(str(tmp_path / "new" / "out.jsonl"), "--train_file")))[1] == (*ROW.values(), plan)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("Aromi is a coffee shop. It is by the river.", "name eatType . area . rating"),  # no rating
        ("A coffee shop: Aromi, poorly rated, by the river", "eatType name area . rating"),  # contradicts the rating
        ("Zizzi", "name eatType rating area"),
        ("", "name eatType rating area"),
    ],
)
def test_a_text_without_a_plan_has_the_whole_list_as_its_key(text, key):
    assert e2e.plan(PROMPT, text) is None
    assert e2e_keys.key(PROMPT, text) == key


def test_people_are_given_keys_that_name_every_slot(shared_data, tmp_path):
    lines = (shared_data / "e2e" / "valid.jsonl").read_text().splitlines()[::7]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    assert e2e_keys.write(str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl")) == len(lines)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").open()]
    for row in rows:
        slots = row["key"].replace(" . ", " ").split()
        assert sorted(slots) == sorted(slot.split()[-1] for slot in e2e.attributes(row["prompt"]))
    planned = [row for row in rows if e2e.plan(row["prompt"], row["completion"])]
    assert all(e2e.plan(row["prompt"], row["completion"]) == row["key"] for row in planned)
    assert len(planned) > 0.9 * len(rows)
    assert len({row["key"] for row in rows}) > len(rows) / 2  # people plan in many ways


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "in.jsonl: has no rows"),
        ("nonsense\n", "in.jsonl: line 1 is not JSON"),
        (json.dumps(ROW) + "\n[1]\n", "in.jsonl: line 2 has no text `prompt`"),
        (json.dumps({"prompt": PROMPT}), "in.jsonl: line 1 has no text `completion`"),
        (json.dumps(ROW | {"completion": "  "}), "in.jsonl: line 1 has no text `completion`"),
        (json.dumps(ROW | {"completion": None}), "in.jsonl: line 1 has no text `completion`"),
        (json.dumps(ROW | {"prompt": "Once upon a time"}), "in.jsonl: line 1: e2e: the prompt has no attribute"),
        (json.dumps(ROW | {"prompt": "name[Aromi], mood[good]"}), "in.jsonl: line 1: e2e: mood"),
        (json.dumps(ROW | {"key": "a"}), "in.jsonl: line 1 has a `key` already"),
        (json.dumps({"messages": []}), "in.jsonl: line 1 has no text `prompt`"),
        (b"\xff\xfe", "in.jsonl: cannot be read"),
    ],
)
def test_a_bad_file_is_rejected_and_nothing_is_written(tmp_path, content, words):
    (tmp_path / "in.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=words):
        e2e_keys.write(str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"))
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_the_file_that_is_read_is_never_written(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps(ROW))
    for out in (path, tmp_path / "." / "in.jsonl"):
        with pytest.raises(ValueError, match="is the file that is read"):
            e2e_keys.write(str(path), str(out))
    with pytest.raises(ValueError, match="cannot be written"):
        e2e_keys.write(str(path), str(path / "out.jsonl"))
    assert path.read_text() == json.dumps(ROW)


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path):
    run = keys(tmp_path / "nowhere.jsonl", tmp_path / "out.jsonl")
    assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)
    assert run.stderr.startswith(f"error: {tmp_path}/nowhere.jsonl: cannot be read")
