"""What a run reports while it runs: a progress bar, metrics.jsonl and samples.jsonl.

    log = RunLog(output_dir, steps, title, trackers)
    Trainer(..., callbacks=[log, *log.trackers])
    log.samples(step, prompt, thoughts)                          # after every evaluation
    log.close()
    read_metrics(Path(output_dir) / METRICS)                     # one dictionary a line

With several processes only the first has a RunLog.
"""

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column
from transformers import TrainerCallback

from mot.runtime.announce import duration

EVERY = 30  # seconds
METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"
SHOWN = {
    "lm_loss": "lm",
    "diversity": "jsd",
    "effective_thoughts": "used",
    "distinct": "distinct",
    "eval_base_nll": "base",
    "eval_mixture_nll": "mixture",
}


class RunLog(TrainerCallback):
    """Write every logged number to metrics.jsonl at once, and show the important ones.

    On a terminal one live line; elsewhere (a file, a pipe, CI) a plain line for each evaluation, and at least one in
    EVERY seconds, with the time that is left. A full disk costs the lines, not the run.
    """

    def __init__(self, output_dir: str, steps: int, title: str, trackers: Iterable[TrainerCallback] = ()):
        self.path, self.samples_path = Path(output_dir) / METRICS, Path(output_dir) / SAMPLES
        self.trackers = list(trackers)
        self.warned: set[Path] = set()
        self.console = Console(stderr=True)
        self.numbers: dict[str, float] = {}
        self.begun, self.first_step, self.printed = time.monotonic(), 0, time.monotonic()
        self.bar = Progress(
            MofNCompleteColumn(table_column=Column(min_width=2 * len(str(steps)) + 1)),
            TextColumn("left", table_column=Column(min_width=4)),
            TimeRemainingColumn(table_column=Column(min_width=7)),
            TextColumn(
                "{task.fields[numbers]}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
            ),
            console=self.console,
            expand=True,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task(title, total=steps, numbers="")

    def on_train_begin(self, args, state, control, **_):
        # A resumed run continues from its checkpoint: later lines were written by a lost run.
        for path in (self.path, self.samples_path):
            with warn_on_write_error(path, self.warned):
                _cut(path, state.global_step)
        self.begun = self.printed = time.monotonic()
        self.first_step = state.global_step
        self.bar.update(self.task, completed=state.global_step)
        self.bar.start()

    def on_step_end(self, args, state, control, **_):
        self.bar.update(self.task, completed=state.global_step)

    def on_log(self, args, state, control, logs=None, **_):
        if "train_runtime" in logs:
            return
        with warn_on_write_error(self.path, self.warned):
            _append(self.path, {"step": state.global_step, **logs})
        self.numbers |= logs
        numbers = [f"{value:,.0f} tokens/s" for name, value in self.numbers.items() if name == "tokens_per_second"]
        numbers += [f"{short} {self.numbers[name]:.3f}" for name, short in SHOWN.items() if name in self.numbers]
        self.bar.update(self.task, numbers="  ".join(numbers))
        evaluated, now = any(name.startswith("eval_") for name in logs), time.monotonic()
        if self.console.is_terminal or not (evaluated or now - self.printed >= EVERY):
            return
        self.printed, done = now, state.global_step - self.first_step
        left = (state.max_steps - state.global_step) * (now - self.begun) / max(1, done)
        numbers += [f"{duration(left)} left"] if done and left else []
        line = f"step {state.global_step}/{state.max_steps}  " + "  ".join(numbers)
        self.console.print(line, highlight=False, soft_wrap=True)

    def samples(self, step: int, prompt: str, thoughts: list) -> None:
        """Write `thoughts`, as mot.inference.think returns them, to samples.jsonl and to the trackers."""
        fields = ("index", "probability", "mean_logprob", "text")
        generated = [{name: getattr(t, name) for name in fields} for t in thoughts]
        with warn_on_write_error(self.samples_path, self.warned):
            _append(self.samples_path, {"step": step, "prompt": prompt, "thoughts": generated})
        for tracker in self.trackers:
            tracker.samples(step, prompt, thoughts)

    def close(self) -> None:
        """Restore the terminal, and let the trackers finish writing."""
        self.bar.stop()
        for tracker in self.trackers:
            tracker.close()


# Lines that survive a full disk and a kill -------------------------------------------------------------------------


def read_metrics(path: Path) -> list[dict]:
    """Return the complete lines of a metrics.jsonl or samples.jsonl; none if there is no such file."""
    lines = []
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else []:
        with suppress(ValueError):
            lines.append(json.loads(line))
    return [line for line in lines if isinstance(line, dict) and "step" in line]


def _append(path: Path, line: dict) -> None:
    end = path.stat().st_size if path.is_file() else 0
    try:
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
    except OSError:
        with suppress(OSError):
            os.truncate(path, end)  # the next line must not follow half a line
        raise


def _cut(path: Path, step: int) -> None:
    """Drop the lines after `step`; at every moment the file is complete."""
    text = "".join(json.dumps(m) + "\n" for m in read_metrics(path) if m["step"] <= step)
    if path.is_file() and text != path.read_text(errors="replace"):
        new = path.with_name(path.name + ".new")
        new.write_text(text)
        new.replace(path)


@contextmanager
def warn_on_write_error(path: Path, warned: set[Path]) -> Iterator[None]:
    """Turn a write error (disk full, directory gone) into one warning; `warned` remembers the paths."""
    try:
        yield
    except OSError as e:
        if path not in warned:
            warned.add(path)
            print(f"\nwarning: {path}: {e.strerror or e}; training continues without these lines", file=sys.stderr)
