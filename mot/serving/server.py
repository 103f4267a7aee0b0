"""Serve a mixture over an OpenAI-compatible API: one process, one model, one port.

    jobs      what is asked of an engine, and who waits
    engine    the thread that owns the model: requests join and leave between its steps
    vllm      the same from outside: a vLLM server computes
    api       bodies, limits, routes, metrics
    guard     host, key, sizes, patience: what a request must be before it is looked at
    page.html the playground

SIGTERM or SIGINT: /ready says no, new requests are refused, what runs has `--drain_seconds` to finish, exit code 0; a second
signal leaves at once.
"""

import asyncio
import contextlib
import json
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

SHORTEST_KEY = 16  # characters
log = logging.getLogger("mot.serving.server")


def serve(settings: ServeSettings) -> None:
    """Serve until a signal. Raises ValueError for keys, a port or a model that cannot be used."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as e:
        raise ValueError(f"mot serve: needs {e.name}; pip install 'mixture-of-thoughts[serve]'") from None
    keys = read_keys(settings.api_key_file)
    with contextlib.closing(bind(settings.host, settings.port)) as sock:
        from mot.inference.think import MixtureOfThoughts
        from mot.serving import guard
        from mot.serving.app import create_app
        from mot.serving.transformers_engine import Engine

        if settings.engine == "vllm":
            from mot.serving.vllm_engine import VllmEngine

            engine = VllmEngine(settings.vllm_url, settings.model, settings.max_batch, settings.max_queue)
        else:
            mixture = MixtureOfThoughts.from_pretrained(settings.model)
            engine = Engine(mixture, settings.max_batch, settings.max_cached_tokens, settings.max_queue)
        _log_as_json()
        if not engine.mixture.thoughts:
            warn(f"--model {settings.model}: has no thoughts; it is served as a plain language model, n = samples")
        if not keys and settings.host not in guard.LOOPBACK:
            warn(
                f"--host {settings.host}: whoever reaches this port may use it; give --api_key_file FILE or MOT_API_KEY"
            )
        asyncio.run(_serve(create_app(engine, settings, keys), settings, sock))


def read_keys(path: str | None) -> list[bytes]:
    """SHA-256 digests of the keys: a line each of the file, else MOT_API_KEY, else none. Raises ValueError."""
    where, text = f"--api_key_file {path}", os.environ.get("MOT_API_KEY", "")
    if path is None:
        where = "MOT_API_KEY"
    else:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise ValueError(f"{where}: cannot be read ({e}); give a file with one key a line") from None
    keys = [line.strip() for line in text.splitlines() if line.strip()]
    if not keys and (path is not None or "MOT_API_KEY" in os.environ):
        raise ValueError(f"{where}: has no key; put one in, e.g. from `openssl rand -hex 24`, or leave it out")
    if any(not re.fullmatch(r"[!-~]+", key) or len(key) < SHORTEST_KEY for key in keys):  # and never the key itself
        raise ValueError(
            f"{where}: a key has fewer than {SHORTEST_KEY} characters, or others than visible ASCII; e.g. `openssl rand -hex 24`"
        )
    return [sha256(key.encode()).digest() for key in keys]


def bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet: whoever asks while the model loads is refused, not kept waiting."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind)
    except OSError as e:
        raise ValueError(f"--host {host}: is not an address of this machine ({e.strerror}); e.g. 127.0.0.1") from None
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
    except OSError as e:
        sock.close()
        raise ValueError(
            f"--port {port}: cannot be had on {host} ({e.strerror}); give another, or --port 0 for any that is free"
        ) from None
    return sock


def warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


def configure(app) -> "uvicorn.Config":
    """How uvicorn serves the app: one process, HTTP/1.1 only, nothing waited for without an end."""
    import uvicorn

    from mot.serving.guard import MAX_HEADER_BYTES, Patient

    return uvicorn.Config(
        app,
        http=Patient,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nobody's word on who asks
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        timeout_keep_alive=65,  # longer than clients and proxies keep one: whoever closes first must be the one that asks
        timeout_graceful_shutdown=1,  # what may finish has finished by then
    )


async def _serve(app, settings: ServeSettings, sock: socket.socket) -> None:
    import uvicorn

    server, state, loop = uvicorn.Server(configure(app)), app.state.mot, asyncio.get_running_loop()
    stop = asyncio.Event()

    def on_signal(signum: int) -> None:
        if stop.is_set():
            os._exit(128 + signum)
        stop.set()

    # Through the loop, which takes the wakeup pipe from mot.runtime.signals: its watchdog would end a long drain.
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, on_signal, signum)
    server.capture_signals = contextlib.nullcontext
    serving = asyncio.create_task(server.serve([sock]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    host, port = sock.getsockname()[:2]
    thoughts = state.engine.mixture.different_thoughts if state.engine.mixture.thoughts else "no"
    print(
        f"serving {state.name} ({thoughts} thoughts) at http://{f'[{host}]' if ':' in host else host}:{port}",
        flush=True,
    )
    await asyncio.wait([serving, asyncio.create_task(stop.wait())], return_when=asyncio.FIRST_COMPLETED)
    await drain(state, settings.drain_seconds)
    server.should_exit = True
    await serving


async def drain(state, seconds: float) -> None:
    """Begin nothing new, and wait until everything begun has been answered, `seconds` at most."""
    state.draining, begin = True, time.monotonic()
    log.info("draining", extra={"facts": {"requests": state.active}})
    while state.active and time.monotonic() - begin < seconds:
        await asyncio.sleep(0.02)
    log.info("drained", extra={"facts": {"seconds": round(time.monotonic() - begin, 3), "cut_off": state.active}})
    # A step may be long, and a thread that is told nothing would outlive the interpreter's end.
    await asyncio.to_thread(state.engine.close)
    await asyncio.sleep(0.05 if state.active else 0)  # those cut off hear of it


class _Lines(logging.Formatter):
    """One JSON object per line: time (UTC), level, event, and the facts of a request."""

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        line = {"time": when, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "facts", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _log_as_json() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines())
    for name, level in (
        ("mot.serving.server", logging.INFO),
        ("uvicorn.error", logging.WARNING),
        ("asyncio", logging.ERROR),
    ):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
