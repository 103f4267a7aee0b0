"""Law 10. Two processes with 8 rows each = one process with 16: the same rows, the same losses (to 1e-5 over 50 steps).

Also sharded (FSDP), also when stopped and resumed, also for adapters.
"""

import json
import signal
from pathlib import Path

import pytest
import torch
from adapted import metrics
from bases import make
from survive import complete, last_state, short_run, two_processes

from mot.training.checkpoint import newest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def flags(text_file) -> list[str]:
    return short_run(text_file, accumulate=1)


def losses(directory: Path) -> list[list[float]]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    names = ("loss", "lm_loss", "router_loss", "entropy", "diversity", "grad_norm")
    return [[m.get(name, 0.0) for name in names] for m in lines if "loss" in m]


def test_two_processes_of_8_are_one_of_16(flags, tmp_path):
    one = [*flags, "--max_steps", "50", "--dropout", "0", "--save_every", "50"]
    complete([*one, "--batch_size", "16", "--output_dir", tmp_path / "one"])
    runs = two_processes([*one, "--output_dir", tmp_path / "two"])
    assert [run.exitcode() for run in runs] == [0, 0], runs[0].log.read_text()
    alone, together = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(alone) == len(together) == 50
    for a, b in zip(alone, together, strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-5)
    assert sum(len(run.log.read_text()) > 0 for run in runs) == 1  # only the first process prints


@pytest.mark.parametrize("fsdp", [False, True])
def test_two_processes_cut_and_resumed_end_in_the_same_state(fsdp, flags, tmp_path):
    argv = [*flags, "--fsdp"] if fsdp else flags
    runs = two_processes([*argv, "--output_dir", tmp_path / "whole"])
    assert [run.exitcode() for run in runs] == [0, 0], runs[0].log.read_text() + runs[1].log.read_text()
    again = [*argv, "--output_dir", tmp_path / "run", "--resume_from", "auto"]
    first = two_processes(again, pause="training", at=4)
    first[0].wait_for_phase()
    first[0].kill(signal.SIGTERM)  # one process gets the signal, both stop
    assert first[0].exitcode() == 143, first[0].log.read_text()
    assert first[1].exitcode() == 143, first[1].log.read_text()
    assert newest(str(tmp_path / "run"))[1]["step"] == 5
    runs = two_processes(again)
    assert [run.exitcode() for run in runs] == [0, 0], runs[0].log.read_text() + runs[1].log.read_text()
    assert last_state(tmp_path / "run") == last_state(tmp_path / "whole")


@pytest.mark.parametrize("more", ["", "--fsdp"])
def test_two_processes_adapt_as_one(more, adapter_rows, tmp_path):
    """The first process writes the whole adapter."""
    from safetensors.torch import load_file

    base = make("llama", tmp_path / "base")
    words = f"--base_model {base} --train_file {adapter_rows} --num_thoughts 4 --seq_length 48 --lora_rank 4"
    flags = [*words.split(), *"--max_steps 4 --eval_every 4 --learning_rate 5e-3 --output_dir".split()]
    complete([*flags, tmp_path / "one", "--batch_size", "16"])
    both = [*flags, tmp_path / "two", "--batch_size", "8", *more.split()]
    for run in two_processes(both):
        assert run.exitcode() == 0, run.log.read_text()
    one, two = ([m["lm_loss"] for m in metrics(tmp_path / name) if "lm_loss" in m] for name in ("one", "two"))
    assert two == pytest.approx(one, abs=1e-5)
    ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("two", "one"))
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in ours)
