"""The model card: README.md in the output directory of a finished run, as the Hugging Face hub reads it. No torch here."""

import dataclasses
import os
import shlex
from importlib.metadata import version
from pathlib import Path

from mot.training.settings import AdaptSettings, RunSettings, TrainSettings

CARD = "README.md"
NUMBERS = {
    "eval_base_nll": "base NLL: no thought in the context, nats per token",
    "eval_mixture_nll": "mixture NLL: -log sum over thoughts of p(thought) p(text given thought), nats per token",
    "eval_specialisation": "specialisation, 0 to 1",
    "eval_effective_thoughts": "effective thoughts: how many win held-out rows",
    "eval_general_nll": "base NLL on text of another kind, nats per token",
}


def card(settings: RunSettings, metrics: dict[str, float], parameters: int, steps: int, rows: int) -> str:
    """The text: YAML front matter, what it is, how to use it, what was measured, the command that made it, its limits."""
    import yaml

    adapted = isinstance(settings, AdaptSettings)
    front = {"library_name": "peft" if adapted else "transformers", "pipeline_tag": "text-generation"}
    if adapted and not os.path.exists(settings.base_model):  # the hub knows no local paths
        front["base_model"] = settings.base_model
    front["tags"] = ["mixture-of-thoughts", *(["lora"] if adapted else [])]
    N = settings.num_thoughts**settings.thought_length
    what = (
        "A plain causal language model (one thought)."
        if settings.num_thoughts == 1
        else f"A mixture of {N} thoughts: one prompt has {N} continuations that are meant to be different and good. A thought is a token; "
        "`p(text | prompt) = sum over k of p(k | prompt) p(text | prompt, k)`, and the router p(k | prompt) is the model's own next-token "
        "softmax over the thought tokens."
    )
    made = f"adapters (LoRA) and thought vectors for {_base(settings)}" if adapted else "trained from nothing"
    opened = "peft.AutoPeftModelForCausalLM" if adapted else "transformers.AutoModelForCausalLM"
    numbers = [f"| {words} | {metrics[name]:.4f} |" for name, words in NUMBERS.items() if name in metrics]
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    return f"""---
{yaml.safe_dump(front, sort_keys=False).strip()}
---

# {settings.name()}

{what}

{parameters:,} parameters, {made}; {steps:,} steps on {rows:,} rows of {source(settings)}; seed {settings.seed}.

## Use

```python
from mot import MixtureOfThoughts  # pip install mixture-of-thoughts

mixture = MixtureOfThoughts.from_pretrained("THIS_DIRECTORY")
for thought in mixture.think("PROMPT", max_new_tokens=100, temperature=0.7, seed=0):
    print(thought.index, thought.probability, thought.text)
```

`{opened}` loads it as well, with no code of ours: put a thought token (`<|thought_0|>` ..) behind the prompt, or none for
the trunk.

## Measured on held-out data

| | |
|---|---|
{chr(10).join(numbers) or "| nothing was measured | |"}

Whether its thoughts are different *and* good these numbers do not say; `evaluate_diversity.py --model THIS_DIRECTORY` does.

## Made by

```console
$ {command(settings)}
```

mixture-of-thoughts {_own_version()}, {versions}.

## Limits

It says what its data say, true or not: nothing filters it, and neither facts nor safety were tested. No licence is stated
here: those of the data{" and of the base model" if adapted else ""} bind; add `license:` to the front matter when you publish it.
"""


def write(directory: str | Path, text: str) -> None:
    Path(directory, CARD).write_text(text, encoding="utf-8")


def source(settings: RunSettings) -> str:
    """The data's name, without where it lies: paths and signed addresses are nobody else's business."""
    if settings.task:
        return f"the built-in task `{settings.task}`"
    return f"`{settings.train_file.split('?')[0].rstrip('/').split('/')[-1]}`"


def command(settings: RunSettings) -> str:
    """The training command: settings that are not the default, without those that say where."""
    door = "train_lora_mot.py" if isinstance(settings, AdaptSettings) else "train_mot.py"
    kind, words = AdaptSettings if isinstance(settings, AdaptSettings) else TrainSettings, []
    for f in dataclasses.fields(kind):
        value = getattr(settings, f.name)
        if value == f.default or f.name in WHERE:
            continue
        if f.name in ("train_file", "eval_file", "general_file"):
            value = value.split("?")[0].rstrip("/").split("/")[-1]
        if f.name == "base_model":
            value = _base(settings)
        words += [f"--{f.name}"] if value is True else [f"--{f.name}", str(value)]
    return shlex.join(["python", door, *words])


def _base(settings: AdaptSettings) -> str:
    """A hub id as it is; of a directory its name."""
    return Path(settings.base_model).resolve().name if os.path.exists(settings.base_model) else settings.base_model


WHERE = {"output_dir", "overwrite", "resume_from", "allow_changed", "use_wandb", "track", "num_workers", "dry_run"}


def _own_version() -> str:
    from importlib.metadata import PackageNotFoundError

    try:
        return version("mixture-of-thoughts")
    except PackageNotFoundError:  # a checkout that is not installed
        return "(a checkout)"
