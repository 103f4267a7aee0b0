"""Are K thoughts different, and good? Thoughts against every sampler, tuned alike, at matched quality. It can say no.

    result = compare(EvaluateSettings(model="outputs/run", task="forks"))    # docs/diversity_json.md

Every sampler draws K texts of every prompt in each of its settings. One part of the prompts chooses: of the mixture, the
most diverse of the settings that are as good as its best one; of every sampler, the most diverse setting that is as good as
the mixture, and the best one that is as diverse. The other part judges what was chosen, with several seeds. Texts are kept in
OUTPUT/texts.jsonl as they are drawn, so an evaluation that was interrupted goes on where it was.
"""

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mot import tasks
from mot.data.load import collate_rows, encode_prompts
from mot.evaluation import metrics
from mot.evaluation.metrics import Interval, Point, bootstrap, matched
from mot.evaluation.prompts import Asked, cut, of_task, read, split
from mot.evaluation.settings import EvaluateSettings
from mot.inference.samplers import BASELINES, GREEDY_THOUGHTS, SAMPLERS, Setting, sample
from mot.inference.settings import SamplingParams
from mot.inference.think import MixtureOfThoughts
from mot.model.score import base_logprobs
from mot.model.tokenizer import encode
from mot.runtime.files import atomic_write
from mot.tasks import TASKS, e2e

SCHEMA, FORMAT = "mot-diversity", 1
TEXTS, RESULT = "texts.jsonl", "diversity.json"
CREATIVE_SAMPLES = 1000
WIDEST_BEAM = 64  # texts; a search for more than that would take the place of the evaluation
TUNED_AT_MOST = 128  # prompts
READ = 32  # prompts whose continuations are read under every thought, for the persistence curve
SHOWN = 3  # prompts whose texts the report shows


# Measures -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """K texts of one prompt, with what is known of them. `vocabulary`: different word bigrams in all that is compared."""

    asked: Asked
    texts: list[str]
    answers: list[str | None] | None  # by the task's verifier
    nll: list[float] | None  # of each text, by the judge
    vocabulary: int
    task: str | None


@dataclass(frozen=True)
class Measure:
    """A number of a Case: what it is in words, its unit, whether more of it is better, and what it cannot do without."""

    words: str
    unit: str
    better: str
    value: Callable[[Case], float]
    needs: tuple[str, ...] = ()
    tolerance: float = 0.01  # in quality: nearer than this is as good

    @property
    def sign(self) -> int:
        return 1 if self.better == "higher" else -1


def _correct(case: Case) -> set[str]:
    return {text for text, answer in zip(case.texts, case.answers, strict=True) if answer is not None}


@lru_cache(2)
def _training(task: str) -> tasks.Pairs:
    return tasks.training(task, 0)


MEASURES: dict[str, Measure] = {
    "validity": Measure(
        "share of the texts that the task's verifier accepts",
        "0 to 1",
        "higher",
        lambda c: fmean(answer is not None for answer in c.answers),
        ("task",),
    ),
    "distinct_valid": Measure(
        "different valid answers among the K texts",
        "answers",
        "higher",
        lambda c: metrics.distinct_answers(c.answers),
        ("task",),
    ),
    "creativity": Measure(
        "share of the texts that are valid, not in the training set and no repeats",
        "0 to 1",
        "higher",
        lambda c: tasks.creativity(c.task, c.texts, _training(c.task)),
        ("task", "creative"),
    ),
    "pass_at_k": Measure(
        "is one of the K texts valid",
        "0 to 1",
        "higher",
        lambda c: metrics.pass_at_k(len(c.texts), sum(a is not None for a in c.answers), len(c.texts)),
        ("task",),
    ),
    "majority_at_k": Measure(
        "is the commonest text valid; a tie by lot",
        "0 to 1",
        "higher",
        lambda c: metrics.majority_at_k(c.texts, _correct(c)),
        ("task",),
    ),
    "added": Measure(
        "share of the texts that state a slot which the prompt has not",
        "0 to 1",
        "lower",
        lambda c: fmean(bool(e2e.added(c.asked.prompt, text)) for text in c.texts),
        ("task", "e2e"),
    ),
    "judge_nll": Measure(
        "NLL of the texts under the judge", "nats per judge's token", "lower", lambda c: fmean(c.nll), ("judge",)
    ),
    "chrf": Measure(
        "chrF of each text against the prompt's references",
        "0 to 100",
        "higher",
        lambda c: fmean(metrics.chrf([text], [list(c.asked.references)]) for text in c.texts),
        ("references",),
        tolerance=1.0,
    ),
    "bleu": Measure(
        "BLEU of the texts against the prompt's references",
        "0 to 100",
        "higher",
        lambda c: metrics.bleu(c.texts, [list(c.asked.references)] * len(c.texts)),
        ("references",),
        tolerance=1.0,
    ),
    "chrf_coverage": Measure(
        "chrF of each reference against the text that is closest to it",
        "0 to 100",
        "higher",
        lambda c: metrics.chrf_coverage(c.texts, list(c.asked.references)),
        ("references",),
    ),
    "self_bleu": Measure(
        "BLEU of each text against the others of its prompt",
        "0 to 100",
        "lower",
        lambda c: metrics.self_bleu(c.texts),
    ),
    "pairwise_bleu": Measure(
        "BLEU over the pairs of texts", "0 to 100", "lower", lambda c: metrics.pairwise_bleu(c.texts)
    ),
    "distinct_1": Measure(
        "different words over all words", "0 to 1", "higher", lambda c: metrics.distinct_n(c.texts, 1)
    ),
    "distinct_2": Measure(
        "different word pairs over all word pairs", "0 to 1", "higher", lambda c: metrics.distinct_n(c.texts, 2)
    ),
    "ead_2": Measure(
        "distinct_2 over what uniform draws would have",
        "0 to 1.58",
        "higher",
        lambda c: metrics.ead(c.texts, 2, c.vocabulary),
    ),
    "vendi": Measure("effective number of different texts", "1 to K", "higher", lambda c: metrics.vendi_score(c.texts)),
    "compression": Measure("bytes over gzipped bytes", "ratio", "lower", lambda c: metrics.compression_ratio(c.texts)),
    "different_texts": Measure("different texts among the K", "texts", "higher", lambda c: len(set(c.texts))),
}


# Everything, in order -----------------------------------------------------------------------------------------------


def compare(settings: EvaluateSettings, command: str = "") -> dict:
    """Run the evaluation and write OUTPUT/diversity.json; returns what is in it. Raises ValueError for a user's mistake."""
    settings.validate()
    begin = time.perf_counter()
    tuned, judged = _asked(settings)
    known = _known(settings, judged + tuned)
    measures = _measures(settings, known)
    baselines = _baselines(settings)
    mixture = MixtureOfThoughts.from_pretrained(settings.model)
    k = _texts_per_prompt(settings, mixture)
    plan = _plan(mixture, baselines, k)
    base = _loaded("--plain", settings.plain) if settings.plain else mixture
    if settings.plain and base.num_thoughts > 1:
        raise ValueError(f"--plain {settings.plain}: has thoughts; give a model trained with --num_thoughts 1")
    judge = _loaded("--judge", settings.judge) if settings.judge else None
    longest = settings.max_new_tokens or _longest(settings, judged + tuned, mixture)
    # Draws of a single prompt are the units of everything; K = 1,000 of them are enough to choose a setting by.
    single = len(judged) == 1
    seeds = list(range(settings.seeds))
    tuning_seeds = [settings.seeds + i for i in seeds[: 1 if k > 100 else None]] if single else seeds[:1]

    about = {
        "models": [_fingerprint(path) for path in (settings.model, settings.plain) if path],
        "prompts": hashlib.sha256(
            json.dumps([[a.prompt for a in part] for part in (tuned, judged)]).encode()
        ).hexdigest(),
        "k": k,
        "max_new_tokens": longest,
    }
    texts = Texts(settings.output(), about, settings.overwrite)
    parts = {"tuned": ([a.prompt for a in tuned], tuning_seeds), "judged": ([a.prompt for a in judged], seeds)}
    _draw_all(texts, parts, plan, mixture, base, k, longest, settings.batch_size)

    cases = _Cases(texts, {"tuned": tuned, "judged": judged}, parts, settings.task, judge, settings.batch_size)
    quality, spread = _aims(known, judge is not None, settings.task)
    points = {part: {s.name: cases.point(s, part, quality, spread) for s in plan} for part in ("tuned", "judged")}
    headline = _headline(points["tuned"], plan, quality, spread)
    comparisons = _comparisons(points, plan, headline, quality, spread)
    chosen = {headline.name if headline else plan[0].name} | {c["setting"] for c in comparisons}
    result = {
        "schema": SCHEMA,
        "version": FORMAT,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": 0.0,
        "command": command,
        "versions": {
            "mot": version("mixture-of-thoughts"),
            "torch": torch.__version__,
            "transformers": version("transformers"),
        },
        "model": settings.model,
        "num_thoughts": mixture.num_thoughts,
        "thought_length": mixture.thought_length,
        "plain": settings.plain,
        "judge": settings.judge,
        "task": settings.task,
        "prompts": settings.prompts or settings.text,
        "k": k,
        "seeds": seeds,
        "max_new_tokens": longest,
        "tuned_on": len(tuning_seeds) if single else len(tuned),
        "judged_on": len(seeds) if single else len(judged),
        "units": "seeds" if single else "prompts",
        "quality": quality and _named(quality),
        "diversity": _named(spread),
        "ceiling": _ceiling(settings.task, judged, k),
        "settings": [
            {
                "name": s.name,
                "sampler": s.sampler,
                "of": _of(s, mixture, settings.plain),
                "parameters": dict(s.parameters),
                "seeds": len(seeds) if s.random else 1,
                "tuning": _means(points["tuned"][s.name], quality, spread),
                "judged": _intervals(points["judged"][s.name], quality, spread),
                "measures": {name: _interval(cases.values(s, "judged", name)) for name in measures if s.name in chosen},
            }
            for s in plan
        ],
        "measures": {
            name: {"words": m.words, "unit": m.unit, "better": m.better}
            for name, m in MEASURES.items()
            if name in measures
        },
        "headline": headline and headline.name,
        "comparisons": comparisons,
        "verdict": _verdict(comparisons, headline, quality, spread),
        "thoughts": _thoughts(mixture, cases, headline, k),
        "samples": _samples(cases, headline, comparisons, plan),
    }
    result["seconds"] = time.perf_counter() - begin
    with atomic_write(Path(settings.output()) / RESULT) as part:
        part.write_text(json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False))
    return result


# What is asked for --------------------------------------------------------------------------------------------------


def _asked(settings: EvaluateSettings) -> tuple[list[Asked], list[Asked]]:
    """(prompts to tune on, prompts to judge by)"""
    if settings.prompts:
        asked = read(settings.prompts, "--prompts")
    elif settings.text:
        asked = cut(settings.text, settings.num_prompts + min(TUNED_AT_MOST, settings.num_prompts // 2))
    else:
        asked = of_task(settings.task)
    tuned, judged = (read(settings.tune_prompts, "--tune_prompts"), asked) if settings.tune_prompts else split(asked)
    return tuned[:TUNED_AT_MOST], judged[: settings.num_prompts]


def _known(settings: EvaluateSettings, asked: list[Asked]) -> set[str]:
    """What there is to measure with: of "task", "creative", "e2e", "references", "judge"."""
    return {
        name
        for name, there in (
            ("task", settings.task),
            ("creative", settings.task in tasks.CREATIVE),
            ("e2e", settings.task == "e2e"),
            ("references", all(a.references for a in asked)),
            ("judge", settings.judge),
        )
        if there
    }


def _measures(settings: EvaluateSettings, known: set[str]) -> list[str]:
    if settings.measures == "none":
        return []
    # A built-in task's answers are symbols in a row: no words, and nothing but the answer counts.
    fitting = [
        name
        for name, m in MEASURES.items()
        if known >= set(m.needs) and ("task" in m.needs or "judge" in m.needs or settings.task not in TASKS)
    ]
    if settings.measures == "all":
        return fitting
    names = [name.strip() for name in settings.measures.split(",")]
    for name in names:
        if name not in MEASURES:
            raise ValueError(f"--measures {name}: unknown; there is {', '.join(MEASURES)}")
        for need in set(MEASURES[name].needs) - known:
            way_out = {
                "task": "give --task",
                "creative": "it is of the tasks circle and siblings",
                "e2e": "it is of --task e2e",
                "references": "give .jsonl rows that all have `references` or a `completion`",
                "judge": "give --judge MODEL",
            }[need]
            raise ValueError(f"--measures {name}: there is nothing to measure it with; {way_out}")
    return names


def _baselines(settings: EvaluateSettings) -> list[str]:
    if settings.baselines in ("all", "none"):
        return list(BASELINES) if settings.baselines == "all" else []
    names = [name.strip() for name in settings.baselines.split(",")]
    for name in names:
        if name not in BASELINES:
            raise ValueError(f"--baselines {name}: unknown; there is {', '.join(BASELINES)}, all and none")
    return names


def _texts_per_prompt(settings: EvaluateSettings, mixture: MixtureOfThoughts) -> int:
    if settings.task in tasks.CREATIVE:
        return settings.num_thoughts or CREATIVE_SAMPLES
    k = settings.num_thoughts or (mixture.num_thoughts if mixture.thoughts else 8)
    if mixture.thoughts and k > mixture.different_thoughts:
        raise ValueError(f"--num_thoughts {k}: the model has {mixture.different_thoughts}; give at most so many")
    return k


def _plan(mixture: MixtureOfThoughts, baselines: list[str], k: int) -> list[Setting]:
    """Every setting that can be drawn."""
    names = ["thoughts", *baselines] if mixture.thoughts else [b for b in baselines if b != "one_thought"]
    plan = [setting for name in names for setting in SAMPLERS[name]]
    if k > WIDEST_BEAM:
        plan = [s for s in plan if s.sampler not in ("beam", "diverse_beam")]
    if mixture.thoughts and k > mixture.different_thoughts:
        plan = [s for s in plan if s != GREEDY_THOUGHTS]  # greedy repeats of a thought are copies
    if not plan:
        raise ValueError("--baselines: the model has no thoughts and there is no sampler to judge; give at least one")
    return plan


def _loaded(flag: str, path: str) -> MixtureOfThoughts:
    try:
        return MixtureOfThoughts.from_pretrained(path)
    except ValueError as e:
        raise ValueError(str(e).replace("--model", flag, 1)) from None


def _longest(settings: EvaluateSettings, asked: list[Asked], mixture: MixtureOfThoughts) -> int:
    """Tokens that every answer fits into, where the answers are known; else 60."""
    if settings.task in TASKS:
        return 2 + max(len(completion) for _, completion in tasks.held_out(settings.task))
    references = [reference for a in asked for reference in a.references]
    if settings.task and references:
        return 8 + max(len(ids) for ids in encode(mixture.tokenizer, references, "--prompts"))
    return 60


def _fingerprint(path: str) -> str:
    """sha256 of a model: its settings and weights, wherever it lies."""
    files = sorted(
        p
        for p in Path(path).iterdir()
        if p.suffix == ".safetensors" or p.name in ("config.json", "adapter_config.json", "tokenizer.json")
    )
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as content:
            digest.update(file.name.encode() + hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def _ceiling(task: str | None, judged: list[Asked], k: int) -> dict[str, float] | None:
    """What K independent draws can find at most, in expectation, and what there is."""
    if task in tasks.CREATIVE:
        return {"independent": tasks.creativity_ceiling(task, _training(task), k), "answers": 1.0}
    if task not in TASKS:
        return None
    there_are = [tasks.load(task).answers(a.prompt) for a in judged]
    return {
        "independent": fmean(tasks.independence_ceiling(n, k) for n in there_are),
        "answers": fmean(min(n, k) for n in there_are),
    }


# Drawing ------------------------------------------------------------------------------------------------------------


class Texts:
    """OUTPUT/texts.jsonl: K texts of every (setting, part, seed, prompt), written as they are drawn.

    Its first line says of what they are; texts of anything else are never mixed with them.
    """

    def __init__(self, output_dir: str, about: dict, overwrite: bool):
        self.path, self.drawn = Path(output_dir) / TEXTS, {}
        if overwrite and self.path.exists():
            for name in (TEXTS, RESULT):
                (self.path.parent / name).unlink(missing_ok=True)
        if self.path.exists():
            self._read(about, output_dir)
        else:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._append({"about": about})
            except OSError as e:
                raise ValueError(f"--output_dir {output_dir}: cannot be written ({e.strerror}); give another") from None

    def _read(self, about: dict, output_dir: str) -> None:
        lines = self.path.read_bytes().split(b"\n")
        whole_lines = lines[:-1]  # what follows the last line break was cut off in the middle
        if not whole_lines or json.loads(whole_lines[0]) != {"about": about}:
            raise ValueError(
                f"--output_dir {output_dir}: holds the evaluation of another model, prompts or K; give another, or --overwrite"
            )
        for line in whole_lines[1:]:
            row = json.loads(line)
            for i, texts in enumerate(row["texts"]):
                self.drawn[row["setting"], row["part"], row["seed"], row["first"] + i] = texts
        with open(self.path, "rb+") as file:
            file.truncate(sum(len(line) + 1 for line in whole_lines))

    def add(self, setting: str, part: str, seed: int, first: int, texts: list[list[str]]) -> None:
        self._append({"setting": setting, "part": part, "seed": seed, "first": first, "texts": texts})
        for i, of_prompt in enumerate(texts):
            self.drawn[setting, part, seed, first + i] = of_prompt

    def _append(self, row: dict) -> None:
        with open(self.path, "a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(row) + "\n")


def _draw_all(texts, parts, plan, mixture, base, k: int, longest: int, batch_size: int) -> None:
    """Draw what is not there yet."""
    size = max(1, batch_size // k)
    jobs = []
    for part, (prompts, seeds) in parts.items():
        for setting in plan:
            for seed in seeds if setting.random else seeds[:1]:
                missing = [i for i in range(len(prompts)) if (setting.name, part, seed, i) not in texts.drawn]
                # Prompts in a row, so that a line of the file can say where it begins.
                breaks = [0, *(j for j, (a, b) in enumerate(pairwise(missing), 1) if b != a + 1), len(missing)]
                for start, stop in pairwise(breaks):
                    run = missing[start:stop]
                    jobs += [(setting, part, seed, run[i : i + size]) for i in range(0, len(run), size)]
    console = Console(stderr=True)
    columns = (MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        bar, before = progress.add_task("", total=len(jobs)), None
        for setting, part, seed, indices in jobs:
            if not console.is_terminal and (part, setting.sampler) != before:
                print(f"{part} prompts: {setting.sampler}", file=sys.stderr)
                before = part, setting.sampler
            prompts = [parts[part][0][i] for i in indices]
            drawn = _draw(setting, prompts, mixture, base, k, longest, seed)
            texts.add(setting.name, part, seed, indices[0], drawn)
            progress.update(bar, advance=1, description=f"{part} prompts: {setting.name}")


@torch.no_grad()
def _draw(
    setting: Setting,
    prompts: list[str],
    mixture: MixtureOfThoughts,
    base: MixtureOfThoughts,
    k: int,
    longest: int,
    seed: int,
) -> list[list[str]]:
    """k texts of every prompt; thoughts in the order of their index."""
    temperature = setting.get("temperature", 1.0)
    if setting.sampler == "thoughts":
        thinking = mixture.think_batch(prompts, SamplingParams(k, longest, temperature, seed=seed))
        return [[t.text for t in sorted(thoughts, key=lambda t: t.index)] for thoughts in thinking]
    if setting.sampler == "one_thought":
        likeliest = [thoughts[0] for thoughts in mixture.think_batch(prompts, SamplingParams(1, 1, 0.0, creativity=0))]
        ids = [
            [*row, *mixture.tokens_of(t.index)] for row, t in zip(prompt_ids(mixture, prompts), likeliest, strict=True)
        ]
        return sample(mixture.model, mixture.tokenizer, ids, prompts, k, setting, longest, seed, mixture.thoughts)
    return sample(
        base.model, base.tokenizer, prompt_ids(base, prompts), prompts, k, setting, longest, seed, base.thoughts
    )


def prompt_ids(model: MixtureOfThoughts, prompts: list[str]) -> list[list[int]]:
    """As the model was trained to read them: behind what its tokenizer opens every text with."""
    return encode_prompts(model.tokenizer, prompts, "--prompts")


# Measuring ----------------------------------------------------------------------------------------------------------


class _Cases:
    """What the texts come to: verified, judged and measured, each once."""

    def __init__(
        self, texts: Texts, asked: dict[str, list[Asked]], parts: dict, task: str | None, judge, batch_size: int
    ):
        self.texts, self.asked, self.parts, self.task, self.judge = texts, asked, parts, task, judge
        self.batch_size = batch_size
        self.verify = lru_cache(None)(tasks.load(task).verify) if task else None
        self.nll: dict[tuple[str, str], float] = {}
        self.rows: dict[tuple, list[list[Case]]] = {}
        self.measured: dict[tuple, list[float]] = {}
        words = [text for (_, part, *_), drawn in texts.drawn.items() if part == "judged" for text in drawn]
        self.vocabulary = max(2, len({gram for text in set(words) for gram in metrics.ngrams(text, 2)}))

    def of(self, setting: Setting, part: str) -> list[list[Case]]:
        """A case for every seed and prompt; of a setting without chance, the one there is stands for every seed."""
        if (setting, part) not in self.rows:
            seeds = self.parts[part][1]
            rows = [self._row(setting, part, seed) for seed in (seeds if setting.random else seeds[:1])]
            self.rows[setting, part] = rows
        return self.rows[setting, part]

    def _row(self, setting: Setting, part: str, seed: int) -> list[Case]:
        drawn = [self.texts.drawn[setting.name, part, seed, i] for i in range(len(self.asked[part]))]
        pairs = list(zip(self.asked[part], drawn, strict=True))
        if self.judge:
            self._judge([(asked.prompt, text) for asked, texts in pairs for text in texts])
        return [
            Case(
                asked,
                texts,
                [self.verify(asked.prompt, text) for text in texts] if self.verify else None,
                [self.nll[asked.prompt, text] for text in texts] if self.judge else None,
                self.vocabulary,
                self.task,
            )
            for asked, texts in pairs
        ]

    @torch.no_grad()
    def _judge(self, pairs: list[tuple[str, str]]) -> None:
        """NLL per token of every text after its prompt; of an empty one, of the end of the text."""
        new = list(dict.fromkeys(pair for pair in pairs if pair not in self.nll))
        tokenizer, model = self.judge.tokenizer, self.judge.model
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        for i in range(0, len(new), self.batch_size):
            part = new[i : i + self.batch_size]
            said = [ids or [tokenizer.eos_token_id] for ids in encode(tokenizer, [t for _, t in part], "--judge")]
            rows = list(zip(prompt_ids(self.judge, [p for p, _ in part]), said, strict=True))
            batch = {name: t.to(model.device) for name, t in collate_rows(rows, pad).items()}
            nll = -base_logprobs(model, batch, pad) / batch["completion_mask"].sum(1)
            self.nll |= dict(zip(part, nll.tolist(), strict=True))

    def values(self, setting: Setting, part: str, name: str) -> list[float]:
        """A measure, once per unit: per prompt over its seeds, or per seed where there is a single prompt."""
        key = setting, part, name
        if key not in self.measured:
            rows = [[MEASURES[name].value(case) for case in cases] for cases in self.of(setting, part)]
            if len(self.asked[part]) > 1:
                self.measured[key] = [fmean(column) for column in zip(*rows, strict=True)]
            else:
                self.measured[key] = [row[0] for row in rows] * (1 if setting.random else len(self.parts[part][1]))
        return self.measured[key]

    def point(self, setting: Setting, part: str, quality: str | None, spread: str) -> Point:
        """Both aims, larger is better. Without a quality everything is equally good."""
        d = [MEASURES[spread].sign * value for value in self.values(setting, part, spread)]
        q = (
            [MEASURES[quality].sign * value for value in self.values(setting, part, quality)]
            if quality
            else [0.0] * len(d)
        )
        return Point(setting.name, q, d)


def _aims(known: set[str], judged: bool, task: str | None) -> tuple[str | None, str]:
    """(what is meant by good, what is meant by different)"""
    if "creative" in known:
        return "validity", "creativity"
    if task in TASKS:
        return "validity", "distinct_valid"
    return ("validity" if task else "judge_nll" if judged else "chrf" if "references" in known else None), "self_bleu"


# Comparing ----------------------------------------------------------------------------------------------------------


def _headline(tuned: dict[str, Point], plan: list[Setting], quality: str | None, spread: str) -> Setting | None:
    """The mixture's own setting: the most diverse of those that are as good as its best one."""
    ours = [s for s in plan if s.sampler == "thoughts"]
    if not ours:
        return None
    best = max(fmean(tuned[s.name].quality) for s in ours)
    tolerance = MEASURES[quality].tolerance if quality else 0
    good = [s for s in ours if fmean(tuned[s.name].quality) >= best - tolerance - 1e-9]
    return max(good, key=lambda s: fmean(tuned[s.name].diversity))


def _comparisons(
    points: dict, plan: list[Setting], headline: Setting | None, quality: str | None, spread: str
) -> list[dict]:
    """The mixture's setting against each sampler's best and against the best of all; its other settings against the latter."""
    if headline is None or quality is None:
        return []
    rivals: dict[str, list[Setting]] = {}
    for s in plan:
        if s.sampler != "thoughts":
            rivals.setdefault(s.sampler, []).append(s)
            rivals.setdefault("any", []).append(s)
    found = []
    for ours in [headline, *(s for s in plan if s.sampler == "thoughts" and s != headline)]:
        for sampler in reversed(rivals) if ours == headline else ["any"] if rivals else []:
            tuned = [points["tuned"][s.name] for s in rivals[sampler]]
            both = matched(
                points["tuned"][ours.name],
                tuned,
                seed=0,
                tolerance=MEASURES[quality].tolerance,
                judged=points["judged"],
            )
            for at, match in zip(("quality", "diversity"), both, strict=True):
                q = _signed(match.quality, MEASURES[quality].sign)
                d = _signed(match.diversity, MEASURES[spread].sign)
                met = "" if match.met else f" (none of its settings reaches the {at} of thoughts: this is the nearest)"
                found.append(
                    {
                        "mixture": ours.name,
                        "at": at,
                        "sampler": sampler,
                        "setting": match.setting.name,
                        "met": match.met,
                        "quality": q,
                        "diversity": d,
                        "sentence": f"{ours.name} minus {match.setting.name}{met}: {quality} {_words(q)}, {spread} {_words(d)}",
                    }
                )
    return found


def _verdict(comparisons: list[dict], headline: Setting | None, quality: str | None, spread: str) -> dict[str, str]:
    """Yes only if the mixture is more diverse than the best sampler of its quality, and chance does not explain it."""
    if headline is None:
        return {"answer": "none", "sentence": "The model has no thoughts: these are its samplers alone."}
    if quality is None:
        way_out = "give --judge, --task, or prompts with references"
        return {
            "answer": "none",
            "sentence": f"Nothing says how good the texts are, so different is not yet good; {way_out}.",
        }
    if not comparisons:
        return {"answer": "none", "sentence": "There is no sampler to compare with; give --baselines."}
    c = next(c for c in comparisons if c["sampler"] == "any" and c["at"] == "quality")
    d, sign = c["diversity"], MEASURES[spread].sign
    bound = d["low"] if sign > 0 else d["high"]
    yes = bound is not None and sign * bound > 0
    how = "of its quality" if c["met"] else "nearest to its quality, for none reaches it"
    return {
        "answer": "yes" if yes else "no",
        "sentence": f"{'Different and good' if yes else 'Not more different'}: against the most diverse of all samplers "
        f"{how} ({c['setting']}), {headline.name} has {spread} {_words(d)} and {quality} {_words(c['quality'])}.",
    }


def _words(i: dict) -> str:
    if i["low"] is None:
        return f"{i['mean']:+.3f}"
    return f"{i['mean']:+.3f} [{i['low']:+.3f}, {i['high']:+.3f}]"


def _signed(i: Interval, sign: int) -> dict[str, float | None]:
    return _finite(i if sign > 0 else Interval(-i.mean, -i.high, -i.low))


def _finite(i: Interval) -> dict[str, float | None]:
    low, high = (value if math.isfinite(value) else None for value in (i.low, i.high))
    return {"mean": i.mean, "low": low, "high": high}


def _interval(values: list[float]) -> dict[str, float | None]:
    return _finite(bootstrap(values, seed=0))


def _intervals(point: Point, quality: str | None, spread: str) -> dict:
    return {
        "quality": _interval([MEASURES[quality].sign * v for v in point.quality]) if quality else None,
        "diversity": _interval([MEASURES[spread].sign * v for v in point.diversity]),
    }


def _means(point: Point, quality: str | None, spread: str) -> dict:
    return {name: value and value["mean"] for name, value in _intervals(point, quality, spread).items()}


def _named(name: str) -> dict[str, str]:
    m = MEASURES[name]
    return {"name": name, "words": m.words, "unit": m.unit, "better": m.better, "tolerance": m.tolerance}


def _of(setting: Setting, mixture: MixtureOfThoughts, plain: str | None) -> str:
    if setting.sampler in ("thoughts", "one_thought"):
        return "mixture"
    return "plain" if plain else "trunk" if mixture.thoughts else "model"


# What the thoughts are like -----------------------------------------------------------------------------------------


def _thoughts(mixture: MixtureOfThoughts, cases: _Cases, headline: Setting | None, k: int) -> dict | None:
    """Similarity of thoughts, how long they last and how probable they are; of words of thought tokens, the last only."""
    if headline is None:
        return None
    prompts = [a.prompt for a in cases.asked["judged"]]
    usage = torch.stack([mixture.route(prompt) for prompt in prompts]).mean(0).tolist()
    if k != mixture.num_thoughts or mixture.thought_length > 1:
        return {"similarity": None, "similarity_words": "", "persistence": None, "usage": usage}
    (first, *_) = cases.of(headline, "judged")
    if cases.task:
        same = [[[float(a == b and a is not None) for b in c.answers] for a in c.answers] for c in first]
        similarity, words = torch.tensor(same).mean(0), "share of the prompts to which both give the same valid answer"
    else:
        similarity = torch.stack([metrics.ngram_similarity(c.texts) for c in first]).mean(0)
        words = "cosine of the two texts' counts of words and word pairs, mean over the prompts"
    return {
        "similarity": similarity.tolist(),
        "similarity_words": words,
        "persistence": _persistence(mixture, first[:READ]),
        "usage": usage,
    }


@torch.no_grad()
def _persistence(mixture: MixtureOfThoughts, cases: list[Case]) -> list[float] | None:
    """Mean divergence of the thoughts at each place of a continuation, as long as half of the continuations are.

    A continuation of thought 0, 1, 2, ... of the prompts in turn is read under every thought.
    """
    curves = []
    for i, case in enumerate(cases):
        said = encode(mixture.tokenizer, [case.texts[i % len(case.texts)]], "--prompts")[0]
        if said:
            rows = [
                [*ids, *mixture.tokens_of(n), *said]
                for ids in prompt_ids(mixture, [case.asked.prompt])
                for n in range(mixture.num_thoughts)
            ]
            logits = mixture.model(torch.tensor(rows, device=mixture.model.device)).logits
            logits = logits[:, -len(said) - 1 : -1].float()
            logits[..., mixture.thoughts] = -math.inf  # never said
            curves.append(metrics.persistence(logits).tolist())
    longest = max(map(len, curves), default=0)
    columns = [[curve[t] for curve in curves if t < len(curve)] for t in range(longest)]
    return [fmean(column) for column in columns if 2 * len(column) >= len(curves)] or None


def _samples(cases: _Cases, headline: Setting | None, comparisons: list[dict], plan: list[Setting]) -> list[dict]:
    """K texts of the mixture beside K of the best sampler, for the first judged prompts."""
    best = next((c["setting"] for c in comparisons if c["sampler"] == "any" and c["at"] == "quality"), None)
    shown = [headline] * bool(headline) + [s for s in plan if s.name == best] or plan[:1]
    columns = {s: cases.of(s, "judged")[0] for s in shown}
    label = {s: "thought" if s.sampler == "thoughts" else "sample" for s in shown}
    return [
        {
            "prompt": asked.prompt,
            "columns": [
                {
                    "name": s.name,
                    "texts": [
                        {
                            "label": f"{label[s]} {j}",
                            "text": text,
                            "valid": of[i].answers and of[i].answers[j] is not None,
                            "answer": of[i].answers and of[i].answers[j],
                        }
                        for j, text in enumerate(of[i].texts[:24])
                    ],
                }
                for s, of in columns.items()
            ],
        }
        for i, asked in enumerate(cases.asked["judged"][:SHOWN])
    ]
