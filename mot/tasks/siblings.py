"""siblings: no prompt; name two children and their parent, from a family tree that only the training rows show.

    prompt   ""
    answer   "iwGT4"     child iw, child GT, and 4, the parent of both

"Sibling discovery" of Nagarajan et al. 2025 (arXiv 2504.15266): 5 parents with 500 children each. The parent comes
last, so a model must choose the parent before it writes the second child. In the paper a child is one token. Here a
task has at most 256 symbols, so a child is two letters of 50. Names are given to parents at random, so a child's family
must be learnt. Two children in the other order are the same answer: 623,750 answers. The 50,000 training rows (our
choice) show 8 % of them.
"""

import math
import random
import string

PARENTS = "01234"
CHILDREN = 500  # of every parent
LETTERS = string.ascii_letters[:50]
_names = [a + b for a in LETTERS for b in LETTERS]
random.Random("siblings").shuffle(_names)
FAMILIES = {parent: _names[i * CHILDREN : (i + 1) * CHILDREN] for i, parent in enumerate(PARENTS)}
PARENT_OF = {child: parent for parent, children in FAMILIES.items() for child in children}


def rows(n: int, seed: int) -> list[tuple[str, str]]:
    """n pairs ("", two different children and their parent, drawn uniformly), the same for the same seed."""
    rng = random.Random(f"siblings {seed}")
    parents = rng.choices(PARENTS, k=n)
    return [("", "".join(rng.sample(FAMILIES[parent], 2)) + parent) for parent in parents]


def verify(prompt: str, text: str) -> str | None:
    """The children in alphabetical order and their parent, if the text is two children of that parent."""
    first, second, parent = text[:2], text[2:4], text[4:]
    if first == second or not parent or not PARENT_OF.get(first) == PARENT_OF.get(second) == parent:
        return None
    return "".join(sorted([first, second])) + parent


def answers(prompt: str) -> int:
    """The number of pairs of siblings."""
    return len(PARENTS) * math.comb(CHILDREN, 2)
