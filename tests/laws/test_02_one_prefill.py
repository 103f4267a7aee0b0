"""Law 2. One prefill and K branches = K separate full computations: cached = uncached, padded = unpadded, B = 1 x B.

Greedy texts agree token for token in fp32. The pieces that make it fast have tests of their own: the shared cache in
tests/model/test_shared_prompt.py, packed weights in tests/model/test_packed.py, seven pretrained architectures in
test_11_adapters.py, and the engine in tests/serving.
"""

import itertools
import math

import pytest
import torch
from mixtures import (
    DIGITS,
    LENGTH,
    PAIRS,
    PROMPTS,
    SEQUENCES,
    N,
    W,
    completion_logp,
    greedy_alone,
    ids_of,
    rows,
    sequence_logp,
    tiny,
    tokens_of,
)

import mot.inference.think
from mot.data.datasets import by_length
from mot.inference.settings import SamplingParams
from mot.model.score import base_logprobs, score, thought_logprobs

# Texts --------------------------------------------------------------------------------------------------------------


def test_one_prefill_and_k_branches_equal_k_full_computations_padded_and_batched(mixture):
    together = mixture.think_batch(PROMPTS, SamplingParams(max_new_tokens=12, temperature=0))
    for prompt, thoughts in zip(PROMPTS, together, strict=True):
        assert sorted(t.index for t in thoughts) == list(range(N))
        for t, alone in zip(thoughts, mixture.think(prompt, max_new_tokens=12, temperature=0), strict=True):
            assert (t.index, t.text, t.token_ids) == (alone.index, alone.text, alone.token_ids)
            assert t.probability == pytest.approx(alone.probability, abs=1e-5)
            assert t.mean_logprob == pytest.approx(alone.mean_logprob, abs=1e-4)
            assert list(t.token_ids) == greedy_alone(mixture, prompt, [t.index], 12)


@pytest.mark.parametrize("creativity", [0.0, 1.0, math.inf])
def test_one_prefill_and_k_sequences_equal_k_full_computations_padded_and_batched(sequence_mixture, creativity):
    mixture, how = sequence_mixture, {"num_thoughts": 10, "max_new_tokens": 8, "temperature": 0}
    how["creativity"] = creativity
    for prompt, thoughts in zip(PROMPTS, mixture.think_batch(PROMPTS, SamplingParams(**how)), strict=True):
        assert len({t.index for t in thoughts}) == 10
        assert [t.probability for t in thoughts] == sorted((t.probability for t in thoughts), reverse=True)
        for t, alone in zip(thoughts, mixture.think(prompt, **how), strict=True):
            assert (t.index, t.text, t.token_ids) == (alone.index, alone.text, alone.token_ids)
            assert math.log(t.probability) == pytest.approx(
                sequence_logp(mixture, prompt, SEQUENCES[t.index]), abs=1e-4
            )
            assert list(t.token_ids) == greedy_alone(mixture, prompt, SEQUENCES[t.index], 8)


def test_the_prompt_is_computed_once_whatever_k(sequence_mixture, monkeypatch):
    read, forward = [], type(sequence_mixture.model).forward
    monkeypatch.setattr(
        type(sequence_mixture.model),
        "forward",
        lambda self, input_ids, **more: read.append(tuple(input_ids.shape)) or forward(self, input_ids, **more),
    )
    sequence_mixture.think("the quick brown ", num_thoughts=W, max_new_tokens=2, temperature=0)
    assert read[:4] == [(1, 16), (DIGITS, 1), (DIGITS**2, 1), (W, 1)]


def test_sequences_keep_the_prompt_once_at_every_level_and_say_the_same(monkeypatch):
    mixture = tiny(DIGITS, LENGTH)
    params = SamplingParams(num_thoughts=7, max_new_tokens=8, temperature=0, creativity=1.0)
    once = itertools.chain(*mixture.think_batch(PROMPTS, params))
    monkeypatch.setattr(mot.inference.think, "prompt_cache", lambda model: None)
    for ours, theirs in zip(once, itertools.chain(*mixture.think_batch(PROMPTS, params)), strict=True):
        assert (ours.index, ours.token_ids) == (theirs.index, theirs.token_ids)
        assert ours.probability == pytest.approx(theirs.probability, abs=1e-6)


def test_the_text_of_a_thought_does_not_depend_on_what_runs_beside_it(mixture):
    how = {"max_new_tokens": 12, "temperature": 1.0, "seed": 3}
    alone = {t.index: t.text for t in mixture.think("the ", **how)}
    for t in mixture.think("the ", num_thoughts=2, **how):
        assert t.text == alone[t.index]
    for t in mixture.think_batch(PROMPTS, SamplingParams(num_thoughts=9, **how))[0][:1]:
        assert t.text == alone[t.index]
    torch.manual_seed(5)
    assert {t.index: t.text for t in mixture.think("the ", **how)} == alone
    assert {t.index: t.text for t in mixture.think("the ", **how | {"seed": 4})} != alone


def test_the_text_of_a_sequence_does_not_depend_on_what_runs_beside_it(sequence_mixture):
    mixture, how = sequence_mixture, {"max_new_tokens": 8, "temperature": 1.0, "seed": 3}
    alone = {t.index: t.text for t in mixture.think("the ", num_thoughts=W, **how)}
    assert set(alone) == set(range(W))
    for k in (1, 5, DIGITS):
        chosen = mixture.think("the ", num_thoughts=k, **how)
        assert len(chosen) == k
        assert all(t.text == alone[t.index] for t in chosen)
    twice = mixture.think_batch(PROMPTS, SamplingParams(num_thoughts=2 * W + 5, **how))[0]
    assert sorted(sum(t.index == k for t in twice) for k in range(W)) == [2] * (W - 5) + [3] * 5
    assert {t.text for t in twice} > set(alone.values())


# Scores -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_scoring_with_a_shared_prompt_equals_scoring_every_thought_on_its_own(mixture):
    batch = rows(mixture, *PAIRS)
    fast, router, thought_logp = thought_logprobs(mixture.model, batch, mixture.thoughts)
    assert torch.equal(thought_logp, router.log_softmax(-1))
    for b, pair in enumerate(PAIRS):
        x, y = (ids_of(mixture, text) for text in pair)
        for k, thought in enumerate(mixture.thoughts):
            assert torch.allclose(fast[b, k, : len(y)], completion_logp(mixture, x, [thought], y), atol=1e-5)
            assert (fast[b, k, len(y) :] == 0).all()
        assert torch.allclose(router[b], mixture.model(torch.tensor([x])).logits[0, -1, mixture.thoughts], atol=1e-5)
        slow = completion_logp(mixture, x, [], y).sum()
        assert base_logprobs(mixture.model, batch, 0)[b].item() == pytest.approx(slow.item(), abs=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("length", [0, 4])
def test_scoring_with_a_shared_prompt_equals_scoring_every_sequence_on_its_own(sequence_mixture, length):
    mixture, sequences = sequence_mixture, SEQUENCES[[20, 5, 7, 26]]
    fast, router, logp = thought_logprobs(mixture.model, rows(mixture, *PAIRS), mixture.thoughts, length, sequences)
    for b, (prompt, completion) in enumerate(PAIRS):
        x, y = ids_of(mixture, prompt), ids_of(mixture, completion)[: length or None]
        for m, sequence in enumerate(sequences):
            slow = completion_logp(mixture, x, tokens_of(mixture, sequence), y)
            assert torch.allclose(fast[b, m, : len(y)], slow, atol=1e-5)
            assert (fast[b, m, len(y) :] == 0).all()
            assert logp[b, m].item() == pytest.approx(sequence_logp(mixture, prompt, sequence), abs=1e-4)
        assert torch.allclose(router[b].softmax(-1), mixture.route(prompt), atol=1e-5)


@pytest.mark.parametrize("parts", [1, 2, 3, 8])
def test_rows_of_like_length_score_as_they_do_among_longer_ones(mixture, parts):
    texts = [
        ("the king", " of the night and the day"),
        ("a", " b"),
        ("to the sea", " sings"),
        ("so", " it is"),
        ("o", "x"),
    ]
    batch = rows(mixture, *texts)
    whole, routed, _ = thought_logprobs(mixture.model, batch, mixture.thoughts)
    seen, tokens = [], 0
    for some, part in by_length(batch, parts):
        logp, router, _ = thought_logprobs(mixture.model, part, mixture.thoughts)
        torch.testing.assert_close(logp, whole[some, :, : logp.shape[2]], atol=1e-5, rtol=0)
        torch.testing.assert_close(router, routed[some], atol=1e-5, rtol=0)
        assert part["prompt_mask"].any(0).all()
        assert part["completion_mask"].any(0).all()
        seen, tokens = seen + some.tolist(), tokens + part["completion"].numel()
    assert sorted(seen) == list(range(len(texts)))
    assert (tokens < batch["completion"].numel()) == (parts > 1)


def test_a_prefix_is_scored_as_part_of_the_whole(mixture):
    batch = rows(mixture, ("the quick ", "brown fox"), ("dog", " jumps"))
    with torch.no_grad():
        whole, _, _ = thought_logprobs(mixture.model, batch, mixture.thoughts)
        part, _, _ = thought_logprobs(mixture.model, batch, mixture.thoughts, tokens=4)
    assert torch.allclose(part, whole[..., :4], atol=1e-5)


def test_scores_of_a_batch_equal_scores_one_by_one(mixture):
    together = score(mixture.model, rows(mixture, *PAIRS), mixture.thoughts, mixture.tokenizer.pad_token_id)
    for b, (prompt, completion) in enumerate(PAIRS):
        for name, value in mixture.nll(prompt, completion).items():
            assert together[f"{name}_nll"][b].item() == pytest.approx(value, abs=1e-5)
