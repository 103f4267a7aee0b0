"""Train a mixture of thoughts, from settings to a directory that plain transformers loads.

    result = train(TrainSettings(train_file="data/shakespeare.txt", vocab_size=100, hidden_size=128, num_layers=2))
    result = train(AdaptSettings(base_model="Qwen/Qwen3-0.6B", train_file="data/rows.jsonl"))

From nothing, or from a base by adapters: what differs is the tokenizer, the model, and what is saved of it. Reads the data, claims the output directory, goes on from a checkpoint if told to, runs mot.training.em, publishes the model. The
same function runs in every process of `torchrun`; the first of them writes.
"""

import hashlib
import math
import os
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from mot import tasks
from mot.data.load import Data, Windows, load_data
from mot.model import adapters
from mot.model.build import build_model
from mot.model.score import require_branching
from mot.runtime.files import CONFIGURATIONS, WRITE_ERRORS, disk_is_full, publish
from mot.runtime.remote import Mirror, is_remote
from mot.runtime.signals import Interruption
from mot.training import card
from mot.training.checkpoint import HISTORY, claim, differences, find, require_space
from mot.training.costs import LIBRARIES, STATE, activations, cost_of_a_row
from mot.training.costs import parameters as count_parameters
from mot.training.em import MixtureTrainer
from mot.training.settings import AdaptSettings, RunSettings
from mot.training.tracking import METRICS, RunLog, read_metrics, require, trackers

# A checkpoint may be gone on from with other values of these: where data lie (not which), and how they are computed.
FREE = {"train_file", "eval_file", "general_file", "tokenizer", "base_model", "num_epochs", "max_steps"}
FREE |= {"num_workers", "save_memory"}
# And never of these.
SHAPE = {"hidden_size", "num_layers", "num_heads", "num_thoughts", "thought_length", "tokenizer entries", "fsdp"}
SHAPE |= {"base", "lora_rank", "lora_targets"}


@dataclass
class Result:
    """Where a run is and what it came to."""

    output_dir: str
    remote: str | None  # where it was uploaded to
    steps: int
    seconds: float
    metrics: dict[str, float]  # the last evaluation's
    notes: list[str]


def train(settings: RunSettings) -> Result | None:
    """Run what `settings` say and return where it is; None after --dry_run, and in all processes but the first.

    Raises ValueError for a user's mistake before anything is written, and when training cannot go on (no memory, no disk,
    no finite loss). SIGTERM and SIGINT end the process with code 143 and 130, after a checkpoint if training had begun.
    """
    with Interruption() as interruption, tempfile.TemporaryDirectory() as scratch:
        try:
            return _train(settings, interruption, scratch)
        except Exception as e:
            if (
                interruption.signum
            ):  # Ctrl-C reaches a compiler that runs for us, too: what fails now fails of the signal
                print(f"stopped before the step was done ({type(e).__name__})", file=sys.stderr)
                interruption.leave()
            out = isinstance(e, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(e)
            if not out:
                raise
            raise ValueError(out_of_memory(settings, e)) from None


def _train(settings: RunSettings, interruption: Interruption, scratch: str) -> Result | None:
    settings.validate()
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if settings.fp16 and not torch.cuda.is_available():
        raise ValueError("--fp16: needs a GPU and there is none; leave it out, or give --bf16")
    if settings.fsdp and world == 1:
        raise ValueError("--fsdp: shards over several processes and there is one; start with torchrun, or leave it out")
    require(settings)
    if isinstance(settings, AdaptSettings):
        adapters.require(settings)
    task_rows = (tasks.training(settings.task, settings.seed), tasks.held_out(settings.task)) if settings.task else None
    data = load_data(
        settings,
        task_rows,
        adapters.base_tokenizer(settings) if isinstance(settings, AdaptSettings) else None,
        settings.general_file if isinstance(settings, AdaptSettings) else None,
    )
    steps = total_steps(settings, data, world)
    if settings.dry_run:
        print("\n".join(dry_run(settings, data, steps)))
        return None

    remote = settings.output().rstrip("/") if is_remote(settings.output()) else None
    output_dir = f"outputs/{remote.rsplit('/', 1)[-1]}" if remote else settings.output()
    mirror = _mirror(remote, settings) if remote and rank == 0 else None
    model = new_model(settings, data)
    made_by = facts(settings, data, steps, world, model)
    checkpoint, manifest, lines = None, {}, []
    if settings.resume_from:
        checkpoint, manifest, lines = find(settings.resume_from, output_dir, remote, scratch)
    if checkpoint:
        _require_same(settings, checkpoint, manifest, made_by)
        lines.append(f"going on from {checkpoint}")
    parameters = model.num_parameters(only_trainable=True)
    if rank == 0:
        require_space(output_dir, 4 * parameters + (settings.save_total_limit + 1) * 12 * parameters)
        if settings.resume_from == "auto":  # begins anew where nothing is to be lost, not over a finished model
            goes_on = bool(checkpoint) or not any(Path(output_dir).glob("*.safetensors"))
        else:
            goes_on = bool(checkpoint and _inside(checkpoint, output_dir))
        claim(output_dir, settings.overwrite, goes_on, asdict(settings))
        print("".join(f"{line}\n" for line in lines), end="", file=sys.stderr)
        for name in HISTORY if checkpoint else ():
            if not (Path(output_dir) / name).exists() and (checkpoint / name).exists():
                shutil.copyfile(checkpoint / name, Path(output_dir) / name)
    log = RunLog(output_dir, steps, settings.name(), trackers(settings, output_dir)) if rank == 0 else None
    start = manifest["step"] if checkpoint else 0
    trainer = MixtureTrainer(settings, data, model, steps, output_dir, log, interruption, start, made_by, mirror)
    begin = time.perf_counter()
    try:
        with interruption.heeded():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            if trainer.evaluated_at != steps and not trainer.asked_to_stop():
                trainer.evaluate()
    finally:
        if log:
            log.close()
    if interruption.signum and rank == 0:
        kept = f"checkpoint-{trainer.saved_at} is complete" if trainer.saved_at >= 0 else "no checkpoint was written"
        print(
            f"stopped at step {trainer.state.global_step} of {steps}; {kept}; go on with --resume_from auto",
            file=sys.stderr,
        )
    trainer.finish_upload()
    interruption.leave()
    partial = Path(output_dir) / ".partial"
    try:
        trainer.save_model(str(partial))
        if rank == 0:
            card.write(partial, card.card(settings, trainer.last_evaluation, parameters, steps, len(data.train)))
            publish(partial, Path(output_dir))
    except WRITE_ERRORS as e:
        if not disk_is_full(e):
            raise
        raise ValueError(
            f"--output_dir {output_dir}: the disk is full and the model is not written; free some space and --resume_from auto"
        ) from None
    if rank:
        return None
    result = Result(output_dir, remote, steps, time.perf_counter() - begin, trainer.last_evaluation, data.notes)
    result.notes += before_and_after(output_dir, result.metrics) if isinstance(settings, AdaptSettings) else []
    if mirror:
        upload(result, model_files(output_dir))
    return result


def model_files(output_dir: str) -> list[str]:
    """Names of the files of a finished run, its checkpoints and pages apart."""
    return [p.name for p in Path(output_dir).iterdir() if p.is_file() and p.name[0] != "."]


def upload(result: Result, names: list[str]) -> None:
    """Put files and directories of a run into its remote directory, its configuration last. Raises ValueError saying where they are."""
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
        raise ValueError(f"--output_dir {remote}: already holds a run; give another, or go on with --resume_from auto")
    return mirror


def total_steps(settings: RunSettings, data: Data, world: int = 1) -> int:
    """Optimizer steps of the run."""
    rows = settings.batch_size * settings.gradient_accumulation_steps * world
    return settings.max_steps or max(1, math.ceil(settings.num_epochs * len(data.train) / rows))


def new_model(settings: RunSettings, data: Data):
    """What is trained: a fresh model, or a base with adapters."""
    if isinstance(settings, AdaptSettings):
        model = adapters.adapt(settings, data.tokenizer)
        inside, thoughts = model.get_base_model(), model.get_base_model().config.mot["thought_token_ids"]
        require_branching(inside, thoughts, f"--base_model {settings.base_model}")
    else:
        model = inside = build_model(settings, data.tokenizer)
    if settings.bf16 and not torch.accelerator.is_available():
        # On a CPU, SDPA's backward in bfloat16 takes as long as everything else in the step together.
        inside.set_attn_implementation("eager")
    return model


def before_and_after(output_dir: str, metrics: dict[str, float]) -> list[str]:
    """What adapting did to the trunk: lines with the base NLL at step 0, where it is the base model's, and now."""
    first = next((m for m in read_metrics(Path(output_dir) / METRICS) if m["step"] == 0 and "eval_base_nll" in m), {})
    words = {"eval_base_nll": "held-out data", "eval_general_nll": "other text"}
    return [
        f"without a thought, on {words[name]}: {first[name]:.4f} nats per token before, {metrics[name]:.4f} after ({metrics[name] - first[name]:+.4f})"
        for name in words
        if name in first and name in metrics
    ]


def facts(settings: RunSettings, data: Data, steps: int, world: int, model) -> dict:
    """What makes a run the one it is: two runs with the same facts are the same, bit for bit on one CPU."""
    about = {f: m["group"] for f, m in ((f.name, f.metadata) for f in settings.__dataclass_fields__.values())}
    bound = {name: getattr(settings, name) for name, group in about.items() if group != "run" and name not in FREE}
    tokenizer = data.tokenizer.backend_tokenizer.to_str()
    if isinstance(settings, AdaptSettings):
        bound["base"] = model.get_base_model().config.mot["base"]["sha256"]
    else:
        bound["num_heads"] = settings.heads()
    return bound | {
        "learning_rate": settings.peak_learning_rate(),
        "seed": settings.seed,
        "steps": steps,
        "world_size": world,
        "tokenizer entries": len(data.tokenizer),
        "tokenizer": hashlib.sha256(tokenizer.encode()).hexdigest(),
        "data": data.fingerprint,
    }


def _require_same(settings: RunSettings, checkpoint: Path, manifest: dict, made_by: dict) -> None:
    # Checkpoints older than --thought_length do not name it.
    differing = differences({"facts": {"thought_length": 1} | manifest["facts"]}, made_by)
    stuck = [d for d in differing if d.split(":")[0] in SHAPE]
    if stuck:
        raise ValueError(
            f"--resume_from {checkpoint}: made with another {'; another '.join(stuck)}; give the run's own"
        )
    if differing and not settings.allow_changed:
        raise ValueError(
            f"--resume_from {checkpoint}: made with another {'; another '.join(differing)}; give the run's own, or --allow_changed"
        )


def _inside(checkpoint: Path, output_dir: str) -> bool:
    return checkpoint.resolve().parent == Path(output_dir).resolve()


def out_of_memory(settings: RunSettings, e: BaseException) -> str:
    """The guide's advice, with the flags to use."""
    smaller = max(1, settings.batch_size // 2)
    advice = [
        f"--batch_size {smaller} --gradient_accumulation_steps {settings.gradient_accumulation_steps * settings.batch_size // smaller} (the same update)"
    ] * (settings.batch_size > 1)
    advice += ["--save_memory"] * (not settings.save_memory) + ["--bf16"] * (not (settings.bf16 or settings.fp16))
    if isinstance(settings, AdaptSettings):
        advice += ["--load_in 4bit"] * (settings.load_in == "none" and torch.cuda.is_available())
        advice += ["a smaller --base_model"]
    else:
        advice += [f"a smaller model (--hidden_size {settings.hidden_size} --num_layers {settings.num_layers} now)"]
    return f"out of memory ({str(e).splitlines()[0][:120] if str(e) else 'MemoryError'}); give {', or '.join(advice)}"


def dry_run(settings: RunSettings, data: Data, steps: int) -> list[str]:
    """What a run would take: parameters, tokens, steps, memory."""
    adapting, entries = isinstance(settings, AdaptSettings), len(data.tokenizer)
    if adapting:
        with torch.device("meta"):  # shapes without weights
            model = adapters.adapt(settings, data.tokenizer, empty=True)
        count, trained = model.num_parameters(), model.num_parameters(only_trainable=True)
        config = model.get_base_model().config.get_text_config()
        width, layers = config.hidden_size, config.num_hidden_layers
        each = {"4bit": 0.6, "8bit": 1.1}.get(settings.load_in, model.dtype.itemsize)  # bytes of a base's weight
    else:
        count = trained = count_parameters(settings, entries)
        width, layers, each = settings.hidden_size, settings.num_layers, 0
    rows_per_step = settings.batch_size * settings.gradient_accumulation_steps
    mean_length = data.train.tokens() / len(data.train)
    plain = ""
    if settings.num_thoughts > 1:
        lengths, windows = data.train.mean_lengths(), isinstance(data.train, Windows)
        without = replace(settings, num_thoughts=1)
        ratio = cost_of_a_row(settings, *lengths, windows) / cost_of_a_row(without, *lengths, windows)
        plain = f"; a plain model has the same training FLOPs with --num_thoughts 1 --max_steps {round(steps * ratio)}"
    state = STATE * trained + each * (count - trained)
    kept, estep = activations(settings, width, layers, entries, mean_length, settings.fp16 or settings.bf16)
    return [
        *data.notes,
        f"parameters  {count:,}" + f", of which {trained:,} are trained ({trained / count:.2%})" * adapting,
        f"tokens      {data.train.tokens():,} to train on in {len(data.train):,} rows, {data.eval.tokens():,} held out in {len(data.eval):,} rows",
        f"steps       {steps:,} of {rows_per_step} rows: {steps * rows_per_step / len(data.train):.2f} epochs, {steps * rows_per_step * mean_length:,.0f} tokens{plain}",
        f"memory      about {(LIBRARIES + state + max(kept, estep)) / 2**30:.2f} GiB: {LIBRARIES / 2**30:.2f} Python and libraries, "
        f"{state / 2**30:.2f} weights and optimizer, {kept / 2**30:.2f} activations or {estep / 2**30:.2f} E-step",
    ]
