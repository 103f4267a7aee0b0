"""Tasks with known answers: one module each, with `rows`, `verify` and known ceilings, all computed in code."""

from importlib import import_module
from types import ModuleType

from mot.config import TASKS

TRAIN_ROWS, HELD_OUT_ROWS = 100_000, 512
HELD_OUT_SEED = 2**40  # no --seed reaches it: held-out prompts are the same for every run


def load(name: str) -> ModuleType:
    """The task's module: `rows(n, seed)`, `verify(prompt, answer)`, `ANSWERS`, `independence_ceiling(k)`."""
    assert name in TASKS, name
    return import_module(f"mot.tasks.{name}")


def held_out(name: str) -> list[tuple[str, str]]:
    """Rows (prompt, completion) that no training run sees the prompt of."""
    return load(name).rows(HELD_OUT_ROWS, HELD_OUT_SEED)


def training(name: str, seed: int) -> list[tuple[str, str]]:
    """Rows (prompt, completion) to train on; rows with a held-out prompt are left out."""
    unseen = {prompt for prompt, _ in held_out(name)}
    return [row for row in load(name).rows(TRAIN_ROWS, seed) if row[0] not in unseen]
