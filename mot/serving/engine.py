"""What the API asks of an engine and what the engine emits. The base class of both engines, with their queue.

    jobs = engine.submit([GenerationRequest(prompt, ids, sampling)], emit)    # from any thread; emit(job, event)
    engine.cancel(jobs[0])

The events of a job are one Prefilled, then TextDeltas until each of its texts has finished. RequestFailed may come at
any point and is the last event.
"""

import threading
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from mot.inference.settings import SamplingParams
from mot.inference.think import MixtureOfThoughts


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt to continue. `ids` are its tokens; `prompt` is its text, or what else seeds the generators of `think`.

    `sampling.num_thoughts` K >= 0 is the number of texts; 0 asks for the router only. `seeded`: the client gave the
    seed, so the texts must not depend on what else runs. `thoughts`: follow these K thoughts, in this order, instead of
    chosen ones. `top_logprobs`: the number of most probable tokens reported beside each generated one; None reports no
    log-probability at all. `score_prompt`: report the log-probabilities of the prompt's tokens as well.
    """

    prompt: str
    ids: list[int]
    sampling: SamplingParams
    seeded: bool = False
    stops: tuple[str, ...] = ()
    thoughts: tuple[int, ...] | None = None
    top_logprobs: int | None = None
    score_prompt: bool = False


@dataclass(frozen=True)
class Token:
    """A token, its character offset in the text, its logprob and the most probable (id, logprob) there. Nats.

    `raw` are its bytes in this text, if they are known.
    """

    id: int
    offset: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]
    raw: bytes | None = None


@dataclass(frozen=True)
class Prefilled:
    """The prompt is computed.

    `router`: p(k | prompt) [N], empty without thoughts. `thoughts`: (index, probability) of the K thoughts to follow.
    `prompt`: the prompt's tokens, if `score_prompt` asked for them.
    """

    router: list[float]
    thoughts: list[tuple[int, float]]
    prompt: list[Token]


@dataclass(frozen=True)
class TextDelta:
    """What text number `place` of K has gained. `finish` is "stop", "length", or None while the text goes on.

    `generated` counts the tokens of the text so far, its end token included. `mean_logprob` is their mean (nats).
    """

    place: int
    text: str
    tokens: list[Token]
    finish: str | None
    generated: int
    mean_logprob: float


@dataclass(frozen=True)
class RequestFailed:
    """The job could not be finished. `status` is the HTTP status: 503 if a later retry may help."""

    reason: str
    status: int = 500


class Job:
    """A request on its way. `outcome` is None until it is "completed", "aborted" or "failed".

    `cached_tokens` is what it may need in the KV cache. `unfinished` counts its texts that still grow.
    """

    def __init__(self, request: GenerationRequest, emit: Callable[["Job", object], None], cached_tokens: int):
        self.request, self.emit, self.cached_tokens = request, emit, cached_tokens
        self.cancelled, self.outcome, self.unfinished = False, None, request.sampling.num_thoughts
        # Only TransformersEngine uses these: tokens to prefill, how many are done, their cache, their logprobs.
        self.prefill_ids, self.prefilled, self.cache, self.prompt_tokens = request.ids, 0, None, []


class QueueFull(Exception):
    """The queue has no room for the jobs."""


class Engine(ABC):
    """A queue of waiting jobs, a list of running jobs, and `counts`: accepted, completed, aborted, failed.

    A subclass adds a `thread` that does the work. The lock `work` guards `waiting` and `running`.
    """

    thread: threading.Thread

    def __init__(self, mixture: MixtureOfThoughts, max_batch: int, max_queue: int):
        self.mixture, self.max_batch, self.max_queue = mixture, max_batch, max_queue
        self.waiting: deque[Job] = deque()
        self.running: list[Job] = []
        self.counts: Counter[str] = Counter()
        self.work = threading.Condition()
        self.closed = False

    def submit(self, requests: list[GenerationRequest], emit: Callable[[Job, object], None]) -> list[Job]:
        """Queue all requests, or none: raises QueueFull without room for all. The thread calls `emit`."""
        jobs = [Job(request, emit, self.cost(len(request.ids), request.sampling)) for request in requests]
        with self.work:
            if len(self.waiting) + len(jobs) > self.max_queue or self.closed:
                raise QueueFull
            self.waiting.extend(jobs)
            self.counts["accepted"] += len(jobs)
            self.wake()
        return jobs

    @abstractmethod
    def wake(self) -> None:
        """Notify the thread that jobs wait."""

    @abstractmethod
    def cancel(self, job: Job) -> None:
        """Stop computing a job. Does nothing if it has ended."""

    @abstractmethod
    def cost(self, prompt_tokens: int, sampling: SamplingParams) -> int:
        """The most tokens that a request may hold in the KV cache."""

    @abstractmethod
    def close(self) -> None:
        """End the thread. Running jobs are not finished."""

    def full(self) -> bool:
        """True if `submit` would raise QueueFull for one more request."""
        return len(self.waiting) >= self.max_queue

    def idle(self) -> bool:
        return not self.waiting and not self.running

    def alive(self) -> bool:
        """True if requests can be computed."""
        return self.thread.is_alive()

    def texts_running(self) -> int:
        return sum(job.unfinished for job in self.running)

    def _next_fits(self) -> bool:
        """True if the texts of the first waiting job fit into the batch beside the running ones."""
        texts = sum(max(job.request.sampling.num_thoughts, 1) for job in self.running)
        return not self.running or texts + self.waiting[0].request.sampling.num_thoughts <= self.max_batch

    def _end(self, job: Job, outcome: str) -> None:
        job.outcome, job.cache = outcome, None
        with self.work:
            self.counts[outcome] += 1
            if job in self.running:
                self.running.remove(job)

    def _emit(self, job: Job, event: object) -> None:
        try:
            job.emit(job, event)
        except RuntimeError:  # the event loop of the listener is closed
            job.cancelled = True


def detokenize(
    tokenizer: PreTrainedTokenizerBase,
    ids: list[int],
    emitted: tuple[int, int],
    ended: bool,
    with_special: bool = False,
) -> tuple[str, tuple[int, int]]:
    """Incremental detokenisation: (the text that `ids` add, the new value of `emitted`).

    `emitted` is (begin, end): ids[:begin] are final and ids[begin:end] have been emitted as text. A character may take
    several tokens and decodes to U+FFFD until the last of them, so a final U+FFFD is held back unless the text
    has `ended`.
    """
    begin, end = emitted
    old = tokenizer.decode(ids[begin:end], skip_special_tokens=not with_special)
    new = tokenizer.decode(ids[begin:], skip_special_tokens=not with_special)
    if len(new) > len(old) and (ended or not new.endswith("\ufffd")):
        return new[len(old) :], (end, len(ids))
    return "", emitted
