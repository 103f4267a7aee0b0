"""One run per directory, for the life of the run, also on a shared file system and after a kill.

    with exclusive(Path("outputs/run"), "--output_dir outputs/run") as lock:
        lock.require()      # raises ValueError if another machine took the directory over while this one slept

The directory holds a file `.lock` with the machine, the process and a token. On one machine the kernel knows whether
its owner lives (flock), and forgets a killed one at once. On a file system that several machines share, the owner
touches the file every BEAT seconds, and a lock that was silent for SILENT seconds belongs to a dead machine. Ages are
differences of times that the file system gave, so clocks may differ.
"""

import fcntl
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mot.runtime.files import temp_sibling

NAME = ".lock"
BEAT, SILENT = 10.0, 60.0  # seconds


class Lock:
    """A lock that this process holds on the open file `handle` at `path`."""

    def __init__(self, path: Path, handle: int, where: str):
        self.path, self.handle, self.where = path, handle, where
        self.owner = {"host": _host(), "pid": os.getpid(), "token": secrets.token_hex(8)}
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(self.owner).encode(), 0)
        os.fsync(handle)
        self._released = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()
        os.register_at_fork(after_in_child=self._forget)

    def require(self) -> None:
        """Raise ValueError if another run has taken the directory over."""
        if _owner(self.path).get("token") != self.owner["token"]:
            raise ValueError(
                f"{self.where}: another run has taken it over, because this one gave no sign for {SILENT:.0f} s; "
                "what it has written stays, and this run ends"
            )

    def release(self) -> None:
        self._released.set()
        if _owner(self.path).get("token") == self.owner["token"]:
            self.path.unlink(missing_ok=True)
        os.close(self.handle)

    def _beat(self) -> None:
        while not self._released.wait(BEAT):
            with suppress(OSError):  # a server that is away for a moment
                os.utime(self.path)

    def _forget(self) -> None:
        # A worker that outlives its killed parent would keep the parent's flock.
        if not self._released.is_set():
            self._released.set()
            os.close(self.handle)


@contextmanager
def exclusive(directory: Path, where: str) -> Iterator[Lock]:
    """Hold the lock of `directory`, which is made if it is missing and removed at the end if it is still empty.

    Raises ValueError beginning with `where` if another process holds it, or if the directory cannot be written.
    """
    made = [path for path in (directory, *directory.parents) if not os.path.exists(path)]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = _acquire(directory / NAME, where)
    except OSError as e:
        raise ValueError(f"{where}: cannot be written ({e.strerror}); give another directory") from None
    try:
        yield lock
    finally:
        lock.release()
        with suppress(OSError):
            for path in made:
                path.rmdir()


def _acquire(path: Path, where: str) -> Lock:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        owner, free = _owner(path), _flock(handle)
        here = owner.get("host") == _host()
        if not free or (owner and not here and _is_alive(path, owner, where)):
            os.close(handle)
            who = f"process {owner.get('pid', '?')} on {owner.get('host', '? ?').split()[0]}"
            raise ValueError(f"{where}: another run is writing there ({who}); wait for its end, or give another")
        if not path.exists() or not os.path.samestat(os.fstat(handle), path.stat()):
            os.close(handle)  # its owner ended meanwhile and removed it
            continue
        lock = Lock(path, handle, where)
        if owner and not here:  # another machine may have found the same silent lock in the same moment
            time.sleep(min(1.0, SILENT))
            lock.require()
        return lock


def _flock(handle: int) -> bool:
    """Lock an open file. False if another process has it; True also where the file system knows no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _is_alive(path: Path, owner: dict, where: str) -> bool:
    """Does the owner, on another machine, still touch its lock?"""
    seen, probe = path.stat().st_mtime, temp_sibling(path)
    probe.touch()
    left = SILENT - (probe.stat().st_mtime - seen)
    probe.unlink()
    if left > 0:
        host = owner["host"].split()[0]
        print(f"{where}: a run on {host} had it a moment ago; waiting {left:.0f} s for a sign of it", file=sys.stderr)
    end = time.monotonic() + left
    while time.monotonic() < end:
        time.sleep(0.5)
        try:
            with path.open() as file:  # opened, because a network file system keeps old attributes
                now = os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return False
        if now != seen:
            return True
    return False


def _owner(path: Path) -> dict:
    """What a lock says of its owner; nothing if it is missing, or was cut off while it was written."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("host"), str) else {}


def _host() -> str:
    """This machine since it was started. Two containers of one machine have different names."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()} {boot.read_text().strip() if boot.exists() else ''}"
