"""The measures of an evaluation: each is a number for the K texts of one prompt, with its name, unit and direction.

    MEASURES["validity"].value(case)        # 0 to 1

Formulas, ranges and sources stand in mot/evaluation/metrics.py. To add a measure, add an entry to MEASURES.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean

from mot import tasks
from mot.evaluation import metrics
from mot.evaluation.prompts import EvaluationPrompt
from mot.evaluation.schema import MeasureInfo


@dataclass(frozen=True)
class Case:
    """K texts of one prompt, with what is known of them.

    `answers`: the verifier's answer of each text, None if the text is invalid. `nll`: nats per token of each text, by
    the judge. `vocabulary`: number of different word bigrams in everything that is compared.
    """

    item: EvaluationPrompt
    texts: list[str]
    answers: list[str | None] | None
    nll: list[float] | None
    vocabulary: int
    task: str | None


@dataclass(frozen=True)
class Measure:
    """A number for a `Case`.

    `needs`: what must be known, of "task", "countable", "creative", "added", "plan", "references" and "judge".
    `tolerance`: a loss of at most this counts as equal quality. `worthless`: a mean of this value says that no text is
    of any use.
    """

    description: str
    unit: str
    better: str
    value: Callable[[Case], float]
    needs: tuple[str, ...] = ()
    tolerance: float = 0.01
    worthless: float | None = None

    @property
    def sign(self) -> int:
        """Values times this: larger is better."""
        return 1 if self.better == "higher" else -1


def info(name: str) -> MeasureInfo:
    m = MEASURES[name]
    return MeasureInfo(name, m.description, m.unit, m.better, m.tolerance)


def axes(known: set[str], task: str | None) -> tuple[str | None, str]:
    """(measure of quality, measure of diversity) for prompts of which this is known; quality may be None."""
    if "creative" in known:
        return "validity", "creativity"
    if task and not tasks.TASKS[task].words:
        return "validity", "distinct_valid"
    for need, quality in (("task", "validity"), ("judge", "judge_nll"), ("references", "chrf")):
        if need in known:
            return quality, "self_bleu"
    return None, "self_bleu"


@lru_cache(2)
def training_rows(task: str) -> tasks.Pairs:
    return tasks.training(task, 0)


def _recall(case: Case) -> float:
    """distinct valid / min(M, K)"""
    reachable = min(tasks.load(case.task).answers(case.item.prompt), len(case.texts))
    return metrics.distinct_answers(case.answers) / reachable


def _pass_at_k(case: Case) -> float:
    return metrics.pass_at_k(len(case.texts), sum(a is not None for a in case.answers), len(case.texts))


def _majority_at_k(case: Case) -> float:
    correct = {text for text, answer in zip(case.texts, case.answers, strict=True) if answer is not None}
    return metrics.majority_at_k(case.texts, correct)


@lru_cache(None)
def _plan(task: str, prompt: str, text: str) -> str | None:
    return tasks.load(task).plan(prompt, text)


def _plans(case: Case) -> int:
    return metrics.distinct_answers([_plan(case.task, case.item.prompt, text) for text in case.texts])


def _added(case: Case) -> float:
    return fmean(bool(tasks.load(case.task).added(case.item.prompt, text)) for text in case.texts)


def _chrf(case: Case) -> float:
    return fmean(metrics.chrf([text], [list(case.item.references)]) for text in case.texts)


def _bleu(case: Case) -> float:
    return metrics.bleu(case.texts, [list(case.item.references)] * len(case.texts))


MEASURES: dict[str, Measure] = {
    "validity": Measure(
        "share of the texts that the task's verifier accepts",
        "0 to 1",
        "higher",
        lambda c: fmean(answer is not None for answer in c.answers),
        ("task",),
        worthless=0.0,
    ),
    "distinct_valid": Measure(
        "different valid answers among the K texts",
        "answers",
        "higher",
        lambda c: metrics.distinct_answers(c.answers),
        ("task",),
    ),
    "recall": Measure(
        "different valid answers over those that K texts can reach, min(M, K) for M answers of the prompt",
        "0 to 1",
        "higher",
        _recall,
        ("task", "countable"),
    ),
    "plans": Measure(
        "different plans of the K texts: orders in which valid texts mention the prompt's slots, sentence by sentence",
        "plans",
        "higher",
        _plans,
        ("task", "plan"),
    ),
    "creativity": Measure(
        "share of the texts that are valid, not in the training set and not repeated",
        "0 to 1",
        "higher",
        lambda c: tasks.creativity(c.task, c.texts, training_rows(c.task)),
        ("task", "creative"),
    ),
    "pass_at_k": Measure("is one of the K texts valid?", "0 to 1", "higher", _pass_at_k, ("task",)),
    "majority_at_k": Measure(
        "is the most frequent text valid? ties are broken at random", "0 to 1", "higher", _majority_at_k, ("task",)
    ),
    "added": Measure(
        "share of the texts that state a slot that is not in the prompt", "0 to 1", "lower", _added, ("task", "added")
    ),
    "judge_nll": Measure(
        "NLL of the texts under the judge", "nats per token of the judge", "lower", lambda c: fmean(c.nll), ("judge",)
    ),
    "chrf": Measure(
        "chrF of each text against the prompt's references",
        "0 to 100",
        "higher",
        _chrf,
        ("references",),
        tolerance=1.0,
    ),
    "bleu": Measure(
        "BLEU of the texts against the prompt's references",
        "0 to 100",
        "higher",
        _bleu,
        ("references",),
        tolerance=1.0,
    ),
    "chrf_coverage": Measure(
        "chrF of each reference against the closest text",
        "0 to 100",
        "higher",
        lambda c: metrics.chrf_coverage(c.texts, list(c.item.references)),
        ("references",),
    ),
    "self_bleu": Measure(
        "BLEU of each text against the other texts of its prompt",
        "0 to 100",
        "lower",
        lambda c: metrics.self_bleu(c.texts),
    ),
    "pairwise_bleu": Measure("BLEU over pairs of texts", "0 to 100", "lower", lambda c: metrics.pairwise_bleu(c.texts)),
    "distinct_1": Measure(
        "different words over all words", "0 to 1", "higher", lambda c: metrics.distinct_n(c.texts, 1)
    ),
    "distinct_2": Measure(
        "different word pairs over all word pairs", "0 to 1", "higher", lambda c: metrics.distinct_n(c.texts, 2)
    ),
    "ead_2": Measure(
        "distinct_2 over its expectation for uniform draws",
        "0 to 1.58",
        "higher",
        lambda c: metrics.ead(c.texts, 2, c.vocabulary),
    ),
    "vendi": Measure("effective number of different texts", "1 to K", "higher", lambda c: metrics.vendi_score(c.texts)),
    "compression": Measure("bytes over gzipped bytes", "ratio", "lower", lambda c: metrics.compression_ratio(c.texts)),
    "different_texts": Measure("number of different texts among the K", "texts", "higher", lambda c: len(set(c.texts))),
}
