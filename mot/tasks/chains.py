"""chains: from state A, the next 15 states of one of four Markov chains. The prompt does not say which chain.

    prompt   "A"                   always
    answer   "CCEHFACEAEFGBGC"     15 transitions of one chain, drawn anew for every row

A thought should recover one chain's transition matrix. `recovered` compares MATRICES with the transitions in the texts
of each thought; a model without thoughts learns the average of the four. All rows start in the same state: with
several, thoughts could divide the starting states instead, which explains the texts equally well. From every state a
chain reaches four of the eight, with probabilities WEIGHTS, by four permutations that never agree. So all rows of its
matrix have the same entropy, and the true entropy of the mixture is known up to one small term.
"""

import math
import random
from itertools import accumulate, pairwise, permutations, takewhile

STATES = "ABCDEFGH"
START, LENGTH = "A", 15  # first state of a row, and its number of transitions
CHAINS = 4
WEIGHTS = (0.55, 0.25, 0.15, 0.05)  # probabilities of a state's four successors
_rng = random.Random("chains")


def _disjoint_permutations() -> list[str]:
    chosen = []
    while len(chosen) < len(WEIGHTS):
        new = _rng.sample(STATES, len(STATES))
        if all(a != b for old in chosen for a, b in zip(old, new, strict=True)):
            chosen.append("".join(new))
    return chosen


SUCCESSORS = []  # [c][i][s]: the state that follows state s in chain c with probability WEIGHTS[i]
while len(SUCCESSORS) < CHAINS:
    new = _disjoint_permutations()
    if all(
        a != b for old in SUCCESSORS for a, b in zip(old[0], new[0], strict=True)
    ):  # the most probable successors differ
        SUCCESSORS.append(new)

MATRICES = [  # [c][s][t] = P(t follows s in chain c)
    [[sum(w for w, p in zip(WEIGHTS, chain, strict=True) if p[s] == t) for t in STATES] for s in range(len(STATES))]
    for chain in SUCCESSORS
]
ENTROPY_RATE = -sum(w * math.log(w) for w in WEIGHTS)  # nats per transition, of every chain and of endless sequences


def rows(n: int, seed: int) -> list[tuple[str, str]]:
    """n pairs ("A", the states that follow it in a chain drawn uniformly), the same for the same seed."""
    rng = random.Random(f"chains {seed}")
    cumulative, drawn = list(accumulate(WEIGHTS)), []
    for _ in range(n):
        chain, path = rng.choice(SUCCESSORS), START
        for i in rng.choices(range(len(WEIGHTS)), cum_weights=cumulative, k=LENGTH):
            path += chain[i][STATES.index(path[-1])]
        drawn.append((START, path[1:]))
    return drawn


def verify(prompt: str, text: str) -> str | None:
    """The number of the chain under which the 15 states are most probable; None if no chain can produce them."""
    if len(text) != LENGTH or not set(text) <= set(STATES):
        return None
    likelihoods = _likelihoods(prompt + text)
    return str(likelihoods.index(max(likelihoods))) if max(likelihoods) > 0 else None


def answers(prompt: str) -> int:
    """4 chains."""
    return CHAINS


def _likelihoods(path: str) -> list[float]:
    """p(path after its first state | first state, chain), for every chain."""
    places = [STATES.index(state) for state in path]
    return [math.prod(matrix[s][t] for s, t in pairwise(places)) for matrix in MATRICES]


def nll(prompt: str, text: str) -> float:
    """True -log p(text | prompt) under the mixture, in nats for the whole text, > 0; inf if no chain can produce it."""
    p = sum(_likelihoods(prompt + text)) / CHAINS
    return -math.log(p) if p else math.inf


def entropy(n: int = 10_000, seed: int = 0) -> float:
    """True entropy of the mixture in nats per token, end-of-text included: the lower bound of a mixture NLL.

    (15 ENTROPY_RATE + I) / 16. I = log 4 - E[entropy of the posterior over chains] is the information of a row about
    its chain. The expectation is taken over n drawn rows (n = 10,000: standard error below 1e-4 of the result).
    """
    information = 0.0
    for prompt, text in rows(n, seed):
        likelihoods = _likelihoods(prompt + text)
        posterior = [p / sum(likelihoods) for p in likelihoods]
        information += math.log(CHAINS) + sum(p * math.log(p) for p in posterior if p)
    return (LENGTH * ENTROPY_RATE + information / n) / (LENGTH + 1)


def transition_matrix(texts: list[str]) -> list[list[float]]:
    """[s][t]: the share of t among the states that follow s in the texts, which start in A; 0 if nothing follows s.

    A text ends at the first symbol that is not a state. 1,000 texts of a chain come within 0.03 of its matrix, 4,000
    within 0.02.
    """
    counts = [[0] * len(STATES) for _ in STATES]
    for text in texts:
        path = "".join(takewhile(STATES.__contains__, text))
        for s, t in pairwise(START + path):
            counts[STATES.index(s)][STATES.index(t)] += 1
    return [[n / max(1, sum(row)) for n in row] for row in counts]


def recovered(found: list[list[list[float]]]) -> list[tuple[int, float]]:
    """For every chain (its thought, the largest absolute error of that thought's matrix), under the best assignment.

    `found[k][s][t]`: probability that thought k goes from state s to t, e.g. the `transition_matrix` of its texts.
    Different chains get different thoughts. The best assignment has the smallest largest error, then the smallest sum.
    Errors are in 0 .. 1. Raises ValueError for fewer thoughts than chains, or other shapes. For a model without
    thoughts, give its matrix four times.
    """
    size = len(STATES)
    if len(found) < CHAINS or any(len(m) != size or any(len(row) != size for row in m) for m in found):
        raise ValueError(f"found: needs {CHAINS} or more matrices of {size} x {size}, one for each thought")
    error = [
        [max(abs(a - b) for x, y in zip(m, true, strict=True) for a, b in zip(x, y, strict=True)) for m in found]
        for true in MATRICES
    ]
    assignments = permutations(range(len(found)), CHAINS)
    best = min(assignments, key=lambda ks: (max(e := [error[c][k] for c, k in enumerate(ks)]), sum(e)))
    return [(k, error[c][k]) for c, k in enumerate(best)]
