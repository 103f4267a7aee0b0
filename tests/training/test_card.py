"""The model card: the hub reads it, its numbers and its command are the run's, and it contains no path."""

import json
import re
import shlex
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from mot.runtime.flags import parse
from mot.training.card import card, command
from mot.training.settings import AdaptSettings, TrainSettings


def test_the_hub_reads_it_and_its_numbers_are_the_runs(text_run):
    text = (text_run / "README.md").read_text()
    data = ModelCard(text).data
    assert (data.library_name, data.pipeline_tag, data.tags) == (
        "transformers",
        "text-generation",
        ["mixture-of-thoughts"],
    )
    lines = [json.loads(line) for line in (text_run / "metrics.jsonl").read_text().splitlines()]
    last = [m for m in lines if "eval_base_nll" in m][-1]
    for words, name in (("base NLL", "eval_base_nll"), ("mixture NLL", "eval_mixture_nll")):
        assert re.search(rf"^\| {words}.*\| {last[name]:.4f} \|$", text, re.MULTILINE)
    assert str(text_run.parent) not in text


def test_its_command_makes_the_same_run(text_run):
    text = (text_run / "README.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("$ ")]
    python, door, *flags = shlex.split(line.removeprefix("$ "))
    assert (python, door) == ("python", "train_mot.py")
    mine = TrainSettings(**json.loads((text_run / "run.json").read_text()))
    again = parse(TrainSettings, flags, door, "")
    assert again == replace(mine, output_dir=None, train_file=mine.train_file.rsplit("/", 1)[-1])


def test_its_code_runs(text_run, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (text_run / "README.md").read_text(), re.DOTALL)
    code = code.replace("THIS_DIRECTORY", str(text_run)).replace("=100", "=3").replace("PROMPT", "the king")
    exec(compile(code, "card", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) >= 4


def test_where_data_lie_and_who_may_read_them_is_not_told(tmp_path):
    settings = TrainSettings(train_file="gs://secret-bucket/a/train.jsonl?sig=key", output_dir="/home/me/run")
    text = card(settings, {}, 1, 1, 1)
    assert "train.jsonl" in text
    for secret in ("secret-bucket", "sig", "/home/me"):
        assert secret not in text
    text = card(AdaptSettings(base_model=str(tmp_path), train_file="x.jsonl"), {}, 1, 1, 1)
    assert tmp_path.name in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize(("base", "named"), [("org/base", True), (".", False)])
def test_an_adapter_names_its_base_if_the_hub_knows_it(base, named):
    text = card(AdaptSettings(base_model=base, train_file="x.jsonl"), {"eval_general_nll": 3.0}, 1, 1, 1)
    data = ModelCard(text).data
    assert data.library_name == "peft"
    assert data.base_model == (base if named else None)
    assert "3.0000" in text


def test_a_switch_that_is_off_by_choice_is_not_lost():
    settings = TrainSettings(train_file="x", bf16=True, num_thoughts=1)
    assert "--bf16" in command(settings)
    assert "A plain causal language model" in card(settings, {}, 1, 1, 1)
