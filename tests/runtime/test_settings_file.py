"""A settings file (--config) fills what the flags leave out. Rejected files: tests/test_bad_input.py."""

from pathlib import Path

import pytest

from mot.runtime.flags import parse
from mot.training.settings import TrainSettings

pytestmark = pytest.mark.usefixtures("in_tmp_path")


def settings_of(argv: list[str]) -> TrainSettings:
    return parse(TrainSettings, ["--task", "forks", *argv], "train_mot.py", "")


def test_settings_file_fills_what_the_flags_leave_out():
    Path("run.yaml").write_text("learning_rate: 1e-3\nbatch_size: 7\nnum_epochs: 3\nbf16: true\nseed: 5")
    settings = settings_of(["--config", "run.yaml", "--batch_size", "9", "--no-bf16"])
    assert settings == TrainSettings(task="forks", learning_rate=0.001, batch_size=9, num_epochs=3.0, seed=5)
    assert type(settings.learning_rate) is type(settings.num_epochs) is float


def test_flag_wins_over_the_settings_file_even_with_its_default():
    Path("run.yaml").write_text("seed: 5")
    assert settings_of(["--seed", "42", "--config", "run.yaml"]).seed == 42


def test_empty_settings_file_changes_nothing():
    Path("run.yaml").write_text("# nothing yet\n")
    assert settings_of(["--config", "run.yaml"]) == settings_of([])
