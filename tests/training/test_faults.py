"""Anomalies are not trained on (NaN, spikes), code in files is not run, and memory flags do what they say.

Anomalies are injected into the numbers of real, tiny runs; malicious files are real and would create a canary file.
"""

import json
import math
import pickle
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from mot.data.load import load_data
from mot.model.build import build_model
from mot.model.load import load_model
from mot.runtime.signals import SignalHandler
from mot.training.callbacks import PATIENCE, WINDOW
from mot.training.checkpoint import MANIFEST, check, find, seal
from mot.training.em import MixtureTrainer
from mot.training.settings import TrainSettings


def trainer_of(text_file: Path, output: Path, steps: int = 20, **changes) -> MixtureTrainer:
    shape = {
        "hidden_size": 32,
        "num_layers": 1,
        "num_thoughts": 4,
        "seq_length": 32,
        "batch_size": 8,
        "vocab_size": 100,
    }
    s = TrainSettings(train_file=str(text_file), output_dir=str(output), max_steps=steps, **shape | changes)
    data = load_data(s)
    return MixtureTrainer(s, data, build_model(s, data.tokenizer), steps, s.output_dir, None, SignalHandler())


def states(trainer: MixtureTrainer) -> list[torch.Tensor]:
    """Copies of all parameters and moments."""
    moments = [v for state in trainer.optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    return [t.detach().clone() for t in [*trainer.model.parameters(), *moments]]


# NaN, infinity, spikes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_an_update_from_nan_is_skipped_and_changes_no_bit(where, value, text_file, tmp_path, monkeypatch, capsys):
    trainer = trainer_of(text_file, tmp_path)
    compute_loss, before, after = trainer.compute_loss, [], []

    def faulty(model, inputs, **how):
        loss = compute_loss(model, inputs, **how)
        if trainer.state.global_step == 5:
            before.extend(states(trainer))
            if where == "loss":
                trainer.guard.step_loss = trainer.guard.step_loss * value
                return loss * value
            loss.register_hook(lambda gradient: gradient * value)
        elif trainer.state.global_step == 6:
            after.extend(states(trainer))
        return loss

    monkeypatch.setattr(trainer, "compute_loss", faulty)
    trainer.train()
    assert len(before) == len(after) > 20
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    said = capsys.readouterr().err
    assert said.count("update skipped") == 1
    assert "step 6: loss is" in said
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_ten_bad_updates_in_a_row_end_the_run_with_the_guides_advice(text_file, tmp_path, monkeypatch):
    trainer = trainer_of(text_file, tmp_path)
    compute_loss = trainer.compute_loss
    broken = range(5, 5 + PATIENCE)
    monkeypatch.setattr(
        trainer,
        "compute_loss",
        lambda *a, **k: compute_loss(*a, **k) * (math.nan if trainer.state.global_step in broken else 1),
    )
    with pytest.raises(ValueError, match=r"10 updates in a row; lower --learning_rate .* --warmup_ratio"):
        trainer.train()
    assert trainer.state.global_step == 5 + PATIENCE - 1


def test_nine_bad_updates_do_not_end_it(text_file, tmp_path, monkeypatch):
    trainer = trainer_of(text_file, tmp_path)
    compute_loss = trainer.compute_loss
    broken = range(5, 5 + PATIENCE - 1)
    monkeypatch.setattr(
        trainer,
        "compute_loss",
        lambda *a, **k: compute_loss(*a, **k) * (math.nan if trainer.state.global_step in broken else 1),
    )
    trainer.train()
    assert trainer.state.global_step == 20


def test_a_spike_is_told_from_noise_by_six_standard_deviations(text_file, tmp_path):
    trainer = trainer_of(text_file, tmp_path)
    noise = torch.Generator().manual_seed(0)
    for _ in range(WINDOW - 1):
        trainer.guard.loss_window.append(2 + 0.1 * float(torch.randn((), generator=noise)))
    assert trainer.guard.anomaly(9.0, 1.0) is None  # too little seen to judge
    trainer.guard.loss_window.append(2.0)
    mean = sum(trainer.guard.loss_window) / WINDOW
    deviation = (sum((x - mean) ** 2 for x in trainer.guard.loss_window) / WINDOW) ** 0.5
    assert trainer.guard.anomaly(mean + 5.9 * deviation, 1.0) is None
    assert "standard deviations above the last 128" in trainer.guard.anomaly(mean + 6.1 * deviation, 1.0)
    assert trainer.guard.anomaly(mean - 20 * deviation, 1.0) is None  # falling is what it is for


def test_leaving_a_plateau_is_no_spike(text_file, tmp_path):
    """On `circle` a loss that was flat for 128 steps rose by 4 %: 76 standard deviations, and the run ended."""
    trainer = trainer_of(text_file, tmp_path)
    trainer.guard.loss_window.extend(2.7 + 0.001 * (i % 2) for i in range(WINDOW))
    assert trainer.guard.anomaly(2.81, 1.0) is None
    assert "standard deviations" in trainer.guard.anomaly(1.13 * 2.7, 1.0)


def test_a_spike_in_a_run_is_skipped(text_file, tmp_path, monkeypatch, capsys):
    trainer = trainer_of(text_file, tmp_path, steps=2 * WINDOW + 10)
    assign = trainer.assign

    def scrambled(batches, g):
        if trainer.state.global_step == 2 * WINDOW + 4:
            for b in batches:
                b["completion"] = torch.randint(20, b["completion"].shape, generator=g)
                b["prompt"] = torch.randint(20, b["prompt"].shape, generator=g)
        assign(batches, g)

    monkeypatch.setattr(trainer, "assign", scrambled)
    trainer.train()
    assert f"step {2 * WINDOW + 5}: loss" in capsys.readouterr().err
    assert len(trainer.guard.loss_window) == WINDOW


# Memory and precision -------------------------------------------------------------------------------------------------


class Catch(TrainerCallback):
    """Keep the gradients of every update."""

    def __init__(self, caught: list):
        self.caught = caught

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        self.caught.extend(p.grad.clone() for p in model.parameters())


def test_save_memory_recomputes_and_changes_no_gradient(text_file, tmp_path):
    gradients = []
    for save_memory in (False, True):
        trainer = trainer_of(text_file, tmp_path, steps=1, save_memory=save_memory)
        caught = []
        trainer.add_callback(Catch(caught))
        trainer.train()
        assert trainer.model.is_activation_checkpointing == save_memory
        gradients.append(caught)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("flags", [{"bf16": True}, {"num_workers": 2}, {"save_memory": True, "bf16": True}])
def test_the_flags_train(flags, text_file, tmp_path):
    trainer = trainer_of(text_file, tmp_path, steps=12, **flags)
    trainer.train()
    trainer.evaluate()
    assert trainer.last_evaluation["eval_base_nll"] < math.log(len(trainer.data.tokenizer))


def test_workers_change_nothing(text_file, tmp_path):
    models = []
    for workers in (0, 2):
        trainer = trainer_of(text_file, tmp_path, steps=6, num_workers=workers, dropout=0.1)
        trainer.train()
        models.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    assert torch.equal(*models)


def test_out_of_memory_is_a_line_with_the_flags_to_use(root, text_file, tmp_path):
    limited = f"""
import resource
from mot import cli
import mot.training.run, mot.training.em, mot.training.report
train = mot.training.em.MixtureTrainer.train
def within(self, *a, **k):
    used = int(open("/proc/self/statm").read().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (used + 100 * 2**20, -1))
    return train(self, *a, **k)
mot.training.em.MixtureTrainer.train = within
size = "--vocab_size 100 --hidden_size 256 --num_layers 4 --seq_length 128 --batch_size 512 --max_steps 2"
cli.run(cli.train, f"--train_file {text_file} {{size}} --output_dir {tmp_path}/run".split())
"""
    run = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True, cwd=root)
    assert run.returncode == 2, run.stderr
    assert "out of memory" in run.stderr
    assert "--batch_size 256 --gradient_accumulation_steps 2" in run.stderr
    assert "--save_memory" in run.stderr


# Security: nothing that is read is run --------------------------------------------------------------------------------


class Canary:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def canary(tmp_path):
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "code from a file was run"


def poison(file: Path, canary: Path) -> None:
    if file.suffix in (".pt", ".pth", ".bin"):
        torch.save({"state": Canary(canary)}, file)
    else:
        file.write_bytes(pickle.dumps(Canary(canary)))


PICKLED = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "watch.json", "trainer_state.json"]
PICKLED += ["config.json", "tokenizer.json"]


@pytest.mark.parametrize("resealed", [False, True])
@pytest.mark.parametrize("file", PICKLED)
def test_a_pickle_in_a_checkpoint_is_not_run(file, resealed, canary, text_file, tmp_path):
    """Also where an attacker has written a manifest that is true of it."""
    trainer = trainer_of(text_file, tmp_path / "run", steps=2)
    trainer.train()
    directory = tmp_path / "run" / "checkpoint-2"
    poison(directory / file, canary)
    if not resealed:
        with pytest.raises(ValueError, match=file):
            check(directory)
        return
    (directory / MANIFEST).unlink()
    seal(directory, 2, trainer.facts)
    again = trainer_of(text_file, tmp_path / "run", steps=4)
    again.start = 2
    # tokenizer.json and config.json of a checkpoint are not read on resume; every other file cannot be parsed.
    if file in ("tokenizer.json", "config.json"):
        with pytest.raises(ValueError, match="cannot be loaded"):
            load_model(str(directory))
    else:
        with pytest.raises(Exception, match=r"."):
            again.train(resume_from_checkpoint=str(directory))


def test_a_pickled_model_is_not_opened(canary, text_run, tmp_path):
    directory = tmp_path / "model"
    shutil.copytree(text_run, directory)
    (directory / "model.safetensors").unlink()
    poison(directory / "pytorch_model.bin", canary)
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_model(str(directory))


def test_a_safetensors_header_that_lies_is_refused(text_run, tmp_path):
    directory = tmp_path / "model"
    shutil.copytree(text_run, directory)
    for header in (
        {"lm_head.weight": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4 * 10**18]}},
        {"lm_head.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [8, 4]}},
    ):
        body = json.dumps(header).encode()
        (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(body)) + body + b"\0" * 16)
        with pytest.raises(ValueError, match="cannot be loaded"):
            load_model(str(directory))
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_model(str(directory))


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_that_lies_beside_a_model_is_not_run(file, canary, text_run, tmp_path):
    directory = tmp_path / "model"
    shutil.copytree(text_run, directory)
    (directory / "evil.py").write_text(f"from pathlib import Path\nPath({str(canary)!r}).touch()\nclass Evil: pass\n")
    about = json.loads((directory / file).read_text())
    about["auto_map"] = {
        "AutoModelForCausalLM": "evil.Evil",
        "AutoConfig": "evil.Evil",
        "AutoTokenizer": ["evil.Evil", None],
    }
    about |= {"model_type": "evil"} if file == "config.json" else {"tokenizer_class": "Evil"}
    (directory / file).write_text(json.dumps(about))
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_model(str(directory))


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../outside", "..\\outside", "C:/outside"])
def test_a_manifest_cannot_name_what_is_outside(name, text_file, tmp_path):
    directory = tmp_path / "checkpoint-1"
    directory.mkdir()
    (directory / "a").write_text("a")
    seal(directory, 1, {})
    manifest = json.loads((directory / MANIFEST).read_text())
    manifest["files"][name] = manifest["files"]["a"]
    from mot.training.checkpoint import _own_digest

    manifest["sha256"] = _own_digest({key: manifest[key] for key in ("format", "step", "facts", "files")})
    (directory / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="is not a file of the checkpoint"):
        find(str(directory), "")


def test_no_line_of_ours_unpickles_or_trusts_remote_code(root):
    for file in [*(root / "mot").rglob("*.py"), *root.glob("*.py")]:
        source = file.read_text()
        for forbidden in (
            "import pickle",
            "pickle.load",
            "trust_remote_code=True",
            "allow_pickle=True",
            "yaml.load(",
            "eval(",
        ):
            assert forbidden not in source.replace(".eval(", "").replace("def eval(", ""), f"{file}: {forbidden}"
        assert source.count("torch.load(") == source.count("weights_only=True"), file
