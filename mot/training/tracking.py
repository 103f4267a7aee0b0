"""The trackers that a run can log to: transformers' own callbacks, with our files, our settings, and samples.

    require(settings)                                            # before anything is written: can the tracker be used?
    log = RunLog(output_dir, steps, title, trackers(settings, output_dir))
    Trainer(..., callbacks=[log, *log.trackers])                 # TrainingArguments(report_to="none", project=PROJECT)

Each puts its files below the output directory, continues the same run after a resume, and has `samples` and `close`. Of
several processes only the first has trackers.
"""

import importlib.util
import os
import secrets
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from mot.training.run_log import warn_on_write_error
from mot.training.settings import RunSettings

PROJECT = "mixture-of-thoughts"
WANDB_RUN_ID = "wandb_run_id"  # not in run.json, because a resume writes that anew


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
