"""Files that are whole or not there: atomic writes, syncs, and a finished model moved into place. No torch here.

with atomic_write(path) as part: part.write_bytes(...)     path has the old content or the new one, never half of it
publish(partial, directory)                                a model's files, its configuration last
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

CONFIGURATIONS = ("config.json", "adapter_config.json")  # of a model, of an adapter: written last
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)  # of Python, torch and safetensors: each has its own


def cache_dir() -> Path:
    """Where downloads and tokenised data are kept: $MOT_CACHE, else ~/.cache/mixture-of-thoughts. It may not exist yet."""
    return Path(os.environ.get("MOT_CACHE") or "~/.cache/mixture-of-thoughts").expanduser()


def temp_sibling(path: Path) -> Path:
    """A hidden name beside `path` that nothing else uses."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`. It becomes `path` when the block ends well, and is removed when it raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = temp_sibling(path)
    try:
        yield part
        sync(part)
        part.replace(path)
        sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


def atomic_write_text(path: Path, text: str) -> None:
    """Write a file so that after any interruption, power loss included, the old text or the new one is there."""
    with atomic_write(path) as part:
        part.write_text(text)


def sync(path: Path) -> None:
    """Wait until what is written of a file, or the names in a directory, would survive a power loss."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def publish(partial: Path, directory: Path) -> None:
    """Move a finished model's files from `partial` into `directory`, its configuration last: without it no model opens."""
    files = sorted(partial.iterdir(), key=lambda p: p.name in CONFIGURATIONS)
    for path in files:
        sync(path)
        os.replace(path, directory / path.name)
    partial.rmdir()
    sync(directory)


def disk_is_full(e: Exception) -> bool:
    """Did a write (one of WRITE_ERRORS) fail because the disk is full?"""
    return any(words in str(e) for words in ("No space left", "PytorchStreamWriter failed", "inline_container"))
