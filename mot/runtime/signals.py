"""SIGTERM and SIGINT: leave within ten seconds, and where there is something to keep, keep it first.

    with Interruption() as interruption:
        read()                                  # a signal here leaves at once, exit code 143 or 130
        with interruption.heeded():             # here a signal only sets `interruption.signum`;
            while not interruption.signum: step()   # the work inside looks at it and comes to an end
        save()

A second signal leaves at once. So does the watchdog when GRACE seconds have passed and whatever runs (a compiler, a save
to a slow disk) has not come back: what is then half-written has no manifest and is never taken for a checkpoint.
"""

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

GRACE = 8.0  # seconds between the first signal and the end of the process
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption:
    """`signum`: the signal that asked this process to end, or None. Outside the main thread it watches nothing."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._heeded = False

    def __enter__(self) -> "Interruption":
        self._watching = threading.current_thread() is threading.main_thread()
        if self._watching:
            # Python runs its handlers between two bytecodes only, which in the middle of a compilation can be minutes
            # away. The interpreter writes the signal's number into this pipe at once, and a thread reads it.
            self._read_end, self._write_end = os.pipe()
            os.set_blocking(self._write_end, False)
            self._wakeup_before = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
            self._handlers_before = [signal.signal(s, self._handle) for s in SIGNALS]
            threading.Thread(target=_watchdog, args=[self._read_end], daemon=True).start()
            os.register_at_fork(after_in_child=self._forget)
        return self

    def __exit__(self, *exception) -> None:
        if self._watching:
            for s, handler in zip(SIGNALS, self._handlers_before, strict=True):
                signal.signal(s, handler)
            signal.set_wakeup_fd(self._wakeup_before)
            if self.signum is None:  # else the watchdog goes on until the process has ended
                os.close(self._write_end)

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Inside, the caller looks at `signum` often enough; a signal interrupts nothing by itself."""
        self._heeded = True
        try:
            yield
        finally:
            self._heeded = False

    def leave(self) -> None:
        """End the process if a signal asked for it: exit code 128 + its number."""
        if self.signum is not None:
            raise SystemExit(128 + self.signum)

    def _forget(self) -> None:
        # A terminal's Ctrl-C reaches forked workers too. Left as they are they would write into our pipe, and the
        # watchdog would take it for the second signal. What becomes of workers is their parent's business.
        if any(signal.getsignal(s) == self._handle for s in SIGNALS):
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _handle(self, signum: int, frame) -> None:
        self.signum = self.signum or signum
        if not self._heeded:
            self.leave()
        print(f"\n{signal.Signals(signum).name}: saving a checkpoint; a second signal leaves at once", file=sys.stderr)


def _watchdog(read_end: int) -> None:
    first = next((s for s in iter(lambda: _read(read_end), 0) if s in SIGNALS), None)
    if first is None:  # the other end was closed: nothing happened
        os.close(read_end)
        return
    deadline = time.monotonic() + GRACE
    while (left := deadline - time.monotonic()) > 0:
        if select.select([read_end], [], [], left)[0] and _read(read_end) in SIGNALS:
            break
    os._exit(128 + first)


def _read(read_end: int) -> int:
    byte = os.read(read_end, 1)
    return byte[0] if byte else 0
