"""The four formulas and what is read off a mixture: known values, laws 4-6, and the slow obvious version beside the fast one."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mot.thoughts import (
    choose_thoughts,
    diversity,
    effective_thoughts,
    mixture_nll,
    oracle_nll,
    responsibilities,
    router_loss,
    specialisation,
    usage_entropy,
)

seeds = st.integers(0, 2**31)


def draw(seed: int, *shape: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_sinkhorn(scores, temperature, rounds):
    """Divide columns, then rows, of exp((a - max) / tau): as it is written on paper."""
    B, N = scores.shape
    q = ((scores - scores.max()) / temperature).exp().tolist()
    for _ in range(rounds):
        for n in range(N):
            total = sum(q[b][n] for b in range(B)) / (B / N)
            for b in range(B):
                q[b][n] /= total
        for b in range(B):
            total = sum(q[b])
            q[b] = [value / total for value in q[b]]
    return torch.tensor(q, dtype=torch.float64)


@given(seeds, st.integers(1, 24), st.integers(2, 9), st.sampled_from([1.0, 0.3, 0.05]))
def test_responsibilities_rows_sum_to_one_and_equal_the_slow_version(seed, B, N, temperature):
    scores = draw(seed, B, N, scale=0.3)
    q = responsibilities(scores, temperature)
    assert torch.allclose(q.sum(1), torch.ones(B, dtype=q.dtype), atol=1e-9)
    assert torch.allclose(q, slow_sinkhorn(scores, temperature, 3), atol=1e-9)


@given(seeds, st.integers(2, 9))
def test_responsibilities_columns_sum_to_their_share(seed, N):
    B = 8 * N
    q = responsibilities(draw(seed, B, N, scale=0.2), 0.3, rounds=200)
    assert torch.allclose(q.sum(0), torch.full((N,), B / N, dtype=q.dtype), rtol=1e-3)


@given(seeds, st.integers(2, 9))
def test_permuting_thoughts_permutes_everything_and_changes_nothing_else(seed, N):
    scores, router, lengths = draw(seed, 12, N), draw(seed + 1, 12, N), torch.full((12,), 5)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
    q = responsibilities(scores, 0.1)
    assert torch.allclose(responsibilities(scores[:, order], 0.1), q[:, order])
    assert torch.allclose(router_loss(q[:, order], router[:, order]), router_loss(q, router))
    logp = router.log_softmax(-1)
    assert torch.allclose(mixture_nll(logp[:, order], scores[:, order], lengths), mixture_nll(logp, scores, lengths))
    assert torch.allclose(specialisation(scores[:, order]), specialisation(scores))


def test_responsibilities_survive_scores_that_would_underflow():
    q = responsibilities(torch.tensor([[-900.0, -1.0], [-2.0, -5.0], [-3.0, -800.0]]), 0.01)
    assert torch.isfinite(q).all()
    assert torch.allclose(q.sum(1), torch.ones(3))


def test_without_preference_every_thought_is_as_responsible():
    assert torch.allclose(responsibilities(torch.full((6, 3), -2.0), 0.05), torch.full((6, 3), 1 / 3))


def slow_diversity(logits, targets, mask):
    """One row, one token and one thought at a time."""
    M, R, T, _ = logits.shape
    p = logits.double().softmax(-1)
    total = torch.zeros(R, dtype=torch.float64)
    for r in range(R):
        weight = torch.full((M,), 1 / M, dtype=torch.float64)
        for t in range(T):
            if mask[r, t]:
                mean = sum(weight[m] * p[m, r, t] for m in range(M))
                total[r] += torch.special.entr(mean).sum() - sum(
                    weight[m] * torch.special.entr(p[m, r, t]).sum() for m in range(M)
                )
                weight = weight * p[:, r, t, targets[r, t]]
                weight = weight / weight.sum()
    return total


@given(seeds, st.integers(2, 5), st.integers(2, 7))
def test_diversity_equals_the_slow_formula_and_a_token_gives_at_most_log_m(seed, M, V):
    logits = draw(seed, M, 2, 3, V, scale=3.0)
    targets = torch.randint(V, (2, 3), generator=torch.Generator().manual_seed(seed))
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    assert torch.allclose(diversity(logits, targets, mask).double(), slow_diversity(logits, targets, mask), atol=1e-4)
    one = torch.tensor([[1, 0, 0], [0, 1, 0]])
    assert (diversity(logits, targets, one) <= math.log(M) + 1e-6).all()


def test_diversity_is_zero_for_copies_and_log_m_for_disjoint_thoughts():
    targets, mask = torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 3, dtype=torch.long)
    copies = draw(0, 1, 2, 3, 5).expand(4, -1, -1, -1)
    assert torch.allclose(diversity(copies, targets, mask), torch.zeros(2), atol=1e-6)
    disjoint = torch.full((4, 2, 3, 4), -200.0)
    for m in range(4):
        disjoint[m, :, :, m] = 0
    # the first token tells the thoughts apart; after it nothing is left to say
    assert torch.allclose(diversity(disjoint, targets, mask), torch.full((2,), math.log(4)))


def test_diversity_is_the_mutual_information_of_thought_and_continuation():
    """Averaged over the mixture's own continuations it is I(m; y), here by enumerating all y of two tokens."""
    M, V = 3, 3
    first, second = draw(1, M, V, scale=2.0), draw(2, M, V, V, scale=2.0)
    p1, p2 = first.softmax(-1), second.softmax(-1)
    joint = p1[:, :, None] * p2 / M
    information = (joint * (joint / joint.sum(0) / (1 / M)).log()).sum()
    expected = 0.0
    for a in range(V):
        for b in range(V):
            logits = torch.stack([first, second[:, a]], 1)[:, None]
            expected += (
                joint[:, a, b].sum() * diversity(logits, torch.tensor([[a, b]]), torch.ones(1, 2, dtype=torch.long))[0]
            )
    assert expected.item() == pytest.approx(information.item(), abs=1e-5)
    assert information <= math.log(M)


@given(seeds, st.integers(2, 8))
def test_mixture_lies_between_oracle_and_every_thought_plus_its_price(seed, N):
    logp, router, lengths = draw(seed, 9, N, scale=4.0) - 20, draw(seed + 1, 9, N).log_softmax(-1), torch.arange(1, 10)
    mixture, oracle = mixture_nll(router, logp, lengths), oracle_nll(logp, lengths)
    assert (mixture >= oracle - 1e-9).all()
    assert (mixture[:, None] * lengths[:, None] <= -logp - router + 1e-9).all()
    uniform = mixture_nll(torch.full((9, N), -math.log(N), dtype=logp.dtype), logp, lengths)
    assert (uniform[:, None] * lengths[:, None] <= -logp + math.log(N) + 1e-9).all()


def test_specialisation_is_zero_for_copies_and_one_when_only_one_thought_explains():
    assert specialisation(torch.full((1, 8), -3.0)).item() == pytest.approx(0, abs=1e-6)
    assert specialisation(torch.tensor([[0.0] + [-1e4] * 7])).item() == pytest.approx(1)


def test_effective_thoughts_counts():
    assert effective_thoughts(torch.tensor([5.0, 0, 0, 0])).item() == pytest.approx(1)
    assert effective_thoughts(torch.ones(8)).item() == pytest.approx(8)


@given(seeds, st.integers(2, 8))
def test_entropy_of_parts_averages_to_the_whole_with_its_gradient(seed, N):
    logits = draw(seed, 8, N).requires_grad_()
    whole = usage_entropy(logits.softmax(-1).mean(0))
    (gradient,) = torch.autograd.grad(whole, logits)
    mean = logits.softmax(-1).mean(0).detach()
    parts = sum(usage_entropy(part.softmax(-1).mean(0), mean) for part in logits.split(2)) / 4
    (of_parts,) = torch.autograd.grad(parts, logits)
    assert parts.item() == pytest.approx(whole.item())
    assert torch.allclose(gradient, of_parts, atol=1e-12)


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
