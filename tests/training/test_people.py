"""What people do to a trainer: inputs in the output, two runs at once, nothing left to do, another text, file modes.

The kinds and what was done: docs/results/reliability.md. Every run is real and tiny.
"""

import json
import os
import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from mot import cli
from mot.runtime import lock
from mot.training.checkpoint import MANIFEST
from mot.training.run import train
from mot.training.settings import TrainSettings

SMALL = {"hidden_size": 32, "num_layers": 1, "num_thoughts": 4, "seq_length": 32, "batch_size": 8, "vocab_size": 100}
SMALL |= {"eval_rows": 4}


def settings(text_file, output, **more) -> TrainSettings:
    return TrainSettings(train_file=str(text_file), output_dir=str(output), **SMALL | {"max_steps": 4} | more)


def model_of(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


@pytest.fixture
def run(text_file, tmp_path) -> Path:
    """A run of 4 steps with checkpoint-2 and checkpoint-4."""
    train(settings(text_file, tmp_path / "run", save_every=2))
    return tmp_path / "run"


# Files that others can read -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_the_umask_decides_who_reads_every_file_of_a_run(umask, text_file, tmp_path):
    before = os.umask(umask)
    try:
        train(settings(text_file, tmp_path / "run", max_steps=2))
    finally:
        os.umask(before)
    modes = {p.name: oct(p.stat().st_mode & 0o777) for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert "model.safetensors" in modes
    assert set(modes.values()) == {oct(0o666 & ~umask)}, modes


def test_a_merged_model_can_be_read_by_others(made):
    assert {oct(p.stat().st_mode & 0o777) for p in made("llama")[2].iterdir()} == {"0o644"}


# Inputs inside the output directory -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "place"),
    [
        ("train_file", "samples.jsonl"),
        ("train_file", "report/text.txt"),
        ("eval_file", "README.md"),
        ("tokenizer", "."),
        ("tokenizer", "checkpoint-2"),
    ],
)
def test_an_input_that_overwrite_would_remove_is_refused_and_stays(flag, place, text_file, run):
    (run / "report").mkdir(exist_ok=True)
    (run / "report" / "text.txt").write_text(text_file.read_text())
    if flag == "eval_file":
        (run / place).write_text(text_file.read_text())
    if place == "samples.jsonl":  # a run's own samples, as rows to train on
        (run / place).write_text("".join(json.dumps({"prompt": "ab", "completion": "ab"}) + "\n" for _ in range(40)))
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    asked = replace(settings(text_file, run, overwrite=True), **{flag: str(run / place)})
    with pytest.raises(ValueError, match=f"--{flag} .*: lies in --output_dir"):
        train(asked)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("link", [False, True])
def test_a_base_is_not_overwritten_by_its_adapter(link, text_file, made, tmp_path):
    from adapted import settings as adapting

    base = made("llama")[0]
    home = tmp_path / "home"
    home.mkdir()
    for path in base.iterdir():
        (home / path.name).write_bytes(path.read_bytes())
    (home / "run.json").write_text("{}")
    if link:
        (tmp_path / "link").symlink_to(home)
    asked = adapting(tmp_path / "link" if link else home, train_file=str(text_file), output_dir=str(home), max_steps=1)
    with pytest.raises(ValueError, match=r"--base_model .*: lies in --output_dir"):
        train(replace(asked, overwrite=True))
    assert (home / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()


def test_overwrite_spares_directories_that_only_begin_like_a_checkpoint(text_file, run):
    (run / "checkpoint-of-mine").mkdir()
    train(settings(text_file, run, max_steps=1, overwrite=True))
    assert (run / "checkpoint-of-mine").is_dir()


@pytest.mark.parametrize("target", ["nowhere", "link"])
def test_a_dead_link_as_output_is_one_line(target, text_file, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / target)
    with pytest.raises(ValueError, match=r"is a link to .*, which is not there"):
        train(settings(text_file, tmp_path / "link"))


# Exclusive use --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"resume_from": "auto"}, {"overwrite": True}])
def test_a_second_run_in_the_same_directory_is_refused(more, text_file, run):
    before = model_of(run)
    with lock.exclusive(run, "the first"), pytest.raises(ValueError, match="another run is writing there"):
        train(settings(text_file, run, **more))
    assert model_of(run) == before
    assert not (run / lock.NAME).exists()


def of_another_machine(directory: Path, age: float) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / lock.NAME
    path.write_text(json.dumps({"host": "elsewhere x", "pid": 7, "token": "theirs"}))
    os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age))
    return path


def test_the_lock_of_a_dead_machine_does_not_block(text_file, tmp_path):
    of_another_machine(tmp_path / "run", 2 * lock.SILENT)
    train(settings(text_file, tmp_path / "run", max_steps=1))
    assert (tmp_path / "run" / "model.safetensors").exists()
    assert not (tmp_path / "run" / lock.NAME).exists()


def test_the_lock_of_a_machine_that_falls_silent_is_taken_over(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lock, "SILENT", 2.0)
    of_another_machine(tmp_path, 0)
    with lock.exclusive(tmp_path, "--output_dir x") as held:
        held.require()
    assert "waiting" in capsys.readouterr().err


def test_the_lock_of_a_living_machine_is_respected(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "SILENT", 60.0)
    path, over = of_another_machine(tmp_path, 0), threading.Event()
    beating = threading.Thread(target=lambda: [os.utime(path) for _ in iter(lambda: over.wait(0.2), True)])
    beating.start()
    try:
        with pytest.raises(ValueError, match=r"another run is writing there \(process 7 on elsewhere\)"):
            lock._acquire(path, "--output_dir x")
    finally:
        over.set()
        beating.join()
    assert json.loads(path.read_text())["token"] == "theirs"


def test_the_lock_of_a_killed_process_of_this_machine_is_free_at_once(tmp_path):
    path = of_another_machine(tmp_path, 0)
    path.write_text(json.dumps({"host": lock._host(), "pid": 1, "token": "theirs"}))
    with lock.exclusive(tmp_path, "x"):
        pass


def test_a_run_that_was_taken_over_writes_nothing_more(tmp_path):
    with lock.exclusive(tmp_path, "--output_dir x") as held:
        held.path.write_text(json.dumps({"host": "elsewhere x", "pid": 7, "token": "theirs"}))
        with pytest.raises(ValueError, match="another run has taken it over"):
            held.require()
    assert held.path.exists()  # it is theirs


def test_a_lock_leaves_no_directory_behind(tmp_path):
    with lock.exclusive(tmp_path / "a" / "b", "x"):
        assert socket.gethostname() in (tmp_path / "a" / "b" / lock.NAME).read_text()
    assert list(tmp_path.iterdir()) == []


# Nothing to do --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"max_steps": 3}, "--max_steps 3: makes 3 steps, counted from the first, and .* is at step 4 already"),
        ({"max_steps": 3, "allow_changed": True}, "--max_steps 3: makes 3 steps"),
        ({"max_steps": None, "num_epochs": 0.1}, "--num_epochs 0.1: makes 1 steps"),
        ({"learning_rate": 1e-5, "allow_changed": True}, "no step is left, so another learning_rate"),
    ],
)
def test_a_resume_with_nothing_to_do_is_refused(more, said, text_file, run):
    before = model_of(run)
    with pytest.raises(ValueError, match=said):
        train(settings(text_file, run, save_every=2, resume_from="auto", **more))
    assert model_of(run) == before


def test_what_is_left_is_said(text_file, run, capsys):
    train(settings(text_file, run, save_every=2, resume_from="auto"))
    assert "no step is left to train (--max_steps 4 counts from the first step)" in capsys.readouterr().err
    argv = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    argv += ["--train_file", str(text_file), "--output_dir", str(run), "--resume_from", "auto", "--allow_changed"]
    cli.train([*argv, "--max_steps", "7"])
    out, err = capsys.readouterr()
    assert "3 of 7 steps are left" in err
    assert "3 steps (of 7) in" in out


def test_a_run_whose_updates_were_all_skipped_publishes_nothing(text_file, tmp_path):
    with pytest.raises(ValueError, match="nothing was learnt and no model is written"):
        train(
            settings(text_file, tmp_path / "run", max_steps=3, learning_rate=1e38, warmup_ratio=0, router_weight=1e38)
        )
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_the_only_step_of_a_run_has_a_learning_rate(text_file, tmp_path):
    rates = []
    for name, ratio in (("warm", 1.0), ("cold", 0.0)):
        train(settings(text_file, tmp_path / name, max_steps=1, warmup_ratio=ratio))
        rates.append(model_of(tmp_path / name))
    assert rates[0] == rates[1]


# Identity -------------------------------------------------------------------------------------------------------------


def test_more_text_is_read_with_the_tokenizer_of_the_checkpoint(tmp_path):
    text = "the king of night and day speaks softly to a sleeping sea\n" * 120
    (tmp_path / "text.txt").write_text(text)
    asked = settings(tmp_path / "text.txt", tmp_path / "run", vocab_size=300, save_every=2)
    train(asked)
    before = (tmp_path / "run" / "checkpoint-4" / "tokenizer.json").read_bytes()
    (tmp_path / "text.txt").write_text(text + "quite another text about zebras, queens and quizzes\n" * 200)
    train(replace(asked, max_steps=6, resume_from="auto", allow_changed=True))
    assert (tmp_path / "run" / "checkpoint-6" / "tokenizer.json").read_bytes() == before
    assert (tmp_path / "run" / "tokenizer.json").read_bytes() == before


def test_another_vocabulary_size_is_never_allowed(text_file, run):
    with pytest.raises(ValueError, match="another vocab_size: 100, not 300"):
        train(settings(text_file, run, resume_from="auto", allow_changed=True, max_steps=6, vocab_size=300))


def test_another_tokenizer_is_never_allowed(text_file, run, made):
    asked = settings(text_file, run, resume_from="auto", allow_changed=True, max_steps=6)
    with pytest.raises(ValueError, match=r"--tokenizer .*: is not the tokenizer of .*checkpoint-4"):
        train(replace(asked, tokenizer=str(made("llama")[0])))


def test_the_runs_own_tokenizer_may_be_named(text_file, run):
    asked = settings(text_file, run, save_every=2, resume_from="auto", max_steps=6, allow_changed=True)
    assert train(replace(asked, tokenizer=str(run))).steps == 6


# Recovery -------------------------------------------------------------------------------------------------------------


def test_going_back_to_an_earlier_checkpoint_leaves_the_later_ones(text_file, run):
    """Pruning by step alone would remove what the new course has saved."""
    asked = settings(text_file, run, save_every=1, save_total_limit=1, max_steps=4, learning_rate=1e-4)
    train(replace(asked, max_steps=3, resume_from=str(run / "checkpoint-2"), allow_changed=True))
    steps = {p.name for p in run.glob("checkpoint-*") if (p / MANIFEST).is_file()}
    assert "checkpoint-3" in steps
    assert "checkpoint-4" not in steps
    rate = json.loads((run / "checkpoint-3" / MANIFEST).read_text())["facts"]["learning_rate"]
    assert rate == 1e-4
