"""countdown: four numbers and a target; an expression that reaches it, each number used at most once.

    prompt   "3,4,7,12=31>"     four numbers of 2 .. 13 in ascending order, a target of 1 .. 100 that is none of them
    answer   "3+4*7"            + - * / and parentheses; need not use every number; arithmetic is exact (fractions)

Two spellings of one computation are one answer: what commuting, regrouping, needless parentheses and moved signs leave the
same, as 7*4+3 and (3)+(4*7), or 13-2*(4-9) and 13+2*(9-4). For numbers in general position, spellings are one answer exactly
if they are one rational function of the numbers. No number is 1: x*1 and x/1 would be two, and every answer would have many.
"""

import random
import re
from collections import Counter
from fractions import Fraction
from typing import NamedTuple

NUMBERS = range(2, 14)
GIVEN = 4
USED = (2, 3, 3, 4, 4, 4, 4, 4)  # how many of them a training answer uses, each as likely
TARGETS = range(1, 101)
LONGEST = 40  # characters of an answer; the longest that has no needless parentheses takes 15
TOKEN = re.compile(r"[1-9][0-9]?|[-+*/()]")


class Node(NamedTuple):
    """A computation up to its sign: value >= 0, its one spelling, and the signed (1, -1) terms or factors it consists of."""

    value: Fraction
    text: str
    kind: str  # "+" of terms, "*" of factors, "" a number
    parts: tuple[tuple[int, "Node"], ...]


def number(n: int) -> Node:
    return Node(Fraction(n), str(n), "", ())


def _parts(kind: str, sign: int, node: Node) -> list[tuple[int, Node]]:
    return [(sign * s, part) for s, part in node.parts] if node.kind == kind else [(sign, node)]


def add(a: Node, b: Node, sign: int) -> tuple[int, Node]:
    """a + b or a - b (sign -1) as (its sign, the node of its absolute value)."""
    terms = _parts("+", 1, a) + _parts("+", sign, b)
    value = sum((s * term.value for s, term in terms), Fraction(0))

    def oriented(o: int) -> list[tuple[int, Node]]:
        signed = [(o * s if term.value else 1, term) for s, term in terms]  # x + 0 and x - 0 are one
        return sorted(signed, key=lambda part: (-part[0], part[1].text))

    def spelt(parts: list[tuple[int, Node]]) -> str:
        return "".join("-+"[s > 0] + term.text for s, term in parts).removeprefix("+")

    orientations = [oriented(1 if value > 0 else -1)] if value else [oriented(1), oriented(-1)]
    parts = min((p for p in orientations if p[0][0] > 0), key=spelt)
    return 1 if value >= 0 else -1, Node(abs(value), spelt(parts), "+", tuple(parts))


def multiply(a: Node, b: Node, exponent: int) -> Node | None:
    """a * b or a / b (exponent -1); None for a division by zero."""
    if exponent < 0 and not b.value:
        return None
    factors = _parts("*", 1, a) + _parts("*", exponent, b)
    factors.sort(key=lambda part: (-part[0], part[1].text))
    text = "".join("/*"[s > 0] + (f"({f.text})" if f.kind == "+" else f.text) for s, f in factors).removeprefix("*")
    return Node(a.value * b.value**exponent, text, "*", tuple(factors))


def rows(n: int, seed: int) -> list[tuple[str, str]]:
    """n pairs (prompt, one of its answers in its one spelling), the same for the same seed.

    The answer is a random expression of two to four of the numbers, so a prompt's answers are not equally likely.
    """
    rng = random.Random(f"countdown {seed}")
    drawn = []
    while len(drawn) < n:
        numbers = sorted(rng.choices(NUMBERS, k=GIVEN))
        node = _random_expression(rng, rng.sample(numbers, rng.choice(USED)))
        if node and node.value.denominator == 1 and node.value in TARGETS and node.value not in numbers:
            drawn.append((f"{','.join(map(str, numbers))}={node.value}>", node.text))
    return drawn


def _random_expression(rng: random.Random, numbers: list[int]) -> Node | None:
    nodes = [number(n) for n in numbers]
    while len(nodes) > 1:
        a, b = (nodes.pop(rng.randrange(len(nodes))) for _ in range(2))
        operation = rng.choice("+-*/")
        if operation in "+-":
            nodes.append(add(a, b, 1 if operation == "+" else -1)[1])
        elif node := multiply(a, b, 1 if operation == "*" else -1):
            nodes.append(node)
        else:
            return None
    return nodes[0]


def _problem(prompt: str) -> tuple[list[int], int]:
    numbers, target = prompt.removesuffix(">").split("=")
    return [int(n) for n in numbers.split(",")], int(target)


def verify(prompt: str, text: str) -> str | None:
    """The computation in its one spelling, if the text is one of the prompt's numbers, each at most once, with its target."""
    numbers, target = _problem(prompt)
    tokens = TOKEN.findall(text)
    if len(text) > LONGEST or "".join(tokens) != text:
        return None
    used = Counter(int(t) for t in tokens if t.isdigit())
    try:
        sign, node = _expression(tokens)
    except (_NotAnExpression, ZeroDivisionError):
        return None
    return node.text if not tokens and sign * node.value == target and used <= Counter(numbers) else None


class _NotAnExpression(Exception):
    pass


# expression = term (("+" | "-") term)*    term = factor (("*" | "/") factor)*    factor = number | "(" expression ")"
# Each takes its tokens off the front of the list, or raises.


def _expression(tokens: list[str]) -> tuple[int, Node]:
    sign, node = _term(tokens)
    while tokens and tokens[0] in "+-":
        plus = 1 if tokens.pop(0) == "+" else -1
        s, following = _term(tokens)
        # sign * node + plus * s * following, up to the first sign
        flipped, node = add(node, following, sign * plus * s)
        sign *= flipped
    return sign, node


def _term(tokens: list[str]) -> tuple[int, Node]:
    sign, node = _factor(tokens)
    while tokens and tokens[0] in "*/":
        exponent = 1 if tokens.pop(0) == "*" else -1
        s, following = _factor(tokens)
        node = multiply(node, following, exponent)
        if node is None:
            raise ZeroDivisionError
        sign *= s
    return sign, node


def _factor(tokens: list[str]) -> tuple[int, Node]:
    first = tokens.pop(0) if tokens else ""
    if first.isdigit():
        return 1, number(int(first))
    if first != "(":
        raise _NotAnExpression
    inside = _expression(tokens)
    if not tokens or tokens.pop(0) != ")":
        raise _NotAnExpression
    return inside


def solutions(prompt: str) -> list[str]:
    """Every answer to the prompt in its one spelling, sorted: by search over all computations (some 10 ms)."""
    numbers, target = _problem(prompt)
    everything = 2 ** len(numbers) - 1
    nodes = {1 << i: {str(n): number(n)} for i, n in enumerate(numbers)}  # by the set of places used, then by spelling
    reached = {str(n) for n in numbers if n == target}
    for used in range(1, everything + 1):
        made = nodes.setdefault(used, {})
        for part in range(1, used):
            rest = used ^ part
            if part & used != part or part > rest:
                continue
            for a in nodes[part].values():
                for b in nodes[rest].values():
                    # Of all four numbers only what hits the target is spelt out: that is what takes time.
                    for node in _combined(a, b, target if used == everything else None):
                        made[node.text] = node
        reached |= {text for text, node in made.items() if node.value == target}
    return sorted(reached)


def _combined(a: Node, b: Node, target: int | None) -> list[Node]:
    """The computations that have a and b as operands, up to sign: all, or those with the value `target`."""
    x, y, some = a.value, b.value, target is None
    made = [add(a, b, 1)[1]] if some or x + y == target else []
    made += [add(a, b, -1)[1]] if some or abs(x - y) == target else []
    made += [multiply(a, b, 1)] if some or x * y == target else []
    made += [multiply(a, b, -1)] if y and (some or x == target * y) else []
    made += [multiply(b, a, -1)] if x and (some or y == target * x) else []
    return made


def answers(prompt: str) -> int:
    """Different computations that reach the target."""
    return len(solutions(prompt))
