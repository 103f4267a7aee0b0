"""The baselines do what their names say: distributions by counting, searches against their slow obvious versions."""

import math

import pytest
import torch

from mot.inference.samplers import (
    BASELINES,
    SAMPLERS,
    TUNING_POINTS,
    DiverseBeams,
    Sampler,
    SampleRequest,
    Setting,
    prompt_ids,
    sample,
)
from mot.inference.think import MixtureOfThoughts


@pytest.fixture(scope="module")
def mixture(tiny_run):
    return MixtureOfThoughts.from_pretrained(str(tiny_run))


PROMPTS = ["abcdefgh", "hgfedcba"]


def drawn(mixture, setting, prompts=PROMPTS, k=4, tokens=5, seed=0):
    return sample(SampleRequest(mixture, setting, prompts, k, tokens, seed))


def first_token_law(mixture, prompt):
    """p of the first token of the trunk, thought tokens left out."""
    with torch.no_grad():
        logits = mixture.model(torch.tensor(prompt_ids(mixture, [prompt]))).logits[0, -1].double()
    logits[mixture.thoughts] = -math.inf
    return logits.softmax(-1)


def every_setting():
    return [setting for sampler in SAMPLERS.values() for setting in sampler.settings]


def test_every_sampler_has_the_same_number_of_settings_and_names_are_unique():
    assert {len(sampler.settings) for sampler in SAMPLERS.values()} == {TUNING_POINTS}
    names = [setting.name for setting in every_setting()]
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
    (setting,) = (s for s in every_setting() if s.name == name)
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


@pytest.mark.parametrize("sampler", BASELINES)
def test_a_text_depends_on_its_prompt_and_number_only(mixture, sampler):
    setting = SAMPLERS[sampler].settings[2]
    together = drawn(mixture, setting)
    assert [drawn(mixture, setting, [prompt])[0] for prompt in PROMPTS] == together
    assert all(len(texts) == 4 for texts in together)
    if setting.random:
        assert drawn(mixture, setting, k=2) == [texts[:2] for texts in together]
    else:
        assert drawn(mixture, setting, seed=1) == together


@pytest.mark.parametrize("sampler", ["temperature", "top_p", "seed_prefix"])
def test_another_seed_gives_other_texts(mixture, sampler):
    setting = SAMPLERS[sampler].settings[-1]
    assert drawn(mixture, setting, seed=0) != drawn(mixture, setting, seed=1)


def test_no_sampler_generates_a_thought_token(mixture):
    for sampler in SAMPLERS.values():
        assert "thought" not in str(drawn(mixture, sampler.settings[-1], tokens=12))


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
    width = Setting(SAMPLERS["beam"], (("width", V // 3), ("length_penalty", 0.0)))
    (texts,) = drawn(mixture, width, [prompt], k=3, tokens=2)
    assert set(texts) == best


def slow_diverse_beams(scores, k, penalty, running):
    """Group after group, as in the paper: the token of each, given the tokens of the groups before it."""
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
    none, high = (Setting(SAMPLERS["diverse_beam"], (("penalty", penalty),)) for penalty in (0.0, 20.0))
    assert [len(set(texts)) for texts in drawn(mixture, none, k=8)] == [1, 1]
    assert [len(set(texts)) for texts in drawn(mixture, high, k=8)] == [8, 8]


def test_every_sampler_has_its_own_look_and_a_kind():
    assert len({sampler.label for sampler in SAMPLERS.values()}) == len(SAMPLERS)
    assert len({sampler.marker for sampler in SAMPLERS.values()}) == len(SAMPLERS)
    assert {sampler.kind for sampler in SAMPLERS.values()} == {"mixture", "ablation", "rival"}
    assert [name for name, sampler in SAMPLERS.items() if sampler.kind == "mixture"] == ["thoughts"]


def test_a_new_sampler_is_one_descriptor(mixture):
    """With a draw function of its own, more settings than the others, and a condition on the model."""

    def draw_lists(request):
        return [[f"{prompt} {i}" for i in range(request.k)] for prompt in request.prompts]

    grid = tuple({"temperature": t, "top_p": p} for t in (0.5, 1.0, 1.5) for p in (0.8, 0.9, 1.0))
    new = Sampler(
        "lists",
        "list prompting",
        "C2",
        "p",
        grid,
        draw_lists,
        independent=False,
        possible=lambda setting, model, k: model.tokenizer.chat_template is not None,
    )
    assert len(new.settings) == 9
    assert new.settings[0].name == "lists temperature 0.5 top_p 0.8"
    assert drawn(mixture, new.settings[0], ["p"], k=2) == [["p 0", "p 1"]]
    assert not new.settings[0].possible(mixture, 2)


def test_a_setting_gives_sampling_parameters():
    params = SAMPLERS["min_p"].settings[1].params(k=4, max_new_tokens=9, seed=3)
    assert (params.num_thoughts, params.max_new_tokens, params.seed) == (4, 9, 3)
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (1.0, 1.0, 0, 0.05)
