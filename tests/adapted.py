"""How the tests adapt the tiny pretrained models of tests/bases.py. The fixture `made` (conftest.py) makes them.

base, run, merged = made("gemma3")     # directories: a base, 20 steps of LoRA on it, `mot export --merge` of that
train(settings(base, train_file=..., output_dir=..., max_steps=2))
"""

import dataclasses
import json
from pathlib import Path

import torch
from bases import make

from mot import cli
from mot.training.run import train
from mot.training.settings import AdaptSettings

N = 4
PROMPT, COMPLETION = "the quick brown fox, n = 7", " is 7"  # longer than a sliding window of the bases


def settings(base: Path, **more) -> AdaptSettings:
    small = {"num_thoughts": N, "seq_length": 48, "batch_size": 8, "max_steps": 20, "lora_rank": 4, "eval_rows": 4}
    return AdaptSettings(base_model=str(base), **(small | more))


def write_rows(path: Path) -> Path:
    """40 rows `{"prompt": "the quick brown fox, n = 7", "completion": " is 7"}`."""
    lines = [{"prompt": f"the quick brown fox, n = {n}", "completion": f" is {n}"} for n in range(40)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def adapt_and_merge(architecture: str, rows: Path, folder: Path) -> tuple[Path, Path, Path]:
    """(base, adapter, merged) directories."""
    base = make(architecture, folder / "base")
    with torch.enable_grad():  # the first test that asks may run without gradients
        asked = settings(base, train_file=str(rows), output_dir=str(folder / "run"), learning_rate=5e-3)
        train(dataclasses.replace(asked, save_every=10))
    cli.run(cli.export, ["--model", str(folder / "run"), "--merge", "--output_dir", str(folder / "merged")])
    return base, folder / "run", folder / "merged"


def metrics(run: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
