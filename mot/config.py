"""Words and numbers: every setting with its default, unit and help, and how a command line becomes one. No torch here.

A settings class is a dataclass whose fields are made by `setting`; `parse` turns it into an argparse parser (no
abbreviations), lets a YAML file (`--config`) fill what the flags leave out, and checks the result with `validate`.
"""

import argparse
import contextlib
import dataclasses
import difflib
import math
import sys
from dataclasses import dataclass
from typing import NoReturn, TypeVar

Settings = TypeVar("Settings")

ANNEAL = 0.6  # of the steps: the E-step's temperature falls geometrically
DIVERSITY_FROM = ANNEAL  # of the steps: earlier it would cement whatever difference is learnt first
DIVERSITY_SHARE, DIVERSITY_THOUGHTS = 1 / 16, 4  # on this share of the rows, between the winner and three others


def setting(default, help, unit="", group="run", low=None, high=None, above=None, endless=False, positional=False):
    """A dataclass field with what a person needs to know: help, unit, the range `[low, high]` or `> above`, may it be inf.

    `positional`: on the command line it is a word without a flag.
    """
    about = {"help": help, "unit": unit, "group": group, "low": low, "high": high, "above": above, "endless": endless}
    about["positional"] = positional
    return dataclasses.field(default=default, metadata=about)


@dataclass
class RunSettings:
    """What both training doors can be told. Names and defaults are those of the user's guide."""

    train_file: str | None = setting(
        None, "text, or .jsonl rows with `prompt` and `completion`, or with chat `messages`", group="data"
    )
    eval_file: str | None = setting(
        None, "held-out data of the same kind; else the last 10 %% of train_file", group="data"
    )
    task: str | None = setting(
        None,
        "a built-in task with known answers instead of a file: forks, chains, circle, siblings or countdown",
        group="data",
    )
    seq_length: int = setting(256, "length of a text window; the most a row may have", "tokens", "data", low=2)
    num_workers: int = setting(0, "processes that prepare batches", group="data", low=0)

    num_thoughts: int = setting(8, "N; 1 is a plain language model", group="model", low=1, high=1024)
    thought_length: int = setting(
        1, "thought tokens in a row that make one thought: N ** L different thoughts", group="model", low=1, high=8
    )

    diversity_weight: float = setting(0.1, "weight of the divergence between thoughts", group="thoughts", low=0)
    entropy_weight: float = setting(
        0.05, "weight of the entropy of the router's mean probabilities", group="thoughts", low=0
    )
    router_weight: float = setting(0.1, "weight of the router's cross-entropy", group="thoughts", low=0)
    thought_dropout: float = setting(
        0.1,
        "share of rows that carry no thought token and keep the trunk a language model",
        group="thoughts",
        low=0,
        high=1,
    )
    estep_tokens: int = setting(
        32,
        "plain text: a thought is judged by the first so many tokens of a continuation; 0: by all",
        "tokens",
        "thoughts",
        low=0,
    )

    estep_temperature: float = setting(
        6.0,
        "how softly rows are given to thoughts at first: the posterior is 1; falls to a twentieth",
        "nats per continuation",
        "thoughts",
        above=0,
    )

    batch_size: int = setting(32, "rows per forward pass", "rows", "training", low=1)
    gradient_accumulation_steps: int = setting(1, "forward passes per update", group="training", low=1)
    num_epochs: float = setting(10, "passes over the data", "epochs", "training", above=0)
    max_steps: int | None = setting(None, "updates; overrides num_epochs", "steps", "training", low=1)
    learning_rate: float | None = setting(
        None, "peak; derived: 0.384 / hidden_size, at most 2e-3", group="training", above=0
    )
    warmup_ratio: float = setting(
        0.1, "share of the steps in which the learning rate rises; then cosine to 5 %%", group="training", low=0, high=1
    )
    weight_decay: float = setting(0.1, "AdamW, on matrices", group="training", low=0)
    fp16: bool = setting(False, "mixed precision with loss scaling (GPU)", group="training")
    bf16: bool = setting(False, "mixed precision in bfloat16 (GPU or CPU)", group="training")
    compile: bool = setting(False, "torch.compile the model", group="training")
    save_memory: bool = setting(
        False, "recompute activations in the backward pass: less memory, more time", group="training"
    )
    fsdp: bool = setting(
        False,
        "torchrun: shard weights and optimizer over the processes (FSDP) instead of copying them",
        group="training",
    )

    output_dir: str | None = setting(None, "where everything is written; default outputs/RUN_NAME")
    run_name: str | None = setting(None, "default: data, thoughts and seed")
    seed: int = setting(
        42, "initial weights, order of the data, branch points, choices of the E-step", low=0, high=2**32 - 1
    )
    save_every: int | None = setting(None, "checkpoint interval; default: a tenth of the run", "steps", low=1)
    save_total_limit: int = setting(3, "complete checkpoints to keep", "checkpoints", low=1)
    eval_every: int | None = setting(None, "evaluation interval; default: a fifth of the run", "steps", low=1)
    eval_rows: int = setting(128, "held-out rows used by each evaluation, evenly spaced; 0: all", "rows", low=0)
    resume_from: str | None = setting(
        None, "auto: the newest good checkpoint of output_dir, if any; or a checkpoint's or run's directory"
    )
    allow_changed: bool = setting(False, "resume although data or settings are not the checkpoint's")
    overwrite: bool = setting(False, "remove the run that output_dir already holds")
    use_wandb: bool = setting(False, "log to Weights & Biases, project mixture-of-thoughts")
    track: str | None = setting(None, "log to tensorboard or trackio as well, below output_dir")
    dry_run: bool = setting(False, "print parameters, tokens, steps and memory, and stop")

    def validate(self) -> None:
        """Raise ValueError with one line that names the flag, the value and the way out."""
        check_ranges(self)
        if (self.train_file is None) == (self.task is None):
            both = "both are" if self.task else "neither is"
            raise ValueError(
                f"--train_file or --task: {both} given; give exactly one, e.g. --train_file data.txt or --task forks"
            )
        if self.task and self.task not in TASKS:
            raise ValueError(f"--task {self.task}: unknown; there is {', '.join(TASKS)}")
        if self.eval_file and self.task:
            raise ValueError(f"--eval_file {self.eval_file}: a task brings its own held-out prompts; leave it out")
        if self.track and self.track not in TRACKERS:
            raise ValueError(f"--track {self.track}: unknown; there is {', '.join(TRACKERS)}, and --use_wandb")
        if self.fp16 and self.bf16:
            raise ValueError("--fp16 and --bf16: give one of them")
        if self.thought_length > 1 and self.num_thoughts == 1:
            raise ValueError(
                f"--thought_length {self.thought_length}: --num_thoughts 1 is a plain language model without thoughts; "
                "give --num_thoughts 2 or more, or leave --thought_length out"
            )

    def name(self) -> str:
        source = self.task or self.train_file.split("?")[0].rstrip("/").split("/")[-1].rsplit(".", 1)[0]
        return self.run_name or f"{source}-{self.num_thoughts}thoughts-seed{self.seed}"

    def output(self) -> str:
        return self.output_dir or f"outputs/{self.name()}"


@dataclass
class TrainSettings(RunSettings):
    """Everything `train_mot.py` can be told: a model of its own, from nothing."""

    vocab_size: int = setting(
        50257, "below 257: characters; else byte-level BPE trained on the file", "tokens, thoughts apart", "data", low=2
    )
    tokenizer: str | None = setting(
        None, "an existing tokenizer (path or hub id) instead of one trained on the file", group="data"
    )
    hidden_size: int = setting(768, "width of the model", group="model", low=2)
    num_layers: int = setting(12, "depth of the model", group="model", low=1)
    num_heads: int | None = setting(
        None, "attention heads; derived: heads of 64, below hidden size 128 of 32", group="model", low=1
    )
    dropout: float = setting(0.0, "of attention weights, in the M-step", group="training", low=0, high=0.9)

    def validate(self) -> None:
        super().validate()
        if self.hidden_size % self.heads():
            raise ValueError(
                f"--hidden_size {self.hidden_size}: not divisible by --num_heads {self.heads()}; change one of them"
            )
        if self.hidden_size // self.heads() % 2:
            raise ValueError(
                f"--hidden_size {self.hidden_size}: {self.heads()} heads of {self.hidden_size // self.heads()} are odd-sized, "
                "rotary positions need even; change --hidden_size or --num_heads"
            )

    def heads(self) -> int:
        """Attention heads: as told, else the most heads that are at least 64 wide (32 below hidden size 128)."""
        if self.num_heads is not None:
            return self.num_heads
        target = 64 if self.hidden_size >= 128 else 32
        fitting = [
            h
            for h in range(1, self.hidden_size + 1)
            if self.hidden_size % h == 0 and self.hidden_size // h >= min(target, self.hidden_size)
        ]
        return max(fitting)

    def peak_learning_rate(self) -> float:
        return self.learning_rate or min(2e-3, 0.384 / self.hidden_size)


@dataclass
class AdaptSettings(RunSettings):
    """Everything `train_lora_mot.py` can be told: thoughts for a model that is there already, by adapters."""

    base_model: str | None = setting(
        None, "the causal language model to adapt: a directory or a hub id; it stays as it is", group="model"
    )
    lora_rank: int = setting(16, "rank of the adapters", group="model", low=1)
    lora_alpha: float = setting(32, "scale of the adapters: they count alpha / rank", group="model", above=0)
    lora_dropout: float = setting(0.0, "of what the adapters read, in the M-step", group="training", low=0, high=0.9)
    lora_targets: str = setting(
        "auto",
        "what gets adapters. auto: the linear maps of attention and MLP; all-linear: every linear map but the output; or "
        "their names, separated by commas",
        group="model",
    )
    load_in: str = setting(
        "none", "4bit or 8bit: the base's weights quantised by bitsandbytes (GPU), for less memory", group="model"
    )
    general_file: str | None = setting(
        None, "a text that is not the data's kind: base NLL on it says what adapting costs elsewhere", group="data"
    )
    num_epochs: float = setting(3, "passes over the data", "epochs", "training", above=0)
    learning_rate: float = setting(5e-4, "peak; small bases take more", group="training", above=0)
    weight_decay: float = setting(0.0, "AdamW, on adapters and thoughts", group="training", low=0)

    def validate(self) -> None:
        super().validate()
        if self.base_model is None:
            raise ValueError("--base_model: missing; give a directory or a hub id, e.g. --base_model Qwen/Qwen3-0.6B")
        if self.load_in not in QUANTISED:
            raise ValueError(f"--load_in {self.load_in}: unknown; there is {', '.join(QUANTISED)}")
        if not all(name.strip() for name in self.lora_targets.split(",")):
            raise ValueError(
                f"--lora_targets {self.lora_targets}: has an empty name; give auto, all-linear or names like q_proj,v_proj"
            )

    def peak_learning_rate(self) -> float:
        return self.learning_rate


QUANTISED = ("none", "4bit", "8bit")
TASKS = ("forks", "chains", "circle", "siblings", "countdown")
TRACKERS = ("tensorboard", "trackio")


@dataclass
class ThinkSettings:
    """Everything `mot think` can be told."""

    model: str | None = setting(None, "a directory that train_mot.py wrote", group="thinking")
    prompt: str | None = setting(None, "text to think from", group="thinking")
    num_thoughts: int | None = setting(
        None, "K; default: every thought of the model", group="thinking", low=1, high=1024
    )
    max_new_tokens: int = setting(120, "longest continuation", "tokens", "thinking", low=1)
    temperature: float = setting(0.7, "0 is greedy inside each thought", group="thinking", low=0)
    top_p: float = setting(1.0, "nucleus sampling inside each thought", group="thinking", above=0, high=1)
    creativity: float = setting(
        1.0,
        "which thoughts, if fewer than the model has: 0 the most probable, 1 by the router, large any",
        group="thinking",
        low=0,
        endless=True,
    )
    seed: int = setting(0, "same seed, same texts", group="thinking", low=0)
    chat: bool = setting(False, "the prompt is a user's turn: put it into the model's chat template", group="thinking")
    json: bool = setting(False, "print one JSON object per thought instead of columns", group="thinking")

    def validate(self) -> None:
        check_ranges(self)
        for name in ("model", "prompt"):
            if getattr(self, name) is None:
                raise ValueError(f"--{name}: missing; e.g. mot think --model outputs/run --prompt 'ROMEO:'")


@dataclass
class EvaluateSettings:
    """Everything `evaluate_diversity.py` can be told."""

    model: str | None = setting(
        None, "the model to judge: a directory that train_mot.py wrote, or any causal language model", group="what"
    )
    prompts: str | None = setting(
        None,
        "a file: one prompt a line, or .jsonl rows with `prompt` and perhaps `references` or `completion`",
        group="what",
    )
    text: str | None = setting(None, "held-out text instead: prompts are cut from it, evenly spaced", group="what")
    task: str | None = setting(
        None, "a built-in task with known answers: its verifier and, but for e2e, its held-out prompts", group="what"
    )
    tune_prompts: str | None = setting(
        None, "like --prompts, to tune the samplers on; default: every third of the prompts", group="what"
    )
    num_prompts: int = setting(256, "judge by at most so many", "prompts", "what", low=1)
    plain: str | None = setting(
        None,
        "a plain model for the baselines, e.g. of the same training FLOPs; default: the model's own trunk",
        group="what",
    )
    judge: str | None = setting(
        None, "another causal language model, whose NLL of the texts is their quality", group="what"
    )

    num_thoughts: int | None = setting(
        None, "K texts per prompt; default: every thought once, 8 without thoughts", group="how", low=2, high=4096
    )
    baselines: str = setting("all", "samplers to compare with, separated by commas; all, or none", group="how")
    measures: str = setting(
        "all", "further measures, separated by commas; all that the prompts allow, or none", group="how"
    )
    max_new_tokens: int | None = setting(
        None, "longest text; default: of a task what its answers need, else 60", "tokens", "how", low=1
    )
    seeds: int = setting(5, "draw everything so often", "seeds", "how", low=1, high=1000)
    batch_size: int = setting(512, "texts generated at a time", "texts", "how", low=1)

    output_dir: str | None = setting(None, "where everything is written; default outputs/diversity-NAME")
    overwrite: bool = setting(False, "remove the evaluation that output_dir already holds")

    def validate(self) -> None:
        """Raise ValueError with one line that names the flag, the value and the way out."""
        check_ranges(self)
        if self.model is None:
            raise ValueError("--model: missing; e.g. --model outputs/run --task forks")
        if self.task and self.task not in (*TASKS, "e2e"):
            raise ValueError(f"--task {self.task}: unknown; there is {', '.join(TASKS)} and e2e")
        sources = [f"--{name}" for name in ("prompts", "text") if getattr(self, name)]
        if len(sources) == 2:
            raise ValueError("--prompts and --text: give one of them")
        if sources and self.task in TASKS:
            raise ValueError(f"{sources[0]}: --task {self.task} brings its own held-out prompts; leave one of them out")
        if not sources and self.task not in TASKS:
            way_out = (
                "e2e needs --prompts FILE.jsonl" if self.task else "give --prompts FILE, --text FILE or --task NAME"
            )
            raise ValueError(f"--prompts: missing; {way_out}")
        if self.tune_prompts and not self.prompts:
            raise ValueError(f"--tune_prompts {self.tune_prompts}: goes with --prompts; leave it out")
        if self.output_dir and "://" in self.output_dir:
            raise ValueError(
                f"--output_dir {self.output_dir}: must be a local directory; copy it to the bucket afterwards"
            )

    def output(self) -> str:
        model = self.model.rstrip("/").split("/")[-1]
        source = self.task or (self.prompts or self.text).split("/")[-1].rsplit(".", 1)[0]
        return self.output_dir or f"outputs/diversity-{model}-{source}"


@dataclass
class ServeSettings:
    """Everything `serve_mot.py` can be told."""

    model: str | None = setting(None, "a directory that train_mot.py wrote, or any causal language model", group="what")
    host: str = setting("127.0.0.1", "address to listen at; 0.0.0.0: every one of this machine", group="what")
    port: int = setting(8000, "port to listen at; 0: any that is free", group="what", low=0, high=65535)
    api_key_file: str | None = setting(
        None, "keys that open the API, one a line; else MOT_API_KEY; without any it is open", group="what"
    )
    log_prompts: bool = setting(False, "write the prompts into the log, too", group="what")
    engine: str = setting("transformers", "what computes: transformers, here, or a vllm server", group="what")
    vllm_url: str | None = setting(None, "where that vLLM is; its key is in VLLM_API_KEY", group="what")

    max_thoughts: int = setting(64, "K: most texts from one prompt", "texts", "limits of a request", low=1)
    max_tokens: int = setting(1024, "longest text", "tokens", "limits of a request", low=1)
    max_request_tokens: int = setting(
        16384, "prompts x K x max_tokens of one request", "tokens", "limits of a request", low=1
    )
    max_prompt_tokens: int | None = setting(
        None, "longest prompt; default: what the model's context has room for", "tokens", "limits of a request", low=1
    )
    max_body_bytes: int = setting(2**20, "largest body of a request", "bytes", "limits of a request", low=1024)

    max_batch: int = setting(128, "texts that are generated at the same time", "texts", "limits of the server", low=1)
    max_cached_tokens: int = setting(
        131072, "room in the KV cache for all running texts, prompts included", "tokens", "limits of the server", low=1
    )
    max_queue: int = setting(
        128, "prompts that wait; beyond them a request is told to come back", "prompts", "limits of the server", low=1
    )
    drain_seconds: float = setting(
        30.0, "time to finish what runs after SIGTERM", "seconds", "limits of the server", low=0
    )

    def validate(self) -> None:
        """Raise ValueError with one line that names the flag, the value and the way out."""
        check_ranges(self)
        if self.model is None:
            raise ValueError("--model: missing; e.g. --model outputs/run")
        if self.engine not in ("transformers", "vllm"):
            raise ValueError(f"--engine {self.engine}: there are transformers and vllm")
        if self.engine == "vllm" and self.vllm_url is None:
            raise ValueError("--vllm_url: missing with --engine vllm; e.g. --vllm_url http://127.0.0.1:8001")
        if self.engine != "vllm" and self.vllm_url is not None:
            raise ValueError(f"--vllm_url {self.vllm_url}: goes with --engine vllm; add that, or leave it out")
        if self.max_thoughts > self.max_batch:
            raise ValueError(
                f"--max_thoughts {self.max_thoughts}: more than --max_batch {self.max_batch}, the texts that are generated at the "
                "same time; lower the first or raise the second"
            )


DATASETS = {  # where they live today, and what stands behind each row: rows of wikitext are lines, of openwebtext documents
    "shakespeare": ("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt", ""),
    "wikitext103": ("hf://datasets/Salesforce/wikitext/wikitext-103-raw-v1/train-*.parquet", "\n"),
    "openwebtext": ("hf://datasets/Skylion007/openwebtext@refs/convert/parquet/plain_text/*train/*.parquet", "\n\n"),
}


@dataclass
class ExportSettings:
    """Everything `mot export` can be told."""

    model: str | None = setting(None, "a directory that train_lora_mot.py or train_mot.py wrote", group="what")
    merge: bool = setting(False, "write a whole model: the base with the adapters in its weights", group="what")
    gguf: bool = setting(False, "print the command of llama.cpp's converter for a whole model", group="what")
    outtype: str = setting("f16", "with --gguf: f32, f16, bf16, q8_0 or auto", group="what")
    output_dir: str | None = setting(
        None, "with --merge: a new directory; with --gguf: the file's, default the model's"
    )

    def validate(self) -> None:
        check_ranges(self)
        if self.model is None:
            raise ValueError(
                "--model: missing; e.g. mot export --model outputs/adapter --merge --output_dir outputs/merged"
            )
        if self.merge == self.gguf:
            raise ValueError(
                f"--merge or --gguf: {'both are' if self.merge else 'neither is'} given; give one of them, --merge first"
            )
        if self.merge and self.output_dir is None:
            raise ValueError("--output_dir: missing; --merge writes a whole model, say where")
        if self.outtype not in GGUF_TYPES:
            raise ValueError(f"--outtype {self.outtype}: unknown; there is {', '.join(GGUF_TYPES)}")


GGUF_TYPES = ("f32", "f16", "bf16", "q8_0", "auto")


@dataclass
class ReportSettings:
    """Everything `mot report` can be told."""

    run: str | None = setting(None, "the output directory of a run, finished or not", positional=True)

    def validate(self) -> None:
        if self.run is None:
            raise ValueError("mot report: no run given; e.g. mot report outputs/run")


@dataclass
class DataSettings:
    """Everything `mot data` can be told."""

    name: str | None = setting(
        None, "shakespeare (1 MB), wikitext103 (540 MB) or openwebtext (40 GB)", group="data", positional=True
    )
    output: str | None = setting(None, "file to write; default data/NAME.txt", group="data")
    max_megabytes: float = setting(
        1000.0, "stop after so much text; inf: all of it", "MB of 10^6 bytes", "data", above=0, endless=True
    )

    def validate(self) -> None:
        check_ranges(self)
        if self.name not in DATASETS:
            given = "no NAME given" if self.name is None else f"{self.name}: unknown"
            raise ValueError(f"mot data: {given}; there is {', '.join(DATASETS)}")
        if self.output and "://" in self.output:
            raise ValueError(f"--output {self.output}: must be a local file; copy it to the bucket afterwards")


def check_ranges(settings) -> None:
    for f in dataclasses.fields(settings):
        value, m = getattr(settings, f.name), f.metadata
        if value is None:
            continue
        bounds = (
            [f">= {m['low']}"] * (m["low"] is not None)
            + [f"> {m['above']}"] * (m["above"] is not None)
            + [f"<= {m['high']}"] * (m["high"] is not None)
            + ["finite"] * (value == math.inf)
        )
        inside = (
            (m["low"] is None or value >= m["low"])
            and (m["above"] is None or value > m["above"])
            and (m["high"] is None or value <= m["high"])
            and (value != math.inf or m["endless"])
        )  # NaN fails every comparison, so it is refused wherever a bound stands
        if not inside:
            raise ValueError(f"--{f.name} {value}: must be {' and '.join(bounds)}")


class _Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line that names the way out, and exit code 2."""

    def error(self, message: str) -> NoReturn:
        flags = [flag for action in self._actions for flag in action.option_strings]
        for word in message.removeprefix("unrecognized arguments: ").split():
            name = word.split("=")[0]
            close = [f for f in flags if f.startswith(name)] or difflib.get_close_matches(name, flags, n=1)
            if message.startswith("unrecognized") and word.startswith("-"):
                message = f"unknown flag {word}" + (f"; did you mean {close[0]}?" if close else "")
                break
        fail(f"{message}; {self.prog} --help lists every flag")


def fail(message: str) -> NoReturn:
    """Print one line for a user's mistake and leave with code 2."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


def parse(cls: type[Settings], argv: list[str] | None, prog: str, description: str) -> Settings:
    """Settings from flags, then `--config FILE.yaml`, then defaults: flags win over the file. Raises ValueError."""
    parser = _Parser(prog=prog, description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    groups = {}
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for f in fields.values():
        group = groups.setdefault(f.metadata["group"], parser.add_argument_group(f.metadata["group"]))
        default = (
            ""
            if f.default is None or f.default is False
            else f" [{f.default}{' ' + f.metadata['unit'] if f.metadata['unit'] else ''}]"
        )
        if _type(f) is bool:
            group.add_argument(f"--{f.name}", action=argparse.BooleanOptionalAction, help=f.metadata["help"])
        elif f.metadata["positional"]:
            group.add_argument(f.name, nargs="?", metavar=f.name.upper(), help=f.metadata["help"])
        else:
            group.add_argument(
                f"--{f.name}", type=_type(f), metavar=_type(f).__name__.upper(), help=f.metadata["help"] + default
            )
    parser.add_argument("--config", metavar="FILE.yaml", help="settings from a file, by these names; flags win over it")
    flags = vars(parser.parse_args(argv))
    path = flags.pop("config", None)
    settings = cls(**(_read_yaml(path, fields) if path else {}) | flags)
    settings.validate()
    return settings


def _type(f: dataclasses.Field) -> type:
    return next(
        t
        for t in (bool, int, float, str)
        if t.__name__ in str(f.type if isinstance(f.type, str) else getattr(f.type, "__name__", f.type))
    )


def _read_yaml(path: str, fields: dict) -> dict:
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.safe_load(file) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise ValueError(f"--config {path}: {' '.join(str(e).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"--config {path}: must be lines of `name: value`")
    for name, value in values.items():
        if name not in fields:
            close = difflib.get_close_matches(str(name), fields, n=1)
            raise ValueError(
                f"--config {path}: unknown name {name!r}" + (f"; did you mean {close[0]}?" if close else "")
            )
        kind = _type(fields[name])
        if kind is float and isinstance(value, str | int) and not isinstance(value, bool):
            with contextlib.suppress(ValueError):
                values[name] = value = float(value)  # YAML 1.1 reads 1e-3 as a string
        if value is None and fields[name].default is not None:
            raise ValueError(f"--config {path}: {name}: has no value; give one or leave the line out")
        if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
            raise ValueError(f"--config {path}: {name}: {value!r} is not {kind.__name__}")
    return values
