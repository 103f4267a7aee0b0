"""The evaluation must say yes and must say no, continues after an interruption, and never selects on the test split."""

import dataclasses
import json
import math
import re
import shutil
import time
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from mot import tasks
from mot.evaluation import samples, schema
from mot.evaluation.evaluate import evaluate
from mot.evaluation.measures import MEASURES, Case
from mot.evaluation.prompts import EvaluationPrompt, split, task_prompts
from mot.evaluation.samples import RESULT, TEXTS
from mot.evaluation.settings import EvaluateSettings
from mot.inference.samplers import BASELINES, SAMPLERS, TUNING_POINTS
from mot.inference.think import MixtureOfThoughts
from mot.tasks import forks
from mot.training.run import train
from mot.training.settings import TrainSettings

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "diversity_json.md"
FEW = {"num_prompts": 6, "seeds": 2, "baselines": "temperature,diverse_beam,one_thought"}


def evaluated(model, output, **settings):
    return dataclasses.asdict(evaluate(EvaluateSettings(model=str(model), output_dir=str(output), **(FEW | settings))))


def apart_from_time(result):
    return {name: value for name, value in result.items() if name not in ("made", "seconds", "command")}


@pytest.fixture(scope="module")
def evaluation(tiny_run, tmp_path_factory):
    """(its directory, its result): forks, every sampler."""
    output = tmp_path_factory.mktemp("evaluation") / "forks"
    return output, evaluated(tiny_run, output, task="forks", baselines="all")


def test_the_result_is_written_and_every_point_is_in_it(evaluation):
    output, result = evaluation
    assert json.loads((output / RESULT).read_text()) == result
    assert (result["schema"], result["version"]) == ("mot-diversity", 3)
    assert len(result["settings"]) == TUNING_POINTS * len(BASELINES)  # thoughts, and all but list prompts
    assert {s["sampler"] for s in result["settings"]} == SAMPLERS.keys() - {"list_prompt"}  # no chat template here
    assert {s["source"] for s in result["settings"]} == {"mixture", "trunk"}
    assert (result["k"], result["num_validation"], result["num_test"], result["units"]) == (4, 128, 6, "prompts")
    assert result["ceiling"] == {"independent": pytest.approx(8 * (1 - (7 / 8) ** 4)), "answers": 4}
    for s in result["settings"]:
        assert 0 <= s["test"]["quality"]["mean"] <= 1
        assert 0 <= s["test"]["diversity"]["mean"] <= 4
        assert s["seeds"] == (
            1 if s["sampler"] in ("beam", "diverse_beam") or s["name"] == "thoughts temperature 0" else 2
        )
    rivals = {name for name, sampler in SAMPLERS.items() if sampler.kind == "rival"}
    assert {c["sampler"] for c in result["comparisons"]} == {"any", *rivals} - {"list_prompt"}
    assert {c["sampler"] for c in result["ablations"]} == set(BASELINES) - rivals == {"one_thought"}
    assert len(result["thoughts"]["similarity"]) == len(result["thoughts"]["usage"]) == 4
    assert sum(result["thoughts"]["usage"]) == pytest.approx(1)
    assert all(0 <= d <= math.log(2) for d in result["thoughts"]["persistence"])


def test_what_was_drawn_is_not_drawn_again(evaluation, tiny_run, tmp_path, monkeypatch):
    output, result = evaluation
    shutil.copytree(output, tmp_path / "again")
    monkeypatch.setattr(samples, "sample", None)
    again = evaluated(tiny_run, tmp_path / "again", task="forks", baselines="all")
    assert apart_from_time(again) == apart_from_time(result)


@pytest.mark.parametrize("kept", [1, 2, 30, 70])
def test_an_interrupted_evaluation_continues(evaluation, tiny_run, tmp_path, kept):
    """Cut in the middle of a line, as a kill does."""
    output, result = evaluation
    lines = (output / TEXTS).read_bytes().splitlines(keepends=True)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / TEXTS).write_bytes(b"".join(lines[:kept]) + lines[kept][:-5])
    again = evaluated(tiny_run, tmp_path / "cut", task="forks", baselines="all", batch_size=64)
    assert apart_from_time(again) == apart_from_time(result)
    assert len((tmp_path / "cut" / TEXTS).read_bytes().splitlines()) >= len(lines)


def test_texts_of_another_evaluation_are_never_mixed_in(evaluation, tiny_run, text_run):
    output, _ = evaluation
    for changed in ({"num_thoughts": 3}, {"num_prompts": 5}, {"max_new_tokens": 3}):
        with pytest.raises(
            ValueError, match=r"--output_dir .* another model, prompts or K; give another, or --overwrite"
        ):
            evaluated(tiny_run, output, **({"task": "forks"} | changed))
    with pytest.raises(ValueError, match="--output_dir"):
        evaluated(text_run, output, task="forks")


def test_a_prompt_is_in_one_split_only(evaluation):
    output, _ = evaluation
    rows = [json.loads(line) for line in (output / TEXTS).read_text().splitlines()[1:]]
    validation, test = split(task_prompts("forks"))
    assert not {item.prompt for item in validation} & {item.prompt for item in test}
    assert {(r["part"], r["seed"]) for r in rows} == {("validation", 0), ("test", 0), ("test", 1)}


def test_texts_of_the_first_version_are_read(evaluation, tiny_run, tmp_path, monkeypatch):
    """They called the splits tuned and judged."""
    output, result = evaluation
    (tmp_path / "old").mkdir()
    text = (output / TEXTS).read_text()
    text = text.replace('"part": "validation"', '"part": "tuned"').replace('"part": "test"', '"part": "judged"')
    (tmp_path / "old" / TEXTS).write_text(text)
    monkeypatch.setattr(samples, "sample", None)
    again = evaluated(tiny_run, tmp_path / "old", task="forks", baselines="all")
    assert apart_from_time(again) == apart_from_time(result)


def test_the_document_of_the_schema_is_generated():
    assert DOCUMENT.read_text(encoding="utf-8") == schema.document(), "run python -m mot.evaluation.schema"


def test_progress_without_a_terminal_says_count_and_time_left(capsys, monkeypatch):
    monkeypatch.setattr(samples, "REPORT_EVERY", 0.05)
    with samples.progress(3) as started:
        for i in range(3):
            started(f"batch {i}")
            time.sleep(0.12)
    lines = capsys.readouterr().err.splitlines()
    assert any(re.fullmatch(r"0 of 3 batches, time left unknown; batch 0", line) for line in lines)
    assert any(re.fullmatch(r"2 of 3 batches, about 0 s left; batch 2", line) for line in lines)


def said(capsys):
    """Lines of the evaluation on stderr, without the bars of models that are loaded."""
    return [line for line in capsys.readouterr().err.splitlines() if "Loading weights" not in line and line.strip()]


def test_it_says_first_how_much_it_draws_and_about_how_long_that_takes(tiny_run, tmp_path, capsys):
    result = evaluated(tiny_run, tmp_path / "d", task="forks", baselines="temperature")
    first, second = said(capsys)[:2]
    texts = sum(4 * len(row["texts"]) for row in map(json.loads, (tmp_path / "d" / TEXTS).open()) if "texts" in row)
    batches = len((tmp_path / "d" / TEXTS).read_text().splitlines()) - 1
    assert texts == sum(4 * (128 + 6 * s["seeds"]) for s in result["settings"])
    assert first == f"{texts:,} texts to draw in {batches} batches; the first batch is timed"
    assert re.fullmatch(r"they take about \d+ (s|min), by the time of the first batch", second)
    evaluated(tiny_run, tmp_path / "d", task="forks", baselines="temperature")
    assert "texts to draw" not in capsys.readouterr().err  # nothing is missing


def test_quick_draws_less_and_says_so(tiny_run, tmp_path, capsys):
    settings = EvaluateSettings(model=str(tiny_run), task="forks", output_dir=str(tmp_path / "d"), quick=True)
    result = dataclasses.asdict(evaluate(settings))
    first, second = said(capsys)[:2]
    assert first == result["quick"]
    assert "texts to draw" in second
    assert result["quick"] == (
        "--quick: 64 test and 32 validation prompts instead of up to 256 and 128, 1 seed instead of 5, every second "
        "setting of every sampler, no beams wider than 8. The verdict is preliminary."
    )
    assert (result["num_test"], result["num_validation"], result["seeds"]) == (64, 32, [0])
    assert {s["sampler"] for s in result["settings"]} == SAMPLERS.keys() - {"list_prompt"}
    by_sampler = [sum(s["sampler"] == name for s in result["settings"]) for name in SAMPLERS if name != "list_prompt"]
    assert set(by_sampler) == {2, 3}
    assert by_sampler[0] == TUNING_POINTS / 2
    assert max(s["parameters"].get("width", 1) for s in result["settings"]) == 2


def test_what_a_flag_says_wins_over_quick(tiny_run, tmp_path):
    few = {"baselines": "temperature", "seeds": 2, "num_prompts": 5}
    result = evaluated(tiny_run, tmp_path / "d", task="forks", quick=True, **few)
    assert (result["num_test"], result["num_validation"], result["seeds"]) == (5, 2, [0, 1])
    assert "5 test and 2 validation prompts" in result["quick"]
    assert "2 seeds instead of 5" in result["quick"]


def test_quick_and_full_evaluations_have_directories_of_their_own():
    full, quick = (EvaluateSettings(model="outputs/run/", task="forks", quick=quick) for quick in (False, True))
    assert (full.output(), quick.output()) == ("outputs/diversity-run-forks", "outputs/diversity-run-forks-quick")


# Yes and no ---------------------------------------------------------------------------------------------------------


def with_texts(tiny_run, output, thoughts, sampled, ablation=None):
    """The evaluation of given texts: each of `thoughts`, `sampled` and `ablation` maps a prompt to K = 4 texts."""
    baselines = "temperature,one_thought" if ablation else "temperature"
    evaluated(tiny_run, output, task="forks", baselines=baselines)
    rows = [json.loads(line) for line in (output / TEXTS).read_text().splitlines()]
    prompts = dict(
        zip(("validation", "test"), ([i.prompt for i in part] for part in split(task_prompts("forks"))), strict=True)
    )
    for row in rows[1:]:
        texts_of = {"thoughts": thoughts, "one_thought": ablation}.get(row["setting"].split()[0], sampled)
        first = row["first"]
        row["texts"] = [texts_of(prompts[row["part"]][first + i]) for i in range(len(row["texts"]))]
    (output / TEXTS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return evaluated(tiny_run, output, task="forks", baselines=baselines)


def right(prompt, number):
    """`number` different right answers, repeated up to four texts."""
    answers = [forks.chain(item) for item in prompt[:8]]
    return (answers[:number] * 4)[:4]


def test_it_says_yes_to_thoughts_that_are_different_and_good(tiny_run, tmp_path):
    result = with_texts(tiny_run, tmp_path / "yes", lambda p: right(p, 4), lambda p: right(p, 2))
    assert result["verdict"]["answer"] == "yes"
    assert "distinct_valid +2.000 [+2.000, +2.000] and validity +0.000" in result["verdict"]["sentence"]


@pytest.mark.parametrize(
    ("thoughts", "sampled"),
    [
        (lambda p: right(p, 1), lambda p: right(p, 1)),  # copies
        (lambda p: right(p, 2), lambda p: right(p, 3)),  # the sampler finds more
        (lambda p: ["no", "nonsense", "is", "right"], lambda p: right(p, 1)),  # different, but not good
    ],
)
def test_it_says_no(tiny_run, tmp_path, thoughts, sampled):
    result = with_texts(tiny_run, tmp_path / "no", thoughts, sampled)
    assert result["verdict"]["answer"] == "no"
    assert result["verdict"]["sentence"].startswith("Not more different")


def against(result, matched_on):
    return next(c for c in result["comparisons"] if (c["sampler"], c["matched_on"]) == ("any", matched_on))


def test_the_verdict_names_both_sides_where_no_rival_is_as_diverse(tiny_run, tmp_path):
    result = with_texts(tiny_run, tmp_path / "yes", lambda p: right(p, 4), lambda p: right(p, 2))
    at_diversity, from_rival = result["verdict"]["frontier"]
    assert at_diversity.startswith("At equal diversity: no rival setting is as diverse; against the most diverse one (")
    assert at_diversity.endswith("validity +0.000 [+0.000, +0.000] and distinct_valid +2.000 [+2.000, +2.000].")
    assert not against(result, "diversity")["qualified"]
    reverse, rival = result["from_rival"], against(result, "quality")["setting"]
    assert (reverse["qualified"], reverse["setting"], reverse["diversity"]["mean"]) == (True, rival, 2)
    assert from_rival == (
        f"From the rival's side: the mixture's best setting that is as diverse as {rival} is {reverse['mixture']}, "
        "with validity +0.000 [+0.000, +0.000] and distinct_valid +2.000 [+2.000, +2.000]."
    )


def test_the_verdict_names_both_sides_where_a_rival_is_more_diverse(tiny_run, tmp_path):
    """The rival finds three answers of four texts, one of which is wrong; thoughts find two, all valid."""
    result = with_texts(tiny_run, tmp_path / "no", lambda p: right(p, 2), lambda p: [*right(p, 3)[:3], "wrong"])
    at_diversity, from_rival = result["verdict"]["frontier"]
    setting = against(result, "diversity")["setting"]
    assert at_diversity == (
        f"At equal diversity: against the best rival that is as diverse ({setting}), {result['selected']} has validity "
        "+0.250 [+0.250, +0.250] and distinct_valid -1.000 [-1.000, -1.000]."
    )
    assert from_rival.startswith("From the rival's side: no setting of the mixture is as diverse as ")
    assert from_rival.endswith("validity +0.250 [+0.250, +0.250] and distinct_valid -1.000 [-1.000, -1.000].")
    assert not result["from_rival"]["qualified"]


def test_an_ablation_is_no_rival(tiny_run, tmp_path):
    """One thought, sampled, finds more than thoughts do; the verdict compares with rivals only."""
    result = with_texts(tiny_run, tmp_path / "d", lambda p: right(p, 3), lambda p: right(p, 2), lambda p: right(p, 4))
    assert result["verdict"]["answer"] == "yes"
    assert "one_thought" not in result["verdict"]["sentence"]
    assert "one_thought" not in {c["sampler"] for c in result["comparisons"]}
    for c in result["ablations"]:
        assert (c["sampler"], c["mixture"]) == ("one_thought", result["selected"])
        assert c["diversity"]["mean"] == -1
    assert len(result["ablations"]) == 2
    chosen = next(s for s in result["settings"] if s["name"] == result["ablations"][0]["setting"])
    assert (chosen["kind"], chosen["source"]) == ("ablation", "mixture")
    assert chosen["measures"]["recall"]["mean"] == 1


def test_there_is_no_verdict_where_nothing_is_valid(tiny_run, tmp_path):
    nonsense = ["no", "nonsense", "is", "right"]
    result = with_texts(tiny_run, tmp_path / "d", lambda p: nonsense, lambda p: nonsense, lambda p: right(p, 4))
    assert result["verdict"]["answer"] == "none"
    assert "validity is 0 everywhere" in result["verdict"]["sentence"]
    assert result["verdict"]["frontier"] == []


def test_thoughts_that_are_copies_are_called_so(tiny_run, tmp_path):
    """Every thought token has the same vector: K thoughts are one, and sampling anything beats them."""
    copies = tmp_path / "copies"
    shutil.copytree(tiny_run, copies)
    mixture = MixtureOfThoughts.from_pretrained(str(copies))
    with torch.no_grad():
        mixture.model.get_input_embeddings().weight[mixture.thoughts] = 0.1
    mixture.model.save_pretrained(copies)
    # This small model writes no valid answer, so that only references can say how good its texts are.
    rows = [{"prompt": p, "references": [c]} for p, c in tasks.held_out("forks")[:9]]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = evaluated(copies, tmp_path / "references", prompts=str(tmp_path / "p.jsonl"), max_new_tokens=5)
    assert result["verdict"]["answer"] == "no"
    greedy = next(s for s in result["settings"] if s["name"] == "thoughts temperature 0")
    assert greedy["test"]["diversity"]["mean"] == pytest.approx(100)  # self-BLEU of copies
    result = evaluated(copies, tmp_path / "forks", task="forks")
    assert max(result["thoughts"]["persistence"]) < 1e-6
    greedy = next(s for s in result["settings"] if s["name"] == "thoughts temperature 0")
    assert greedy["test"]["diversity"]["mean"] <= 1


# Other models, other prompts ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def foreign(text_run, tmp_path_factory):
    """A model that train_mot.py did not write: GPT-2 with the letters of `text_run`, and no pad token."""
    path = tmp_path_factory.mktemp("foreign") / "gpt2"
    tokenizer = MixtureOfThoughts.from_pretrained(str(text_run)).tokenizer
    with torch.random.fork_rng():
        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_the_samplers_of_any_causal_model_are_evaluated(foreign, text_file, tmp_path):
    result = evaluated(foreign, tmp_path / "d", text=str(text_file), baselines="all", max_new_tokens=5, seeds=1)
    assert result["verdict"]["answer"] == "none"
    assert result["selected"] is result["thoughts"] is result["quality"] is None
    assert {s["source"] for s in result["settings"]} == {"model"}
    assert {s["sampler"] for s in result["settings"]} == set(BASELINES) - {"one_thought", "list_prompt"}
    assert result["k"] == 8


def test_a_judge_measures_quality(text_run, foreign, text_file, tmp_path):
    result = evaluated(text_run, tmp_path / "d", text=str(text_file), judge=str(foreign), max_new_tokens=4, seeds=1)
    assert result["quality"]["name"] == "judge_nll"
    assert all(1 < s["test"]["quality"]["mean"] < 10 for s in result["settings"])  # an untrained judge: near log V
    assert result["verdict"]["answer"] in ("yes", "no")


def test_references_measure_quality(tiny_run, tmp_path):
    rows = [{"prompt": p, "references": [c]} for p, c in tasks.held_out("forks")[:9]]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = evaluated(tiny_run, tmp_path / "d", prompts=str(tmp_path / "p.jsonl"), max_new_tokens=5)
    assert result["quality"]["name"] == "chrf"
    chosen = next(s for s in result["settings"] if s["name"] == result["selected"])
    assert {"chrf", "bleu", "chrf_coverage", "self_bleu", "distinct_2", "vendi"} <= chosen["measures"].keys()


def test_rivals_are_drawn_from_a_plain_model(tiny_run, tmp_path):
    small = {"hidden_size": 32, "num_layers": 1, "seq_length": 24, "batch_size": 16, "max_steps": 2, "eval_rows": 16}
    train(TrainSettings(task="forks", num_thoughts=1, output_dir=str(tmp_path / "plain"), **small))
    result = evaluated(tiny_run, tmp_path / "d", task="forks", plain=str(tmp_path / "plain"))
    assert {s["sampler"]: s["source"] for s in result["settings"]} == {
        "thoughts": "mixture",
        "one_thought": "mixture",
        "temperature": "plain",
        "diverse_beam": "plain",
    }
    with pytest.raises(ValueError, match=r"--plain .*: has thoughts"):
        evaluated(tiny_run, tmp_path / "d2", task="forks", plain=str(tiny_run))


def test_the_units_of_a_creative_task_are_draws(tmp_path):
    small = {"hidden_size": 32, "num_layers": 1, "seq_length": 24, "batch_size": 16, "max_steps": 2, "eval_rows": 16}
    train(TrainSettings(task="circle", num_thoughts=2, output_dir=str(tmp_path / "circle"), **small))
    result = evaluated(tmp_path / "circle", tmp_path / "d", task="circle", num_thoughts=40, baselines="all")
    assert (result["units"], result["num_test"], result["diversity"]["name"]) == ("seeds", 2, "creativity")
    samplers = {s["sampler"] for s in result["settings"]}
    assert {"beam", "diverse_beam"} <= samplers
    assert "thoughts temperature 0" not in {s["name"] for s in result["settings"]}  # 20 greedy copies of each thought


# Numbers and mistakes -----------------------------------------------------------------------------------------------


def test_measures_of_a_case_with_known_values():
    answers = ["a", "a", None, "b"]
    case = Case(EvaluationPrompt("p", ("x y",)), ["x y", "x y", "", "z w"], answers, [1.0, 2.0, 3.0, 6.0], 9, "forks")
    values = {name: m.value(case) for name, m in MEASURES.items() if not {"creative", "added", "plan"} & set(m.needs)}
    assert (values["validity"], values["distinct_valid"], values["pass_at_k"]) == (0.75, 2, 1)
    assert (values["judge_nll"], values["different_texts"]) == (3, 3)
    assert values["recall"] == 0.5  # two of min(8 answers, 4 texts)
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
            "--measures creativity: .*; it is for the tasks circle and siblings",
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
        evaluated(tiny_run, tmp_path / "d", **settings)
    assert not (tmp_path / "d").exists()


def test_a_model_without_thoughts_and_without_samplers_is_rejected(foreign, text_file, tmp_path):
    with pytest.raises(ValueError, match="--baselines: the model has no thoughts"):
        evaluated(foreign, tmp_path / "d", text=str(text_file), baselines="none")
