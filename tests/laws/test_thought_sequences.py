"""Thoughts of several tokens (`--thought_length L`): the laws again, each beside its slow obvious version.

A word is a row of L digits below N; there are W = N ** L of them. Models are those of test_laws: tiny and random.
"""

import itertools
import json
import math
import signal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from survive import complete, start, state_digest
from test_laws import judged_by, rows, sharpen, step_of, tiny
from transformers import AutoModelForCausalLM

from mot.inference.settings import SamplingParams
from mot.inference.think import MixtureOfThoughts
from mot.model.score import lay_out, score, thought_logprobs
from mot.thoughts import choose_thoughts, diversity, draw_words, responsibilities, word_index
from mot.training import em as trainer_module
from mot.training.checkpoint import newest

N, L = 3, 3
W = N**L
PROMPTS = ["the ", "lazy dog. the quick brown", "o", "jumps over"]
WORDS = torch.tensor(list(itertools.product(range(N), repeat=L)))  # in the order of their indices


@pytest.fixture(scope="module")
def mixture():
    return tiny(N, L)


def ids_of(mixture, text: str) -> list[int]:
    return mixture.tokenizer(text, add_special_tokens=False)["input_ids"]


def tokens(mixture, word) -> list[int]:
    return [mixture.thoughts[k] for k in word]


def word_logp(mixture, prompt: str, word) -> float:
    """log p(word | x), one full forward pass per token."""
    ids, total = ids_of(mixture, prompt), 0.0
    for k in word:
        total += mixture.model(torch.tensor([ids])).logits[0, -1, mixture.thoughts].log_softmax(-1)[k].item()
        ids = [*ids, mixture.thoughts[k]]
    return total


# Words and numbers


def test_an_index_is_the_number_its_digits_write():
    assert [word_index(word, N) for word in WORDS.tolist()] == list(range(W))
    assert word_index([1023] * 8, 1024) == 2**80 - 1


def test_drawn_words_are_different_and_uniform_and_of_one_token_they_are_all_in_order():
    g = torch.Generator().manual_seed(0)
    counts = torch.zeros(W)
    for _ in range(3000):
        drawn = [word_index(word, N) for word in draw_words(N, N, L, g).tolist()]
        assert len(set(drawn)) == N
        counts[drawn] += 1
    expected = 3000 * N / W
    assert ((counts - expected) ** 2 / expected).sum() < 55  # chi-square of 26 degrees: above it once in a thousand
    assert sorted(map(word_index, draw_words(W, N, L, g).tolist(), [N] * W)) == list(range(W))
    assert draw_words(1024, 1024, 8, g).shape == (1024, 8)
    before = g.get_state()
    assert draw_words(5, 5, 1, g).tolist() == [[0], [1], [2], [3], [4]]
    assert torch.equal(g.get_state(), before)


# Law 1


def test_nothing_before_the_branch_point_depends_on_the_word_and_everything_behind_it_does(mixture):
    layout = lay_out(rows(mixture, ("the quick ", "brown fox")), torch.tensor([tokens(mixture, (2, 0, 1))]), 0)
    embedded = mixture.model.get_input_embeddings()(layout["input_ids"]).detach().requires_grad_()
    logits = mixture.model(inputs_embeds=embedded).logits
    P = len("the quick ")
    for t in range(logits.shape[1]):
        (gradient,) = torch.autograd.grad(logits[0, t].sum(), embedded, retain_graph=True)
        reached = gradient[0].abs().sum(-1) > 0
        assert reached[: t + 1].all()
        assert not reached[t + 1 :].any()
        assert reached[P : P + L].tolist() == [t >= P + i for i in range(L)]


def test_labels_leave_out_every_token_of_a_word(mixture):
    word, pad = tokens(mixture, (2, 0, 1)), mixture.tokenizer.pad_token_id
    layout = lay_out(rows(mixture, ("the", "dog"), ("o", "x")), torch.tensor([word, [-1] * L]), pad)
    x, y, (o,), (x1,) = (ids_of(mixture, t) for t in ("the", "dog", "o", "x"))
    assert layout["input_ids"].tolist() == [[*x, *word, *y], [pad, pad, o, x1, *[pad] * 5]]
    assert layout["labels"].tolist() == [[-100, *x[1:], *[-100] * L, *y], [-100, -100, -100, x1, *[-100] * 5]]
    assert layout["attention_mask"].tolist() == [[1] * 9, [0, 0, 1, 1, 0, 0, 0, 0, 0]]


# Law 2


def greedy_alone(mixture, prompt: str, word, length: int) -> list[int]:
    """No cache, no batch, no padding, one full forward per token."""
    ids = [*ids_of(mixture, prompt), *tokens(mixture, word)]
    begin = len(ids)
    for _ in range(length):
        logits = mixture.model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        logits[mixture.thoughts] = -torch.inf
        ids.append(int(logits.argmax()))
        if ids[-1] == mixture.tokenizer.eos_token_id:
            return ids[begin:-1]
    return ids[begin:]


@torch.no_grad()
@pytest.mark.parametrize("creativity", [0.0, 1.0, math.inf])
def test_one_prefill_and_k_words_equal_k_full_computations_padded_and_batched(mixture, creativity):
    how = {"num_thoughts": 10, "max_new_tokens": 8, "temperature": 0, "creativity": creativity}
    for prompt, thoughts in zip(PROMPTS, mixture.think_batch(PROMPTS, SamplingParams(**how)), strict=True):
        assert len({t.index for t in thoughts}) == 10
        assert [t.probability for t in thoughts] == sorted((t.probability for t in thoughts), reverse=True)
        for t, alone in zip(thoughts, mixture.think(prompt, **how), strict=True):
            assert (t.index, t.text, t.token_ids) == (alone.index, alone.text, alone.token_ids)
            assert math.log(t.probability) == pytest.approx(word_logp(mixture, prompt, WORDS[t.index]), abs=1e-4)
            assert list(t.token_ids) == greedy_alone(mixture, prompt, WORDS[t.index], 8)


def test_the_prompt_is_computed_once_whatever_k(mixture, monkeypatch):
    read, forward = [], type(mixture.model).forward
    monkeypatch.setattr(
        type(mixture.model),
        "forward",
        lambda self, input_ids, **more: read.append(tuple(input_ids.shape)) or forward(self, input_ids, **more),
    )
    mixture.think("the quick brown ", num_thoughts=W, max_new_tokens=2, temperature=0)
    assert read[:4] == [(1, 16), (N, 1), (N**2, 1), (W, 1)]


def test_what_a_word_says_does_not_depend_on_what_runs_beside_it(mixture):
    how = {"max_new_tokens": 8, "temperature": 1.0, "seed": 3}
    alone = {t.index: t.text for t in mixture.think("the ", num_thoughts=W, **how)}
    assert set(alone) == set(range(W))
    for k in (1, 5, N):
        chosen = mixture.think("the ", num_thoughts=k, **how)
        assert len(chosen) == k
        assert all(t.text == alone[t.index] for t in chosen)
    twice = mixture.think_batch(PROMPTS, SamplingParams(num_thoughts=2 * W + 5, **how))[0]
    assert sorted(sum(t.index == k for t in twice) for k in range(W)) == [2] * (W - 5) + [3] * 5
    assert {t.text for t in twice} > set(alone.values())


def test_without_a_number_there_are_as_many_texts_as_thought_tokens(mixture):
    assert (mixture.num_thoughts, mixture.different_thoughts) == (N, W)
    assert len(mixture.think("the ", max_new_tokens=1)) == N
    with pytest.raises(ValueError, match=f"--num_thoughts {W + 1}: the model has {W} .* temperature > 0"):
        mixture.think("the ", num_thoughts=W + 1, temperature=0)
    for creativity in (1e-310, 0.01):
        assert len({t.index for t in mixture.think("the ", 20, 1, creativity=creativity)}) == 20


@torch.no_grad()
@pytest.mark.parametrize("length", [0, 4])
def test_scoring_with_a_shared_prompt_equals_scoring_every_word_on_its_own(mixture, length):
    pairs = [("the quick ", "brown"), ("dog", " jumps over"), ("a lazy", "x")]
    words = WORDS[[20, 5, 7, 26]]
    fast, router, of_word = thought_logprobs(mixture.model, rows(mixture, *pairs), mixture.thoughts, length, words)
    for b, (prompt, completion) in enumerate(pairs):
        x, y = ids_of(mixture, prompt), ids_of(mixture, completion)[: length or None]
        for m, word in enumerate(words):
            logp = mixture.model(torch.tensor([[*x, *tokens(mixture, word), *y]])).logits[0].log_softmax(-1)
            slow = torch.stack([logp[len(x) + L - 1 + t, y[t]] for t in range(len(y))])
            assert torch.allclose(fast[b, m, : len(y)], slow, atol=1e-5)
            assert (fast[b, m, len(y) :] == 0).all()
            assert of_word[b, m].item() == pytest.approx(word_logp(mixture, prompt, word), abs=1e-4)
        assert torch.allclose(router[b].softmax(-1), mixture.route(prompt), atol=1e-5)


# Laws 3 and 4


@torch.no_grad()
def test_the_probabilities_of_all_words_sum_to_one_and_those_of_a_first_token_to_its_own(mixture):
    _, router, of_word = thought_logprobs(mixture.model, rows(mixture, ("the ", "x")), mixture.thoughts, sequences_ML=WORDS)
    assert torch.allclose(of_word.exp().view(N, -1).sum(1), router.softmax(-1)[0], atol=1e-6)
    thoughts = mixture.think("the ", num_thoughts=W, max_new_tokens=1, temperature=0)
    assert sum(t.probability for t in thoughts) == pytest.approx(1, abs=1e-6)
    for k, p in enumerate(mixture.route("the ")):
        assert sum(t.probability for t in thoughts if t.index // N ** (L - 1) == k) == pytest.approx(p.item(), abs=1e-6)


@torch.no_grad()
def test_the_estimate_of_the_mixture_nll_is_the_formula_and_right_in_expectation(mixture):
    batch, length = rows(mixture, ("the ", "dog")), 3
    logp, _, of_word = thought_logprobs(mixture.model, batch, mixture.thoughts, sequences_ML=WORDS)
    joint = (of_word + logp.sum(-1))[0].double().exp()  # p(word | x) p(y | x, word) of all W
    asked = [word_index(word, N) for word in draw_words(N, N, L, torch.Generator().manual_seed(0)).tolist()]
    scores = score(mixture.model, batch, mixture.thoughts, mixture.tokenizer.pad_token_id, L)
    nll = mixture.nll("the ", "dog")
    assert nll["mixture"] == pytest.approx(-math.log(W / N * joint[asked].sum()) / length, abs=1e-5)
    assert nll["oracle"] == pytest.approx(-logp.sum(-1)[0, asked].max().item() / length, abs=1e-5)
    assert (scores["mixture_nll"].item(), scores["base_nll"].item()) == (nll["mixture"], nll["base"])
    assert asked[scores["winner"]] == max(asked, key=lambda i: logp[0, i].sum())
    g = torch.Generator().manual_seed(1)
    estimates = torch.stack(
        [W / N * joint[[word_index(w, N) for w in draw_words(N, N, L, g).tolist()]].sum() for _ in range(4000)]
    )
    error = estimates.std() / len(estimates) ** 0.5
    assert abs(estimates.mean() - joint.sum()) < 4 * error
    assert -estimates.log().mean() > -joint.sum().log()  # an upper bound on average


# Choosing


@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 9), st.sampled_from([0.0, 0.3, 1.0, 7.0, math.inf]))
def test_of_one_token_words_are_chosen_as_thoughts_always_were(seed, n, k, creativity):
    logits = torch.randn(n, generator=torch.Generator().manual_seed(seed))
    gumbel = -torch.empty(n, dtype=torch.float64).exponential_(generator=torch.Generator().manual_seed(seed)).log()
    logp = logits.double().log_softmax(-1)
    keys = logp if creativity == 0 else logp / creativity + gumbel
    expected = keys.argsort(descending=True, stable=True)[:k]
    chosen = choose_thoughts(logits[None], min(k, n), creativity, torch.Generator().manual_seed(seed))
    assert torch.equal(chosen.thought_k, expected)
    assert (chosen.row_k == 0).all()


def climb(levels: list[torch.Tensor], k: int, creativity: float, g: torch.Generator) -> tuple[int, ...]:
    """Indices of k words, in the order chosen, of a tree whose logits at depth i are levels[i] [N ** i, N]."""
    beginning, chosen, n = torch.zeros(1, dtype=torch.long), None, levels[0].shape[1]
    for i, logits in enumerate(levels):
        chosen = choose_thoughts(logits[beginning], min(k, n ** (i + 1)), creativity, g, chosen)
        beginning = beginning[chosen.row_k] * n + chosen.thought_k
    return tuple(beginning.tolist())


def tree(n: int, depth: int, creativity: float = 1.0) -> tuple[list[torch.Tensor], torch.Tensor]:
    """(logits of every level, probability of every word)"""
    g = torch.Generator().manual_seed(2)
    levels = [1.5 * torch.randn(n**i, n, generator=g, dtype=torch.float64) for i in range(depth)]
    p = torch.ones(1, dtype=torch.float64)
    for logits in levels:
        p = (p[:, None] * (logits / creativity).softmax(-1)).flatten()
    return levels, p


@pytest.mark.parametrize(("n", "depth", "creativity"), [(2, 3, 1.0), (3, 2, 1.0), (2, 3, 0.5), (2, 3, math.inf)])
def test_a_stochastic_beam_is_gumbel_top_k_over_all_words(n, depth, creativity):
    """Which is to draw words one after the other, in proportion to p, without replacement."""
    levels, p = tree(n, depth, creativity)
    g, draws = torch.Generator().manual_seed(3), 4000
    first = [climb(levels, 3, creativity, g)[:2] for _ in range(draws)]
    statistic, cells = 0.0, 0
    for a, b in itertools.permutations(range(len(p)), 2):
        expected = draws * (p[a] * p[b] / (1 - p[a])).item()
        if expected >= 5:
            statistic, cells = statistic + (first.count((a, b)) - expected) ** 2 / expected, cells + 1
    assert cells > 20
    assert statistic < cells + 4 * (2 * cells) ** 0.5  # chi-square: mean and four standard deviations


def test_asked_for_all_words_it_gives_all_and_without_creativity_the_most_probable_first():
    levels, p = tree(3, 3)
    g = torch.Generator().manual_seed(4)
    assert set(climb(levels, 27, 1.0, g)) == set(range(27))
    best = p.argsort(descending=True).tolist()
    assert list(climb(levels, 27, 0.0, g)) == best
    assert list(climb(levels, 9, 0.0, g)) == best[:9]  # the beam holds every beginning: nothing can be missed


@torch.no_grad()
def test_thinking_without_creativity_takes_the_most_probable_words(mixture):
    for prompt in PROMPTS:
        logp = [word_logp(mixture, prompt, word) for word in WORDS]
        best = sorted(range(W), key=lambda i: -logp[i])[:9]
        assert [t.index for t in mixture.think(prompt, 9, 1, creativity=0)] == best


# Training


@pytest.fixture
def drawn(monkeypatch) -> list[torch.Tensor]:
    """The words that every E-step draws."""
    kept = []
    monkeypatch.setattr(trainer_module, "draw_words", lambda *how: kept.append(draw_words(*how)) or kept[-1])
    return kept


@pytest.mark.parametrize("source", ["text", "rows"])
def test_the_e_step_is_the_formula(tmp_path, source, drawn):
    more = {"thought_dropout": 0.3, "dropout": 0.5, "estep_tokens": 4, "thought_length": L, "diversity_weight": 0.1}
    trainer, (b,) = step_of(tmp_path, num_thoughts=N, batch_size=32, source=source, **more)
    (words,) = drawn
    among = torch.tensor(trainer.thoughts)[words]
    trainer.model.eval()
    scores, carrying = [], b["thought"][:, 0] >= 0
    with torch.no_grad():
        for i in carrying.nonzero()[:, 0].tolist():
            x, y = (b[name][i][b[f"{name}_mask"][i].bool()].tolist() for name in ("prompt", "completion"))
            y = y[:4] if source == "text" else y
            logp = [trainer.model(torch.tensor([[*x, *word.tolist(), *y]])).logits[0].log_softmax(-1) for word in among]
            scores.append([sum(p[len(x) + L - 1 + t, y[t]] for t in range(len(y))).item() / len(y) for p in logp])
    q = responsibilities(torch.tensor(scores), 0.3 / judged_by(trainer, source))  # the last step's
    winner = (b["thought"][carrying][:, None] == among).all(-1).int().argmax(1)
    assert torch.equal(among[winner], b["thought"][carrying])
    first = torch.stack([q[:, words[:, 0] == k].sum(1) for k in range(N)], 1)
    assert torch.allclose(b["q"][carrying, 0].float(), first, atol=1e-4)
    for i in range(1, L):
        assert torch.equal(b["q"][carrying, i].argmax(-1), words[winner, i])
        assert (b["q"][carrying, i].sum(-1) == 1).all()
    assert (b["q"][~carrying] == 0).all()
    assert (b["thought"][~carrying] == -1).all()
    compared = b["contrast"][:, 0, 0] >= 0
    assert compared.any()
    for own, others in zip(b["thought"][compared], b["contrast"][compared], strict=True):
        assert sorted([own.tolist(), *others.tolist()]) == sorted(among.tolist())


@pytest.mark.parametrize("loud", [False, True], ids=["below the cap", "above the cap"])
@pytest.mark.parametrize("source", ["text", "rows"])
def test_the_loss_is_the_formula(tmp_path, source, loud):
    weights = {"router_weight": 0.7, "diversity_weight": 0.3, "entropy_weight": 0.2, "thought_dropout": 0.3}
    trainer, (b,) = step_of(tmp_path, num_thoughts=N, thought_length=L, batch_size=32, source=source, **weights)
    if loud:
        sharpen(trainer)
    thoughts = trainer.thoughts
    lm, router, usage, said = [], [], [], []
    with torch.no_grad():
        for i in range(32):
            x, y = (b[name][i][b[f"{name}_mask"][i].bool()].tolist() for name in ("prompt", "completion"))
            word = b["thought"][i].tolist() if b["thought"][i, 0] >= 0 else []
            context = [*x, *word, *y]
            logits = trainer.model(torch.tensor([context])).logits[0]
            logp = logits.log_softmax(-1)
            lm += [-logp[t - 1, context[t]] for t in range(1, len(context)) if not len(x) <= t < len(x) + len(word)]
            if word:
                usage.append(logits[len(x) - 1, thoughts].softmax(-1))
                router.append(-(b["q"][i, 0] * usage[-1].log()).sum())
                for j in range(1, L):
                    p = logits[len(x) - 1 + j, thoughts].softmax(-1)
                    router[-1] = router[-1] - p[thoughts.index(word[j])].log()
            if b["contrast"][i, 0, 0] >= 0:
                among = [word, *b["contrast"][i].tolist()]
                each = [trainer.model(torch.tensor([[*x, *m, *y]])).logits[:, len(x) + L - 1 : -1] for m in among]
                said.append(diversity(torch.stack(each), torch.tensor([y]), torch.ones(1, len(y))).squeeze())
    lm, router, usage, said = (torch.stack(values) for values in (lm, router, usage, said))
    assert 0 < len(router) < 32
    cap = 0.5 * math.log(N)
    assert ((said > cap) == loud).any()
    expected = lm.mean() + 0.7 * router.mean() - 0.2 * torch.special.entr(usage.mean(0)).sum()
    expected -= 0.3 * said.clamp(max=cap).mean()
    assert trainer.compute_loss(trainer.model, dict(b)).item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("source", ["text", "rows"])
def test_one_batch_of_32_equals_accumulated_parts_also_a_ragged_one(tmp_path, source):
    gradients, losses = {}, {}
    for size in (32, 8, 12):
        trainer, batches = step_of(
            tmp_path / str(size), num_thoughts=N, thought_length=L, batch_size=size, rows=32, source=source, diversity_weight=0.1
        )  # fmt: skip
        losses[size] = sum(trainer.training_step(trainer.model, dict(b)).item() for b in batches)
        gradients[size] = torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
    for size in (8, 12):
        assert losses[size] == pytest.approx(losses[32], rel=1e-6)
        assert (gradients[size] - gradients[32]).norm() / gradients[32].norm() < 1e-6


def test_a_steps_words_come_from_its_seed_and_number_alone(tmp_path, drawn):
    def words(name: str, **more) -> list:
        step_of(tmp_path / name, **{"num_thoughts": N, "thought_length": L, "batch_size": 24} | more)
        return drawn[-1].tolist()

    once = words("once", step=3)
    assert words("again", step=3, global_seed=7) == once
    assert words("parts", step=3, batch_size=8, rows=24) == once
    assert words("step", step=4) != once
    assert words("seed", step=3, seed=43) != once


# A run


@pytest.fixture(scope="module")
def flags(text_file, tmp_path_factory) -> list:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SURVIVE_LOGS", str(tmp_path_factory.mktemp("logs")))
        size = "--vocab_size 100 --hidden_size 32 --num_layers 1 --num_thoughts 4 --thought_length 3 --seq_length 32"
        often = "--batch_size 8 --max_steps 12 --dropout 0.1 --eval_rows 8 --eval_every 4 --save_every 4 --save_total_limit 99"
        yield [*size.split(), *often.split(), "--train_file", text_file]


@pytest.fixture(scope="module")
def whole(flags, tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole") / "run"
    complete([*flags, "--output_dir", directory])
    return directory


def test_a_run_cut_and_resumed_ends_in_the_same_state(flags, whole, tmp_path):
    argv = [*flags, "--output_dir", tmp_path / "run", "--resume_from", "auto"]
    for step in (2, 9):
        run = start(argv, pause="training", at=step)
        run.wait_for_phase()
        run.kill(signal.SIGTERM)
        assert run.exitcode() == 143
        assert newest(str(tmp_path / "run"))[1]["step"] == step + 1
    complete(argv)
    assert state_digest(tmp_path / "run" / "checkpoint-12") == state_digest(whole / "checkpoint-12")


def test_a_run_leaves_an_ordinary_checkpoint_and_sensible_numbers(whole):
    mixture = MixtureOfThoughts.from_pretrained(str(whole))
    assert (mixture.num_thoughts, mixture.thought_length, mixture.different_thoughts) == (4, 3, 64)
    plain = AutoModelForCausalLM.from_pretrained(whole)
    assert type(plain).__name__ == "LlamaForCausalLM"
    assert plain.config.mot["thought_length"] == 3
    with torch.no_grad():
        for t in mixture.think("the king", 20, 6, temperature=0):
            word = [t.index // 16, t.index // 4 % 4, t.index % 4]
            ids = torch.tensor([[*ids_of(mixture, "the king"), *tokens(mixture, word)]])
            said = plain.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :].tolist()
            end = mixture.tokenizer.eos_token_id
            assert list(t.token_ids) == (said[: said.index(end)] if end in said else said)
    logged = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    for m in logged:
        for name in ("effective_thoughts", "eval_effective_thoughts"):
            assert 1 - 1e-9 <= m.get(name, 1) <= 4 + 1e-9
        if "eval_mixture_nll" in m:
            assert m["eval_oracle_nll"] - 1e-6 <= m["eval_mixture_nll"] + math.log(64) / 16
    samples = [json.loads(line) for line in (whole / "samples.jsonl").read_text().splitlines()]
    assert all(0 <= t["index"] < 64 for s in samples for t in s["thoughts"])


def test_a_checkpoint_that_does_not_name_its_thought_length_has_one():
    """As those written before there was one, and those of today with one."""
    assert "thought_length" not in tiny(4).model.config.mot
    assert tiny(4, 2).model.config.mot["thought_length"] == 2
    old = tiny(4)
    assert (MixtureOfThoughts(old.model, old.tokenizer, old.thoughts).thought_length, old.different_thoughts) == (1, 4)
