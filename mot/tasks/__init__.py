"""Tasks with known answers: what to train on, what is right, and how many right answers there are.

    tasks.training("forks", seed=42), tasks.held_out("forks")     rows (prompt, completion)
    task = tasks.load("forks")                                    a `Task`: rows, verify, answers
    len({task.verify(prompt, text) for text in texts} - {None})   distinct valid answers, for every task alike
    independence_ceiling(task.answers(prompt), 8)                 how many of them 8 independent draws can find

To add a task, write one file that satisfies `Task` and name it in TASKS, with its `Facts`. A task with a parameter is
an instance whose bound methods the file exports, as in `rows, verify, answers = default.rows, default.verify,
default.answers`.

Two tasks have no prompt and too many answers to count. They are scored by `creativity`, against their one training set.
No torch here, and nothing heavy: a task imports what it needs inside its functions.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

Pairs = list[tuple[str, str]]
RowTexts = list[tuple[str, ...]]  # (prompt, completion), or with a key (prompt, completion, key)


class Task(Protocol):
    """What a file of this folder offers."""

    def rows(self, n: int, seed: int) -> RowTexts:
        """n rows (prompt, completion), the same for the same seed. Raises ValueError if the rows come from a file.

        A third field is the row's key: what should differ between thoughts, such as the answer in its one spelling.
        """

    def verify(self, prompt: str, text: str) -> str | None:
        """The answer that `text` gives, in its one spelling, or None if it gives no valid answer."""

    def answers(self, prompt: str) -> int | None:
        """How many different answers the prompt has; None if that is unknown."""


@dataclass(frozen=True)
class Facts:
    """What the commands must know of a task before they load it."""

    answer_tokens: int | None = None  # room for the longest answer and its end-of-text token; None: unknown
    own_rows: bool = True  # it makes its rows and held-out prompts; otherwise they come from files
    recurring: bool = False  # it has few prompts, so rows are held out, not prompts
    creative: bool = False  # it is scored by `creativity`
    training_rows: int | None = None  # rows of its one training set; None: --seed draws TRAIN_ROWS of them
    plain: str = ""  # what a plain model of equal training FLOPs finds, from docs/results (tests/test_results.py)
    match_share: float = 0.0  # share of a run's last steps that match verified answers (--match_steps)
    words: bool = False  # its answers are sentences, so measures of words make sense
    measures: tuple[str, ...] = ()  # further functions of its file, (prompt, text) -> what an evaluation counts


MATCH_SHARE = 1 / 3
TASKS = {
    "forks": Facts(answer_tokens=7, match_share=MATCH_SHARE),
    "chains": Facts(answer_tokens=17, recurring=True),
    "circle": Facts(answer_tokens=20, recurring=True, creative=True, training_rows=10_000),
    "siblings": Facts(answer_tokens=7, recurring=True, creative=True, training_rows=50_000),
    "countdown": Facts(answer_tokens=16),
    "countdown_free": Facts(answer_tokens=16),
    "spellings": Facts(answer_tokens=7, match_share=MATCH_SHARE, plain="best sampler 5.17, beam of 8 1.25"),
    "isomers": Facts(own_rows=False),
    "e2e": Facts(own_rows=False, words=True, measures=("added", "plan")),
}
OWN_ROWS = tuple(name for name, facts in TASKS.items() if facts.own_rows)
CREATIVE = tuple(name for name, facts in TASKS.items() if facts.creative)

TRAIN_ROWS, HELD_OUT_ROWS = 100_000, 512
HELD_OUT_SEED = 2**40  # greater than any --seed: held-out prompts are the same for every run
CREATIVE_SEED = HELD_OUT_SEED + 1


def load(name: str) -> Task:
    """The task of that name."""
    assert name in TASKS, name
    return import_module(f"mot.tasks.{name}")


def held_out(name: str) -> Pairs:
    """Rows (prompt, completion) that no run trains on. Unless prompts recur, no run sees their prompts either."""
    return [row[:2] for row in load(name).rows(HELD_OUT_ROWS, HELD_OUT_SEED)]


def training(name: str, seed: int) -> RowTexts:
    """Rows (prompt, completion), or (prompt, completion, key), to train on, without those that are held out.

    A creative task has one training set for all seeds, because an evaluation must know what the model has seen.
    """
    facts, unseen = TASKS[name], set(held_out(name))
    prompts = set() if facts.recurring else {row[0] for row in unseen}
    number, seed = (facts.training_rows, CREATIVE_SEED) if facts.training_rows else (TRAIN_ROWS, seed)
    return [row for row in load(name).rows(number, seed) if row[0] not in prompts and row[:2] not in unseen]


def independence_ceiling(answers: int, k: int) -> float:
    """Most distinct answers that k independent draws find in expectation: M (1 - (1 - 1/M)^k), 1 .. min(M, k).

    The uniform distribution over the M answers attains it, so no temperature, top-p or seed finds more.
    """
    return answers * (1 - (1 - 1 / answers) ** k)


def creativity(name: str, texts: list[str], training: RowTexts) -> float:
    """Share of `texts` that are valid, not answers of training rows, and not repeats of one another: 0 .. 1.

    "Algorithmic creativity" of Nagarajan et al. 2025 (arXiv 2504.15266). Raises ValueError if there are no texts.
    """
    if not texts:
        raise ValueError("creativity: no texts; sample at least one")
    return len(_answers(name, texts) - _answers(name, [row[1] for row in training])) / len(texts)


def creativity_ceiling(name: str, training: RowTexts, samples: int) -> float:
    """Expected creativity of a perfect sampler of the training distribution, given these training rows: 0 .. 1, exact.

    It draws `samples` times uniformly from the M answers, of which the training rows show U:
    (M - U)(1 - (1 - 1/M)^samples) / samples. Thoughts are not independent draws and may exceed it.
    """
    M, U = load(name).answers(""), len(_answers(name, [row[1] for row in training]))
    return (M - U) / M * independence_ceiling(M, samples) / samples


def _answers(name: str, texts: Iterable[str]) -> set[str]:
    verify = load(name).verify
    return {verify("", text) for text in texts} - {None}
