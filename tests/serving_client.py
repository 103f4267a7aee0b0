"""A real server, in a thread of the test or in a process of its own. Used by tests/serving.

with in_thread(mixture, max_queue=4) as server:      # fields of ServeSettings by name; keys=["..."]
    server.post("/v1/completions", {"prompt": "the king"}); server.engine.counts; server.client().models.list()
with in_process(["--model", run]) as server: server.process.send_signal(...)
"""

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import httpx
import openai
import pytest
import uvicorn
from conftest import ROOT

from mot import cli
from mot.inference.think import MixtureOfThoughts
from mot.serving.app import create_app
from mot.serving.engine import Engine
from mot.serving.server import bind, configure
from mot.serving.settings import ServeSettings
from mot.serving.transformers_engine import TransformersEngine

TORTURE = os.environ.get("TORTURE") == "1"
# One client for all tests, because its TLS context takes 20 ms.
http = httpx.Client(
    timeout=60, trust_env=False, limits=httpx.Limits(max_connections=None, max_keepalive_connections=64)
)


@dataclass
class Server:
    """Its address; in a thread, its engine and app; in a process, the process."""

    url: str
    engine: Engine | None = None
    app: object = None
    process: subprocess.Popen | None = None
    key: str = "none"

    def post(self, path: str, body=None, **options) -> httpx.Response:
        return http.post(self.url + path, json=body, **options)

    def get(self, path: str, **options) -> httpx.Response:
        return http.get(self.url + path, **options)

    def complete(self, **body) -> dict:
        answer = self.post("/v1/completions", body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def texts(self, **body) -> list[str]:
        return [choice["text"] for choice in self.complete(**body)["choices"]]

    def client(self, asynchronous: bool = False):
        """OpenAI's own."""
        kind = openai.AsyncOpenAI if asynchronous else openai.OpenAI
        return kind(base_url=self.url + "/v1", api_key=self.key, max_retries=0)

    def metric(self, name: str, headers: dict | None = None) -> float:
        """The sum of a metric over its labels."""
        lines = self.get("/metrics", headers=headers).text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if re.match(rf"{name}(\{{.*\}})? ", line))

    def connect(self) -> socket.socket:
        host, port = self.url.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=30)

    def wait_until_idle(self, seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not (self.engine.idle() and self.app.state.mot.active == 0):
            assert time.monotonic() < end, "not idle"
            time.sleep(0.005)


def in_thread(mixture: MixtureOfThoughts, keys: tuple[str, ...] = (), **settings) -> AbstractContextManager[Server]:
    """A server of the embedded engine."""
    flags = settings_of(settings)
    engine = TransformersEngine(mixture, flags.max_batch, flags.max_cached_tokens, flags.max_queue)
    return around(engine, keys, **settings)


def settings_of(settings: dict) -> ServeSettings:
    flags = ServeSettings(**{"model": "tests/mixture", "port": 0} | settings)
    flags.validate()
    return flags


@contextlib.contextmanager
def around(engine: Engine, keys: tuple[str, ...] = (), **settings) -> Iterator[Server]:
    """A server of any engine, which is closed at the end."""
    app = create_app(engine, settings_of(settings), [sha256(key.encode()).digest() for key in keys])
    sock = bind("127.0.0.1", 0)
    server = uvicorn.Server(configure(app))
    thread = threading.Thread(target=server.run, args=([sock],))
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        yield Server(f"http://127.0.0.1:{sock.getsockname()[1]}", engine, app, key=keys[0] if keys else "none")
    finally:
        server.should_exit = True
        thread.join()
        engine.close()
        sock.close()


@contextlib.contextmanager
def in_process(flags: list, log: Path | None = None) -> Iterator[Server]:
    """`mot serve` with these flags, on a free port, once it is ready. Its log is the stderr of the process, or a file.

    Give a file for more than some hundred requests: they fill a pipe that is not read.
    """
    command = [sys.executable, str(ROOT / "serve_mot.py"), "--port", "0", *map(str, flags)]
    stderr = open(log, "w") if log else subprocess.PIPE  # noqa: SIM115
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
    try:
        line = process.stdout.readline()
        assert line, log.read_text() if log else process.stderr.read()
        yield Server(re.search(r"http://\S+", line)[0], process=process)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def refusal(capsys, *flags) -> str:
    """The one line of error from a server that cannot start, with exit code 2."""
    capsys.readouterr()  # drop earlier output
    with pytest.raises(SystemExit) as e:
        cli.main(["serve", *map(str, flags)])
    assert e.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    return err


def memory() -> int:
    """Bytes of this process's resident memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
