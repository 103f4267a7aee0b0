"""Tasks with known answers: one module each, all of one shape, with ceilings computed in code.

    rows(n, seed) -> [(prompt, completion)]     the same for the same seed
    verify(prompt, text) -> str | None          the answer that the text is, spelt one way only; None if it is none
    answers(prompt) -> int                      how many different answers the prompt has

So `len({verify(prompt, text) for text in texts} - {None})` counts different answers for every task alike, and
`independence_ceiling` says how many of them independent draws could find. Two tasks have no prompt and so many answers
that counting is not the point: they are judged by `creativity` against their one training set.
"""

from collections.abc import Iterable
from importlib import import_module
from types import ModuleType

TASKS = ("forks", "chains", "circle", "siblings", "countdown")
Pairs = list[tuple[str, str]]
TRAIN_ROWS, HELD_OUT_ROWS = 100_000, 512
HELD_OUT_SEED = 2**40  # no --seed reaches it: held-out prompts are the same for every run
CREATIVE = {"circle": 10_000, "siblings": 50_000}  # tasks judged by `creativity`, and the rows of their training set
CREATIVE_SEED = HELD_OUT_SEED + 1
RECURRING = ("chains", *CREATIVE)  # tasks of few prompts: their rows are held out, not their prompts


def load(name: str) -> ModuleType:
    """The task's module: `rows`, `verify`, `answers`."""
    assert name in (*TASKS, "e2e"), name
    return import_module(f"mot.tasks.{name}")


def held_out(name: str) -> Pairs:
    """Rows (prompt, completion) that no training run sees; of a task that is not `RECURRING`, not even their prompts."""
    return load(name).rows(HELD_OUT_ROWS, HELD_OUT_SEED)


def training(name: str, seed: int) -> Pairs:
    """Rows (prompt, completion) to train on, what is held out left out.

    A creative task has one training set whatever the seed: whoever judges a model must know what it has seen.
    """
    unseen = set(held_out(name))
    prompts = set() if name in RECURRING else {prompt for prompt, _ in unseen}
    number, seed = (CREATIVE[name], CREATIVE_SEED) if name in CREATIVE else (TRAIN_ROWS, seed)
    return [row for row in load(name).rows(number, seed) if row[0] not in prompts and row not in unseen]


def independence_ceiling(answers: int, k: int) -> float:
    """Most distinct answers, in expectation, that k independent draws find, 1 .. min(answers, k): M (1 - (1 - 1/M)^k).

    Uniform over the M answers is the best law for it, so no temperature, top-p or seed gets further.
    """
    return answers * (1 - (1 - 1 / answers) ** k)


def creativity(name: str, texts: list[str], training: Pairs) -> float:
    """Share of `texts` that are valid, answers not in the training rows, and not repeats of one another: 0 .. 1.

    "Algorithmic creativity" of Nagarajan et al. 2025 (arXiv 2504.15266). Raises ValueError if there are no texts.
    """
    if not texts:
        raise ValueError("creativity: no texts; sample at least one")
    return len(_said(name, texts) - _said(name, [text for _, text in training])) / len(texts)


def creativity_ceiling(name: str, training: Pairs, samples: int) -> float:
    """Expected creativity of a perfect sampler of the training law, after these training rows: 0 .. 1, closed form.

    It draws `samples` times uniformly from the M answers, U of them in the training rows:
    (M - U)(1 - (1 - 1/M)^samples) / samples. Drawing independently is what it pays for; thoughts may go beyond it.
    """
    M, U = load(name).answers(""), len(_said(name, [text for _, text in training]))
    return (M - U) / M * independence_ceiling(M, samples) / samples


def _said(name: str, texts: Iterable[str]) -> set[str]:
    verify = load(name).verify
    return {verify("", text) for text in texts} - {None}
