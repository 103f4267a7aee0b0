"""The judge: it must say yes, and it must say no; an evaluation that was cut goes on; nobody is tuned on what he is judged by."""

import json
import math
import shutil

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from mot import tasks
from mot.evaluation.evaluate import MEASURES, RESULT, TEXTS, Case, compare
from mot.evaluation.prompts import Asked, of_task, split
from mot.evaluation.settings import EvaluateSettings
from mot.inference.samplers import BASELINES, SAMPLERS, TUNING_POINTS
from mot.inference.think import MixtureOfThoughts
from mot.tasks import forks
from mot.training.run import train
from mot.training.settings import TrainSettings

FEW = {"num_prompts": 6, "seeds": 2, "baselines": "temperature,diverse_beam,one_thought"}


def judged(model, output, **settings):
    return compare(EvaluateSettings(model=str(model), output_dir=str(output), **(FEW | settings)))


def apart_from_time(result):
    return {name: value for name, value in result.items() if name not in ("made", "seconds", "command")}


@pytest.fixture(scope="module")
def evaluation(tiny_run, tmp_path_factory):
    """(its directory, its result): forks, every sampler."""
    output = tmp_path_factory.mktemp("evaluation") / "forks"
    return output, judged(tiny_run, output, task="forks", baselines="all")


def test_the_result_is_written_and_every_point_is_in_it(evaluation):
    output, result = evaluation
    assert json.loads((output / RESULT).read_text()) == result
    assert (result["schema"], result["version"]) == ("mot-diversity", 1)
    assert len(result["settings"]) == TUNING_POINTS * (1 + len(BASELINES))
    assert {s["sampler"] for s in result["settings"]} == SAMPLERS.keys()
    assert {s["of"] for s in result["settings"]} == {"mixture", "trunk"}
    assert (result["k"], result["tuned_on"], result["judged_on"], result["units"]) == (4, 128, 6, "prompts")
    assert result["ceiling"] == {"independent": pytest.approx(8 * (1 - (7 / 8) ** 4)), "answers": 4}
    for s in result["settings"]:
        assert 0 <= s["judged"]["quality"]["mean"] <= 1
        assert 0 <= s["judged"]["diversity"]["mean"] <= 4
        assert s["seeds"] == (
            1 if s["sampler"] in ("beam", "diverse_beam") or s["name"] == "thoughts temperature 0" else 2
        )
    assert {c["sampler"] for c in result["comparisons"]} == {"any", *BASELINES}
    assert len(result["thoughts"]["similarity"]) == len(result["thoughts"]["usage"]) == 4
    assert sum(result["thoughts"]["usage"]) == pytest.approx(1)
    assert all(0 <= d <= math.log(2) for d in result["thoughts"]["persistence"])


def test_what_was_drawn_is_not_drawn_again(evaluation, tiny_run, tmp_path, monkeypatch):
    output, result = evaluation
    shutil.copytree(output, tmp_path / "again")
    monkeypatch.setattr("mot.evaluation.evaluate._draw", None)
    again = judged(tiny_run, tmp_path / "again", task="forks", baselines="all")
    assert apart_from_time(again) == apart_from_time(result)


@pytest.mark.parametrize("kept", [1, 2, 30, 70])
def test_an_evaluation_that_was_cut_goes_on(evaluation, tiny_run, tmp_path, kept):
    """Cut in the middle of a line, as a kill does."""
    output, result = evaluation
    lines = (output / TEXTS).read_bytes().splitlines(keepends=True)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / TEXTS).write_bytes(b"".join(lines[:kept]) + lines[kept][:-5])
    again = judged(tiny_run, tmp_path / "cut", task="forks", baselines="all", batch_size=64)
    assert apart_from_time(again) == apart_from_time(result)
    assert len((tmp_path / "cut" / TEXTS).read_bytes().splitlines()) >= len(lines)


def test_texts_of_another_evaluation_are_never_mixed_in(evaluation, tiny_run, text_run):
    output, _ = evaluation
    for changed in ({"num_thoughts": 3}, {"num_prompts": 5}, {"max_new_tokens": 3}):
        with pytest.raises(
            ValueError, match=r"--output_dir .* another model, prompts or K; give another, or --overwrite"
        ):
            judged(tiny_run, output, **({"task": "forks"} | changed))
    with pytest.raises(ValueError, match="--output_dir"):
        judged(text_run, output, task="forks")


def test_prompts_are_tuned_on_or_judged_by(evaluation):
    output, _ = evaluation
    rows = [json.loads(line) for line in (output / TEXTS).read_text().splitlines()[1:]]
    tuned, judged_by = split(of_task("forks"))
    assert not {a.prompt for a in tuned} & {a.prompt for a in judged_by}
    assert {(r["part"], r["seed"]) for r in rows} == {("tuned", 0), ("judged", 0), ("judged", 1)}


# Yes and no ---------------------------------------------------------------------------------------------------------


def as_if_said(tiny_run, output, thoughts, samples):
    """The verdict on texts given beforehand: `thoughts(prompt)` and `samples(prompt)` say what K = 4 texts there are."""
    judged(tiny_run, output, task="forks", baselines="temperature")
    rows = [json.loads(line) for line in (output / TEXTS).read_text().splitlines()]
    prompts = dict(
        zip(("tuned", "judged"), ([a.prompt for a in part] for part in split(of_task("forks"))), strict=True)
    )
    for row in rows[1:]:
        said = thoughts if row["setting"].startswith("thoughts") else samples
        first = row["first"]
        row["texts"] = [said(prompts[row["part"]][first + i]) for i in range(len(row["texts"]))]
    (output / TEXTS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return judged(tiny_run, output, task="forks", baselines="temperature")


def right(prompt, number):
    """`number` different right answers, as often as it takes to be four texts."""
    answers = [forks.chain(item) for item in prompt[:8]]
    return (answers[:number] * 4)[:4]


def test_it_says_yes_to_thoughts_that_are_different_and_good(tiny_run, tmp_path):
    result = as_if_said(tiny_run, tmp_path / "yes", lambda p: right(p, 4), lambda p: right(p, 2))
    assert result["verdict"]["answer"] == "yes"
    assert "distinct_valid +2.000 [+2.000, +2.000] and validity +0.000" in result["verdict"]["sentence"]


@pytest.mark.parametrize(
    ("thoughts", "samples"),
    [
        (lambda p: right(p, 1), lambda p: right(p, 1)),  # copies
        (lambda p: right(p, 2), lambda p: right(p, 3)),  # the sampler finds more
        (lambda p: ["no", "nonsense", "is", "right"], lambda p: right(p, 1)),  # different, but not good
    ],
)
def test_it_says_no(tiny_run, tmp_path, thoughts, samples):
    result = as_if_said(tiny_run, tmp_path / "no", thoughts, samples)
    assert result["verdict"]["answer"] == "no"
    assert result["verdict"]["sentence"].startswith("Not more different")


def test_thoughts_that_are_copies_are_called_so(tiny_run, tmp_path):
    """Every thought token has the same vector: K thoughts are one, and sampling anything beats them."""
    copies = tmp_path / "copies"
    shutil.copytree(tiny_run, copies)
    mixture = MixtureOfThoughts.from_pretrained(str(copies))
    with torch.no_grad():
        mixture.model.get_input_embeddings().weight[mixture.thoughts] = 0.1
    mixture.model.save_pretrained(copies)
    result = judged(copies, tmp_path / "judged", task="forks")
    assert result["verdict"]["answer"] == "no"
    assert max(result["thoughts"]["persistence"]) < 1e-6
    greedy = next(s for s in result["settings"] if s["name"] == "thoughts temperature 0")
    assert greedy["judged"]["diversity"]["mean"] <= 1


# Other models, other prompts ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def foreign(text_run, tmp_path_factory):
    """A model that train_mot.py did not make: GPT-2 with the letters of `text_run`, and no pad token."""
    path = tmp_path_factory.mktemp("foreign") / "gpt2"
    tokenizer = MixtureOfThoughts.from_pretrained(str(text_run)).tokenizer
    with torch.random.fork_rng():
        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_any_causal_model_has_its_samplers_judged(foreign, text_file, tmp_path):
    result = judged(foreign, tmp_path / "d", text=str(text_file), baselines="all", max_new_tokens=5, seeds=1)
    assert result["verdict"]["answer"] == "none"
    assert result["headline"] is result["thoughts"] is result["quality"] is None
    assert {s["of"] for s in result["settings"]} == {"model"}
    assert {s["sampler"] for s in result["settings"]} == set(BASELINES) - {"one_thought"}
    assert result["k"] == 8


def test_a_judge_says_how_good_texts_are(text_run, foreign, text_file, tmp_path):
    result = judged(text_run, tmp_path / "d", text=str(text_file), judge=str(foreign), max_new_tokens=4, seeds=1)
    assert result["quality"]["name"] == "judge_nll"
    assert all(1 < s["judged"]["quality"]["mean"] < 10 for s in result["settings"])  # an untrained judge: near log V
    assert result["verdict"]["answer"] in ("yes", "no")


def test_references_say_how_good_texts_are(tiny_run, tmp_path):
    rows = [{"prompt": p, "references": [c]} for p, c in tasks.held_out("forks")[:9]]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = judged(tiny_run, tmp_path / "d", prompts=str(tmp_path / "p.jsonl"), max_new_tokens=5)
    assert result["quality"]["name"] == "chrf"
    chosen = next(s for s in result["settings"] if s["name"] == result["headline"])
    assert {"chrf", "bleu", "chrf_coverage", "self_bleu", "distinct_2", "vendi"} <= chosen["measures"].keys()


def test_a_plain_model_stands_for_the_samplers(tiny_run, tmp_path):
    small = {"hidden_size": 32, "num_layers": 1, "seq_length": 24, "batch_size": 16, "max_steps": 2, "eval_rows": 16}
    train(TrainSettings(task="forks", num_thoughts=1, output_dir=str(tmp_path / "plain"), **small))
    result = judged(tiny_run, tmp_path / "d", task="forks", plain=str(tmp_path / "plain"))
    assert {s["sampler"]: s["of"] for s in result["settings"]} == {
        "thoughts": "mixture",
        "one_thought": "mixture",
        "temperature": "plain",
        "diverse_beam": "plain",
    }
    with pytest.raises(ValueError, match=r"--plain .*: has thoughts"):
        judged(tiny_run, tmp_path / "d2", task="forks", plain=str(tiny_run))


def test_a_creative_task_is_judged_by_its_draws(tmp_path):
    small = {"hidden_size": 32, "num_layers": 1, "seq_length": 24, "batch_size": 16, "max_steps": 2, "eval_rows": 16}
    train(TrainSettings(task="circle", num_thoughts=2, output_dir=str(tmp_path / "circle"), **small))
    result = judged(tmp_path / "circle", tmp_path / "d", task="circle", num_thoughts=40, baselines="all")
    assert (result["units"], result["judged_on"], result["diversity"]["name"]) == ("seeds", 2, "creativity")
    samplers = {s["sampler"] for s in result["settings"]}
    assert {"beam", "diverse_beam"} <= samplers
    assert "thoughts temperature 0" not in {s["name"] for s in result["settings"]}  # 20 greedy copies of each thought


# Numbers and mistakes -----------------------------------------------------------------------------------------------


def test_measures_of_a_case_with_known_values():
    answers = ["a", "a", None, "b"]
    case = Case(Asked("p", ("x y",)), ["x y", "x y", "", "z w"], answers, [1.0, 2.0, 3.0, 6.0], 9, "forks")
    values = {name: m.value(case) for name, m in MEASURES.items() if not {"creative", "added"} & set(m.needs)}
    assert (values["validity"], values["distinct_valid"], values["pass_at_k"]) == (0.75, 2, 1)
    assert (values["judge_nll"], values["different_texts"]) == (3, 3)
    assert values["majority_at_k"] == 1
    assert values["chrf"] == pytest.approx(50, abs=1)
    assert values["distinct_2"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"task": "forks", "num_thoughts": 5}, "--num_thoughts 5: the model has 4"),
        (
            {"task": "forks", "baselines": "temperature,beem"},
            "--baselines beem: unknown; there is one_thought, temperature",
        ),
        ({"task": "forks", "baselines": "thoughts"}, "--baselines thoughts: unknown"),
        ({"task": "forks", "measures": "vendy"}, "--measures vendy: unknown; there is validity"),
        (
            {"task": "forks", "measures": "chrf"},
            "--measures chrf: there is nothing to measure it with; give .jsonl rows",
        ),
        ({"task": "forks", "measures": "judge_nll"}, "--measures judge_nll: .*; give --judge"),
        (
            {"task": "forks", "measures": "creativity"},
            "--measures creativity: .*; it is of the tasks circle and siblings",
        ),
        ({"prompts": "nowhere.txt"}, "--prompts nowhere.txt: no such file"),
        ({"task": "forks", "plain": "nowhere"}, "--plain nowhere: no such directory"),
        ({"task": "forks", "judge": "nowhere"}, "--judge nowhere: no such directory"),
        ({"task": "forks", "prompts": "p.txt"}, "--prompts: --task forks brings its own"),
        ({"task": "e2e"}, "--prompts: missing; e2e needs"),
        ({}, "--prompts: missing; give --prompts FILE"),
        ({"task": "knives"}, "--task knives: unknown"),
        ({"prompts": "p", "text": "t"}, "--prompts and --text: give one"),
        ({"task": "forks", "tune_prompts": "p"}, "--tune_prompts p: goes with --prompts"),
        ({"task": "forks", "seeds": 0}, "--seeds 0: must be >= 1"),
        ({"task": "forks", "num_thoughts": 1}, "--num_thoughts 1: must be >= 2"),
    ],
)
def test_mistakes_are_one_clear_line_and_nothing_is_written(tiny_run, tmp_path, settings, words):
    with pytest.raises(ValueError, match=words):
        judged(tiny_run, tmp_path / "d", **settings)
    assert not (tmp_path / "d").exists()


def test_a_model_without_thoughts_and_without_samplers_leaves_nothing_to_judge(foreign, text_file, tmp_path):
    with pytest.raises(ValueError, match="--baselines: the model has no thoughts"):
        judged(foreign, tmp_path / "d", text=str(text_file), baselines="none")
