"""The baselines do what their names say: distributions by counting, searches against their slow obvious versions."""

import math

import pytest
import torch

from mot.inference.arithmetic import ArithmeticDecoder
from mot.inference.draws import DiverseBeams
from mot.inference.listing import items
from mot.inference.sampler import Sampler, SampleRequest, Setting, prompt_ids, sample
from mot.inference.samplers import BASELINES, SAMPLERS, TUNING_POINTS
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


@pytest.mark.parametrize("sampler", [name for name in BASELINES if name != "list_prompt"])  # no chat template here
def test_a_text_depends_on_its_prompt_and_number_only(mixture, sampler):
    setting = SAMPLERS[sampler].settings[2]
    together = drawn(mixture, setting)
    assert [drawn(mixture, setting, [prompt])[0] for prompt in PROMPTS] == together
    assert all(len(texts) == 4 for texts in together)
    if setting.sampler.independent:
        assert drawn(mixture, setting, k=2) == [texts[:2] for texts in together]
    elif not setting.random:
        assert drawn(mixture, setting, seed=1) == together


@pytest.mark.parametrize("sampler", ["temperature", "top_p", "seed_prefix"])
def test_another_seed_gives_other_texts(mixture, sampler):
    setting = SAMPLERS[sampler].settings[-1]
    assert drawn(mixture, setting, seed=0) != drawn(mixture, setting, seed=1)


def test_no_sampler_generates_a_thought_token(mixture):
    for setting in every_setting():
        if setting.possible(mixture, 4):
            assert "thought" not in str(drawn(mixture, setting, tokens=12))


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


def test_each_text_of_arithmetic_sampling_is_an_ordinary_sample(mixture):
    (setting,) = (s for s in every_setting() if s.name == "arithmetic temperature 1")
    p = first_token_law(mixture, PROMPTS[0])
    p[mixture.tokenizer.eos_token_id] = 0
    draws = [drawn(mixture, setting, PROMPTS[:1], k=4, tokens=1, seed=seed)[0][1] for seed in range(1000)]
    ids = torch.tensor(mixture.tokenizer.convert_tokens_to_ids([text for text in draws if text]))
    share = torch.bincount(ids, minlength=len(p)) / len(ids)
    assert (share - p / p.sum()).abs().max() < 4 * math.sqrt(0.25 / len(ids))


def test_codes_of_arithmetic_sampling_find_more_than_independent_samples(mixture):
    """On a flat law of 64 symbols, 32 evenly spaced codes never meet."""
    code_R = torch.arange(32, dtype=torch.float64) / 32 + 0.01
    scores = ArithmeticDecoder(code_R)(None, torch.zeros(32, 64))
    assert scores.argmax(-1).unique().numel() == 32


def test_an_arithmetic_code_is_decoded_as_the_slow_obvious_way_does(mixture):
    """Two steps: the interval of the first token holds the code, and is divided again by the second law."""
    g = torch.Generator().manual_seed(0)
    first, second = torch.randn(1, 9, generator=g).double(), torch.randn(1, 9, generator=g).double()
    for code in torch.rand(200, generator=g, dtype=torch.float64).tolist():
        decoder = ArithmeticDecoder(torch.tensor([code], dtype=torch.float64))
        got = [int(decoder(None, first).argmax()), int(decoder(None, second).argmax())]
        low, width, expected = 0.0, 1.0, []
        for scores in (first, second):
            for token, p in enumerate(scores[0].softmax(-1).tolist()):
                if code < low + width * p or token == 8:
                    width *= p
                    expected.append(token)
                    break
                low += width * p
        assert got == expected


def test_stochastic_beams_draw_without_replacement_by_the_law(mixture):
    """All first tokens differ, and the first of them is a sample of the law (Gumbel-max)."""
    (setting,) = (s for s in every_setting() if s.name == "stochastic_beam temperature 1")
    p, counts, seeds = first_token_law(mixture, PROMPTS[0]), {}, 600
    for seed in range(seeds):
        (texts,) = drawn(mixture, setting, PROMPTS[:1], k=5, tokens=1, seed=seed)
        assert len(set(filter(None, texts))) == len(list(filter(None, texts)))  # special tokens are empty texts
        counts[texts[0]] = counts.get(texts[0], 0) + 1
    for text, count in counts.items():
        if not text:
            continue
        token = mixture.tokenizer.convert_tokens_to_ids(text)
        assert abs(count / seeds - float(p[token])) < 4 * math.sqrt(0.25 / seeds)


def test_stochastic_beams_are_all_texts_where_there_are_no_more(mixture):
    """Two tokens from as many beams as there are first tokens: no token sequence comes twice."""
    (setting,) = (s for s in every_setting() if s.name == "stochastic_beam temperature 1")
    (texts,) = drawn(mixture, setting, PROMPTS[:1], k=40, tokens=3, seed=1)
    assert len(set(texts)) == 40


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1. Paris\n2. Rome\n3. Bern", ["Paris", "Rome", "Bern"]),
        ("Sure!\n\n1) Paris\n  is large\n2) Rome", ["Paris\n  is large", "Rome", ""]),
        ("**1.** Paris\n**2.** Rome\n**3.** Bern\n**4.** Oslo", ["Paris", "Rome", "Bern"]),
        ("Paris, Rome, Bern", ["", "", ""]),
        ("In 1990. it was\n1: a\n2: 3.5 b", ["a", "3.5 b", ""]),
    ],
)
def test_a_listed_text_is_split_at_its_numbers(text, expected):
    assert items(text, 3) == expected
