"""The settings of a training run. Names and defaults are those of the user's guide. No torch here."""

import re
from dataclasses import dataclass

from mot.data.settings import DataSettings, TokenizerSettings
from mot.model.settings import AdapterSettings, ModelSettings
from mot.runtime.flags import setting
from mot.tasks import OWN_ROWS, TASKS

ANNEAL = 0.6  # share of the steps in which the E-step's temperature falls, geometrically
DIVERSITY_FROM = ANNEAL  # share of the steps without diversity loss; earlier it would fix the first differences
DIVERSITY_SHARE, DIVERSITY_THOUGHTS = 1 / 16, 4  # share of the rows, and thoughts compared: the winner and three others

OPTIMIZERS = ("adamw", "muon")
SCORED_OF_TEXT = 32  # tokens: a window has no end of its own, so that its first tokens are scored
ESTEP_FROM = 1 / 5  # share of the steps in which --estep_rows scores all rows
SLOTS, COPIES = 2, 16  # --match_steps: rows that learn for each prompt, and samples without a thought in one round
COLLIDING = 1 / 8  # share of the prompts on which thoughts collide, for estimates of costs (measured on `spellings`)

TRACKERS = ("tensorboard", "trackio")


@dataclass
class RunSettings(DataSettings):
    """Settings of training from scratch and of adapting."""

    task: str | None = setting(
        None, f"a built-in task with known answers instead of a file: {', '.join(OWN_ROWS)}", group="data"
    )
    diversity_weight: float = setting(0.1, "weight of the divergence between thoughts", group="thoughts", low=0)
    entropy_weight: float = setting(
        0.05, "weight of the entropy of the router's mean probabilities", group="thoughts", low=0
    )
    router_weight: float = setting(0.1, "weight of the router's cross-entropy", group="thoughts", low=0)
    thought_dropout: float = setting(
        0.1,
        "share of rows without thought tokens; they keep the trunk a language model",
        group="thoughts",
        low=0,
        high=1,
    )
    estep_tokens: int | None = setting(
        None,
        "tokens of a continuation, or of a key, by which the E-step scores a thought; 0: all; default: 32 of plain "
        "text, all of a row",
        "tokens",
        "thoughts",
        low=0,
    )
    estep_rows: float = setting(
        1.0,
        "share of the updates, after the first fifth, that score all their rows; in the others a row keeps the thought "
        "that it won last. For rows that are seen more than once",
        group="thoughts",
        above=0,
        high=1,
    )
    group_prompts: bool = setting(
        False,
        "rows of one prompt stay together in an update and are won by different thoughts: for data with several "
        "answers to a prompt, at most one for each thought",
        group="thoughts",
    )
    estep_temperature: float = setting(
        6.0,
        "initial temperature of the responsibilities (1: the exact posterior), annealed to 1/20 of it",
        "nats per continuation",
        "thoughts",
        above=0,
    )
    match_steps: int | None = setting(
        None,
        "last updates of the run, in which thoughts that give the same answer learn other verified answers; default: "
        "a third of the run with --task forks or spellings, else 0",
        "steps",
        "thoughts",
        low=0,
    )
    verifier: str | None = setting(
        None,
        "what --match_steps asks: a task, or FILE.py:FUNCTION(prompt, text) that returns the answer in one spelling, "
        "or None",
        group="thoughts",
    )
    batch_size: int = setting(32, "rows per forward pass", "rows", "training", low=1)
    gradient_accumulation_steps: int = setting(1, "forward passes per update", group="training", low=1)
    num_epochs: float = setting(10, "passes over the data", "epochs", "training", above=0)
    max_steps: int | None = setting(None, "updates; overrides num_epochs", "steps", "training", low=1)
    learning_rate: float | None = setting(
        None, "peak learning rate; default: 0.384 / hidden_size, at most 2e-3", group="training", above=0
    )
    warmup_ratio: float = setting(
        0.1,
        "share of the steps in which the learning rate rises; then it falls as a cosine to 5 %%",
        group="training",
        low=0,
        high=1,
    )
    weight_decay: float = setting(0.1, "weight decay of AdamW, on matrices", group="training", low=0)
    fp16: bool = setting(False, "mixed precision with loss scaling (GPU)", group="training")
    bf16: bool = setting(False, "mixed precision in bfloat16 (GPU or CPU)", group="training")
    compile: bool = setting(False, "compile the model with torch.compile", group="training")
    save_memory: bool = setting(
        False, "recompute activations in the backward pass: less memory, more time", group="training"
    )
    fsdp: bool = setting(
        False,
        "with torchrun: shard weights and optimizer over the processes (FSDP) instead of copying them",
        group="training",
    )
    output_dir: str | None = setting(None, "output directory; default outputs/RUN_NAME")
    run_name: str | None = setting(None, "name of the run; default: from data, thoughts and seed")
    save_every: int | None = setting(None, "checkpoint interval; default: a tenth of the run", "steps", low=1)
    save_total_limit: int = setting(3, "complete checkpoints to keep, beside the best", "checkpoints", low=1)
    eval_every: int | None = setting(None, "evaluation interval; default: a fifth of the run", "steps", low=1)
    eval_rows: int = setting(128, "held-out rows of each evaluation, evenly spaced; 0: all", "rows", low=0)
    publish: str | None = setting(
        None,
        "best: the step with the lowest held-out mixture NLL, whose checkpoint is kept; last: the end of the run; "
        "default: best; last with --task or --match_steps, where the NLL of one answer says little about a set of them",
    )
    early_stopping: int | None = setting(
        None, "end after so many evaluations in a row without a new best; default: never", "evaluations", low=1
    )
    resume_from: str | None = setting(
        None, "auto: the newest valid checkpoint of output_dir, if any; or the directory of a checkpoint or run"
    )
    allow_changed: bool = setting(False, "resume although data or settings differ from the checkpoint's")
    overwrite: bool = setting(False, "replace the run that output_dir already holds")
    use_wandb: bool = setting(False, "log to Weights & Biases, project mixture-of-thoughts")
    track: str | None = setting(None, "also log to tensorboard or trackio, below output_dir")
    dry_run: bool = setting(False, "print parameters, tokens, steps and memory, and stop")

    def validate(self) -> None:
        """Raise ValueError with one line that names the flag, the value and the remedy."""
        super().validate()
        if (self.train_file is None) == (self.task is None):
            both = "both are" if self.task else "neither is"
            raise ValueError(
                f"--train_file or --task: {both} given; give exactly one, e.g. --train_file data.txt or --task forks"
            )
        if self.task in TASKS and self.task not in OWN_ROWS:
            raise ValueError(f"--task {self.task}: its rows come from a file; give --train_file (docs/tasks.md)")
        if self.task and self.task not in OWN_ROWS:
            raise ValueError(f"--task {self.task}: unknown; there is {', '.join(OWN_ROWS)}")
        if self.eval_file and self.task:
            raise ValueError(f"--eval_file {self.eval_file}: a task brings its own held-out prompts; leave it out")
        if self.track and self.track not in TRACKERS:
            raise ValueError(f"--track {self.track}: unknown; there is {', '.join(TRACKERS)}, and --use_wandb")
        if self.verifier and not self.match_steps:
            raise ValueError(f"--verifier {self.verifier}: only --match_steps uses it; give --match_steps, e.g. 500")
        if self.match_steps:
            self._check_matching()
        if self.estep_rows < 1 and (self.thought_length > 1 or self.num_thoughts == 1):
            raise ValueError(
                f"--estep_rows {self.estep_rows:g}: remembers which of several thoughts of one token a row has won; "
                "leave it out"
            )
        if self.group_prompts and self.thought_length > 1:
            raise ValueError(
                "--group_prompts: thought sequences are others in every update; leave --thought_length out"
            )
        if self.run_name is not None and (self.run_name in ("", ".", "..") or set("/\\\0") & set(self.run_name)):
            raise ValueError(
                f"--run_name {self.run_name}: is a name and no path; --output_dir says where a run is written"
            )
        if self.allow_changed and not self.resume_from:
            raise ValueError("--allow_changed: changes nothing in a new run; give --resume_from, or leave it out")
        if self.publish not in (None, "best", "last"):
            raise ValueError(f"--publish {self.publish}: unknown; there is best, last")
        if self.fp16 and self.bf16:
            raise ValueError("--fp16 and --bf16: give one of them")

    def _check_matching(self) -> None:
        flag = f"--match_steps {self.match_steps}"
        if not self.verifier and (self.task is None or TASKS[self.task].creative):
            raise ValueError(f"{flag}: needs --verifier, a task or FILE.py:FUNCTION, that tells answers apart")
        if self.max_steps and self.match_steps > self.max_steps:
            raise ValueError(f"{flag}: is more than --max_steps {self.max_steps}, of which it is the end; give fewer")
        if self.num_thoughts == 1:
            raise ValueError(f"{flag}: --num_thoughts 1 has no thoughts to match; leave it out")
        if self.thought_length > 1:
            raise ValueError(f"{flag}: matches thoughts of one token; leave out --thought_length {self.thought_length}")
        if self.fsdp:
            raise ValueError(f"{flag}: generates texts, which a model sharded by --fsdp cannot; leave out one of them")

    def matched_steps(self, steps: int) -> int:
        """Return how many updates of a run of `steps` match: --match_steps, or the share that the task knows."""
        if self.match_steps is not None:
            return self.match_steps
        can = self.task and self.num_thoughts > 1 and self.thought_length == 1 and not self.fsdp
        return round(TASKS[self.task].match_share * steps) if can else 0

    def scored_tokens(self, windows: bool) -> int:
        """Return the most tokens of a continuation that the E-step scores, 0 for all; `windows`: plain text."""
        if self.estep_tokens is not None:
            return self.estep_tokens
        return SCORED_OF_TEXT if windows else 0

    def name(self) -> str:
        """Return the run's name."""
        file = (self.train_file or "").split("?")[0].rstrip("/").split("/")[-1].rsplit(".", 1)[0]
        source = self.task or re.sub(r"[^\w.-]", "", file).strip("-.") or "data"  # a pattern, or - for a pipe
        return self.run_name or f"{source}-{self.num_thoughts}thoughts-seed{self.seed}"

    def output(self) -> str:
        """Return where the run is written."""
        return self.output_dir or f"outputs/{self.name()}"

    def published(self) -> str:
        """Return which step is published: best or last."""
        return self.publish or ("last" if self.task or self.match_steps else "best")


@dataclass
class TrainSettings(RunSettings, TokenizerSettings, ModelSettings):
    """All settings of `train_mot.py`, which trains a model from scratch."""

    optimizer: str = setting(
        "adamw", "adamw; or muon for the matrices of the layers, with adamw for the rest", group="training"
    )

    def validate(self) -> None:
        super().validate()
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"--optimizer {self.optimizer}: unknown; there is {', '.join(OPTIMIZERS)}")
        if self.optimizer == "muon" and self.fsdp:
            raise ValueError("--optimizer muon: needs whole matrices, which --fsdp shards; leave out one of them")

    def peak_learning_rate(self) -> float:
        """Return the learning rate after warm-up."""
        return self.learning_rate or min(2e-3, 0.384 / self.hidden_size)


@dataclass
class AdaptSettings(RunSettings, AdapterSettings):
    """All settings of `train_lora_mot.py`, which gives thoughts to an existing model by adapters."""

    general_file: str | None = setting(
        None, "a text of another kind; base NLL on it shows what adapting costs elsewhere", group="data"
    )
    num_epochs: float = setting(3, "passes over the data", "epochs", "training", above=0)
    learning_rate: float = setting(5e-4, "peak learning rate; small bases need more", group="training", above=0)
    weight_decay: float = setting(0.0, "weight decay of AdamW, on adapters and thought tokens", group="training", low=0)

    def peak_learning_rate(self) -> float:
        """Return the learning rate after warm-up."""
        return self.learning_rate


@dataclass
class ReportSettings:
    """All settings of `mot report`."""

    run: str | None = setting(None, "the output directory of a run, finished or not", positional=True)

    def validate(self) -> None:
        if self.run is None:
            raise ValueError("mot report: no run given; e.g. mot report outputs/run")
