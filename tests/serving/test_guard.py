"""What is let in: keys on every route, limits at the limit and one above, bodies and headers too large or too slow.

pytest tests/serving/test_guard.py                 part of `make test`
TORTURE=1 pytest tests/serving/test_guard.py       with the times of the issue, for an idle machine
"""

import base64
import json
import time

import pytest
from serving_client import TORTURE, Server, in_thread, memory, refusal

from mot.inference.think import MixtureOfThoughts
from mot.serving import guard
from mot.serving.guard import MAX_DEPTH, MAX_HEADER_BYTES, too_deep
from mot.serving.server import bind, read_keys

KEY = "correct-horse-battery-staple"
PROMPT = "the king "


@pytest.fixture(scope="module")
def mixture(text_run) -> MixtureOfThoughts:
    return MixtureOfThoughts.from_pretrained(str(text_run))


@pytest.fixture(scope="module")
def locked(mixture):
    with in_thread(mixture, keys=(KEY, "another-key-of-the-file")) as server:
        yield server


LIMITS = {"max_thoughts": 8, "max_tokens": 40, "max_request_tokens": 100, "max_prompt_tokens": 50, "max_queue": 3}


@pytest.fixture(scope="module")
def server(mixture):
    with in_thread(mixture, **LIMITS, max_batch=8, max_cached_tokens=300, max_body_bytes=4096) as server:
        yield server


def raw(server: Server, request: bytes, *rest: bytes, pause: float = 0) -> tuple[int, bytes]:
    """(status, 0 if the connection was closed without one; all that was received) for bytes sent as they are."""
    with server.connect() as s:
        s.sendall(request)
        came = b""
        try:
            for piece in rest:
                time.sleep(pause)
                s.sendall(piece)
            while piece := s.recv(65536):
                came += piece
        except OSError:  # the server closed it while we were still sending
            pass
    return int(came.split(b" ", 2)[1]) if came.startswith(b"HTTP/") else 0, came


# Keys -----------------------------------------------------------------------------------------------------------------


def basic(key: str) -> str:
    return "Basic " + base64.b64encode(f"anyone:{key}".encode()).decode()


INTRUDERS = {
    "no key": [],
    "empty": [""],
    "no value": ["Bearer "],
    "wrong": ["Bearer wrong-horse-battery-staple"],
    "prefix": [f"Bearer {KEY[:-1]}"],
    "longer": [f"Bearer {KEY}x"],
    "other case": [f"Bearer {KEY.upper()}"],
    "no scheme": [KEY],
    "other scheme": [f"Digest {KEY}"],
    "quoted": [f'Bearer "{KEY}"'],
    "two spaces": [f"Bearer  {KEY}"],
    "two headers": [f"Bearer {KEY}", f"Bearer {KEY}"],
    "right and wrong": [f"Bearer {KEY}", "Bearer wrong"],
    "two in one": [f"Bearer {KEY}, Bearer {KEY}"],
    "basic wrong": [basic(KEY[:-1])],
    "basic broken": ["Basic ?"],
    "basic unpadded": ["Basic YQ"],
    "not ASCII": ["Bearer \xe9\xff"],
    "the digest": ["Bearer " + __import__("hashlib").sha256(KEY.encode()).hexdigest()],
}


def routes(server: Server) -> list[tuple[str, str]]:
    """(method, path) of everything the app answers."""
    found = []

    def walk(routes) -> None:
        for route in routes:
            if hasattr(route, "path") and getattr(route, "methods", None):
                found.extend((method, route.path.replace("{model}", "mixture")) for method in route.methods)
            else:
                inner = getattr(route, "routes", None) or getattr(
                    getattr(route, "original_router", None), "routes", None
                )
                assert inner is not None, f"a route that this test cannot walk: {route!r}"
                walk(inner)

    walk(server.app.routes)
    return found


def test_every_route_needs_the_key(locked):
    every = routes(locked)
    assert {path for _, path in every} >= {"/", "/v1/completions", "/v1/chat/completions", "/metrics", "/docs"}
    assert {path for _, path in every} >= {"/openapi.json", "/v1/models", "/v1/models/mixture", "/v1/route"}
    with locked.connect() as s:  # one connection for some hundred requests
        reader = s.makefile("rb")

        def status(method: str, path: str, authorization: list[str], host: str) -> int:
            lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *[f"Authorization: {a}" for a in authorization]]
            s.sendall("\r\n".join([*lines, "Content-Length: 0", "", ""]).encode("latin-1"))
            answer, length, closes = int(reader.readline().split()[1]), 0, False
            while (line := reader.readline().strip().lower()) != b"":
                length = int(line.partition(b":")[2]) if line.startswith(b"content-length") else length
                closes |= line == b"connection: close"
            reader.read(0 if method == "HEAD" else length)
            if closes:
                reopen()
            return answer

        def reopen() -> None:
            nonlocal s, reader
            s.close()
            s = locked.connect()
            reader = s.makefile("rb")

        for method, path in every:
            if path in guard.OPEN_PATHS:
                assert status(method, path, [], "127.0.0.1") == 200
                continue
            for name, authorization in INTRUDERS.items():
                for host in ("127.0.0.1", "evil.example") if name == "no key" else ("127.0.0.1",):
                    assert status(method, path, authorization, host) == 401, (method, path, name, host)
            for right in (f"Bearer {KEY}", f"bearer {KEY}", basic(KEY), "Bearer another-key-of-the-file"):
                assert status(method, path, [right], "anything.example") != 401, (method, path, right)
        s.close()


TRICKS = """
/health/../v1/models  /health/..%2fv1/models  /health%2f..%2fv1%2fmodels  /health/%2e%2e/v1/models  //v1/models
/v1//models /%76%31/models  /v1/models%00  /health%00  /health/  /health;/v1/models  /HEALTH  /ready%20
/ready/v1/models  /v1/models#/health /v1/models?/health  /v1/models/../../health  /.  /..  /health%0d%0a
http://127.0.0.1/health  http://evil.example/v1/models  * /v1\\models  /health\\..\\v1\\models  /docs/oauth2-redirect
/redoc  /static/../health  /metrics/  /openapi.json/
""".split()


def test_no_spelling_of_a_path_opens_it(locked):
    for path in TRICKS:
        for extra in (
            b"",
            b"X-Original-URL: /health\r\n",
            b"X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Prefix: /health\r\n",
        ):
            request = b"GET %s HTTP/1.1\r\nHost: h\r\nConnection: close\r\n%s\r\n" % (path.encode(), extra)
            status, came = raw(locked, request)
            assert status in (400, 401), (path, came)
    for method in ("OPTIONS", "HEAD", "PUT", "TRACE", "CONNECT", "get", "PRI"):
        status, _ = raw(locked, f"{method} /v1/models HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
        assert status in (400, 401), method
    upgrade = b"GET /v1/models HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    assert raw(locked, upgrade.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))[0] in (400, 401)
    for path in ("/health", "/ready", "/%68ealth", "/ready?a=b"):
        assert raw(locked, f"GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())[0] == 200


def test_smuggled_requests_need_the_key_too(locked):
    hidden = b"GET /v1/models HTTP/1.1\r\nHost: h\r\n\r\n"
    for head in (
        b"GET /health HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /health HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nContent-Length: 40\r\n\r\n",
    ):
        _, came = raw(locked, head + hidden.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert b'"id"' not in came


def test_the_client_with_the_key_works(locked):
    import openai

    assert locked.client().completions.create(model="mixture", prompt=PROMPT).choices
    locked.key = "wrong-horse-battery-staple"
    try:
        with pytest.raises(openai.AuthenticationError) as e:
            locked.client().completions.create(model="mixture", prompt=PROMPT)
        assert e.value.code == "invalid_api_key"
    finally:
        locked.key = KEY
    refused = locked.get("/")
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"].startswith("Basic")  # a browser asks for the key then
    assert locked.get("/", auth=("", KEY)).status_code == 200


def test_without_a_key_only_names_of_this_machine_are_served(server):
    """Otherwise a web page could reach the server through a name of its own that resolves to it (DNS rebinding)."""
    for host, expected in (
        ("127.0.0.1", 200),
        ("localhost:8000", 200),
        ("LOCALHOST", 200),
        ("[::1]:8000", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example:80", 421),
        ("127.0.0.1:80@evil.example", 421),
        ("", 421),
    ):
        assert server.get("/v1/models", headers={"host": host}).status_code == expected, host
    assert raw(server, b"GET /v1/models HTTP/1.0\r\n\r\n")[0] == 421
    two = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    assert raw(server, two)[0] == 400


def test_unknown_paths_and_methods_get_the_standard_words(server):
    for path, status, message in (("/nothing", 404, "Not Found"), ("/v1/completions", 405, "Method Not Allowed")):
        answer = server.get(path)
        assert answer.status_code == status
        assert answer.json()["error"]["message"] == message
    long = server.get("/v1/models", headers={"x": "a" * (MAX_HEADER_BYTES - 30)})
    assert long.status_code == 431
    assert long.json()["error"]["message"] == f"headers exceed {MAX_HEADER_BYTES} bytes"


def test_another_origins_page_cannot_post(server):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        answer = server.post("/v1/completions", content=b'{"prompt": "a"}', headers={"content-type": kind})
        assert answer.status_code == 415
        assert answer.json()["error"]["message"]
    preflight = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in server.get("/v1/models", headers=preflight).headers


def test_the_playground_may_load_nothing_and_talk_to_nobody_else(server):
    page = server.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "http:" not in page.text
    assert "https:" not in page.text
    assert " style=" not in page.text
    assert page.headers["x-content-type-options"] == "nosniff"


def test_keys_are_read_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("MOT_API_KEY", raising=False)
    assert read_keys(None) == []
    monkeypatch.setenv("MOT_API_KEY", KEY)
    assert len(read_keys(None)) == 1
    path = tmp_path / "keys"
    path.write_text(f"{KEY}\n\n  another-key-of-the-file  \r\n")
    assert len(read_keys(str(path))) == 2
    assert read_keys(str(path))[0] == read_keys(None)[0]
    for text in ("", "\n \n", "short", f"{KEY} {KEY}", "ключ-ключ-ключ-ключ"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match="--api_key_file") as e:
            read_keys(str(path))
        assert not text.strip() or text.strip() not in str(e.value)
    with pytest.raises(ValueError, match="cannot be read"):
        read_keys(str(tmp_path / "nothing"))
    monkeypatch.setenv("MOT_API_KEY", "")
    with pytest.raises(ValueError, match="MOT_API_KEY"):  # set but empty: never silently open
        read_keys(None)


# Bad input of the command ---------------------------------------------------------------------------------------------


def test_what_cannot_be_served_is_one_line_and_exit_code_2(capsys, text_run, tmp_path, monkeypatch):
    monkeypatch.delenv("MOT_API_KEY", raising=False)
    assert "--model: missing" in refusal(capsys)
    assert "no such directory" in refusal(capsys, "--model", tmp_path / "nowhere", "--port", 0)
    half = tmp_path / "half"
    half.mkdir()
    assert "no config.json" in refusal(capsys, "--model", half, "--port", 0)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (half / name).write_bytes((text_run / name).read_bytes())
    assert "cannot be loaded" in refusal(capsys, "--model", half, "--port", 0)
    (half / "model.safetensors").write_bytes((text_run / "model.safetensors").read_bytes()[:-1000])
    assert "cannot be loaded" in refusal(capsys, "--model", half, "--port", 0)
    with bind("127.0.0.1", 0) as sock:
        sock.listen()
        port = sock.getsockname()[1]
        assert f"--port {port}: " in refusal(capsys, "--model", text_run, "--port", port)
    assert "--host 192.0.2.1" in refusal(capsys, "--model", text_run, "--host", "192.0.2.1").replace(
        "--port 8000", "--host 192.0.2.1"
    )
    assert "--host no.such.name.invalid" in refusal(capsys, "--model", text_run, "--host", "no.such.name.invalid")
    assert "--port 65536" in refusal(capsys, "--model", text_run, "--port", 65536)
    assert "--max_thoughts 200" in refusal(capsys, "--model", text_run, "--max_thoughts", 200)
    assert "--drain_seconds" in refusal(capsys, "--model", text_run, "--drain_seconds", "nan")
    assert "--api_key_file" in refusal(capsys, "--model", text_run, "--api_key_file", tmp_path / "keys")


# Limits ---------------------------------------------------------------------------------------------------------------

HUGE = 10**9
AT_AND_ABOVE = {
    # name: (body at the limit, body one above, body at 10^9)
    "n": ({"n": 8, "max_tokens": 2}, {"n": 9, "max_tokens": 2}, {"n": HUGE}),
    "best_of": ({"best_of": 8, "max_tokens": 2}, {"best_of": 9, "max_tokens": 2}, {"best_of": HUGE}),
    "thoughts": ({"thoughts": [0] * 8, "max_tokens": 1}, {"thoughts": [0] * 9, "max_tokens": 1}, {"thoughts": [HUGE]}),
    "thought": ({"thoughts": [3]}, {"thoughts": [4]}, {"thoughts": [HUGE]}),
    "max_tokens": ({"max_tokens": 40}, {"max_tokens": 41}, {"max_tokens": HUGE}),
    "n x max_tokens": ({"n": 4, "max_tokens": 25}, {"n": 4, "max_tokens": 26}, {"n": 8, "max_tokens": HUGE}),
    "prompt": ({"prompt": "a" * 50}, {"prompt": "a" * 51}, {"prompt": "a" * 3900}),
    "prompt in tokens": ({"prompt": [1] * 50}, {"prompt": [1] * 51}, {"prompt": [1] * 1900}),
    "prompts": ({"prompt": ["a"] * 3}, {"prompt": ["a"] * 4}, {"prompt": ["a"] * 900}),
    "cache": (
        {"prompt": "a" * 30, "n": 7, "max_tokens": 11},  # 7 x (30 + 1 + 11) = 294 of 300
        {"prompt": "a" * 30, "n": 7, "max_tokens": 12},
        {"prompt": "a" * 50, "n": 8, "max_tokens": 12},
    ),
    "stops": ({"stop": ["zz"] * 4}, {"stop": ["zz"] * 5}, {"stop": ["zz"] * 500}),
    "stop": ({"stop": "z" * 256}, {"stop": "z" * 257}, {"stop": "z" * 3900}),
    "logprobs": ({"logprobs": 5}, {"logprobs": 6}, {"logprobs": HUGE}),
    "temperature": ({"temperature": 2}, {"temperature": 2.01}, {"temperature": 1e9}),
    "seed": ({"seed": 2**63 - 1}, {"seed": 2**63}, {"seed": 10**300}),
}


@pytest.mark.parametrize("limit", AT_AND_ABOVE)
def test_at_the_limit_and_one_above(limit, server):
    at, above, huge = ({"prompt": PROMPT, "max_tokens": 1} | body for body in AT_AND_ABOVE[limit])
    server.wait_until_idle()
    assert server.post("/v1/completions", at).status_code == 200
    before = memory()
    for body in (above, huge):
        begin = time.monotonic()
        answer = server.post("/v1/completions", body)
        seconds = time.monotonic() - begin
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["message"]
        assert seconds < (0.05 if TORTURE else 1)
    assert memory() - before < 16 * 2**20
    assert server.engine.idle()


def test_values_that_are_not_numbers(server):
    for text in ("NaN", "Infinity", "-Infinity", "1e400", "-1", "true", '"1"', "[1]", "1" * 4000):
        for name in ("temperature", "creativity", "n", "seed"):
            if (name, text) in (("seed", "-1"), ("temperature", "1"), ("creativity", "1" * 4000)):
                continue
            body = f'{{"prompt": "a", "max_tokens": 1, "{name}": {text}}}'
            answer = server.post("/v1/completions", content=body, headers={"content-type": "application/json"})
            assert answer.status_code == 400, (name, text, answer.text)


def test_the_body_at_its_limit_and_above(server):
    def sized(size: int) -> bytes:
        body = json.dumps({"prompt": PROMPT, "max_tokens": 1}).encode()
        return body + b" " * (size - len(body))

    send = {"headers": {"content-type": "application/json"}}
    assert server.post("/v1/completions", content=sized(4096), **send).status_code == 200
    assert server.post("/v1/completions", content=sized(4097), **send).status_code == 413
    assert server.post("/v1/completions", content=iter([sized(4096)]), **send).status_code == 200  # chunked
    assert server.post("/v1/completions", content=iter([sized(4096), b" "]), **send).status_code == 413
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: %d\r\n\r\n"
    for length in (HUGE, 10**30):
        begin = time.monotonic()
        status, _ = raw(server, head % length)  # nothing of it is sent
        assert status in (400, 413)
        assert time.monotonic() - begin < (0.05 if TORTURE else 1)


def test_the_headers_at_their_limit_and_above(server):
    sizes = [(MAX_HEADER_BYTES - 300, 200), (MAX_HEADER_BYTES, 431), (10 * MAX_HEADER_BYTES, None)]
    for size, expected in sizes:
        request = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX: %s\r\n\r\n" % (b"a" * size)
        status, _ = raw(server, request)
        assert (
            status == expected or (expected is None and status in (0, 400, 431)) or (expected == 431 and status == 400)
        )
    many = b"".join(b"X%d: a\r\n" % i for i in range(5000))
    assert raw(server, b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n%s\r\n" % many)[0] in (
        0,
        400,
        431,
    )
    assert server.get("/health").status_code == 200


def test_the_depth_of_a_body(server):
    assert not too_deep(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    assert too_deep(b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1))
    assert not too_deep(b'{"a": "[[[[[[[[[[[[[[[[[[[[[[[[\\"[[[{{{"}')
    assert not too_deep(b'{"a": [{}, [], {"b": [1, "]"]}]}')
    assert too_deep(b"]")
    for text in (
        b"[" * 10**6,
        b"[]" * 10**6,
        b'{"a":' * 10**5,
        b'"\\"' * 10**5,
        b'"' * 10**6,
        b'\\"' * 10**6,
        b"[{" * 10**5,
    ):
        begin = time.process_time()
        too_deep(text)
        assert time.process_time() - begin < 0.5
    deep = b'{"prompt": ' + b"[" * 2000 + b"]" * 2000 + b"}"
    answer = server.post("/v1/completions", content=deep, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert "levels" in answer.json()["error"]["message"]


def test_a_slow_body_and_slow_headers_are_not_waited_for(server, monkeypatch):
    monkeypatch.setattr(guard, "TIMEOUT_SECONDS", 0.3)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: 1000\r\n\r\n"
    begin = time.monotonic()
    status, came = raw(server, head, *[b"{"] * 3, pause=0.05)
    assert status == 408
    assert b"error" in came
    for request in (b"", b"GET /v1/mo", b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n"):
        assert raw(server, request, *[b"X"] * 3, pause=0.05) == (0, b"")
    first = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"  # and the second request of a connection
    assert raw(server, first, *[b"G"] * 3, pause=0.2)[1].count(b"HTTP/1.1 200") == 1
    assert time.monotonic() - begin < 5
    assert server.get("/health").status_code == 200


def test_strange_texts_are_refused_or_answered_never_a_fault(server):
    for prompt in (
        "\x00",
        "a\x00b",
        "\ud800",
        "\u202e",
        "\N{SNOWMAN}",
        "a" * 50,
        " " * 50,
        "\n",
        "<|thought_0|>",
        "<|endoftext|>",
    ):
        body = json.dumps(
            {"prompt": prompt, "max_tokens": 2, "user": prompt, prompt: 1} if len(prompt) == 1 else {"prompt": prompt}
        )
        answer = server.post("/v1/completions", content=body, headers={"content-type": "application/json"})
        assert answer.status_code in (200, 400), answer.text
        assert answer.json()
    for body in (
        b"",
        b"null",
        b"[]",
        b'"a"',
        b"{",
        b"{}}",
        b"\xff\xfe",
        b'{"prompt": "\xff"}',
        b'{"a": 1, "a": 2}',
        b"1" * 4000,
    ):
        answer = server.post("/v1/completions", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400, (body, answer.text)
        assert answer.json()["error"]["type"] == "invalid_request_error"
