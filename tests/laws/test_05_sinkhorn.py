"""Law 5. Sinkhorn's rows sum to 1, columns to B/N; permuting thoughts permutes everything and changes nothing else."""

import torch
from drawing import draw, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

from mot.thoughts import mixture_nll, responsibilities, router_loss, specialisation


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


@settings(deadline=None)  # the first call of an operator may be slow
@given(seeds, st.integers(1, 24), st.integers(2, 9), st.sampled_from([1.0, 0.3, 0.05]))
def test_responsibilities_rows_sum_to_one_and_equal_the_slow_version(seed, B, N, temperature):
    scores = draw(seed, B, N, scale=0.3)
    q = responsibilities(scores, temperature)
    assert torch.allclose(q.sum(1), torch.ones(B, dtype=q.dtype), atol=1e-9)
    assert torch.allclose(q, slow_sinkhorn(scores, temperature, 3), atol=1e-9)


@settings(deadline=None)  # the first call of an operator may be slow
@given(seeds, st.integers(2, 9))
def test_responsibilities_columns_sum_to_their_share(seed, N):
    B = 8 * N
    q = responsibilities(draw(seed, B, N, scale=0.2), 0.3, rounds=200)
    assert torch.allclose(q.sum(0), torch.full((N,), B / N, dtype=q.dtype), rtol=1e-3)


@settings(deadline=None)  # the first call of an operator may be slow
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
