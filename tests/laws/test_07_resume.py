"""Law 7. A run that is stopped and resumed ends in the state of one never stopped, bit for bit (CPU, fp32).

The state is parameters, optimizer, schedule and random states, compared by sha256. tests/training/test_survival.py has
every way of stopping a run; test_10_processes.py has two processes.
"""

import signal
from pathlib import Path

import pytest
from adapted import metrics
from bases import make
from mixtures import DIGITS, LENGTH, N
from survive import complete, cut_and_resumed, last_state, short_run, start, state_digest, stop_in
from trainers import step_of

from mot.thoughts import draw_sequences
from mot.training import em

# A step draws from its seed and number alone ------------------------------------------------------------------------


def test_a_steps_randomness_comes_from_its_seed_and_number_alone(tmp_path):
    def drawn(name: str, **more) -> tuple:
        _, (b,) = step_of(tmp_path / name, num_thoughts=N, batch_size=32, thought_dropout=0.5, **more)
        return b["prompt"].shape, (b["thought"] < 0).tolist(), b["thought"].tolist()

    once = drawn("once", step=3)
    for elsewhere in (1, 2, 3):
        assert drawn("again", step=3, global_seed=elsewhere) == once
    assert drawn("step", step=4)[:2] != once[:2]
    assert drawn("seed", step=3, seed=43)[:2] != once[:2]


def test_the_sequences_of_a_step_come_from_its_seed_and_number_alone(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(em, "draw_sequences", lambda *how: drawn.append(draw_sequences(*how)) or drawn[-1])

    def sequences(name: str, **more) -> list:
        step_of(tmp_path / name, **{"num_thoughts": DIGITS, "thought_length": LENGTH, "batch_size": 24} | more)
        return drawn[-1].tolist()

    once = sequences("once", step=3)
    assert sequences("again", step=3, global_seed=7) == once
    assert sequences("parts", step=3, batch_size=8, rows=24) == once
    assert sequences("step", step=4) != once
    assert sequences("seed", step=3, seed=43) != once


# A run --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flags(text_file) -> list[str]:
    return short_run(text_file)


@pytest.fixture(scope="module")
def uninterrupted(flags, tmp_path_factory) -> dict[str, tuple[Path, str]]:
    """(directory, digest of the last state) of runs that were never stopped, by diversity weight."""
    runs = {}
    for weight in ("0.1", "0"):
        directory = tmp_path_factory.mktemp("whole") / "run"
        complete([*flags, "--diversity_weight", weight, "--output_dir", directory])
        runs[weight] = directory, last_state(directory)
    return runs


CUTS = {"step 1": [0], "mid-epoch": [4], "epoch end": [6], "mid-accumulation": [5], "twice": [2, 9]}


@pytest.mark.slow
@pytest.mark.parametrize("weight", ["0.1", "0"])
@pytest.mark.parametrize("cut", CUTS)
def test_a_run_cut_and_resumed_ends_in_the_same_state(cut, weight, flags, uninterrupted, tmp_path):
    phase = "accumulation" if cut == "mid-accumulation" else "training"
    run = cut_and_resumed([*flags, "--diversity_weight", weight], tmp_path / "run", CUTS[cut], phase)
    assert last_state(run) == uninterrupted[weight][1]


@pytest.mark.slow
def test_without_one_random_state_the_end_is_another(flags, uninterrupted, tmp_path):
    """The negative control: what the test above compares can differ."""
    argv = [*flags, "--output_dir", tmp_path / "run", "--resume_from", "auto"]
    assert stop_in("training", 4, signal.SIGTERM, argv)[0] == 143
    assert start(argv, drop_rng=True).exitcode() == 0
    assert last_state(tmp_path / "run") != uninterrupted["0.1"][1]


@pytest.mark.slow
def test_a_finished_run_resumed_stays_as_it_is(flags, uninterrupted):
    directory, digest = uninterrupted["0.1"]
    before = (directory / "model.safetensors").read_bytes()
    complete([*flags, "--output_dir", directory, "--resume_from", "auto"])
    assert last_state(directory) == digest
    assert (directory / "model.safetensors").read_bytes() == before


@pytest.mark.slow
def test_a_run_with_thought_sequences_cut_and_resumed_ends_in_the_same_state(text_file, tmp_path):
    flags = [*short_run(text_file, accumulate=1), "--thought_length", "3"]
    complete([*flags, "--output_dir", tmp_path / "whole"])
    assert last_state(cut_and_resumed(flags, tmp_path / "run", (2, 9))) == last_state(tmp_path / "whole")


@pytest.mark.slow
def test_a_run_with_muon_cut_and_resumed_ends_in_the_same_state(text_file, tmp_path):
    flags = [*short_run(text_file, accumulate=1), "--optimizer", "muon"]
    complete([*flags, "--output_dir", tmp_path / "whole"])
    assert last_state(cut_and_resumed(flags, tmp_path / "run", (2, 9))) == last_state(tmp_path / "whole")
    complete([*short_run(text_file, accumulate=1), "--output_dir", tmp_path / "adamw"])
    assert last_state(tmp_path / "adamw") != last_state(tmp_path / "whole")


@pytest.mark.slow
def test_a_resumed_adaptation_is_the_one_that_never_stopped(adapter_rows, tmp_path):
    base = make("gpt2", tmp_path / "base")  # it has dropout of its own
    words = f"--base_model {base} --train_file {adapter_rows} --num_thoughts 4 --seq_length 48 --batch_size 8"
    words += " --lora_rank 4"
    words += " --lora_dropout 0.1 --max_steps 8 --save_every 4 --eval_every 4 --gradient_accumulation_steps 2"
    flags = [*words.split(), "--output_dir"]
    complete([*flags, tmp_path / "whole"])
    cut = start([*flags, tmp_path / "cut"], pause="training", at=5)
    cut.wait_for_phase()
    cut.kill(signal.SIGTERM)
    assert cut.exitcode() == 143
    assert not (tmp_path / "cut" / "adapter_config.json").exists()
    complete([*flags, tmp_path / "cut", "--resume_from", "auto"])
    for name in ("adapter_model.safetensors", "mot.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert state_digest(tmp_path / "cut" / "checkpoint-8") == state_digest(tmp_path / "whole" / "checkpoint-8")
    evaluations = [[m for m in metrics(tmp_path / name) if "eval_base_nll" in m] for name in ("whole", "cut")]
    assert evaluations[0] == evaluations[1]
    assert [m["step"] for m in evaluations[0]] == [0, 4, 8]
