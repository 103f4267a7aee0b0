"""Law 0. The loss and the E-step are the formulas of DESIGN section 2, computed one row and one thought at a time.

The laws about the objective (4 to 8) mean something only if this holds. It is checked for thoughts of one token and for
thought sequences.
"""

import math

import pytest
import torch
from mixtures import DIGITS, LENGTH, N, ids_of, rows, tokens_of
from torch.nn import functional as F
from trainers import ESTEP_TOKENS, row, row_diversity, scored_tokens, sharpen, step_of

from mot.data.datasets import branch
from mot.model.score import lay_out
from mot.thoughts import draw_sequences, responsibilities
from mot.training import em

ONE_TOKEN = {"num_thoughts": N}
SEQUENCE = {"num_thoughts": DIGITS, "thought_length": LENGTH}


@pytest.fixture
def drawn(monkeypatch) -> list[torch.Tensor]:
    """The thought sequences that every E-step compares."""
    kept = []
    monkeypatch.setattr(em, "draw_sequences", lambda *how: kept.append(draw_sequences(*how)) or kept[-1])
    return kept


@pytest.mark.parametrize("loud", [False, True], ids=["below the cap", "above the cap"])
@pytest.mark.parametrize("source", ["text", "rows"])
@pytest.mark.parametrize("thoughts", [ONE_TOKEN, SEQUENCE], ids=["one token", "sequence"])
def test_the_loss_is_the_formula(tmp_path, thoughts, source, loud):
    weights = {"router_weight": 0.7, "diversity_weight": 0.3, "entropy_weight": 0.2, "thought_dropout": 0.3}
    trainer, (b,) = step_of(tmp_path, batch_size=32, source=source, **thoughts, **weights)
    if loud:
        sharpen(trainer)
    ids, L = trainer.thoughts, b["thought"].shape[1]
    lm, router, usage, jsd = [], [], [], []
    with torch.no_grad():
        for i in range(32):
            x, thought, y = row(b, i)
            context = [*x, *thought, *y]
            logits = trainer.model(torch.tensor([context])).logits[0]
            logp = logits.log_softmax(-1)
            end = len(x) + len(thought)
            lm += [-logp[t - 1, context[t]] for t in range(1, len(context)) if not len(x) <= t < end]
            if thought:
                usage.append(logits[len(x) - 1, ids].softmax(-1))
                router.append(-(b["q"][i, 0] * usage[-1].log()).sum())
                for j in range(1, L):
                    p = logits[len(x) - 1 + j, ids].softmax(-1)
                    router[-1] = router[-1] - p[ids.index(thought[j])].log()
            if b["contrast"][i, 0, 0] >= 0:
                compared = [thought, *b["contrast"][i].tolist()]
                if L == 1:
                    assert sorted(compared) == [[k] for k in sorted(ids)]  # the winner and the three others
                jsd.append(row_diversity(trainer, x, compared, y))
    lm, router, usage, jsd = (torch.stack(values) for values in (lm, router, usage, jsd))
    assert 0 < len(router) < 32
    cap = 0.5 * math.log(len(ids))
    assert ((jsd > cap) == loud).any()
    expected = lm.mean() + 0.7 * router.mean() - 0.2 * torch.special.entr(usage.mean(0)).sum()
    expected -= 0.3 * jsd.clamp(max=cap).mean()
    assert trainer.compute_loss(trainer.model, dict(b)).item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize(
    ("source", "scored"), [("text", ESTEP_TOKENS), ("rows", None), ("rows", ESTEP_TOKENS)], ids=str
)
@pytest.mark.parametrize(
    ("thoughts", "step", "tau"),
    [(ONE_TOKEN, 0, 6.0), (ONE_TOKEN, 3, 6 * 0.05**0.5), (ONE_TOKEN, 9, 0.3), (SEQUENCE, 9, 0.3)],
    ids=["one token, step 0", "one token, step 3", "one token, step 9", "sequence, step 9"],
)
def test_the_e_step_is_the_formula(tmp_path, thoughts, step, tau, source, scored, drawn):
    more = {"thought_dropout": 0.3, "dropout": 0.5, "estep_tokens": scored, "diversity_weight": 0.1}
    trainer, (b,) = step_of(tmp_path, batch_size=32, source=source, step=step, **thoughts, **more)
    assert trainer.model.training, "else the E-step need not turn dropout off"
    trainer.model.eval()
    (sequences,) = drawn
    compared = torch.tensor(trainer.thoughts)[sequences]
    (M, L), carrying = compared.shape, b["thought"][:, 0] >= 0
    scores = []
    with torch.no_grad():
        for i in carrying.nonzero()[:, 0].tolist():
            x, _, y = row(b, i)
            y = y[:scored]  # without a number, a completion is scored whole
            logp = [trainer.model(torch.tensor([[*x, *k, *y]])).logits[0].log_softmax(-1) for k in compared.tolist()]
            scores.append([sum(p[len(x) + L - 1 + t, y[t]] for t in range(len(y))).item() / len(y) for p in logp])
    q = responsibilities(torch.tensor(scores), tau / scored_tokens(trainer, scored))
    first = torch.stack([q[:, sequences[:, 0] == k].sum(1) for k in range(M)], 1)
    assert torch.allclose(b["q"][carrying, 0].float(), first, atol=1e-4)
    winner = (b["thought"][carrying][:, None] == compared).all(-1).int().argmax(1)
    assert torch.equal(compared[winner], b["thought"][carrying])
    for i in range(1, L):
        assert torch.equal(b["q"][carrying, i].argmax(-1), sequences[winner, i])
        assert (b["q"][carrying, i].sum(-1) == 1).all()
    assert 0 < carrying.sum() < 32
    assert (b["q"][~carrying] == 0).all()
    assert (b["thought"][~carrying] == -1).all()
    contrasted = b["contrast"][:, 0, 0] >= 0
    assert bool(contrasted.any()) == (step == 9)  # diversity counts only after the anneal
    for own, others in zip(b["thought"][contrasted], b["contrast"][contrasted], strict=True):
        assert sorted([own.tolist(), *others.tolist()]) == sorted(compared.tolist())


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


def test_labels_leave_out_pads_the_thought_and_each_rows_first_token(mixture):
    batch = rows(mixture, ("the", "dog"), ("o", "x"))
    pad = mixture.tokenizer.pad_token_id
    layout = lay_out(batch, torch.tensor([[mixture.thoughts[0]], [-1]]), pad)
    x, y, (o,), (x1,) = (ids_of(mixture, t) for t in ("the", "dog", "o", "x"))
    assert layout["input_ids"][0].tolist() == [*x, mixture.thoughts[0], *y]
    assert layout["labels"][0].tolist() == [-100, *x[1:], -100, *y]  # nothing predicts the first token
    assert layout["input_ids"][1].tolist() == [pad, pad, o, x1, pad, pad, pad]
    assert layout["labels"][1].tolist() == [-100, -100, -100, x1, -100, -100, -100]
    assert layout["attention_mask"][1].tolist() == [0, 0, 1, 1, 0, 0, 0]


def test_labels_leave_out_every_token_of_a_sequence(sequence_mixture):
    mixture = sequence_mixture
    thought, pad = tokens_of(mixture, (2, 0, 1)), mixture.tokenizer.pad_token_id
    layout = lay_out(rows(mixture, ("the", "dog"), ("o", "x")), torch.tensor([thought, [-1] * LENGTH]), pad)
    x, y, (o,), (x1,) = (ids_of(mixture, t) for t in ("the", "dog", "o", "x"))
    assert layout["input_ids"].tolist() == [[*x, *thought, *y], [pad, pad, o, x1, *[pad] * 5]]
    assert layout["labels"].tolist() == [[-100, *x[1:], *[-100] * LENGTH, *y], [-100, -100, -100, x1, *[-100] * 5]]
    assert layout["attention_mask"].tolist() == [[1] * 9, [0, 0, 1, 1, 0, 0, 0, 0, 0]]


def test_windows_need_no_mask_and_cross_entropy_is_over_every_token_but_the_first(mixture):
    batch = branch({"window": torch.arange(12).view(2, 6)}, 2)
    layout = lay_out(batch, torch.tensor([[-1], [-1]]), 0)
    assert set(layout) == {"input_ids", "labels"}
    logits = mixture.model(layout["input_ids"]).logits
    ours = F.cross_entropy(logits[:, :-1].transpose(1, 2), layout["labels"][:, 1:], reduction="sum")
    assert torch.isfinite(ours)
    assert (layout["labels"][:, 1:] >= 0).all()
