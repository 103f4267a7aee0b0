"""A run's directory: claim it without losing anything else, and know a checkpoint that can be gone on from.

A directory that a run has claimed holds `run.json` (its settings). That file is what makes --overwrite willing to remove
what the run wrote there; nothing else in the directory is ever touched.
"""

import json
import os
import shutil
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

MARK = "run.json"
WRITTEN = (
    MARK,
    "metrics.jsonl",
    "curves.png",
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
)
WRITTEN += ("tokenizer*.json", "special_tokens_map.json", "chat_template.jinja", "training_args.bin", "checkpoint-*")
CHECKPOINT_FILES = (
    "config.json",
    "model.safetensors",
    "trainer_state.json",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
)


def claim(output_dir: str, overwrite: bool, resume_from: str | None, settings: dict) -> str:
    """Make `output_dir` this run's own and write its settings there.

    Raises ValueError, with everything as it was, if the directory holds another run (unless `overwrite`, or `resume_from`
    is one of that run's checkpoints) or something that is not a run at all.
    """
    directory = Path(output_dir)
    goes_on = resume_from is not None and Path(resume_from).resolve().parent == directory.resolve()
    if os.path.exists(directory) and not directory.is_dir():
        raise ValueError(f"--output_dir {output_dir}: is a file; give a directory")
    if os.path.isdir(directory) and any(directory.iterdir()) and not goes_on:
        if not (directory / MARK).is_file():
            raise ValueError(
                f"--output_dir {output_dir}: holds files that are not a run's; give an empty or a new directory"
            )
        if not overwrite:
            raise ValueError(
                f"--output_dir {output_dir}: already holds a run; give another, --overwrite it, or --resume_from one of its checkpoints"
            )
        for path in [path for pattern in WRITTEN for path in directory.glob(pattern)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / MARK).write_text(json.dumps(settings, indent=1) + "\n")
    except OSError as e:
        raise ValueError(
            f"--output_dir {output_dir}: cannot be written ({e.strerror}); give another directory"
        ) from None
    return output_dir


def resumable(path: str, shape: dict[str, int]) -> str:
    """The checkpoint directory, if all its parts are whole and its config.json has this `shape`. Raises ValueError if not.

    The Trainer itself would go on with a fresh optimizer where optimizer.pt is missing, without a word.
    """
    directory = Path(path)
    if not os.path.isdir(directory):
        raise ValueError(f"--resume_from {path}: no such directory; give a checkpoint-STEP directory of the run")
    missing = [name for name in CHECKPOINT_FILES if not (directory / name).is_file()]
    if missing:
        raise ValueError(
            f"--resume_from {path}: {', '.join(missing)} missing; give a complete checkpoint-STEP directory"
        )
    broken = [name for name in CHECKPOINT_FILES if not _whole(directory / name)]
    if broken:
        raise ValueError(
            f"--resume_from {path}: {', '.join(broken)} half-written; give an earlier checkpoint-STEP directory"
        )
    config = json.loads((directory / "config.json").read_text())
    for name, value in shape.items():
        if config.get(name) != value:
            raise ValueError(
                f"--resume_from {path}: has {name} {config.get(name)}, these flags and data make {value}; give the run's own"
            )
    return path


def _whole(file: Path) -> bool:
    """Can a file be opened to its end? Nothing is unpickled: torch's files are zip archives, whose directory comes last."""
    try:
        if file.suffix == ".json":
            json.loads(file.read_text())
        elif file.suffix == ".safetensors":
            with safe_open(file, "pt"):
                pass
        else:
            return zipfile.is_zipfile(file)
    except (ValueError, SafetensorError):
        return False
    return True
