"""circle: no prompt; write the edges of one directed cycle in shuffled order.

    prompt   ""
    answer   "BGIAJBLOCDOIAJDLGC"     9 edges of two nodes each, BG IA JB ..., one cycle over 9 of the 15 nodes A .. O

"Circle construction" of Nagarajan et al. 2025 (arXiv 2504.15266): to write the edges in shuffled order, a model must
plan the whole cycle first. Two texts are *different* if their plans are, whatever the names of the nodes. A plan is the
list of the places of the edges in the text, in the order of the cycle. There are 8! = 40,320 plans, and the 10,000
training rows show 22 % of them. (There are 201,801,600 cycles with named nodes; with those, memorising and inventing
would look the same.)
"""

import math
import random

NODES = "ABCDEFGHIJKLMNO"
EDGES = 9


def rows(n: int, seed: int) -> list[tuple[str, str]]:
    """n pairs ("", edges of a random cycle in random order), the same for the same seed; plans are equally likely."""
    rng = random.Random(f"circle {seed}")
    return [("", _draw(rng)) for _ in range(n)]


def _draw(rng: random.Random) -> str:
    cycle = rng.sample(NODES, EDGES)
    edges = [a + b for a, b in zip(cycle, cycle[1:] + cycle[:1], strict=True)]
    return "".join(rng.sample(edges, EDGES))


def verify(prompt: str, text: str) -> str | None:
    """The plan ("0" and the places 1 .. 8 in the order of the cycle) if the text is 9 edges of one cycle, else None."""
    if len(text) != 2 * EDGES or not set(text) <= set(NODES):
        return None
    starts, ends = text[::2], text[1::2]
    if len(set(starts)) != EDGES or set(ends) != set(starts):
        return None
    places = [0]
    while (following := starts.index(ends[places[-1]])) != 0:
        places.append(following)
    # Every node has one edge in and one edge out, so there are only cycles. If the first has fewer than 9 edges, there
    # are several.
    return "".join(map(str, places)) if len(places) == EDGES else None


def answers(prompt: str) -> int:
    """8! plans."""
    return math.factorial(EDGES - 1)
