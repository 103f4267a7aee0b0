# ruff: noqa: RUF002  (letters of several typefaces are the point)
"""spellings: forks whose every symbol has S equally good spellings, as a meaning has in language.

    prompt   "kQ3xRZb7>"      8 distinct items of 62, in random order
    answer   "𝐭c𝖧𝗥𝟤"          the chain of any one item, here k, each symbol in any one of S typefaces
    key      "tcHR2"          the same chain in plain letters: what should differ between thoughts

Eight answers are equally good, and each has S ** 5 spellings (1,024 for S = 4). A beam finds the most probable texts,
which are spellings of few answers. Independent samples find at most 5.25 of 8, as on forks. `mot.tasks.ceilings`
computes what each
sampler finds on the exact distribution. `Spellings(free_words=2)` puts two free symbols first, which say nothing about
the answer, so that openings differ without any difference in meaning.
"""

import random
import string
from collections import defaultdict
from dataclasses import dataclass

ITEMS = string.ascii_letters + string.digits
ANSWERS = 8  # equally good answers to every prompt
CHAIN = 5
FREE = "αβγδεζηθικλμνξοπ"  # free words
# First upper-case letter, lower-case letter and digit of typefaces that Unicode has without gaps: plain, bold, sans,
# sans bold.
TYPEFACES = ((0x41, 0x61, 0x30), (0x1D400, 0x1D41A, 0x1D7CE), (0x1D5A0, 0x1D5BA, 0x1D7E2), (0x1D5D4, 0x1D5EE, 0x1D7EC))
_maps = random.Random("spellings")
MAPS = [[_maps.choice(ITEMS) for _ in ITEMS] for _ in range(CHAIN)]


def spell(symbol: str, typeface: int) -> str:
    """An ASCII letter or digit in a typeface, 0 (plain) to 3."""
    upper, lower, digit = TYPEFACES[typeface]
    first, base = (digit, "0") if symbol.isdigit() else (upper, "A") if symbol.isupper() else (lower, "a")
    return chr(first + ord(symbol) - ord(base))


def chain(item: str) -> str:
    """The five symbols of one item, in plain letters."""
    return "".join(MAPS[j][ITEMS.index(item)] for j in range(CHAIN))


PLAIN = {spell(symbol, face): symbol for face in range(len(TYPEFACES)) for symbol in ITEMS}
ITEM_OF = {chain(item): item for item in ITEMS}
assert len(ITEM_OF) == len(ITEMS), "two items share a chain"


@dataclass(frozen=True)
class Spellings:
    """The task with `spellings` spellings of every symbol, 1 to 4, and `free_words` free symbols before the answer."""

    spellings: int = 4
    free_words: int = 0

    def rows(self, n: int, seed: int) -> list[tuple[str, str, str]]:
        """n rows (prompt, completion, key): one of the eight answers and its spelling, both drawn uniformly."""
        rng = random.Random(f"spellings {seed}")
        result = []
        for _ in range(n):
            prompt = "".join(rng.sample(ITEMS, ANSWERS))
            key = chain(rng.choice(prompt))
            free = "".join(rng.choice(FREE) for _ in range(self.free_words))
            result.append((prompt + ">", free + "".join(spell(s, rng.randrange(self.spellings)) for s in key), key))
        return result

    def verify(self, prompt: str, text: str) -> str | None:
        """The item whose chain the text spells, if the prompt has that item; else None."""
        free, symbols = text[: self.free_words], text[self.free_words :]
        if len(free) < self.free_words or not set(free) <= set(FREE) or not set(symbols) <= PLAIN.keys():
            return None
        item = ITEM_OF.get("".join(PLAIN[s] for s in symbols))
        return item if item is not None and item in prompt[:-1] else None

    def answers(self, prompt: str) -> int:
        """8, whatever the prompt."""
        return ANSWERS


@dataclass(frozen=True)
class ExactLaw:
    """The distribution that a perfect model of the task has, for `mot.tasks.ceilings`: a state is the items still
    possible.
    """

    spellings: int = 4

    def start(self, prompt: str) -> tuple[str, ...]:
        return tuple(prompt.removesuffix(">"))

    def next(self, place: int, items: tuple[str, ...]) -> list[tuple[str, float, tuple[str, ...]]]:
        """(symbol, probability, state after it) of every symbol that may follow at a place 0 .. 4."""
        by_symbol = defaultdict(list)
        for item in items:
            by_symbol[chain(item)[place]].append(item)
        return [
            (spell(symbol, face), len(some) / len(items) / self.spellings, tuple(some))
            for symbol, some in by_symbol.items()
            for face in range(self.spellings)
        ]

    def answer(self, items: tuple[str, ...]) -> str:
        return items[0]

    length = CHAIN


default = Spellings()
rows, verify, answers = default.rows, default.verify, default.answers
