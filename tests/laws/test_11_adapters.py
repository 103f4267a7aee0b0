"""Law 11. Step 0 of an adaptation has the base's logits; trained = saved = reloaded = merged; only adapters learn.

For seven architectures, as tiny random models: what holds for random weights holds for all. Law 2 is checked again
here, because every architecture brings a cache of its own. Laws 7 and 10 of adapters are in their files.
"""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from adapted import COMPLETION, PROMPT, N, metrics, settings
from bases import ARCHITECTURES, TEXT, WINDOW, make
from mixtures import completion_logp, greedy_alone
from serving_client import in_thread
from transformers import AutoModelForCausalLM, AutoTokenizer

from mot.data.datasets import collate_rows
from mot.data.load import load_data
from mot.inference.settings import SamplingParams
from mot.inference.think import MixtureOfThoughts
from mot.model import adapters
from mot.model.score import score, thought_logprobs
from mot.model.tokenizer import encode

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_step_0_says_what_the_base_says(architecture, tmp_path):
    base = make(architecture, tmp_path / "base")
    words = adapters.base_tokenizer(settings(base))
    model = adapters.adapt(settings(base), words).eval()
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    ids = torch.tensor([AutoTokenizer.from_pretrained(base)(TEXT)["input_ids"]])
    expected = plain(ids).logits
    ours = model(ids).logits[..., : expected.shape[-1]]
    # A product with N more rows may be summed in another order: one bit, no more.
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_saved_reloaded_and_merged_are_the_model_that_was_trained(architecture, made):
    from peft import AutoPeftModelForCausalLM

    base, run, merged = made(architecture)
    ours, whole = (MixtureOfThoughts.from_pretrained(str(path)) for path in (run, merged))
    ids = torch.tensor(
        [[*encode(ours.tokenizer, [PROMPT], "")[0], ours.thoughts[1], *encode(ours.tokenizer, [COMPLETION], "")[0]]]
    )
    logits = ours.model(ids).logits
    standard = AutoPeftModelForCausalLM.from_pretrained(run).eval()
    for other in (whole.model, standard, AutoModelForCausalLM.from_pretrained(merged)):
        torch.testing.assert_close(other(ids).logits, logits, rtol=0, atol=1e-5)
    original = AutoModelForCausalLM.from_pretrained(base)
    assert type(whole.model) is type(original)
    assert whole.model.config.mot == {"num_thoughts": N, "thought_token_ids": ours.thoughts}
    assert whole.model.generation_config.suppress_tokens == ours.thoughts
    assert not torch.allclose(original(ids[:, :5]).logits, logits[:, :5, : original.config.vocab_size], atol=1e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_what_was_evaluated_in_training_is_what_is_loaded(architecture, made, adapter_rows):
    base, run, _ = made(architecture)
    mixture = MixtureOfThoughts.from_pretrained(str(run))
    data = load_data(settings(base, train_file=str(adapter_rows)), tokenizer=mixture.tokenizer)
    held_out = data.collate([data.eval[i] for i in range(len(data.eval))])
    scores = score(mixture.model, held_out, mixture.thoughts, mixture.tokenizer.pad_token_id)
    last = [m for m in metrics(run) if "eval_base_nll" in m][-1]
    for name in ("base_nll", "mixture_nll", "oracle_nll"):
        mean = (scores[name] * scores["tokens"]).sum() / scores["tokens"].sum()
        assert mean.item() == pytest.approx(last[f"eval_{name}"], abs=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_thoughts_share_a_prompt_longer_than_the_window(architecture, made):
    """Law 2 for every kind of cache: one prefill and N branches = N full computations, padded, in scores and texts."""
    mixture = MixtureOfThoughts.from_pretrained(str(made(architecture)[1]))
    pairs = [(PROMPT, COMPLETION), (PROMPT + " and n = 8", " is what it was"), ("the", COMPLETION)]
    batch = collate_rows(
        [[encode(mixture.tokenizer, [text], "")[0] for text in pair] for pair in pairs], mixture.tokenizer.eos_token_id
    )
    assert batch["prompt"].shape[1] > WINDOW
    fast, router_BN, _ = thought_logprobs(mixture.model, batch, mixture.thoughts)
    for b, pair in enumerate(pairs):
        x, y = (encode(mixture.tokenizer, [text], "")[0] for text in pair)
        for k, thought in enumerate(mixture.thoughts):
            slow = completion_logp(mixture, x, [thought], y)
            torch.testing.assert_close(fast[b, k, : len(y)], slow, rtol=0, atol=1e-4)
        logits = mixture.model(torch.tensor([x]), use_cache=False).logits[0, -1, mixture.thoughts]
        torch.testing.assert_close(router_BN[b], logits, rtol=0, atol=1e-4)
    together = mixture.think_batch([prompt for prompt, _ in pairs], SamplingParams(max_new_tokens=10, temperature=0))
    for (prompt, _), thoughts in zip(pairs, together, strict=True):
        assert sorted(t.index for t in thoughts) == list(range(N))
        for t in thoughts:
            assert list(t.token_ids) == greedy_alone(mixture, prompt, [t.index], 10)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_served_texts_are_those_of_think(architecture, made):
    """One request with a seed, and several that share forward passes if the architecture's cache allows it."""
    mixture = MixtureOfThoughts.from_pretrained(str(made(architecture)[1]))
    with in_thread(mixture) as server:
        how = {"temperature": 0.9, "seed": 3}
        expected = mixture.think(PROMPT, 2 * N, max_new_tokens=16, **how)
        answer = server.complete(prompt=PROMPT, n=2 * N, max_tokens=16, **how)
        assert [choice["text"] for choice in answer["choices"]] == [t.text for t in expected]
        assert [choice["thought"]["index"] for choice in answer["choices"]] == [t.index for t in expected]
        prompts = [PROMPT, PROMPT + " and n = 8", "the", "the quick"] * 2
        with ThreadPoolExecutor(len(prompts)) as pool:
            texts = list(pool.map(lambda p: server.texts(prompt=p, n=N, max_tokens=16, temperature=0), prompts))
    assert texts == [[t.text for t in mixture.think(p, N, max_new_tokens=16, temperature=0)] for p in prompts]


@pytest.mark.parametrize("architecture", ["mistral", "gemma3"])
@torch.no_grad()
def test_a_base_with_windows_and_no_thoughts_thinks_too(architecture, tmp_path):
    plain = MixtureOfThoughts.from_pretrained(str(make(architecture, tmp_path / "base")))
    (t,) = plain.think(PROMPT, max_new_tokens=6, temperature=0)
    assert list(t.token_ids) == greedy_alone(plain, PROMPT, [], 6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_adapters_and_the_rows_of_the_thoughts_are_all_that_learns(architecture, made):
    base, run, _ = made(architecture)
    original = AutoModelForCausalLM.from_pretrained(base)
    tied = original.get_input_embeddings().weight is original.get_output_embeddings().weight
    words = adapters.base_tokenizer(settings(base))
    model = adapters.adapt(settings(base), words)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    rows_ = {name for name in learning if "trainable_tokens_delta" in name}
    assert len(rows_) == (1 if tied else 2)
    assert all("lora_" in name for name in learning - rows_)
    attention_and_mlp = {name.split(".lora_")[0] for name in learning - rows_}
    inside = [
        n for n, m in original.named_modules() if type(m).__name__ in ("Linear", "Conv1D") and re.search(r"\.\d+\.", n)
    ]
    assert len(attention_and_mlp) == len(inside)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if name in rows_}
    trained, _ = adapters.open_adapter(str(run))
    for name, p in trained.named_parameters():
        if name in before:
            assert (p - before[name]).abs().amax(1).min() > 1e-3, name  # every thought's row has moved
    # The base itself is unchanged: its weights are those on the disk.
    plain = dict(original.named_parameters())
    for name, p in trained.get_base_model().named_parameters():
        name = re.sub(r"\.(base_layer|token_adapter)\b", "", name)
        if name in plain:
            assert torch.equal(p[: len(plain[name])], plain[name]), name
