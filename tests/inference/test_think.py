"""mot/inference/think.py as a user calls it: sampling, numbers of thoughts, and a run with thought sequences."""

import json
import math

import pytest
import torch
from mixtures import DIGITS, PROMPTS, N, W, greedy_alone, ids_of, tiny, tokens_of
from survive import complete, short_run
from transformers import AutoModelForCausalLM

from mot.inference.settings import SamplingParams
from mot.inference.think import MixtureOfThoughts


@torch.no_grad()
def test_drawing_by_gumbel_noise_is_sampling_from_the_softmax():
    mixture = tiny(N)
    ids = torch.tensor([[*ids_of(mixture, "the "), mixture.thoughts[0]]])
    logits = mixture.model(ids).logits[0, -1].index_fill(0, torch.tensor(mixture.thoughts), -torch.inf)
    drawn = torch.zeros(len(logits))
    for seed in range(400):
        for t in mixture.think("the ", num_thoughts=N * 4, max_new_tokens=1, temperature=2.0, seed=seed):
            if t.index == 0:
                drawn[t.token_ids[0] if t.token_ids else mixture.tokenizer.eos_token_id] += 1
    assert torch.allclose(drawn / drawn.sum(), (logits / 2).softmax(-1), atol=0.05)


def test_samples_without_a_thought_are_the_trunks_own():
    mixture = tiny(N)
    greedy = mixture.think_batch(PROMPTS, SamplingParams(1, 12, 0.0), without_thought=True)
    for prompt, (text,) in zip(PROMPTS, greedy, strict=True):
        assert list(text.token_ids) == greedy_alone(mixture, prompt, [], 12)  # no thought token after the prompt
        assert (text.index, text.probability) == (-1, 1.0)
    params = SamplingParams(5, 12, 1.5, seed=3)
    together = mixture.think_batch(PROMPTS, params, without_thought=True)
    alone = [mixture.think_batch([prompt], params, without_thought=True)[0] for prompt in PROMPTS]
    assert [[t.token_ids for t in texts] for texts in alone] == [[t.token_ids for t in texts] for texts in together]
    assert len({t.token_ids for texts in together for t in texts}) > 15
    assert not {i for texts in together for t in texts for i in t.token_ids} & set(mixture.thoughts)
    with pytest.raises(ValueError, match="greedy repeats are copies"):
        mixture.think_batch(PROMPTS, SamplingParams(2, 12, 0.0), without_thought=True)


def test_a_temperature_whose_inverse_overflows_is_greedy():
    mixture = tiny(N)
    greedy = mixture.think("the ", max_new_tokens=8, temperature=0)
    assert mixture.think("the ", max_new_tokens=8, temperature=1e-40) == greedy
    assert mixture.think("the ", max_new_tokens=8, temperature=1.0) != greedy
    with pytest.raises(ValueError, match="greedy repeats are copies"):
        mixture.think("the ", num_thoughts=N + 1, max_new_tokens=8, temperature=1e-9)


def test_without_a_number_there_are_as_many_texts_as_thought_tokens():
    mixture = tiny(DIGITS, 3)
    assert (mixture.num_thoughts, mixture.different_thoughts) == (DIGITS, W)
    assert len(mixture.think("the ", max_new_tokens=1)) == DIGITS
    with pytest.raises(ValueError, match=f"--num_thoughts {W + 1}: the model has {W} .* temperature > 0"):
        mixture.think("the ", num_thoughts=W + 1, temperature=0)
    for creativity in (1e-310, 0.01):
        assert len({t.index for t in mixture.think("the ", 20, 1, creativity=creativity)}) == 20


@pytest.mark.slow
def test_a_run_with_thought_sequences_leaves_an_ordinary_checkpoint_and_sensible_numbers(text_file, tmp_path):
    whole = tmp_path / "run"
    complete([*short_run(text_file, accumulate=1), "--thought_length", "3", "--output_dir", whole])
    mixture = MixtureOfThoughts.from_pretrained(str(whole))
    assert (mixture.num_thoughts, mixture.thought_length, mixture.different_thoughts) == (4, 3, 64)
    plain = AutoModelForCausalLM.from_pretrained(whole)
    assert type(plain).__name__ == "LlamaForCausalLM"
    assert plain.config.mot["thought_length"] == 3
    with torch.no_grad():
        for t in mixture.think("the king", 20, 6, temperature=0):
            sequence = [t.index // 16, t.index // 4 % 4, t.index % 4]
            ids = torch.tensor([[*ids_of(mixture, "the king"), *tokens_of(mixture, sequence)]])
            new = plain.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :].tolist()
            end = mixture.tokenizer.eos_token_id
            assert list(t.token_ids) == (new[: new.index(end)] if end in new else new)
    logged = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    for m in logged:
        for name in ("effective_thoughts", "eval_effective_thoughts"):
            assert 1 - 1e-9 <= m.get(name, 1) <= 4 + 1e-9
        if "eval_mixture_nll" in m:
            assert m["eval_oracle_nll"] - 1e-6 <= m["eval_mixture_nll"] + math.log(64) / 16
    samples = [json.loads(line) for line in (whole / "samples.jsonl").read_text().splitlines()]
    assert all(0 <= t["index"] < 64 for s in samples for t in s["thoughts"])


def test_a_checkpoint_that_does_not_name_its_thought_length_has_one():
    """A checkpoint of today with thoughts of one token does not name it either."""
    assert "thought_length" not in tiny(4).model.config.mot
    assert tiny(4, 2).model.config.mot["thought_length"] == 2
    old = tiny(4)
    assert (MixtureOfThoughts(old.model, old.tokenizer, old.thoughts).thought_length, old.different_thoughts) == (1, 4)
