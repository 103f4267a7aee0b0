"""The connections of the server: how long each waits for its client, and how many there may be.

    most, backlog = connection_limits(reserved=0)
    uvicorn.Config(app, http=Connection, limit_concurrency=most, backlog=backlog)

Every connection is in one phase at a time. Each phase but "running" ends by a timer, whatever the client sends:

    phase      what the connection waits for           limit
    idle       the next request, after an answer       IDLE_SECONDS
    request    the rest of a request's headers         TIMEOUT_SECONDS of guard.py
    body       the rest of a request's body            twice that, because the guard answers 408 before
    stalled    a client that reads                     TIMEOUT_SECONDS
    closing    a client that reads the last bytes      TIMEOUT_SECONDS
    running    us

A new connection above the limit closes those that have waited longest. A request that runs is never closed for it.
uvicorn has no hook for any of this. We rely on the attributes `conn`, `transport`, `loop`, `connections` and
`limit_concurrency` of its class. pyproject.toml has an upper bound for uvicorn, and tests/serving/test_connection.py
fails if a timer no longer works.
"""

import asyncio
import os
import resource
from heapq import nsmallest

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from mot.serving import guard

IDLE_SECONDS = 65.0  # longer than clients and proxies keep a connection: a request may get lost if we close first
SPARE_DESCRIPTORS = 16  # for files that are opened later, e.g. by an import
FEWEST_CONNECTIONS, MOST_CONNECTIONS = 16, 4096
MOST_BACKLOG = 64


def connection_limits(reserved: int) -> tuple[int, int]:
    """(most connections, backlog) within the limit of open files, of which `reserved` are for others.

    The backlog is also the most connections that asyncio accepts at once, before any of them is counted. Up to three
    times as many may be open until the ones that are closed for them have gone. Raises ValueError below 16 connections.
    """
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS, MOST_BACKLOG
    free = allowed - len(os.listdir("/dev/fd")) - SPARE_DESCRIPTORS - reserved
    backlog = max(1, min(MOST_BACKLOG, free // 8))
    most = min(MOST_CONNECTIONS, free - 3 * backlog)
    if most < FEWEST_CONNECTIONS:
        raise ValueError(f"ulimit -n {allowed}: leaves no descriptors for connections; raise it, e.g. to 1024")
    return most, backlog


class Connection(H11Protocol):
    """One connection, with a timer from its first to its last moment."""

    phase, since, stalled = "request", 0.0, False
    timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self.since = self.loop.time()
        self._check_timer()
        if self.limit_concurrency is not None and len(self.connections) >= self.limit_concurrency:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._note_phase()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.stalled = True
        self._note_phase()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.stalled = False
        self._note_phase()

    def connection_lost(self, exc: Exception | None) -> None:
        self.timer.cancel()
        super().connection_lost(exc)

    def _make_room(self) -> None:
        """Close the connections that have waited longest, several at once, so that a flood does not sort each time."""
        waiting = [other for other in self.connections if other is not self and other.waits()]
        for other in nsmallest(max(1, self.limit_concurrency // 16), waiting, key=lambda other: other.since):
            other.transport.abort()

    def waits(self) -> bool:
        self._note_phase()
        return self.phase not in ("running", "closing")

    def _note_phase(self) -> None:
        phase = self._current_phase()
        if phase != self.phase:
            self.phase, self.since = phase, self.loop.time()

    def _current_phase(self) -> str:
        if self.transport.is_closing():
            return "closing"
        if self.stalled:
            return "stalled"
        if self.conn.their_state is h11.SEND_BODY:
            return "body"
        if self.conn.their_state is not h11.IDLE:
            return "running"
        # A first request is awaited like the rest of one: its client has connected in order to send it.
        return "request" if self.conn.trailing_data[0] or self.phase == "request" else "idle"

    def _check_timer(self) -> None:
        """Runs several times within each limit. Closes the connection if its phase has lasted too long."""
        self._note_phase()
        timeout = guard.TIMEOUT_SECONDS
        limits = {"idle": IDLE_SECONDS, "body": 2 * timeout, "running": float("inf")}
        limit = limits.get(self.phase, timeout)
        if self.loop.time() - self.since >= limit:
            # A client that does not read would keep `close` waiting for ever.
            (self.transport.abort if self.phase in ("stalled", "closing") else self.transport.close)()
        self.timer = self.loop.call_later(timeout / 8, self._check_timer)
