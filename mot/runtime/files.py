"""Files that are complete or absent: atomic writes, syncs, and the publication of a finished model. No torch here.

with atomic_write(path) as part: part.write_bytes(...)     path has the old content or the new one, never a part
publish(partial, directory)                                a model's files, its configuration last
by_umask(directory)                                        files that everybody may read whom the umask lets
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

CONFIGURATIONS = ("config.json", "adapter_config.json")  # of a model and of an adapter; written last
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)  # raised by Python, torch and safetensors


def cache_dir() -> Path:
    """Directory of downloads and tokenised data: $MOT_CACHE, or ~/.cache/mixture-of-thoughts. It may not exist yet.

    Raises ValueError if there is no home directory, as in a container that runs as a number without a name.
    """
    path = Path(os.environ.get("MOT_CACHE") or "~/.cache/mixture-of-thoughts")
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"MOT_CACHE {path}: no home directory; set MOT_CACHE or HOME") from None


def temp_sibling(path: Path) -> Path:
    """A hidden name beside `path` that nothing else uses."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside `path`. It is renamed to `path` at the end, or removed if the block raises."""
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
    """Write a file. After any interruption, even a power loss, it has the old text or the new one."""
    with atomic_write(path) as part:
        part.write_text(text)


def sync(path: Path) -> None:
    """Wait until the content of a file, or the names in a directory, would survive a power loss."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def publish(partial: Path, directory: Path) -> None:
    """Move a finished model's files from `partial` to `directory`, configuration last: no model opens without it."""
    by_umask(partial)
    files = sorted(partial.iterdir(), key=lambda p: p.name in CONFIGURATIONS)
    for path in files:
        sync(path)
        os.replace(path, directory / path.name)
    partial.rmdir()
    sync(directory)


def by_umask(directory: Path) -> None:
    """Give every file below `directory` the mode of a new file there. safetensors makes its files 0600."""
    probe = temp_sibling(directory / "mode")
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for path in directory.rglob("*"):
        if path.is_file() and path.stat().st_mode != mode:
            with suppress(OSError):  # a file system without modes, or a file of another user
                path.chmod(mode)


def disk_is_full(e: Exception) -> bool:
    """Did a write (one of WRITE_ERRORS) fail because the disk is full?"""
    return any(words in str(e) for words in ("No space left", "PytorchStreamWriter failed", "inline_container"))
