"""A run writes the files, keys and defaults that it wrote before the code moved into folders (commit dca3962).

That commit made written.json. A difference may break scripts, reports or resumed runs of users, so change written.json
on purpose or not at all.
"""

import json
from pathlib import Path

import pytest
from adapted import settings

from mot.training.run import train

WRITTEN = json.loads(Path(__file__).with_name("written.json").read_text())


def keys_of(file: Path) -> list[str]:
    """The keys of a JSON object, or of all lines of a JSONL file together."""
    lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
    return sorted({key for line in lines for key in json.loads(line)})


def describe(run: Path, checkpoint: str) -> dict:
    """Names, keys and settings of a run, without measurements, digests and paths."""
    ours = [f for f in ("mot.json", "metrics.jsonl", "samples.jsonl") if (run / f).is_file()]
    ours += [f"{checkpoint}/{name}" for name in ("manifest.json", "watch.json")]
    config = json.loads((run / "config.json").read_text())["mot"] if (run / "config.json").is_file() else None
    named = json.loads((run / "run.json").read_text())
    paths = ("train_file", "output_dir", "base_model")
    manifest = json.loads((run / checkpoint / "manifest.json").read_text())
    generation = json.loads((run / "generation_config.json").read_text())
    return {
        "files": sorted(str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()),
        "keys": {name: keys_of(run / name) for name in ours},
        "config.json: mot": config,
        "generation_config.json: suppress_tokens": generation["suppress_tokens"],
        "run.json": {key: value for key, value in named.items() if key not in paths},
        "manifest.json: facts": sorted(manifest["facts"]),
        "manifest.json: files": sorted(manifest["files"]),
        "manifest.json: format": manifest["format"],
    }


def test_a_run_writes_the_files_and_keys_it_always_wrote(text_run):
    assert describe(text_run, "checkpoint-4") == WRITTEN["run"]


@pytest.mark.slow
def test_an_adapter_writes_the_files_and_keys_it_always_wrote(adapter_rows, tmp_path):
    from bases import make

    run = tmp_path / "run"
    train(settings(make("llama", tmp_path / "base"), train_file=str(adapter_rows), output_dir=str(run), max_steps=2))
    assert describe(run, "checkpoint-2") == WRITTEN["adapter"]
    assert keys_of(run / "mot.json") == ["base", "num_thoughts", "thought_token_ids"]
