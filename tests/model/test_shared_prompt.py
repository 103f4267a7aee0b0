"""A prompt kept once is a prompt kept K times: the same logits, the same texts, one copy of its bytes."""

import pytest
import torch
from bases import ARCHITECTURES, make
from mixtures import PROMPTS, tiny
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

import mot.inference.think
import mot.model.shared_prompt
from mot.inference.settings import SamplingParams
from mot.inference.think import MixtureOfThoughts
from mot.model.shared_prompt import NAME, SharedPromptLayer, by_products, prompt_cache, share_prompt

WINDOWED = {"mistral": 0, "gemma3": 1}  # layers, of two, that keep a prompt once


@pytest.fixture(scope="module", params=ARCHITECTURES)
def base(request, tmp_path_factory) -> tuple[str, MixtureOfThoughts]:
    """A model of random weights, four of whose tokens are called thoughts."""
    where = make(request.param, tmp_path_factory.mktemp(request.param) / "base")
    tokenizer = AutoTokenizer.from_pretrained(where, padding_side="left")
    return request.param, MixtureOfThoughts(AutoModelForCausalLM.from_pretrained(where).eval(), tokenizer, [5, 6, 7, 8])


def ids_of(P: int, B: int, pads: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts [B, P] and their mask, `pads` of them on the left of each."""
    ids = torch.randint(10, 90, (B, P), generator=torch.Generator().manual_seed(P))
    return ids, (torch.arange(P) >= torch.tensor(pads)[:, None]).long()


def flat(rows: list[list]) -> list:
    return [x for row in rows for x in row]


@torch.no_grad()
@pytest.mark.parametrize("pads", [(0, 0), (0, 7)], ids=["unpadded", "padded"])
def test_a_prompt_kept_once_gives_the_logits_of_copies(base, pads):
    architecture, mixture = base
    model, (B, K, P) = mixture.model, (2, 3, 12)
    ids, mask = ids_of(P, B, pads)
    caches = [prompt_cache(model), DynamicCache(config=model.config)]
    for cache in caches:
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        model(ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
    share_prompt(caches[0])
    kept = sum(type(layer) is SharedPromptLayer and layer.prompt_keys is not None for layer in caches[0].layers)
    assert kept == WINDOWED.get(architecture, 2)
    for cache in caches:
        cache.batch_select_indices(torch.arange(B).repeat_interleave(K))
    said = torch.zeros(B * K, 0, dtype=torch.long)
    for Q in (1, 1, 3, 70, 1):  # several tokens at once, and more than there is room for
        new = torch.randint(10, 90, (B * K, Q), generator=torch.Generator().manual_seed(Q))
        said = torch.cat([said, new], 1)
        whole = torch.cat([mask.repeat_interleave(K, 0), torch.ones_like(said)], 1)
        positions = (whole.cumsum(-1) - 1)[:, -Q:]
        once, copies = (
            model(new, attention_mask=whole, position_ids=positions, past_key_values=cache, use_cache=True).logits
            for cache in caches
        )
        assert torch.allclose(once, copies, atol=2e-5), (once - copies).abs().max()
        if not any(pads) and Q == 1:
            assert caches[0].get_seq_length() == P + said.shape[1]


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_the_texts_are_those_of_copies(base, temperature, monkeypatch):
    """Caches: ours, the model's own, and the model's own with eager attention; alone and in a padded batch."""
    _, mixture = base
    asked = {"num_thoughts": 6 if temperature else 3, "max_new_tokens": 9, "temperature": temperature, "seed": 4}
    once = mixture.think_batch(PROMPTS, SamplingParams(**asked))
    alone = [mixture.think(prompt, **asked) for prompt in PROMPTS]
    monkeypatch.setattr(mot.inference.think, "prompt_cache", lambda model: None)
    copies = mixture.think_batch(PROMPTS, SamplingParams(**asked))
    monkeypatch.undo()
    mixture.model.set_attn_implementation("eager")
    assert prompt_cache(mixture.model) is None
    eager = mixture.think_batch(PROMPTS, SamplingParams(**asked))
    mixture.model.set_attn_implementation("sdpa")
    for other in (alone, copies, eager):
        for ours, theirs in zip(flat(once), flat(other), strict=True):
            assert (ours.index, ours.token_ids) == (theirs.index, theirs.token_ids)
            assert ours.mean_logprob == pytest.approx(theirs.mean_logprob, abs=1e-4)


def test_the_prompts_bytes_are_one_copy_whatever_k(monkeypatch):
    mixture, caches = tiny(4), []
    monkeypatch.setattr(
        mot.inference.think, "prompt_cache", lambda model: caches.append(prompt_cache(model)) or caches[-1]
    )
    prompt = "the quick brown fox jumps over the lazy dog. " * 6
    P, config = len(mixture.tokenizer(prompt, add_special_tokens=False)["input_ids"]), mixture.model.config
    one_copy = 2 * P * config.num_hidden_layers * config.hidden_size * 4  # keys and values, four bytes a number
    for K in (2, 4, 32):
        mixture.think(prompt, num_thoughts=K, max_new_tokens=3)
        layers = caches[-1].layers
        held = [t for x in layers for t in (x.prompt_keys, x.prompt_values, x.keys, x.values, *x.buffers.values())]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
        of_prompt = {t.untyped_storage().data_ptr() for x in layers for t in (x.prompt_keys, x.prompt_values)}
        assert sum(storages[s] for s in of_prompt) == one_copy
        rows = one_copy // P * K
        assert sum(storages.values()) <= one_copy + rows * (3 + mot.model.shared_prompt.ROOM)


@torch.no_grad()
def test_rows_are_picked_prompt_by_prompt_or_not_at_all():
    mixture = tiny(4)
    cache = prompt_cache(mixture.model)
    mixture.model(torch.arange(8).view(2, 4), past_key_values=cache, use_cache=True)
    share_prompt(cache)
    cache.batch_select_indices(torch.tensor([0, 0, 1, 1]))
    for rows in ([1, 0, 3], [0, 2, 1, 3], [0, 1, 2], [0, 1]):
        with pytest.raises(ValueError, match="equally many rows"):
            cache.batch_select_indices(torch.tensor(rows))
    cache.batch_select_indices(torch.tensor([1, 3]))
    assert cache.layers[0].keys.shape[0] == 2


@torch.no_grad()
def test_attention_that_goes_past_the_prompt_is_an_error_and_not_another_text():
    mixture = tiny(4)
    cache = prompt_cache(mixture.model)
    mixture.model(torch.arange(4)[None], past_key_values=cache, use_cache=True)
    share_prompt(cache)
    mixture.model.set_attn_implementation("sdpa")  # as another thread might, between two steps
    mixture.model(torch.tensor([[5]]), past_key_values=cache, use_cache=True)  # is seen at the next step
    with pytest.raises(RuntimeError, match="went past the prompt"):
        mixture.model(torch.tensor([[5]]), past_key_values=cache, use_cache=True)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_by_products_is_attention(masked):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, generator=g) for n in (5, 9, 9))
    mask = torch.zeros(2, 1, 1, 9).masked_fill_(torch.arange(9) < torch.tensor([0, 4]).view(2, 1, 1, 1), -torch.inf)
    for scale in (None, 0.7):
        out, lse = by_products(q, k, v, mask if masked else None, scale)
        expected, expected_lse = mot.model.shared_prompt.attention(q, k, v, mask if masked else None, scale)
        public = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask if masked else None, scale=scale)
        assert torch.allclose(out, public, atol=1e-6)
        assert torch.allclose(expected, public, atol=1e-6)
        assert torch.allclose(lse, expected_lse, atol=1e-5)


def test_the_name_of_our_attention_stays_out_of_the_checkpoint(tmp_path):
    mixture = tiny(4)
    mixture.think("the ", max_new_tokens=2)
    assert mot.model.shared_prompt.attention_name(mixture.model) == NAME
    mixture.model.save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()
    assert mot.model.shared_prompt.attention_name(AutoModelForCausalLM.from_pretrained(tmp_path)) == "sdpa"


def test_without_the_name_of_the_attention_prompts_are_copied():
    """transformers tells the attention by a private name alone; the fallback is a cache of the model's own."""
    mixture = tiny(4)

    class Nameless:
        """A transformers without that name."""

        config = type("Config", (), {})()
        is_backend_compatible = staticmethod(lambda: True)

    assert prompt_cache(Nameless()) is None
    assert prompt_cache(mixture.model) is not None


@torch.no_grad()
@pytest.mark.parametrize("how", ["missing", "other arguments", "other numbers"])
def test_without_the_fused_attention_the_products_say_the_same(how, monkeypatch):
    mixture = tiny(4)
    asked = {"num_thoughts": 4, "max_new_tokens": 12, "temperature": 0.0}
    expected = mixture.think_batch(PROMPTS, SamplingParams(**asked))
    fused, calls = mot.model.shared_prompt.by_products, []

    def other(q, k, v, mask, scale):
        calls.append(len(q))
        if how == "missing":
            raise AttributeError("no such operator")
        if how == "other arguments":
            raise TypeError("takes no scale")
        out, lse = fused(q, k, v, mask, scale)
        return 1.01 * out, lse

    monkeypatch.setattr(mot.model.shared_prompt, "_fused", other)
    mot.model.shared_prompt.fused_available.cache_clear()
    try:
        again = mixture.think_batch(PROMPTS, SamplingParams(**asked))
    finally:
        mot.model.shared_prompt.fused_available.cache_clear()
    assert calls == [2], "probed once, with two rows"
    for ours, theirs in zip(flat(again), flat(expected), strict=True):
        assert (ours.index, ours.token_ids) == (theirs.index, theirs.token_ids)
        assert ours.mean_logprob == pytest.approx(theirs.mean_logprob, abs=1e-4)


def test_here_the_fused_attention_is_used():
    """Else the test of both ways would compare one way with itself."""
    mot.model.shared_prompt.fused_available.cache_clear()
    assert mot.model.shared_prompt.fused_available()
