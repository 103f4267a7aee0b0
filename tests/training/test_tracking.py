"""What a run writes while it runs: metrics, samples, and the trackers' files, read by the trackers' own readers."""

import errno
import json
import math
import os
import random
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainingArguments

from mot.inference.think import Thought
from mot.training import run_log, tracking
from mot.training.run_log import METRICS, SAMPLES, RunLog, read_metrics
from mot.training.settings import TrainSettings
from mot.training.tracking import PROJECT

SAID = [Thought(0, 0.7, -1.25, "a | b\n\n# not a heading", (1, 2)), Thought(1, 0.3, -2.0, "<script>x</script>", (3,))]


def tracked_run(settings: TrainSettings, steps: int, resume: str | None = None) -> RunLog:
    """A real, tiny run of the transformers Trainer under our callbacks, with a sample of thoughts after it."""
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    rows = [{"input_ids": torch.arange(4) + i, "labels": torch.arange(4) + i} for i in range(8)]
    log = RunLog(settings.output(), steps, settings.name(), tracking.trackers(settings, settings.output()))
    trainer = Trainer(
        model=LlamaForCausalLM(LlamaConfig(vocab_size=16, **shape)),
        args=TrainingArguments(
            output_dir=settings.output(),
            run_name=settings.name(),
            project=PROJECT,
            max_steps=steps,
            per_device_train_batch_size=2,
            logging_steps=1,
            save_steps=2,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=rows,
        eval_dataset=rows[:2],
        callbacks=[log, *log.trackers],
    )
    trainer.remove_callback(PrinterCallback)
    try:
        trainer.train(resume_from_checkpoint=resume)
        trainer.evaluate()
        log.samples(trainer.state.global_step, "ROMEO:\n", SAID)
    finally:
        log.close()
    return log


def settings(output: Path, **more) -> TrainSettings:
    output.mkdir(parents=True, exist_ok=True)
    return TrainSettings(task="forks", output_dir=str(output), run_name="a name", **more)


# metrics.jsonl and samples.jsonl -----------------------------------------------------------------------------------


def test_numbers_and_samples_are_written_as_they_come(tmp_path):
    tracked_run(settings(tmp_path), steps=3)
    lines = read_metrics(tmp_path / METRICS)
    assert [m["step"] for m in lines] == [1, 2, 3, 3]
    assert all(math.isfinite(value) for m in lines for value in m.values())
    assert {"loss", "learning_rate", "grad_norm"} <= set(lines[0])
    assert "eval_loss" in lines[-1]
    (sample,) = read_metrics(tmp_path / SAMPLES)
    told = [{name: asdict(t)[name] for name in ("index", "probability", "mean_logprob", "text")} for t in SAID]
    assert sample == {"step": 3, "prompt": "ROMEO:\n", "thoughts": told}


def test_a_resumed_run_drops_what_a_lost_run_wrote_behind_its_checkpoint(tmp_path):
    tracked_run(settings(tmp_path), steps=3)  # checkpoint-2, a line for step 3, a sample at step 3
    (tmp_path / "samples.jsonl").write_text(
        json.dumps({"step": 2, "prompt": "", "thoughts": []}) + "\n" + (tmp_path / SAMPLES).read_text()
    )
    first = (tmp_path / METRICS).read_text().splitlines()
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 4, "loss": 2.')  # killed in the middle of a line
    tracked_run(settings(tmp_path), steps=4, resume=str(tmp_path / "checkpoint-2"))
    again = (tmp_path / METRICS).read_text().splitlines()
    assert again[:2] == first[:2]
    assert [json.loads(line)["step"] for line in again] == [1, 2, 3, 4, 4]
    assert [line["step"] for line in read_metrics(tmp_path / SAMPLES)] == [2, 4]
    assert not list(tmp_path.glob("*.new"))


def test_a_line_torn_at_any_byte_is_left_out(tmp_path):
    lines = [{"step": 1, "loss": 2.5}, {"step": 12, "prompt": "é\U0001f600", "usage/0": 0.25}]
    path = tmp_path / METRICS
    whole = "".join(json.dumps(line) + "\n" for line in lines).encode()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        assert read_metrics(path) == [m for m in lines if json.dumps(m).encode() in whole[:cut]]
    draw = random.Random(0)
    for _ in range(50):  # and garbage never stops a reader
        path.write_bytes(whole + draw.randbytes(40) + b"\n" + whole)
        assert [m for m in read_metrics(path) if m in lines][:2] == lines
    assert read_metrics(tmp_path / "none.jsonl") == []


@contextmanager
def files_no_larger_than(size: int):
    """The kernel refuses to let any file of this process grow beyond `size` bytes, as a full disk would."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_full_disk_costs_lines_and_not_the_run(tmp_path, capsys):
    path, warned = tmp_path / METRICS, set()
    with files_no_larger_than(1000):
        for step in range(50):
            with run_log.warn_on_write_error(path, warned):
                run_log._append(path, {"step": step, "loss": 0.123456789})
    whole = path.read_bytes()
    assert 900 < len(whole) <= 1000
    assert whole.endswith(b"}\n")  # no half line for the next one to stick to
    with run_log.warn_on_write_error(path, warned):
        run_log._append(path, {"step": 50})
    steps = [m["step"] for m in read_metrics(path)]
    assert steps == [*range(len(steps) - 1), 50]
    err = capsys.readouterr().err
    assert err.count("warning") == 1
    assert f"{path}: {os.strerror(errno.EFBIG)}" in err


def test_a_directory_that_is_gone_does_not_stop_training(tmp_path, capsys):
    log = RunLog(str(tmp_path / "gone"), 5, "t")
    log.samples(1, "p", SAID)
    log.samples(2, "p", SAID)
    log.close()
    assert capsys.readouterr().err.count("warning") == 1


# Weights & Biases ---------------------------------------------------------------------------------------------------


def wandb_records(path: Path) -> list:
    """Return every record of an offline run's file: LevelDB's log (32 kB blocks; crc, length, type) after 7 bytes."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # as at the end of the process: wandb's own process has then written everything
    data, at, records, parts = path.read_bytes(), 7, [], b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            records.append(Record.FromString(parts))
            parts = b""
    return records


def history(records: list) -> list[dict]:
    """What was logged, with nested keys joined by dots."""
    rows = [r.history for r in records if r.WhichOneof("record_type") == "history"]
    return [{".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in row.item} for row in rows]


def test_wandb_offline_keeps_everything_here_and_goes_on_with_the_same_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    run = settings(tmp_path, use_wandb=True, seed=7)
    tracking.require(run)
    tracked_run(run, steps=3)
    time.sleep(1)  # wandb's folders are named by the second
    tracked_run(run, steps=4, resume=str(tmp_path / "checkpoint-2"))

    run_id = (tmp_path / "wandb_run_id").read_text().strip()
    first, second = (wandb_records(path) for path in sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb")))
    for records in (first, second):
        told = next(r.run for r in records if r.WhichOneof("record_type") == "run")
        assert (told.run_id, told.project, told.display_name) == (run_id, "mixture-of-thoughts", "a name")
        updates = [u for r in records if r.WhichOneof("record_type") == "config" for u in r.config.update]
        config = {u.key: json.loads(u.value_json) for u in updates}
        assert set(asdict(run)) <= set(config)
        assert config["seed"] == 7
        assert config["task"] == "forks"
        exits = [r.exit.exit_code for r in records if r.WhichOneof("record_type") == "exit"]
        assert exits == [0]
    steps = [row["train/global_step"] for row in history(first) if "train/loss" in row]
    assert steps == [1, 2, 3]
    assert [row["train/global_step"] for row in history(second) if "train/loss" in row] == [3, 4]
    assert any("eval/loss" in row for row in history(first))
    tables = [
        json.loads(path.read_text())
        for path in tmp_path.glob("wandb/offline-run-*/files/media/table/samples_*.table.json")
    ]
    assert sorted(table["data"][0][0] for table in tables) == [3, 4]
    assert all([row[-1] for row in table["data"]] == [t.text for t in SAID] for table in tables)


def test_wandb_project_can_be_chosen(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_PROJECT", "another")
    tracked_run(settings(tmp_path, use_wandb=True), steps=1)
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert {r.run.project for r in wandb_records(path) if r.WhichOneof("record_type") == "run"} == {"another"}


def python(code: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    """A process of its own that knows this file as a module and is logged in nowhere."""
    here = Path(__file__).resolve().parent.parent
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "TRACKIO"))}
    kept |= {"PYTHONPATH": f"{here}:{here / 'training'}:{here.parent}", "HOME": str(cwd), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", f"from pathlib import Path\nfrom test_tracking import *\n{code}"],
        cwd=cwd,
        env=kept | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_wandb_without_a_login_is_one_line_before_anything_is_written(tmp_path):
    cases = [{}, {"WANDB_API_KEY": "not a key"}, {"WANDB_MODE": "offline"}, {"WANDB_MODE": "disabled"}]
    done = python(
        f"""
import wandb
for case in {cases}:
    before = dict(os.environ)
    os.environ.update(case)
    try:
        print(tracking.require(TrainSettings(task="forks", use_wandb=True)))
    except ValueError as e:
        print(e)
    wandb.teardown()
    os.environ.clear()
    os.environ.update(before)
""",
        tmp_path,
    )
    nobody, bad_key, *offline = done.stdout.splitlines()
    way_out = "; run `wandb login`, or set WANDB_MODE=offline to keep the numbers here"
    assert nobody == "--use_wandb: not logged in" + way_out
    assert bad_key.startswith("--use_wandb: ")
    assert bad_key.endswith(way_out)
    assert offline == ["None", "None"]
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("package", "asked"),
    [("wandb", {"use_wandb": True}), ("tensorboard", {"track": "tensorboard"}), ("trackio", {"track": "trackio"})],
)
def test_a_missing_package_is_one_line_that_names_the_extra(monkeypatch, package, asked):
    monkeypatch.setitem(sys.modules, package, None)  # to Python it is not installed
    with pytest.raises(ValueError, match=rf'--\S+.*: .*not installed; pip install "mixture-of-thoughts\[{package}\]"$'):
        tracking.require(TrainSettings(task="forks", **asked))


# TensorBoard --------------------------------------------------------------------------------------------------------


def test_tensorboard_reads_back_the_run_and_forgets_what_a_lost_run_wrote(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = settings(tmp_path, track="tensorboard")
    tracking.require(run)
    tracked_run(run, steps=3)
    tracked_run(run, steps=4, resume=str(tmp_path / "checkpoint-2"))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("train/loss")] == [1, 2, 3, 4]
    assert [e.step for e in events.Scalars("eval/loss")] == [4]
    losses = [m["loss"] for m in read_metrics(tmp_path / METRICS) if "loss" in m]
    assert [e.value for e in events.Scalars("train/loss")] == pytest.approx(losses)
    *lost, sample = events.Tensors("samples/text_summary")
    assert [e.step for e in lost] == [3]  # TensorBoard forgets numbers, not texts
    text = sample.tensor_proto.string_val[0].decode()
    assert sample.step == 4
    assert "**thought 1** p 0.30" in text
    assert "\n    <script>x</script>" in text  # indented: a code block, not markup


# trackio ------------------------------------------------------------------------------------------------------------


def test_trackio_keeps_its_database_below_the_output_directory_and_goes_on(tmp_path):
    pytest.importorskip("trackio")
    for steps, resume in ((3, None), (4, "run/checkpoint-2")):
        done = python(f"tracked_run(settings(Path('run'), track='trackio', seed=7), {steps}, {resume!r})", tmp_path)
        assert done.returncode == 0, done.stderr
    (database,) = (tmp_path / "run" / "trackio").glob("*.db")
    assert database.stem == PROJECT
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT run_name, metrics FROM metrics ORDER BY id").fetchall()
        (config,) = (json.loads(row[0]) for row in connection.execute("SELECT config FROM configs"))
    assert {name for name, _ in rows} == {"a name"}
    logged = [json.loads(metrics) for _, metrics in rows]
    assert [m["train/global_step"] for m in logged if "train/loss" in m] == [1, 2, 3, 3, 4]  # it cannot forget step 3
    samples = [m["samples"] for m in logged if "samples" in m]
    assert len(samples) == 2
    assert "**thought 0** p 0.70" in str(samples[0])
    assert config["seed"] == 7
    assert config["num_thoughts"] == 8


# docs/monitoring.md -------------------------------------------------------------------------------------------------


def test_the_trackers_know_the_commands_of_the_page(root, tmp_path):
    page = (root / "docs" / "monitoring.md").read_text()
    lines = re.findall(r"^\$ (.*)$", page, re.MULTILINE)
    assert {line.split()[0] for line in lines} == {"tail", "tensorboard", "wandb", "TRACKIO_DIR=outputs/run/trackio"}
    for line in lines:
        words = [word for word in shlex.split(line) if not re.match(r"[A-Z_]+=", word)]
        tool = Path(sys.executable).parent / words[0]
        if not tool.is_file():
            continue  # tail, or a tracker that is not installed
        command = words[:2] if not words[1].startswith("-") else words[:1]
        usage = subprocess.run([tool, *command[1:], "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert usage.returncode == 0, line
        assert all(flag in usage.stdout for flag in words if flag.startswith("-")), line


def test_every_logged_number_is_explained(root, text_run):
    page = (root / "docs" / "monitoring.md").read_text()
    names = {name for m in read_metrics(text_run / METRICS) for name in m} - {"step"}
    assert {"lm_loss", "eval_base_nll"} <= names
    assert [name for name in names if f"`{name}`" not in page and not re.match(r"usage/\d+$", name)] == []
