"""A run's directory: claim it without losing another run, and know a checkpoint that can be gone on from.

A directory that a run has claimed holds `run.json` (its settings). That file is what makes --overwrite willing to remove it.
"""

import json
import shutil
from pathlib import Path

MARK = "run.json"
CHECKPOINT_FILES = (
    "model.safetensors",
    "config.json",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
)


def claim(output_dir: str, overwrite: bool, resuming: bool, settings: dict) -> str:
    """Make `output_dir` this run's own and write its settings there.

    Raises ValueError, with everything as it was, if the directory holds another run (unless `overwrite` or `resuming`) or
    something that is not a run at all.
    """
    directory = Path(output_dir)
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"--output_dir {output_dir}: is a file; give a directory")
    if directory.exists() and any(directory.iterdir()) and not resuming:
        if not (directory / MARK).is_file():
            raise ValueError(
                f"--output_dir {output_dir}: holds files that are not a run's; give an empty or a new directory"
            )
        if not overwrite:
            raise ValueError(
                f"--output_dir {output_dir}: already holds a run; give another, --overwrite it, or --resume_from one of its checkpoints"
            )
        shutil.rmtree(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / MARK).write_text(json.dumps(settings, indent=1) + "\n")
    except OSError as e:
        raise ValueError(
            f"--output_dir {output_dir}: cannot be written ({e.strerror}); give another directory"
        ) from None
    return output_dir


def resumable(path: str) -> str:
    """The checkpoint directory, if all its parts are there. Raises ValueError naming what is missing.

    The Trainer itself would go on with a fresh optimizer where optimizer.pt is missing, without a word.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise ValueError(f"--resume_from {path}: no such directory; give a checkpoint-STEP directory of the run")
    missing = [name for name in CHECKPOINT_FILES if not (directory / name).is_file()]
    if missing:
        raise ValueError(
            f"--resume_from {path}: {', '.join(missing)} missing; give a complete checkpoint-STEP directory"
        )
    return path
