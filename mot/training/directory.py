"""A run's directory: whose it is, what a run writes there, and what must not lie there.

require_ours(output_dir)                           # ValueError for a file, a dead link, or somebody else's files
claim(output_dir, overwrite, goes_on, settings)    # run.json: this directory belongs to a run
require_space(output_dir, bytes)
"""

import json
import os
import shutil
from fnmatch import fnmatch
from pathlib import Path

from mot.runtime.files import atomic_write_text
from mot.runtime.lock import NAME as LOCK
from mot.runtime.remote import is_remote, step_of

MARK = "run.json"
HISTORY = ("metrics.jsonl", "samples.jsonl", "wandb_run_id")  # what a run has logged so far: a checkpoint has copies
WRITTEN = (
    MARK,
    *HISTORY,
    "report",
    "tensorboard",
    "trackio",
    "wandb",
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "adapter_config.json",
    "mot.json",
    "generation_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "README.md",
    ".partial",
)
INPUTS = ("train_file", "eval_file", "general_file", "tokenizer", "base_model", "resume_from")


def require_ours(output_dir: str) -> None:
    """Raise ValueError if `output_dir` cannot become a run's directory, or holds files that belong to no run."""
    directory = Path(output_dir)
    if os.path.islink(directory) and not os.path.exists(directory):
        raise ValueError(
            f"--output_dir {output_dir}: is a link to {os.readlink(directory)}, which is not there; "
            "make that directory, or give another"
        )
    if os.path.exists(directory) and not directory.is_dir():
        raise ValueError(f"--output_dir {output_dir}: is a file; give a directory")
    if os.path.isdir(directory) and not (directory / MARK).is_file() and _others(directory):
        raise ValueError(
            f"--output_dir {output_dir}: holds files that are not a run's; give an empty or a new directory"
        )


def claim(output_dir: str, overwrite: bool, goes_on: bool, settings: dict) -> None:
    """Make `output_dir` this run's own and write its settings there.

    Raises ValueError, and changes nothing, if the directory holds another run (unless `overwrite`, or this run
    `goes_on` from it), files that belong to no run, or an input of this run where a run writes.
    """
    directory = Path(output_dir)
    require_ours(output_dir)
    if os.path.isdir(directory) and _others(directory):
        if not overwrite and not goes_on:
            raise ValueError(
                f"--output_dir {output_dir}: already holds a run; give another, --overwrite it, or resume with "
                "--resume_from auto"
            )
        _require_no_input(output_dir, goes_on, settings)
        for path in [] if goes_on else [path for path in directory.iterdir() if is_written(path.name)]:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        atomic_write_text(directory / MARK, json.dumps(settings, indent=1) + "\n")
    except OSError as e:
        raise ValueError(
            f"--output_dir {output_dir}: cannot be written ({e.strerror}); give another directory"
        ) from None


def is_written(name: str) -> bool:
    """Is it the name of something that a run writes into its directory, and that --overwrite removes?"""
    return step_of(name) is not None or any(fnmatch(name, pattern) for pattern in WRITTEN)


def _others(directory: Path) -> bool:
    return any(path.name != LOCK for path in directory.iterdir())


def _require_no_input(output_dir: str, goes_on: bool, settings: dict) -> None:
    """Raise ValueError if a file or directory that the run reads lies among those that it writes or removes."""
    directory = Path(output_dir).resolve()
    for name in INPUTS:
        value = settings.get(name)
        if not value or is_remote(value) or not Path(value).exists():
            continue
        if goes_on and name in ("tokenizer", "resume_from"):  # nothing is removed, and a tokenizer is written as it was
            continue
        given = Path(value)
        for path in {given.resolve(), given.parent.resolve() / given.name}:  # a link, and what it leads to
            inside = path.relative_to(directory).parts if path.is_relative_to(directory) else None
            if inside is not None and (not inside or is_written(inside[0])):
                raise ValueError(
                    f"--{name} {value}: lies in --output_dir {output_dir}, where the run writes and --overwrite "
                    "removes; give another --output_dir"
                )


def require_space(output_dir: str, needed: int) -> None:
    """Raise ValueError if the disk under `output_dir` has less than `needed` bytes free."""
    free = free_bytes(output_dir)
    if free < needed:
        raise ValueError(
            f"--output_dir {output_dir}: checkpoints and model need {needed / 2**20:,.0f} MiB and the disk has "
            f"{free / 2**20:,.0f} free; free some, give another directory, or a smaller --save_total_limit"
        )


def free_bytes(output_dir: str) -> int:
    """Return the free bytes of the disk that `output_dir`, which need not exist, is or would be on."""
    path = Path(output_dir).resolve()
    return shutil.disk_usage(next(p for p in [path, *path.parents] if os.path.isdir(p))).free
