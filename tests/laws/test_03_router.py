"""Law 3. The router's probabilities sum to 1 and equal the restricted softmax that plain transformers gives.

tests/serving/test_vllm.py checks the same for vLLM.
"""

import pytest
import torch
from mixtures import DIGITS, LENGTH, PROMPTS, SEQUENCES, W, ids_of, rows, sequence_logp

from mot.model.score import thought_logprobs


def test_the_router_is_the_restricted_softmax_of_plain_transformers(mixture):
    for prompt in PROMPTS:
        expected = mixture.model(torch.tensor([ids_of(mixture, prompt)])).logits[0, -1, mixture.thoughts].softmax(-1)
        assert torch.allclose(mixture.route(prompt), expected, atol=1e-6)
        assert mixture.route(prompt).sum().item() == pytest.approx(1, abs=1e-6)


@torch.no_grad()
def test_the_probabilities_of_all_sequences_sum_to_one_and_those_of_a_first_token_to_its_own(sequence_mixture):
    mixture = sequence_mixture
    batch = rows(mixture, ("the ", "x"))
    _, router, logp = thought_logprobs(mixture.model, batch, mixture.thoughts, sequences_ML=SEQUENCES)
    assert torch.allclose(logp.exp().view(DIGITS, -1).sum(1), router.softmax(-1)[0], atol=1e-6)
    thoughts = mixture.think("the ", num_thoughts=W, max_new_tokens=1, temperature=0)
    assert sum(t.probability for t in thoughts) == pytest.approx(1, abs=1e-6)
    for k, p in enumerate(mixture.route("the ")):
        of_first = sum(t.probability for t in thoughts if t.index // DIGITS ** (LENGTH - 1) == k)
        assert of_first == pytest.approx(p.item(), abs=1e-6)


def test_without_creativity_the_most_probable_sequences_are_followed(sequence_mixture):
    for prompt in PROMPTS:
        logp = [sequence_logp(sequence_mixture, prompt, sequence) for sequence in SEQUENCES]
        best = sorted(range(W), key=lambda i: -logp[i])[:9]
        assert [t.index for t in sequence_mixture.think(prompt, 9, 1, creativity=0)] == best


def test_thought_tokens_are_never_generated(mixture):
    mixture.model.lm_head.weight.data[mixture.thoughts] += 5  # now they are what the model would like best
    try:
        for t in mixture.think("the ", num_thoughts=16, max_new_tokens=20, temperature=1.5):
            assert not set(t.token_ids) & set(mixture.thoughts)
    finally:
        mixture.model.lm_head.weight.data[mixture.thoughts] -= 5
