"""Law 8. One batch of 32 = two of 16 = four of 8 = a ragged split, in loss and gradient, every auxiliary loss on."""

import pytest
import torch
from drawing import draw, seeds
from hypothesis import given
from hypothesis import strategies as st
from mixtures import DIGITS, LENGTH, N
from trainers import step_of

from mot.thoughts import usage_entropy


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


@pytest.mark.parametrize("source", ["text", "rows"])
@pytest.mark.parametrize(
    ("thoughts", "sizes"),
    [({"num_thoughts": N}, (16, 8, 12)), ({"num_thoughts": DIGITS, "thought_length": LENGTH}, (8, 12))],
    ids=["one token", "sequence"],
)
def test_one_batch_of_32_equals_accumulated_parts_also_a_ragged_one(tmp_path, thoughts, sizes, source):
    gradients, losses = {}, {}
    for size in (32, *sizes):  # 12: two of 12 and a ragged 8
        trainer, batches = step_of(
            tmp_path / str(size), batch_size=size, rows=32, source=source, diversity_weight=0.1, **thoughts
        )
        assert sum(len(b["prompt"]) for b in batches) == 32
        losses[size] = sum(trainer.training_step(trainer.model, dict(b)).item() for b in batches)
        gradients[size] = torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
    for size in sizes:
        assert losses[size] == pytest.approx(losses[32], rel=1e-6)
        assert (gradients[size] - gradients[32]).norm() / gradients[32].norm() < 1e-6
