"""Every training setting governs after a resume with --allow_changed, or is refused by name. Nothing is ignored.

A new setting fails the first test until it is put into one of the groups below.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from adapted import settings as adapting

from mot.training.run import train
from mot.training.settings import AdaptSettings, TrainSettings

# Another value for each setting that decides what is learnt: other weights, from the same checkpoint.
LEARNT = {
    "seq_length": 24,
    "diversity_weight": 3.0,
    "entropy_weight": 3.0,
    "router_weight": 3.0,
    "thought_dropout": 0.9,
    "estep_tokens": 2,
    "estep_temperature": 0.1,
    "batch_size": 16,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-4,
    "warmup_ratio": 0.9,
    "weight_decay": 3.0,
    "bf16": True,
    "max_steps": 9,
    "seed": 7,
    "dropout": 0.5,
    "num_epochs": 20,  # with max_steps None
    "train_file": "OTHER",
    "task": "forks",  # its symbols are unknown to the checkpoint's tokenizer
    "lora_alpha": 3.0,
    "lora_dropout": 0.5,
}
# The same for rows with prompts.
LEARNT_OF_ROWS = {"estep_rows": 0.25, "group_prompts": True, "match_steps": 3, "verifier": "OTHER"}
# Refused by name, also with --allow_changed.
REFUSED = {"num_thoughts": 8, "thought_length": 2, "hidden_size": 64, "num_layers": 2, "num_heads": 2}
REFUSED |= {"vocab_size": 90, "tokenizer": "BASE", "lora_rank": 2, "lora_targets": "all-linear", "base_model": "OTHER"}
REFUSED |= {"optimizer": "muon"}
NEED_A_GPU = {"fp16", "load_in", "fsdp"}  # fixed in mot/training/resumption.py: see test_what_needs_a_gpu_is_fixed
# What a run writes, shows, or how fast it is: the test that shows it.
ELSEWHERE = {
    "eval_file": "test_what_is_measured_and_written_follows_the_flags",
    "general_file": "test_what_is_measured_and_written_follows_the_flags",
    "eval_every": "test_what_is_measured_and_written_follows_the_flags",
    "eval_rows": "test_what_is_measured_and_written_follows_the_flags",
    "save_every": "test_what_is_measured_and_written_follows_the_flags",
    "save_total_limit": "test_what_is_measured_and_written_follows_the_flags",
    "run_name": "test_what_is_measured_and_written_follows_the_flags",
    "track": "test_what_is_measured_and_written_follows_the_flags",
    "columns": "tests/data/test_rows.py",
    "as_text": "tests/data/test_formats.py",
    "too_long": "tests/data/test_load.py",
    "early_stopping": "tests/training/test_best.py",
    "publish": "tests/training/test_best.py",
    "use_wandb": "tests/training/test_tracking.py",
    "num_workers": "tests/training/test_faults.py::test_workers_change_nothing",
    "save_memory": "tests/training/test_faults.py::test_save_memory_recomputes_and_changes_no_gradient",
    "compile": "docs/results/speed.md",
    "output_dir": "every test of this file",
    "resume_from": "every test of this file",
    "allow_changed": "every test of this file",
    "overwrite": "tests/test_bad_input.py",
    "dry_run": "tests/training/test_costs.py",
}


def test_every_setting_is_in_one_group():
    names = {f.name for kind in (TrainSettings, AdaptSettings) for f in dataclasses.fields(kind)}
    groups = [set(LEARNT), set(LEARNT_OF_ROWS), set(REFUSED), NEED_A_GPU, set(ELSEWHERE)]
    assert set().union(*groups) == names
    assert sum(map(len, groups)) == len(names)


SMALL = {"vocab_size": 100, "hidden_size": 32, "num_layers": 1, "num_heads": 1, "num_thoughts": 4, "seq_length": 32}
SMALL |= {"batch_size": 32, "max_steps": 8, "save_every": 4, "eval_rows": 4, "eval_every": 8, "publish": "last"}
# Diversity is compared after 60 % of the steps: 8 steps from checkpoint-4 have it.


def weights(run: Path) -> bytes:
    (file,) = run.glob("*.safetensors")
    return file.read_bytes()


@pytest.fixture(scope="module")
def scratch(text_file, tmp_path_factory):
    """(settings of a run from scratch, its directory)."""
    asked = TrainSettings(train_file=str(text_file), output_dir=str(tmp_path_factory.mktemp("run") / "run"), **SMALL)
    train(asked)
    return asked, Path(asked.output_dir)


@pytest.fixture(scope="module")
def adapted(made, adapter_rows, tmp_path_factory):
    """(settings of an adaptation, its directory)."""
    output = tmp_path_factory.mktemp("run") / "run"
    more = {"max_steps": 8, "save_every": 4, "learning_rate": 5e-3, "publish": "last"}
    asked = adapting(made("llama")[0], train_file=str(adapter_rows), output_dir=str(output), **more)
    train(asked)
    return asked, output


def resumed(whole, output: Path, **changes) -> Path:
    """Resume from checkpoint-4 of a run with changed settings, in a directory of its own."""
    asked, directory = whole
    first = directory / "checkpoint-4"
    train(dataclasses.replace(asked, output_dir=str(output), resume_from=str(first), allow_changed=True, **changes))
    return output


def changed(name: str, value, text_file: Path, tmp_path: Path) -> dict:
    if name == "train_file":
        (tmp_path / "other.txt").write_text(text_file.read_text()[::-1])
        return {name: str(tmp_path / "other.txt")}
    return {"max_steps": None, name: value} if name == "num_epochs" else {name: value}


def test_unchanged_it_ends_in_the_same_weights(scratch, adapted, tmp_path):
    for n, whole in enumerate((scratch, adapted)):
        assert weights(resumed(whole, tmp_path / str(n))) == weights(whole[1])


@pytest.fixture(scope="module")
def of_rows(tmp_path_factory):
    """(settings of a run on rows with prompts that matches in its last two steps, its directory)."""
    folder = tmp_path_factory.mktemp("rows")
    words = ("the", "king", "night", "day", "sea")
    rows = [{"prompt": f"{a} and {b} ", "completion": c} for a in words for b in words for c in ("to", "a", "is")]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "v.py").write_text("def check(prompt, text):\n    return text[:1] or None\n")
    (folder / "w.py").write_text("def check(prompt, text):\n    return text[-1:] or None\n")
    files = {"train_file": str(folder / "rows.jsonl"), "output_dir": str(folder / "run")}
    asked = TrainSettings(**files, **SMALL, match_steps=2, verifier=f"{folder / 'v.py'}:check")
    train(asked)
    return asked, Path(asked.output_dir)


@pytest.mark.parametrize("name", sorted(LEARNT_OF_ROWS))
def test_what_is_learnt_of_rows_follows_the_changed_setting(name, of_rows, tmp_path):
    value = of_rows[0].verifier.replace("v.py", "w.py") if name == "verifier" else LEARNT_OF_ROWS[name]
    assert weights(resumed(of_rows, tmp_path / "unchanged")) == weights(of_rows[1])
    assert weights(resumed(of_rows, tmp_path / "run", **{name: value})) != weights(of_rows[1])


OF_ADAPTERS = {"lora_alpha", "lora_dropout"}


@pytest.mark.parametrize("name", sorted({*LEARNT} - OF_ADAPTERS - {"task"}))
def test_what_is_learnt_follows_the_changed_setting(name, scratch, text_file, tmp_path):
    more = changed(name, LEARNT[name], text_file, tmp_path)
    assert weights(resumed(scratch, tmp_path / "run", **more)) != weights(scratch[1])


@pytest.mark.parametrize("name", [*sorted(OF_ADAPTERS), "learning_rate", "weight_decay"])
def test_what_an_adapter_learns_follows_the_changed_setting(name, adapted, tmp_path):
    assert weights(resumed(adapted, tmp_path / "run", **{name: LEARNT[name]})) != weights(adapted[1])


def learning_rates(run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    return {m["step"]: m["learning_rate"] for m in lines if "learning_rate" in m}


def test_the_learning_rate_is_the_new_one_from_the_first_resumed_step(scratch, tmp_path):
    run = resumed(scratch, tmp_path / "run", learning_rate=1e-5)
    rates = {m["step"]: m["learning_rate"] for m in map(json.loads, (run / "metrics.jsonl").open()) if "loss" in m}
    before = {
        m["step"]: m["learning_rate"] for m in map(json.loads, (scratch[1] / "metrics.jsonl").open()) if "loss" in m
    }
    peak = scratch[0].peak_learning_rate()
    for step in (5, 6, 7):
        assert rates[step] == pytest.approx(before[step] / peak * 1e-5)


def test_a_task_with_other_symbols_is_refused(scratch, tmp_path):
    with pytest.raises(ValueError, match=r"which the model has never seen|another"):
        resumed(scratch, tmp_path / "run", train_file=None, task="forks")


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_change_is_refused_by_name(name, scratch, adapted, made, tmp_path):
    whole = adapted if name in ("lora_rank", "lora_targets", "base_model") else scratch
    value = {"tokenizer": str(made("llama")[0]), "base_model": str(made("qwen3")[0])}.get(name, REFUSED[name])
    more = {"num_thoughts": 2} if name == "thought_length" else {}
    said = "another base" if name == "base_model" else name
    with pytest.raises(ValueError, match=said):
        resumed(whole, tmp_path / "run", **{name: value} | more)
    assert not (tmp_path / "run").exists()


def test_what_needs_a_gpu_is_fixed():
    from mot.training.resumption import FIXED

    assert NEED_A_GPU <= FIXED


def test_what_is_measured_and_written_follows_the_flags(scratch, adapted, text_file, tmp_path):
    held_out = tmp_path / "held_out.txt"
    held_out.write_text(text_file.read_text()[::-1])
    more = {"eval_every": 1, "save_every": 1, "save_total_limit": 2, "run_name": "mine", "track": "tensorboard"}
    more |= {"eval_rows": 2, "eval_file": str(held_out)}
    run = resumed(scratch, tmp_path / "run", **more)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    assert [m["step"] for m in lines if "eval_base_nll" in m] == [5, 6, 7, 8]
    assert {p.name for p in run.glob("checkpoint-*")} >= {"checkpoint-7", "checkpoint-8"}
    assert not (run / "checkpoint-5").exists() or not (run / "checkpoint-6").exists()
    assert "# mine" in (run / "README.md").read_text()
    assert any((run / "tensorboard").iterdir())
    last = [json.loads(line) for line in (scratch[1] / "metrics.jsonl").open()][-1]
    assert last["eval_base_nll"] != lines[-1]["eval_base_nll"]
    shutil.copy(text_file, tmp_path / "general.txt")
    run = resumed(adapted, tmp_path / "adapted", general_file=str(tmp_path / "general.txt"))
    assert any("eval_general_nll" in line for line in (run / "metrics.jsonl").open())
