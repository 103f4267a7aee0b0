"""What an evaluation will draw and measure, decided and checked before anything is written.

plan = make_plan(EvaluateSettings(model="outputs/run", task="forks"))    # ValueError for a mistake of the user
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from mot import tasks
from mot.evaluation.measures import MEASURES, axes, training_rows
from mot.evaluation.prompts import EvaluationPrompt, cut_prompts, read_prompts, split, task_prompts
from mot.evaluation.schema import Ceiling
from mot.evaluation.settings import FULL, QUICK, EvaluateSettings
from mot.inference.sampler import Setting
from mot.inference.samplers import BASELINES, SAMPLERS, quick_settings
from mot.inference.think import MixtureOfThoughts
from mot.model.tokenizer import encode

MAX_VALIDATION = 128  # prompts


@dataclass(frozen=True)
class Split:
    """The validation or the test split: prompts, and the seeds of their draws."""

    name: str
    items: list[EvaluationPrompt]
    seeds: list[int]

    @property
    def prompts(self) -> list[str]:
        return [item.prompt for item in self.items]


@dataclass(frozen=True)
class Plan:
    """`base` is the model that rivals are drawn from. `quality`, `diversity` and `measures` are names of measures."""

    settings: list[Setting]
    mixture: MixtureOfThoughts
    base: MixtureOfThoughts
    judge: MixtureOfThoughts | None
    k: int
    max_new_tokens: int
    validation: Split
    test: Split
    task: str | None
    quality: str | None
    diversity: str
    measures: list[str]
    batch_size: int
    left_out: str | None  # what --quick leaves out, as a sentence

    @property
    def single_prompt(self) -> bool:
        """Draws of a single prompt are the units of all statistics; else prompts are."""
        return len(self.test.items) == 1

    def seeds(self, setting: Setting, part: Split) -> list[int]:
        """One is enough for a deterministic setting."""
        return part.seeds if setting.random else part.seeds[:1]

    def model(self, setting: Setting) -> MixtureOfThoughts:
        return self.base if setting.sampler.kind == "rival" else self.mixture

    def settings_of(self, kind: str) -> list[Setting]:
        return [s for s in self.settings if s.sampler.kind == kind]


def make_plan(settings: EvaluateSettings) -> Plan:
    settings.validate()
    validation, test = _splits(settings)
    known = _known(settings, validation + test)
    measures = _measures(settings, known)
    baselines = _baselines(settings)
    mixture = MixtureOfThoughts.from_pretrained(settings.model)
    k = _texts_per_prompt(settings, mixture)
    drawn = _settings(mixture, baselines, k, settings.quick)
    base = _load("--plain", settings.plain) if settings.plain else mixture
    if settings.plain and base.num_thoughts > 1:
        raise ValueError(f"--plain {settings.plain}: has thoughts; give a model trained with --num_thoughts 1")
    single = len(test) == 1  # then seeds are the units, and --quick keeps them
    seeds = list(range(settings.seeds or (FULL if single else settings.size).seeds))
    validation_seeds = seeds[:1]
    if single:  # the splits differ in seeds; one draw of K > 100 texts is enough to select by
        validation_seeds = [len(seeds) + i for i in seeds[: 1 if k > 100 else None]]
    quality, diversity = axes(known, settings.task)
    return Plan(
        drawn,
        mixture,
        base,
        _load("--judge", settings.judge) if settings.judge else None,
        k,
        settings.max_new_tokens or _longest(settings, test + validation, mixture),
        Split("validation", validation, validation_seeds),
        Split("test", test, seeds),
        settings.task,
        quality,
        diversity,
        measures,
        settings.batch_size,
        _left_out(settings, validation, test, seeds, k) if settings.quick else None,
    )


def fingerprint(settings: EvaluateSettings, plan: Plan) -> dict:
    """Identifies what texts are drawn from: models, prompts, K and their length."""
    prompts = [part.prompts for part in (plan.validation, plan.test)]
    return {
        "models": [_digest(path) for path in (settings.model, settings.plain) if path],
        "prompts": hashlib.sha256(json.dumps(prompts).encode()).hexdigest(),
        "k": plan.k,
        "max_new_tokens": plan.max_new_tokens,
    }


def ceiling(plan: Plan) -> Ceiling | None:
    """What K independent draws can find at most, in expectation, and what there is to find."""
    if plan.task in tasks.CREATIVE:
        return Ceiling(tasks.creativity_ceiling(plan.task, training_rows(plan.task), plan.k), 1.0)
    if plan.task not in tasks.OWN_ROWS:
        return None
    counts = [tasks.load(plan.task).answers(prompt) for prompt in plan.test.prompts]
    return Ceiling(
        independent=fmean(tasks.independence_ceiling(n, plan.k) for n in counts),
        answers=fmean(min(n, plan.k) for n in counts),
    )


def _splits(settings: EvaluateSettings) -> tuple[list[EvaluationPrompt], list[EvaluationPrompt]]:
    """(validation, test)"""
    most = settings.num_prompts or settings.size.prompts
    if settings.prompts:
        prompts = read_prompts(settings.prompts, "--prompts")
    elif settings.text:
        prompts = cut_prompts(settings.text, most + min(MAX_VALIDATION, most // 2))
    else:
        prompts = task_prompts(settings.task)
    if settings.tune_prompts:
        validation, test = read_prompts(settings.tune_prompts, "--tune_prompts"), prompts
    else:
        validation, test = split(prompts)
    return validation[: max(1, most // 2) if settings.quick else MAX_VALIDATION], test[:most]


def _known(settings: EvaluateSettings, prompts: list[EvaluationPrompt]) -> set[str]:
    """What there is to measure with: the words of `Measure.needs`."""
    known = set()
    if settings.task:
        known.add("task")
    if settings.task in tasks.CREATIVE:
        known.add("creative")
    elif settings.task in tasks.OWN_ROWS:
        known.add("countable")
    if settings.task:
        known.update(tasks.TASKS[settings.task].measures)
    if all(item.references for item in prompts):
        known.add("references")
    if settings.judge:
        known.add("judge")
    return known


_WAY_OUT = {
    "task": "give --task",
    "countable": "it is for tasks that know how many answers a prompt has",
    "creative": f"it is for the tasks {' and '.join(tasks.CREATIVE)}",
    "added": "it is for --task e2e",
    "plan": "it is for --task e2e",
    "references": "give .jsonl rows that all have `references` or a `completion`",
    "judge": "give --judge MODEL",
}


def _measures(settings: EvaluateSettings, known: set[str]) -> list[str]:
    if settings.measures == "none":
        return []
    if settings.measures == "all":
        # The answers of a built-in task are rows of symbols: measures of words mean nothing there.
        symbols = bool(settings.task) and not tasks.TASKS[settings.task].words
        return [
            name
            for name, m in MEASURES.items()
            if known >= set(m.needs) and (not symbols or {"task", "judge"} & set(m.needs))
        ]
    names = [name.strip() for name in settings.measures.split(",")]
    for name in names:
        if name not in MEASURES:
            raise ValueError(f"--measures {name}: unknown; there is {', '.join(MEASURES)}")
        for need in MEASURES[name].needs:
            if need not in known:
                raise ValueError(f"--measures {name}: there is nothing to measure it with; {_WAY_OUT[need]}")
    return names


def _baselines(settings: EvaluateSettings) -> list[str]:
    if settings.baselines == "all":
        return list(BASELINES)
    if settings.baselines == "none":
        return []
    names = [name.strip() for name in settings.baselines.split(",")]
    for name in names:
        if name not in BASELINES:
            raise ValueError(f"--baselines {name}: unknown; there is {', '.join(BASELINES)}, all and none")
    return names


def _texts_per_prompt(settings: EvaluateSettings, mixture: MixtureOfThoughts) -> int:
    if settings.task in tasks.CREATIVE:
        return settings.num_thoughts or settings.size.creative_samples
    k = settings.num_thoughts or (mixture.num_thoughts if mixture.thoughts else 8)
    if mixture.thoughts and k > mixture.different_thoughts:
        raise ValueError(f"--num_thoughts {k}: the model has {mixture.different_thoughts}; give at most that many")
    return k


def _settings(mixture: MixtureOfThoughts, baselines: list[str], k: int, quick: bool) -> list[Setting]:
    """Every setting that can be drawn, the mixture's first."""
    samplers = [s for name, s in SAMPLERS.items() if s.kind == "mixture"] + [SAMPLERS[name] for name in baselines]
    grids = [quick_settings(sampler) if quick else sampler.settings for sampler in samplers]
    settings = [setting for grid in grids for setting in grid if setting.possible(mixture, k)]
    if not settings:
        raise ValueError("--baselines: the model has no thoughts and there is no sampler to compare; give at least one")
    return settings


def _left_out(
    settings: EvaluateSettings,
    validation: list[EvaluationPrompt],
    test: list[EvaluationPrompt],
    seeds: list[int],
    k: int,
) -> str:
    """What --quick leaves out, for the first lines and the report."""
    found = []
    if 1 < len(test) < FULL.prompts and len(test) == (settings.num_prompts or QUICK.prompts):
        found.append(
            f"{len(test)} test and {len(validation)} validation prompts instead of up to {FULL.prompts} and "
            f"{MAX_VALIDATION}"
        )
    if len(seeds) < FULL.seeds:
        found.append(f"{len(seeds)} seed{'s' * (len(seeds) > 1)} instead of {FULL.seeds}")
    if settings.task in tasks.CREATIVE and k < FULL.creative_samples:
        found.append(f"{k} texts a draw instead of {FULL.creative_samples:,}")
    found.append("every second setting of every sampler")
    return f"--quick: {', '.join(found)}, no beams wider than {2 * k}. The verdict is preliminary."


def _load(flag: str, path: str) -> MixtureOfThoughts:
    try:
        return MixtureOfThoughts.from_pretrained(path)
    except ValueError as e:
        raise ValueError(str(e).replace("--model", flag, 1)) from None


def _longest(settings: EvaluateSettings, prompts: list[EvaluationPrompt], mixture: MixtureOfThoughts) -> int:
    """Enough tokens for every answer where the answers are known, else 60."""
    if settings.task and tasks.TASKS[settings.task].answer_tokens:
        return tasks.TASKS[settings.task].answer_tokens
    references = [reference for item in prompts for reference in item.references]
    if settings.task and references:
        return 8 + max(len(ids) for ids in encode(mixture.tokenizer, references, "--prompts"))
    return 60


def _digest(path: str) -> str:
    """sha256 of a model's settings and weights, wherever it lies."""
    digest = hashlib.sha256()
    for file in sorted(Path(path).iterdir()):
        if file.suffix == ".safetensors" or file.name in ("config.json", "adapter_config.json", "tokenizer.json"):
            with open(file, "rb") as content:
                digest.update(file.name.encode() + hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()
