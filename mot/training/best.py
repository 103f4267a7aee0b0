"""Which evaluation of a run was the best, and what follows from it.

    KeepBest    on_evaluate    a new best is saved at once; --early_stopping; a line when the loss has risen for long
    best_of(lines)             the best evaluation among logged lines, or None
    since(lines, step)         how many evaluations followed it

Best is the lowest held-out mixture NLL. The Trainer keeps step and value in trainer_state.json, so a resumed run knows
them. An evaluation of step 0 is of a model that no checkpoint holds, and does not count.
"""

import math
import sys
from collections.abc import Iterable
from pathlib import Path

from transformers import TrainerCallback

from mot.runtime.remote import MANIFEST

METRIC = "eval_mixture_nll"
LONG = 3  # evaluations in a row without a new best, after which a line says so


class KeepBest(TrainerCallback):
    """Save every new best, and end training after `patience` evaluations without one (None: never).

    `elsewhere`: the checkpoints are kept at a remote directory too, so a best one may be there alone.
    """

    def __init__(self, patience: int | None, elsewhere: bool):
        self.patience, self.elsewhere = patience, elsewhere
        self.superseded: int | None = None  # step of the best before

    def on_train_begin(self, args, state, control, **_):
        """A run that resumes from another run's checkpoint has no best of its own yet."""
        if state.best_global_step is not None and not self._is_kept(args.output_dir, state.best_global_step):
            state.best_global_step = state.best_metric = None

    def on_evaluate(self, args, state, control, metrics, **_):
        value = metrics[METRIC]
        if not state.global_step or state.global_step == state.best_global_step:
            return
        if math.isfinite(value) and (state.best_metric is None or value < state.best_metric):
            self.superseded = state.best_global_step
            state.best_metric, state.best_global_step = value, state.global_step
            control.should_save = True
            return
        waited = since(state.log_history, state.best_global_step or 0)
        if self.patience is not None and waited >= self.patience:
            control.should_save = control.should_training_stop = True
            self._say(state, f"training ends after {waited} evaluations without a new best (--early_stopping)")
        elif waited == LONG:
            self._say(state, f"no new best for {waited} evaluations; --early_stopping {LONG} would end here")

    def is_over(self, output_dir: str, state) -> bool:
        """Did the run that wrote this state end by --early_stopping?"""
        best = state.best_global_step
        waited = since(state.log_history, best or 0)
        return self.patience is not None and self._is_kept(output_dir, best) and waited >= self.patience

    def _is_kept(self, output_dir: str, step: int | None) -> bool:
        return self.elsewhere or (Path(output_dir) / f"checkpoint-{step}" / MANIFEST).is_file()

    def _say(self, state, what: str) -> None:
        if state.is_world_process_zero:
            best = (
                f"lowest {state.best_metric:.4f} at step {state.best_global_step}, checkpoint-{state.best_global_step} "
                "is kept"
                if state.best_global_step
                else "never finite"
            )
            print(f"step {state.global_step}: held-out mixture NLL: {best}; {what}", file=sys.stderr)


def best_of(lines: Iterable[dict]) -> dict | None:
    """Return the evaluation with the lowest finite mixture NLL, of those after step 0; the first of equal ones."""
    found = [m for m in lines if m["step"] and math.isfinite(m.get(METRIC, math.inf))]
    return min(found, key=lambda m: m[METRIC], default=None)


def since(lines: Iterable[dict], step: int) -> int:
    """Return the number of steps after `step` that were evaluated."""
    return len({m["step"] for m in lines if METRIC in m and m["step"] > step})
