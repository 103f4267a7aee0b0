"""SIGTERM and SIGINT: exit within ten seconds, and save first if there is something to save.

    with SignalHandler() as interruption:
        read()                                  # a signal here exits at once, with code 143 or 130
        with interruption.deferred():             # here a signal only sets `interruption.signum`;
            while not interruption.signum: step()   # the work inside looks at it and ends
        save()

A second signal exits at once. So does the watchdog after GRACE seconds, if the process is still busy with a compiler or
a slow disk. An incomplete checkpoint has no manifest, so it is never used.
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


class SignalHandler:
    """`signum`: the signal that asked this process to end, or None. Outside the main thread no signal is handled."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._deferred = False

    def __enter__(self) -> "SignalHandler":
        self._watching = threading.current_thread() is threading.main_thread()
        if self._watching:
            # Python runs handlers between two bytecodes only, which during a compilation can be minutes away. The
            # interpreter writes the signal's number into this pipe at once, and a thread reads it.
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
            if self.signum is None:  # otherwise the watchdog works until the process has ended
                os.close(self._write_end)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside the block a signal interrupts nothing. The caller must look at `signum` often enough."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def leave(self) -> None:
        """Exit with code 128 + signal number if a signal has arrived."""
        if self.signum is not None:
            raise SystemExit(128 + self.signum)

    def _forget(self) -> None:
        # A terminal's Ctrl-C reaches forked workers too. With our handlers they would write into our pipe, and the
        # watchdog would take that for the second signal. The parent decides when its workers end.
        if any(signal.getsignal(s) == self._handle for s in SIGNALS):
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _handle(self, signum: int, frame) -> None:
        self.signum = self.signum or signum
        if not self._deferred:
            self.leave()
        print(f"\n{signal.Signals(signum).name}: saving a checkpoint; a second signal exits at once", file=sys.stderr)


def _watchdog(read_end: int) -> None:
    first = next((s for s in iter(lambda: _read(read_end), 0) if s in SIGNALS), None)
    if first is None:  # the other end was closed without a signal
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
