"""Train a mixture of thoughts, from settings to a directory that plain transformers loads.

    result = train(TrainSettings(train_file="data/shakespeare.txt", vocab_size=100, hidden_size=128, num_layers=2))
    result = train(AdaptSettings(base_model="Qwen/Qwen3-0.6B", train_file="data/rows.jsonl"))

What differs between the two kinds of run is in recipes.py. `train` reads the data, claims the output directory, resumes
from a checkpoint if asked, runs mot.training.em, and publishes the model. With `torchrun` every process calls the same
function; the first of them writes.
"""

import math
import os
import shutil
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from mot import tasks
from mot.data.load import Data, load_data
from mot.runtime.files import CONFIGURATIONS, WRITE_ERRORS, disk_is_full
from mot.runtime.lock import exclusive
from mot.runtime.remote import Mirror, is_remote
from mot.runtime.signals import SignalHandler
from mot.training.checkpoint import find
from mot.training.directory import HISTORY, claim, require_ours, require_space
from mot.training.dry_run import dry_run, out_of_memory
from mot.training.em import MixtureTrainer
from mot.training.preflight import check_rows, run_verifier
from mot.training.publish import publish_model
from mot.training.recipes import Adapting, FromScratch, recipe_of
from mot.training.resumption import Resumption, facts
from mot.training.run_log import RunLog
from mot.training.settings import RunSettings
from mot.training.tracking import WANDB_RUN_ID, require, trackers


@dataclass
class Result:
    """What a run wrote, where, and the evaluation of what it published."""

    output_dir: str
    remote: str | None  # where it was uploaded to
    start: int  # the step that it resumed from, or 0
    steps: int  # the last step
    seconds: float
    metrics: dict[str, float]
    notes: list[str]


def train(settings: RunSettings) -> Result | None:
    """Run what `settings` say. Returns None after --dry_run, and in all processes but the first.

    Raises ValueError for a user's mistake before anything is written, and when training cannot continue (no memory, no
    disk space, no finite loss). SIGTERM and SIGINT end the process with code 143 and 130, after a checkpoint if
    training had begun.
    """
    with SignalHandler() as interruption, tempfile.TemporaryDirectory() as scratch:
        try:
            return _train(settings, interruption, scratch)
        except Exception as e:
            if interruption.signum:  # Ctrl-C also ends a compiler's processes: this error follows from the signal
                print(f"stopped before the step was done ({type(e).__name__})", file=sys.stderr)
                interruption.leave()
            out = isinstance(e, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(e)
            if not out:
                raise
            raise ValueError(out_of_memory(settings, e)) from None


def _train(settings: RunSettings, interruption: SignalHandler, scratch: str) -> Result | None:
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    recipe = recipe_of(settings)
    _check(settings, recipe, world)
    if settings.dry_run:
        data = _load(settings, recipe, Resumption())
        steps = total_steps(settings, data, world)
        run_verifier(settings, data, steps)
        check_rows(settings, data, world)
        print("\n".join(dry_run(settings, data, steps)))
        return None
    remote = settings.output().rstrip("/") if is_remote(settings.output()) else None
    output_dir = f"outputs/{remote.rsplit('/', 1)[-1]}" if remote else settings.output()
    require_ours(output_dir)
    alone = exclusive(Path(output_dir), f"--output_dir {output_dir}") if rank == 0 else nullcontext()
    with alone as lock:
        mirror = _mirror(remote, settings) if remote and rank == 0 else None
        resumption = _resumption(settings, output_dir, remote, scratch)
        data = _load(settings, recipe, resumption)
        steps = total_steps(settings, data, world)
        verify = run_verifier(settings, data, steps)
        check_rows(settings, data, world)
        model = recipe.model(data.tokenizer)
        made_by = facts(settings, data, steps, world) | recipe.facts(model)
        resumption.require(settings, steps, made_by)
        parameters = model.num_parameters(only_trainable=True)
        if rank == 0:
            require_space(output_dir, 4 * parameters + (settings.save_total_limit + 2) * 12 * parameters)
            _claim(settings, output_dir, resumption)
        log = RunLog(output_dir, steps, settings.name(), trackers(settings, output_dir)) if rank == 0 else None
        trainer = MixtureTrainer(
            settings, data, model, steps, output_dir, log, interruption, resumption.step, made_by, mirror, verify
        )
        trainer.seal.lock = lock
        if rank == 0:
            print(opening_line(settings, trainer.args.device, parameters, data, steps, world), file=sys.stderr)
        begin = time.perf_counter()
        try:
            _optimise(trainer, resumption, log)
            _leave_if_stopped(trainer)
            _require_learning(trainer)
            published = publish_model(trainer, settings, parameters, scratch)
        except WRITE_ERRORS as e:
            if not disk_is_full(e):
                raise
            raise ValueError(
                f"--output_dir {output_dir}: the disk is full and the model is not written; "
                "free some space and --resume_from auto"
            ) from None
    if rank:
        return None
    last, seconds = trainer.state.global_step, time.perf_counter() - begin
    result = Result(output_dir, remote, resumption.step, last, seconds, published.metrics, data.notes)
    result.notes += [*recipe.notes(output_dir, result.metrics), published.line]
    if mirror:
        upload(result, model_files(output_dir))
    return result


def opening_line(
    settings: RunSettings, device: torch.device, parameters: int, data: Data, steps: int, world: int
) -> str:
    """Say before the first step what is trained on what: device, precision, parameters, tokens, steps."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    precision = "bfloat16" if settings.bf16 else "float16" if settings.fp16 else "float32"
    matched = settings.matched_steps(steps)
    rows = settings.batch_size * settings.gradient_accumulation_steps * world
    where = f"{name} x {world}" if world > 1 else name
    last = f", the last {matched:,} match verified answers" if matched else ""
    size = f"{data.train.tokens():,} tokens in {len(data.train):,} rows"
    return f"training {parameters:,} parameters on {where} in {precision}: {steps:,} steps of {rows} rows{last}; {size}"


def _load(settings: RunSettings, recipe: FromScratch | Adapting, resumption: Resumption) -> Data:
    """Read the data, with the tokenizer of the checkpoint: a text that has grown would train another one."""
    task_rows = (tasks.training(settings.task, settings.seed), tasks.held_out(settings.task)) if settings.task else None
    return load_data(settings, task_rows, resumption.tokenizer(settings) or recipe.tokenizer(), recipe.general_file)


def _leave_if_stopped(trainer: MixtureTrainer) -> None:
    """End the process if a signal ended training."""
    interruption, state = trainer.stop.interruption, trainer.state
    if interruption.signum and state.is_world_process_zero:
        saved = trainer.seal.saved_at
        kept = f"checkpoint-{saved} is complete" if saved >= 0 else "no checkpoint was written"
        print(
            f"stopped at step {state.global_step} of {trainer.steps}; {kept}; resume with --resume_from auto",
            file=sys.stderr,
        )
    trainer.seal.finish_upload()
    interruption.leave()


def _require_learning(trainer: MixtureTrainer) -> None:
    """Raise ValueError if all updates were skipped: the weights are what they were."""
    trained = trainer.state.global_step - trainer.start
    if trained and not trainer.guard.applied:
        raise ValueError(
            f"--learning_rate {trainer.settings.peak_learning_rate():g}: each of {trained} updates was skipped, so "
            "nothing was learnt and no model is written; lower it, or look at the data"
        )


def _optimise(trainer: MixtureTrainer, resumption: Resumption, log: RunLog | None) -> None:
    """Train to the last step, or to a signal; every finished run has an evaluation of its last step."""
    try:
        with trainer.stop.interruption.deferred():
            if resumption.is_over(trainer.best, trainer.args.output_dir):
                trainer.args.max_steps = resumption.step
                if log:
                    print("no step is left to train: --early_stopping has ended the run", file=sys.stderr)
            trainer.train(resume_from_checkpoint=str(resumption.checkpoint) if resumption.checkpoint else None)
            if trainer.evaluated_at != trainer.state.global_step and not trainer.stop.asked():
                trainer.evaluate()
    finally:
        if log:
            log.close()


def _check(settings: RunSettings, recipe: FromScratch | Adapting, world: int) -> None:
    """Raise ValueError for settings that contradict each other, the machine, or the installed packages.

    A dry run needs neither the machine nor a tracker's login.
    """
    settings.validate()
    recipe.require()
    if settings.dry_run:
        return
    if settings.fp16 and not torch.cuda.is_available():
        raise ValueError("--fp16: needs a GPU and there is none; leave it out, or give --bf16")
    if settings.fsdp and world == 1:
        raise ValueError("--fsdp: shards over several processes and there is one; start with torchrun, or leave it out")
    require(settings)


def _resumption(settings: RunSettings, output_dir: str, remote: str | None, scratch: str) -> Resumption:
    """Find the checkpoint that --resume_from names."""
    if not settings.resume_from:
        return Resumption()
    return Resumption(*find(settings.resume_from, output_dir, remote, scratch))


def _claim(settings: RunSettings, output_dir: str, resumption: Resumption) -> None:
    """Make the output directory this run's own, with the history of the checkpoint."""
    checkpoint = resumption.checkpoint
    if settings.resume_from == "auto":  # starts anew if there is nothing to lose, but not over a finished model
        goes_on, same_run = bool(checkpoint) or not any(Path(output_dir).glob("*.safetensors")), True
    else:
        goes_on = checkpoint is not None and checkpoint.resolve().parent == Path(output_dir).resolve()
        same_run = goes_on or settings.output().rstrip("/") in (settings.resume_from or "")  # of a remote directory
    claim(output_dir, settings.overwrite, goes_on, asdict(settings))
    print("".join(f"{line}\n" for line in resumption.lines), end="", file=sys.stderr)
    for name in HISTORY if checkpoint else ():
        if name == WANDB_RUN_ID and not same_run:  # a branch is a run of its own
            continue
        if not (Path(output_dir) / name).exists() and (checkpoint / name).exists():
            shutil.copyfile(checkpoint / name, Path(output_dir) / name)


# Remote output -------------------------------------------------------------------------------------------------------


def model_files(output_dir: str) -> list[str]:
    """Return the names of a finished run's files, without checkpoints and pages."""
    return [p.name for p in Path(output_dir).iterdir() if p.is_file() and p.name[0] != "."]


def upload(result: Result, names: list[str]) -> None:
    """Upload files and directories of a run to its remote directory, the model's configuration last.

    Raises ValueError that says where the files are.
    """
    try:
        mirror = Mirror(result.remote)
        for name in sorted(names, key=lambda name: name in CONFIGURATIONS):
            mirror.upload(Path(result.output_dir) / name)
    except ValueError as e:
        raise ValueError(f"{e}; everything is in {result.output_dir}, upload it from there") from None


def _mirror(remote: str, settings: RunSettings) -> Mirror:
    if settings.overwrite:
        raise ValueError(
            f"--overwrite: nothing remote is removed; remove {remote} yourself or give another --output_dir"
        )
    mirror = Mirror(remote)
    if mirror.checkpoints() and not settings.resume_from:
        raise ValueError(f"--output_dir {remote}: already holds a run; give another, or resume with --resume_from auto")
    return mirror


def total_steps(settings: RunSettings, data: Data, world: int = 1) -> int:
    """Return the optimizer steps of the run."""
    rows = settings.batch_size * settings.gradient_accumulation_steps * world
    return settings.max_steps or max(1, math.ceil(settings.num_epochs * len(data.train) / rows))
