"""The life of a server: clients that disconnect, overload, random input, shutdown, a browser.

pytest tests/serving/test_life.py                 the short version, part of `make test`
TORTURE=1 pytest -s tests/serving/test_life.py    the counts of the issue, `make torture`; prints what it measured
"""

import asyncio
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from mixtures import untrained
from serving_client import TORTURE, Server, in_process, in_thread, memory

from mot.inference.think import MixtureOfThoughts

PROMPT = "the king "


@pytest.fixture(scope="module")
def mixture(text_run) -> MixtureOfThoughts:
    """A mixture that never ends a text by itself, so that a text has exactly `max_tokens`."""
    mixture = MixtureOfThoughts.from_pretrained(str(text_run))
    mixture.tokenizer.eos_token = "<|thought_0|>"  # which is never generated
    mixture.model.generation_config.eos_token_id = mixture.tokenizer.eos_token_id
    return mixture


@pytest.fixture(scope="module")
def endless(mixture, tmp_path_factory) -> Path:
    """Its directory."""
    directory = tmp_path_factory.mktemp("endless") / "mixture"
    mixture.model.save_pretrained(directory)
    mixture.tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def server(mixture):
    with in_thread(mixture) as server:
        yield server


def balanced(server: Server) -> None:
    counts = server.engine.counts
    assert counts["accepted"] == counts["completed"] + counts["aborted"] + counts["failed"]


# Clients that leave ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [True, False])
def test_a_client_that_leaves_stops_the_computation_within_two_steps(streaming, server, monkeypatch):
    steps_at, cancel = {}, server.engine.cancel

    def noted(job) -> None:
        steps_at[job] = server.engine.counts["steps"]
        cancel(job)

    monkeypatch.setattr(server.engine, "cancel", noted)
    draw = random.Random(streaming)
    for _ in range(50 if TORTURE else 5):
        steps_at.clear()
        before = dict(server.engine.counts)
        body = json.dumps({"prompt": PROMPT, "n": 4, "max_tokens": 1000, "seed": 1, "stream": streaming}).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}"
        with server.connect() as s:
            s.sendall(head.encode() + b"\r\n\r\n" + body)
            while not server.engine.running:
                time.sleep(0.001)
            time.sleep(draw.uniform(0, 0.1))
            if streaming and draw.random() < 0.5:
                s.recv(100)
        left = time.monotonic()
        server.wait_until_idle()
        assert time.monotonic() - left < 5
        (at,) = steps_at.values()
        assert server.engine.counts["steps"] - at <= 2
        assert server.engine.counts["aborted"] == before.get("aborted", 0) + 1
        assert server.engine.counts["tokens"] - before.get("tokens", 0) < 4000
    balanced(server)
    for gauge in ("mot_queue", "mot_running", "mot_texts_running"):
        assert server.metric(gauge) == 0
    assert server.engine.groups == []


def test_a_client_that_leaves_while_it_waits_is_never_computed(mixture):
    with in_thread(mixture, max_batch=4, max_thoughts=4) as server:
        with ThreadPoolExecutor(2) as pool:
            running = pool.submit(server.complete, prompt=PROMPT, n=4, max_tokens=400)
            while not server.engine.running:
                time.sleep(0.001)
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(server.url + "/v1/completions", json={"prompt": PROMPT, "n": 4}, timeout=0.2)
            running.result()
        server.wait_until_idle()
        assert server.engine.counts["prefills"] == 1
        assert server.engine.counts["aborted"] == 1
        balanced(server)


def test_a_client_that_reads_nothing_does_not_hold_up_others(server):
    body = json.dumps({"prompt": PROMPT, "n": 8, "max_tokens": 1000, "stream": True, "logprobs": 5}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}"
    with server.connect() as s:
        s.sendall(head.encode() + b"\r\n\r\n" + body)
        time.sleep(0.2)
        begin = time.monotonic()
        assert server.texts(prompt=PROMPT, max_tokens=4)
        assert time.monotonic() - begin < 5
    server.wait_until_idle()
    balanced(server)


# Overload -------------------------------------------------------------------------------------------------------------


async def load(server: Server, rate: float, seconds: float, body: dict) -> list[tuple[int, float]]:
    """(status, seconds) of requests that arrive at random, `rate` a second, whether or not others were answered."""
    draw, answers, tasks = random.Random(rate), [], []
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(timeout=120, trust_env=False, limits=limits) as client:

        async def ask() -> None:
            begin = time.monotonic()
            answer = await client.post(server.url + "/v1/completions", json=body)
            answers.append((answer.status_code, time.monotonic() - begin))
            assert answer.status_code == 200 or (answer.status_code == 429 and int(answer.headers["retry-after"]) > 0)

        begin = at = time.monotonic()
        while at - begin < seconds:
            at += draw.expovariate(rate)
            await asyncio.sleep(max(0, at - time.monotonic()))
            tasks.append(asyncio.create_task(ask()))
        await asyncio.gather(*tasks)
    return answers


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))]


def test_overload_is_rejected_at_once(mixture, endless, tmp_path):
    body = {"prompt": PROMPT, "n": 4, "max_tokens": 300 if TORTURE else 60}
    seconds = 60 if TORTURE else 0.8
    limits = {"max_batch": 16, "max_queue": 4, "max_thoughts": 4}
    if TORTURE:  # a process of its own, so that the clients do not slow the server down
        flags = [word for name, value in limits.items() for word in (f"--{name}", value)]
        place = in_process(["--model", endless, *flags], log=tmp_path / "log")
    else:
        place = in_thread(mixture, **limits)
    with place as server:
        server.complete(**body)
        with ThreadPoolExecutor(4) as pool:
            begin = time.monotonic()
            list(pool.map(lambda _: server.complete(**body), range(12)))
            capacity = 12 / (time.monotonic() - begin)
        for _ in range(3 if TORTURE else 1):
            calm = asyncio.run(load(server, 0.8 * capacity, seconds, body))
            storm = asyncio.run(load(server, 10 * capacity, seconds, body))
            accepted = {name: [s for status, s in a if status == 200] for name, a in (("calm", calm), ("storm", storm))}
            refused = [s for status, s in storm if status == 429]
            p99 = {name: percentile(times, 0.99) for name, times in accepted.items()}
            print(
                f"capacity {capacity:.1f}/s; accepted p99 {p99['calm']:.3f} s at 80 %, {p99['storm']:.3f} s at "
                f"1,000 %; {len(accepted['storm'])} accepted, {len(refused)} rejected, "
                f"p99 in {percentile(refused, 0.99):.3f} s"
            )
            assert len(refused) > len(accepted["storm"])
            if TORTURE:
                assert p99["storm"] <= 2 * p99["calm"]
                assert percentile(refused, 0.99) < 0.1
        assert server.metric("mot_accepted_total") == server.metric("mot_finished_total")
        assert server.metric("mot_queue") == server.metric("mot_running") == 0
        assert server.texts(prompt=PROMPT)


def test_a_soak_of_mixed_requests_loses_and_leaks_nothing(server, mixture):
    draw = random.Random(1)

    def one(i: int) -> None:
        kind = draw.choice(["whole", "stream", "leave", "wrong", "route", "many", "seeded"])
        body = {"prompt": PROMPT[: draw.randint(1, 9)], "n": draw.randint(1, 8), "max_tokens": draw.randint(1, 30)}
        if kind == "leave":
            try:
                long = body | {"max_tokens": 900, "stream": draw.random() < 0.5}
                with httpx.stream("POST", server.url + "/v1/completions", json=long, timeout=0.1) as answer:
                    next(answer.iter_bytes())
            except (httpx.TimeoutException, StopIteration):
                pass
        elif kind == "wrong":
            assert server.post("/v1/completions", body | {"n": 65}).status_code == 400
        elif kind == "route":
            assert server.post("/v1/route", {"prompt": PROMPT}).status_code == 200
        elif kind == "stream":
            assert "data: [DONE]" in server.post("/v1/completions", body | {"stream": True, "logprobs": 1}).text
        else:
            more = {"seeded": {"seed": i}, "many": {"prompt": [PROMPT, "a", "night"]}}.get(kind, {})
            server.complete(**body | more)

    def run(count: int) -> None:
        with ThreadPoolExecutor(12) as pool:
            list(pool.map(one, range(count)))
        server.wait_until_idle()

    run(200 if TORTURE else 15)
    before, threads = memory(), threading.active_count()
    run(1800 if TORTURE else 25)
    balanced(server)
    assert memory() - before < 64 * 2**20
    assert threading.active_count() <= threads + 4 + os.cpu_count()  # asyncio's own pool
    assert server.app.state.mot.active == 0


# Random input ---------------------------------------------------------------------------------------------------------


def test_schemathesis_finds_no_fault(tmp_path):
    """Data that fits the schema or does not, and sequences of requests: no 5xx, every answer fits the schema."""
    (tmp_path / "schemathesis.toml").write_text(
        # What fits the schema may still be beyond a limit of this server, or name another model.
        '[checks]\npositive_data_acceptance.expected-statuses = ["2xx", 400, 404]\n'
    )
    mixture = untrained(["bytes, so that every text has tokens"], 300, 4)
    mixture.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with in_thread(mixture, max_tokens=8, max_request_tokens=64) as server:
        command = [Path(sys.executable).parent / "schemathesis", "run", server.url + "/openapi.json", "--mode", "all"]
        command += [
            "--phases",
            "coverage,fuzzing,stateful" if TORTURE else "fuzzing,stateful",
            "--max-examples",
            500 if TORTURE else 10,
            "--seed",
            1,
        ]
        command += ["--exclude-path", "/metrics", "--request-timeout", 30, "--suppress-health-check", "all"]
        command += ["--checks", "all", "--exclude-checks", "unsupported_method,missing_required_header,ignored_auth"]
        done = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
        print(*re.findall(r"\d+ generated, .*|\d+ selected .*", done.stdout), sep="; ")
        server.wait_until_idle()
        assert server.metric('mot_requests_total{.*status="5..".*}') == 0
        balanced(server)
        assert server.texts(prompt=PROMPT)


# Shutdown ------------------------------------------------------------------------------------------------------------


async def stop_with_streams(server: Server, count: int, max_tokens: int) -> tuple[list[str], int]:
    """(texts of `count` streams that were running when SIGTERM was sent, exit code of the server)."""
    begun, texts = asyncio.Event(), {}
    async with httpx.AsyncClient(timeout=60, trust_env=False, limits=httpx.Limits(max_connections=None)) as client:

        async def follow(i: int) -> None:
            body = {"prompt": PROMPT, "max_tokens": max_tokens, "stream": True}
            async with client.stream("POST", server.url + "/v1/completions", json=body) as answer:
                async for piece in answer.aiter_text():
                    texts[i] = texts.get(i, "") + piece
                    if len(texts) == count:
                        begun.set()

        tasks = [asyncio.create_task(follow(i)) for i in range(count)]
        await asyncio.wait_for(begun.wait(), 60)
        assert (await client.get(server.url + "/ready")).status_code == 200
        server.process.send_signal(signal.SIGTERM)
        while (ready := await client.get(server.url + "/ready")).status_code == 200:
            await asyncio.sleep(0.005)
        assert ready.status_code == 503
        refused = await client.post(server.url + "/v1/completions", json={"prompt": PROMPT})
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert (await client.get(server.url + "/health")).status_code == 200
        assert not all("[DONE]" in text for text in texts.values())  # they were still running
        await asyncio.gather(*tasks)
    return list(texts.values()), await asyncio.to_thread(server.process.wait, 30)


@pytest.mark.parametrize("drain_seconds", [30, 0.2])
def test_sigterm_lets_what_runs_finish(drain_seconds, endless):
    if drain_seconds < 1 and not TORTURE:
        pytest.skip("a start of a process takes seconds; TORTURE=1 does it")
    for _ in range(10 if TORTURE and drain_seconds > 1 else 1):
        with in_process(["--model", endless, "--drain_seconds", drain_seconds]) as server:
            texts, code = asyncio.run(stop_with_streams(server, 16, 1000))
            log = [json.loads(line) for line in server.process.stderr.read().splitlines()]
        assert code == 0
        assert all(text.rstrip().endswith("data: [DONE]") for text in texts)
        cut = sum("server_error" in text for text in texts)
        if drain_seconds > 1:
            assert cut == 0
            assert all(re.search(r'"finish_reason":"length"', text) for text in texts)
        else:
            assert cut > 0
        events = [line["event"] for line in log if line["level"] == "info"]
        assert events.count("request") >= 17
        assert "draining" in events
        assert PROMPT not in json.dumps(log)  # no text of a prompt in any line


def test_a_second_signal_does_not_wait(endless):
    if not TORTURE:
        pytest.skip("a start of a process takes seconds; TORTURE=1 does it")
    with in_process(["--model", endless]) as server:
        body = {"prompt": PROMPT, "n": 8, "max_tokens": 1000, "stream": True, "seed": 1}
        with httpx.stream("POST", server.url + "/v1/completions", json=body) as answer:
            next(answer.iter_bytes())
            server.process.send_signal(signal.SIGINT)
            time.sleep(0.1)
            server.process.send_signal(signal.SIGINT)
            assert server.process.wait(5) == 130


# The browser ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    executable = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if executable is None:
        pytest.skip("needs Chromium or Chrome")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"] if os.getuid() == 0 else [])
        yield browser
        browser.close()


def opened(browser, server: Server, **how):
    """A page on the playground, and a list of its errors and of its requests to other hosts."""
    page, wrong = browser.new_context(**how).new_page(), []
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: wrong.append(str(e)))
    page.on("request", lambda r: None if r.url.startswith(server.url + "/") else wrong.append(r.url))
    page.goto(server.url)
    return page, wrong


def test_the_playground_fills_its_columns(browser, server):
    from playwright.sync_api import expect

    page, wrong = opened(browser, server)
    expect(page.locator("#model")).to_have_text("mixture")
    expect(page.locator("#n-is")).to_have_text("4")
    assert page.evaluate("document.activeElement.id") == "prompt"  # the keyboard is enough from here on
    page.keyboard.type("the king ")
    for knob, key, shown in (
        ("n", "ArrowLeft", "3"),
        ("creativity", "Home", "most probable"),
        ("temperature", "End", "2"),
        ("length", "End", "1024 tokens"),
    ):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == knob
        page.keyboard.press(key)
        expect(page.locator(f"#{knob}-is")).to_have_text(shown)
    page.keyboard.press("Control+Enter")
    expect(page.locator("article")).to_have_count(3)
    expect(page.locator("article.growing")).to_have_count(3)
    expect(page.locator("#go")).to_have_text("Stop")
    first = [len(column.inner_text()) for column in page.locator(".text").all()]
    page.wait_for_timeout(200)
    second = [len(column.inner_text()) for column in page.locator(".text").all()]
    assert all(a < b for a, b in zip(first, second, strict=True))  # they grow side by side
    page.keyboard.press("Escape")
    expect(page.locator("#status")).to_have_text("Stopped.")
    expect(page.locator("article.growing")).to_have_count(0)
    server.wait_until_idle()
    page.locator("#length").press("Home")
    page.locator("#go").press("Enter")
    expect(page.locator("#status")).to_contain_text("3 texts from one prompt, 24 tokens")
    router = sorted(server.post("/v1/route", {"prompt": "the king "}).json()["probabilities"], reverse=True)[:3]
    assert [text.removesuffix(" %") for text in page.locator("article h2 b").all_inner_texts()] == [
        f"{100 * p:.1f}" for p in router
    ]
    assert wrong == []
    page.context.close()


STREAM = [
    (0, 2, 0.5, "the king sleeps, the sea"),
    (1, 0, 0.3, "the king speaks to a sea"),
    (2, 1, 0.2, "<b>the</b> king & a sea"),
]


def test_the_playground_marks_what_differs(browser, server):
    """On texts that are known, one of them markup."""
    from playwright.sync_api import expect

    page, wrong = opened(browser, server, viewport={"width": 390, "height": 844}, has_touch=True, color_scheme="dark")
    events = [
        {"choices": [{"index": i, "text": "", "finish_reason": None, "thought": {"index": k, "probability": p}}]}
        for i, k, p, _ in STREAM
    ]
    events += [
        {"choices": [{"index": i, "text": text, "finish_reason": "stop", "thought": {"index": k, "probability": p}}]}
        for i, k, p, text in STREAM
    ]
    events += [{"choices": [], "usage": {"completion_tokens": 9}}]
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    page.route("**/v1/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    page.fill("#prompt", "anything")
    page.tap("#go")
    expect(page.locator("#status")).to_contain_text("3 texts")
    assert page.locator("article h2").all_inner_texts() == [
        "Thought 2\n50.0 %",
        "Thought 0\n30.0 %",
        "Thought 1\n20.0 %",
    ]
    assert page.locator(".text").all_inner_texts() == [text for *_, text in STREAM]
    marks = [column.locator("mark").all_inner_texts() for column in page.locator(".text").all()]
    assert marks == [["sleeps,"], ["speaks to"], ["<b>the</b>", "&"]]
    # {the king sleeps sea} {the king speaks to a sea} {b>the</b king & a sea}: 3 of 7, 6 of 7, 5 of 8 ... of all words
    bags = [
        {"the", "king", "sleeps", "sea"},
        {"the", "king", "speaks", "to", "a", "sea"},
        {"b>the</b", "king", "&", "a", "sea"},
    ]
    far = [len(a ^ b) / len(a | b) for i, a in enumerate(bags) for b in bags[i + 1 :]]
    expect(page.locator("#diversity")).to_have_text(f"{sum(far) / 3:.2f}")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    paper, ink = page.evaluate(
        "[getComputedStyle(document.documentElement).backgroundColor, getComputedStyle(document.body).color]"
    )
    assert paper == "rgb(22, 23, 26)"
    assert ink == "rgb(233, 231, 226)"
    page.unroute("**/v1/completions")
    page.route(
        "**/v1/completions", lambda route: route.fulfill(status=429, json={"error": {"message": "the queue is full"}})
    )
    page.tap("#go")
    expect(page.locator("#status.bad")).to_have_text("the queue is full")
    assert all("429" in text for text in wrong)
    page.context.close()


def test_the_playground_opens_with_a_key(browser, mixture):
    from playwright.sync_api import expect

    key = "correct-horse-battery-staple"
    with in_thread(mixture, keys=(key,)) as server:
        page, wrong = opened(browser, server, http_credentials={"username": "anyone", "password": key})
        page.fill("#prompt", "the king ")
        page.locator("#length").press("Home")
        page.click("#go")
        expect(page.locator("#status")).to_contain_text("4 texts from one prompt")
        assert all("401" in text for text in wrong)
        page.context.close()
