"""The model that a run publishes: the best or the last, with its card, complete or not at all.

published = publish_model(trainer, settings, parameters, scratch)      # called by all processes, the first one writes
published.step, published.metrics, published.line
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from mot.runtime import remote
from mot.runtime.files import publish
from mot.training import card
from mot.training.best import METRIC, best_of, since
from mot.training.checkpoint import check
from mot.training.em import MixtureTrainer
from mot.training.settings import RunSettings


@dataclass
class Published:
    """The step whose weights were published, its evaluation, and a line that says why it is this one."""

    step: int
    metrics: dict[str, float]
    line: str


def publish_model(trainer: MixtureTrainer, settings: RunSettings, parameters: int, scratch: str) -> Published:
    """Write the weights of the best or of the last step, tokenizer and card into the run's directory."""
    output_dir, last = Path(trainer.args.output_dir), trainer.state.global_step
    partial = output_dir / ".partial"
    if trainer.args.should_save:
        shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
    trainer.save_model(str(partial))
    published = Published(last, trainer.last_evaluation, _of_the_last(trainer, settings))
    if not trainer.args.should_save:
        return published
    best = trainer.state.best_global_step
    if settings.published() == "best" and best not in (None, last):
        try:
            directory = _checkpoint(trainer, best, scratch, sorted(path.name for path in partial.iterdir()))
            for path in partial.iterdir():
                shutil.copyfile(directory / path.name, path)
            published = Published(best, _evaluation(trainer, best), _of_the_best(trainer))
        except ValueError as e:
            published.line = f"published: step {last:,}, the last, because the best cannot be read: {e}"
    rows, steps = len(trainer.data.train), trainer.state.global_step
    text = card.card(settings, published.metrics, parameters, steps, rows, published.step)
    card.write(partial, text)
    if trainer.seal.lock:
        trainer.seal.lock.require()
    publish(partial, output_dir)
    return published


def _checkpoint(trainer: MixtureTrainer, step: int, scratch: str, names: list[str]) -> Path:
    """Return the directory of a checkpoint, from the remote directory if it is there alone.

    Raises ValueError if it is damaged or lacks one of the files of a model, `names`.
    """
    directory, mirror = Path(trainer.args.output_dir) / f"checkpoint-{step}", trainer.seal.mirror
    if mirror and not directory.is_dir():
        directory = Path(remote.download(f"{mirror.url}/checkpoint-{step}", scratch))
    missing = [name for name in names if name not in check(directory)["files"]]
    if missing:
        raise ValueError(f"{directory}: has no {missing[0]}")
    return directory


def _evaluation(trainer: MixtureTrainer, step: int) -> dict[str, float]:
    """Return what was measured at `step`."""
    line = next(m for m in reversed(trainer.state.log_history) if m["step"] == step and METRIC in m)
    return {name: value for name, value in line.items() if name.startswith("eval_")}


def _of_the_best(trainer: MixtureTrainer) -> str:
    state, last = trainer.state, trainer.last_evaluation[METRIC]
    return (
        f"published: step {state.best_global_step:,}, the best of {since(state.log_history, 0)} evaluations: held-out "
        f"mixture NLL {state.best_metric:.4f}; the last step, {state.global_step:,}, has {last:.4f} "
        "(--publish last --resume_from auto publishes it)"
    )


def _of_the_last(trainer: MixtureTrainer, settings: RunSettings) -> str:
    state = trainer.state
    line, best = f"published: step {state.global_step:,}, the last", best_of(state.log_history)
    if best and best["step"] != state.global_step and state.best_global_step == best["step"]:
        way = "" if settings.task else ", --publish best --resume_from auto publishes it"
        line += f"; the lowest held-out mixture NLL was {best[METRIC]:.4f} at step {best['step']:,} (checkpoint-"
        line += f"{best['step']}{way})"
    elif best and best["step"] == state.global_step:
        line += " and the best"
    return line
