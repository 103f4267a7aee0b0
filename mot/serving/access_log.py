"""The server's log: one JSON object per line on standard error, one line per request.

    log_as_json()                                             # once, at the start
    app.add_middleware(AccessLogMiddleware, state=state)      # outermost
    request.state.facts["n"] = 8                              # a route adds to the line of its request

The log has no text of a prompt or an answer, unless `--log_prompts`.
"""

import json
import logging
import time
import uuid

from mot.serving.guard import OPEN_PATHS, ApiError, Receive, Send, send_error
from mot.serving.state import State

log = logging.getLogger("mot.serving")


class AccessLogMiddleware:
    """One log line and one count per request. Cancels the jobs that a request leaves behind."""

    def __init__(self, app, state: State):
        self.app, self.state = app, state

    async def __call__(self, scope: dict, receive: Receive, send: Send) -> None:
        begin, status = time.monotonic(), 0
        facts = scope.setdefault("state", {})["facts"] = {"id": uuid.uuid4().hex}
        jobs = scope["state"]["jobs"] = []

        async def send_with_id(message: dict) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", facts["id"].encode())]
                message["headers"].append((b"x-content-type-options", b"nosniff"))
            await send(message)

        self.state.active += 1
        try:
            await self.app(scope, receive, send_with_id)
        except Exception as e:
            log.exception("a request failed", extra={"facts": facts | {"error": repr(e)}})
            if status == 0:
                error = ApiError(500, "internal server error; the server's log has the reason")
                await send_error(error, send_with_id, close=True)
        finally:
            self.state.active -= 1
            for job in jobs:
                self.state.engine.cancel(job)
            route = scope.get("route")
            path = route.path if route is not None else "other"  # unknown paths are unbounded, so they are no label
            self.state.metrics.requests.labels(path, str(status)).inc()
            seconds = round(time.monotonic() - begin, 4)
            level = logging.DEBUG if path in OPEN_PATHS else logging.INFO  # probes come every second
            log.log(level, "request", extra={"facts": facts | {"path": path, "status": status, "seconds": seconds}})


class OncePerSecond(logging.Filter):
    """At most one line a second of each foreign logger, so that no client can fill the disk with its warnings."""

    def __init__(self):
        super().__init__()
        self.last: dict[str, float] = {}
        self.dropped: dict[str, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """The next line that is let through has the number of those before it that were not."""
        name = record.name
        if name == log.name:
            return True
        if record.created - self.last.get(name, 0.0) < 1:
            self.dropped[name] = self.dropped.get(name, 0) + 1
            return False
        self.last[name] = record.created
        if left_out := self.dropped.pop(name, 0):
            record.facts = {"left_out": left_out}
        return True


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (UTC), level, event, and the record's `facts`."""

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        line = {"time": when, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "facts", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_as_json() -> None:
    """Send our log, and the warnings of uvicorn, asyncio and Python, to standard error in this format."""
    logging.captureWarnings(True)  # a library's DeprecationWarning would be a line that is no JSON
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    handler.addFilter(OncePerSecond())
    levels = {"mot.serving": logging.INFO, "uvicorn.error": logging.WARNING, "asyncio": logging.ERROR}
    levels["py.warnings"] = logging.WARNING
    for name, level in levels.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
