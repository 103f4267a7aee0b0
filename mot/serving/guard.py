"""The door's guard: what a request must be before anything of it is looked at. ASGI middleware, from the outside in.

    Guard(app, keys, host, max_body_bytes, full)

1. Host: without a key and bound to loopback, only names of loopback, or a web page could reach us by DNS rebinding.
2. Key: once one is set, every path but exactly /health and /ready needs it, known to the app or not.
3. Room: a full queue refuses before it reads, or a crowd that is refused would slow down those that are served.
4. Size: header bytes, body bytes, nesting of the JSON, and time to send it all.

Whatever is refused is refused in OpenAI's shape. `Patient` is the connection that waits for headers only so long.
"""

import asyncio
import base64
import binascii
import hmac
import json
import re
from collections.abc import Awaitable, Callable
from hashlib import sha256

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

OPEN = ("/health", "/ready")
MAX_HEADER_BYTES = 16 * 2**10
MAX_DEPTH = 16  # levels of lists and objects in a body; ours has five
SECONDS = 10.0  # for the headers of a request, and for its body
LOOPBACK = ("127.0.0.1", "localhost", "::1")
QUEUE_IS_FULL = "the queue is full; come back after Retry-After seconds"

Receive = Callable[[], Awaitable[dict]]
Send = Callable[[dict], Awaitable[None]]


class Refused(Exception):
    """An answer in OpenAI's shape: `status`, `message`, and perhaps the parameter that is wrong."""

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


class Guard:
    """`keys` are SHA-256 digests of the keys that open; none: everything is open to whoever reaches `host`."""

    def __init__(self, app, keys: list[bytes], host: str, max_body_bytes: int, full: Callable[[], bool]):
        self.app, self.keys, self.max_body_bytes, self.full = app, keys, max_body_bytes, full
        self.loopback_only = not keys and host in LOOPBACK

    async def __call__(self, scope: dict, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", scope  # uvicorn is told to know neither WebSockets nor a lifespan
        has_body = scope["method"] not in ("GET", "HEAD")
        try:
            self._check_headers(scope)
            if has_body and self.full():
                raise Refused(429, QUEUE_IS_FULL, code="queue_full")
        except Refused as e:
            await refuse(e, send, close=not await _swallow(receive))
            return
        try:
            receive = await self._body(scope, receive) if has_body else receive
        except Refused as e:
            await refuse(e, send, close=True)
            return
        await self.app(scope, receive, send)

    def _check_headers(self, scope: dict) -> None:
        headers = scope["headers"]
        if sum(len(name) + len(value) for name, value in headers) + len(scope["raw_path"]) > MAX_HEADER_BYTES:
            raise Refused(431, f"the headers have more than {MAX_HEADER_BYTES} bytes")
        hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
        if self.loopback_only and (
            len(hosts) != 1 or re.sub(r":\d+$", "", hosts[0]).strip("[]").lower() not in LOOPBACK
        ):
            raise Refused(
                421, "without a key only this machine is served: ask for http://127.0.0.1 or http://localhost"
            )
        if not self.keys or scope["path"] in OPEN:
            return
        given = [value for name, value in headers if name == b"authorization"]
        digest = sha256(_key(given[0]) if len(given) == 1 else b"").digest()
        if not sum(hmac.compare_digest(digest, key) for key in self.keys):  # all of them, whichever fits
            raise Refused(401, "Incorrect API key provided. Send `Authorization: Bearer KEY`.", code="invalid_api_key")

    async def _body(self, scope: dict, receive: Receive) -> Receive:
        """Read the whole body, or refuse it; what is returned gives it once and then waits for the disconnection."""
        kind = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
        if kind.partition(b";")[0].strip().lower() != b"application/json":
            # A page of another origin may send text/plain here without asking, but not this.
            raise Refused(415, "the body must be application/json: send that Content-Type")
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if not length.isdigit() or int(length[:19]) > self.max_body_bytes:
            raise Refused(413, f"the body has more than {self.max_body_bytes} bytes")
        body, more = bytearray(), True
        try:
            async with asyncio.timeout(SECONDS):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        break
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > self.max_body_bytes:
                        raise Refused(413, f"the body has more than {self.max_body_bytes} bytes")
        except TimeoutError:
            raise Refused(408, f"the body did not come within {SECONDS:g} seconds") from None
        if too_deep(bytes(body)):
            raise Refused(400, f"the body is not JSON of at most {MAX_DEPTH} levels")
        given = False

        async def replay() -> dict:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        return replay


def _key(header: bytes) -> bytes:
    """The key in `Bearer KEY`, or the password of `Basic`, which is what a browser sends for the playground."""
    scheme, _, value = header.partition(b" ")
    if scheme.lower() == b"bearer":
        return value
    if scheme.lower() == b"basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except binascii.Error:
            pass
    return b""


def too_deep(body: bytes) -> bool:
    """Does a text nest more than MAX_DEPTH levels (or close what it has not opened)? In time linear in its length."""
    # Possessive and never failing, or a text of quotes would be searched once for each of them.
    brackets = re.sub(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', b"", body, flags=re.DOTALL)
    brackets = re.sub(rb"[^\[\]{}]+", b"", brackets)
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    return bool(brackets)


async def _swallow(receive: Receive) -> bool:
    """Take in a body that nobody will read: a connection closed on unread bytes is reset, the answer lost. Was that all?"""
    taken = 0
    try:
        async with asyncio.timeout(1):
            while taken < 2**16:
                message = await receive()
                if not message.get("more_body", False):
                    return True
                taken += len(message["body"])
    except TimeoutError:
        pass
    return False


async def refuse(e: Refused, send: Send, close: bool) -> None:
    content = json.dumps(e.body()).encode()  # ASCII: a message may hold what UTF-8 cannot
    headers = {"content-type": "application/json", "content-length": str(len(content))} | e.headers()
    headers |= {"connection": "close"} if close else {}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": e.status, "headers": raw})
    await send({"type": "http.response.body", "body": content})


class Patient(H11Protocol):
    """uvicorn waits for ever for the rest of a request's headers; this one SECONDS."""

    due: asyncio.TimerHandle | None = None

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self.due = self.loop.call_later(SECONDS, self._late)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._came()
        elif self.due is None and not self.transport.is_closing():
            self.due = self.loop.call_later(SECONDS, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._came()
        super().connection_lost(exc)

    def _came(self) -> None:
        if self.due is not None:
            self.due.cancel()
            self.due = None

    def _late(self) -> None:
        self.due = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()
