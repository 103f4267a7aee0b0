"""forks: 8 items in the prompt; the answer is the chain of five symbols of any one of them.

    prompt   "kQ3x+Zb7>"      8 distinct items of 64, in random order
    answer   "FCQwz"          the chain of item k: symbol j is map j of the item, for five fixed random maps

Eight answers are equally good, so K independent draws find at most 8 (1 - (1 - 1/8)^K) of them: 5.25 of 8 if K = 8.
"""

import random
import string

ITEMS = string.ascii_letters + string.digits + "+-"
ANSWERS = 8  # equally good answers to every prompt
CHAIN = 5
_maps = random.Random("forks")
MAPS = [[_maps.choice(ITEMS) for _ in ITEMS] for _ in range(CHAIN)]


def chain(item: str) -> str:
    """The five symbols of one item."""
    return "".join(MAPS[j][ITEMS.index(item)] for j in range(CHAIN))


ITEM_OF = {chain(item): item for item in ITEMS}
assert len(ITEM_OF) == len(ITEMS), "two items share a chain"


def rows(n: int, seed: int) -> list[tuple[str, str]]:
    """n pairs (prompt, one of its eight answers, drawn uniformly), the same for the same seed."""
    rng = random.Random(f"forks {seed}")
    prompts = ["".join(rng.sample(ITEMS, ANSWERS)) for _ in range(n)]
    return [(prompt + ">", chain(rng.choice(prompt))) for prompt in prompts]


def verify(prompt: str, answer: str) -> str | None:
    """The item whose chain the answer is, if the prompt has that item; else None."""
    item = ITEM_OF.get(answer)
    return item if item is not None and item in prompt[:-1] else None


def answers(prompt: str) -> int:
    """8, whatever the prompt."""
    return ANSWERS
