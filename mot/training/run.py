"""Train a mixture of thoughts, from settings to a directory that plain transformers loads.

    result = train(TrainSettings(train_file="data/shakespeare.txt", vocab_size=100, hidden_size=128, num_layers=2))
    result = train(AdaptSettings(base_model="Qwen/Qwen3-0.6B", train_file="data/rows.jsonl"))

What differs between the two kinds of run is in recipes.py. `train` reads the data, claims the output directory, resumes
from a checkpoint if asked, runs mot.training.em, and publishes the model. With `torchrun` every process calls the same
function; the first of them writes.
"""

import hashlib
import math
import os
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from mot import tasks
from mot.data.datasets import Windows
from mot.data.load import Data, load_data
from mot.runtime.files import CONFIGURATIONS, WRITE_ERRORS, disk_is_full, publish
from mot.runtime.remote import Mirror, is_remote
from mot.runtime.signals import SignalHandler
from mot.tasks.verifier import Verify, identity, load_verifier, require_some_valid
from mot.training import card
from mot.training.checkpoint import HISTORY, claim, differences, find, require_space
from mot.training.dry_run import dry_run, out_of_memory
from mot.training.em import MixtureTrainer
from mot.training.recipes import Adapting, FromScratch, recipe_of
from mot.training.run_log import RunLog
from mot.training.settings import RunSettings
from mot.training.tracking import require, trackers

# Settings that may change on resume: the location of data (not its content), the length of the run, how it is computed.
RESUMABLE_CHANGES = {"train_file", "eval_file", "general_file", "tokenizer", "base_model", "num_epochs", "max_steps"}
RESUMABLE_CHANGES |= {"num_workers", "save_memory", "match_steps", "verifier"}
# What may never change, also not with --allow_changed: the checkpoint's tensors would not fit.
ARCHITECTURE = {"hidden_size", "num_layers", "num_heads", "num_thoughts", "thought_length", "tokenizer entries", "fsdp"}
ARCHITECTURE |= {"base", "lora_rank", "lora_targets"}


@dataclass
class Result:
    """What a run wrote, where, and its last evaluation."""

    output_dir: str
    remote: str | None  # where it was uploaded to
    steps: int
    seconds: float
    metrics: dict[str, float]  # the last evaluation's
    notes: list[str]


@dataclass
class Resumption:
    """The checkpoint that a run resumes from (None: a new run), its manifest, and lines to print about it."""

    checkpoint: Path | None = None
    manifest: dict = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    @property
    def step(self) -> int:
        """The step to start from, 0 for a new run."""
        return self.manifest["step"] if self.checkpoint else 0


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
    task_rows = (tasks.training(settings.task, settings.seed), tasks.held_out(settings.task)) if settings.task else None
    data = load_data(settings, task_rows, recipe.tokenizer(), recipe.general_file)
    steps = total_steps(settings, data, world)
    verify = _verifier(settings, data, steps)
    _check_groups(settings, data, world)
    if settings.dry_run:
        print("\n".join(dry_run(settings, data, steps)))
        return None

    remote = settings.output().rstrip("/") if is_remote(settings.output()) else None
    output_dir = f"outputs/{remote.rsplit('/', 1)[-1]}" if remote else settings.output()
    mirror = _mirror(remote, settings) if remote and rank == 0 else None
    model = recipe.model(data.tokenizer)
    made_by = facts(settings, data, steps, world) | recipe.facts(model)
    resumption = _resumption(settings, output_dir, remote, scratch, made_by)
    parameters = model.num_parameters(only_trainable=True)
    if rank == 0:
        require_space(output_dir, 4 * parameters + (settings.save_total_limit + 1) * 12 * parameters)
        _claim(settings, output_dir, resumption)
    log = RunLog(output_dir, steps, settings.name(), trackers(settings, output_dir)) if rank == 0 else None
    trainer = MixtureTrainer(
        settings, data, model, steps, output_dir, log, interruption, resumption.step, made_by, mirror, verify
    )
    begin = time.perf_counter()
    try:
        _optimise(trainer, resumption, log)
        if interruption.signum and rank == 0:
            saved = trainer.seal.saved_at
            kept = f"checkpoint-{saved} is complete" if saved >= 0 else "no checkpoint was written"
            print(
                f"stopped at step {trainer.state.global_step} of {steps}; {kept}; resume with --resume_from auto",
                file=sys.stderr,
            )
        trainer.seal.finish_upload()
        interruption.leave()
        partial = Path(output_dir) / ".partial"
        trainer.save_model(str(partial))
        if rank == 0:
            card.write(partial, card.card(settings, trainer.last_evaluation, parameters, steps, len(data.train)))
            publish(partial, Path(output_dir))
    except WRITE_ERRORS as e:
        if not disk_is_full(e):
            raise
        raise ValueError(
            f"--output_dir {output_dir}: the disk is full and the model is not written; "
            "free some space and --resume_from auto"
        ) from None
    if rank:
        return None
    result = Result(output_dir, remote, steps, time.perf_counter() - begin, trainer.last_evaluation, data.notes)
    result.notes += recipe.notes(output_dir, result.metrics)
    if mirror:
        upload(result, model_files(output_dir))
    return result


def _optimise(trainer: MixtureTrainer, resumption: Resumption, log: RunLog | None) -> None:
    """Train to the last step, or to a signal; every finished run has an evaluation of its last step."""
    try:
        with trainer.stop.interruption.deferred():
            trainer.train(resume_from_checkpoint=str(resumption.checkpoint) if resumption.checkpoint else None)
            if trainer.evaluated_at != trainer.steps and not trainer.stop.asked():
                trainer.evaluate()
    finally:
        if log:
            log.close()


def _check(settings: RunSettings, recipe: FromScratch | Adapting, world: int) -> None:
    """Raise ValueError for settings that contradict each other, the machine, or the installed packages."""
    settings.validate()
    if settings.fp16 and not torch.cuda.is_available():
        raise ValueError("--fp16: needs a GPU and there is none; leave it out, or give --bf16")
    if settings.fsdp and world == 1:
        raise ValueError("--fsdp: shards over several processes and there is one; start with torchrun, or leave it out")
    require(settings)
    recipe.require()


def _verifier(settings: RunSettings, data: Data, steps: int) -> Verify | None:
    """Return what --match_steps asks, None if nothing is matched. Raises ValueError if it cannot teach anything."""
    matched = settings.matched_steps(steps)
    if not matched:
        return None
    if matched > steps:
        raise ValueError(f"--match_steps {matched}: the run has {steps} steps, of which they are the end; give fewer")
    if isinstance(data.train, Windows):
        raise ValueError(f"--match_steps {matched}: plain text has no prompts; give .jsonl rows, or leave it out")
    verify = load_verifier(settings.verifier or settings.task)
    if settings.verifier:
        rows = [data.train[i][:2] for i in range(min(64, len(data.train)))]
        texts = [tuple(data.tokenizer.batch_decode(list(row), skip_special_tokens=True)) for row in rows]
        require_some_valid(verify, texts, f"--verifier {settings.verifier}")
    return verify


def _check_groups(settings: RunSettings, data: Data, world: int) -> None:
    """Raise ValueError if --group_prompts cannot give the rows of every prompt to different thoughts in one step."""
    if not settings.group_prompts:
        return
    if isinstance(data.train, Windows):
        raise ValueError("--group_prompts: plain text has no prompts; give .jsonl rows, or leave it out")
    numbers = data.train.prompt_numbers()
    counts = np.bincount(numbers)
    most, row = int(counts.max()), int((numbers == counts.argmax()).argmax())
    prompt = data.tokenizer.decode(data.train[row][0], skip_special_tokens=True)
    step_rows = settings.batch_size * settings.gradient_accumulation_steps * world
    for limit, name in ((settings.num_thoughts, "--num_thoughts"), (step_rows, "rows of an update: --batch_size")):
        if most > limit:
            raise ValueError(
                f"--group_prompts: the prompt {prompt[:60]!r} has {most} rows, more than {name} {limit}; "
                "keep fewer of them, or leave --group_prompts out"
            )


def _resumption(settings: RunSettings, output_dir: str, remote: str | None, scratch: str, made_by: dict) -> Resumption:
    """Find the checkpoint that --resume_from names. Raises ValueError if another run wrote it."""
    if not settings.resume_from:
        return Resumption()
    found = Resumption(*find(settings.resume_from, output_dir, remote, scratch))
    if found.checkpoint:
        _require_same(settings, found.checkpoint, found.manifest, made_by)
        found.lines.append(f"resuming from {found.checkpoint}")
    return found


def _claim(settings: RunSettings, output_dir: str, resumption: Resumption) -> None:
    """Make the output directory this run's own, with the history of the checkpoint."""
    checkpoint = resumption.checkpoint
    if settings.resume_from == "auto":  # starts anew if there is nothing to lose, but not over a finished model
        goes_on = bool(checkpoint) or not any(Path(output_dir).glob("*.safetensors"))
    else:
        goes_on = checkpoint is not None and checkpoint.resolve().parent == Path(output_dir).resolve()
    claim(output_dir, settings.overwrite, goes_on, asdict(settings))
    print("".join(f"{line}\n" for line in resumption.lines), end="", file=sys.stderr)
    for name in HISTORY if checkpoint else ():
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


# What identifies a run -----------------------------------------------------------------------------------------------


def total_steps(settings: RunSettings, data: Data, world: int = 1) -> int:
    """Return the optimizer steps of the run."""
    rows = settings.batch_size * settings.gradient_accumulation_steps * world
    return settings.max_steps or max(1, math.ceil(settings.num_epochs * len(data.train) / rows))


def facts(settings: RunSettings, data: Data, steps: int, world: int) -> dict:
    """Return what identifies a run: two runs with the same facts are equal, bit for bit on one CPU."""
    bound = {
        name: getattr(settings, name)
        for name, f in settings.__dataclass_fields__.items()
        if f.metadata["group"] != "run" and name not in RESUMABLE_CHANGES
    }
    return bound | {
        "learning_rate": settings.peak_learning_rate(),
        "seed": settings.seed,
        "steps": steps,
        "matched steps": settings.matched_steps(steps),
        "verifier function": identity(settings.verifier) if settings.verifier else None,
        "world_size": world,
        "tokenizer entries": len(data.tokenizer),
        "tokenizer": hashlib.sha256(data.tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "data": data.fingerprint,
    }


def _require_same(settings: RunSettings, checkpoint: Path, manifest: dict, made_by: dict) -> None:
    differing = differences(manifest, made_by)
    fixed = [d for d in differing if d.split(":")[0] in ARCHITECTURE]
    where = f"--resume_from {checkpoint}: made with another"
    if fixed:
        raise ValueError(f"{where} {'; another '.join(fixed)}; give the run's own")
    if differing and not settings.allow_changed:
        raise ValueError(f"{where} {'; another '.join(differing)}; give the run's own, or --allow_changed")
