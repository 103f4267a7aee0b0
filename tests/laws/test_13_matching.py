"""Law 13. Matching gives colliding thoughts other verified answers, by the best assignment, and takes nothing away.

A prompt's matching depends on the seed and the prompt alone. A run without matching steps is as if there were no
matching, and a run with them resumes bit for bit and is the same in two processes.
"""

import itertools
import json
import signal

import pytest
import torch
from bases import make
from mixtures import PROMPTS, greedy_alone, ids_of, tiny
from survive import complete, cut_and_resumed, last_state, short_run, stop_in, two_processes

from mot.training.matching import Matched, match_prompts
from mot.training.settings import TrainSettings

MOST = 64
FILE = """def first_letter(prompt, text):
    return text[:1] or None
"""


def first_letter(prompt: str, text: str) -> str | None:
    return text[:1].strip() or None


@pytest.fixture(scope="module")
def mixture():
    mixture = tiny(6)
    with torch.no_grad():  # texts end, after a few tokens
        mixture.model.lm_head.weight[mixture.tokenizer.eos_token_id] *= 3
    return mixture


def matched(mixture, prompts: list[str], label="dog", seed=0, rows=3) -> list[Matched]:
    ids = [ids_of(mixture, prompt) for prompt in prompts]
    return match_prompts(mixture, first_letter, ids, [ids_of(mixture, label)] * len(ids), MOST, seed, rows)


def logp(mixture, prompt: str, k: int, answer: list[int]) -> float:
    """log p(answer and its end | prompt, k), one forward pass."""
    x, y = [*ids_of(mixture, prompt), mixture.thoughts[k]], [*answer, mixture.tokenizer.eos_token_id]
    with torch.no_grad():
        rows = mixture.model(torch.tensor([[*x, *y]])).logits[0, len(x) - 1 : -1].log_softmax(-1)
    return rows.gather(1, torch.tensor(y)[:, None]).sum().item()


@pytest.mark.parametrize("label", ["dog", "x", "b", "h"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_matching_is_the_formula(mixture, prompt, label):
    (found,) = matched(mixture, [prompt], label)
    said = [greedy_alone(mixture, prompt, [k], MOST) for k in range(6)]
    own = [first_letter(prompt, mixture.tokenizer.decode(ids)) if len(ids) < MOST else None for ids in said]
    kept = [k for k in range(6) if own[k] is not None and own.count(own[k]) == 1]
    assert found.kept == [(k, ids_of(mixture, label)) for k in kept if own[k] == label[0]]
    assert found.distinct == len(set(own) - {None})
    colliding = [k for k in range(6) if k not in kept]
    given = {k: first_letter(prompt, mixture.tokenizer.decode(ids)) for k, ids in found.repairs}
    assert set(given) <= set(colliding)
    assert None not in given.values()
    assert len(set(given.values())) == len(given)
    assert not set(given.values()) & {own[k] for k in kept}
    assert len(given) == min(len(colliding), found.pool - len(kept))
    assert sorted(found.able) == sorted([*kept, *given])
    total = sum(logp(mixture, prompt, k, ids) for k, ids in found.repairs)
    answers = [ids for _, ids in found.repairs]
    others = (zip(ks, answers, strict=True) for ks in itertools.permutations(colliding, len(answers)))
    assert total >= max(sum(logp(mixture, prompt, k, ids) for k, ids in pairs) for pairs in others) - 1e-3


def test_some_prompts_need_repairs_and_some_thoughts_keep_their_answer(mixture):
    found = [m for label in ("dog", "x", "b", "h") for m in matched(mixture, PROMPTS, label)]
    assert any(m.repairs for m in found)
    assert any(m.kept for m in found)


def test_a_prompts_matching_does_not_depend_on_the_prompts_beside_it(mixture):
    together, alone = matched(mixture, PROMPTS), [matched(mixture, [prompt], rows=64)[0] for prompt in PROMPTS]
    for a, b in zip(together, alone, strict=True):
        assert (a.distinct, a.pool, a.repairs, a.kept, a.able) == (b.distinct, b.pool, b.repairs, b.kept, b.able)
        assert a.router == pytest.approx(b.router, rel=1e-5)
    assert [m.repairs for m in matched(mixture, PROMPTS, seed=1)] != [m.repairs for m in together]


def test_repairs_come_before_kept_pairs():
    found = Matched(3, 5, [(0, [1]), (1, [2])], [(2, [3]), (3, [4]), (4, [5])], able=[], router=[])
    for seed in range(5):
        pairs = found.rows(3, torch.Generator().manual_seed(seed))
        assert sorted(pairs[:2]) == found.repairs
        assert pairs[2] in found.kept
    assert len({str(found.rows(3, torch.Generator().manual_seed(seed))) for seed in range(20)}) > 2


# A run --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flags(tmp_path_factory, text_file) -> list[str]:
    folder = tmp_path_factory.mktemp("matching")
    words = ["the", "king", "night", "day", "sea", "softly"]
    rows = [{"prompt": a + " and ", "completion": b} for a, b in itertools.product(words, words)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "verify.py").write_text(FILE)
    flags = short_run(folder / "rows.jsonl", accumulate=1)
    return [*flags, "--match_steps", "6", "--verifier", str(folder / "verify.py") + ":first_letter"]


@pytest.mark.slow
def test_a_run_cut_and_resumed_while_it_matches_ends_in_the_same_state(flags, tmp_path):
    complete([*flags, "--output_dir", tmp_path / "whole"])
    assert last_state(cut_and_resumed(flags, tmp_path / "run", (4, 8))) == last_state(tmp_path / "whole")
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics if "distinct" in m] == list(range(7, 13))
    without = [*flags[: flags.index("--match_steps")], "--output_dir", tmp_path / "without"]
    complete(without)
    assert last_state(tmp_path / "without") != last_state(tmp_path / "whole")


@pytest.mark.slow
def test_an_adaptation_matches_too_and_resumes(adapter_rows, tmp_path):
    (tmp_path / "verify.py").write_text(FILE)
    base = make("llama", tmp_path / "base")
    words = f"--base_model {base} --train_file {adapter_rows} --num_thoughts 4 --seq_length 48 --batch_size 8"
    words += (
        f" --lora_rank 4 --max_steps 6 --save_every 3 --eval_every 6 --match_steps 4 --verifier {tmp_path}/verify.py"
    )
    flags = [*f"{words}:first_letter".split(), "--output_dir"]
    complete([*flags, tmp_path / "whole"])
    assert stop_in("training", 3, signal.SIGTERM, [*flags, tmp_path / "cut"])[0] == 143
    complete([*flags, tmp_path / "cut", "--resume_from", "auto"])
    weights = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]
    metrics = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics if "distinct" in m] == [3, 4, 5, 6]


@pytest.mark.parametrize(
    ("task", "flags", "steps"),
    [
        ("spellings", {}, 33),
        ("forks", {}, 33),
        ("forks", {"match_steps": 0}, 0),
        ("forks", {"num_thoughts": 1}, 0),
        ("forks", {"thought_length": 2}, 0),
        ("countdown", {}, 0),
        ("countdown", {"match_steps": 7}, 7),
        (None, {}, 0),
    ],
)
def test_which_runs_match_and_for_how_long(task, flags, steps):
    assert TrainSettings(task=task, **flags).matched_steps(100) == steps


@pytest.mark.slow
def test_two_processes_match_as_one(flags, tmp_path):
    alone = [*flags, "--dropout", "0"]
    complete([*alone, "--batch_size", "16", "--output_dir", tmp_path / "one"])
    runs = two_processes([*alone, "--output_dir", tmp_path / "two"])
    assert [run.exitcode() for run in runs] == [0, 0], runs[0].log.read_text()
    of_run = []
    for name in ("one", "two"):
        metrics = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        names = ("loss", "lm_loss", "router_loss", "entropy", "grad_norm", "distinct", "pool")
        of_run.append([[m.get(n, 0.0) for n in names] for m in metrics if "loss" in m])
    assert len(of_run[0]) == 12
    for one, two in zip(*of_run, strict=True):
        assert one == pytest.approx(two, rel=1e-5, abs=1e-5)
