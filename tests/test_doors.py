"""The commands as a person runs them, each in a process of its own: what they print and write, and reading it back."""

import hashlib
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from mot import cli
from mot.model.tokenizer import encode

# The guide's flags with their defaults. None: the default is derived, or there is none.
FLAGS = {
    "train_file": None,
    "eval_file": None,
    "task": None,
    "vocab_size": "50257",
    "tokenizer": None,
    "hidden_size": "768",
    "num_layers": "12",
    "num_heads": None,
    "num_thoughts": "8",
    "seq_length": "256",
    "batch_size": "32",
    "num_epochs": "10",
    "max_steps": None,
    "learning_rate": None,
    "warmup_ratio": "0.1",
    "weight_decay": "",
    "diversity_weight": "0.1",
    "entropy_weight": "0.05",
    "gradient_accumulation_steps": "1",
    "fp16": None,
    "bf16": None,
    "compile": None,
    "num_workers": "",
    "seed": "42",
    "output_dir": None,
    "run_name": None,
    "save_every": None,
    "resume_from": None,
    "use_wandb": None,
    "config": None,
    "dry_run": None,
}
SMALL = shlex.split(
    "--vocab_size 100 --hidden_size 32 --num_layers 2 --num_thoughts 4 --seq_length 32 --batch_size 8 "
    "--gradient_accumulation_steps 2 --max_steps 6 --save_every 2 --eval_every 3"
)


@pytest.fixture(scope="module")
def call(root):
    """Run python with these arguments in `cwd`, as from a shell, and return what it printed."""

    def run(*args, cwd: Path) -> str:
        environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
        done = subprocess.run(
            [sys.executable, *map(str, args)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module")
def mot_command(call, root):
    """The console script `mot`, whether it is installed or not."""
    return lambda *args, cwd: call("-c", "from mot.cli import main; main()", *args, cwd=cwd)


@pytest.fixture(scope="module")
def trained(call, root, text_file, tmp_path_factory) -> tuple[Path, str]:
    """A run's directory, written by `python train_mot.py` started in its parent, and what the command printed."""
    here = tmp_path_factory.mktemp("door")
    out = call(root / "train_mot.py", "--train_file", text_file, *SMALL, "--output_dir", "run", cwd=here)
    return here / "run", out


# Help ---------------------------------------------------------------------------------------------------------------


def test_help_lists_every_flag_with_its_default(call, root, tmp_path):
    text = call(root / "train_mot.py", "--help", cwd=tmp_path)
    entries = {}
    for line in text.splitlines():
        if found := re.match(r"  --(\w+)", line):
            entries[name := found[1]] = ""
        if entries:
            entries[name] += " " + line.strip()
    assert set(FLAGS) <= set(entries)
    for name, default in FLAGS.items():
        if default is not None:
            assert re.search(rf"\[{re.escape(default)}\b", entries[name]), entries[name]
    assert not any("%%" in entry for entry in entries.values())


@pytest.mark.parametrize(
    ("door", "mistake"),
    [
        ("train_mot.py", "--task forks --num_thoughts 0"),
        ("evaluate_diversity.py", "--model m --task forks --num_thoughts 0"),
        ("train_lora_mot.py", "--base_model m --task forks --lora_rank 0"),
        ("serve_mot.py", "--model m --port 65536"),
    ],
)
def test_parsing_loads_no_torch(call, root, tmp_path, door, mistake):
    """So --help and mistakes answer at once."""
    code = f"""
import contextlib, io, runpy, sys
for argv in (["--help"], ["--hiden_size", "4"], {mistake.split()}):
    sys.argv = [{door!r}, *argv]
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        runpy.run_path({str(root / door)!r}, run_name="__main__")
        raise AssertionError(argv)
print([name for name in ("torch", "transformers", "numpy") if name in sys.modules])
"""
    assert call("-c", code, cwd=tmp_path) == "[]\n"


def test_mot_alone_lists_its_commands(mot_command, capsys, tmp_path):
    text = mot_command("--help", cwd=tmp_path)
    for command in cli.COMMANDS:
        assert re.search(rf"^  {command} +\w", text, re.MULTILINE), command
    cli.main([])
    assert capsys.readouterr().out == text


FLAG_OF = {
    "train": "--num_thoughts",
    "adapt": "--lora_rank",
    "think": "--creativity",
    "evaluate": "--baselines",
    "export": "--merge",
    "serve": "--drain_seconds",
    "data": "--max_megabytes",
    "report": "RUN",
    "cost": "--gpu",
}


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_mot_commands_have_help(command, capsys):
    if command == "cloud":  # its actions have flags, it has none
        cli.main([command, "--help"])
        assert "mot cloud gce create|" in capsys.readouterr().out
        return
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    assert FLAG_OF[command] in capsys.readouterr().out


# Training -----------------------------------------------------------------------------------------------------------


def test_dry_run_prints_what_a_run_would_cost_and_writes_nothing(trained, text_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cli.run(cli.train, ["--train_file", str(text_file), *SMALL, "--output_dir", "dry", "--dry_run"])
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert list(tmp_path.iterdir()) == []
    model = AutoModelForCausalLM.from_pretrained(trained[0])
    assert lines["parameters"] == f"{model.num_parameters():,}"
    assert lines["tokens"].startswith("1,792 to train on in 56 rows, 192 held out in 6 rows")
    assert lines["steps"].startswith("6 of 16 rows: 1.71 epochs, 3,072 tokens")
    assert re.match(r"about \d+\.\d\d GiB", lines["memory"])


def test_training_writes_an_ordinary_checkpoint_and_the_record_of_the_run(trained):
    run, _ = trained
    for name in ("model.safetensors", "tokenizer.json", "generation_config.json", "metrics.jsonl", "run.json"):
        assert (run / name).stat().st_size > 0
    config = json.loads((run / "config.json").read_text())
    vocabulary = json.loads((run / "tokenizer.json").read_text())["added_tokens"]
    ids = [token["id"] for token in vocabulary if re.fullmatch(r"<\|thought_[0-3]\|>", token["content"])]
    assert config["model_type"] == "llama"
    assert config["mot"] == {"num_thoughts": 4, "thought_token_ids": ids}
    assert len(ids) == 4
    assert (run / "report" / "nll.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]


def test_the_end_of_training_prints_the_results_and_what_to_try_next(trained):
    run, out = trained
    last = [m for m in metrics(run) if "eval_base_nll" in m][-1]
    for label, name in (("base NLL", "base_nll"), ("mixture NLL", "mixture_nll"), ("effective", "effective_thoughts")):
        assert re.search(rf"{label}.*{last[f'eval_{name}']:.4f}", out), out
    for written in ("run/", "run/metrics.jsonl", "run/report/index.html", "mot think --model run --prompt"):
        assert written in out


def test_the_command_to_try_next_can_be_copied_whole(text_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    run = tmp_path / "a run [bold] with a name that is longer than half a line"
    cli.run(cli.train, ["--train_file", str(text_file), *SMALL, "--max_steps", "1", "--output_dir", str(run)])
    out = capsys.readouterr().out
    for written in (
        f"{run}/metrics.jsonl",
        f"{run}/report/index.html",
        f"mot think --model {shlex.quote(str(run))} --prompt",
    ):
        assert written in out


@pytest.mark.parametrize("name", ["a_rather_long_name_of_a_run_with_8_thoughts", "{odd} [bold]name"])
def test_progress_fits_a_terminal_of_80_columns(text_file, tmp_path, monkeypatch, capsys, name):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")  # to rich this is a terminal
    flags = [*SMALL, "--run_name", name, "--output_dir", str(tmp_path / "run")]
    cli.run(cli.train, ["--train_file", str(text_file), *flags])
    screen = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err).replace("\r", "\n")
    for shown in (r"\b6/6\b", r"\blm \d\.\d\d", r"\d tokens/s", r"left -?\d?:?\d\d:\d\d"):
        assert re.search(shown, screen), screen[-1000:]


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_metrics_hold_each_loss(trained):
    lines = metrics(trained[0])
    assert all(math.isfinite(value) for m in lines for value in m.values())
    training, evaluations = [m for m in lines if "lm_loss" in m], [m for m in lines if "eval_base_nll" in m]
    assert [m["step"] for m in training] == [1, 2, 3, 4, 5, 6]
    assert [m["step"] for m in evaluations] == [3, 6]
    for m in training:
        names = {"loss", "learning_rate", "grad_norm", "lm_loss", "router_loss", "entropy"}
        assert names | {"tokens_per_second", "effective_thoughts"} <= set(m)
        assert "diversity" not in m or m["step"] > 0.6 * 6  # only after the anneal
        assert m["lm_loss"] > 0
        assert m["router_loss"] > 0
        assert m.get("diversity", 0) >= 0
        assert 0 < m["entropy"] <= math.log(4) + 1e-6
        assert 1 <= m["effective_thoughts"] <= 4
        assert m["tokens_per_second"] > 0
    for m in evaluations:
        assert m["eval_oracle_nll"] <= m["eval_mixture_nll"]
        assert 0 <= m["eval_specialisation"] <= 1
        assert 1 <= m["eval_effective_thoughts"] <= 4


def test_training_ends_with_the_line_of_the_task(forks_line, call, root, tmp_path):
    small = (
        "--hidden_size 32 --num_layers 1 --num_thoughts 4 --seq_length 24 --batch_size 16 --max_steps 2 --eval_rows 16"
    )
    out = call(root / "train_mot.py", "--task", "forks", *small.split(), cwd=tmp_path)
    assert re.fullmatch(forks_line, out.splitlines()[-1]), out
    assert out.count("thought 0") == out.count("thought 3") == 1
    assert (tmp_path / "outputs" / "forks-4thoughts-seed42" / "model.safetensors").is_file()


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_resumed_run_is_the_run_that_never_stopped(call, root, trained, text_file, tmp_path):
    run, _ = trained
    stopped = tmp_path / "run"  # as if the machine had stopped before checkpoint-4, with metrics.jsonl already ahead
    stopped.mkdir()
    shutil.copytree(run / "checkpoint-2", stopped / "checkpoint-2")
    for name in ("run.json", "metrics.jsonl"):
        shutil.copy(run / name, stopped)
    flags = [*SMALL, "--output_dir", "run", "--resume_from", "run/checkpoint-2"]
    call(root / "train_mot.py", "--train_file", text_file, *flags, cwd=tmp_path)
    assert sha(stopped / "model.safetensors") == sha(run / "model.safetensors")
    ours, theirs = ((folder / "metrics.jsonl").read_text().splitlines() for folder in (stopped, run))
    assert ours[:2] == theirs[:2]  # kept: these lines have the first run's tokens per second
    assert [untimed(line) for line in ours] == [untimed(line) for line in theirs]


def untimed(line: str) -> dict[str, float]:
    measured = ("tokens_per_second", "peak_memory_gib")
    return {name: value for name, value in json.loads(line).items() if name not in measured}


# Reading it back ----------------------------------------------------------------------------------------------------

PLAIN = """
import json, sys
sys.modules["mot"] = None  # importing it is an error from here on
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = AutoModelForCausalLM.from_pretrained("run"), AutoTokenizer.from_pretrained("run")
prompt = tokenizer("the king", add_special_tokens=False)["input_ids"]
ids = torch.tensor([prompt + [model.config.mot["thought_token_ids"][1]]])
with torch.no_grad():
    logits = model(ids).logits
torch.manual_seed(0)
sampled = {"do_sample": True, "temperature": 2.0, "num_return_sequences": 4}
new = model.generate(ids, max_new_tokens=200, **sampled)[:, ids.shape[1]:]
assert not [name for name in sys.modules if name.startswith("mot.")]
torch.save({"class": type(model).__name__, "ids": ids, "logits": logits, "new": new}, "plain.pt")
"""


def test_plain_transformers_loads_it_and_gives_the_same_logits(call, trained):
    run, _ = trained
    call("-P", "-c", PLAIN, cwd=run.parent)
    plain = torch.load(run.parent / "plain.pt")
    from mot.inference.think import MixtureOfThoughts

    mixture = MixtureOfThoughts.from_pretrained(str(run))
    assert plain["class"] == "LlamaForCausalLM"
    assert plain["ids"].tolist() == [[*encode(mixture.tokenizer, ["the king"], "text")[0], mixture.thoughts[1]]]
    with torch.no_grad():
        # Two processes may split a sum over different numbers of threads, which changes fp32 rounding only.
        torch.testing.assert_close(mixture.model(plain["ids"]).logits, plain["logits"], rtol=0, atol=1e-6)
    assert not set(plain["new"].flatten().tolist()) & set(mixture.thoughts)  # a thought is never generated


# Thinking -----------------------------------------------------------------------------------------------------------


def test_think_in_json_is_one_line_per_thought_and_the_same_for_the_same_seed(mot_command, trained, capsys):
    run, _ = trained
    flags = ["--prompt", "the king", "--num_thoughts", "3", "--max_new_tokens", "12", "--temperature", "1", "--json"]
    elsewhere = mot_command("think", "--model", "run", *flags, "--seed", "7", cwd=run.parent)
    thoughts = [json.loads(line) for line in elsewhere.splitlines()]
    assert len(thoughts) == len({t["index"] for t in thoughts}) == 3
    assert all(0 <= t["index"] < 4 and 0 < t["probability"] < 1 and t["mean_logprob"] < 0 for t in thoughts)
    assert sum(t["probability"] for t in thoughts) < 1
    assert [t["probability"] for t in thoughts] == sorted((t["probability"] for t in thoughts), reverse=True)
    assert all(isinstance(t["text"], str) and len(t["token_ids"]) <= 12 for t in thoughts)

    def texts(*more: str) -> dict[int, str]:
        cli.main(["think", "--model", str(run), *flags, *more])
        return {t["index"]: t["text"] for t in map(json.loads, capsys.readouterr().out.splitlines())}

    assert texts("--seed", "7") == {t["index"]: t["text"] for t in thoughts}
    assert texts("--seed", "8") != texts("--seed", "7")
    every = texts("--seed", "7", "--num_thoughts", "4")
    assert every.items() >= texts("--seed", "7").items()  # the text of a thought does not depend on the others


@pytest.mark.parametrize("k", [1, 4])
def test_think_shows_thoughts_side_by_side(trained, capsys, monkeypatch, k):
    monkeypatch.setenv("COLUMNS", "200")
    args = f"think --model {trained[0]} --num_thoughts {k} --max_new_tokens 12 --temperature 0".split()
    cli.main([*args, "--prompt", "the king"])
    out = capsys.readouterr().out
    headings = re.findall(r"thought (\d)  p (\d\.\d\d)", out)
    assert len(headings) == len({index for index, _ in headings}) == k
    assert out.splitlines()[0].count("thought") == k  # in one row, because the terminal is wide enough
    assert out.count("nats/token") == k


def test_think_follows_every_thought_by_default_and_repeats_some_if_asked_for_more(trained, capsys):
    args = ["think", "--model", str(trained[0]), "--prompt", "the king", "--max_new_tokens", "3", "--json"]
    cli.main(args)
    assert len(capsys.readouterr().out.splitlines()) == 4
    cli.main([*args, "--num_thoughts", "6", "--temperature", "1"])
    indices = [json.loads(line)["index"] for line in capsys.readouterr().out.splitlines()]
    assert sorted(indices.count(k) for k in range(4)) == [1, 1, 2, 2]


# Set-up -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_setup_script_parses_and_finds_its_own_folder(root, tmp_path, shell):
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    script = root / "setup_env.sh"
    subprocess.run([shell, "-n", str(script)], check=True)
    here = next(line for line in script.read_text().splitlines() if line.startswith("_mot_here="))
    (tmp_path / "a folder").mkdir()
    (tmp_path / "a folder" / "probe.sh").write_text(f'{here}\nprintf %s "$_mot_here"\n')
    done = subprocess.run(
        [shell, "-c", 'source "a folder/probe.sh"'], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == (str(tmp_path / "a folder"), "")
