"""Serve a mixture over an OpenAI-compatible API: one process, one model, one port.

    serve(ServeSettings(model="outputs/run"))

    engine               what the API asks of an engine, and the queue; transformers_engine and vllm_engine compute
    app                  create_app, errors, the routes that OpenAI does not have
    completions, chat    OpenAI's two routes
    stream               events of the engine -> an answer, whole or streamed
    limits, schemas      what a body may be
    guard, body          host, key and sizes before a body is read; the body, parsed in a thread
    connection           how long a connection may wait, and how many there may be
    state, metrics       what the routes share; Prometheus
    access_log           one JSON line per request
    logprobs, token_text log-probabilities in OpenAI's forms; a token as bytes
    pages                the playground at / and the fields at /docs

SIGTERM or SIGINT: /ready answers 503, new requests are rejected, running ones have `--drain_seconds` to finish, exit
code 0. A second signal exits at once.
"""

import asyncio
import contextlib
import importlib.util
import logging
import os
import re
import signal
import socket
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from mot.serving.settings import ServeSettings

if TYPE_CHECKING:
    import uvicorn

    from mot.serving.state import State

PACKAGES = (
    "fastapi",
    "h11",
    "httpx",
    "prometheus_client",
    "pydantic",
    "pydantic_core",
    "starlette",
    "uvicorn",
)  # the extra `serve`
MIN_KEY_CHARACTERS = 16
log = logging.getLogger("mot.serving")


def serve(settings: ServeSettings) -> None:
    """Serve until a signal. Raises ValueError for a missing package and for unusable keys, a port or a model."""
    check_packages()
    keys = read_keys(settings.api_key_file)
    with contextlib.closing(bind(settings.host, settings.port)) as sock:
        from mot.serving.access_log import log_as_json
        from mot.serving.app import create_app
        from mot.serving.guard import LOOPBACK

        engine = build_engine(settings)
        log_as_json()
        if not engine.mixture.thoughts:
            warn(f"--model {settings.model}: has no thoughts; it is served as a plain language model, n = samples")
        if not keys and settings.host not in LOOPBACK:
            where = f"--host {settings.host}"
            warn(f"{where}: every client that reaches this port is served; give --api_key_file FILE or MOT_API_KEY")
        asyncio.run(run(create_app(engine, settings, keys), settings, sock))


def check_packages() -> None:
    """Raise ValueError with one line that names every missing package and the extra that brings them."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"mot serve: needs {', '.join(missing)}; pip install 'mixture-of-thoughts[serve]'")


def build_engine(settings: ServeSettings):
    """The Engine that `--engine` names. Raises ValueError if its model cannot be used."""
    from mot.inference.think import MixtureOfThoughts

    if settings.engine == "vllm":
        from mot.serving.vllm_engine import VllmEngine

        return VllmEngine(settings.vllm_url, settings.model, settings.max_batch, settings.max_queue)
    from mot.serving.transformers_engine import TransformersEngine

    mixture = MixtureOfThoughts.from_pretrained(settings.model)
    return TransformersEngine(mixture, settings.max_batch, settings.max_cached_tokens, settings.max_queue)


def read_keys(path: str | None) -> list[bytes]:
    """SHA-256 digests of the keys: one per line of the file, else MOT_API_KEY, else none. Raises ValueError."""
    where, text = f"--api_key_file {path}", os.environ.get("MOT_API_KEY", "")
    if path is None:
        where = "MOT_API_KEY"
    else:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise ValueError(f"{where}: cannot be read ({e}); give a file with one key per line") from None
    keys = [line.strip() for line in text.splitlines() if line.strip()]
    if not keys and (path is not None or "MOT_API_KEY" in os.environ):
        raise ValueError(f"{where}: has no key; put one in, e.g. from `openssl rand -hex 24`, or leave it out")
    # The message never shows the key itself.
    if any(not re.fullmatch(r"[!-~]+", key) or len(key) < MIN_KEY_CHARACTERS for key in keys):
        rule = f"at least {MIN_KEY_CHARACTERS} characters, visible ASCII only"
        raise ValueError(f"{where}: a key must have {rule}; e.g. `openssl rand -hex 24`")
    return [sha256(key.encode()).digest() for key in keys]


def bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet: while the model loads, clients are refused instead of kept waiting."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind)
    except OSError as e:
        raise ValueError(f"--host {host}: is not an address of this machine ({e.strerror}); e.g. 127.0.0.1") from None
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Of every connection. Without it the kernel would take megabytes for a client that does not read its stream.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**17)
    try:
        sock.bind(address)
    except OSError as e:
        sock.close()
        way_out = "give another one, or --port 0 for any free port"
        raise ValueError(f"--port {port}: is not available on {host} ({e.strerror}); {way_out}") from None
    return sock


def warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


def configure(app) -> "uvicorn.Config":
    """How uvicorn serves the app: one process, HTTP/1.1 only, a limit on everything that it waits for.

    Raises ValueError if the limit of open files leaves no connections.
    """
    import uvicorn

    from mot.serving.connection import IDLE_SECONDS, Connection, connection_limits
    from mot.serving.guard import MAX_HEADER_BYTES

    state = app.state.mot
    # VllmEngine has a connection to vLLM for every text.
    most, backlog = connection_limits(state.settings.max_batch if state.settings.engine == "vllm" else 0)
    state.most_active = most * 3 // 4
    return uvicorn.Config(
        app,
        http=Connection,
        limit_concurrency=most,
        backlog=backlog,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # a client could forge them
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=1,  # `drain` has already waited
    )


async def run(app, settings: ServeSettings, sock: socket.socket) -> None:
    """Serve the app on a bound socket until a signal, then drain."""
    import uvicorn

    server, state, loop = uvicorn.Server(configure(app)), app.state.mot, asyncio.get_running_loop()
    stop = asyncio.Event()

    def on_signal(signum: int) -> None:
        if stop.is_set():
            os._exit(128 + signum)
        stop.set()

    # The loop's own handlers take the wakeup pipe from mot.runtime.signals, whose watchdog would end a long drain.
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, on_signal, signum)
    # uvicorn would replace these handlers and shut down without `drain`. Its method is public, but not documented. The
    # upper bound in pyproject.toml and the SIGTERM test in test_life.py guard it.
    server.capture_signals = contextlib.nullcontext
    serving = asyncio.create_task(server.serve([sock]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    sock.listen(1024)  # asyncio accepts few at a time, see connection.py; the others wait here instead of a second
    host, port = sock.getsockname()[:2]
    thoughts = state.engine.mixture.different_thoughts if state.engine.mixture.thoughts else "no"
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    print(f"serving {state.name} ({thoughts} thoughts) at {url}", flush=True)
    await asyncio.wait([serving, asyncio.create_task(stop.wait())], return_when=asyncio.FIRST_COMPLETED)
    await drain(state, settings.drain_seconds)
    server.should_exit = True
    await serving


async def drain(state: "State", seconds: float) -> None:
    """Start no new request, and wait until every running one is answered, `seconds` at most. Then close the engine."""
    state.draining, begin = True, time.monotonic()
    log.info("draining", extra={"facts": {"requests": state.active}})
    while state.active and time.monotonic() - begin < seconds:
        await asyncio.sleep(0.02)
    log.info("drained", extra={"facts": {"seconds": round(time.monotonic() - begin, 3), "cut_off": state.active}})
    # In a thread, because a step may be long. Without `close` the engine would run while the interpreter exits.
    await asyncio.to_thread(state.engine.close)
    await asyncio.sleep(0.05 if state.active else 0)  # the clients that are cut off get their error event
