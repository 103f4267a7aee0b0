"""The model card: README.md in the output directory of a finished run, as the hub reads it. No torch here.

write(directory, card(settings, metrics, parameters, steps, rows))
"""

import dataclasses
import shlex
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mot.training.recipes import recipe_of
from mot.training.settings import RunSettings

CARD = "README.md"
PLACES = {"output_dir", "overwrite", "resume_from", "allow_changed", "use_wandb", "track", "num_workers", "dry_run"}
FILES = ("train_file", "eval_file", "general_file")
NUMBERS = {
    "eval_base_nll": "base NLL: no thought in the context, nats per token",
    "eval_mixture_nll": "mixture NLL: -log sum over thoughts of p(thought) p(text given thought), nats per token",
    "eval_specialisation": "specialisation, 0 to 1",
    "eval_effective_thoughts": "effective thoughts: how many win held-out rows",
    "eval_general_nll": "base NLL on text of another kind, nats per token",
}


def card(
    settings: RunSettings,
    metrics: dict[str, float],
    parameters: int,
    steps: int,
    rows: int,
    published: int | None = None,
) -> str:
    """Return the card: YAML front matter, description, use, measurements, the training command, limits.

    `metrics` are the evaluation's of the step that is `published` (None: the last of `steps`); `parameters` those that
    were trained; `rows` the training rows.
    """
    import yaml

    recipe = recipe_of(settings)
    front = {"library_name": recipe.library, "pipeline_tag": "text-generation"}
    if recipe.hub_base:
        front["base_model"] = recipe.hub_base
    front["tags"] = ["mixture-of-thoughts", *recipe.tags]
    numbers = [f"| {text} | {metrics[name]:.4f} |" for name, text in NUMBERS.items() if name in metrics]
    which = f"; these are the weights of step {published:,}" if published not in (None, steps) else ""
    if which and settings.published() == "best":
        which += ", which had the lowest held-out mixture NLL"
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    return f"""---
{yaml.safe_dump(front, sort_keys=False).strip()}
---

# {settings.name()}

{_description(settings)}

{parameters:,} parameters, {recipe.made}; {steps:,} steps on {rows:,} rows of {source(settings)};
seed {settings.seed}{which}.

## Use

```python
from mot import MixtureOfThoughts  # in a checkout of mixture-of-thoughts, after pip install -e .

mixture = MixtureOfThoughts.from_pretrained("THIS_DIRECTORY")
for thought in mixture.think("PROMPT", max_new_tokens=100, temperature=0.7, seed=0):
    print(thought.index, thought.probability, thought.text)
```

`{recipe.opens_with}` loads it as well, without our code: put a thought token (`<|thought_0|>` ..) after the prompt, or
none for the trunk.

## Measured on held-out data

| | |
|---|---|
{chr(10).join(numbers) or "| nothing was measured | |"}

These numbers do not say whether its thoughts are different *and* good; `evaluate_diversity.py --model THIS_DIRECTORY`
does.

## Made by

```console
$ {command(settings)}
```

mixture-of-thoughts {_own_version()}, {versions}.

## Limits

It repeats what its data say, true or not: there is no filter, and neither facts nor safety were tested. No licence is
stated here: those of the data{recipe.licences} apply; add `license:` to the front matter when you publish it.
"""


def write(directory: str | Path, text: str) -> None:
    """Write the card into a model's directory."""
    Path(directory, CARD).write_text(text, encoding="utf-8")


def source(settings: RunSettings) -> str:
    """Return the name of the data without its location: paths and signed addresses stay private."""
    return f"the built-in task `{settings.task}`" if settings.task else f"`{_file_name(settings.train_file)}`"


def command(settings: RunSettings) -> str:
    """Return the training command: settings that are not the default, without those that name a place."""
    recipe, words = recipe_of(settings), []
    for f in dataclasses.fields(settings):
        value = getattr(settings, f.name)
        if value == f.default or f.name in PLACES:
            continue
        if value is True:
            words.append(f"--{f.name}")
        else:
            words += [f"--{f.name}", _file_name(value) if f.name in FILES else recipe.shown(f.name)]
    return shlex.join(["python", recipe.door, *words])


def _description(settings: RunSettings) -> str:
    if settings.num_thoughts == 1:
        return "A plain causal language model (one thought)."
    return (
        f"A mixture of {settings.num_thoughts**settings.thought_length} thoughts: one prompt has as many "
        "continuations, trained to be different and good. A thought is a token;\n"
        "`p(text | prompt) = sum over k of p(k | prompt) p(text | prompt, k)`, and the router p(k | prompt) is the "
        "model's own\nnext-token softmax over the thought tokens."
    )


def _file_name(path: str) -> str:
    return path.split("?")[0].rstrip("/").split("/")[-1]


def _own_version() -> str:
    try:
        return version("mixture-of-thoughts")
    except PackageNotFoundError:  # a checkout that is not installed
        return "(a checkout)"
