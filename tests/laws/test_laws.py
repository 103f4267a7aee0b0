"""The laws of docs/architecture.md that need a model: causality, one prefill = many, N = 1 = plain LM, accumulation.

Models here are tiny and random: a law holds for every weight, and random weights hide nothing behind training.
"""

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from mot.data.load import branch, by_length, collate_rows, load_data
from mot.inference.settings import SamplingParams
from mot.inference.think import MixtureOfThoughts
from mot.model.build import build_model
from mot.model.score import base_logprobs, lay_out, score, thought_logprobs
from mot.model.tokenizer import build_tokenizer
from mot.runtime.signals import Interruption
from mot.thoughts import diversity, responsibilities
from mot.training.em import MixtureTrainer
from mot.training.settings import TrainSettings

TEXT = "the quick brown fox jumps over the lazy dog. "
N = 4


@pytest.fixture(scope="module")
def mixture():
    return tiny(N)


def tiny(num_thoughts: int, thought_length: int = 1) -> MixtureOfThoughts:
    shape = TrainSettings(
        task="forks", hidden_size=32, num_layers=2, num_heads=2, num_thoughts=num_thoughts, thought_length=thought_length, seq_length=64
    )  # fmt: skip
    tokenizer = build_tokenizer([TEXT], 100, num_thoughts)
    model = build_model(shape, tokenizer).eval()
    with torch.no_grad():  # far from initialisation, where everything is nearly uniform and argmax a matter of luck
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    return MixtureOfThoughts(model, tokenizer, model.config.mot["thought_token_ids"], thought_length)


def rows(mixture, *texts: tuple[str, str]) -> dict[str, torch.Tensor]:
    ids = [[mixture.tokenizer(t, add_special_tokens=False)["input_ids"] for t in pair] for pair in texts]
    return collate_rows(ids, pad=mixture.tokenizer.pad_token_id)


# Law 1


def test_no_logit_depends_on_a_later_token_and_nothing_before_the_branch_point_on_the_thought(mixture):
    layout = lay_out(rows(mixture, ("the quick ", "brown fox")), torch.tensor([[mixture.thoughts[2]]]), 0)
    embedded = mixture.model.get_input_embeddings()(layout["input_ids"]).detach().requires_grad_()
    logits = mixture.model(inputs_embeds=embedded).logits
    P = len("the quick ")
    for t in range(logits.shape[1]):
        (gradient,) = torch.autograd.grad(logits[0, t].sum(), embedded, retain_graph=True)
        reached = gradient[0].abs().sum(-1) > 0
        assert reached[: t + 1].all(), f"position {t} does not see all before it"
        assert not reached[t + 1 :].any(), f"position {t} sees the future"
        assert bool(reached[P]) == (t >= P), "the thought is seen before the branch point, or not after it"


# Law 2


def greedy_alone(mixture, prompt: str, k: int, length: int) -> list[int]:
    """The slow obvious version: no cache, no batch, no padding, one full forward per token."""
    ids = [*mixture.tokenizer(prompt, add_special_tokens=False)["input_ids"], mixture.thoughts[k]]
    start = len(ids)
    for _ in range(length):
        logits = mixture.model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        logits[mixture.thoughts] = -torch.inf
        ids.append(int(logits.argmax()))
        if ids[-1] == mixture.tokenizer.eos_token_id:
            return ids[start:-1]
    return ids[start:]


PROMPTS = ["the ", "lazy dog. the quick brown", "o", "jumps over"]


@torch.no_grad()
def test_one_prefill_and_k_branches_equal_k_full_computations_padded_and_batched(mixture):
    together = mixture.think_batch(PROMPTS, SamplingParams(max_new_tokens=12, temperature=0))
    for prompt, thoughts in zip(PROMPTS, together, strict=True):
        assert sorted(t.index for t in thoughts) == list(range(N))
        for t, alone in zip(thoughts, mixture.think(prompt, max_new_tokens=12, temperature=0), strict=True):
            assert (t.index, t.text, t.token_ids) == (alone.index, alone.text, alone.token_ids)
            assert t.probability == pytest.approx(alone.probability, abs=1e-5)
            assert t.mean_logprob == pytest.approx(alone.mean_logprob, abs=1e-4)
            assert list(t.token_ids) == greedy_alone(mixture, prompt, t.index, 12)


@torch.no_grad()
def test_what_a_thought_says_does_not_depend_on_what_runs_beside_it(mixture):
    alone = {t.index: t.text for t in mixture.think("the ", max_new_tokens=12, temperature=1.0, seed=3)}
    for t in mixture.think("the ", num_thoughts=2, max_new_tokens=12, temperature=1.0, seed=3):
        assert t.text == alone[t.index]
    for t in mixture.think_batch(PROMPTS, SamplingParams(num_thoughts=9, max_new_tokens=12, temperature=1.0, seed=3))[
        0
    ][:1]:
        assert t.text == alone[t.index]
    torch.manual_seed(5)
    assert {t.index: t.text for t in mixture.think("the ", max_new_tokens=12, temperature=1.0, seed=3)} == alone
    assert {t.index: t.text for t in mixture.think("the ", max_new_tokens=12, temperature=1.0, seed=4)} != alone


@torch.no_grad()
def test_drawing_by_gumbel_noise_is_sampling_from_the_softmax(mixture):
    ids = torch.tensor([[*mixture.tokenizer("the ", add_special_tokens=False)["input_ids"], mixture.thoughts[0]]])
    logits = mixture.model(ids).logits[0, -1].index_fill(0, torch.tensor(mixture.thoughts), -torch.inf)
    drawn = torch.zeros(len(logits))
    for seed in range(400):
        for t in mixture.think("the ", num_thoughts=N * 4, max_new_tokens=1, temperature=2.0, seed=seed):
            if t.index == 0:
                drawn[t.token_ids[0] if t.token_ids else mixture.tokenizer.eos_token_id] += 1
    assert torch.allclose(drawn / drawn.sum(), (logits / 2).softmax(-1), atol=0.05)


@torch.no_grad()
def test_scoring_with_a_shared_prompt_equals_scoring_every_thought_on_its_own(mixture):
    batch = rows(mixture, ("the quick ", "brown"), ("dog", " jumps over"), ("a lazy", "x"))
    fast, router, word = thought_logprobs(mixture.model, batch, mixture.thoughts)
    assert torch.equal(word, router.log_softmax(-1))
    for b, (prompt, completion) in enumerate([("the quick ", "brown"), ("dog", " jumps over"), ("a lazy", "x")]):
        for k, thought in enumerate(mixture.thoughts):
            x, y = (mixture.tokenizer(t, add_special_tokens=False)["input_ids"] for t in (prompt, completion))
            logp = mixture.model(torch.tensor([[*x, thought, *y]])).logits[0].log_softmax(-1)
            slow = torch.stack([logp[len(x) + t, y[t]] for t in range(len(y))])
            assert torch.allclose(fast[b, k, : len(y)], slow, atol=1e-5)
            assert (fast[b, k, len(y) :] == 0).all()
        assert torch.allclose(router[b], mixture.model(torch.tensor([x])).logits[0, -1, mixture.thoughts], atol=1e-5)
        logp = mixture.model(torch.tensor([x + y])).logits[0].log_softmax(-1)
        slow = sum(logp[len(x) - 1 + t, y[t]] for t in range(len(y)))
        assert base_logprobs(mixture.model, batch, 0)[b].item() == pytest.approx(slow.item(), abs=1e-4)


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


# Law 3


def test_the_router_is_the_restricted_softmax_of_plain_transformers(mixture):
    for prompt in PROMPTS:
        ids = mixture.tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        expected = mixture.model(ids).logits[0, -1, mixture.thoughts].softmax(-1)
        assert torch.allclose(mixture.route(prompt), expected, atol=1e-6)
        assert mixture.route(prompt).sum().item() == pytest.approx(1, abs=1e-6)


def test_thought_tokens_are_never_generated(mixture):
    mixture.model.lm_head.weight.data[mixture.thoughts] += 5  # now they are what the model would like best
    try:
        for t in mixture.think("the ", num_thoughts=16, max_new_tokens=20, temperature=1.5):
            assert not set(t.token_ids) & set(mixture.thoughts)
    finally:
        mixture.model.lm_head.weight.data[mixture.thoughts] -= 5


# Law 4


@settings(max_examples=10, deadline=None)
@given(
    st.text(alphabet=sorted(set(TEXT)), min_size=1, max_size=12),
    st.text(alphabet=sorted(set(TEXT)), min_size=1, max_size=12),
)
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


# Law 6, the half that needs a model


def test_diversity_gradient_reaches_the_weights(tmp_path):
    losses = {}
    for weight in (0.0, 0.5):
        trainer, (b,) = step_of(tmp_path / str(weight), num_thoughts=N, batch_size=32, diversity_weight=weight)
        trainer.compute_loss(trainer.model, dict(b)).backward()
        losses[weight] = [p.grad.clone() for p in trainer.model.parameters()]
    changed = [not torch.allclose(a, b, atol=1e-9) for a, b in zip(losses[0.0], losses[0.5], strict=True)]
    assert sum(changed) > len(changed) / 2
    assert (b["contrast"] >= 0).any()


def test_a_step_towards_more_diversity_raises_it(tmp_path):
    """The same batch, the same steps of plain gradient descent: a higher weight says more in the end."""
    said = []
    for weight in (0.0, 0.1, 0.5):
        trainer, (b,) = step_of(tmp_path / str(weight), num_thoughts=N, batch_size=32, diversity_weight=weight)
        compared = b["thought"][:, 0] >= 0
        ids = torch.tensor(trainer.thoughts)
        others = torch.stack([ids[ids != k] for k in b["thought"][compared]])[..., None]
        b["contrast"] = torch.full_like(b["contrast"], -1).masked_scatter(compared[:, None, None], others)
        b["totals"]["contrasted"] = int(compared.sum())
        for _ in range(5):
            trainer.model.zero_grad()
            trainer.compute_loss(trainer.model, dict(b)).backward()
            with torch.no_grad():
                for p in trainer.model.parameters():
                    p -= 0.1 * p.grad
        trainer.window.reset()
        trainer.compute_loss(trainer.model, dict(b))
        said.append(trainer.window.losses["diversity"].item())
    assert said[0] < said[1] < said[2]


# The formula that laws 4 to 6 are about, one row and one thought at a time


def row(b: dict, i: int) -> tuple[list[int], int, list[int]]:
    """(x, thought or -1, y) of row i, without pads."""
    x, y = (b[name][i][b[f"{name}_mask"][i].bool()].tolist() for name in ("prompt", "completion"))
    return x, int(b["thought"][i]), y


def judged_by(trainer, source: str) -> float:
    """Tokens that a continuation is scored by, on average: 4 (--estep_tokens) of a window, all of a completion."""
    rows = trainer.data.train
    return 4 if source == "text" else statistics.fmean(len(rows[i][1]) for i in range(len(rows)))


def sharpen(trainer) -> None:
    """Thoughts that differ more about y. The router stays what the E-step saw: the rows of the thought tokens are left."""
    words = [t for t in range(trainer.model.config.vocab_size) if t not in trainer.thoughts]
    trainer.model.lm_head.weight.data[words] *= 12


@pytest.mark.parametrize("loud", [False, True], ids=["below the cap", "above the cap"])
@pytest.mark.parametrize("source", ["text", "rows"])
def test_the_loss_is_the_formula(tmp_path, source, loud):
    weights = {"router_weight": 0.7, "diversity_weight": 0.3, "entropy_weight": 0.2, "thought_dropout": 0.3}
    trainer, (b,) = step_of(tmp_path, num_thoughts=N, batch_size=32, source=source, **weights)
    thoughts = trainer.thoughts
    if loud:
        sharpen(trainer)
    lm, router, usage, said = [], [], [], []
    with torch.no_grad():
        for i in range(32):
            x, k, y = row(b, i)
            context = [*x, k, *y] if k >= 0 else x + y
            logits = trainer.model(torch.tensor([context])).logits[0]
            logp = logits.log_softmax(-1)
            lm += [-logp[t - 1, context[t]] for t in range(1, len(context)) if k < 0 or t != len(x)]
            if k >= 0:
                usage.append(logits[len(x) - 1, thoughts].softmax(-1))
                router.append(-(b["q"][i, 0] * usage[-1].log()).sum())
            if b["contrast"][i, 0] >= 0:
                among = [k, *b["contrast"][i, :, 0].tolist()]
                assert sorted(among) == sorted(thoughts)  # the winner and the three others
                each = [trainer.model(torch.tensor([[*x, m, *y]])).logits[:, len(x) : -1] for m in among]
                said.append(diversity(torch.stack(each), torch.tensor([y]), torch.ones(1, len(y))).squeeze())
    lm, router, usage, said = (torch.stack(values) for values in (lm, router, usage, said))
    assert 0 < len(router) < 32
    cap = 0.5 * math.log(N)
    assert ((said > cap) == loud).any()
    expected = lm.mean() + 0.7 * router.mean() - 0.2 * torch.special.entr(usage.mean(0)).sum()
    expected -= 0.3 * said.clamp(max=cap).mean()
    assert trainer.compute_loss(trainer.model, dict(b)).item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize(("step", "tau"), [(0, 6.0), (3, 6 * 0.05**0.5), (9, 0.3)])
@pytest.mark.parametrize("source", ["text", "rows"])
def test_the_e_step_is_the_formula(tmp_path, source, step, tau):
    more = {"thought_dropout": 0.3, "dropout": 0.5, "estep_tokens": 4, "diversity_weight": 0.1}
    trainer, (b,) = step_of(tmp_path, num_thoughts=N, batch_size=32, source=source, step=step, **more)
    assert trainer.model.training, "else the E-step need not turn dropout off"
    trainer.model.eval()
    scores, carrying = [], b["thought"][:, 0] >= 0
    with torch.no_grad():
        for i in carrying.nonzero()[:, 0].tolist():
            x, _, y = row(b, i)
            y = y[:4] if source == "text" else y  # a window has no end of its own, a completion is judged whole
            logp = [trainer.model(torch.tensor([[*x, k, *y]])).logits[0].log_softmax(-1) for k in trainer.thoughts]
            scores.append([sum(p[len(x) + t, y[t]] for t in range(len(y))).item() / len(y) for p in logp])
    expected = responsibilities(torch.tensor(scores), tau / judged_by(trainer, source))
    assert torch.allclose(b["q"][carrying, 0].float(), expected, atol=1e-4)
    assert 0 < carrying.sum() < 32
    assert (b["q"][~carrying] == 0).all()
    assert set(b["thought"][carrying, 0].tolist()) <= set(trainer.thoughts)
    assert bool((b["contrast"] >= 0).any()) == (step == 9)  # diversity counts only after the anneal


def test_winners_are_drawn_from_the_responsibilities(tmp_path):
    trainer, (b,) = step_of(tmp_path, num_thoughts=N, batch_size=32, thought_dropout=0.0)
    drawn = torch.zeros(32, N)
    for seed in range(60):
        again = {name: b[name] for name in ("prompt", "prompt_mask", "completion", "completion_mask")}
        trainer.assign([again], torch.Generator().manual_seed(seed))
        drawn += again["thought"] == torch.tensor(trainer.thoughts)
    q = again["q"][:, 0].double()  # the same every time
    likely, chance = (q * drawn / 60).sum(1).mean(), (q * q).sum(1).mean()
    assert chance > 1 / N + 0.05, "too even to tell a draw from a uniform one"
    assert q.max(1).values.mean() > chance + 0.05, "too uneven to tell a draw from the argmax"
    assert likely.item() == pytest.approx(chance.item(), abs=0.03)


def test_a_steps_randomness_comes_from_its_seed_and_number_alone(tmp_path):
    def drawn(name: str, **more) -> tuple:
        _, (b,) = step_of(tmp_path / name, num_thoughts=N, batch_size=32, thought_dropout=0.5, **more)
        return b["prompt"].shape, (b["thought"] < 0).tolist(), b["thought"].tolist()

    once = drawn("once", step=3)
    for elsewhere in (1, 2, 3):
        assert drawn("again", step=3, global_seed=elsewhere) == once
    assert drawn("step", step=4)[:2] != once[:2]
    assert drawn("seed", step=3, seed=43)[:2] != once[:2]


# Law 8


@pytest.mark.parametrize("source", ["text", "rows"])
def test_one_batch_of_32_equals_accumulated_parts_also_a_ragged_one(tmp_path, source):
    gradients, losses = {}, {}
    for size in (32, 16, 8, 12):  # 12: two of 12 and a ragged 8
        trainer, batches = step_of(
            tmp_path / str(size), num_thoughts=N, batch_size=size, rows=32, source=source, diversity_weight=0.1
        )
        assert sum(len(b["prompt"]) for b in batches) == 32
        total = 0.0
        for b in batches:
            loss = trainer.training_step(trainer.model, dict(b))
            total += loss.item()
        gradients[size] = torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
        losses[size] = total
    for size in (16, 8, 12):
        assert losses[size] == pytest.approx(losses[32], rel=1e-6)
        assert (gradients[size] - gradients[32]).norm() / gradients[32].norm() < 1e-6


def step_of(
    path, num_thoughts: int, batch_size: int, rows: int | None = None, source="text", step=9, global_seed=0, **more
):
    """(trainer, micro-batches of optimizer step `step` of 10) on real files, in double precision, weights far from their start."""
    path.mkdir(parents=True, exist_ok=True)
    if source == "text":
        file = path / "data.txt"
        file.write_text(TEXT * 60)
    else:
        file = path / "data.jsonl"
        file.write_text(
            "".join(f'{{"prompt": "{"the " * (i % 3)}q", "completion": "{"dog " * (1 + i % 4)}"}}\n' for i in range(80))
        )
    s = TrainSettings(
        train_file=str(file), vocab_size=100, hidden_size=32, num_layers=2, num_heads=2, num_thoughts=num_thoughts, seq_length=32,
        batch_size=batch_size, max_steps=10, output_dir=str(path / "run"), **more,
    )  # fmt: skip
    data = load_data(s)
    model = build_model(s, data.tokenizer).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1), dtype=p.dtype))
    trainer = MixtureTrainer(s, data, model, 10, s.output_dir, None, Interruption())
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = math.ceil((rows or batch_size) / batch_size)
    items = [data.train[i] for i in range(rows or batch_size)]
    parts = [data.collate(items[i : i + batch_size]) for i in range(0, len(items), batch_size)]
    trainer.state.global_step = step  # 9 is late in the run: every loss is on
    torch.manual_seed(global_seed)  # after the Trainer, which sets it too
    batches, _ = trainer.get_batch_samples(iter(parts), len(parts), torch.device("cpu"))
    return trainer, batches


def test_labels_leave_out_pads_the_thought_and_each_rows_first_token(mixture):
    batch = rows(mixture, ("the", "dog"), ("o", "x"))
    pad = mixture.tokenizer.pad_token_id
    layout = lay_out(batch, torch.tensor([[mixture.thoughts[0]], [-1]]), pad)
    x, y = (mixture.tokenizer(t, add_special_tokens=False)["input_ids"] for t in ("the", "dog"))
    assert layout["input_ids"][0].tolist() == [*x, mixture.thoughts[0], *y]
    assert layout["labels"][0].tolist() == [-100, *x[1:], -100, *y]  # nothing predicts the first token
    o, x1 = (mixture.tokenizer(t, add_special_tokens=False)["input_ids"][0] for t in ("o", "x"))
    assert layout["input_ids"][1].tolist() == [pad, pad, o, x1, pad, pad, pad]
    assert layout["labels"][1].tolist() == [-100, -100, -100, x1, -100, -100, -100]
    assert layout["attention_mask"][1].tolist() == [0, 0, 1, 1, 0, 0, 0]


def test_windows_need_no_mask_and_cross_entropy_is_over_every_token_but_the_first(mixture):
    batch = branch({"window": torch.arange(12).view(2, 6)}, 2)
    layout = lay_out(batch, torch.tensor([[-1], [-1]]), 0)
    assert set(layout) == {"input_ids", "labels"}
    logits = mixture.model(layout["input_ids"]).logits
    ours = F.cross_entropy(logits[:, :-1].transpose(1, 2), layout["labels"][:, 1:], reduction="sum")
    assert torch.isfinite(ours)
    assert (layout["labels"][:, 1:] >= 0).all()


def test_scores_of_a_batch_equal_scores_one_by_one(mixture):
    texts = [("the quick ", "brown"), ("dog", " jumps over"), ("a lazy", "x")]
    together = score(mixture.model, rows(mixture, *texts), mixture.thoughts, mixture.tokenizer.pad_token_id)
    for b, (prompt, completion) in enumerate(texts):
        for name, value in mixture.nll(prompt, completion).items():
            assert together[f"{name}_nll"][b].item() == pytest.approx(value, abs=1e-5)
