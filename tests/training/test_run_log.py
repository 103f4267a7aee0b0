"""What a run says in a file: first what it trains on what, then a line at least every 30 seconds."""

import io
import re
from types import SimpleNamespace

import pytest
from rich.console import Console

from mot.runtime.announce import duration
from mot.training import run_log
from mot.training.run import train
from mot.training.run_log import RunLog
from mot.training.settings import TrainSettings


def test_a_line_comes_with_every_evaluation_and_every_thirty_seconds(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(run_log.time, "monotonic", lambda: now[0])
    log = RunLog(str(tmp_path), 100, "t")
    log.console = Console(file=io.StringIO(), force_terminal=False)
    state = SimpleNamespace(global_step=0, max_steps=100)
    log.on_train_begin(None, state, None)
    for step in range(1, 61):
        now[0] += 4
        state.global_step = step
        log.on_log(None, state, None, logs={"lm_loss": 1.0} | ({"eval_base_nll": 2.0} if step == 10 else {}))
    lines = log.console.file.getvalue().splitlines()
    steps = [int(re.match(r"step (\d+)/100  ", line)[1]) for line in lines]
    assert steps == [8, 10, 18, 26, 34, 42, 50, 58]
    assert lines[0].endswith("6 min left")  # 92 steps of 4 s
    assert "base 2.000" in lines[1]


@pytest.mark.parametrize(
    ("seconds", "said"), [(8.4, "8 s"), (59.4, "59 s"), (61, "1 min"), (3605, "1 h 0 min"), (11100, "3 h 5 min")]
)
def test_durations_are_said_as_people_do(seconds, said):
    assert duration(seconds) == said


def test_a_run_says_first_what_it_trains_on_what(text_file, tmp_path, capsys):
    shape = {
        "vocab_size": 100,
        "hidden_size": 32,
        "num_layers": 1,
        "num_thoughts": 4,
        "seq_length": 32,
        "batch_size": 8,
    }
    train(TrainSettings(train_file=str(text_file), output_dir=str(tmp_path / "run"), max_steps=2, **shape))
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("training "))
    pattern = r"training [\d,]+ parameters on .+ in float32: 2 steps of 8 rows; [\d,]+ tokens in \d+ rows"
    assert re.fullmatch(pattern, line), line
