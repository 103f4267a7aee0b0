"""Local paths and remote ones: gs://, hf://, https://, s3:// and every other protocol of fsspec. No torch here.

    fetch("gs://bucket/data.jsonl", "--train_file")      a local copy with the same suffix; a local path is returned as
    it is mirror = Mirror("gs://bucket/run")                   a remote output directory, known to be writable
    mirror.upload("/tmp/run/checkpoint-200")             every file first, manifest.json last mirror.checkpoints()
    ["checkpoint-100", "checkpoint-200"], complete ones, oldest first mirror.prune(2)
    manifest.json first, then the rest, oldest first download("gs://bucket/run/checkpoint-200", "/tmp")
    "/tmp/checkpoint-200", complete or absent

A remote checkpoint without manifest.json is not a checkpoint. The manifest is uploaded last and deleted first, so an
interrupted upload or deletion is never taken for a complete checkpoint. mot/training/checkpoint.py checks the content.

Every failure of the network, the server or the address is a ValueError of one line that names the flag and the address.
"""

import hashlib
import json
import logging
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
from mot.runtime.flags import one_line

MANIFEST = "manifest.json"
EXTRA = 'pip install "mixture-of-thoughts[{}]"'
PACKAGE_ERRORS = (  # of the packages behind fsspec: neither OSError, ValueError nor RuntimeError
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
    """Is it an address such as gs://bucket/file?"""
    return "://" in path


def step_of(name: str) -> int | None:
    """The step of a directory named checkpoint-STEP, None for any other name."""
    match = re.fullmatch(r"checkpoint-(\d+)", name)
    return int(match[1]) if match else None


def fetch(path: str, flag: str) -> str:
    """A local path as it is, or the local copy of a remote file, downloaded if the file has changed.

    The copy keeps the name of the remote file, so its suffix stays visible. Raises ValueError naming `flag` for an
    unknown protocol, a missing package, a missing file, no permission or no network.
    """
    if not is_remote(path):
        return path
    fs, remote = filesystem(path, flag)
    with as_user_error(flag, path):
        fs.invalidate_cache()
        about = fs.info(remote)
    if about["type"] != "file":
        raise ValueError(f"{flag} {path}: is a directory; give a file")
    # fsspec's own file caches write in place and assume that an https:// file never changes; `info` has ETag and date.
    # `url` is the target of redirects: for signed addresses it is another one each time.
    version = repr(sorted((k, v) for k, v in about.items() if k != "url"))
    key = hashlib.sha256(f"{path}\n{version}".encode()).hexdigest()[:24]
    local = cache_dir() / "files" / key / _local_name(path)
    if not local.exists():
        from fsspec.callbacks import Callback

        with as_user_error(flag, path), progress_bar(local.name) as show, atomic_write(local) as part:
            fs.get_file(remote, str(part), callback=Callback(hooks={"progress": show}))
    return str(local)


def checkpoints(url: str, flag: str = "--resume_from") -> list[str]:
    """Names of the complete checkpoints of the remote run at `url`, oldest first. Raises ValueError naming `flag`."""
    fs, root = filesystem(url, flag)
    with as_user_error(flag, url):
        return [name for name, files in _find(fs, root).items() if MANIFEST in files]


def download(url: str, directory: str | Path, flag: str = "--resume_from") -> str:
    """Download the remote checkpoint at `url` into `directory`, under its own name; an existing one is replaced.

    Only the files that its manifest.json names are downloaded. Raises ValueError naming `flag` if there is no manifest,
    a file is missing, a name leads outside the checkpoint, or it cannot be read. Then no incomplete directory is left.
    """
    url = url.rstrip("/")
    fs, root = filesystem(url, flag)
    name = url.rsplit("/", 1)[-1]
    if not is_inside(name):
        raise ValueError(f"{flag} {url}: is not the address of a checkpoint; give one that ends in checkpoint-STEP")
    with as_user_error(flag, url, missing=f"has no {MANIFEST}, so the checkpoint is not complete; give another"):
        fs.invalidate_cache()
        manifest = fs.cat_file(f"{root}/{MANIFEST}")
    with as_user_error(flag, url, missing="lacks a file that its manifest names; give another checkpoint"):
        target = Path(directory) / name
        part = temp_sibling(target)
        try:
            for file in _files_of(manifest):
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
    """A remote output directory. Its methods block. They may be called from any thread, but from one at a time."""

    def __init__(self, url: str, flag: str = "--output_dir"):
        """Raises ValueError naming `flag` if `url` cannot be written. A small file is written there and removed."""
        self.url, self.flag = url.rstrip("/"), flag
        if url.startswith(("http://", "https://")):
            raise ValueError(f"{flag} {url}: https:// can only be read; give a local directory or gs://")
        self._fs, self._root = filesystem(self.url, flag)
        with as_user_error(flag, url, missing="no such bucket; create it first, or give another"):
            probe = f"{self._root}/.can-write-{secrets.token_hex(4)}"
            self._fs.pipe_file(probe, b"mot")
            self._fs.rm_file(probe)

    def upload(self, path: str | Path, name: str | None = None) -> None:
        """Upload a file, or a directory with all of its files, manifest.json last. `name` defaults to its own name.

        Raises ValueError; then an incomplete upload has no manifest.json. To upload a file that grows, give a copy of
        it.
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
        with as_user_error(self.flag, self.url):
            if (
                marker in files
            ):  # an upload of the same step again: old and new files must not meet under the old marker
                with suppress(FileNotFoundError):
                    self._fs.rm_file(f"{self._root}/{marker}")
            for target in sorted(files, key=lambda target: target == marker):
                self._fs.put_file(str(files[target]), f"{self._root}/{target}")

    def checkpoints(self) -> list[str]:
        """`checkpoints` of this directory."""
        return checkpoints(self.url, self.flag)

    def prune(self, keep: int, spared: str = "") -> list[str]:
        """Delete all but the newest `keep` (>= 1) complete checkpoints, and older incomplete ones. Returns names.

        The checkpoint named `spared` stays and is not counted.
        """
        assert keep >= 1
        with as_user_error(self.flag, self.url):
            found = _find(self._fs, self._root)
            kept = [name for name, files in found.items() if MANIFEST in files and name != spared][-keep:]
            # An incomplete checkpoint newer than every complete one may be uploading.
            last = list(found).index(kept[-1]) if kept else 0
            doomed = [name for name in list(found)[:last] if name not in (*kept, spared)]
            self._discard({name: found[name] for name in doomed})
        return doomed

    def discard_later(self, name: str) -> None:
        """Delete the checkpoints after the one named `name`: a resumed run has left their course."""
        with as_user_error(self.flag, self.url):
            found = _find(self._fs, self._root)
            self._discard({other: files for other, files in found.items() if step_of(other) > step_of(name)})

    def _discard(self, doomed: dict[str, list[str]]) -> None:
        for name, files in doomed.items():
            for file in sorted(files, key=lambda file: file != MANIFEST):
                self._fs.rm_file(f"{self._root}/{name}/{file}")


def filesystem(url: str, flag: str):
    """(fsspec's file system for `url`, the path in it). Raises ValueError naming `flag`."""
    import fsspec

    protocol = url.split("://")[0]
    if protocol in ("gs", "gcs"):
        # gcsfs asks over gRPC for the kind of bucket, and waits 60 s behind a firewall or with an emulator.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs a traceback for each error that it raises
    with as_user_error(flag, url):
        if protocol in ("gs", "gcs") and not {"STORAGE_EMULATOR_HOST", "HTTPS_PROXY", "https_proxy"} & set(os.environ):
            socket.getaddrinfo("storage.googleapis.com", 443)  # without a network, gcsfs itself takes 50 s to notice
    try:
        with as_user_error(flag, url):
            return fsspec.core.url_to_fs(url)
    except ImportError as e:
        remedy = EXTRA.format("remote") if protocol in ("gs", "gcs", "http", "https") else e
        raise ValueError(f"{flag} {url}: {protocol}:// needs a package that is not installed; {remedy}") from e


@contextmanager
def as_user_error(flag: str, url: str, missing: str = "no such file; check the address") -> Iterator[None]:
    """Turn errors of a remote file system into a ValueError of one line. missing: the message for a missing file."""
    try:
        yield
    except _errors() as e:
        raise ValueError(f"{flag} {url}: {_reason(e, missing)}") from e


def _errors() -> tuple[type[Exception], ...]:
    """The errors to translate. A package that is not imported has raised none of them."""
    loaded = [getattr(sys.modules[module], name) for module, name in PACKAGE_ERRORS if sys.modules.get(module)]
    return (OSError, ValueError, RuntimeError, *loaded)


def _reason(error: BaseException, missing: str) -> str:
    chain = [error]  # fsspec reports "not found" for a lost network too; the first cause is the true one
    while (e := chain[-1].__cause__ or (None if chain[-1].__suppress_context__ else chain[-1].__context__)) is not None:
        chain.append(e)
    message = one_line(error if str(error) else chain[-1], 300)
    status = next((s for e in chain if (s := _status(e))), 0)
    if status in (401, 403):
        return (
            f"no permission, or no such file (HTTP {status}); "
            "log in (gcloud auth application-default login, hf auth login) or ask its owner for access"
        )
    lost = [e for e in chain if _is_network_error(e)]
    if lost:
        return f"no network, or no answer ({one_line(lost[-1], 300) or 'timed out'}); try again when it is back"
    if status > 404:
        return f"the server answered HTTP {status}; try again later"
    if isinstance(error, FileNotFoundError):
        return missing
    if isinstance(error, ValueError) and "rotocol not known" in message:
        return "unknown protocol; give a local path, gs://, hf://, s3:// or https://"
    return message or type(error).__name__


def _is_network_error(error: BaseException) -> bool:
    names = {
        c.__name__ for c in type(error).__mro__
    }  # ClientConnectionError: aiohttp. TransportError: httpx, google.auth
    return isinstance(error, ConnectionError | TimeoutError | socket.gaierror) or bool(
        {"ClientConnectionError", "TransportError"} & names
    )


def _status(error: BaseException) -> int:
    """The HTTP status of an exception, or 0. aiohttp, gcsfs, httpx and requests each keep it in another attribute."""
    if isinstance(error, PermissionError) or str(error).startswith("Forbidden: "):
        return 403
    response = getattr(error, "response", None)
    status = getattr(error, "status", None) or getattr(response, "status_code", None) or getattr(error, "code", None)
    return int(status) if str(status).isdecimal() else 0


def _find(fs, root: str) -> dict[str, list[str]]:
    """{name: files} of every remote directory checkpoint-STEP, sorted by step."""
    fs.invalidate_cache()
    found = {}
    with suppress(FileNotFoundError):
        for path in fs.find(root):
            name, _, file = path.removeprefix(root + "/").partition("/")
            if step_of(name) is not None and file:
                found.setdefault(name, []).append(file)
    return dict(sorted(found.items(), key=lambda item: step_of(item[0])))


def _files_of(manifest: bytes) -> list[str]:
    """The files that a manifest names. The manifest comes from outside, so it is checked."""
    try:
        files = list(json.loads(manifest)["files"].keys())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"its {MANIFEST} is broken; give another checkpoint") from None
    for file in files:
        if not is_inside(file) or file == MANIFEST:
            raise ValueError(f"its {MANIFEST} names {file!r}, which is not a file of a checkpoint; do not use it")
    return files


def is_inside(name: str) -> bool:
    """Is it a plain relative name, which stays inside its directory?"""
    return not {"", ".", ".."} & set(name.split("/")) and not {"\\", "\0", ":"} & set(name)


def _local_name(url: str) -> str:
    name = url.split("?")[0].split("#")[0].rstrip("/").rsplit("/", 1)[-1]
    return re.sub(r"[^\w.-]", "_", name)[-100:].lstrip(".") or "file"


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int | None, int], None]]:
    """A bar on a terminal's standard error, removed at the end. Yields a function of (total or None, bytes so far)."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda total, done, **_: bar.update(task, total=total, completed=done)
