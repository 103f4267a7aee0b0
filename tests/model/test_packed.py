"""mot/model/packed.py: what oneDNN computes from its blocks is what torch computes from the weights."""

import copy

import pytest
import torch
from torch import nn

from mot.inference.think import MixtureOfThoughts
from mot.model.build import build_model
from mot.model.load import load_model
from mot.model.packed import SMALLEST, MkldnnLinear, available, pack
from mot.model.tokenizer import build_tokenizer
from mot.training.settings import TrainSettings

TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom."


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """(directory, model, tokenizer) of a mixture of 4 whose feed-forward maps are large enough, its others not."""
    tokenizer = build_tokenizer([TEXT], 100, 4)
    model = build_model(TrainSettings(hidden_size=256, num_layers=2, num_thoughts=4), tokenizer).eval()
    directory = tmp_path_factory.mktemp("packed")
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory, model, tokenizer


@pytest.fixture
def packed(plain):
    model = copy.deepcopy(plain[1])
    pack(model)
    return model


def test_large_maps_are_packed_and_small_ones_are_not(plain, packed):
    before, after = dict(plain[1].named_modules()), dict(packed.named_modules())
    large = {name for name, m in before.items() if isinstance(m, nn.Linear) and m.weight.numel() >= SMALLEST}
    assert 0 < len(large) < sum(isinstance(m, nn.Linear) for m in before.values())
    assert {name for name, m in after.items() if isinstance(m, MkldnnLinear)} == large


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 1), (3, 5), (8, 1), (40, 3)])
def test_same_logits(plain, packed, shape):
    ids = torch.randint(plain[1].config.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(packed(ids).logits, plain[1](ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_a_map_of_any_shape(bias):
    linear = nn.Linear(96, 130, bias)
    assert torch.equal(MkldnnLinear(linear).weight, linear.weight)
    for shape in ((96,), (1, 96), (1, 1, 96), (2, 3, 5, 96)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            torch.testing.assert_close(MkldnnLinear(linear)(x), linear(x), rtol=1e-4, atol=1e-5)
            apart = x.unflatten(-1, (2, 48)).transpose(-1, -2).flatten(-2)  # does not lie together
            torch.testing.assert_close(MkldnnLinear(linear)(apart), linear(apart), rtol=1e-4, atol=1e-5)


def test_thinks_what_the_plain_model_thinks(plain):
    directory, model, tokenizer = plain
    opened = MixtureOfThoughts.from_pretrained(str(directory))
    assert any(isinstance(m, MkldnnLinear) for m in opened.model.modules())
    by_hand = MixtureOfThoughts(model, tokenizer, opened.thoughts)
    for temperature in (0.0, 0.7):
        ours, theirs = (m.think("It was", 4, 12, temperature, seed=0) for m in (opened, by_hand))
        assert [t.token_ids for t in ours] == [t.token_ids for t in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert one.mean_logprob == pytest.approx(other.mean_logprob, abs=1e-4)


def test_other_precisions_stay(plain):
    model = copy.deepcopy(plain[1]).bfloat16()
    pack(model)
    assert not any(isinstance(m, MkldnnLinear) for m in model.modules())


@pytest.mark.parametrize("how", ["missing", "other numbers"])
def test_without_onednns_operators_the_model_stays_plain(how, plain, monkeypatch):
    def broken(self, x):
        if how == "missing":
            raise AttributeError("no such operator")
        return 1.01 * self.blocks.to_dense().new_ones(*x.shape[:-1], self.out_features)

    monkeypatch.setattr(MkldnnLinear, "forward", broken)
    available.cache_clear()
    try:
        model = copy.deepcopy(plain[1])
        pack(model)
        assert not available()
        assert not any(isinstance(m, MkldnnLinear) for m in model.modules())
    finally:
        available.cache_clear()


def test_the_probe_draws_nothing_from_the_global_generator():
    available.cache_clear()
    before = torch.get_rng_state()
    assert available(), "else nothing above is packed"
    assert torch.equal(torch.get_rng_state(), before)


def test_a_packed_model_is_not_trained_by_accident(plain):
    model = load_model(str(plain[0]))[0]
    assert not any(p.requires_grad for p in model.parameters())
    embeds = torch.zeros(1, 3, 256, requires_grad=True)
    with pytest.raises(RuntimeError, match="AutoModelForCausalLM"):
        model(inputs_embeds=embeds)
