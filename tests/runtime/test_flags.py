"""What people type: other trainers' names, values for switches, ~ in YAML, paths as names of runs."""

from pathlib import Path

import pytest

from mot import cli
from mot.runtime.flags import parse
from mot.training.settings import AdaptSettings, TrainSettings

pytestmark = pytest.mark.usefixtures("in_tmp_path")


@pytest.mark.parametrize(
    ("typed", "ours"),
    [
        ("--lr", "learning_rate"),
        ("--epochs", "num_epochs"),
        ("--data", "train_file"),
        ("--gradient_checkpointing", "save_memory"),
        ("--gradient-checkpointing", "save_memory"),
        ("--per_device_train_batch_size", "batch_size"),
        ("--learning-rate", "learning_rate"),
        ("--save_steps", "save_every"),
        ("--n_layer", "num_layers"),
        ("--early_stopping_patience", "early_stopping"),
    ],
)
def test_another_trainers_flag_leads_to_ours(typed, ours, refused):
    refused(cli.train, ["--task", "forks", typed, "1"], f"unknown flag {typed}", f"did you mean --{ours}?")


def test_model_leads_to_the_base_model(refused):
    refused(cli.adapt, ["--model", "x"], "unknown flag --model", "did you mean --base_model?")


def test_nothing_leads_to_help(refused):
    assert "did you mean" not in refused(cli.train, ["--task", "forks", "--hxxxx", "1"], "unknown flag --hxxxx")


def test_another_trainers_name_in_yaml_leads_to_ours(refused):
    Path("run.yaml").write_text("lr: 1e-3\n")
    refused(cli.train, ["--task", "forks", "--config", "run.yaml"], "unknown name 'lr'; did you mean learning_rate?")


@pytest.mark.parametrize("value", ["True", "true", "1", "false"])
def test_a_switch_with_a_value_says_that_it_takes_none(value, refused):
    refused(
        cli.train, ["--task", "forks", "--bf16", value], f"--bf16 {value}: takes no value; give --bf16 or --no-bf16"
    )


@pytest.mark.parametrize("name", ["../../x", "a/b", "/x", "..", ".", "a\\b", ""])
def test_a_run_name_that_is_a_path_is_refused(name, refused):
    refused(cli.train, ["--task", "forks", "--run_name", name], f"--run_name {name}", "--output_dir")


def test_the_home_directory_is_found_in_flags_and_yaml(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    Path("run.yaml").write_text("train_file: ~/data/text.txt\noutput_dir: ~/run\n")
    settings = parse(TrainSettings, ["--config", "run.yaml", "--eval_file=~/e.txt"], "x", "")
    assert settings.train_file == "/home/somebody/data/text.txt"
    assert (settings.eval_file, settings.output_dir) == ("/home/somebody/e.txt", "/home/somebody/run")
    adapt = parse(AdaptSettings, ["--base_model=~/base", "--train_file", "x"], "x", "")
    assert adapt.base_model == "/home/somebody/base"


def test_allow_changed_without_a_checkpoint_is_refused(refused):
    refused(cli.train, ["--task", "forks", "--allow_changed"], "--allow_changed", "--resume_from")


def test_a_dry_run_needs_neither_gpu_nor_login(capsys, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    argv = ["--task", "forks", "--hidden_size", "32", "--num_layers", "1", "--seq_length", "24", "--max_steps", "2"]
    cli.train([*argv, "--fp16", "--fsdp", "--use_wandb", "--dry_run"])
    assert "parameters" in capsys.readouterr().out
    assert list(Path().iterdir()) == []
