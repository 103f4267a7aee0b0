"""circle: only one directed cycle of nine is an answer, and its plan is its identity."""

import math
from collections import Counter
from itertools import pairwise, permutations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mot.tasks import circle


def plan_by_trying(text: str, nodes: str, edges: int) -> str | None:
    """The plan by definition: the edges from the first on, each of which begins where the one before ended."""
    pairs = [text[i : i + 2] for i in range(0, len(text), 2)]
    if len(text) != 2 * edges or not all(c in nodes for c in text) or len({p[0] for p in pairs}) != edges:
        return None
    for order in permutations(range(1, edges)):
        ring = [0, *order, 0]
        if all(pairs[i][1] == pairs[j][0] for i, j in pairwise(ring)):
            return "".join(map(str, ring[:-1]))
    return None


@pytest.mark.parametrize("edges", [2, 3])
def test_small_circles_are_exactly_those_found_by_trying(monkeypatch, edges):
    monkeypatch.setattr(circle, "EDGES", edges)
    monkeypatch.setattr(circle, "NODES", "ABCD")
    found = 0
    for text in map("".join, product("ABCD", repeat=2 * edges)):
        assert circle.verify("", text) == plan_by_trying(text, "ABCD", edges), text
        found += circle.verify("", text) is not None
    assert found == math.comb(4, edges) * math.factorial(edges - 1) * math.factorial(edges)  # nodes, cycles, orders


@given(st.integers(0, 10**6), st.permutations(circle.NODES), st.integers(1, 8), st.randoms())
def test_a_plan_is_what_renaming_keeps(seed, names, i, draw):
    ((_, text),) = circle.rows(1, seed)
    assert sorted(circle.verify("", text)) == list("012345678")
    renamed = text.translate(str.maketrans(circle.NODES, "".join(names)))
    assert circle.verify("", renamed) == circle.verify("", text)
    edges = [text[j : j + 2] for j in range(0, 18, 2)]
    edges[0], edges[i] = edges[i], edges[0]
    swapped = "".join(edges)
    assert circle.verify("", swapped) not in (None, circle.verify("", text))
    assert circle.verify("", text[::-1])  # every edge turned round, last first: a cycle again
    assert circle.verify("", text[1] + text[0] + text[2:]) is None  # one edge turned round


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("good", "ABBCCDDEEFFGGHHIIA"),
        ("2-edge circle", "ABBA"),
        ("2-edge circle and a 7-edge one", "ABBACDDEEFFGGHHIIC"),
        ("three circles", "ABBCCADEEFFDGHHIIG"),
        ("self-loop", "AABCCDDEEFFGGHHIIB"),
        ("nine self-loops", "AABBCCDDEEFFGGHHII"),
        ("repeated node", "ABBCCDDEEFFGGHHBBA"),
        ("repeated edge", "ABABBCCDDEEFFGGHHA"),
        ("8 edges", "ABBCCDDEEFFGGHHA"),
        ("10 edges", "ABBCCDDEEFFGGHHIIJJA"),
        ("a path", "ABBCCDDEEFFGGHHIIJ"),
        ("wrong direction once", "BABCCDDEEFFGGHHIIA"),
        ("a sixteenth node", "ABBCCDDEEFFGGHHPPA"),
        ("small letters", "abbccddeeffgghhiia"),
        ("spaces", "AB BC CD DE EF FG GH HI IA"),
        ("half an edge more", "ABBCCDDEEFFGGHHIIAA"),
        ("Cyrillic A", "\u0410BBCCDDEEFFGGHHII\u0410"),
    ],
)
def test_circle_takes_nothing_but_one_directed_cycle_of_nine(what, text):
    assert (circle.verify("", text) == "012345678") is (what == "good")
    assert (circle.verify("", text) is None) is (what != "good")


def test_plans_are_equally_likely():
    seen = Counter(circle.verify("", text)[1] for _, text in circle.rows(8000, 1))
    assert len(seen) == 8
    assert all(900 < n < 1100 for n in seen.values())
