"""From the engine's events to an answer: whole or streamed, of completions or of chat. All four are assembled here.

    stream = ResponseStream(request, requests)
    return await respond(request, body, stream, AnswerFormat("cmpl", "text_completion", "text_completion", content), n)

A new field of every choice is a field of `TextPart`, one of `BaseChoice` in schemas.py, and a line in `choice` below.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from fastapi import Request, Response
from fastapi.sse import EventSourceResponse, format_sse_event
from pydantic import TypeAdapter

from mot.serving.engine import GenerationRequest, Job, Prefilled, QueueFull, RequestFailed, TextDelta, Token
from mot.serving.guard import QUEUE_IS_FULL, ApiError
from mot.serving.schemas import GenerationBody
from mot.serving.state import State

log = logging.getLogger("mot.serving")
JSON = TypeAdapter(dict[str, Any])  # writes an infinite log-probability as null, which json.dumps does not


@dataclass
class TextPart:
    """What one text has gained; a whole text is the sum of its parts.

    `prompt` and `place` say which text it is: number `place` of K from prompt number `prompt`. `prefilled` is set in
    the first part of a text only.
    """

    prompt: int
    place: int
    thought: dict | None
    prefilled: Prefilled | None = None
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    finish: str | None = None
    mean_logprob: float = 0.0

    def extend(self, later: "TextPart") -> None:
        self.text += later.text
        self.tokens += later.tokens
        self.finish, self.mean_logprob = later.finish, later.mean_logprob


class ResponseStream:
    """Submits requests and collects the events of their jobs on the event loop, for one HTTP request.

    Raises ApiError 429 if the queue is full. Adds to the request's log line and to the metrics.
    """

    def __init__(self, request: Request, requests: list[GenerationRequest]):
        self.state: State = request.app.state.mot
        self.facts, loop, self.queue = request.state.facts, asyncio.get_running_loop(), asyncio.Queue()
        self.begin, self.first_delta = time.monotonic(), {}

        def emit(job: Job, event: object) -> None:  # called by the engine's thread
            loop.call_soon_threadsafe(self.queue.put_nowait, (job, event))

        try:
            self.jobs = self.state.engine.submit(requests, emit)
        except QueueFull:
            raise ApiError(429, QUEUE_IS_FULL, code="queue_full") from None
        request.state.jobs.extend(self.jobs)
        self.prompt_tokens, self.completion_tokens = sum(len(r.ids) for r in requests), 0
        self.state.metrics.prompt_tokens.inc(self.prompt_tokens)
        texts = sum(r.sampling.num_thoughts for r in requests)
        self.facts |= {"n": texts, "prompt_tokens": self.prompt_tokens}
        if self.state.settings.log_prompts:
            self.facts["prompts"] = [r.prompt for r in requests]

    async def events(self) -> AsyncIterator[tuple[int, Prefilled | TextDelta]]:
        """(number of the prompt, event), until all texts have ended. Raises ApiError if the engine fails."""
        number = {job: i for i, job in enumerate(self.jobs)}
        unfinished = {job: max(job.request.sampling.num_thoughts, 1) for job in self.jobs}
        while any(unfinished.values()):
            job, event = await self.queue.get()
            await asyncio.sleep(0)  # `get` does not wait while there are events, and other requests would
            if isinstance(event, RequestFailed):
                log.error("the engine failed", extra={"facts": self.facts | {"error": event.reason}})
                raise ApiError(
                    event.status, "the engine could not finish this request; the server's log has the reason"
                )
            if isinstance(event, Prefilled):
                unfinished[job] -= job.request.sampling.num_thoughts == 0
                self._count_thoughts(event)
            else:
                unfinished[job] -= event.finish is not None
                self._measure(job, event)
            yield number[job], event

    async def parts(self) -> AsyncIterator[list[TextPart]]:
        """The events as parts of texts: first the K empty beginnings of a prompt, then one part at a time."""
        thoughts: dict[int, list[dict | None]] = {}
        has_thoughts = bool(self.state.engine.mixture.thoughts)
        async for i, event in self.events():
            if isinstance(event, Prefilled):
                thoughts[i] = [{"index": k, "probability": p} if has_thoughts else None for k, p in event.thoughts]
                yield [TextPart(i, place, thought, event) for place, thought in enumerate(thoughts[i])]
            else:
                thought, delta = thoughts[i][event.place], event
                yield [
                    TextPart(i, delta.place, thought, None, delta.text, delta.tokens, delta.finish, delta.mean_logprob)
                ]

    def _count_thoughts(self, event: Prefilled) -> None:
        mixture = self.state.engine.mixture
        for k, _ in event.thoughts:
            first_token = k // mixture.num_thoughts ** (mixture.thought_length - 1)
            self.state.metrics.thoughts.labels(str(first_token)).inc()

    def _measure(self, job: Job, delta: TextDelta) -> None:
        now, metrics = time.monotonic(), self.state.metrics
        if "first_token_seconds" not in self.facts:
            self.facts["first_token_seconds"] = round(now - self.begin, 4)
            metrics.first_token.observe(now - self.begin)
        first_seconds, first_count = self.first_delta.setdefault((job, delta.place), (now, delta.generated))
        if delta.finish:
            self.completion_tokens += delta.generated
            self.facts["completion_tokens"] = self.completion_tokens
            if delta.generated > first_count:
                metrics.per_token.observe((now - first_seconds) / (delta.generated - first_count))

    def usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


@dataclass(frozen=True)
class AnswerFormat:
    """What distinguishes completions from chat completions.

    `content(part, streamed)` are the fields of a choice that the two do not share: the text or message, and logprobs.
    """

    id_prefix: str
    object: str
    chunk_object: str
    content: Callable[[TextPart, bool], dict]


async def respond(request: Request, body: GenerationBody, stream: ResponseStream, form: AnswerFormat, n: int) -> Any:
    """The answer to a body: an event stream if it asks for one, else a dict with the `n` best texts of every prompt."""
    head = {"id": f"{form.id_prefix}-{request.state.facts['id']}", "created": int(time.time())}
    head["model"] = stream.state.name

    def choice(index: int, part: TextPart, streamed: bool) -> dict:
        shared = {"index": index, "finish_reason": part.finish, "thought": part.thought}
        return shared | form.content(part, streamed)

    async def whole() -> Response:
        texts: list[list[TextPart]] = [[] for _ in stream.jobs]
        async for parts in stream.parts():
            for part in parts:
                if part.prefilled:
                    texts[part.prompt].append(part)
                else:
                    texts[part.prompt][part.place].extend(part)
        best = enumerate(chain.from_iterable(_best(of_prompt, n) for of_prompt in texts))
        answer = head | {"object": form.object, "usage": stream.usage()}
        # In a thread: forty prompts of 2,000 tokens with log-probabilities take seconds.
        content = await asyncio.to_thread(lambda: dump(answer, (choice(i, text, False) for i, text in best)))
        return Response(content, media_type="application/json")

    async def chunks() -> AsyncIterator[bytes]:
        chunk = head | {"object": form.chunk_object, "usage": None}
        async for parts in stream.parts():
            choices = (choice(part.prompt * n + part.place, part, True) for part in parts)
            if parts and parts[0].prefilled and parts[0].prefilled.prompt:
                yield await asyncio.to_thread(dump, chunk, choices)
            else:
                yield dump(chunk, choices)
        if body.stream_options and body.stream_options.include_usage:
            yield dump(chunk | {"usage": stream.usage()}, iter(()))

    return event_stream(chunks()) if body.stream else await until_disconnect(request, whole())


def dump(answer: dict, choices: Iterator[dict]) -> bytes:
    """The JSON of an answer with its choices, one after another: a single call would hold the interpreter too long."""
    return JSON.dump_json(answer)[:-1] + b',"choices":[' + b",".join(map(JSON.dump_json, choices)) + b"]}"


def _best(texts: list[TextPart], n: int) -> list[TextPart]:
    """The n texts of best mean log-probability, the best first; all of them in their own order if there are n."""
    return texts if n == len(texts) else sorted(texts, key=lambda text: -text.mean_logprob)[:n]


async def until_disconnect(request: Request, work: Coroutine) -> Any:
    """The result of a coroutine, or an empty answer as soon as the client disconnects."""

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(disconnected())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return tasks[0].result() if tasks[0].done() else Response(status_code=499)
    finally:
        for task in tasks:
            task.cancel()


def event_stream(chunks: AsyncIterator[bytes]) -> EventSourceResponse:
    """Chunks as server-sent events. The status is sent by the time an error comes, so the error is an event as well."""

    async def events() -> AsyncIterator[bytes]:
        try:
            async for chunk in chunks:
                yield format_sse_event(data_str=chunk.decode())
        except ApiError as e:
            yield format_sse_event(data_str=json.dumps(e.body()))
        yield format_sse_event(data_str="[DONE]")

    return EventSourceResponse(events(), headers={"cache-control": "no-store", "x-accel-buffering": "no"})
