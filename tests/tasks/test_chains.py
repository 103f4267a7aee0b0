"""chains: matrices, entropy, and what is recovered from texts."""

import math
from itertools import permutations, product

import pytest

from mot import tasks
from mot.tasks import chains


def test_the_matrices_are_four_different_doubly_stochastic_ones():
    for matrix in chains.MATRICES:
        for line in [*matrix, *zip(*matrix, strict=True)]:
            assert sum(line) == pytest.approx(1)
            assert sorted(p for p in line if p) == sorted(chains.WEIGHTS)
    for a, b in permutations(chains.MATRICES, 2):
        assert all(max(abs(p - q) for p, q in zip(x, y, strict=True)) >= 0.3 for x, y in zip(a, b, strict=True))


def test_drawn_sequences_follow_the_matrices():
    seen = [[], [], [], []]
    for prompt, text in chains.rows(20_000, 1):
        seen[int(chains.verify(prompt, text))].append(text)  # right but for a few in a thousand
    found = [chains.transition_matrix(texts) for texts in seen]
    order = [2, 0, 3, 1]
    for c, (thought, error) in enumerate(chains.recovered([found[c] for c in order])):
        assert order[thought] == c
        assert error < 0.02


def test_the_error_of_the_average_and_the_best_assignment():
    assert chains.recovered(chains.MATRICES) == [(c, 0.0) for c in range(4)]
    average = [[sum(m[s][t] for m in chains.MATRICES) / 4 for t in range(8)] for s in range(8)]
    assert all(error > 0.3 for _, error in chains.recovered([average] * 4))
    worse = [
        [[p + 0.01 * k * (-1) ** t for t, p in enumerate(line)] for line in m] for k, m in enumerate(chains.MATRICES)
    ]
    found = chains.recovered([*worse[::-1], average, chains.MATRICES[3]])  # six thoughts: two are left over
    assert [thought for thought, _ in found] == [3, 2, 1, 5]
    assert [error for _, error in found] == pytest.approx([0, 0.01, 0.02, 0])
    with pytest.raises(ValueError, match="found: needs 4"):
        chains.recovered(chains.MATRICES[:3])
    with pytest.raises(ValueError, match="8 x 8"):
        chains.recovered([*chains.MATRICES[:3], [[0.5, 0.5]]])


def test_transitions_are_counted_from_the_start_to_the_first_symbol_that_is_no_state():
    found = chains.transition_matrix(["BAB", "CAx>B", ""])
    assert found[0] == [0, 2 / 3, 1 / 3, 0, 0, 0, 0, 0]  # A: to B, B, C
    assert found[1] == found[2] == [1, 0, 0, 0, 0, 0, 0, 0]
    assert found[3:] == [[0] * 8] * 5
    everything = chains.transition_matrix([text for _, text in chains.rows(20_000, 1)])  # a model without thoughts
    average = [[sum(m[s][t] for m in chains.MATRICES) / 4 for t in range(8)] for s in range(8)]
    assert (
        max(abs(a - b) for x, y in zip(everything, average, strict=True) for a, b in zip(x, y, strict=True)) < 0.05
    )  # states are not left equally often
    assert all(error > 0.35 for _, error in chains.recovered([everything] * 4))


def test_nll_and_entropy_against_every_sequence(monkeypatch):
    monkeypatch.setattr(chains, "LENGTH", 4)
    p = [math.exp(-chains.nll("A", "".join(text))) for text in product(chains.STATES, repeat=4)]
    assert sum(p) == pytest.approx(1)
    exact = -sum(q * math.log(q) for q in p if q) / 5
    assert chains.entropy(20_000) == pytest.approx(exact, abs=2e-3)


def test_the_entropy_is_the_mean_nll_of_held_out_rows_and_near_the_rate():
    held_out = [chains.nll(*row) for row in tasks.held_out("chains")]
    assert sum(held_out) / 512 / 16 == pytest.approx(chains.entropy(2000), abs=0.03)
    assert f"{chains.entropy(2000):.3f}" == "1.127"
    assert chains.entropy(2000) == chains.entropy(2000)
    assert f"{chains.ENTROPY_RATE:.3f}" == "1.110"


def test_chains_takes_only_sequences_that_a_chain_can_make():
    ((prompt, text),) = chains.rows(1, 9)
    c = int(chains.verify(prompt, text))
    for wrong in (text[:-1], text + "A", text.lower(), prompt + text, "I" + text[1:]):
        assert chains.verify(prompt, wrong) is None
    row = [matrix[chains.STATES.index(prompt)] for matrix in chains.MATRICES]
    for t, state in enumerate(chains.STATES):
        if row[c][t] == 0:
            other = chains.verify(prompt, state + text[1:])
            assert other is None or other != str(c)
    assert [chains.verify("A", greedy(c, "A")) for c in range(4)] == list("0123")


def greedy(c: int, path: str) -> str:
    """The likeliest path of a chain from a state, that state left out."""
    while len(path) < 16:
        row = chains.MATRICES[c][chains.STATES.index(path[-1])]
        path += chains.STATES[row.index(max(row))]
    return path[1:]
