"""The baselines are what their names say: distributions by counting, searches against their slow obvious versions."""

import math

import pytest
import torch

from mot.evaluation.evaluate import prompt_ids
from mot.inference.samplers import BASELINES, SAMPLERS, TUNING_POINTS, DiverseBeams, Setting, sample
from mot.inference.think import MixtureOfThoughts


@pytest.fixture(scope="module")
def mixture(tiny_run):
    return MixtureOfThoughts.from_pretrained(str(tiny_run))


PROMPTS = ["abcdefgh", "hgfedcba"]


def drawn(mixture, setting, prompts=PROMPTS, k=4, tokens=5, seed=0):
    ids = prompt_ids(mixture, prompts)
    return sample(mixture.model, mixture.tokenizer, ids, prompts, k, setting, tokens, seed, mixture.thoughts)


def first_token_law(mixture, prompt):
    """p of the first token of the trunk, thought tokens left out."""
    with torch.no_grad():
        logits = mixture.model(torch.tensor(prompt_ids(mixture, [prompt]))).logits[0, -1].double()
    logits[mixture.thoughts] = -math.inf
    return logits.softmax(-1)


def test_every_sampler_has_as_many_settings_to_be_tuned_and_no_two_have_one_name():
    assert {len(settings) for settings in SAMPLERS.values()} == {TUNING_POINTS}
    names = [s.name for settings in SAMPLERS.values() for s in settings]
    assert len(set(names)) == len(names)
    assert set(BASELINES) == SAMPLERS.keys() - {"thoughts"}


SLOW = {  # each sampler's law of the first token, from the law p at temperature 1
    "temperature 0.5": lambda p: p**2,
    "top_k 3": lambda p: p * (p >= p.sort(descending=True).values[2]),
    "top_p 0.5": lambda p: p * torch.tensor([p[p > x].sum() < 0.5 for x in p]),
    "min_p 0.3": lambda p: p * (p >= 0.3 * p.max()),
}


@pytest.mark.parametrize("name", SLOW)
def test_samplers_draw_from_their_law(mixture, name):
    (setting,) = (s for settings in SAMPLERS.values() for s in settings if s.name == name)
    prompt, k = PROMPTS[0], 4000
    p = first_token_law(mixture, prompt)
    p = SLOW[name](
        p * (torch.arange(len(p)) != mixture.tokenizer.eos_token_id) + p * 0
    )  # an ending leaves no text to count
    (texts,) = drawn(mixture, setting, [prompt], k, tokens=1)
    texts = [text for text in texts if text]
    ids = torch.tensor(mixture.tokenizer.convert_tokens_to_ids(texts))
    share = torch.bincount(ids, minlength=len(p)) / len(ids)
    assert (share - p / p.sum()).abs().max() < 4 * math.sqrt(0.25 / k)


@pytest.mark.parametrize("sampler", [name for name in BASELINES if name != "one_thought"])
def test_a_text_depends_on_its_prompt_and_number_only(mixture, sampler):
    setting = SAMPLERS[sampler][2]
    together = drawn(mixture, setting)
    assert [drawn(mixture, setting, [prompt])[0] for prompt in PROMPTS] == together
    assert all(len(texts) == 4 for texts in together)
    if setting.random:
        assert drawn(mixture, setting, k=2) == [texts[:2] for texts in together]
    else:
        assert drawn(mixture, setting, seed=1) == together


@pytest.mark.parametrize("sampler", ["temperature", "top_p", "seed_prefix"])
def test_another_seed_gives_other_texts(mixture, sampler):
    setting = SAMPLERS[sampler][-1]
    assert drawn(mixture, setting, seed=0) != drawn(mixture, setting, seed=1)


def test_no_sampler_says_a_thought_token(mixture):
    for settings in SAMPLERS.values():
        if settings[0].sampler not in ("thoughts", "one_thought"):
            assert "thought" not in str(drawn(mixture, settings[-1], tokens=12))


def test_a_wide_enough_beam_search_finds_the_most_probable_texts(mixture):
    """Two tokens, every pair of them scored: the k best pairs are what a beam of the vocabulary's width finds."""
    prompt, V = PROMPTS[0], len(mixture.tokenizer)
    row = prompt_ids(mixture, [prompt])[0]
    with torch.no_grad():
        logits = mixture.model(torch.tensor([[*row, v] for v in range(V)])).logits.double()[:, -2:]
    logits[..., mixture.thoughts] = -math.inf
    logp = logits.log_softmax(-1)
    total = logp[0, 0][:, None] + logp[:, 1]
    end = mixture.tokenizer.eos_token_id
    total[end] = -math.inf  # nothing follows an ending
    total[end, end] = logp[0, 0, end]
    pairs = [divmod(i, V) for i in total.flatten().topk(3).indices.tolist()]
    best = {mixture.tokenizer.decode(pair, skip_special_tokens=True) for pair in pairs}
    width = Setting("beam", (("width", V // 3), ("length_penalty", 0.0)))
    (texts,) = drawn(mixture, width, [prompt], k=3, tokens=2)
    assert set(texts) == best


def slow_diverse_beams(scores, k, penalty, running):
    """Group after group, as in the paper: what each says, given what the groups before it said."""
    said = []
    for b in range(len(scores) // k):
        tokens = []
        for g in range(k):
            logp = scores[b * k + g].log_softmax(-1).tolist()
            counts = [sum(t == v and running[b * k + i] for i, t in enumerate(tokens)) for v in range(len(logp))]
            tokens.append(max(range(len(logp)), key=lambda v: logp[v] - penalty * counts[v]))
        said += tokens
    return said


@pytest.mark.parametrize("penalty", [0.1, 0.5, 2.0])
def test_diverse_beams_are_the_slow_ones(penalty):
    g = torch.Generator().manual_seed(0)
    scores, k, end = torch.randn(12, 9, generator=g), 4, 8
    so_far = torch.randint(0, 8, (12, 5), generator=g)
    so_far[:, 1] = end  # in the prompt: no ending
    so_far[[2, 7], 4] = end
    fast = DiverseBeams(k, penalty, end, start=3)(so_far, scores).argmax(-1).tolist()
    assert fast == slow_diverse_beams(scores, k, penalty, [i not in (2, 7) for i in range(12)])


def test_diverse_beams_without_a_penalty_are_copies_and_with_a_high_one_all_differ(mixture):
    none, high = (Setting("diverse_beam", (("penalty", penalty),)) for penalty in (0.0, 20.0))
    assert [len(set(texts)) for texts in drawn(mixture, none, k=8)] == [1, 1]
    assert [len(set(texts)) for texts in drawn(mixture, high, k=8)] == [8, 8]
