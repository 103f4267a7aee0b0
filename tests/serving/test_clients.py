"""What clients send: our own answers, fields that change nothing, half characters, other methods, tiny temperatures."""

import json
import re

import pytest
from mixtures import untrained
from serving_client import Server, http, in_thread

from mot.inference.think import MixtureOfThoughts

USER = {"role": "user", "content": "a"}


@pytest.fixture(scope="module")
def mixture() -> MixtureOfThoughts:
    mixture = untrained(["bytes, so that every text has tokens"], 300, 4)
    mixture.tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    return mixture


@pytest.fixture(scope="module")
def server(mixture):
    with in_thread(mixture) as server:
        yield server


def raw(server: Server, request: bytes) -> bytes:
    with server.connect() as s:
        s.sendall(request)
        came = b""
        while piece := s.recv(65536):
            came += piece
    return came


def send(server: Server, path: str, text: str):
    return server.post(path, content=text, headers={"content-type": "application/json"})


def test_an_answer_is_a_turn_of_the_next_request(server):
    client, messages = server.client(), [dict(USER)]
    for form in (lambda m: m, lambda m: m.model_dump(), lambda m: m.to_dict(), lambda m: json.loads(m.to_json())):
        done = client.chat.completions.create(model="mixture", messages=messages, max_completion_tokens=3)
        messages += [form(done.choices[0].message), dict(USER)]
    assert len(messages) == 9


NO_OPS = {
    "logit_bias": [None, {}],
    "response_format": [None, {"type": "text"}],
    "store": [None, False],
    "tools": [None, []],
    "tool_choice": [None, "none", "auto"],
    "parallel_tool_calls": [None, True, False],
    "functions": [None, []],
    "metadata": [None, {}, {"a": "b"}],
    "modalities": [None, ["text"]],
    "stream_options": [None, {"include_usage": None}, {"include_usage": False}],
    "presence_penalty": [None, 0],
    "service_tier": ["auto", "default"],
    "user": [None, "me"],
}


@pytest.mark.parametrize("field", NO_OPS)
def test_what_changes_nothing_is_accepted(field, server):
    for value in NO_OPS[field]:
        answer = server.post("/v1/chat/completions", {"messages": [USER], "max_tokens": 1, field: value})
        assert answer.status_code == 200, (value, answer.text)


def test_turns_may_be_without_a_text_and_with_cache_control(server):
    cache = {"cache_control": {"type": "ephemeral"}}
    turns = [
        {"role": "assistant", "content": None, "tool_calls": None},
        {"role": "assistant"},
        {"role": "user", "content": [{"type": "text", "text": "a", **cache}]},
        USER | cache,
    ]
    for turn in turns:
        answer = server.post("/v1/chat/completions", {"messages": [USER, turn], "max_tokens": 1})
        assert answer.status_code == 200, answer.text


REFUSED = {
    # name: (path, body, beginning of the message, param)
    "chat's limit": ("chat", {"messages": [USER], "max_completion_tokens": 2000}, "max_completion_tokens: 2000", None),
    "the old name": ("chat", {"messages": [USER], "max_tokens": 2000}, "max_tokens: 2000", None),
    "tools": ("chat", {"messages": [USER], "tools": [{}]}, "tools: is not supported", None),
    "a bias": ("chat", {"messages": [USER], "logit_bias": {"5": 1}}, "logit_bias: is not supported", None),
    "user without text": ("chat", {"messages": [{"role": "user", "content": None}]}, "messages.0: content is", None),
    "a wrong role": ("chat", {"messages": [USER, {"role": "king"}]}, "messages.1.role: ", "messages"),
    "a wrong part": ("chat", {"messages": [USER | {"content": [{"type": "x"}]}]}, "messages.0.content.0.", "messages"),
    "a number": ("text", {"prompt": 5}, "prompt: ", "prompt"),
    "a text among ids": ("text", {"prompt": [1, 2, "a"]}, "prompt.2: ", "prompt"),
    "a long name": ("text", {"x" * 500_000: 1}, "x" * 100 + "...: unknown", "x" * 100 + "..."),
    "a long model": ("text", {"model": "x" * 500_000}, "The model 'xxx", "model"),
    "a long key": ("chat", {"messages": [USER], "metadata": "x" * 500_000}, "metadata: ", "metadata"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_names_the_field_and_is_short(case, server):
    kind, body, beginning, param = REFUSED[case]
    answer = server.post("/v1/chat/completions" if kind == "chat" else "/v1/completions", body)
    assert answer.status_code in (400, 404)
    error = answer.json()["error"]
    assert error["message"].startswith(beginning), error
    assert len(answer.text) < 600
    assert error["param"] == (param or re.match(r"\w+", beginning)[0])


HALF = r'"\ud83d"'


@pytest.mark.parametrize(
    "body",
    [
        ("/v1/completions", f'{{"prompt": {HALF}}}'),
        ("/v1/completions", f'{{"prompt": {HALF}, "stream": true}}'),
        ("/v1/completions", f'{{"prompt": ["a", {HALF}], "echo": true, "logprobs": 2}}'),
        ("/v1/completions", f'{{"prompt": "a", "stop": [{HALF}]}}'),
        ("/v1/completions", f'{{"prompt": "a", "model": {HALF}}}'),
        ("/v1/completions", f'{{"prompt": "a", {HALF}: 1}}'),
        ("/v1/route", f'{{"prompt": {HALF}}}'),
        ("/v1/chat/completions", f'{{"messages": [{{"role": "user", "content": {HALF}}}], "max_tokens": 1}}'),
        ("/v1/chat/completions", f'{{"messages": [{{"role": {HALF}, "content": "a"}}]}}'),
    ],
)
def test_half_a_character_is_the_clients_mistake(body, server):
    answer = send(server, *body)
    assert answer.status_code == 400, answer.text
    whole = send(server, body[0], body[1].replace(HALF, r'"\ud83d\ude00"'))
    assert whole.status_code < 500, whole.text
    kept = {"a": json.loads(HALF)}  # where a value is ignored, so is half of one
    ignored = json.dumps({"messages": [USER], "max_tokens": 1, "metadata": kept})
    assert send(server, "/v1/chat/completions", ignored).status_code in (200, 400)


def test_methods(server):
    for path in ("/", "/health", "/ready", "/metrics", "/docs", "/redoc", "/openapi.json", "/v1/models"):
        got, head = server.get(path), http.head(server.url + path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == got.headers["content-type"]
        for method in ("OPTIONS", "DELETE", "PUT", "POST"):
            answer = http.request(method, server.url + path)
            assert answer.status_code == 405, (method, path)
            assert answer.headers["allow"] == "GET, HEAD"
    for method in ("OPTIONS", "DELETE", "PUT", "GET", "HEAD"):
        answer = http.request(method, server.url + "/v1/completions")
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert server.post("/v1/nothing", {}).status_code == 404


def test_http_1_0_and_two_framings(server):
    for path in (b"/health", b"/ready"):
        assert raw(server, b"GET %s HTTP/1.0\r\n\r\n" % path).startswith(b"HTTP/1.1 200")
    two = (
        b"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    hidden = b"0\r\n\r\nGET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for first in (b"POST /v1/completions HTTP/1.1\r\n", b"GET /health HTTP/1.1\r\n"):
        came = raw(server, first + two + hidden)  # which ends, so the connection was closed
        assert came.startswith(b"HTTP/1.1 400")
        assert came.count(b"HTTP/1.1") == 1


def test_the_pages_load_nothing(server):
    for path in ("/docs", "/redoc"):
        page = server.get(path)
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "script-src 'none'" in page.headers["content-security-policy"]
        assert not re.search(r"https?:|//|<script|<link|<img|@import|url\(", page.text)
        for name in ("max_completion_tokens", "creativity", "/v1/route", "integer &gt;= 1"):
            assert name in page.text


@pytest.mark.parametrize("temperature", [1e-6, 1e-40, 5e-324])
def test_a_tiny_temperature_is_greedy(temperature, server):
    fields = {"prompt": "the king", "n": 4, "max_tokens": 12, "seed": 1}
    assert server.texts(**fields, temperature=temperature) == server.texts(**fields, temperature=0)
    copies = server.post("/v1/completions", fields | {"n": 5, "temperature": temperature})
    assert copies.status_code == 400
    assert copies.json()["error"]["param"] == "temperature"


def test_a_full_context_ends_with_length(server, mixture):
    context = mixture.model.config.max_position_embeddings
    ids = mixture.tokenizer("a" * 5000)["input_ids"]
    for room in (1, 3):
        prompt = ids[: context - 1 - room]  # beside the thought
        done = server.complete(prompt=prompt, temperature=0)
        assert done["usage"]["completion_tokens"] <= room
        assert done["choices"][0]["finish_reason"] in ("length", "stop")
    assert server.post("/v1/completions", {"prompt": prompt, "max_tokens": 4}).status_code == 400
    assert server.post("/v1/completions", {"prompt": ids[:context]}).status_code == 400
    text = "a" * (context - 10)  # and the template's words
    chat = server.post("/v1/chat/completions", {"messages": [USER | {"content": text}], "max_tokens": 900})
    assert chat.status_code == 200, chat.text
    assert chat.json()["usage"]["total_tokens"] <= context
