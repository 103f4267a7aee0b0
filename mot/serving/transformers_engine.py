"""The embedded engine: one thread owns the model. Requests join and leave between two of its steps.

    engine = TransformersEngine(mixture, max_batch=128, max_cached_tokens=131072, max_queue=128)
    jobs = engine.submit([GenerationRequest(prompt, ids, sampling)], emit)    # from any thread; emit(job, event)
    engine.cancel(jobs[0])                                                    # its rows leave before the next step

A step is at most PREFILL tokens of one waiting prompt, and one token for every running text. A prompt is computed once,
in a batch of one, and its K texts start from copies of its cache. Thoughts, their order and the random generators are
those of `MixtureOfThoughts.think`, so the texts are the same as well.

Why not transformers' continuous batching (5.23)? It draws from the global generator, so a text would depend on what
runs beside it. It has no seed, stop or number of texts per request. It reports the chosen token's log-probability only.
The router would be an extra request, and K thoughts would be K requests that share only whole blocks of a prompt.

Which rows share a forward pass? Requests without a seed share one, padded left to the longest row (`Group`), because
128 rows in a pass cost little more than 8. The last bits of a row's logits then depend on the shapes beside it. A
request with a seed is promised the same texts, so its rows are a group of their own. The shapes of that group depend on
the request alone, which makes it equal to the bit on any device and in any precision, at the price of a separate
forward pass. docs/results/serving.md has both measured.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor
from transformers import Cache

from mot.inference.sampling import drawing, generators_of
from mot.inference.settings import SamplingParams
from mot.inference.think import MixtureOfThoughts
from mot.model.score import read_thought
from mot.model.shared_prompt import can_pad, join, preallocate, select, trim_left
from mot.runtime.flags import one_line
from mot.serving.engine import Engine, Job, Prefilled, RequestFailed, TextDelta, Token, detokenize
from mot.serving.logprobs import place_tokens
from mot.serving.token_text import TokenText

PREFILL = 512  # tokens of a prompt computed between two decode steps


@dataclass(eq=False)
class Row:
    """One text. The cache holds `length` tokens of it, and `next` is the token to read."""

    job: Job
    place: int
    generator: torch.Generator
    next: int
    length: int
    ids: list[int] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)  # not yet emitted; empty unless log-probabilities were asked for
    unplaced: list[Token] = field(default_factory=list)  # the last of them, whose character is not whole yet
    text: str = ""
    decoded: tuple[int, int] = (0, 0)  # (begin, end) of `detokenize`
    emitted: int = 0  # characters
    logprob: float = 0.0


@dataclass(eq=False)
class Group:
    """The rows of one forward pass, those of a job side by side, and their KV cache, padded left to the longest."""

    rows: list[Row]
    cache: Cache


class TransformersEngine(Engine):
    """`counts` also has prefills, prefill_tokens, steps (of decoding) and tokens.

    `share=False`: no two jobs share a forward pass.
    """

    def __init__(
        self, mixture: MixtureOfThoughts, max_batch: int, max_cached_tokens: int, max_queue: int, share: bool = True
    ):
        super().__init__(mixture, max_batch, max_queue)
        self.max_cached_tokens, self.share = max_cached_tokens, share
        self.groups: list[Group] = []
        self.ends, self.texts = frozenset(mixture.ends), TokenText(mixture.tokenizer)
        self.thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.thread.start()

    def wake(self) -> None:
        self.work.notify()

    def cancel(self, job: Job) -> None:
        with self.work:
            job.cancelled = True
            if job in self.waiting:
                self.waiting.remove(job)
                self._end(job, "aborted")

    def cost(self, prompt_tokens: int, sampling: SamplingParams) -> int:
        tokens = prompt_tokens + self.mixture.thought_length + sampling.max_new_tokens
        return max(sampling.num_thoughts, 1) * tokens

    def close(self) -> None:
        with self.work:
            self.closed = True
            self.work.notify()
        self.thread.join()

    def _run(self) -> None:
        try:
            self._work()
        finally:  # without the thread no job would ever get an event again
            with self.work:
                self.closed, left = True, [*self.waiting, *self.running]
                self.waiting.clear()
            for job in left:
                self._end(job, "failed")
                self._emit(job, RequestFailed("the engine has stopped"))

    @torch.no_grad()
    def _work(self) -> None:
        while True:
            with self.work:
                self.work.wait_for(lambda: self.closed or self.waiting or self.running)
                if self.closed:
                    return
                self._admit()
            self._drop_cancelled()
            job = next((job for job in self.running if job.prefilled < len(job.prefill_ids)), None)
            if job:
                self._isolate(self._prefill, job, [job])
            for group in list(self.groups):
                self._isolate(self._decode, group, list(dict.fromkeys(row.job for row in group.rows)))

    def _admit(self) -> None:
        """Start waiting jobs in order of arrival. The API rejects a job that could never fit."""
        while self.waiting and self._next_fits():
            job = self.waiting[0]
            tokens = sum(other.cached_tokens for other in self.running) + job.cached_tokens
            if self.running and tokens > self.max_cached_tokens:
                return
            # Decoding reads a token that the cache lacks: the thought, or without thoughts the prompt's last token.
            if not self.mixture.thoughts:
                job.prefill_ids = job.request.ids[:-1] or job.request.ids
            self.running.append(self.waiting.popleft())

    def _drop_cancelled(self) -> None:
        for job in [job for job in self.running if job.cancelled]:
            self._end(job, "aborted")
        for group in list(self.groups):
            self._keep_rows(group, [i for i, row in enumerate(group.rows) if not row.job.cancelled])

    def _isolate(self, work: Callable, on: object, jobs: list[Job]) -> None:
        """Run `work(on)`. An exception or lack of memory fails its own jobs only."""
        try:
            work(on)
        except Exception as e:
            if on in self.groups:
                self.groups.remove(on)
            for job in jobs:
                if job.outcome is None:
                    self._end(job, "failed")
                    self._emit(job, RequestFailed(f"{type(e).__name__}: {one_line(e, 200)}"))

    # Prefill --------------------------------------------------------------------------------------------------------

    def _prefill(self, job: Job) -> None:
        """Compute the next PREFILL tokens of a prompt. After the last of them its texts start."""
        request, mixture = job.request, self.mixture
        chunk = job.prefill_ids[job.prefilled : job.prefilled + PREFILL]
        out = mixture.model(
            input_ids=torch.tensor([chunk], device=mixture.model.device),
            past_key_values=job.cache,
            use_cache=True,
            logits_to_keep=0 if request.score_prompt else 1,
        )
        job.cache, job.prefilled = out.past_key_values, job.prefilled + len(chunk)
        self.counts["prefills"] += job.prefilled == len(job.prefill_ids)
        self.counts["prefill_tokens"] += len(chunk)
        router_1N = out.logits[:, -1, mixture.thoughts].float() if mixture.thoughts else torch.zeros(1, 1)
        if request.score_prompt:  # which masks the thought tokens of `out.logits` in place
            self._score_prompt(job, out.logits[0], len(chunk))
        if job.prefilled == len(job.prefill_ids):
            self._start_texts(job, router_1N)

    def _start_texts(self, job: Job, router_1N: Tensor) -> None:
        """Choose the thoughts, emit Prefilled, and put the K rows into a group."""
        request, mixture, sampling = job.request, self.mixture, job.request.sampling
        router = router_1N[0].softmax(-1).tolist() if mixture.thoughts else []
        chosen = self._choose(job, router_1N) if sampling.num_thoughts else []
        self._emit(job, Prefilled(router, chosen, job.prompt_tokens))
        if sampling.max_new_tokens == 0:
            for place in range(len(chosen)):
                self._emit(job, TextDelta(place, "", [], "length", 0, 0.0))
        if not chosen or sampling.max_new_tokens == 0:
            self._end(job, "completed")
            return
        length = job.cache.get_seq_length()
        generators = generators_of(sampling.seed, request.prompt, [k for k, _ in chosen])
        rows = []
        for place, ((k, _), generator) in enumerate(zip(chosen, generators, strict=True)):
            unread = mixture.tokens_of(k)[-1] if mixture.thoughts else request.ids[-1]
            rows.append(Row(job, place, generator, unread, length))
        preallocate(job.cache)
        group, job.cache = Group(rows, job.cache), None
        for other in self.groups:
            if self.share and _may_join(group, other):
                join(other.cache, group.cache)
                other.rows += group.rows
                return
        self.groups.append(group)

    def _choose(self, job: Job, router_1N: Tensor) -> list[tuple[int, float]]:
        """(thought, probability) [K] in the order of the texts.

        The job's cache is changed to K rows. Each holds all tokens of the row but the last.
        """
        request, mixture, K = job.request, self.mixture, job.request.sampling.num_thoughts
        mask = torch.ones(1, len(request.ids), dtype=torch.long, device=mixture.model.device)
        if request.thoughts is None:
            creativity, seed = request.sampling.creativity, request.sampling.seed
            sequences_1KL, p_1K = mixture.choose(
                {"prompt_mask": mask}, router_1N, job.cache, [request.prompt], K, creativity, seed
            )
            indices = [mixture.index_of(sequence) for sequence in sequences_1KL[0].tolist()]
        else:
            indices = list(request.thoughts)
            job.cache.batch_repeat_interleave(K)
            p_1K = self._named_probabilities(job, router_1N, mask)
        if len(request.ids) == 1 and not mixture.thoughts:
            job.cache.crop(-1)
        return list(zip(indices, p_1K[0].tolist(), strict=True))

    def _named_probabilities(self, job: Job, router_1N: Tensor, mask_1P: Tensor) -> Tensor:
        """p(sequence | prompt) [1, K] of the thoughts that the request names: the product over the L tokens of each."""
        mixture, K = self.mixture, len(job.request.thoughts)
        tokens_KL = torch.tensor([mixture.tokens_of(k) for k in job.request.thoughts], device=mixture.model.device)
        digits_KLN = tokens_KL[..., None].eq(torch.tensor(mixture.thoughts, device=mixture.model.device)).int()
        digits_KL, p_1K = digits_KLN.argmax(-1).cpu(), torch.ones(1, K)
        logits_KN = router_1N.cpu().expand(K, -1)
        for level in range(mixture.thought_length):
            if level:
                before, mask_KP = tokens_KL[:, :level], mask_1P.expand(K, -1)
                logits_KN = read_thought(mixture.model, job.cache, mask_KP, before, mixture.thoughts).cpu()
            p_1K = p_1K * logits_KN.softmax(-1).gather(1, digits_KL[:, level : level + 1]).T
        return p_1K

    def _score_prompt(self, job: Job, logits_CV: Tensor, C: int) -> None:
        """Append log p (nats, trunk) of a chunk of C prompt tokens to `job.prompt_tokens`. The first has none."""
        ids, start = job.request.ids, job.prefilled - C
        if start == 0:
            job.prompt_tokens.append(Token(ids[0], 0, None, ()))
        logits_CV = logits_CV.float()
        logits_CV[:, self.mixture.thoughts] = -torch.inf
        logp_CV = logits_CV.log_softmax(-1)
        targets = torch.tensor(ids[start + 1 : start + C + 1], device=logp_CV.device)
        chosen = logp_CV[: len(targets)].gather(1, targets[:, None])[:, 0].tolist()
        tops = _top(logp_CV[: len(targets)], job.request.top_logprobs or 0)
        job.prompt_tokens += [Token(i, 0, lp, top) for i, lp, top in zip(targets.tolist(), chosen, tops, strict=True)]

    # Decoding -------------------------------------------------------------------------------------------------------

    def _decode(self, group: Group) -> None:
        """One token for every row."""
        model, rows, S = self.mixture.model, group.rows, group.cache.get_seq_length()
        if not rows:
            return
        length_R1 = torch.tensor([[row.length] for row in rows], device=model.device)
        inputs = {"input_ids": torch.tensor([[row.next] for row in rows], device=model.device)}
        if any(row.length < S for row in rows):
            inputs["attention_mask"] = (torch.arange(S + 1, device=model.device) >= S - length_R1).long()
        out = model(**inputs, position_ids=length_R1, past_key_values=group.cache, use_cache=True)
        self.counts["steps"] += 1
        self.counts["tokens"] += len(rows)
        logits_RV = out.logits[:, -1].float()
        logits_RV[:, self.mixture.thoughts] = -torch.inf
        logp_RV = logits_RV.log_softmax(-1)
        chosen, tops, start = [], [], 0
        for job, own in groupby(rows, key=lambda row: row.job):
            generators = [row.generator for row in own]
            stop = start + len(generators)
            chosen.append(sample_tokens(job.request.sampling, logits_RV[start:stop], generators))
            tops += _top(logp_RV[start:stop], job.request.top_logprobs or 0)
            start = stop
        chosen_R = torch.cat(chosen)
        logp = logp_RV.gather(1, chosen_R[:, None])[:, 0].tolist()
        going_on = []
        for i, (row, token) in enumerate(zip(rows, chosen_R.tolist(), strict=True)):
            if not self._append(row, token, logp[i], tops[i]):
                going_on.append(i)
        self._keep_rows(group, going_on)

    def _append(self, row: Row, token: int, logprob: float, top: tuple) -> bool:
        """Append a token to a row and emit the text that is certain. True if the row has ended."""
        request, tokenizer = row.job.request, self.mixture.tokenizer
        row.next, row.length, row.logprob = token, row.length + 1, row.logprob + logprob
        row.ids.append(token)
        finish = None
        if token in self.ends:
            finish = "stop"
        elif len(row.ids) == request.sampling.max_new_tokens:
            finish = "length"
        text_ids = row.ids[:-1] if finish == "stop" else row.ids
        if finish != "stop" and request.top_logprobs is not None:
            row.unplaced.append(Token(token, 0, logprob, top))
        before = len(row.text)
        added, row.decoded = detokenize(tokenizer, text_ids, row.decoded, finish is not None)
        row.text += added
        if row.unplaced and (added or finish):
            row.tokens += place_tokens(self.texts, row.unplaced, added, before)
            row.unplaced = []
        longest = max(map(len, request.stops), default=1)
        places = [row.text.find(stop, max(0, before - longest + 1)) for stop in request.stops]
        if cut := [place for place in places if place >= 0]:
            finish, row.text = "stop", row.text[: min(cut)]
            row.tokens = [t for t in row.tokens if t.offset < len(row.text)]
        certain = len(row.text) if finish else len(row.text) - _held_back(row.text, request.stops)
        if finish or certain > row.emitted:
            text, tokens = row.text[row.emitted : certain], [t for t in row.tokens if finish or t.offset < certain]
            row.emitted, row.tokens = certain, row.tokens[len(tokens) :]
            mean = row.logprob / len(row.ids)
            self._emit(row.job, TextDelta(row.place, text, tokens, finish, len(row.ids), mean))
        if finish:
            row.job.unfinished -= 1
            if row.job.unfinished == 0:
                self._end(row.job, "completed")
        return finish is not None

    def _keep_rows(self, group: Group, indices: list[int]) -> None:
        """Keep only these rows. The cache loses the padding that only the others needed."""
        if len(indices) == len(group.rows):
            return
        group.rows = [group.rows[i] for i in indices]
        if not group.rows:
            self.groups.remove(group)
            return
        select(group.cache, indices)
        if spare := group.cache.get_seq_length() - max(row.length for row in group.rows):
            trim_left(group.cache, spare)


def sample_tokens(sampling: SamplingParams, logits_KV: Tensor, generators: list[torch.Generator]) -> Tensor:
    """The next token ids [K], drawn as `MixtureOfThoughts.think` draws them."""
    no_ids = torch.empty(len(logits_KV), 0, dtype=torch.long, device=logits_KV.device)  # none of these reads them
    for processor in drawing(sampling, generators):
        logits_KV = processor(no_ids, logits_KV)
    return logits_KV.argmax(-1)


def _top(logp_RV: Tensor, count: int) -> list[tuple[tuple[int, float], ...]]:
    """The `count` most probable (id, log-probability) of every row, the best first."""
    if not count:
        return [()] * len(logp_RV)
    best = logp_RV.topk(min(count, logp_RV.shape[1]))
    return [tuple(zip(i, lp, strict=True)) for i, lp in zip(best.indices.tolist(), best.values.tolist(), strict=True)]


def _held_back(text: str, stops: tuple[str, ...]) -> int:
    """The number of characters at the end of a text that may be the beginning of a stop."""
    return max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)


def _may_join(a: Group, b: Group) -> bool:
    """True if two groups may share a forward pass: neither is seeded, and at most half of it would be padding."""
    if a.rows[0].job.request.seeded or b.rows[0].job.request.seeded or not can_pad(a.cache):
        return False
    lengths = [row.length for group in (a, b) for row in group.rows]
    return max(lengths) * len(lengths) <= 2 * sum(lengths)
