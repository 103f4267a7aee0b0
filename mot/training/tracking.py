"""What a run reports while it runs: a progress bar, metrics.jsonl and samples.jsonl always, and a tracker if asked.

    require(settings)                                            # before anything is written: can the tracker be used?
    log = RunLog(output_dir, steps, title, trackers(settings, output_dir))
    Trainer(..., callbacks=[log, *log.trackers])                 # with TrainingArguments(report_to="none", project=PROJECT)
    log.samples(step, prompt, thoughts)                          # after every evaluation
    log.close()

The trackers are transformers' own callbacks. Ours put their files below the output directory, continue the same run after
a resume, and accept samples. Of several processes only the first has a RunLog and trackers.
"""

import importlib.util
import json
import os
import secrets
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from mot.training.settings import RunSettings

PROJECT = "mixture-of-thoughts"
METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"
WANDB_RUN_ID = "wandb_run_id"  # not in run.json, because a resume writes that anew
SHOWN = {
    "lm_loss": "lm",
    "diversity": "jsd",
    "effective_thoughts": "used",
    "eval_base_nll": "base",
    "eval_mixture_nll": "mixture",
}


class RunLog(TrainerCallback):
    """Write every logged number to metrics.jsonl at once, and show the important ones.

    On a terminal one live line; elsewhere (a file, a pipe, CI) a plain line for each evaluation. A full disk costs the
    lines, not the run.
    """

    def __init__(self, output_dir: str, steps: int, title: str, trackers: Iterable[TrainerCallback] = ()):
        self.path, self.samples_path = Path(output_dir) / METRICS, Path(output_dir) / SAMPLES
        self.trackers = list(trackers)
        self.warned: set[Path] = set()
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
        # A resumed run continues from its checkpoint: later lines were written by a lost run.
        for path in (self.path, self.samples_path):
            with warn_on_write_error(path, self.warned):
                _cut(path, state.global_step)
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
        if any(name.startswith("eval_") for name in logs) and not self.console.is_terminal:
            self.console.print(
                f"step {state.global_step}/{state.max_steps}  " + "  ".join(numbers), highlight=False, soft_wrap=True
            )

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
            print(f"\nwarning: {path}: {e.strerror or e}; training goes on without these lines", file=sys.stderr)


# Trackers ----------------------------------------------------------------------------------------------------------


def require(settings: RunSettings) -> None:
    """Raise ValueError, before anything is written, if the tracker asked for is not installed or not logged in."""
    if settings.track and importlib.util.find_spec(settings.track) is None:
        raise ValueError(
            f'--track {settings.track}: not installed; pip install "mixture-of-thoughts[{settings.track}]"'
        )
    if not settings.use_wandb:
        return
    if importlib.util.find_spec("wandb") is None:
        raise ValueError('--use_wandb: wandb is not installed; pip install "mixture-of-thoughts[wandb]"')
    import wandb

    if wandb.setup().settings.mode in ("offline", "dryrun", "disabled"):
        return
    way_out = "run `wandb login`, or set WANDB_MODE=offline to keep the numbers here"
    try:
        logged_in = wandb.login(prompt=False, verify=False)  # wandb.init would ask and wait for an answer
    except wandb.Error as e:
        raise ValueError(f"--use_wandb: {e}; {way_out}") from None
    if not logged_in:
        raise ValueError(f"--use_wandb: not logged in; {way_out}")


def trackers(settings: RunSettings, output_dir: str) -> list[TrainerCallback]:
    """Return the callbacks of the trackers that `settings` ask for."""
    asked = [Wandb(asdict(settings))] if settings.use_wandb else []
    if settings.track == "tensorboard":
        asked.append(TensorBoard(output_dir))
    if settings.track == "trackio":
        asked.append(Trackio(asdict(settings), output_dir))
    return asked


class Wandb(WandbCallback):
    """Weights & Biases: one run, however often training is interrupted; its id is in OUTPUT/wandb_run_id."""

    def __init__(self, settings: dict):
        super().__init__()
        self.settings, self.ours = settings, False

    def setup(self, args, state, model, **kwargs):
        """Start a run with our settings, or take the one that is active; then transformers' setup."""
        import wandb

        if state.is_world_process_zero and wandb.run is None:
            try:
                wandb.init(
                    project=os.environ.get("WANDB_PROJECT", PROJECT),
                    name=args.run_name,
                    id=self._run_id(Path(args.output_dir)),
                    resume="allow",
                    dir=args.output_dir,
                    settings=wandb.Settings(console="off"),  # else every frame of the progress bar is uploaded
                )
            except wandb.Error as e:
                raise ValueError(f"--use_wandb: {e}; WANDB_MODE=offline keeps the numbers here") from None
            self.ours = True
        super().setup(args, state, model, **kwargs)
        if state.is_world_process_zero:
            wandb.config.update(_settings(self.settings, wandb.config), allow_val_change=True)

    def _run_id(self, output_dir: Path) -> str:
        path = output_dir / WANDB_RUN_ID
        if "WANDB_RUN_ID" in os.environ:  # a sweep's agent has chosen
            return os.environ["WANDB_RUN_ID"]
        known = path.read_text().strip() if path.is_file() else ""
        run_id = known or secrets.token_hex(8)
        with warn_on_write_error(path, set()):
            path.write_text(run_id + "\n")
        return run_id

    def samples(self, step: int, prompt: str, thoughts: list) -> None:
        """Log a table of the thoughts."""
        import wandb

        columns = ["step", "prompt", "thought", "probability", "nats per token", "text"]
        rows = [[step, prompt, t.index, t.probability, -t.mean_logprob, t.text] for t in thoughts]
        wandb.log({"samples": wandb.Table(columns, rows), "train/global_step": step})

    def close(self) -> None:
        """Finish the run, unless somebody else (a notebook) started it."""
        if self.ours:
            import wandb

            wandb.finish(exit_code=0 if sys.exception() is None else 1)
            self.ours = False


class TensorBoard(TensorBoardCallback):
    """TensorBoard: event files below OUTPUT/tensorboard."""

    def __init__(self, output_dir: str):
        super().__init__()
        self.path, self.warned = Path(output_dir) / "tensorboard", set()
        self.logging_dir = self.logging_dir or str(self.path)

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            from torch.utils.tensorboard import SummaryWriter

            with warn_on_write_error(self.path, self.warned):
                # TensorBoard ignores the events of a lost run from this step on.
                purge = state.global_step + 1 if state.global_step else None
                self.tb_writer = SummaryWriter(self.logging_dir, purge_step=purge)
                super().on_train_begin(args, state, control, **kwargs)

    def on_log(self, args, state, control, logs=None, **kwargs):
        with warn_on_write_error(self.path, self.warned):
            super().on_log(args, state, control, logs=logs, **kwargs)

    def on_train_end(self, args, state, control, **kwargs):
        """Nothing: the last evaluation follows, and `close` closes."""

    def samples(self, step: int, prompt: str, thoughts: list) -> None:
        if self.tb_writer is not None:
            with warn_on_write_error(self.path, self.warned):
                self.tb_writer.add_text("samples", _markdown(prompt, thoughts), step)

    def close(self) -> None:
        if self.tb_writer is not None:
            with warn_on_write_error(self.path, self.warned):
                self.tb_writer.close()
            self.tb_writer = None


class Trackio(TrackioCallback):
    """trackio: a database below OUTPUT/trackio, or where TRACKIO_DIR says. It recognises a resumed run by its name."""

    def __init__(self, settings: dict, output_dir: str):
        # trackio reads it once, when it is imported: a process (a notebook) keeps all its runs where the first one is.
        os.environ.setdefault("TRACKIO_DIR", str(Path(output_dir) / "trackio"))
        super().__init__()
        self.settings, self.started = settings, False

    def setup(self, args, state, model, **kwargs):
        """transformers' setup, then our settings."""
        super().setup(args, state, model, **kwargs)
        if state.is_world_process_zero:
            import trackio

            self.started = True
            trackio.config.update(_settings(self.settings, trackio.config))

    def on_train_end(self, args, state, control, **kwargs):
        """Nothing: the last evaluation follows, and `close` finishes."""

    def samples(self, step: int, prompt: str, thoughts: list) -> None:
        """Log the thoughts as Markdown."""
        import trackio

        trackio.log({"samples": trackio.Markdown(_markdown(prompt, thoughts)), "train/global_step": step})

    def close(self) -> None:
        """Finish the run, if it is not finished."""
        if self.started:
            import trackio

            with suppress(RuntimeError):  # it was finished elsewhere
                trackio.finish()
            self.started = False


def _settings(settings: dict, config: dict) -> dict:
    """All settings, but no None in place of what the Trainer derived (the learning rate, the steps)."""
    return {name: value for name, value in settings.items() if value is not None or name not in config}


def _markdown(prompt: str, thoughts: list) -> str:
    """Samples as Markdown; texts are indented code blocks, so that nothing in them is read as markup."""

    def block(text: str) -> str:
        return "\n".join("    " + line for line in text.splitlines() or [""])

    parts = [f"prompt\n\n{block(prompt)}"]
    parts += [
        f"**thought {t.index}** p {t.probability:.2f}, {-t.mean_logprob:.2f} nats per token\n\n{block(t.text)}"
        for t in thoughts
    ]
    return "\n\n".join(parts)
