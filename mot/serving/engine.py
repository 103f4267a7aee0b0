"""What is asked of an engine, what it tells, and who waits: all that the embedded engine and the one before vLLM have in common.

    jobs = engine.submit([Ask(prompt, ids, texts=8, max_tokens=40, seed=1)], emit)    # from any thread; emit(job, event)
    engine.cancel(jobs[0])

A job's events are one Begun, then Saids until each of its texts has finished; or Failed, and nothing more.
"""

import threading
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from secrets import randbits

from mot.inference.think import MixtureOfThoughts


@dataclass(frozen=True)
class Ask:
    """What is asked of one prompt. `ids` are its tokens, `prompt` its text or what else `think` seeds its generators by.

    `texts` K >= 0, of which 0 asks the router only; `thoughts` are the K to follow, in that order, instead of chosen ones; `top`
    the number of most probable tokens to tell beside each chosen one, None for not even that one's own; `score_prompt` asks
    the log-probabilities of the prompt's tokens too.
    """

    prompt: str
    ids: list[int]
    texts: int = 1
    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    creativity: float = 1.0
    seed: int | None = None
    stops: tuple[str, ...] = ()
    thoughts: tuple[int, ...] | None = None
    top: int | None = None
    score_prompt: bool = False


@dataclass(frozen=True)
class Token:
    """A token, the place in the text where it begins, its log-probability (nats), and the most probable (id, nats) there."""

    id: int
    at: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Begun:
    """The prompt is computed: p(k | prompt) [N] (empty without thoughts), the thoughts followed with their probabilities [K]."""

    router: list[float]
    thoughts: list[tuple[int, float]]
    prompt: list[Token]


@dataclass(frozen=True)
class Said:
    """Text that the `place`-th of K texts has gained, its tokens, and how it ended: "stop", "length" or not yet."""

    place: int
    text: str
    tokens: list[Token]
    finish: str | None
    generated: int  # tokens so far, the end of text among them
    mean_logprob: float


@dataclass(frozen=True)
class Failed:
    """The job could not be finished; nothing follows. `status`: 503 where another try later may help."""

    reason: str
    status: int = 500


class Job:
    """An Ask on its way. `outcome` is None until it is "completed", "aborted" or "failed"."""

    def __init__(self, ask: Ask, emit: Callable[["Job", object], None], cached_tokens: int):
        self.ask, self.emit, self.cached_tokens = ask, emit, cached_tokens
        self.seed = randbits(63) if ask.seed is None else ask.seed
        self.ahead, self.computed, self.cache, self.prompt_tokens = ask.ids, 0, None, []  # the embedded engine's
        self.cancelled, self.outcome, self.left = False, None, ask.texts


class Full(Exception):
    """The queue has no place."""


class Jobs(ABC):
    """Jobs that wait, jobs that run, and `counts` of what became of them: accepted, completed, aborted, failed.

    An engine is this and a `thread` that does the work. `work` is held by whoever changes who waits and who runs.
    """

    thread: threading.Thread

    def __init__(self, mixture: MixtureOfThoughts, max_batch: int, max_queue: int):
        self.mixture, self.max_batch, self.max_queue = mixture, max_batch, max_queue
        self.waiting: deque[Job] = deque()
        self.running: list[Job] = []
        self.counts: Counter[str] = Counter()
        self.work = threading.Condition()
        self.closed = False

    def submit(self, asks: list[Ask], emit: Callable[[Job, object], None]) -> list[Job]:
        """All of them or, if the queue has no place for all, Full. `emit` is called by the engine's thread."""
        jobs = [Job(ask, emit, self.cost(len(ask.ids), ask.texts, ask.max_tokens)) for ask in asks]
        with self.work:
            if len(self.waiting) + len(jobs) > self.max_queue or self.closed:
                raise Full
            self.waiting.extend(jobs)
            self.counts["accepted"] += len(jobs)
            self.wake()
        return jobs

    @abstractmethod
    def wake(self) -> None:
        """Tell the thread that jobs wait."""

    @abstractmethod
    def cancel(self, job: Job) -> None:
        """Compute no more of it. Nothing happens to one that has ended."""

    @abstractmethod
    def cost(self, prompt: int, texts: int, max_tokens: int) -> int:
        """Tokens in the cache at most."""

    @abstractmethod
    def close(self) -> None:
        """End the thread; what runs is left."""

    def full(self) -> bool:
        """Would it refuse one more?"""
        return len(self.waiting) >= self.max_queue

    def idle(self) -> bool:
        return not self.waiting and not self.running

    def alive(self) -> bool:
        """Can anything be asked of it?"""
        return self.thread.is_alive()

    def texts_running(self) -> int:
        return sum(job.left for job in self.running)

    def _texts_fit(self) -> bool:
        """May the first that waits begin beside the texts of those that run?"""
        texts = sum(max(job.ask.texts, 1) for job in self.running) + self.waiting[0].ask.texts
        return not self.running or texts <= self.max_batch

    def _end(self, job: Job, outcome: str) -> None:
        job.outcome, job.cache = outcome, None
        with self.work:
            self.counts[outcome] += 1
            if job in self.running:
                self.running.remove(job)

    def _emit(self, job: Job, event: object) -> None:
        try:
            job.emit(job, event)
        except RuntimeError:  # whoever listened has closed its event loop
            job.cancelled = True


def spell(tokenizer, ids: list[int], decoded: tuple[int, int], ended: bool) -> tuple[str, tuple[int, int]]:
    """(what `ids` add to their text, `decoded` after it). Before the first of `decoded` ids are text for good; up to the second they are told.

    A character may take several tokens; until the last of them it decodes to U+FFFD, which is told only of a text that has `ended`.
    """
    begin, end = decoded
    old = tokenizer.decode(ids[begin:end], skip_special_tokens=True)
    new = tokenizer.decode(ids[begin:], skip_special_tokens=True)
    if len(new) > len(old) and (ended or not new.endswith("\ufffd")):
        return new[len(old) :], (end, len(ids))
    return "", decoded
