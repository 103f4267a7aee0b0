"""The checkpoints of a run: seal one, check it, find the newest good one.

    seal(directory, step, facts)                       # manifest.json, written last: this checkpoint is complete
    check(directory)                                   # the manifest, or ValueError naming what is missing or damaged
    find(resume_from, output_dir)                      # the newest undamaged checkpoint
    differences(manifest, facts)                       # how this run differs from the run that wrote the checkpoint

A checkpoint is what transformers' Trainer writes (weights, optimizer, schedule, random states), our own state, and a
manifest with the size and sha256 of every file. A directory without a valid manifest is not a checkpoint.
"""

import hashlib
import json
import shutil
from pathlib import Path

from mot.runtime import remote
from mot.runtime.files import atomic_write_text, by_umask, sync
from mot.runtime.remote import MANIFEST, is_remote, step_of


def bytes_on_disk(directory: Path) -> int:
    """Return what the files of a directory take on a disk with blocks of 4 KiB."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in _files(directory).values())


def seal(directory: Path, step: int, facts: dict) -> None:
    """Write the manifest, which completes the checkpoint in `directory`. `facts` identify the run: `differences`."""
    by_umask(directory)
    files = {name: {"bytes": path.stat().st_size, "sha256": _digest(path)} for name, path in _files(directory).items()}
    for path in [*directory.rglob("*"), directory]:
        sync(path)
    body = {"format": 1, "step": step, "facts": facts, "files": files}
    atomic_write_text(directory / MANIFEST, json.dumps(body | {"sha256": _own_digest(body)}, indent=1) + "\n")
    sync(directory.parent)


def check(directory: Path) -> dict:
    """Return the manifest of a complete checkpoint with undamaged files.

    Raises ValueError that names what is missing, damaged, or not in the manifest. Nothing is unpickled.
    """
    if not directory.is_dir():
        raise ValueError(f"{directory}: no such directory")
    if not (directory / MANIFEST).is_file():
        raise ValueError(f"{directory}: has no {MANIFEST}, its save was not finished")
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
        body = {key: manifest[key] for key in ("format", "step", "facts", "files")}
        whole = manifest["sha256"] == _own_digest(body)
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise ValueError(f"{directory}: {MANIFEST} is damaged")
    outside = [name for name in body["files"] if not remote.is_inside(name)]
    if outside:
        raise ValueError(f"{directory}: {MANIFEST} names {outside[0]!r}, which is not a file of the checkpoint")
    there = _files(directory)
    wrong = [f"{name} is missing" for name in body["files"] if name not in there]
    wrong += [f"{name} is not in the manifest" for name in there if name not in body["files"]]
    if step_of(directory.name) not in (None, body["step"]):
        wrong.append(f"{MANIFEST} is of step {body['step']}")
    for name, written in body["files"].items():
        if name in there and there[name].stat().st_size != written["bytes"]:
            wrong.append(f"{name} has {there[name].stat().st_size:,} of {written['bytes']:,} bytes")
        elif name in there and _digest(there[name]) != written["sha256"]:
            wrong.append(f"{name} is damaged")
    if wrong:
        raise ValueError(f"{directory}: {', '.join(wrong)}")
    return body


def checkpoints(output_dir: str) -> list[Path]:
    """Return the directories checkpoint-STEP of a run, complete or not, oldest first."""
    found = [p for p in Path(output_dir).glob("checkpoint-*") if step_of(p.name) is not None and p.is_dir()]
    return sorted(found, key=lambda p: step_of(p.name))


def newest(output_dir: str) -> tuple[Path | None, dict, list[str]]:
    """Return directory and manifest of a run's newest undamaged checkpoint, and what is wrong with newer ones."""
    wrong = []
    for directory in reversed(checkpoints(output_dir)):
        try:
            return directory, check(directory), wrong
        except ValueError as e:
            wrong.append(str(e))
    return None, {}, wrong


def find(
    resume_from: str, output_dir: str, remote: str | None = None, scratch: str = ""
) -> tuple[Path | None, dict, list[str]]:
    """Return the checkpoint that `--resume_from` names: (directory or None, its manifest, lines to print).

    `auto`: the newest good checkpoint of `output_dir`, or of its `remote` original if that is newer; None if there is
    no good one. A run's directory: its newest good checkpoint. A checkpoint's directory: that one. Raises ValueError if
    the last two have none. Remote checkpoints are downloaded into the directory `scratch`.
    """
    if resume_from == "auto":
        directory, manifest, wrong = newest(output_dir)
        if remote:
            there, its, wrong_there = newest_remote(remote, scratch, newer_than=manifest.get("step", 0))
            if there:
                directory, manifest, wrong = there, its, wrong + wrong_there
        return directory, manifest, [f"skipped {line}" for line in wrong]
    if is_remote(resume_from):
        url, _, name = resume_from.rstrip("/").rpartition("/")
        run, name = (url, name) if step_of(name) is not None else (resume_from, None)
        directory, manifest, wrong = newest_remote(run, scratch, name)
    elif checkpoints(resume_from):
        directory, manifest, wrong = newest(resume_from)
    else:
        try:
            return Path(resume_from), check(Path(resume_from)), []
        except ValueError as e:
            other, _, _ = newest(str(Path(resume_from).parent))
            way_out = (
                f"--resume_from {other} is good" if other else "give a checkpoint-STEP directory of a run, or auto"
            )
            raise ValueError(f"--resume_from {e}; {way_out}") from None
    if directory is None:
        reasons = f": {'; '.join(wrong)}" if wrong else ""
        raise ValueError(f"--resume_from {resume_from}: has no good checkpoint{reasons}; give another run's")
    return directory, manifest, [f"skipped {line}" for line in wrong]


def newest_remote(
    run: str, scratch: str, only: str | None = None, newer_than: int = 0
) -> tuple[Path | None, dict, list[str]]:
    """`newest` of the run at a remote address, of all its checkpoints or `only` one name, downloaded and checked."""
    wrong = []
    for name in reversed(remote.checkpoints(run)):
        if step_of(name) > newer_than and only in (None, name):
            try:
                directory = Path(remote.download(f"{run}/{name}", scratch))
                return directory, check(directory), wrong
            except ValueError as e:
                wrong.append(str(e))
    return None, {}, wrong


def differences(manifest: dict, facts: dict) -> list[str]:
    """Return how `facts` (name: value) differ from those of the checkpoint, a line each."""
    before = manifest["facts"]
    return [
        name if isinstance(value, str) and len(value) == 64 else f"{name}: {before.get(name)}, not {value}"
        for name, value in facts.items()
        if before.get(name) != value
    ]


def discard(directory: Path) -> None:
    """Remove a checkpoint, manifest first: a partly removed one must not look complete."""
    (directory / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(directory, ignore_errors=True)


def prune(output_dir: str, keep: int, best: int | None) -> None:
    """Discard all that is older than the `keep` newest checkpoints with a manifest, also unfinished ones.

    The checkpoint of step `best` stays and is not counted.
    """
    others = [p for p in checkpoints(output_dir) if step_of(p.name) != best]
    sealed = [p for p in others if (p / MANIFEST).is_file()]
    for directory in others if len(sealed) > keep else ():
        if directory == sealed[-keep]:
            break
        discard(directory)


def discard_later(output_dir: str, step: int) -> None:
    """Discard the checkpoints after `step`: a run that resumed from an earlier one has left their course."""
    for directory in checkpoints(output_dir):
        if step_of(directory.name) > step:
            discard(directory)


def _files(directory: Path) -> dict[str, Path]:
    paths = sorted(p for p in directory.rglob("*") if p.is_file() and p != directory / MANIFEST)
    return {p.relative_to(directory).as_posix(): p for p in paths if not p.name.startswith(".")}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _own_digest(body: dict) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
