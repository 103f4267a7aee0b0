"""Local paths and remote ones: gs://, hf://, https://, s3:// and whatever else fsspec knows. No torch here.

    fetch("gs://bucket/data.jsonl", "--train_file")      a local file of the same suffix; a local path comes back as it is
    mirror = Mirror("gs://bucket/run")                   a remote output directory, known to be writable
    mirror.upload("/tmp/run/checkpoint-200")             every file first, manifest.json last
    mirror.checkpoints()                                 ["checkpoint-100", "checkpoint-200"], complete ones, oldest first
    mirror.prune(2)                                      manifest.json first, then the rest, oldest first
    download("gs://bucket/run/checkpoint-200", "/tmp")   "/tmp/checkpoint-200", whole or not there

A remote checkpoint without manifest.json is not a checkpoint: the marker arrives last and leaves first, so whatever is cut
off in the middle is never taken for whole. Whether the bytes are the right ones is for mot/training/checkpoint.py to say.

Everything that goes wrong at the other end is a ValueError of one line that names the flag and the address.
"""

import hashlib
import json
import logging
import math
import os
import re
import secrets
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mot.runtime.files import atomic_write, cache_dir, temp_sibling

MANIFEST = "manifest.json"
EXTRA = 'pip install "mixture-of-thoughts[{}]"'
ERRORS = (  # what the packages behind fsspec raise that is neither OSError, ValueError nor RuntimeError
    ("aiohttp", "ClientError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("gcsfs.retry", "NonRetryableError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("httpx", "HTTPError"),
    ("httpx2", "HTTPError"),
)


def is_remote(path: str) -> bool:
    """Is it an address like gs://bucket/file, not a local path?"""
    return "://" in path


def step_of(name: str) -> int | None:
    """The step of a directory named checkpoint-STEP; None for any other name."""
    match = re.fullmatch(r"checkpoint-(\d+)", name)
    return int(match[1]) if match else None


def fetch(path: str, flag: str) -> str:
    """A local path as it is; a remote file's local copy, downloaded if there is none of its present version.

    The copy ends in the remote file's own name, so its suffix stays visible. Raises ValueError naming `flag` for an unknown
    protocol, a missing package, no such file, no permission, no network.
    """
    if not is_remote(path):
        return path
    fs, remote = _filesystem(path, flag)
    with _told(flag, path):
        fs.invalidate_cache()
        about = fs.info(remote)
    if about["type"] != "file":
        raise ValueError(f"{flag} {path}: is a directory; give a file")
    # fsspec's own file caches write in place and take every https:// file for unchanging; `info` has its ETag and date.
    # `url` is where redirects ended, which for signed addresses is another place each time.
    version = repr(sorted((k, v) for k, v in about.items() if k != "url"))
    key = hashlib.sha256(f"{path}\n{version}".encode()).hexdigest()[:24]
    local = cache_dir() / "files" / key / _local_name(path)
    if not local.exists():
        from fsspec.callbacks import Callback

        with _told(flag, path), _progress(local.name) as show, atomic_write(local) as part:
            fs.get_file(remote, str(part), callback=Callback(hooks={"progress": show}))
    return str(local)


def checkpoints(url: str, flag: str = "--resume_from") -> list[str]:
    """Names of the complete checkpoints of the remote run at `url`, oldest first. Raises ValueError naming `flag`."""
    fs, root = _filesystem(url, flag)
    with _told(flag, url):
        return [name for name, files in _find(fs, root).items() if MANIFEST in files]


def download(url: str, directory: str | Path, flag: str = "--resume_from") -> str:
    """The remote checkpoint at `url` as a directory of its own name below `directory`; one that is there is replaced.

    Only what its manifest.json names is downloaded. Raises ValueError naming `flag`, and leaves no directory of that name
    that is not whole, if it has no manifest, misses a file, names a file outside itself, or cannot be read.
    """
    url = url.rstrip("/")
    fs, root = _filesystem(url, flag)
    name = url.rsplit("/", 1)[-1]
    if not is_inside(name):
        raise ValueError(f"{flag} {url}: is no checkpoint's address; give one that ends in checkpoint-STEP")
    with _told(flag, url, missing=f"has no {MANIFEST}, so is no complete checkpoint; give another"):
        fs.invalidate_cache()
        manifest = fs.cat_file(f"{root}/{MANIFEST}")
    with _told(flag, url, missing="lacks a file that its manifest names; give another checkpoint"):
        target = Path(directory) / name
        part = temp_sibling(target)
        try:
            for file in _named(manifest):
                (part / file).parent.mkdir(parents=True, exist_ok=True)
                fs.get_file(f"{root}/{file}", str(part / file))
            part.mkdir(parents=True, exist_ok=True)
            (part / MANIFEST).write_bytes(manifest)
            if target.exists():
                old = target.rename(temp_sibling(target))
                part.rename(target)
                shutil.rmtree(old)
            else:
                part.rename(target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return str(target)


class Mirror:
    """A remote output directory. Its methods block, and may be called from any one thread at a time."""

    def __init__(self, url: str, flag: str = "--output_dir"):
        """Raises ValueError naming `flag` if `url` cannot be written: a small file is put there and removed again."""
        self.url, self.flag = url.rstrip("/"), flag
        if url.startswith(("http://", "https://")):
            raise ValueError(f"{flag} {url}: https:// can only be read; give a local directory or gs://")
        self._fs, self._root = _filesystem(self.url, flag)
        with _told(flag, url, missing="no such bucket; make it first, or give another"):
            probe = f"{self._root}/.can-write-{secrets.token_hex(4)}"
            self._fs.pipe_file(probe, b"mot")
            self._fs.rm_file(probe)

    def upload(self, path: str | Path, name: str | None = None) -> None:
        """Put a file, or a directory with all that is in it, under `name` (its own, if none is given); a manifest.json last.

        Raises ValueError; what is then half uploaded has no manifest.json. A file that grows meanwhile: give a copy.
        """
        path = Path(path)
        name = name or path.name
        marker = f"{name}/{MANIFEST}"
        files = {name: path}
        if path.is_dir():
            files = {f"{name}/{f.relative_to(path).as_posix()}": f for f in sorted(path.rglob("*"))}
            files = {target: f for target, f in files.items() if f.is_symlink() or not f.is_dir()}
        for file in files.values():
            if not file.is_file():
                raise ValueError(f"{self.flag} {self.url}: cannot upload {file}; it is missing or not a plain file")
        assert marker in files or step_of(name) is None, f"{path} has no {MANIFEST}"
        with _told(self.flag, self.url):
            if marker in files:  # the same step once more: a mixture of old and new files must not have the old marker
                with suppress(FileNotFoundError):
                    self._fs.rm_file(f"{self._root}/{marker}")
            for target in sorted(files, key=lambda target: target == marker):
                self._fs.put_file(str(files[target]), f"{self._root}/{target}")

    def checkpoints(self) -> list[str]:
        """`checkpoints` of this directory."""
        return checkpoints(self.url, self.flag)

    def prune(self, keep: int) -> list[str]:
        """Delete all but the newest `keep` (>= 1) complete checkpoints, and older unfinished ones; return their names."""
        assert keep >= 1
        with _told(self.flag, self.url):
            found = _find(self._fs, self._root)
            kept = [name for name, files in found.items() if MANIFEST in files][-keep:]
            # Not complete but newer than every complete one: it may be on its way.
            last = list(found).index(kept[-1]) if kept else 0
            doomed = [name for name in list(found)[:last] if name not in kept]
            for name in doomed:
                for file in sorted(found[name], key=lambda file: file != MANIFEST):
                    self._fs.rm_file(f"{self._root}/{name}/{file}")
        return doomed


def save_dataset(url: str, output: str, end: str = "", max_megabytes: float = math.inf) -> int:
    """Write the text at `url` to the local file `output`, which appears when it is whole; return its size in bytes.

    url: a text file, or a pattern of parquet files, of which the column `text` is taken row by row.
    end: what stands behind each row. max_megabytes: stop in front of the row that would exceed it (1 MB = 10^6 bytes).
    Raises ValueError naming `mot data` or --output.
    """
    target, size = Path(output), 0
    try:
        with atomic_write(target) as part, open(part, "wb") as file, _progress(target.name) as show:
            for row in _rows(url, "mot data"):
                text = (row.rstrip("\n") + end if end else row).encode()
                if size + len(text) > max_megabytes * 1e6:
                    break
                size += file.write(text)
                show(None if max_megabytes == math.inf else int(max_megabytes * 1e6), size)
    except OSError as e:
        raise ValueError(
            f"--output {output}: cannot be written ({e.strerror}); free some space, lower --max_megabytes, or give another"
        ) from e
    return size


def _rows(url: str, flag: str) -> Iterator[str]:
    if not url.endswith(".parquet"):
        with open(fetch(url, flag), encoding="utf-8", newline="") as file:
            yield from file
        return
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise ValueError(f"{flag} {url}: parquet needs pyarrow; {EXTRA.format('data')}") from None
    fs, pattern = _filesystem(url, flag)
    with _told(flag, url):
        paths = sorted(fs.glob(pattern))
        if not paths:
            raise FileNotFoundError(url)
        for path in paths:
            with fs.open(path, "rb") as file:
                for batch in ParquetFile(file).iter_batches(batch_size=256, columns=["text"]):
                    yield from batch.column("text").to_pylist()


def _filesystem(url: str, flag: str):
    """(fsspec's file system for `url`, the path in it)."""
    import fsspec

    protocol = url.split("://")[0]
    if protocol in ("gs", "gcs"):
        # gcsfs asks over gRPC what kind of bucket it is, and waits 60 s where nothing answers there (a firewall, an emulator).
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs the traceback of what it raises
    with _told(flag, url):
        if protocol in ("gs", "gcs") and not {"STORAGE_EMULATOR_HOST", "HTTPS_PROXY", "https_proxy"} & set(os.environ):
            socket.getaddrinfo(
                "storage.googleapis.com", 443
            )  # without a network, gcsfs tries for 50 s to find that out
    try:
        with _told(flag, url):
            return fsspec.core.url_to_fs(url)
    except ImportError as e:
        remedy = EXTRA.format("remote") if protocol in ("gs", "gcs", "http", "https") else e
        raise ValueError(f"{flag} {url}: {protocol}:// needs a package that is not installed; {remedy}") from e


@contextmanager
def _told(flag: str, url: str, missing: str = "no such file; check the address") -> Iterator[None]:
    try:
        yield
    except _errors() as e:
        raise ValueError(f"{flag} {url}: {_reason(e, missing)}") from e


def _errors() -> tuple[type[Exception], ...]:
    """A package that was not imported has raised nothing."""
    loaded = [getattr(sys.modules[module], name) for module, name in ERRORS if sys.modules.get(module)]
    return (OSError, ValueError, RuntimeError, *loaded)


def _reason(error: BaseException, missing: str) -> str:
    chain = [error]  # fsspec says "not found" of a lost network, too; the truth is what it was raised from
    while (e := chain[-1].__cause__ or (None if chain[-1].__suppress_context__ else chain[-1].__context__)) is not None:
        chain.append(e)
    says = " ".join(str(chain[-1] if error is not chain[-1] and not str(error) else error).split())[:300]
    status = next((s for e in chain if (s := _status(e))), 0)
    if status in (401, 403):
        return (
            f"no permission, or no such file (HTTP {status}); log in (gcloud auth application-default login, hf auth login) "
            "or ask its owner for the right"
        )
    lost = [
        e
        for e in chain
        if isinstance(e, ConnectionError | TimeoutError | socket.gaierror)
        or {"ClientConnectionError", "TransportError"}
        & {c.__name__ for c in type(e).__mro__}  # aiohttp; httpx, google.auth
    ]
    if lost:
        return f"no network, or no answer ({' '.join(str(lost[-1]).split()) or 'timed out'}); try again when it is back"
    if status > 404:
        return f"the server answered HTTP {status}; try again later"
    if isinstance(error, FileNotFoundError):
        return missing
    if isinstance(error, ValueError) and "rotocol not known" in says:
        return "unknown protocol; give a local path, gs://, hf://, s3:// or https://"
    return f"{says or type(error).__name__}"


def _status(error: BaseException) -> int:
    """The HTTP status an exception carries, or 0. aiohttp, gcsfs, httpx and requests each have a place of their own for it."""
    if isinstance(error, PermissionError) or str(error).startswith("Forbidden: "):
        return 403
    response = getattr(error, "response", None)
    status = getattr(error, "status", None) or getattr(response, "status_code", None) or getattr(error, "code", None)
    return int(status) if str(status).isdecimal() else 0


def _find(fs, root: str) -> dict[str, list[str]]:
    """The files of every remote directory checkpoint-STEP, by step."""
    fs.invalidate_cache()
    found = {}
    with suppress(FileNotFoundError):
        for path in fs.find(root):
            name, _, file = path.removeprefix(root + "/").partition("/")
            if step_of(name) is not None and file:
                found.setdefault(name, []).append(file)
    return dict(sorted(found.items(), key=lambda item: step_of(item[0])))


def _named(manifest: bytes) -> list[str]:
    """The files that a manifest names; what it says comes from outside."""
    try:
        files = list(json.loads(manifest)["files"].keys())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"its {MANIFEST} is broken; give another checkpoint") from None
    for file in files:
        if not is_inside(file) or file == MANIFEST:
            raise ValueError(f"its {MANIFEST} names {file!r}, which is no file of a checkpoint; do not use it")
    return files


def is_inside(name: str) -> bool:
    """Is it a plain relative name that leads nowhere else?"""
    return not {"", ".", ".."} & set(name.split("/")) and not {"\\", "\0", ":"} & set(name)


def _local_name(url: str) -> str:
    name = url.split("?")[0].split("#")[0].rstrip("/").rsplit("/", 1)[-1]
    return re.sub(r"[^\w.-]", "_", name)[-100:].lstrip(".") or "file"


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int | None, int], None]]:
    """A bar on a terminal's standard error, gone when the block ends; call what it gives with (total or None, bytes so far)."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda total, done, **_: bar.update(task, total=total, completed=done)
