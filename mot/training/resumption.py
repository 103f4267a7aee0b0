"""What a run resumes from, and how it may differ from the run that wrote the checkpoint.

resumption = Resumption(*find(...))              # Resumption() for a new run
resumption.tokenizer(settings)                   # the checkpoint's own
resumption.require(settings, steps, made_by)     # ValueError for what may not change, or if nothing is left to do
made_by = facts(settings, data, steps, world)    # what identifies a run, for the manifest of its checkpoints
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase, TrainerState

from mot.data.load import Data
from mot.model.tokenizer import identity, load_tokenizer
from mot.tasks.verifier import identity as identity_of
from mot.training.best import KeepBest
from mot.training.checkpoint import differences
from mot.training.settings import RunSettings, TrainSettings

# Settings that may change on resume: the location of data (not its content), the length of the run, how it is computed.
RESUMABLE_CHANGES = {"train_file", "eval_file", "general_file", "tokenizer", "base_model", "num_epochs", "max_steps"}
RESUMABLE_CHANGES |= {"num_workers", "save_memory", "match_steps", "verifier"}
# What may never change, also not with --allow_changed: the checkpoint's tensors would not fit.
FIXED = {"hidden_size", "num_layers", "num_heads", "num_thoughts", "thought_length", "tokenizer entries", "fsdp"}
FIXED |= {"base", "lora_rank", "lora_targets", "load_in"}
FIXED |= {"tokenizer", "vocab_size"}  # every id would mean something else
FIXED |= {"optimizer"}  # the checkpoint has the state of the other one
FIXED |= {"fp16"}  # the checkpoint has the state of the loss scaling, or lacks it


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

    def tokenizer(self, settings: RunSettings) -> PreTrainedTokenizerBase | None:
        """Return the checkpoint's own tokenizer; None for a new run. Raises ValueError if --tokenizer is another."""
        if self.checkpoint is None:
            return None
        tokenizer = AutoTokenizer.from_pretrained(self.checkpoint, trust_remote_code=False)
        tokenizer.padding_side = "left"
        asked = settings.tokenizer if isinstance(settings, TrainSettings) else None
        if asked and identity(load_tokenizer(asked, settings.num_thoughts)) != identity(tokenizer):
            raise ValueError(
                f"--tokenizer {asked}: is not the tokenizer of {self.checkpoint}, whose ids would mean something else; "
                "leave it out, or train a new run"
            )
        return tokenizer

    def require(self, settings: RunSettings, steps: int, made_by: dict) -> None:
        """Raise ValueError if this run may not resume from the checkpoint, or has nothing to do."""
        if self.checkpoint is None:
            return
        where = f"--resume_from {self.checkpoint}"
        length = f"--max_steps {settings.max_steps}" if settings.max_steps else f"--num_epochs {settings.num_epochs:g}"
        if steps < self.step:
            raise ValueError(
                f"{length}: makes {steps:,} steps, counted from the first, and {self.checkpoint} is at step "
                f"{self.step:,} already; give more, or an earlier checkpoint"
            )
        differing = differences(self.manifest, made_by)
        fixed = [d for d in differing if d.split(":")[0] in FIXED]
        if fixed:
            raise ValueError(f"{where}: made with another {'; another '.join(fixed)}; give the run's own")
        if differing and not settings.allow_changed:
            raise ValueError(
                f"{where}: made with another {'; another '.join(differing)}; give the run's own, or --allow_changed"
            )
        if differing and steps == self.step:
            raise ValueError(
                f"{length}: no step is left, so another {'; another '.join(differing)} would have no effect; "
                f"give more than {self.step:,} steps, or an earlier checkpoint"
            )
        left = f"{steps - self.step:,} of {steps:,} steps are left" if steps > self.step else "no step is left to train"
        self.lines.append(f"resuming from {self.checkpoint}: {left} ({length} counts from the first step)")

    def is_over(self, best: KeepBest, output_dir: str) -> bool:
        """Did the run end by --early_stopping, so that there is nothing left to train?"""
        if self.checkpoint is None:
            return False
        return best.is_over(output_dir, TrainerState.load_from_json(str(self.checkpoint / "trainer_state.json")))


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
        "verifier function": identity_of(settings.verifier) if settings.verifier else None,
        "world_size": world,
        "tokenizer entries": len(data.tokenizer),
        "tokenizer": hashlib.sha256(data.tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "data": data.fingerprint,
    }
