"""mot/thoughts.py beside known values: how thoughts are chosen, drawn, counted. Its laws are in tests/laws."""

import itertools
import math

import pytest
import torch
from drawing import draw, seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from mixtures import DIGITS, LENGTH, SEQUENCES, W

from mot.thoughts import (
    choose_thoughts,
    draw_sequences,
    effective_thoughts,
    router_loss,
    sequence_index,
    specialisation,
)


def test_specialisation_is_zero_for_copies_and_one_when_only_one_thought_explains():
    assert specialisation(torch.full((1, 8), -3.0)).item() == pytest.approx(0, abs=1e-6)
    assert specialisation(torch.tensor([[0.0] + [-1e4] * 7])).item() == pytest.approx(1)


def test_effective_thoughts_counts():
    assert effective_thoughts(torch.tensor([5.0, 0, 0, 0])).item() == pytest.approx(1)
    assert effective_thoughts(torch.ones(8)).item() == pytest.approx(8)


@given(seeds, st.integers(1, 8), st.integers(1, 8), st.sampled_from([0.0, 1e-310, 0.5, 1.0, 100.0, math.inf]))
def test_chosen_thoughts_are_different(seed, N, k, creativity):
    k = min(k, N)
    chosen = choose_thoughts(draw(seed, 1, N), k, creativity, torch.Generator().manual_seed(seed)).thought_k
    assert len(set(chosen.tolist())) == k
    assert set(chosen.tolist()) <= set(range(N))


def test_creativity_zero_takes_the_most_probable_one_samples_the_router_and_large_is_uniform():
    logits = torch.tensor([[0.0, 2.0, 1.0, -1.0]])
    g = torch.Generator().manual_seed(0)
    assert choose_thoughts(logits, 2, 0.0, g).thought_k.tolist() == [1, 2]
    for creativity, expected in ((1.0, logits[0].softmax(-1)), (1e6, torch.full((4,), 0.25))):
        first = torch.tensor([choose_thoughts(logits, 1, creativity, g).thought_k.item() for _ in range(4000)])
        assert torch.allclose(torch.bincount(first, minlength=4) / 4000, expected, atol=0.03)


@settings(deadline=None)
@given(seeds)
def test_router_loss_is_least_at_the_responsibilities(seed):
    q = draw(seed, 4, 5).softmax(-1)
    assert (router_loss(q, q.log()) <= router_loss(q, draw(seed + 1, 4, 5)) + 1e-6).all()


# Thought sequences ------------------------------------------------------------------------------------------------


def test_an_index_is_the_number_its_digits_write():
    assert [sequence_index(sequence, DIGITS) for sequence in SEQUENCES.tolist()] == list(range(W))
    assert sequence_index([1023] * 8, 1024) == 2**80 - 1


def test_drawn_sequences_are_different_and_uniform_and_those_of_one_token_are_all_in_order():
    g = torch.Generator().manual_seed(0)
    counts = torch.zeros(W)
    for _ in range(3000):
        drawn = [sequence_index(s, DIGITS) for s in draw_sequences(DIGITS, DIGITS, LENGTH, g).tolist()]
        assert len(set(drawn)) == DIGITS
        counts[drawn] += 1
    expected = 3000 * DIGITS / W
    assert ((counts - expected) ** 2 / expected).sum() < 55  # chi-square of 26 degrees: above it once in a thousand
    assert sorted(sequence_index(s, DIGITS) for s in draw_sequences(W, DIGITS, LENGTH, g).tolist()) == list(range(W))
    assert draw_sequences(1024, 1024, 8, g).shape == (1024, 8)
    before = g.get_state()
    assert draw_sequences(5, 5, 1, g).tolist() == [[0], [1], [2], [3], [4]]
    assert torch.equal(g.get_state(), before)


@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 9), st.sampled_from([0.0, 0.3, 1.0, 7.0, math.inf]))
def test_thoughts_of_one_token_are_chosen_by_gumbel_top_k(seed, n, k, creativity):
    logits = torch.randn(n, generator=torch.Generator().manual_seed(seed))
    gumbel = -torch.empty(n, dtype=torch.float64).exponential_(generator=torch.Generator().manual_seed(seed)).log()
    logp = logits.double().log_softmax(-1)
    keys = logp if creativity == 0 else logp / creativity + gumbel
    expected = keys.argsort(descending=True, stable=True)[:k]
    chosen = choose_thoughts(logits[None], min(k, n), creativity, torch.Generator().manual_seed(seed))
    assert torch.equal(chosen.thought_k, expected)
    assert (chosen.row_k == 0).all()


def climb(levels: list[torch.Tensor], k: int, creativity: float, g: torch.Generator) -> tuple[int, ...]:
    """Indices of k sequences, in the order chosen, of a tree whose logits at depth i are levels[i] [N ** i, N]."""
    index, state, n = torch.zeros(1, dtype=torch.long), None, levels[0].shape[1]
    for i, logits in enumerate(levels):
        state = choose_thoughts(logits[index], min(k, n ** (i + 1)), creativity, g, state)
        index = index[state.row_k] * n + state.thought_k
    return tuple(index.tolist())


def tree(n: int, depth: int, creativity: float = 1.0) -> tuple[list[torch.Tensor], torch.Tensor]:
    """(logits of every level, probability of every sequence)"""
    g = torch.Generator().manual_seed(2)
    levels = [1.5 * torch.randn(n**i, n, generator=g, dtype=torch.float64) for i in range(depth)]
    p = torch.ones(1, dtype=torch.float64)
    for logits in levels:
        p = (p[:, None] * (logits / creativity).softmax(-1)).flatten()
    return levels, p


@pytest.mark.parametrize(("n", "depth", "creativity"), [(2, 3, 1.0), (3, 2, 1.0), (2, 3, 0.5), (2, 3, math.inf)])
def test_a_stochastic_beam_is_gumbel_top_k_over_all_sequences(n, depth, creativity):
    """That is, sequences are drawn one after the other, in proportion to p, without replacement."""
    levels, p = tree(n, depth, creativity)
    g, draws = torch.Generator().manual_seed(3), 4000
    first = [climb(levels, 3, creativity, g)[:2] for _ in range(draws)]
    statistic, cells = 0.0, 0
    for a, b in itertools.permutations(range(len(p)), 2):
        expected = draws * (p[a] * p[b] / (1 - p[a])).item()
        if expected >= 5:
            statistic, cells = statistic + (first.count((a, b)) - expected) ** 2 / expected, cells + 1
    assert cells > 20
    assert statistic < cells + 4 * (2 * cells) ** 0.5  # chi-square: mean and four standard deviations


def test_all_sequences_can_be_chosen_and_without_creativity_the_most_probable_come_first():
    levels, p = tree(3, 3)
    g = torch.Generator().manual_seed(4)
    assert set(climb(levels, 27, 1.0, g)) == set(range(27))
    best = p.argsort(descending=True).tolist()
    assert list(climb(levels, 27, 0.0, g)) == best
    assert list(climb(levels, 9, 0.0, g)) == best[:9]  # the beam holds every partial sequence: nothing can be missed
