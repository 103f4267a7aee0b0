"""The best step is kept, published and named; a run that gets worse says so, and ends if asked to.

A run gets worse here because its numbers are replaced: the evaluations of a tiny run, all else is real.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mot import cli
from mot.training import em, report
from mot.training.run import train
from mot.training.settings import TrainSettings

WORSE = [3.0, 2.0, 2.5, 2.6, 2.7, 2.8, 2.9, 2.95]  # of steps 1, 2, ..: step 2 is the best
SMALL = {"hidden_size": 32, "num_layers": 1, "num_thoughts": 4, "seq_length": 32, "batch_size": 8, "vocab_size": 100}
SMALL |= {"max_steps": 6, "eval_every": 1, "save_every": 3, "save_total_limit": 1, "eval_rows": 4}


@pytest.fixture
def worse(monkeypatch):
    """Evaluations whose mixture NLL is that of WORSE."""
    measure = em.measure

    def measured(model, data, rows, settings, device, stopped):
        step = measured.trainer.state.global_step
        return measure(model, data, rows, settings, device, stopped) | {"mixture_nll": WORSE[step - 1]}

    init = em.MixtureTrainer.__init__

    def remember(self, *args, **more):
        init(self, *args, **more)
        measured.trainer = self

    monkeypatch.setattr(em.MixtureTrainer, "__init__", remember)
    monkeypatch.setattr(em, "measure", measured)


@pytest.fixture
def asked(text_file, tmp_path) -> TrainSettings:
    return TrainSettings(train_file=str(text_file), output_dir=str(tmp_path / "run"), **SMALL)


def steps(run: Path) -> set[str]:
    return {p.name for p in run.glob("checkpoint-*")}


def weights(directory) -> bytes:
    return (Path(directory) / "model.safetensors").read_bytes()


@pytest.mark.usefixtures("worse")
@pytest.mark.parametrize("publish", [None, "best", "last"])
def test_the_best_checkpoint_is_kept_and_published(publish, asked, capsys):
    result = train(replace(asked, publish=publish))
    run = Path(asked.output_dir)
    assert steps(run) == {"checkpoint-2", "checkpoint-6"}  # one to keep, and the best
    published = 6 if publish == "last" else 2
    assert weights(run) == weights(run / f"checkpoint-{published}")
    assert result.metrics["eval_mixture_nll"] == WORSE[published - 1]
    assert f"published: step {published}" in result.notes[-1]
    assert "2.0000" in result.notes[-1]
    assert ("these are the weights of step 2, which had the lowest" in (run / "README.md").read_text()) == (
        publish != "last"
    )
    page = report.write(str(run)).read_text()
    assert f"the model is of step {published}" in page
    assert "lowest 2.0000 at step 2, checkpoint-2 is kept; no new best for 3 evaluations" in capsys.readouterr().err


@pytest.mark.usefixtures("worse")
def test_early_stopping_ends_the_run_and_a_resume_has_nothing_to_do(asked, capsys):
    run = Path(asked.output_dir)
    assert train(replace(asked, early_stopping=2)).steps == 4
    assert weights(run) == weights(run / "checkpoint-2")
    assert "training ends after 2 evaluations without a new best (--early_stopping)" in capsys.readouterr().err
    assert train(replace(asked, early_stopping=2, resume_from="auto")).steps == 4
    assert "--early_stopping has ended the run" in capsys.readouterr().err
    assert weights(run) == weights(run / "checkpoint-2")
    assert train(replace(asked, resume_from="auto")).steps == 6  # without it, the run goes on
    assert weights(run) == weights(run / "checkpoint-2")


@pytest.mark.usefixtures("worse")
def test_the_best_survives_a_resume(asked):
    run = Path(asked.output_dir)
    train(replace(asked, publish="last"))
    assert weights(run) == weights(run / "checkpoint-6")
    result = train(replace(asked, publish="best", resume_from="auto"))
    assert weights(run) == weights(run / "checkpoint-2")
    assert result.metrics["eval_mixture_nll"] == 2.0


@pytest.mark.usefixtures("worse")
def test_a_branch_has_a_best_of_its_own(asked, tmp_path):
    train(asked)
    parent = Path(asked.output_dir)
    (parent / "wandb_run_id").write_text("parents")
    branch = replace(asked, output_dir=str(tmp_path / "branch"), resume_from=str(parent / "checkpoint-2"))
    train(replace(branch, max_steps=5, allow_changed=True))
    assert "checkpoint-3" in steps(tmp_path / "branch")  # its first evaluation, 2.5
    assert weights(tmp_path / "branch") == weights(tmp_path / "branch" / "checkpoint-3")
    assert not (tmp_path / "branch" / "wandb_run_id").exists()


@pytest.mark.usefixtures("worse")
def test_a_damaged_best_is_said_and_the_last_is_published(asked):
    run = Path(asked.output_dir)
    train(asked)
    (run / "checkpoint-2" / "model.safetensors").write_bytes(b"")
    result = train(replace(asked, resume_from="auto"))
    assert "the last, because the best cannot be read" in result.notes[-1]
    assert weights(run) == weights(run / "checkpoint-6")


def test_a_task_publishes_its_end(tmp_path):
    assert TrainSettings(task="forks").published() == "last"
    assert TrainSettings(task="forks", publish="best").published() == "best"
    assert TrainSettings(train_file="x.txt").published() == "best"


def test_an_unknown_step_to_publish_is_refused(refused, in_tmp_path):
    refused(cli.train, ["--task", "forks", "--publish", "newest"], "--publish newest", "best, last")


def test_more_evaluations_than_checkpoints_do_not_push_out_the_regular_ones(asked):
    """Every evaluation of a run that improves is a new best."""
    train(replace(asked, learning_rate=1e-3, max_steps=6, save_every=2, save_total_limit=3))
    losses = [json.loads(line) for line in (Path(asked.output_dir) / "metrics.jsonl").open()]
    values = [m["eval_mixture_nll"] for m in losses if "eval_mixture_nll" in m]
    assert values == sorted(values, reverse=True)
    assert steps(Path(asked.output_dir)) == {"checkpoint-2", "checkpoint-4", "checkpoint-6"}
