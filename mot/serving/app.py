"""The API: OpenAI's completions and chat completions, where `n` answers are n different thoughts, and what goes beside them.

    app = create_app(engine, settings, keys)      # settings: mot.runtime.flags.ServeSettings; keys: digests, see guard.py

Every number is checked against its limit before anything is allocated for it. Errors are in OpenAI's shape. Logs have no
text of a prompt or an answer, unless `--log_prompts`.
"""

import asyncio
import base64
import hashlib
import json
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from fastapi.sse import EventSourceResponse, format_sse_event
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from pydantic import BaseModel
from starlette.exceptions import HTTPException

import mot
from mot.data.encode import encode_prompts
from mot.serving.engine import Ask, Begun, Failed, Full, Job, Jobs, Said, Token
from mot.serving.guard import OPEN, QUEUE_IS_FULL, Guard, Refused, refuse
from mot.serving.schemas import (
    GUARDED,
    MAX_STOP_CHARACTERS,
    MAX_STOPS,
    REFUSALS,
    STREAM,
    Answer,
    Asked,
    ChatBody,
    ChatChoice,
    ChatCompletion,
    ChatLogprobs,
    Choice,
    Completion,
    CompletionBody,
    Logprobs,
    Message,
    Model,
    Models,
    Route,
    RouteBody,
    Status,
    Thought,
    TokenLogprob,
    Usage,
)
from mot.serving.settings import ServeSettings

log = logging.getLogger("mot.serving.server")

# State ------------------------------------------------------------------------------------------------------------------


class Metrics:
    """Prometheus metrics of one server, in a registry of their own."""

    def __init__(self, engine: Jobs):
        self.registry, self.engine = CollectorRegistry(), engine
        self.requests = Counter("mot_requests", "requests answered", ["path", "status"], registry=self.registry)
        self.prompt_tokens = Counter("mot_prompt_tokens", "tokens of accepted prompts", registry=self.registry)
        self.thoughts = Counter(
            "mot_thoughts", "texts by thought (of words: first token)", ["thought"], registry=self.registry
        )
        small = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
        self.first = Histogram(
            "mot_time_to_first_token_seconds", "arrival to first text", buckets=(*small, 30, 60), registry=self.registry
        )
        self.each = Histogram(
            "mot_time_per_token_seconds", "between tokens of a text", buckets=small, registry=self.registry
        )
        self.registry.register(self)

    def collect(self):
        """What the engine counts itself, read when it is asked for."""
        for name, help in (
            ("prefills", "prompts computed"),
            ("prefill_tokens", "tokens of prompts computed"),
            ("steps", "forward passes of decoding"),
            ("tokens", "tokens generated"),
            ("accepted", "prompts accepted"),
        ):
            yield CounterMetricFamily(f"mot_{name}", help, self.engine.counts[name])
        finished = CounterMetricFamily("mot_finished", "accepted prompts by their end", labels=["outcome"])
        for outcome in ("completed", "aborted", "failed"):
            finished.add_metric([outcome], self.engine.counts[outcome])
        yield finished
        yield GaugeMetricFamily("mot_queue", "prompts waiting", len(self.engine.waiting))
        yield GaugeMetricFamily("mot_running", "prompts running", len(self.engine.running))
        yield GaugeMetricFamily("mot_texts_running", "texts running", self.engine.texts_running())


@dataclass
class State:
    """What every route sees. `draining`: nothing new is begun. `active`: requests that have not been answered whole."""

    engine: Jobs
    settings: ServeSettings
    metrics: Metrics
    name: str
    created: int = field(default_factory=lambda: int(time.time()))
    draining: bool = False
    active: int = 0


router = APIRouter()


def create_app(engine: Jobs, settings: ServeSettings, keys: list[bytes]) -> FastAPI:
    """The whole app. `app.state.mot` is its State."""
    app = FastAPI(title="Mixture of Thoughts", version=mot.__version__, redirect_slashes=False)
    app.state.mot = state = State(engine, settings, Metrics(engine), Path(settings.model).resolve().name)
    app.include_router(router)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Refused, _refused)
    # The last added is the outermost.
    app.add_middleware(Guard, keys=keys, host=settings.host, max_body_bytes=settings.max_body_bytes, full=engine.full)
    app.add_middleware(Ledger, state=state)
    return app


class Ledger:
    """Around everything: one line of log and one count per request, and no job outlives the request that asked for it."""

    def __init__(self, app, state: State):
        self.app, self.state = app, state

    async def __call__(self, scope, receive, send) -> None:
        begin, status = time.monotonic(), 0
        facts = scope.setdefault("state", {})["facts"] = {"id": uuid.uuid4().hex}
        jobs = scope["state"]["jobs"] = []

        async def note(message: dict) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", facts["id"].encode())]
                message["headers"].append((b"x-content-type-options", b"nosniff"))
            await send(message)

        self.state.active += 1
        try:
            await self.app(scope, receive, note)
        except Exception as e:
            log.exception("a request failed", extra={"facts": facts | {"error": repr(e)}})
            if status == 0:
                await refuse(Refused(500, "something is wrong in the server; its log says what"), note, close=True)
        finally:
            self.state.active -= 1
            for job in jobs:
                self.state.engine.cancel(job)
            route = scope.get("route")  # a path nobody knows is not a label: there is no end to them
            path = route.path if route is not None else "other"
            self.state.metrics.requests.labels(path, str(status)).inc()
            seconds = round(time.monotonic() - begin, 4)
            level = logging.DEBUG if path in OPEN else logging.INFO  # probes come every second
            log.log(level, "request", extra={"facts": facts | {"path": path, "status": status, "seconds": seconds}})


async def _refused(request: Request, e: Refused) -> Response:
    return Response(json.dumps(e.body()), e.status, e.headers(), "application/json")


async def _invalid(request: Request, e: RequestValidationError) -> Response:
    first = e.errors()[0]
    place = [str(part) for part in first["loc"][1:] if not re.search(r"[^\w-]", str(part))]
    kind = {"extra_forbidden": "is not a parameter here", "missing": "is missing"}.get(first["type"], first["msg"])
    if first["type"] == "json_invalid" or not place:
        return await _refused(request, Refused(400, f"the body is not what is asked for: {first['msg']}"))
    return await _refused(request, Refused(400, f"{'.'.join(place)}: {kind}", place[0]))


async def _http(request: Request, e: HTTPException) -> Response:
    message = {404: "there is nothing at this address; see /docs", 405: "this address wants another method; see /docs"}
    response = await _refused(request, Refused(e.status_code, message.get(e.status_code, str(e.detail))))
    response.headers.update(e.headers or {})
    return response


# From a body to what the engine is asked ----------------------------------------------------------------------------------


def _check_model(state: State, name: str | None) -> None:
    if name not in (None, state.name):
        shown = name[:100].encode("ascii", "backslashreplace").decode()
        raise Refused(404, f"The model '{shown}' does not exist; there is '{state.name}'", "model", "model_not_found")


def _check_serving(state: State) -> None:
    if state.draining:
        raise Refused(503, "the server is stopping; ask another")
    if not state.engine.alive():
        raise Refused(503, "the engine has stopped; the server's log says why")


def _encode(state: State, prompts: list[str] | list[list[int]]) -> list[tuple[str, list[int]]]:
    """(what `think` seeds its generators by, ids) of prompts. Raises Refused."""
    tokenizer, thoughts = state.engine.mixture.tokenizer, set(state.engine.mixture.thoughts)
    if isinstance(prompts[0], str):
        try:
            return list(zip(prompts, encode_prompts(tokenizer, prompts, "prompt"), strict=True))
        except ValueError as e:
            raise Refused(400, str(e), "prompt") from None
    for ids in prompts:
        if wrong := next((i for i in ids if i >= len(tokenizer)), None):
            raise Refused(400, f"prompt: token {wrong} is not in the vocabulary of {len(tokenizer)}", "prompt")
        if wrong := next((i for i in ids if i in thoughts), None):
            raise Refused(400, f"prompt: token {wrong} is a thought token; ask for it with `thoughts`", "prompt")
    prompts = [ids or [tokenizer.eos_token_id] for ids in prompts]
    return [(str(ids), ids) for ids in prompts]


def _limit_prompt(state: State, ids: list[int], max_tokens: int, param: str) -> None:
    mixture, most = state.engine.mixture, state.settings.max_prompt_tokens
    if most is not None and len(ids) > most:
        raise Refused(
            400, f"{param}: has {len(ids)} tokens, at most {most} are taken", param, "context_length_exceeded"
        )
    context = context_of(state.engine)
    needed = len(ids) + (mixture.thought_length if mixture.thoughts else 0) + max_tokens
    if needed > context:
        message = f"This model's maximum context length is {context} tokens; {param} and max_tokens need {needed}"
        raise Refused(400, message, param, "context_length_exceeded")


def context_of(engine: Jobs) -> int:
    """Tokens that a row may have."""
    return getattr(engine.mixture.model.config, "max_position_embeddings", None) or 2**31


def _check_numbers(state: State, body: Asked, K: int, max_tokens: int, prompts: int) -> tuple[str, ...]:
    """All that can be refused before a prompt is even tokenised. Returns the stops."""
    settings, mixture = state.settings, state.engine.mixture
    _check_model(state, body.model)
    stops = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    W, thoughts = mixture.different_thoughts, body.thoughts
    repeats = K > W if thoughts is None else len(set(thoughts)) < len(thoughts)
    for param, refused, message in (
        ("n", settings.max_thoughts < K, f"{K}: at most {settings.max_thoughts} thoughts are followed at a time"),
        ("max_tokens", max_tokens > settings.max_tokens, f"{max_tokens}: at most {settings.max_tokens} are generated"),
        (
            "prompt",
            prompts > settings.max_queue,
            f"{prompts} prompts: at most {settings.max_queue} are taken at a time",
        ),
        (
            "max_tokens",
            prompts * K * max_tokens > settings.max_request_tokens,
            f"{prompts} x {K} texts of {max_tokens} tokens: a request may generate {settings.max_request_tokens}",
        ),
        ("stop", len(stops) > MAX_STOPS, f"{len(stops)} stops: at most {MAX_STOPS} are taken"),
        ("stop", any(len(s) > MAX_STOP_CHARACTERS for s in stops), f"at most {MAX_STOP_CHARACTERS} characters each"),
        ("stop", "" in stops, "an empty stop would end every answer before it begins"),
        ("thoughts", thoughts is not None and not mixture.thoughts, "this model has no thoughts"),
        ("thoughts", bool(thoughts) and max(thoughts) >= W, f"there are thoughts 0 to {W - 1}"),
        (
            "temperature",
            repeats and body.temperature == 0,
            f"0: {K} texts of {W} different thoughts repeat, and greedy repeats are copies; ask for fewer, or temperature > 0",
        ),
        ("stream_options", body.stream_options is not None and not body.stream, "goes with stream"),
    ):
        if refused:
            raise Refused(400, f"{param}: {message}", param)
    return stops


def _asks(
    state: State,
    body: Asked,
    encoded: list[tuple[str, list[int]]],
    K: int,
    max_tokens: int,
    stops,
    param: str,
    top,
    echo,
) -> list[Ask]:
    asks = []
    for text, ids in encoded:
        _limit_prompt(state, ids, max_tokens, param)
        if (cost := state.engine.cost(len(ids), K, max_tokens)) > state.settings.max_cached_tokens:
            message = f"{K} texts of {len(ids)} + {max_tokens} tokens need a cache of {cost}, there are {state.settings.max_cached_tokens}"
            raise Refused(400, f"{param}: {message}", param)
        ask = Ask(
            text,
            ids,
            K,
            max_tokens,
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            creativity=1.0 if body.creativity is None else body.creativity,
            seed=body.seed,
            stops=stops,
            thoughts=None if body.thoughts is None else tuple(body.thoughts),
            top=top,
            score_prompt=echo and top is not None,
        )
        asks.append(ask)
    return asks


def _texts(body: Asked) -> int:
    """n, which `thoughts` may stand for."""
    if body.thoughts is not None and body.n not in (None, len(body.thoughts)):
        raise Refused(400, f"n: {body.n}, but {len(body.thoughts)} thoughts are named; leave one of them out", "n")
    return body.n or len(body.thoughts or [0])


# Following jobs -----------------------------------------------------------------------------------------------------------


class Following:
    """The events of a request's jobs, in one queue of the event loop, and what a log and a meter want to know of them."""

    def __init__(self, request: Request, asks: list[Ask]):
        self.state: State = request.app.state.mot
        self.facts, loop, self.queue = request.state.facts, asyncio.get_running_loop(), asyncio.Queue()
        self.begin, self.last = time.monotonic(), {}
        try:
            self.jobs = self.state.engine.submit(
                asks, lambda job, event: loop.call_soon_threadsafe(self.queue.put_nowait, (job, event))
            )
        except Full:
            raise Refused(429, QUEUE_IS_FULL, code="queue_full") from None
        request.state.jobs.extend(self.jobs)
        self.prompt_tokens, self.completion_tokens = sum(len(ask.ids) for ask in asks), 0
        self.state.metrics.prompt_tokens.inc(self.prompt_tokens)
        self.facts |= {"n": sum(ask.texts for ask in asks), "prompt_tokens": self.prompt_tokens}
        if self.state.settings.log_prompts:
            self.facts["prompts"] = [ask.prompt for ask in asks]

    async def events(self) -> AsyncIterator[tuple[int, Begun | Said]]:
        """(number of the prompt, what happened), until all texts have ended. Raises Refused if the engine fails."""
        number = {job: i for i, job in enumerate(self.jobs)}
        left = {job: max(job.ask.texts, 1) for job in self.jobs}
        while any(left.values()):
            job, event = await self.queue.get()
            if isinstance(event, Failed):
                log.error("the engine failed", extra={"facts": self.facts | {"error": event.reason}})
                raise Refused(event.status, "the engine could not finish this; the server's log says why")
            if isinstance(event, Begun):
                left[job] -= job.ask.texts == 0
                N, L = self.state.engine.mixture.num_thoughts, self.state.engine.mixture.thought_length
                for k, _ in event.thoughts:
                    self.state.metrics.thoughts.labels(str(k // N ** (L - 1))).inc()
            else:
                self._measure(job, event)
                left[job] -= event.finish is not None
            yield number[job], event

    def _measure(self, job: Job, said: Said) -> None:
        now, metrics = time.monotonic(), self.state.metrics
        if "first_token_seconds" not in self.facts:
            self.facts["first_token_seconds"] = round(now - self.begin, 4)
            metrics.first.observe(now - self.begin)
        begin = self.last.setdefault((job, said.place), (now, said.generated))
        if said.finish:
            self.completion_tokens += said.generated
            self.facts["completion_tokens"] = self.completion_tokens
            if said.generated > begin[1]:
                metrics.each.observe((now - begin[0]) / (said.generated - begin[1]))

    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            total_tokens=self.prompt_tokens + self.completion_tokens,
        )


async def _unless_gone(request: Request, work) -> Any:
    """The result of a coroutine, or an empty answer as soon as nobody waits for it any more."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return tasks[0].result() if tasks[0].done() else Response(status_code=499)
    finally:
        for task in tasks:
            task.cancel()


def _sse(request: Request, chunks: AsyncIterator[BaseModel | dict]) -> EventSourceResponse:
    async def lines() -> AsyncIterator[bytes]:
        try:
            async for chunk in chunks:
                data = chunk.model_dump_json() if isinstance(chunk, BaseModel) else json.dumps(chunk)
                yield format_sse_event(data_str=data)
        except Refused as e:  # the status is long sent
            yield format_sse_event(data_str=json.dumps(e.body()))
        yield format_sse_event(data_str="[DONE]")

    return EventSourceResponse(lines(), headers={"cache-control": "no-store", "x-accel-buffering": "no"})


@dataclass
class Text:
    """One text as it grows."""

    thought: Thought | None
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    finish: str | None = None
    mean_logprob: float = 0.0


class Wording:
    """Tokens and their log-probabilities in OpenAI's two forms."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def word(self, id: int) -> str:
        return self.tokenizer.decode([id])

    def old(self, tokens: list[Token], top: int, shift: int = 0) -> Logprobs:
        return Logprobs(
            tokens=[self.word(t.id) for t in tokens],
            token_logprobs=[t.logprob for t in tokens],
            top_logprobs=[{self.word(i): lp for i, lp in t.top} if t.logprob is not None else None for t in tokens]
            if top
            else None,
            text_offset=[t.at + shift for t in tokens],
        )

    def new(self, tokens: list[Token]) -> ChatLogprobs:
        def one(id: int, logprob: float) -> dict:
            return {"token": self.word(id), "logprob": logprob, "bytes": list(self.word(id).encode())}

        return ChatLogprobs(
            content=[TokenLogprob(**one(t.id, t.logprob), top_logprobs=[one(*pair) for pair in t.top]) for t in tokens]
        )

    def echoed(self, tokens: list[Token]) -> list[Token]:
        """Tokens of a prompt with the places where they begin."""
        placed, at = [], 0
        for t in tokens:
            placed.append(Token(t.id, at, t.logprob, t.top))
            at += len(self.word(t.id))
        return placed


def _thought(state: State, pair: tuple[int, float]) -> Thought | None:
    return Thought(index=pair[0], probability=pair[1]) if state.engine.mixture.thoughts else None


# Routes -------------------------------------------------------------------------------------------------------------------


@router.post("/v1/completions", response_model=Completion, responses=REFUSALS | STREAM)
async def completions(body: CompletionBody, request: Request):
    """`n` continuations of a prompt, each a thought of its own, from one computation of the prompt."""
    state: State = request.app.state.mot
    _check_serving(state)
    n = _texts(body)
    K = body.best_of or n
    prompts = (
        [body.prompt]
        if isinstance(body.prompt, str) or not body.prompt or isinstance(body.prompt[0], int)
        else body.prompt
    )
    fair = max(1, min(16, state.settings.max_tokens, state.settings.max_request_tokens // (len(prompts) * K)))
    max_tokens = fair if body.max_tokens is None else body.max_tokens
    echo, top = bool(body.echo), body.logprobs
    stops = _check_numbers(state, body, max(K, n), max_tokens, len(prompts))
    for param, refused, message in (
        ("best_of", n > K, f"best_of: {K} is below n, {n}"),
        ("best_of", n < K and body.stream, "best_of: cannot be streamed, for the best are known last"),
        ("best_of", n < K and body.thoughts is not None, "best_of: chooses among thoughts, and `thoughts` names them"),
    ):
        if refused:
            raise Refused(400, message, param)
    encoded = await asyncio.to_thread(_encode, state, prompts)
    asks = _asks(state, body, encoded, K, max_tokens, stops, "prompt", top, echo)
    _check_serving(state)
    following, wording = Following(request, asks), Wording(state.engine.mixture.tokenizer)
    given = [p if isinstance(p, str) else wording.tokenizer.decode(p) for p in prompts]
    head = {"id": f"cmpl-{request.state.facts['id']}", "object": "text_completion"}
    head |= {"created": int(time.time()), "model": state.name}

    def choice(i: int, j: int, text: Text, begun: Begun | None) -> Choice:
        """`begun` where the text begins, so that the prompt's echo stands before it."""
        shown, tokens, shift = text.text, text.tokens, len(given[i]) if echo else 0
        logprobs = wording.old(tokens, top, shift) if top is not None else None
        if echo and begun is not None:
            shown = given[i] + shown
            if top is not None:
                before = wording.old(wording.echoed(begun.prompt), top)
                logprobs = Logprobs(
                    **{
                        name: None if value is None else value + getattr(logprobs, name)
                        for name, value in before.model_dump().items()
                    }
                )
        return Choice(index=i * n + j, text=shown, logprobs=logprobs, finish_reason=text.finish, thought=text.thought)

    async def whole() -> Completion:
        begun, texts = {}, {}
        async for i, event in following.events():
            if isinstance(event, Begun):
                begun[i], texts[i] = event, [Text(_thought(state, pair)) for pair in event.thoughts]
            else:
                text = texts[i][event.place]
                text.text, text.tokens = text.text + event.text, text.tokens + event.tokens
                text.finish, text.mean_logprob = event.finish, event.mean_logprob
        choices = []
        for i in range(len(asks)):
            best = sorted(texts[i], key=lambda text: -text.mean_logprob) if n < K else texts[i]
            choices += [choice(i, j, text, begun[i]) for j, text in enumerate(best[:n])]
        return Completion(**head, choices=choices, usage=following.usage())

    async def chunks() -> AsyncIterator[Completion]:
        thoughts = {}
        async for i, event in following.events():
            if isinstance(event, Begun):
                thoughts[i] = [_thought(state, pair) for pair in event.thoughts]
                new = [choice(i, j, Text(thought), event) for j, thought in enumerate(thoughts[i])]
            else:
                j = event.place
                new = [choice(i, j, Text(thoughts[i][j], event.text, event.tokens, event.finish), None)]
            yield Completion(**head, choices=new, usage=None)
        if body.stream_options and body.stream_options.include_usage:
            yield Completion(**head, choices=[], usage=following.usage())

    return _sse(request, chunks()) if body.stream else await _unless_gone(request, whole())


@router.post("/v1/chat/completions", response_model=ChatCompletion, responses=REFUSALS | STREAM)
async def chat_completions(body: ChatBody, request: Request):
    """`n` answers to a conversation, each a thought of its own, if the model's tokenizer has a chat template."""
    state: State = request.app.state.mot
    _check_serving(state)
    K, settings, tokenizer = _texts(body), state.settings, state.engine.mixture.tokenizer
    told = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    stops = _check_numbers(state, body, K, told or 1, 1)
    if body.top_logprobs and not body.logprobs:
        raise Refused(400, "top_logprobs: goes with logprobs", "top_logprobs")
    if not tokenizer.chat_template:
        raise Refused(400, "messages: the model's tokenizer has no chat template; use /v1/completions", "messages")
    text, ids = await asyncio.to_thread(_render, state, body.messages)
    room = min(
        settings.max_tokens,
        settings.max_request_tokens // K,
        context_of(state.engine) - len(ids) - state.engine.mixture.thought_length,
        settings.max_cached_tokens // K - len(ids) - state.engine.mixture.thought_length,
    )
    max_tokens = max(room, 1) if told is None else told
    top = (body.top_logprobs or 0) if body.logprobs else None
    asks = _asks(state, body, [(text, ids)], K, max_tokens, stops, "messages", top, False)
    _check_serving(state)
    following, wording = Following(request, asks), Wording(tokenizer)
    head = {"id": f"chatcmpl-{request.state.facts['id']}", "created": int(time.time()), "model": state.name}

    async def whole() -> ChatCompletion:
        texts: list[Text] = []
        async for _, event in following.events():
            if isinstance(event, Begun):
                texts = [Text(_thought(state, pair)) for pair in event.thoughts]
            else:
                text = texts[event.place]
                text.text, text.tokens, text.finish = text.text + event.text, text.tokens + event.tokens, event.finish
        choices = [
            ChatChoice(
                index=j,
                message=Answer(content=text.text),
                logprobs=None if top is None else wording.new(text.tokens),
                finish_reason=text.finish,
                thought=text.thought,
            )
            for j, text in enumerate(texts)
        ]
        return ChatCompletion(**head, object="chat.completion", choices=choices, usage=following.usage())

    async def chunks() -> AsyncIterator[dict]:
        thoughts: list[Thought | None] = []

        def chunk(choices: list[dict], usage: Usage | None = None) -> dict:
            body = {**head, "object": "chat.completion.chunk", "choices": choices}
            return body | {"usage": usage and usage.model_dump()}

        def choice(j: int, delta: dict, tokens: list[Token], finish: str | None) -> dict:
            logprobs = None if top is None else wording.new(tokens).model_dump()
            thought = thoughts[j] and thoughts[j].model_dump()
            return {"index": j, "delta": delta, "logprobs": logprobs, "finish_reason": finish, "thought": thought}

        async for _, event in following.events():
            if isinstance(event, Begun):
                thoughts = [_thought(state, pair) for pair in event.thoughts]
                yield chunk([choice(j, {"role": "assistant", "content": ""}, [], None) for j in range(K)])
            else:
                yield chunk([choice(event.place, {"content": event.text}, event.tokens, event.finish)])
        if body.stream_options and body.stream_options.include_usage:
            yield chunk([], following.usage())

    return _sse(request, chunks()) if body.stream else await _unless_gone(request, whole())


def _render(state: State, messages: list[Message]) -> tuple[str, list[int]]:
    """(what `think` seeds its generators by, ids) of a conversation. Raises Refused."""
    tokenizer, thoughts = state.engine.mixture.tokenizer, set(state.engine.mixture.thoughts)
    turns = [
        {
            "role": m.role,
            "content": m.content if isinstance(m.content, str) else "".join(part.text for part in m.content),
        }
        for m in messages
    ]
    try:
        (ids,) = encode_prompts(tokenizer, [turns])
    except (ValueError, TypeError) as e:  # what a model's own template raises: of roles, of their order
        raise Refused(
            400, f"messages: do not fit the model's chat template ({' '.join(str(e).split())[:160]})", "messages"
        ) from None
    if thoughts & set(ids):
        raise Refused(400, "messages: spell out a thought token; ask for it with `thoughts`", "messages")
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
        raise Refused(400, "messages: have a character that the model has never seen", "messages")
    return str(turns), ids


@router.post("/v1/route", response_model=Route, responses=REFUSALS)
async def route(body: RouteBody, request: Request):
    """p(k | prompt) alone."""
    state: State = request.app.state.mot
    _check_serving(state)
    _check_model(state, body.model)
    if not state.engine.mixture.thoughts:
        raise Refused(400, "this model has no thoughts to route to", "prompt")
    ((text, ids),) = await asyncio.to_thread(_encode, state, [body.prompt])
    _limit_prompt(state, ids, 0, "prompt")
    following = Following(request, [Ask(text, ids, texts=0, max_tokens=0)])

    async def whole() -> Route:
        (begun,) = [event async for _, event in following.events()]
        return Route(object="route", model=state.name, probabilities=begun.router)

    return await _unless_gone(request, whole())


def _model(state: State) -> Model:
    mixture, settings = state.engine.mixture, state.settings
    return Model(
        id=state.name,
        object="model",
        created=state.created,
        owned_by="mixture-of-thoughts",
        thoughts=len(mixture.thoughts),
        different_thoughts=mixture.different_thoughts,
        max_thoughts=settings.max_thoughts,
        max_tokens=settings.max_tokens,
    )


@router.get("/v1/models", response_model=Models, responses=GUARDED)
async def models(request: Request):
    return Models(object="list", data=[_model(request.app.state.mot)])


@router.get("/v1/models/{model}", response_model=Model, responses=GUARDED | {404: REFUSALS[404]})
async def model(model: str, request: Request):
    _check_model(request.app.state.mot, model)
    return _model(request.app.state.mot)


@router.get("/health", response_model=Status, responses={503: REFUSALS[503], 421: REFUSALS[421], 431: REFUSALS[431]})
async def health(request: Request):
    """Does the process work at all?"""
    state: State = request.app.state.mot
    if not state.engine.alive() and not state.draining:
        raise Refused(503, "the engine has stopped; the server's log says why")
    return Status(status="ok")


@router.get("/ready", response_model=Status, responses={503: REFUSALS[503], 421: REFUSALS[421], 431: REFUSALS[431]})
async def ready(request: Request):
    """May new requests be sent here?"""
    _check_serving(request.app.state.mot)
    return Status(status="ready")


@router.get(
    "/metrics",
    responses=GUARDED | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    response_class=Response,
)
async def metrics(request: Request):
    """Prometheus' text format."""
    content = generate_latest(request.app.state.mot.metrics.registry)
    return Response(content, media_type="text/plain; version=0.0.4; charset=utf-8")


PAGE = (Path(__file__).parent / "playground.html").read_text(encoding="utf-8")


def _hash(element: str) -> str:
    (content,) = re.findall(rf"<{element}>(.*?)</{element}>", PAGE, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


POLICY = (
    f"default-src 'none'; script-src {_hash('script')}; style-src {_hash('style')}; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@router.get("/", response_class=HTMLResponse, responses=GUARDED)
async def playground():
    """K thoughts side by side in a browser."""
    headers = {"content-security-policy": POLICY, "referrer-policy": "no-referrer", "cache-control": "no-cache"}
    return HTMLResponse(PAGE, headers=headers)
