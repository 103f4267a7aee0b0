"""A run that cannot be lost: every signal, kill, damage and full disk (law 7 in short: tests/laws/test_07_resume.py).

pytest tests/training/test_survival.py                 the short version, part of `make test`
TORTURE=1 pytest tests/training/test_survival.py       every cell and 50 kills, `make torture`
"""

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from survive import PHASES, STEPS, complete, last_state, short_run, start, stop_in

from mot.training.checkpoint import check, find, newest

TORTURE = os.environ.get("TORTURE") == "1"


@pytest.fixture(scope="module")
def flags(text_file) -> list[str]:
    return short_run(text_file)


@pytest.fixture(scope="module")
def uninterrupted(flags, tmp_path_factory) -> tuple[Path, str]:
    """(directory, digest of the last state) of a run that was never stopped."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    complete([*flags, "--output_dir", directory])
    return directory, last_state(directory)


def test_auto_does_not_begin_anew_over_a_finished_model(flags, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted[0], tmp_path / "run", ignore=shutil.ignore_patterns("checkpoint-*"))
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    run = start([*flags, "--output_dir", tmp_path / "run", "--resume_from", "auto"])
    assert run.exitcode() == 2
    assert "already holds a run" in run.log.read_text()
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before


# Signals --------------------------------------------------------------------------------------------------------------

STOPS = [(p, s, second) for p in PHASES for s in (signal.SIGTERM, signal.SIGINT) for second in (False, True)]
FEW = [
    ("tokenising", signal.SIGINT, False),
    ("first step", signal.SIGTERM, False),
    ("evaluation", signal.SIGINT, False),
    ("saving", signal.SIGTERM, False),
    ("saving", signal.SIGTERM, True),
    ("upload", signal.SIGINT, False),
]


@pytest.mark.parametrize(("phase", "signum", "second"), STOPS if TORTURE else FEW)
def test_a_signal_in_any_phase_ends_the_run_in_time_and_loses_nothing(
    phase, signum, second, flags, uninterrupted, bucket, tmp_path, monkeypatch
):
    local = tmp_path / "outputs" / "run"
    output = f"gs://bucket/run-{signum}-{second}" if phase == "upload" else local
    monkeypatch.chdir(tmp_path)  # a remote run works in ./outputs
    argv = [*flags, "--output_dir", output, "--resume_from", "auto"]
    code, seconds = stop_in(phase, 4 if phase == "saving" else 5, signum, argv, second)
    assert code == 128 + signum
    assert seconds < (1 if second else 10)
    if phase == "upload":
        local = tmp_path / "outputs" / output.rsplit("/", 1)[1]
        shutil.rmtree(local)  # a new machine has only what had arrived
    assert all(line.endswith("not finished") for line in newest(str(local))[2])
    complete(argv)
    assert last_state(local) == uninterrupted[1]


def test_a_phase_that_does_not_come_back_is_left_by_the_watchdog(flags, tmp_path, monkeypatch):
    """A compiler or a slow disk is not waited for: exit within ten seconds, the checkpoint before stays."""
    run = start([*flags, "--output_dir", tmp_path / "run"], pause="stuck", at=6)
    run.wait_for_phase()
    begin = time.monotonic()
    run.kill(signal.SIGTERM)
    assert run.exitcode() == 143
    assert 5 < time.monotonic() - begin < 10
    assert newest(str(tmp_path / "run"))[1]["step"] == 4


# SIGKILL --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kill", range(50 if TORTURE else 4))
def test_killed_at_any_moment_it_goes_on_to_the_same_end(kill, flags, uninterrupted, tmp_path):
    """Half of the kills fall inside a save: the run is stopped at its beginning and killed at a random moment of it."""
    draw = random.Random(kill)
    argv = [*flags, "--output_dir", tmp_path / "run", "--resume_from", "auto"]
    at = draw.choice([4, 8])
    run = start(argv, pause="saving" if kill % 2 else "training", at=at)
    run.wait_for_phase()
    time.sleep(0.65 + 0.2 * draw.random() if kill % 2 else 1.2 * draw.random())
    run.kill(signal.SIGKILL)
    assert run.exitcode() in (-signal.SIGKILL, 0)
    done = newest(str(tmp_path / "run"))[1].get("step", 0)
    assert done >= at - 4
    complete(argv)
    assert last_state(tmp_path / "run") == uninterrupted[1]


# Damage ---------------------------------------------------------------------------------------------------------------

DAMAGES = ("empty", "half", "one bit", "deleted", "swapped")
FILES = (
    "config.json generation_config.json model.safetensors optimizer.pt rng_state.pth scheduler.pt tokenizer.json "
    "tokenizer_config.json trainer_state.json watch.json metrics.jsonl samples.jsonl manifest.json"
).split()


def damage(file: Path, how: str, other: Path) -> None:
    data = file.read_bytes()
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    if how == "deleted":
        file.unlink()
    else:
        file.write_bytes({"empty": b"", "half": data[:middle], "one bit": flipped, "swapped": other.read_bytes()}[how])


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_damage_is_found_and_named_and_the_checkpoint_before_is_used(file, how, uninterrupted, tmp_path):
    directory = uninterrupted[0]
    run = tmp_path / "run"
    for step in (8, 12):
        shutil.copytree(directory / f"checkpoint-{step}", run / f"checkpoint-{step}")
    other = run / "checkpoint-8" / file
    if how == "swapped" and other.read_bytes() == (run / "checkpoint-12" / file).read_bytes():
        other = run / "checkpoint-8" / "trainer_state.json"  # the same in every checkpoint: swapped with another file
    damage(run / "checkpoint-12" / file, how, other)
    with pytest.raises(ValueError, match=file.replace(".", r"\.")):
        check(run / "checkpoint-12")
    found, manifest, lines = find("auto", str(run))
    assert (found.name, manifest["step"]) == ("checkpoint-8", 8)
    assert file in lines[0]


def test_the_list_of_files_is_the_checkpoint(uninterrupted):
    written = {p.name for p in (uninterrupted[0] / f"checkpoint-{STEPS}").iterdir()}
    assert written == set(FILES)


def test_a_damaged_checkpoint_named_on_the_command_line_is_refused_with_the_good_one(flags, uninterrupted, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(uninterrupted[0], run)
    (run / "checkpoint-12" / "optimizer.pt").write_bytes(b"")
    train = start([*flags, "--output_dir", run, "--resume_from", run / "checkpoint-12"])
    assert train.exitcode() == 2
    said = train.log.read_text()
    assert "optimizer.pt has 0 of" in said
    assert "checkpoint-8 is good" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--batch_size", "4"], "batch_size: 8, not 4"),
        (["--gradient_accumulation_steps", "1"], "gradient_accumulation_steps: 2, not 1"),
        (["--seed", "1"], "seed: 42, not 1"),
        (["--diversity_weight", "0"], "diversity_weight: 0.1, not 0.0"),
        (["--train_file", "OTHER"], "data"),
    ],
)
def test_a_resume_that_would_be_another_run_is_refused_or_allowed(
    change, named, flags, uninterrupted, text_file, tmp_path
):
    if "OTHER" in change:
        other = tmp_path / "other.txt"
        other.write_text(text_file.read_text()[::-1])
        change = ["--train_file", str(other)]
    shutil.copytree(uninterrupted[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-12")
    argv = [*flags, *change, "--output_dir", tmp_path / "run", "--resume_from", "auto"]
    refused = start(argv)
    assert refused.exitcode() == 2
    assert named in refused.log.read_text()
    allowed = start([*argv, "--allow_changed"])
    assert allowed.exitcode() == 0, allowed.log.read_text()


def test_another_shape_is_never_allowed(flags, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted[0], tmp_path / "run")
    run = start(
        [*flags, "--hidden_size", "64", "--output_dir", tmp_path / "run", "--resume_from", "auto", "--allow_changed"]
    )
    assert run.exitcode() == 2
    assert "hidden_size: 32, not 64" in run.log.read_text()


# Disk full ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """mount(bytes) -> an empty directory on a file system of that size."""
    where = tmp_path / "disk"
    where.mkdir()

    def mount(size: int) -> Path:
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", where], capture_output=True)
        if made.returncode:
            pytest.skip("needs the right to mount a small tmpfs, so that a disk can be full")
        return where

    yield mount
    subprocess.run(["umount", where], capture_output=True)


@pytest.mark.parametrize("share", [i / 12 for i in range(12)] if TORTURE else [0.0, 0.4, 0.9])
def test_a_disk_that_fills_during_a_save_leaves_the_checkpoint_before(
    share, flags, uninterrupted, small_disk, tmp_path
):
    """The disk has room for one checkpoint and a `share` of the next."""
    size = sum(p.stat().st_size for p in (uninterrupted[0] / "checkpoint-4").iterdir())
    disk = small_disk(64 * 2**20)
    run = start([*flags, "--output_dir", disk / "run"], pause="training", at=6)
    run.wait_for_phase()
    free = os.statvfs(disk).f_bavail * 4096
    with (disk / "ballast").open("wb") as ballast:
        ballast.truncate(0)
        ballast.write(b"\1" * int(free - share * size))
    code = run.exitcode()
    said = run.log.read_text()
    assert "the disk is full" in said
    assert code == (2 if "the model is not written" in said else 0)  # a model is a third of a checkpoint
    _, manifest, _ = newest(str(disk / "run"))
    assert manifest["step"] == 4
    (disk / "ballast").unlink()
    complete([*flags, "--output_dir", disk / "run", "--resume_from", "auto"])
    assert last_state(disk / "run") == uninterrupted[1]


def test_too_little_space_is_said_before_training(flags, small_disk):
    disk = small_disk(300_000)
    run = start([*flags, "--output_dir", disk / "run"])
    assert run.exitcode() == 2
    said = run.log.read_text()
    assert "checkpoints and model need" in said
    assert not (disk / "run").exists()
