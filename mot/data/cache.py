"""Results computed from files, kept on disk under a hash of everything that they depend on.

    cached({"file": digest, "count": "text"}, count)       a short text: from `cache_dir()/facts`, or from count() now
    cached_tokens(about, "<u2", chunks, parts=0)        token ids: from `cache_dir()/tokens`, or from the chunks now

Every entry carries its own sha256. A damaged entry is built again, and an entry is never seen half-written.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mot.data.datasets import MemmapArray
from mot.runtime.files import atomic_write, cache_dir, sync

FORMAT = 3  # of every entry: with a new number no old entry is found


@dataclass(frozen=True)
class Tokens:
    """Unsigned token ids of a text (`parts` 0), or of the `parts` texts of every row in turn (int64 `bounds` of each).

    The texts of a row are prompt, completion and, if there are three, key.
    """

    ids: np.ndarray | MemmapArray
    bounds: np.ndarray | MemmapArray | None
    parts: int
    sha256: tuple[str, ...]  # of ids, and of bounds if there are any


def cached(about: dict, make: Callable[[], str]) -> str:
    """Disk memoisation of `make()` under the key `about`. Errors are not kept.

    Raises ValueError if the cache cannot be written.
    """
    path = cache_dir() / "facts" / _key(about)
    with suppress(OSError):
        digest, _, value = path.read_bytes().partition(b"\n")
        if digest.decode("latin1") == sha256(_key(about).encode() + value):
            return value.decode()
    value = make()
    try:
        with atomic_write(path) as part:
            part.write_bytes(sha256(_key(about).encode() + value.encode()).encode() + b"\n" + value.encode())
    except OSError as e:
        raise ValueError(
            f"MOT_CACHE {cache_dir()}: cannot be written ({e.strerror}); set it to another directory"
        ) from None
    return value


def cached_tokens(about: dict, dtype: str, chunks: Callable[[], Iterator[np.ndarray]], parts: int) -> Tokens:
    """Disk memoisation of the ids that `chunks()` yields, under the key `about`; with `parts`, also their boundaries.

    An entry is a directory: `ids`, for rows `bounds`, and meta.json, which holds `about` and the sha256 of the others.
    It is built under another name and then renamed. Each call reads the whole entry once to check it: a second or two
    per gigabyte. If several processes ask for one entry, one of them builds it and the others wait. Raises OSError if
    the cache cannot be written, and every error of `chunks`.
    """
    names = ["ids", "bounds"] if parts else ["ids"]
    entry = cache_dir() / "tokens" / _key(about)
    if not _is_valid(entry, about, names):
        entry.parent.mkdir(parents=True, exist_ok=True)
        with open(entry.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the system releases it however a process ends
            if not _is_valid(entry, about, names):
                _build(entry, about, names, dtype, chunks())
    ids = MemmapArray(entry / "ids", dtype)
    bounds = MemmapArray(entry / "bounds", "<i8") if parts else None
    return Tokens(ids, bounds, parts, tuple(json.loads((entry / "meta.json").read_text())["sha256"].values()))


def _build(entry: Path, about: dict, names: list[str], dtype: str, chunks: Iterator[np.ndarray]) -> None:
    partial_entry = entry.with_suffix(".partial")
    shutil.rmtree(partial_entry, ignore_errors=True)  # left by a process that was killed
    partial_entry.mkdir()
    try:
        with ExitStack() as stack:
            files = {name: stack.enter_context(open(partial_entry / name, "wb")) for name in names}
            end = 0
            if "bounds" in files:
                files["bounds"].write(end.to_bytes(8, "little"))
            for ids in chunks:
                files["ids"].write(ids.astype(dtype).tobytes())
                end += len(ids)
                if "bounds" in files:
                    files["bounds"].write(end.to_bytes(8, "little"))
            for file in files.values():
                _flush(file)
        with open(partial_entry / "meta.json", "wb") as file:
            file.write(_meta(partial_entry, about, names))
            _flush(file)
        sync(partial_entry)
        shutil.rmtree(entry, ignore_errors=True)  # a damaged entry
        partial_entry.rename(entry)
        sync(entry.parent)
    finally:
        shutil.rmtree(partial_entry, ignore_errors=True)


def _meta(entry: Path, about: dict, names: list[str]) -> bytes:
    """The content that meta.json must have, given the files beside it."""
    digests = {}
    for name in names:
        with open(entry / name, "rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return json.dumps({"about": about, "sha256": digests}, indent=1).encode()


def _is_valid(entry: Path, about: dict, names: list[str]) -> bool:
    try:
        return (entry / "meta.json").read_bytes() == _meta(entry, about, names)
    except OSError:
        return False


def _key(about: dict) -> str:
    return sha256(json.dumps(about, sort_keys=True).encode())[:32]


def sha256(content: bytes) -> str:
    """The digest in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
