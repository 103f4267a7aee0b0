"""The guard at the door: what a request must satisfy before the app sees it. ASGI middleware.

    Guard(app, keys, host, body_paths, max_body_bytes, full)

Checked in this order:
1. Framing: one of Content-Length and Transfer-Encoding. Size of the headers.
2. Host: without a key and bound to loopback, only loopback names are served. Otherwise a web page could reach us
   through a name of its own (DNS rebinding).
3. Key: if one is set, every path but exactly /health and /ready needs it, whether the app knows the path or not.
4. Queue: a full queue rejects before the body is read, so that rejected clients do not slow down the others.
5. Body: its type, size, JSON nesting and the time that it takes to arrive. A request that wants no body and has one is
   answered, then its connection is closed.

Errors have OpenAI's form. HEAD is GET to the app; uvicorn drops the answer's body. connection.py has the other timers.
"""

import asyncio
import base64
import binascii
import hmac
import json
import re
from collections.abc import Awaitable, Callable
from hashlib import sha256

OPEN_PATHS = ("/health", "/ready")
MAX_HEADER_BYTES = 16 * 2**10
MAX_DEPTH = 16  # levels of lists and objects in a body; the deepest valid one has five
MAX_BRACKETS = 2**14  # of lists and objects in a body: a conversation of 2,048 messages in parts has 12,288
MAX_QUOTES = 2**16  # of texts and names in a body; that conversation has 24,576
TIMEOUT_SECONDS = 10.0  # for the headers of a request, for its body, and for a client that does not read
FRAMING = (b"content-length", b"transfer-encoding")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
MOST_SHOWN = 100  # characters of a client's own text in a message
NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
QUEUE_IS_FULL = "the queue is full; retry after Retry-After seconds"

Receive = Callable[[], Awaitable[dict]]
Send = Callable[[dict], Awaitable[None]]


class ApiError(Exception):
    """An error in OpenAI's form: HTTP status, message, and the wrong parameter and a code if there are any."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def headers(self) -> dict[str, str]:
        extra = {"www-authenticate": 'Basic realm="mot", charset="UTF-8"'} if self.status == 401 else {}
        return extra | ({"retry-after": "1"} if self.status in (429, 503) else {})

    def body(self) -> dict:
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status)
        kind = kind or ("server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def shown(text: str) -> str:
    """A client's text in a message: short and ASCII."""
    return text[:MOST_SHOWN].encode("ascii", "backslashreplace").decode() + ("..." if len(text) > MOST_SHOWN else "")


class Guard:
    """`keys` are SHA-256 digests of the accepted keys. Without keys every client that reaches `host` is served.

    `body_paths` are the paths whose POST reads a body.
    """

    def __init__(
        self,
        app,
        keys: list[bytes],
        host: str,
        body_paths: set[str],
        max_body_bytes: int,
        full: Callable[[], bool],
    ):
        self.app, self.keys, self.body_paths = app, keys, body_paths
        self.max_body_bytes, self.full = max_body_bytes, full
        self.loopback_only = not keys and host in LOOPBACK

    async def __call__(self, scope: dict, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", scope  # uvicorn is configured without WebSockets and lifespan
        framing = [(name, value) for name, value in scope["headers"] if name in FRAMING]
        if len({name for name, _ in framing}) > 1:  # a proxy may read the other one: where does the request end?
            await send_error(ApiError(400, "both Content-Length and Transfer-Encoding"), send, close=True)
            return
        wants_body = scope["method"] == "POST" and scope["path"] in self.body_paths
        has_body = any(value != b"0" for _, value in framing)
        try:
            self._check_headers(scope)
            if wants_body and self.full():
                raise ApiError(429, QUEUE_IS_FULL, code="queue_full")
        except ApiError as e:
            await send_error(e, send, close=has_body and not await _drain_body(receive))
            return
        if not wants_body:
            await self._without_body(scope, receive, send, has_body)
            return
        try:
            receive = await self._read_body(scope, receive)
        except ApiError as e:
            await send_error(e, send, close=True)
            return
        await self.app(scope, receive, send)

    async def _without_body(self, scope: dict, receive: Receive, send: Send, has_body: bool) -> None:
        async def send_and_close(message: dict) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"connection", b"close")]
            await send(message)

        if has_body:
            await _drain_body(receive)
        # A copy, because uvicorn has to see HEAD.
        inner = scope | {"method": "GET"} if scope["method"] == "HEAD" else scope
        await self.app(inner, receive, send_and_close if has_body else send)
        if "route" in inner:
            scope["route"] = inner["route"]  # the log and the metrics read it

    def _check_headers(self, scope: dict) -> None:
        headers = scope["headers"]
        if sum(len(name) + len(value) for name, value in headers) + len(scope["raw_path"]) > MAX_HEADER_BYTES:
            raise ApiError(431, f"headers exceed {MAX_HEADER_BYTES} bytes")
        hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
        # A load balancer may ask for health by HTTP/1.0 without Host. A browser cannot.
        probe = not hosts and scope["http_version"] == "1.0" and scope["path"] in OPEN_PATHS
        named = len(hosts) == 1 and re.sub(r":\d+$", "", hosts[0]).strip("[]").lower() in LOOPBACK
        if self.loopback_only and not named and not probe:
            raise ApiError(
                421, "without a key only loopback names are served: use http://127.0.0.1 or http://localhost"
            )
        if not self.keys or scope["path"] in OPEN_PATHS:
            return
        given = [value for name, value in headers if name == b"authorization"]
        digest = sha256(key_of(given[0]) if len(given) == 1 else b"").digest()
        if not sum(hmac.compare_digest(digest, key) for key in self.keys):  # no early exit: constant time
            raise ApiError(401, "Incorrect API key provided. Send `Authorization: Bearer KEY`.", code="invalid_api_key")

    async def _read_body(self, scope: dict, receive: Receive) -> Receive:
        """Read the whole body. The returned `receive` replays it once, then waits for the disconnect."""
        kind = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
        if kind.partition(b";")[0].strip().lower() != b"application/json":
            # A page of another origin may send text/plain here without a CORS preflight, but not JSON.
            raise ApiError(415, "Content-Type must be application/json")
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if not length.isdigit() or int(length[:19]) > self.max_body_bytes:
            raise ApiError(413, f"body exceeds {self.max_body_bytes} bytes")
        body, more = bytearray(), True
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        break
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > self.max_body_bytes:
                        raise ApiError(413, f"body exceeds {self.max_body_bytes} bytes")
        except TimeoutError:
            raise ApiError(408, f"body did not arrive within {TIMEOUT_SECONDS:g} seconds") from None
        reason = await asyncio.to_thread(shape_error, bytes(body))
        if reason:
            raise ApiError(400, reason)
        given = False

        async def replay() -> dict:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        return replay


def key_of(header: bytes) -> bytes:
    """The key in `Bearer KEY`, or the password in `Basic`, which a browser sends for the playground."""
    scheme, _, value = header.partition(b" ")
    if scheme.lower() == b"bearer":
        return value
    if scheme.lower() == b"basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except binascii.Error:
            pass
    return b""


def shape_error(body: bytes) -> str | None:
    """Why a body would be expensive to parse, or None."""
    if without_escapes(body).count(b'"') > MAX_QUOTES:
        return f"body has more than {MAX_QUOTES // 2} texts and names"
    if len(brackets_of(body)) > MAX_BRACKETS:
        return f"body has more than {MAX_BRACKETS // 2} lists and objects"
    return f"body is not JSON of at most {MAX_DEPTH} levels" if too_deep(body) else None


def too_deep(body: bytes) -> bool:
    """True if a JSON text nests more than MAX_DEPTH levels, or closes a bracket that is not open. Takes linear time."""
    brackets = brackets_of(body)
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    return bool(brackets)


def brackets_of(body: bytes) -> bytes:
    """The brackets of a JSON text outside its strings."""
    return b"".join(without_escapes(body).split(b'"')[::2]).translate(None, NO_BRACKETS)


def without_escapes(body: bytes) -> bytes:
    r"""A JSON text without its \\ and \", so that every quote begins or ends a string."""
    return body.replace(rb"\\", b"").replace(rb"\"", b"")


async def _drain_body(receive: Receive) -> bool:
    """Read and drop a rejected body. True if that was all of it.

    A connection that is closed with unread bytes is reset, and the client then loses the answer.
    """
    taken = 0
    try:
        async with asyncio.timeout(min(1.0, TIMEOUT_SECONDS)):
            while taken < 2**16:
                message = await receive()
                if not message.get("more_body", False):
                    return True
                taken += len(message["body"])
    except TimeoutError:
        pass
    return False


async def send_error(e: ApiError, send: Send, close: bool) -> None:
    """Answer with an error from middleware, where the app's handlers do not reach."""
    content = json.dumps(e.body()).encode()  # ASCII, because a message may quote a lone surrogate
    headers = {"content-type": "application/json", "content-length": str(len(content))} | e.headers()
    headers |= {"connection": "close"} if close else {}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": e.status, "headers": raw})
    await send({"type": "http.response.body", "body": content})
