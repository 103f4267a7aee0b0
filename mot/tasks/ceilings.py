"""What each sampler finds on the exact distribution of a task: ceilings that no trained model of it can pass.

    found = ceilings(ExactLaw(spellings=4), prompts, K=8, seed=0)     {"beam 8": 2.6, "diverse beam": 5.5, ...}
    python -m mot.tasks.ceilings                                      the table of docs/tasks.md

The distribution is given, not a model: `start(prompt)` is a state, `next(place, state)` its continuations with their
probabilities, `answer(state)` what a complete text says, `length` its symbols. Ties are broken at random, as the small
errors of a trained model break them. Figures are means over prompts, in different answers of K texts.
"""

import math
import random
from collections.abc import Callable, Iterable
from statistics import fmean
from typing import Any, Protocol

State = Any


class Law(Protocol):
    """A distribution over texts of one length, symbol by symbol."""

    length: int

    def start(self, prompt: str) -> State: ...

    def next(self, place: int, state: State) -> list[tuple[str, float, State]]: ...

    def answer(self, state: State) -> str: ...


def beam(law: Law, prompt: str, K: int, width: int, rng: random.Random) -> int:
    """Different answers among the best K of `width` beams."""
    beams = [(0.0, 0.0, law.start(prompt))]
    for place in range(law.length):
        longer = [
            (logp + math.log(p), rng.random(), after)
            for logp, _, state in beams
            for _, p, after in law.next(place, state)
        ]
        beams = sorted(longer, key=lambda beam: (-round(beam[0], 9), beam[1]))[:width]
    return len({law.answer(state) for _, _, state in beams[:K]})


def diverse_beam(law: Law, prompt: str, K: int, penalty: float, rng: random.Random) -> int:
    """Different answers of K groups of one beam, each penalised for the symbols of the groups before it (Vijayakumar
    2018).
    """
    states = [law.start(prompt)] * K
    for place in range(law.length):
        said: dict[str, int] = {}
        for g, state in enumerate(states):
            symbol, _, states[g] = max(
                law.next(place, state),
                key=lambda one: (round(math.log(one[1]) - penalty * said.get(one[0], 0), 9), rng.random()),
            )
            said[symbol] = said.get(symbol, 0) + 1
    return len({law.answer(state) for state in states})


def arithmetic(law: Law, prompt: str, K: int, order: Callable[[str], float], rng: random.Random) -> int:
    """Different answers of K codes, evenly spaced with one random shift, in a vocabulary of that order (Vilnis et al.
    2023).
    """
    shift, found = rng.random(), set()
    for i in range(K):
        code, state = (i / K + shift) % 1.0, law.start(prompt)
        for place in range(law.length):
            code, state = _decode(code, sorted(law.next(place, state), key=lambda one: order(one[0])))
        found.add(law.answer(state))
    return len(found)


def _decode(code: float, ordered: list[tuple[str, float, State]]) -> tuple[float, State]:
    """(code within the interval of the symbol that the code falls into, state after that symbol)"""
    for _, p, after in ordered:
        if code < p:
            return code / p, after
        code -= p
    return 1 - 1e-12, after  # the probabilities sum to a little less than 1


def independent(law: Law, prompt: str, K: int, temperature: float, rng: random.Random) -> int:
    """Different answers of K independent samples at a temperature."""
    found = set()
    for _ in range(K):
        state = law.start(prompt)
        for place in range(law.length):
            ways = law.next(place, state)
            (state,) = rng.choices([after for *_, after in ways], [p ** (1 / temperature) for _, p, _ in ways])
        found.add(law.answer(state))
    return len(found)


def ceilings(law: Law, prompts: Iterable[str], K: int = 8, seed: int = 0) -> dict[str, float]:
    """Mean number of different answers of K texts over the prompts, for every sampler at its best setting."""
    prompts, rng = list(prompts), random.Random(f"ceilings {seed}")
    ranks: dict[str, float] = {}

    def any_order(symbol: str) -> float:  # a vocabulary is not sorted by meaning
        return ranks.setdefault(symbol, rng.random())

    found = {f"beam {w}": fmean(beam(law, p, K, w, rng) for p in prompts) for w in (K, 2 * K, 8 * K)}
    found["diverse beam"] = max(
        fmean(diverse_beam(law, p, K, penalty, rng) for p in prompts) for penalty in (0.1, 0.3, 0.5, 1.0, 2.0, 5.0)
    )
    found["independent"] = max(
        fmean(independent(law, p, K, temperature, rng) for p in prompts) for temperature in (0.5, 0.7, 1.0, 1.3)
    )
    found["arithmetic"] = fmean(arithmetic(law, p, K, any_order, rng) for p in prompts)
    found["arithmetic, sorted vocabulary"] = fmean(arithmetic(law, p, K, ord, rng) for p in prompts)
    return found


def main() -> None:
    from mot.tasks.spellings import ExactLaw, default

    prompts = [row[0] for row in default.rows(500, 0)]
    tables = {S: ceilings(ExactLaw(S), prompts) for S in (1, 2, 4)}
    print("| different answers of 8 | " + " | ".join(f"S = {S}" for S in tables) + " |")
    print("|---|" + "---|" * len(tables))
    for name in tables[1]:
        print(f"| {name} | " + " | ".join(f"{table[name]:.2f}" for table in tables.values()) + " |")


if __name__ == "__main__":
    main()
