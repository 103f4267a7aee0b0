"""Law 6. Diversity is 0 for identical thoughts and at most log M, and a higher --diversity_weight raises it.

It is the mutual information of thought and continuation, and its gradient reaches the weights.
"""

import math

import pytest
import torch
from drawing import draw, seeds
from hypothesis import given
from hypothesis import strategies as st
from mixtures import N
from trainers import row, row_diversity, step_of

from mot.thoughts import diversity


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


def test_diversity_gradient_reaches_the_weights(tmp_path):
    losses = {}
    for weight in (0.0, 0.5):
        trainer, (b,) = step_of(tmp_path / str(weight), num_thoughts=N, batch_size=32, diversity_weight=weight)
        trainer.compute_loss(trainer.model, dict(b)).backward()
        losses[weight] = [p.grad.clone() for p in trainer.model.parameters()]
    changed = [not torch.allclose(a, b, atol=1e-9) for a, b in zip(losses[0.0], losses[0.5], strict=True)]
    assert sum(changed) > len(changed) / 2
    assert (b["contrast"] >= 0).any()


def test_a_step_towards_more_diversity_raises_it(tmp_path):
    """The same batch, the same steps of plain gradient descent: a higher weight ends with more diverse thoughts."""
    measured = []
    for weight in (0.0, 0.1, 0.5):
        trainer, (b,) = step_of(tmp_path / str(weight), num_thoughts=N, batch_size=32, diversity_weight=weight)
        compared = b["thought"][:, 0] >= 0
        ids = torch.tensor(trainer.thoughts)
        others = torch.stack([ids[ids != k] for k in b["thought"][compared]])[..., None]
        b["contrast"] = torch.full_like(b["contrast"], -1).masked_scatter(compared[:, None, None], others)
        b["totals"]["contrasted"] = int(compared.sum())
        for _ in range(5):
            trainer.model.zero_grad()
            trainer.compute_loss(trainer.model, dict(b)).backward()
            with torch.no_grad():
                for p in trainer.model.parameters():
                    p -= 0.1 * p.grad
        trainer.model.eval()
        parts = [(row(b, i), b["contrast"][i].tolist()) for i in compared.nonzero()[:, 0].tolist()]
        jsd = [row_diversity(trainer, x, [thought, *others], y) for (x, thought, y), others in parts]
        measured.append(torch.stack(jsd).mean().item())
    assert measured[0] < measured[1] < measured[2]
