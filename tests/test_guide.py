"""docs/training_guide.md from top to bottom, as a person follows it: runs all that needs no network and no GPU."""

import contextlib
import io
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from documents import FENCE, PARSED
from fake_gcloud import install, understand

from mot import cli
from mot.runtime.flags import parse

GUIDE = Path(__file__).parent.parent / "docs" / "training_guide.md"
# These flags make a command of the page take seconds. They stand last, so they win.
TINY = shlex.split("--hidden_size 32 --num_layers 1 --seq_length 32 --max_steps 2 --eval_rows 4")
TINY_EVALUATION = shlex.split("--num_prompts 6 --seeds 1 --baselines temperature --measures none --max_new_tokens 4")
# The section of the user's guide, and the section of ours that replaces it.
SECTIONS = {
    "Quick Start (Local)": "Quick start",
    "1. Download Sample Data": "1. Set up, get a text",
    "2. Train Locally": "2. Train",
    "3. Monitor Training": "3. Watch",
    "Cloud Training (GCP)": "Cloud training",
    "Option A: Google Compute Engine VM": "A. A machine of your own: Compute Engine",
    "Option B: Google Colab (Free/Pro)": "B. A notebook: Colab",
    "Option C: Vertex AI Training": "C. A managed job: Vertex AI",
    "Cloud Cost Comparison": "What it costs",
    "Training Tips": "Tips",
    "1. Start Small": "Start small",
    "2. Monitor GPU Usage": "Is the GPU busy?",
    "3. Adjust Hyperparameters": "Which flags make thoughts more, or less, different",
    "4. Resume from Checkpoint": "Resume",
    "Next Steps": "Next steps",
    "Troubleshooting": "Troubleshooting",
    "Out of Memory": "Out of memory",
    "Slow Training": "Slow",
    "NaN Loss": "NaN, or a loss that jumps",
    "Support": "Support",
}


def commands() -> list[str]:
    text = "\n".join(body for kind, body in FENCE.findall(GUIDE.read_text()) if kind == "bash")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_the_page_works_from_top_to_bottom(tmp_path, monkeypatch, text_file):
    install(tmp_path / "fake", tmp_path / "here", monkeypatch)
    monkeypatch.setenv("WANDB_MODE", "offline")
    Path("data").mkdir()
    for name in ("shakespeare", "wikitext103", "openwebtext"):  # as if downloaded: no network here
        Path(f"data/{name}.txt").write_text("ROMEO: " + text_file.read_text().replace("the king", "ROMEO:"))
    ran = []
    for command in commands():
        args = shlex.split(command.removeprefix("WANDB_MODE=offline "))
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            match args:
                case ["python", "train_mot.py", *flags]:
                    cli.run(cli.train, [*flags, *TINY])
                    settings = parse(PARSED["train_mot.py"], flags, "train_mot.py", "")
                    assert settings.dry_run or Path(settings.output(), "model.safetensors").is_file(), command
                case ["python", "evaluate_diversity.py", *flags]:
                    cli.run(cli.evaluate, [*flags, *TINY_EVALUATION])
                    assert "verdict" in printed.getvalue().lower()
                case ["mot", "think", *flags]:
                    cli.main(["think", *flags, "--max_new_tokens", "3"])
                    assert printed.getvalue().count("thought ") == 8
                case ["mot", "data" | "report" | "cost", *_]:
                    cli.main(args[1:])
                    assert printed.getvalue()
                case ["mot", "cloud", *_]:
                    cli.main(args[1:])
                    if "sdk" not in args:
                        subprocess.run(["bash", "-e", "-c", printed.getvalue()], check=True)
                case ["gcloud", *flags]:
                    understand(flags)
                case ["mkdir" | "echo", *_]:
                    subprocess.run(["bash", "-e", "-c", command], check=True)
                case ["git" | "source" | "wandb", *_] | ["python", "train_lora_mot.py" | "serve_mot.py", *_]:
                    continue  # law 9 parses these: they need a network, a shell, a login, a base model or a port
                case _:
                    pytest.fail(f"no rule to run this command: {command}")
        ran.append(command)
    assert len(ran) >= 40
    assert Path("data/rows.jsonl").read_text().count("prompt") == 1
    calls = (tmp_path / "fake" / "calls").read_text()
    for seen in ("instances create", "custom-jobs create", "builds submit", "instances delete"):
        assert seen.replace(" ", '", "') in calls


def test_the_table_of_costs_is_what_mot_cost_prints():
    text = GUIDE.read_text()
    (command,) = [line for line in commands() if line.startswith("mot cost")]
    (table,) = [body for kind, body in FENCE.findall(text) if kind == "text"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        cli.main(shlex.split(command)[1:])
    assert out.getvalue() == table


@pytest.mark.parametrize(
    ("flags", "gpu", "dollars"),
    [
        ("--hidden_size 768 --num_layers 12 --tokens 1e8", "l4", "0.75"),
        ("--hidden_size 768 --num_layers 12 --tokens 1e9", "l4", "7.50"),
        ("--hidden_size 768 --num_layers 12 --tokens 1e9 --spot", "l4", "3.00"),
        ("--hidden_size 1024 --num_layers 24 --tokens 1e10 --batch_size 16 --spot", "h100", "125"),
    ],
)
def test_examples_of_costs_are_those_of_mot_cost(flags, gpu, dollars):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        cli.main(["cost", *flags.split(), "--gpu", gpu])
    row = next(line for line in out.getvalue().splitlines() if line.startswith(gpu))
    assert float(row.split()[4].replace(",", "")) == pytest.approx(float(dollars), rel=0.02)
    assert f"${dollars}" in GUIDE.read_text()
    assert "too much" not in row


def test_every_row_of_the_feature_table_has_a_command_that_is_understood():
    table = GUIDE.read_text().split("## Everything the first guide promised")[1]
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(rows) >= 18
    seen = 0
    for row in rows:
        codes = re.findall(r"`([^`]+)`", row.split("|")[2])
        assert codes, row
        for args in map(shlex.split, codes):
            match args:
                case ["python", door, *flags] if door in PARSED:
                    parse(PARSED[door], flags, door, "")
                case ["mot", "cloud", *flags] if len(flags) > 2:
                    with contextlib.redirect_stdout(io.StringIO()):
                        cli.main(["cloud", *flags])
                case ["mot", name, *flags] if f"mot {name}" in PARSED:
                    parse(PARSED[f"mot {name}"], flags, f"mot {name}", "")
                case [flag, *value] if flag.startswith("--"):
                    name = flag.removeprefix("--")
                    assert name in PARSED["train_mot.py"].__dataclass_fields__
                    if value:
                        parse(PARSED["train_mot.py"], ["--task", "forks", flag, *value], "train_mot.py", "")
                case _:
                    continue
            seen += 1
    assert seen >= 23


def test_no_section_of_the_first_guide_is_missing(root):
    ours = re.findall(r"^#{2,4} (.+)$", GUIDE.read_text(), re.MULTILINE)
    assert set(SECTIONS.values()) <= set(ours)
    guide = root.parent / "shared" / "guide.md"
    if not guide.is_file():
        pytest.skip("the user's guide (../shared/guide.md) is not here")
    theirs = re.sub(r"```.*?```", "", guide.read_text(), flags=re.DOTALL)
    assert set(re.findall(r"^#{2,3} (.+)$", theirs, re.MULTILINE)) == set(SECTIONS)


def test_other_programs_commands_are_known(root):
    """`console` blocks hold commands of other programs. Each was tried or read once; a new one fails this test."""
    pages = [GUIDE, GUIDE.parent / "cloud.md"]
    blocks = [body for page in pages for kind, body in FENCE.findall(page.read_text()) if kind == "console"]
    lines = [line.removeprefix("$ ") for body in blocks for line in body.splitlines() if line.startswith("$ ")]
    assert lines == [
        'python3 -m venv ~/.sky && ~/.sky/bin/pip install "skypilot[gcp]"',
        "~/.sky/bin/sky jobs launch configs/sky.yaml --env DATA=gs://my-bucket/train.txt --env OUTPUT=gs://my-bucket/runs/one",
        "watch -n 1 nvidia-smi",
    ]
