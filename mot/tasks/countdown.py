"""countdown: four numbers and a target; an expression that reaches it, each number used at most once.

    prompt   "3,4,7,12=31>"     four numbers of 2 .. 13 in ascending order, a target of 1 .. 100 that is none of them
    answer   "3+4*7"            + - * / and parentheses; need not use every number; arithmetic is exact (fractions)

Spellings that differ only by commuting, regrouping, needless parentheses or moved signs are one answer, such as 7*4+3
and (3)+(4*7), or 13-2*(4-9) and 13+2*(9-4). For numbers in general position, two spellings are one answer exactly if
they are the same rational function of the numbers. No number is 1, because x*1 and x/1 would be different answers.
"""

import ast
import random
import re
from collections import Counter
from fractions import Fraction
from typing import NamedTuple

NUMBERS = range(2, 14)
GIVEN = 4
USED = (2, 3, 3, 4, 4, 4, 4, 4)  # how many of them a training answer uses; each entry is equally likely
TARGETS = range(1, 101)
LONGEST = 40  # most characters of an answer; without needless parentheses 15 are enough
TOKEN = re.compile(r"[1-9][0-9]?|[-+*/()]")


class Node(NamedTuple):
    """A computation up to its sign: value >= 0, its one spelling, and its terms or factors with their signs (1, -1)."""

    value: Fraction
    text: str
    kind: str  # "+": a sum of terms, "*": a product of factors, "": a number
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
        signed = [(o * s if term.value else 1, term) for s, term in terms]  # x + 0 and x - 0 are the same
        return sorted(signed, key=lambda part: (-part[0], part[1].text))

    def spelling(parts: list[tuple[int, Node]]) -> str:
        return "".join("-+"[s > 0] + term.text for s, term in parts).removeprefix("+")

    orientations = [oriented(1 if value > 0 else -1)] if value else [oriented(1), oriented(-1)]
    parts = min((p for p in orientations if p[0][0] > 0), key=spelling)
    return 1 if value >= 0 else -1, Node(abs(value), spelling(parts), "+", tuple(parts))


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
    """The computation in its one spelling, if it hits the target with the prompt's numbers, each at most once."""
    numbers, target = _problem(prompt)
    if len(text) > LONGEST or "".join(TOKEN.findall(text)) != text:
        return None
    try:
        sign, node, used = parse(text)
    except (SyntaxError, ZeroDivisionError):
        return None
    return node.text if sign * node.value == target and Counter(used) <= Counter(numbers) else None


def parse(text: str) -> tuple[int, Node, list[int]]:
    """(sign, node of the absolute value, numbers used) of an expression of TOKENs, at most LONGEST characters.

    Raises SyntaxError for anything but numbers, + - * / and parentheses, and ZeroDivisionError.
    """
    used: list[int] = []

    def walk(tree: ast.expr) -> tuple[int, Node]:
        match tree:
            case ast.Constant(value=n):
                used.append(n)
                return 1, number(n)
            case ast.BinOp(left, ast.Add() | ast.Sub() as operator, right):
                (s, a), (t, b) = walk(left), walk(right)
                # s * a + plus * t * b  =  s * (a + s * plus * t * b)
                plus = 1 if isinstance(operator, ast.Add) else -1
                sign, node = add(a, b, s * plus * t)
                return s * sign, node
            case ast.BinOp(left, ast.Mult() | ast.Div() as operator, right):
                (s, a), (t, b) = walk(left), walk(right)
                node = multiply(a, b, 1 if isinstance(operator, ast.Mult) else -1)
                if node is None:
                    raise ZeroDivisionError
                return s * t, node
        raise SyntaxError  # a sign, a power, a call: Python knows more than this task

    sign, node = walk(ast.parse(text, mode="eval").body)
    return sign, node, used


def solutions(prompt: str) -> list[str]:
    """Every answer to the prompt in its one spelling, sorted, by search over all computations (about 10 ms)."""
    numbers, target = _problem(prompt)
    everything = 2 ** len(numbers) - 1
    nodes = {1 << i: {str(n): number(n)} for i, n in enumerate(numbers)}  # by the set of numbers used, then by spelling
    reached = {str(n) for n in numbers if n == target}
    for used in range(1, everything + 1):
        made = nodes.setdefault(used, {})
        for part in range(1, used):
            rest = used ^ part
            if part & used != part or part > rest:
                continue
            for a in nodes[part].values():
                for b in nodes[rest].values():
                    # With all four numbers, only computations that hit the target are built: building takes the time.
                    for node in _combined(a, b, target if used == everything else None):
                        made[node.text] = node
        reached |= {text for text, node in made.items() if node.value == target}
    return sorted(reached)


def _combined(a: Node, b: Node, target: int | None) -> list[Node]:
    """The computations with operands a and b, up to sign: all of them, or those with the value `target`."""
    x, y, some = a.value, b.value, target is None
    made = [add(a, b, 1)[1]] if some or x + y == target else []
    made += [add(a, b, -1)[1]] if some or abs(x - y) == target else []
    made += [multiply(a, b, 1)] if some or x * y == target else []
    made += [multiply(a, b, -1)] if y and (some or x == target * y) else []
    made += [multiply(b, a, -1)] if x and (some or y == target * x) else []
    return made


def answers(prompt: str) -> int:
    """How many different computations reach the target."""
    return len(solutions(prompt))
