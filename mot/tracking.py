"""What a run says while it runs: metrics.jsonl always, and a progress bar with losses, tokens per second and time left."""

import json
from pathlib import Path

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column
from transformers import TrainerCallback

METRICS = "metrics.jsonl"
SHOWN = {
    "lm_loss": "lm",
    "diversity": "jsd",
    "effective_thoughts": "used",
    "eval_base_nll": "base",
    "eval_mixture_nll": "mixture",
}


class RunLog(TrainerCallback):
    """Write every logged number to metrics.jsonl as it comes and show the important ones.

    On a terminal one live line; elsewhere (a file, a pipe, CI) a plain line for each evaluation.
    """

    def __init__(self, output_dir: str, steps: int, title: str):
        self.path = Path(output_dir) / METRICS
        self.console = Console(stderr=True)
        self.numbers: dict[str, float] = {}
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
        # A resumed run goes on from its checkpoint: lines that a lost run wrote behind it are not this run's.
        kept = [m for m in read_metrics(self.path) if m["step"] <= state.global_step]
        self.path.write_text("".join(json.dumps(m) + "\n" for m in kept))
        self.bar.update(self.task, completed=state.global_step)
        self.bar.start()

    def on_step_end(self, args, state, control, **_):
        self.bar.update(self.task, completed=state.global_step)

    def on_log(self, args, state, control, logs=None, **_):
        if "train_runtime" in logs:
            return
        with self.path.open("a") as file:
            file.write(json.dumps({"step": state.global_step, **logs}) + "\n")
        self.numbers |= logs
        numbers = [f"{self.numbers['tokens_per_second']:,.0f} tokens/s"] * ("tokens_per_second" in self.numbers)
        numbers += [f"{short} {self.numbers[name]:.3f}" for name, short in SHOWN.items() if name in self.numbers]
        self.bar.update(self.task, numbers="  ".join(numbers))
        if any(name.startswith("eval_") for name in logs) and not self.console.is_terminal:
            self.console.print(
                f"step {state.global_step}/{state.max_steps}  " + "  ".join(numbers), highlight=False, soft_wrap=True
            )

    def close(self) -> None:
        """Leave the terminal as it was."""
        self.bar.stop()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a metrics.jsonl; none if there is no such file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
