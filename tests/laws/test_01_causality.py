"""Law 1. No logit depends on a later token, and nothing before the branch point depends on the thought: by gradient."""

import torch
from mixtures import LENGTH, rows, tokens_of

from mot.model.score import lay_out


def reached_by(mixture, layout: dict) -> torch.Tensor:
    """[t, s]: does logit t depend on the embedding at position s?"""
    embedded = mixture.model.get_input_embeddings()(layout["input_ids"]).detach().requires_grad_()
    logits = mixture.model(inputs_embeds=embedded).logits
    gradients = [
        torch.autograd.grad(logits[0, t].sum(), embedded, retain_graph=True)[0] for t in range(logits.shape[1])
    ]
    return torch.cat(gradients).abs().sum(-1) > 0


def test_no_logit_depends_on_a_later_token_and_nothing_before_the_branch_point_on_the_thought(mixture):
    layout = lay_out(rows(mixture, ("the quick ", "brown fox")), torch.tensor([[mixture.thoughts[2]]]), 0)
    P = len("the quick ")
    for t, reached in enumerate(reached_by(mixture, layout)):
        assert reached[: t + 1].all(), f"position {t} does not see all before it"
        assert not reached[t + 1 :].any(), f"position {t} sees the future"
        assert bool(reached[P]) == (t >= P), "the thought is seen before the branch point, or not after it"


def test_nothing_before_the_branch_point_depends_on_the_sequence_and_everything_behind_it_does(sequence_mixture):
    mixture = sequence_mixture
    layout = lay_out(rows(mixture, ("the quick ", "brown fox")), torch.tensor([tokens_of(mixture, (2, 0, 1))]), 0)
    P = len("the quick ")
    for t, reached in enumerate(reached_by(mixture, layout)):
        assert reached[: t + 1].all()
        assert not reached[t + 1 :].any()
        assert reached[P : P + LENGTH].tolist() == [t >= P + i for i in range(LENGTH)]
