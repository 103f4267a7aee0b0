"""A server under abuse: how long others wait, what the log, the descriptors and the memory of the server grow by.

    python bench/serve_abuse.py                          # every kind, about six minutes
    python bench/serve_abuse.py --kinds hold --seconds 30
    python bench/serve_abuse.py --code /path/to/another/checkout

A server in a process of its own with --descriptors open files, an untrained byte-level model, no key. Beside each abuse
a probe asks /health every 20 ms on a connection of its own, new each time, and waits five seconds at most.

hold      ways to hold 140 connections open
bodies    bodies within the size limit that are expensive to read or to reject
answers   prompts of 2,000 tokens with echo and log-probabilities
stop      SIGTERM while eight clients do not read their streams
"""

import argparse
import contextlib
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
M = 2**20
JSON_HEAD = "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"


def untrained(directory: str) -> None:
    from mot.model.build import build_model
    from mot.model.tokenizer import build_tokenizer
    from mot.training.settings import TrainSettings

    tokenizer = build_tokenizer(["bytes, so that every text has tokens"], 257, 8)
    model = build_model(TrainSettings(hidden_size=64, num_layers=2, num_thoughts=8, seq_length=4096), tokenizer)
    tokenizer.eos_token = "<|thought_0|>"  # an end that is never generated
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


class Server:
    def __init__(self, code: str, model: str, descriptors: int, log: str):
        command = [sys.executable, "-P", "-c", "from mot import cli; cli.run(cli.serve)", "--model", model]
        self.log = log
        self.process = subprocess.Popen(
            [*command, "--port", "0", "--max_request_tokens", "100000", "--max_cached_tokens", "400000"],
            env=os.environ | {"PYTHONPATH": code},
            stdout=subprocess.PIPE,
            stderr=open(log, "w"),  # noqa: SIM115
            text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors)),
        )
        self.port = int(self.process.stdout.readline().rsplit(":", 1)[1])

    def connect(self) -> socket.socket:
        s = socket.socket()
        s.settimeout(5)
        s.connect(("127.0.0.1", self.port))
        return s

    def memory(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def post(self, path: str, body: bytes, timeout: float = 60) -> bytes:
        """The answer's first bytes, or what went wrong."""
        try:
            with self.connect() as s:
                s.settimeout(timeout)
                s.sendall(f"{JSON_HEAD.format(path=path)}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                answer = first = s.recv(65536)
                while answer and not first.startswith(b"HTTP/1.1 4"):  # a stream to its end
                    answer = s.recv(65536)
                    if b"[DONE]" in answer or b"content-length" in first:
                        break
                return first
        except OSError as e:
            return f"{type(e).__name__}".encode()


class Probe:
    """Asks /health until `stop`. `seconds` are the waiting times, 5 s or more where there was no answer."""

    def __init__(self, server: Server):
        self.server, self.seconds, self.failures, self.going = server, [], 0, True
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        while self.going:
            begin = time.perf_counter()
            try:
                with self.server.connect() as s:
                    s.sendall(HEALTH + b"Connection: close\r\n\r\n")
                    ok = s.recv(100).startswith(b"HTTP/1.1 200")
            except OSError:
                ok = False
            self.failures += not ok
            self.seconds.append(time.perf_counter() - begin)
            time.sleep(0.02)

    def stop(self) -> str:
        self.going = False
        self.thread.join()
        times = sorted(self.seconds)
        p99 = times[int(0.99 * (len(times) - 1))]
        return f"{1000 * p99:7.0f} {1000 * times[-1]:7.0f} {self.failures:4}/{len(times):<5}"


HOLDS = {
    # name: (first bytes, whether to read an answer before the rest, bytes to send every second after that)
    "says nothing": (b"", False, b""),
    "half a request line": (b"GET /hea", False, b""),
    "a header a second": (HEALTH, False, b"X: 1\r\n"),
    "idle after an answer": (HEALTH + b"\r\n", True, b""),
    "a byte of a body nobody wants": (HEALTH + b"Content-Length: 9\r\n\r\n", True, b"x"),
    "a byte of the next request": (HEALTH + b"\r\n", True, b"G"),
    "a slow body": (JSON_HEAD.format(path="/v1/completions").encode() + b"Content-Length: 999\r\n\r\n", False, b"{"),
    "chunks without an end": (
        JSON_HEAD.format(path="/v1/completions").encode() + b"Transfer-Encoding: chunked\r\n\r\n",
        False,
        b"1\r\n \r\n",
    ),
    "100-continue, then nothing": (
        JSON_HEAD.format(path="/v1/route").encode() + b"Expect: 100-continue\r\nContent-Length: 99\r\n\r\n",
        False,
        b"",
    ),
    "unread answers": ((b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 400), False, b""),
    "unread streams": (b"", False, b""),
}


def stream_request(**more) -> bytes:
    body = json.dumps({"prompt": "a", "n": 8, "max_tokens": 1000, "stream": True, "logprobs": 5} | more).encode()
    return f"{JSON_HEAD.format(path='/v1/completions')}Content-Length: {len(body)}\r\n\r\n".encode() + body


def hold(server: Server, name: str, count: int, seconds: float) -> None:
    first, answer, rest = HOLDS[name]
    first = stream_request(max_tokens=400) if name == "unread streams" else first
    held: list[socket.socket] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        while len(held) < count and time.monotonic() < end:
            with contextlib.suppress(OSError):
                s = socket.socket()
                if name.startswith("unread"):
                    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                s.settimeout(1)
                held.append(s)
                s.connect(("127.0.0.1", server.port))
                s.sendall(first)
                if answer:
                    s.recv(4096)
        for s in list(held):
            try:
                s.setblocking(False)
                if rest:
                    s.send(rest)
                if not name.startswith("unread") and select.select([s], [], [], 0)[0] and s.recv(4096) == b"":
                    raise OSError("closed")
            except BlockingIOError:
                pass
            except OSError:
                held.remove(s)
                s.close()
        time.sleep(min(1.0, max(0.0, end - time.monotonic())))
    for s in held:
        s.close()


def bodies() -> Iterator[tuple[str, str, bytes]]:
    """(name, path, body), each of just under a MiB."""

    def filled(before: bytes, unit: bytes, after: bytes) -> bytes:
        return before + unit * ((M - len(before) - len(after) - 9) // len(unit)) + unit.rstrip(b",") + after

    c, chat, user = "/v1/completions", "/v1/chat/completions", b'{"role":"user","content":"a"},'
    for name, unit in {
        "numbers that are too large": b"9999999999,",
        "negative numbers": b"-1,",
        "true": b"true,",
        "null": b"null,",
        "fractions": b"1.5,",
        "empty lists": b"[],",
        "empty objects": b"{},",
        "lists of one": b"[1],",
        "lists of a text": b'["a"],',
        "empty texts": b'"",',
        "texts": b'"a",',
        "token ids": b"1,",
        "token 300": b"300,",
        "thought tokens": b"258,",
        "numbers of 4,000 digits": b"9" * 4000 + b",",
    }.items():
        yield f"prompt of {name}", c, filled(b'{"prompt":[', unit, b"]}")
    yield "ids, then a text", c, filled(b'{"prompt":[', b"1,", b',"a"]}')
    yield "a prompt of letters", c, filled(b'{"prompt":"', b"a", b'"}')
    yield "a prompt of emoji", c, filled(b'{"prompt":"', "\U0001f600".encode(), b'"}')
    yield "a prompt of escapes", c, filled(b'{"prompt":"', b"\\ud83d\\ude00", b'"}')
    yield "a prompt of half emoji", c, filled(b'{"prompt":"', b"\\ud83d", b'"}')
    yield "unknown names", c, b"{" + b",".join(b'"%x":1' % i for i in range(100_000)) + b"}"
    yield "one name again and again", c, filled(b"{", b'"a":1,', b"}")
    yield "a long name", c, filled(b'{"', b"a", b'":1}')
    yield "a long model", c, filled(b'{"prompt":"a","model":"', b"a", b'"}')
    yield "stops", c, filled(b'{"prompt":"a","stop":[', b'"a",', b"]}")
    yield "thoughts", c, filled(b'{"prompt":"a","thoughts":[', b"1,", b"]}")
    yield "messages", chat, filled(b'{"messages":[', user, b"]}")
    yield "messages without a role", chat, filled(b'{"messages":[', b"{},", b"]}")
    yield "messages of a wrong role", chat, filled(b'{"messages":[', b'{"role":"a","content":"a"},', b"]}")
    parts = b'{"type":"text","text":"a"},'
    yield "parts of a message", chat, filled(b'{"messages":[{"role":"user","content":[', parts, b"]}]}")
    yield "a million levels", c, b"[" * (M - 9)
    yield "quotes", c, b'"' * (M - 9)
    yield "a prompt for the router", "/v1/route", filled(b'{"prompt":[', b"1,", b"]}")


def grow(server: Server, name: str, work) -> None:
    memory, log = server.memory(), os.path.getsize(server.log)
    probe = Probe(server)
    time.sleep(0.3)
    begin, result = time.monotonic(), work()
    seconds = time.monotonic() - begin
    waits = probe.stop()
    memory, log = (server.memory() - memory) / M, (os.path.getsize(server.log) - log) / M
    result = str(result or "")[:40]
    print(f"{name:34} {waits} {seconds:6.1f} {server.descriptors():5} {memory:7.1f} {log:7.2f}  {result}", flush=True)


def stop(server: Server, seconds: float) -> None:
    held = [server.connect() for _ in range(8)]
    for s in held:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.sendall(stream_request(n=8, max_tokens=1000))
    time.sleep(seconds)
    begin = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    code = server.process.wait(120)
    print(f"SIGTERM with 8 unread streams: exit code {code} after {time.monotonic() - begin:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=["hold", "bodies", "answers", "stop"])
    parser.add_argument("--only", default="", help="only abuses whose name has this in it")
    parser.add_argument("--code", default=str(ROOT), help="serve this checkout instead, for a comparison")
    parser.add_argument("--descriptors", type=int, default=128)
    parser.add_argument("--connections", type=int, default=140)
    parser.add_argument("--seconds", type=float, default=20, help="of each way of holding")
    args = parser.parse_args()
    columns = f"{'p99 ms':>7} {'max ms':>7} {'failed':>10} {'s':>6} {'files':>5} {'MiB':>7} {'log MiB':>7}  answer"
    print(f"{'':34} {columns}")
    with tempfile.TemporaryDirectory() as directory:
        untrained(directory)
        for kind in args.kinds:
            server = Server(args.code, directory, args.descriptors, f"{directory}/{kind}.log")
            try:
                server.post("/v1/completions", b'{"prompt": "a"}')
                if kind == "stop":
                    stop(server, 5)
                else:
                    for name, work in abuses(kind, server, args):
                        if args.only in name:
                            grow(server, name, work)
            finally:
                server.process.kill()
                server.process.communicate()


def abuses(kind: str, server: Server, args: argparse.Namespace) -> Iterator[tuple[str, Callable[[], str | None]]]:
    def status(path: str, body: bytes) -> str:
        return server.post(path, body).split(b"\r")[0].decode()

    if kind == "hold":
        for name in HOLDS:
            yield name, partial(hold, server, name, args.connections, args.seconds)
    elif kind == "bodies":
        for name, path, body in bodies():
            yield name, partial(status, path, body)
    elif kind == "answers":
        for count in (8, 40):
            body = {"prompt": ["a" * 2000] * count, "max_tokens": 1, "echo": True, "logprobs": 5}
            for more in ({}, {"stream": True}):
                whole = json.dumps(body | more).encode()
                yield f"{count} echoes{', streamed' if more else ''}", partial(status, "/v1/completions", whole)


if __name__ == "__main__":
    main()
