"""Law 4. oracle NLL <= mixture NLL <= every thought's NLL + log N; N = 1 is a plain LM in loss, gradient, samples."""

import math

import pytest
import torch
from drawing import draw, seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from mixtures import DIGITS, LENGTH, SEQUENCES, TEXT, N, W, rows, tiny
from torch.nn import functional as F
from trainers import step_of

from mot.model.score import score, thought_logprobs
from mot.thoughts import draw_sequences, mixture_nll, oracle_nll, sequence_index

texts = st.text(alphabet=sorted(set(TEXT)), min_size=1, max_size=12)


@given(seeds, st.integers(2, 8))
def test_mixture_lies_between_oracle_and_every_thought_plus_its_price(seed, N):
    logp, router, lengths = draw(seed, 9, N, scale=4.0) - 20, draw(seed + 1, 9, N).log_softmax(-1), torch.arange(1, 10)
    mixture, oracle = mixture_nll(router, logp, lengths), oracle_nll(logp, lengths)
    assert (mixture >= oracle - 1e-9).all()
    assert (mixture[:, None] * lengths[:, None] <= -logp - router + 1e-9).all()
    uniform = mixture_nll(torch.full((9, N), -math.log(N), dtype=logp.dtype), logp, lengths)
    assert (uniform[:, None] * lengths[:, None] <= -logp + math.log(N) + 1e-9).all()


@settings(max_examples=10, deadline=None)
@given(texts, texts)
def test_mixture_nll_lies_between_oracle_and_the_best_thought_plus_log_n(mixture, prompt, completion):
    nll = mixture.nll(prompt, completion)
    assert nll["oracle"] - 1e-5 <= nll["mixture"]
    route = mixture.route(prompt)
    with torch.no_grad():
        logp = thought_logprobs(mixture.model, rows(mixture, (prompt, completion)), mixture.thoughts)[0].sum(-1)[0]
    assert nll["mixture"] == pytest.approx(-((route.log() + logp).logsumexp(0) / len(completion)).item(), abs=1e-4)
    uniform = -(logp.logsumexp(0) - math.log(N)) / len(completion)
    assert (uniform <= (-logp + math.log(N)) / len(completion) + 1e-5).all()


def test_one_thought_is_a_plain_language_model_in_loss_gradient_and_samples(tmp_path):
    trainer, batches = step_of(tmp_path, num_thoughts=1, batch_size=4)
    (b,) = batches
    windows = torch.cat([b["prompt"], b["completion"]], 1)
    loss = trainer.compute_loss(trainer.model, dict(b))
    loss.backward()
    ours = [p.grad.clone() for p in trainer.model.parameters()]
    trainer.model.zero_grad()
    plain = trainer.model(windows, labels=windows).loss
    plain.backward()
    assert loss.item() == pytest.approx(plain.item(), abs=1e-6)
    for a, p in zip(ours, trainer.model.parameters(), strict=True):
        assert torch.allclose(a, p.grad, atol=1e-7)

    plain_lm = tiny(1)
    assert plain_lm.thoughts == []
    ids = plain_lm.tokenizer("the ", add_special_tokens=False, return_tensors="pt")["input_ids"]
    expected = plain_lm.model.generate(ids, max_new_tokens=10, do_sample=False)[0, ids.shape[1] :].tolist()
    (thought,) = plain_lm.think("the ", max_new_tokens=10, temperature=0)
    end = plain_lm.tokenizer.eos_token_id
    assert list(thought.token_ids) == (expected[: expected.index(end)] if end in expected else expected)
    assert (thought.index, thought.probability) == (0, 1.0)
    samples = {t.text for t in plain_lm.think("the ", num_thoughts=8, max_new_tokens=10, temperature=1.0)}
    assert len(samples) > 1
    nll = plain_lm.nll("the ", "dog")
    assert nll["base"] == nll["mixture"] == nll["oracle"]
    y = plain_lm.tokenizer("dog", add_special_tokens=False, return_tensors="pt")["input_ids"]
    logits = plain_lm.model(torch.cat([ids, y], 1)).logits[0, ids.shape[1] - 1 : -1]
    assert nll["base"] == pytest.approx(F.cross_entropy(logits, y[0]).item(), abs=1e-5)


@torch.no_grad()
def test_the_estimate_of_the_mixture_nll_is_the_formula_and_right_in_expectation(sequence_mixture):
    mixture, length = sequence_mixture, 3
    batch = rows(mixture, ("the ", "dog"))
    logp, _, sequence_logp = thought_logprobs(mixture.model, batch, mixture.thoughts, sequences_ML=SEQUENCES)
    joint = (sequence_logp + logp.sum(-1))[0].double().exp()  # p(k | x) p(y | x, k) of all W sequences k

    def drawn(g: torch.Generator) -> list[int]:
        return [sequence_index(s, DIGITS) for s in draw_sequences(DIGITS, DIGITS, LENGTH, g).tolist()]

    asked = drawn(torch.Generator().manual_seed(0))
    scores = score(mixture.model, batch, mixture.thoughts, mixture.tokenizer.pad_token_id, LENGTH)
    nll = mixture.nll("the ", "dog")
    assert nll["mixture"] == pytest.approx(-math.log(W / DIGITS * joint[asked].sum()) / length, abs=1e-5)
    assert nll["oracle"] == pytest.approx(-logp.sum(-1)[0, asked].max().item() / length, abs=1e-5)
    assert (scores["mixture_nll"].item(), scores["base_nll"].item()) == (nll["mixture"], nll["base"])
    assert asked[scores["winner"]] == max(asked, key=lambda i: logp[0, i].sum())
    g = torch.Generator().manual_seed(1)
    estimates = torch.stack([W / DIGITS * joint[drawn(g)].sum() for _ in range(4000)])
    error = estimates.std() / len(estimates) ** 0.5
    assert abs(estimates.mean() - joint.sum()) < 4 * error
    assert -estimates.log().mean() > -joint.sum().log()  # an upper bound on average
