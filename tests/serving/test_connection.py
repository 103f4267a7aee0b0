"""Connections that wait: timers, the limit of connections, and what a log and an event loop may be made to do.

bench/serve_abuse.py measures the same from outside, with 140 connections and 128 descriptors.
"""

import asyncio
import contextlib
import json
import logging
import socket
import time

import pytest
from mixtures import untrained
from serving_client import Server, in_thread

from mot.serving import connection, guard
from mot.serving.access_log import OncePerSecond
from mot.serving.connection import connection_limits

HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
OPENAPI = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def mixture():
    mixture = untrained(["bytes, so that every text has tokens"], 300, 4)
    mixture.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return mixture


@pytest.fixture
def server(mixture, monkeypatch):
    """With short timers."""
    monkeypatch.setattr(guard, "TIMEOUT_SECONDS", 0.4)
    monkeypatch.setattr(connection, "IDLE_SECONDS", 0.8)
    with in_thread(mixture) as server:
        yield server


WAYS = {
    # name: (first bytes, whether to read the answer, bytes that follow again and again)
    "nothing": (b"", False, b""),
    "half a request line": (b"GET /hea", False, b""),
    "headers without an end": (HEALTH, False, b"X: 1\r\n"),
    "idle after an answer": (HEALTH + b"\r\n", True, b""),
    "a byte of a body nobody wants": (HEALTH + b"Content-Length: 9\r\n\r\n", True, b"x"),
    "chunks nobody wants": (HEALTH + b"Transfer-Encoding: chunked\r\n\r\n", True, b"1\r\nx\r\n"),
    "a byte of the next request": (HEALTH + b"\r\n", True, b"G"),
    "the end of a line": (HEALTH + b"\r\n", True, b"\r"),
    "a slow body": (POST + b"Content-Length: 999\r\n\r\n", False, b"{"),
    "chunks without an end": (POST + b"Transfer-Encoding: chunked\r\n\r\n", False, b"1\r\n \r\n"),
    "100-continue, then nothing": (POST + b"Expect: 100-continue\r\nContent-Length: 99\r\n\r\n", False, b""),
}


@pytest.mark.parametrize("way", WAYS)
def test_no_way_of_waiting_keeps_a_connection(way, server):
    first, answer, rest = WAYS[way]
    with server.connect() as s:
        s.sendall(first)
        if answer:
            assert s.recv(4096).startswith(b"HTTP/1.1 200")
        s.settimeout(0.1)
        end = time.monotonic() + 20
        with contextlib.suppress(ConnectionError):
            while True:
                assert time.monotonic() < end, "is still open"
                try:
                    s.sendall(rest)
                    if s.recv(4096) == b"":
                        break
                except TimeoutError:
                    pass
    assert server.get("/health").status_code == 200


def slow_reader(server: Server) -> socket.socket:
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    host, port = server.url.removeprefix("http://").split(":")
    s.connect((host, int(port)))
    return s


@pytest.mark.parametrize("what", ["answers", "stream"])
def test_a_client_that_does_not_read_is_let_go(what, server):
    body = json.dumps({"prompt": "a", "n": 8, "max_tokens": 1000, "stream": True, "logprobs": 5}).encode()
    with slow_reader(server) as s:
        if what == "answers":
            with contextlib.suppress(OSError):
                s.settimeout(5)
                s.sendall(OPENAPI * 200)
        else:
            s.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        time.sleep(0.2)
        server.wait_until_idle(60)
        end = time.monotonic() + 20
        with contextlib.suppress(OSError):  # reset: what was not read is lost
            while s.recv(65536):
                assert time.monotonic() < end


def test_more_connections_than_the_limit_close_the_oldest(mixture, monkeypatch):
    monkeypatch.setattr("mot.serving.connection.connection_limits", lambda reserved: (32, 8))
    with in_thread(mixture) as server:
        held = []
        for _ in range(80):
            held.append(server.connect())
            if len(held) % 10 == 0:
                assert server.get("/health", headers={"connection": "close"}).status_code == 200
        open_ones = 0
        for s in held:
            s.setblocking(False)
            try:
                open_ones += s.recv(1) != b""
            except BlockingIOError:
                open_ones += 1
            except ConnectionError:
                pass
            s.close()
        assert 0 < open_ones <= 32
        assert server.app.state.mot.most_active == 24


def test_the_limit_is_below_the_descriptors(monkeypatch):
    def allowed(count):
        monkeypatch.setattr("resource.getrlimit", lambda kind: (count, count))

    for count in (128, 256, 1024, 65536):
        allowed(count)
        most, backlog = connection_limits(0)
        assert 0 < backlog <= 64
        assert most + 3 * backlog < count
        assert connection_limits(32)[0] <= most
    allowed(32)
    with pytest.raises(ValueError, match="ulimit -n 32: leaves no descriptors"):
        connection_limits(0)


def test_a_foreign_logger_writes_a_line_a_second():
    def record(name: str, at: float) -> logging.LogRecord:
        made = logging.LogRecord(name, logging.WARNING, "", 0, "Invalid HTTP request received.", None, None)
        made.created = at
        return made

    once = OncePerSecond()
    passed = [at for at in range(1000) if once.filter(record("uvicorn.error", 100 + at / 100))]
    assert passed == list(range(0, 1000, 100))
    last = record("uvicorn.error", 200.0)
    assert once.filter(last)
    assert last.facts == {"left_out": 99}
    assert all(once.filter(record("mot.serving", 100.0)) for _ in range(10))


# The event loop -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def longest_turn(server: Server):
    """A list that gets the most CPU seconds that one turn of the server's loop took, whatever else the machine does."""
    loops, most, going = [], [], [True]

    async def remember() -> None:
        loops.append(asyncio.get_running_loop())

    path = f"/loop{id(loops)}"
    server.app.add_api_route(path, remember)
    assert server.get(path).status_code == 200

    async def beat() -> float:
        longest, before = 0.0, time.thread_time()
        while going:
            await asyncio.sleep(0.001)
            now = time.thread_time()
            longest, before = max(longest, now - before), now
        return longest

    future = asyncio.run_coroutine_threadsafe(beat(), loops[0])
    yield most
    going.clear()
    most.append(future.result(30))


M = 2**20
HEAVY = {
    "numbers that are too large": b'{"prompt":[' + b"9999999999," * (M // 12) + b"1]}",
    "token ids": b'{"prompt":[' + b"1," * (M // 2 - 20) + b"1]}",
    "ids, then a text": b'{"prompt":[' + b"1," * (M // 2 - 20) + b'"a"]}',
    "empty objects": b'{"prompt":[' + b"{}," * (M // 3 - 20) + b"{}]}",
    "empty texts": b'{"prompt":[' + b'"",' * (M // 3 - 20) + b'""]}',
    "unknown names": b"{" + b",".join(b'"%x":1' % i for i in range(30_000)) + b"}",
    "messages": b'{"messages":[' + b'{"role":"user","content":"a"},' * 2047 + b'{"role":"user","content":"a"}]}',
    "messages without a role": b'{"messages":[' + b"{}," * 8000 + b"{}]}",
    "parts": b'{"messages":[{"role":"user","content":['
    + b'{"type":"text","text":"a"},' * 2047
    + b'{"type":"text","text":1}]}]}',
}


@pytest.mark.parametrize("kind", HEAVY)
def test_no_body_holds_the_loop(kind, mixture):
    path = "/v1/chat/completions" if kind in ("messages", "messages without a role", "parts") else "/v1/completions"
    with in_thread(mixture) as server, longest_turn(server) as most:
        answer = server.post(path, content=HEAVY[kind], headers={"content-type": "application/json"})
        assert answer.status_code == 400, answer.text[:200]
        assert len(answer.text) < 1000
    assert most[0] < 0.1


def test_large_answers_are_made_beside_the_loop(mixture):
    with in_thread(mixture, max_request_tokens=2**17, max_cached_tokens=2**19) as server:
        for more in ({}, {"stream": True}):
            with longest_turn(server) as most:
                body = {"prompt": ["a" * 2000] * 4, "max_tokens": 1, "echo": True, "logprobs": 5}
                answer = server.post("/v1/completions", body | more)
                assert answer.status_code == 200
                assert len(answer.content) > M // 2
            assert most[0] < 0.1
