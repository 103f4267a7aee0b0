"""What happens around the objective, on the Trainer's public hooks.

    SpikeGuard      on_pre_optimizer_step   clip the gradients; skip an update from NaN, infinity or a spike
    StopOnSignal    on_step_end             a signal becomes a checkpoint of this step and the end of training
    SealCheckpoint  on_save                 what the Trainer does not write, the manifest, pruning, upload
    FlagsGovern     on_train_begin          intervals, learning rate and weight decay win over the checkpoint's
    LogWindow       (no callback)           sums between two log lines

State of a run that the Trainer does not keep has `save(directory)` and `load(directory)`, as SpikeGuard has:
SealCheckpoint saves it with every checkpoint and MixtureTrainer.train loads it. (transformers' ExportableState is not
enough: it makes a new object from numbers in JSON, without its settings, and moves it behind all other callbacks.)
"""

import json
import math
import shutil
import statistics
import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather, reduce
from torch import Tensor
from transformers import TrainerCallback

from mot.runtime.files import WRITE_ERRORS, atomic_write_text, disk_is_full
from mot.runtime.lock import Lock
from mot.runtime.remote import MANIFEST, Mirror, step_of
from mot.runtime.signals import SignalHandler
from mot.thoughts import effective_thoughts
from mot.training.best import KeepBest
from mot.training.checkpoint import bytes_on_disk, checkpoints, discard, discard_later, prune, seal
from mot.training.directory import HISTORY, free_bytes
from mot.training.settings import RunSettings

MAX_NORM = 1.0  # gradients are clipped to this
SPIKE, WINDOW = 6.0, 128  # a loss SPIKE standard deviations above the mean of the last WINDOW losses is an anomaly
MIN_REL_STD = 0.02  # of the mean: the least deviation that is assumed, or a plateau's end would be a spike
PATIENCE = 10  # updates skipped in a row before the run ends with an error
SPIKE_STATE = "watch.json"  # in a checkpoint: the losses that a spike is measured against


class SpikeGuard(TrainerCallback):
    """Clip gradients, and skip updates that would do harm.

    The training step adds its language-model loss, this process's share, to `step_loss`. Raises ValueError with advice
    after PATIENCE skipped updates in a row.
    """

    def __init__(self, settings: RunSettings):
        self.settings, self.step_loss = settings, 0.0
        self.loss_window: deque[float] = deque(maxlen=WINDOW)
        self.skipped = 0  # updates in a row
        self.applied = 0  # updates of this process's life

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        """The last moment before the update. The Trainer itself does not clip (max_grad_norm is 0)."""
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)  # sharded under FSDP
        loss = float(reduce(torch.as_tensor(self.step_loss, device=PartialState().device), "sum"))
        self.step_loss = 0.0
        anomaly = self.anomaly(loss, norm)
        if anomaly is None:
            self.loss_window.append(loss)
            self.skipped = 0
            self.applied += 1
            return
        self.skipped += 1
        for parameter in model.parameters():
            parameter.grad = None  # an optimizer skips parameters without gradient, and keeps their moments
        step = state.global_step + 1
        if state.is_world_process_zero:
            print(f"step {step}: {anomaly}; update skipped", file=sys.stderr)
        if self.skipped == PATIENCE:
            rate, warmup = self.settings.peak_learning_rate(), self.settings.warmup_ratio
            good = last_good(args.output_dir, step - PATIENCE)
            way_out = f"--resume_from {good} --allow_changed" if good else "start again, no checkpoint is older"
            raise ValueError(
                f"step {step}: {anomaly}, {PATIENCE} updates in a row; lower --learning_rate {rate:g} "
                f"(try {rate / 4:.2g}) or raise --warmup_ratio {warmup:g} (try {max(0.2, 2 * warmup):g}), and {way_out}"
            )

    def anomaly(self, loss: float, norm: float) -> str | None:
        """Return why an update must be skipped, or None: NaN, infinity, or a loss far above the last ones."""
        if not math.isfinite(loss) or not math.isfinite(norm):
            return f"loss is {loss:.4g} and gradient norm {norm:.4g}"
        if len(self.loss_window) == WINDOW:
            mean = statistics.fmean(self.loss_window)
            deviation = max(statistics.pstdev(self.loss_window), MIN_REL_STD * mean)
            if loss > mean + SPIKE * deviation:
                return f"loss {loss:.4g} is {(loss - mean) / deviation:.1f} standard deviations above the last {WINDOW}"
        return None

    def save(self, directory: Path) -> None:
        state = {"recent": list(self.loss_window), "skipped": self.skipped}
        atomic_write_text(directory / SPIKE_STATE, json.dumps(state))

    def load(self, directory: Path) -> None:
        state = json.loads((directory / SPIKE_STATE).read_text())
        self.loss_window = deque(state["recent"], WINDOW)  # a resumed run has all its PATIENCE again


def last_good(output_dir: str, step: int) -> Path | None:
    """Return the newest complete checkpoint up to `step` that was not written between skipped updates, or None."""
    found = [p for p in checkpoints(output_dir) if step_of(p.name) <= step and (p / MANIFEST).is_file()]
    good = [p for p in found if not json.loads((p / SPIKE_STATE).read_text())["skipped"]]
    return good[-1] if good else None


class SealCheckpoint(TrainerCallback):
    """Complete each checkpoint that the Trainer wrote, and upload it to `mirror`.

    The `keep` newest stay, and `best`. While `guard` skips updates none is removed: all newer ones may lie inside the
    failure. `facts` go into the manifest, `parts` are saved with the checkpoint. `saved_at` is the step of the last
    complete one, -1 if there is none. A full disk costs a checkpoint, not the run: without room, no checkpoint is
    begun. `lock`, if there is one, must still be held before anything is written.
    """

    def __init__(self, keep: int, facts: dict, mirror: Mirror | None, parts: list, guard: SpikeGuard, best: KeepBest):
        self.keep, self.facts, self.mirror, self.parts, self.guard, self.best = keep, facts, mirror, parts, guard, best
        self.lock: Lock | None = None
        self.saved_at, self.size = -1, 0
        self.uploader, self.upload = ThreadPoolExecutor(1), None

    def on_train_begin(self, args, state, control, model=None, **_):
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.size = 12 * trained  # bytes: fp32 weights and two moments, until a checkpoint has been measured

    def on_step_end(self, args, state, control, **_):
        """The default callback has decided before this one whether a checkpoint is due."""
        self.require_room(args, state, control)

    def on_evaluate(self, args, state, control, **_):
        """A new best is saved although no checkpoint is due."""
        self.require_room(args, state, control)

    def require_room(self, args, state, control) -> None:
        """Take the decision back if the disk has less room than the last checkpoint took."""
        if control.should_save and PartialState().num_processes == 1 and free_bytes(args.output_dir) < self.size:
            control.should_save = False
            self._say_full(state.global_step)

    def begin(self, directory: Path) -> None:
        """Called by all processes before the Trainer writes a checkpoint to `directory`."""
        self.finish_upload()  # a directory that is being uploaded must not be pruned
        if self.lock:
            self.lock.require()
        if PartialState().is_main_process:
            discard(directory)
        PartialState().wait_for_everyone()

    def on_save(self, args, state, control, **_):
        step, directory = state.global_step, Path(args.output_dir) / f"checkpoint-{state.global_step}"
        PartialState().wait_for_everyone()
        try:
            if state.is_world_process_zero:
                self._seal(directory, step, state.best_global_step, args.save_steps)
        except WRITE_ERRORS as e:
            if not disk_is_full(e) or PartialState().num_processes > 1:
                raise
            discard(directory)
            self._say_full(step)
            return
        self.saved_at = step
        if state.is_world_process_zero and self.mirror:
            self.upload = self.uploader.submit(self._upload, directory, state.best_global_step, self.guard.skipped)

    def finish_upload(self) -> None:
        """Wait for the checkpoint that is being uploaded, if there is one."""
        if self.upload:
            self.upload.result()

    def _seal(self, directory: Path, step: int, best: int | None, every: int) -> None:
        for name in HISTORY:
            if (directory.parent / name).is_file():
                shutil.copyfile(directory.parent / name, directory / name)
        for part in self.parts:
            part.save(directory)
        seal(directory, step, self.facts)
        self.size = bytes_on_disk(directory)
        discard_later(str(directory.parent), step)
        if not self.guard.skipped:
            if step == best and self.best.superseded and self.best.superseded % every:  # it was kept as the best alone
                discard(directory.with_name(f"checkpoint-{self.best.superseded}"))
            prune(str(directory.parent), self.keep, best)

    def _upload(self, directory: Path, best: int | None, skipped: int) -> None:
        """In its own thread, while training continues."""
        try:
            self.mirror.upload(directory)
            self.mirror.discard_later(directory.name)
            if not skipped:
                self.mirror.prune(self.keep, f"checkpoint-{best}")
        except ValueError as e:
            print(f"{directory.name} is not uploaded, the next one will be tried: {e}", file=sys.stderr)

    def _say_full(self, step: int) -> None:
        print(
            f"step {step}: the disk is full, checkpoint-{step} is not written; older checkpoints stay", file=sys.stderr
        )


class StopOnSignal(TrainerCallback):
    """End training after the step in which a signal arrives, with a checkpoint of that step."""

    def __init__(self, interruption: SignalHandler, seal: SealCheckpoint):
        self.interruption, self.seal = interruption, seal

    def asked(self) -> bool:
        """Return whether any process received a signal. All processes get the same answer, and the signal's number."""
        signum = self.interruption.signum or 0
        if PartialState().num_processes > 1:
            signum = int(gather(torch.tensor(signum, device=PartialState().device)).max())
        self.interruption.signum = signum or None
        return signum != 0

    def end(self, state, control) -> None:
        """Make this step the last, and save it if it is not saved."""
        control.should_training_stop = True
        control.should_evaluate = False
        control.should_save = self.seal.saved_at != state.global_step

    def on_step_end(self, args, state, control, **_):
        if self.asked():
            self.end(state, control)


class FlagsGovern(TrainerCallback):
    """A resumed Trainer takes intervals, learning rate and weight decay of the checkpoint; the flags decide instead.

    If they are the checkpoint's own, this changes no bit.
    """

    def on_train_begin(self, args, state, control, optimizer=None, lr_scheduler=None, **_):
        state.compute_steps(args, state.max_steps)
        groups, schedule = optimizer.param_groups, getattr(lr_scheduler, "scheduler", lr_scheduler)
        schedule.base_lrs = [args.learning_rate] * len(groups)
        decays = [args.weight_decay] * (len(groups) - 1) + [0.0]  # the last group is the one that does not decay
        for group, decay, factor in zip(groups, decays, schedule.lr_lambdas, strict=True):
            group["weight_decay"], group["initial_lr"] = decay, args.learning_rate
            group["lr"] = args.learning_rate * factor(schedule.last_epoch)
        schedule.get_last_lr()[:] = [group["lr"] for group in groups]  # what the next log line says


class LogWindow:
    """Sums since the last log line. Losses stay on their device, so that a step needs no synchronisation."""

    def __init__(self, num_thoughts: int):
        self.num_thoughts = num_thoughts
        self.reset()

    def reset(self) -> None:
        self.losses: dict[str, Tensor] = {}
        self.usage = torch.zeros(self.num_thoughts).double()  # rows that each thought won
        self.matching: dict[str, float] = {}  # prompts that were matched, with their distinct answers and pool sizes
        self.tokens = self.contrasted = 0
        self.since, self.first_step = time.perf_counter(), None

    def add_step(self, step: int, tokens: int, contrasted: bool) -> None:
        """Add an optimizer step: text tokens of all processes, and whether it compares thoughts."""
        self.first_step = step if self.first_step is None else self.first_step
        self.tokens += tokens
        self.contrasted += contrasted

    def add_usage(self, usage_N: Tensor) -> None:
        self.usage = self.usage + usage_N

    def add_matching(self, totals: dict[str, float]) -> None:
        """Add a step's matched prompts of all processes, and the answers that were found for them."""
        for name in ("prompts", "distinct", "pool"):
            self.matching[name] = self.matching.get(name, 0.0) + totals[name]

    def add_losses(self, losses: dict[str, Tensor]) -> None:
        """Add this process's shares of a step's means."""
        for name, value in losses.items():
            self.losses[name] = self.losses.get(name, 0) + value

    def averages(self, step: int, thoughts: bool, temperature: float) -> dict[str, float]:
        """Return means over the steps up to `step`, speed, memory, and each thought's share of the rows.

        With thought sequences (L > 1), `usage` and `effective_thoughts` are of the winners' first tokens, 1 .. N.
        """
        steps = max(1, step - self.first_step)
        names = ("lm_loss", "router_loss", "entropy", "diversity")
        # Every process has to reduce the same sums; a process without such a row has no sum of that name.
        device = PartialState().device
        sums = torch.stack([torch.as_tensor(self.losses.get(name, 0.0), device=device) for name in names])
        of_name = dict(zip(names, reduce(sums, "sum").tolist(), strict=True))
        found = {"lm_loss": of_name["lm_loss"] / steps}
        if thoughts:
            found |= {name: of_name[name] / steps for name in ("router_loss", "entropy")}
        if self.contrasted:  # not every step compares thoughts: a mean over those that do, or no number at all
            found["diversity"] = of_name["diversity"] / self.contrasted
        if self.matching.get("prompts"):
            found |= {name: self.matching[name] / self.matching["prompts"] for name in ("distinct", "pool")}
        found["tokens_per_second"] = self.tokens / (time.perf_counter() - self.since)
        found["peak_memory_gib"] = peak_memory() / 2**30
        if self.usage.sum():
            found |= {"effective_thoughts": effective_thoughts(self.usage).item(), "temperature": temperature}
            found |= {f"usage/{k}": share for k, share in enumerate((self.usage / self.usage.sum()).tolist())}
        return found


def peak_memory() -> int:
    """Return the most bytes that were allocated on the GPU, or else that this process has held."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
