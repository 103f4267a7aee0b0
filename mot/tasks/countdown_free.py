"""countdown_free: countdown whose answers are spelled in any way: operands in random order, with needless parentheses.

    prompt   "3,4,7,12=31>"     as in mot/tasks/countdown.py
    answer   "(4*7)+3"          any spelling of the computation
    key      "3+4*7"            its one spelling: what should differ between thoughts

The verifier, the identity of answers and their number are countdown's.
"""

import random

from mot.tasks import countdown
from mot.tasks.countdown import Node, answers, verify

__all__ = ["answers", "rows", "verify"]

WRAPPED = 0.25  # chance of needless parentheses around a composite part, and around the first two parts


def rows(n: int, seed: int) -> list[tuple[str, str, str]]:
    """n rows (prompt, completion, key): countdown's own rows, each answer in a random spelling."""
    rng = random.Random(f"countdown_free {seed}")
    found = []
    for prompt, key in countdown.rows(n, seed):
        _, node, _ = countdown.parse(key)
        found.append((prompt, respell(node, rng), key))
    return found


def respell(node: Node, rng: random.Random) -> str:
    """A random spelling of a computation: its value and its identity stay, order and parentheses do not."""
    if not node.parts:
        return node.text
    positive, negative = node.kind, "-" if node.kind == "+" else "/"
    parts = list(node.parts)
    first = rng.choice([part for part in parts if part[0] > 0])
    parts.remove(first)
    rng.shuffle(parts)
    text, wrap = _operand(first[1], node.kind, rng), len(parts) > 1 and rng.random() < WRAPPED
    for i, (sign, part) in enumerate(parts):
        text += (positive if sign > 0 else negative) + _operand(part, node.kind, rng)
        if i == 0 and wrap:
            text = f"({text})"
    return text


def _operand(part: Node, inside: str, rng: random.Random) -> str:
    text = respell(part, rng)
    needed = part.kind == "+" and inside == "*"
    return f"({text})" if needed or (part.parts and rng.random() < WRAPPED) else text
