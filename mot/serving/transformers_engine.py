"""The embedded engine: one thread owns the model, requests join and leave between two of its steps.

    engine = Engine(mixture, max_batch=128, max_cached_tokens=131072, max_queue=128)
    jobs = engine.submit([Ask(prompt, ids, texts=8, max_tokens=40, seed=1)], emit)    # from any thread; emit(job, event)
    engine.cancel(jobs[0])                                                            # its rows leave before the next step

A step is at most PREFILL tokens of one waiting prompt, and one token for every running text. A prompt is computed once, in a
batch of one; its K texts begin from copies of its cache. The thoughts, their order and the generators are those of
`MixtureOfThoughts.think`, so that the texts are, too.

Why not transformers' continuous batching (5.23)? It draws from the global generator, so that what a request says depends on what
runs beside it; it has no seed, no stop and no number of texts of a request's own, no log-probability but the chosen token's
and no router, which would be a request more; K thoughts would be K requests that share whole blocks of a prompt only.

Which rows share a forward pass? Those of requests without a seed, padded left to the longest (`Group`): 128 rows in one pass
cost little more than 8. But a row's logits then depend, in their last bits, on the shapes beside it. A request that brings a
seed is promised the same texts, so its rows are a group of their own, whose shapes depend on nothing but the request: equal to
the bit on any device, in any precision, at the price of a forward pass of its own. docs/RESULTS.md has both measured.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from mot.inference.sampling import GumbelSampler, generators_of, warpers
from mot.inference.settings import SamplingParams
from mot.inference.think import MixtureOfThoughts
from mot.model.score import read_thought
from mot.model.shared_prompt import PreallocatedLayer
from mot.serving.engine import Ask, Begun, Failed, Job, Jobs, Said, Token, spell

PREFILL = 512  # tokens of a prompt computed between two decode steps


@dataclass(eq=False)
class Row:
    """One text. The cache holds `length` tokens of it; `next` is the one to be read."""

    job: Job
    place: int
    generator: torch.Generator
    next: int
    length: int
    ids: list[int] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)  # not yet told, of those who asked for log-probabilities
    text: str = ""
    decoded: tuple[int, int] = (0, 0)  # ids before the first are text for good; up to the second they are in `text`
    told: int = 0  # characters
    logprob: float = 0.0


@dataclass(eq=False)
class Group:
    """Rows of one forward pass, those of a job side by side, and their KV cache, padded left to the longest."""

    rows: list[Row]
    cache: Cache


class Engine(Jobs):
    """`counts` has, beside the jobs': prefills, prefill_tokens, steps (decoding ones), tokens."""

    def __init__(
        self, mixture: MixtureOfThoughts, max_batch: int, max_cached_tokens: int, max_queue: int, share: bool = True
    ):
        super().__init__(mixture, max_batch, max_queue)
        self.max_cached_tokens, self.share = max_cached_tokens, share
        self.groups: list[Group] = []
        self.ends = frozenset(mixture.ends)
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

    def cost(self, prompt: int, texts: int, max_tokens: int) -> int:
        return max(texts, 1) * (prompt + self.mixture.thought_length + max_tokens)

    def close(self) -> None:
        with self.work:
            self.closed = True
            self.work.notify()
        self.thread.join()

    def _run(self) -> None:
        try:
            self._work()
        finally:  # nobody waits for a thread that is no more
            with self.work:
                self.closed, left = True, [*self.waiting, *self.running]
                self.waiting.clear()
            for job in left:
                self._end(job, "failed")
                self._emit(job, Failed("the engine has stopped"))

    @torch.no_grad()
    def _work(self) -> None:
        while True:
            with self.work:
                self.work.wait_for(lambda: self.closed or self.waiting or self.running)
                if self.closed:
                    return
                self._admit()
            self._drop_cancelled()
            begun = next((job for job in self.running if job.computed < len(job.ahead)), None)
            if begun:
                self._guarded(self._prefill, begun, [begun])
            for group in list(self.groups):
                self._guarded(self._decode, group, list(dict.fromkeys(row.job for row in group.rows)))

    def _admit(self) -> None:
        """In the order in which they came. One that could never fit is not submitted: the API refuses it."""
        while self.waiting and self._texts_fit():
            job = self.waiting[0]
            tokens = sum(other.cached_tokens for other in self.running) + job.cached_tokens
            if self.running and tokens > self.max_cached_tokens:
                return
            if (
                not self.mixture.thoughts
            ):  # a row reads a token that the cache lacks: without a thought the prompt's last
                job.ahead = job.ask.ids[:-1] or job.ask.ids
            self.running.append(self.waiting.popleft())

    def _drop_cancelled(self) -> None:
        for job in [job for job in self.running if job.cancelled]:
            self._end(job, "aborted")
        for group in list(self.groups):
            self._keep(group, [i for i, row in enumerate(group.rows) if not row.job.cancelled])

    def _guarded(self, work: Callable, on: object, jobs: list[Job]) -> None:
        """A mistake or a lack of memory ends the jobs that it befalls, not the engine."""
        try:
            work(on)
        except Exception as e:
            if on in self.groups:
                self.groups.remove(on)
            for job in jobs:
                if job.outcome is None:
                    self._end(job, "failed")
                    self._emit(job, Failed(f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"))

    # Prefill --------------------------------------------------------------------------------------------------------

    def _prefill(self, job: Job) -> None:
        """Compute the next PREFILL tokens of a prompt; after the last of them its texts begin."""
        ask, mixture = job.ask, self.mixture
        chunk = job.ahead[job.computed : job.computed + PREFILL]
        out = mixture.model(
            input_ids=torch.tensor([chunk], device=mixture.model.device),
            past_key_values=job.cache,
            use_cache=True,
            logits_to_keep=0 if ask.score_prompt else 1,
        )
        job.cache, job.computed = out.past_key_values, job.computed + len(chunk)
        self.counts["prefills"] += job.computed == len(job.ahead)
        self.counts["prefill_tokens"] += len(chunk)
        logits_1N = out.logits[:, -1, mixture.thoughts].float() if mixture.thoughts else torch.zeros(1, 1)
        if ask.score_prompt:  # which takes the thought tokens out of the logits
            self._score_prompt(job, out.logits[0], len(chunk))
        if job.computed < len(job.ahead):
            return
        router = logits_1N[0].softmax(-1).tolist() if mixture.thoughts else []
        chosen = self._choose(job, logits_1N) if ask.texts else []
        self._emit(job, Begun(router, chosen, job.prompt_tokens))
        if not ask.texts:
            self._end(job, "completed")
            return
        generators = generators_of(job.seed, ask.prompt, [k for k, _ in chosen])
        rows = [
            Row(
                job, place, g, mixture.tokens_of(k)[-1] if mixture.thoughts else ask.ids[-1], job.cache.get_seq_length()
            )
            for place, ((k, _), g) in enumerate(zip(chosen, generators, strict=True))
        ]
        job.cache.layers = [PreallocatedLayer.of(x) if type(x) is DynamicLayer else x for x in job.cache.layers]
        group = Group(rows, job.cache)
        job.cache = None
        if ask.max_tokens == 0:
            for row in rows:
                self._emit(job, Said(row.place, "", [], "length", 0, 0.0))
            self._end(job, "completed")
            return
        for other in self.groups:
            if self.share and _may_join(group, other):
                _join(group, other)
                return
        self.groups.append(group)

    def _choose(self, job: Job, logits_1N: Tensor) -> list[tuple[int, float]]:
        """(thought, probability) [K] in the order of the texts. The cache becomes theirs, the last token of each missing."""
        ask, mixture = job.ask, self.mixture
        mask = torch.ones(1, len(ask.ids), dtype=torch.long, device=mixture.model.device)
        if ask.thoughts is None:
            words_1KL, p_1K = mixture.choose(
                {"prompt_mask": mask}, logits_1N, job.cache, [ask.prompt], ask.texts, ask.creativity, job.seed
            )
            indices = [mixture.index_of(word) for word in words_1KL[0].tolist()]
        else:
            indices = list(ask.thoughts)
            job.cache.batch_repeat_interleave(ask.texts)
            tokens_KL = torch.tensor([mixture.tokens_of(k) for k in indices], device=mixture.model.device)
            digits_KL = tokens_KL[..., None].eq(torch.tensor(mixture.thoughts, device=mixture.model.device)).int()
            digits_KL, p_1K = digits_KL.argmax(-1).cpu(), torch.ones(1, ask.texts)
            logits_KN, mask_KP = logits_1N.cpu().expand(ask.texts, -1), mask.expand(ask.texts, -1)
            for level in range(mixture.thought_length):
                if level:
                    begun = tokens_KL[:, :level]
                    logits_KN = read_thought(mixture.model, job.cache, mask_KP, begun, mixture.thoughts).cpu()
                p_1K = p_1K * logits_KN.softmax(-1).gather(1, digits_KL[:, level : level + 1]).T
        if len(ask.ids) == 1 and not mixture.thoughts:
            job.cache.crop(-1)
        return list(zip(indices, p_1K[0].tolist(), strict=True))

    def _score_prompt(self, job: Job, logits_CV: Tensor, C: int) -> None:
        """Log p of the prompt's tokens under the trunk, those of one chunk at a time. The first has none."""
        ids, start = job.ask.ids, job.computed - C
        if start == 0:
            job.prompt_tokens.append(Token(ids[0], 0, None, ()))
        logits_CV = logits_CV.float()
        logits_CV[:, self.mixture.thoughts] = -torch.inf
        logp_CV = logits_CV.log_softmax(-1)
        targets = torch.tensor(ids[start + 1 : start + C + 1], device=logp_CV.device)
        chosen = logp_CV[: len(targets)].gather(1, targets[:, None])[:, 0].tolist()
        tops = _top(logp_CV[: len(targets)], job.ask.top or 0)
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
        while start < len(rows):
            ask = rows[start].job.ask
            stop = start + next(
                (i for i, r in enumerate(rows[start:]) if r.job is not rows[start].job), len(rows) - start
            )
            chosen.append(_draw(ask, logits_RV[start:stop], [row.generator for row in rows[start:stop]]))
            tops += _top(logp_RV[start:stop], ask.top or 0)
            start = stop
        chosen_R = torch.cat(chosen)
        logp = logp_RV.gather(1, chosen_R[:, None])[:, 0].tolist()
        finished = {
            i
            for i, (row, token) in enumerate(zip(rows, chosen_R.tolist(), strict=True))
            if self._say(row, token, logp[i], tops[i])
        }
        if finished:
            self._keep(group, [i for i in range(len(rows)) if i not in finished])

    def _say(self, row: Row, token: int, logprob: float, top: tuple) -> bool:
        """Give a row its next token, tell what can be told of it, and whether it has ended."""
        ask, tokenizer = row.job.ask, self.mixture.tokenizer
        row.next, row.length, row.logprob = token, row.length + 1, row.logprob + logprob
        row.ids.append(token)
        finish = "stop" if token in self.ends else "length" if len(row.ids) == ask.max_tokens else None
        said = row.ids[:-1] if finish == "stop" else row.ids
        if finish != "stop" and ask.top is not None:
            row.tokens.append(Token(token, len(row.text), logprob, top))
        before = len(row.text)
        more, row.decoded = spell(tokenizer, said, row.decoded, finish is not None)
        row.text += more
        longest = max(map(len, ask.stops), default=1)
        places = [row.text.find(stop, max(0, before - longest + 1)) for stop in ask.stops]
        if cut := [place for place in places if place >= 0]:
            finish, row.text = "stop", row.text[: min(cut)]
            row.tokens = [t for t in row.tokens if t.at < len(row.text)]
        tellable = len(row.text) if finish else len(row.text) - _held_back(row.text, ask.stops)
        if finish or tellable > row.told:
            text, tokens = row.text[row.told : tellable], [t for t in row.tokens if finish or t.at < tellable]
            row.told, row.tokens = tellable, row.tokens[len(tokens) :]
            self._emit(row.job, Said(row.place, text, tokens, finish, len(row.ids), row.logprob / len(row.ids)))
        if finish:
            row.job.left -= 1
            if row.job.left == 0:
                self._end(row.job, "completed")
        return finish is not None

    def _keep(self, group: Group, indices: list[int]) -> None:
        """Only these rows go on; the cache loses what only the others needed."""
        if len(indices) == len(group.rows):
            return
        group.rows = [group.rows[i] for i in indices]
        if not group.rows:
            self.groups.remove(group)
            return
        group.cache.batch_select_indices(torch.tensor(indices, device=self.mixture.model.device))
        if spare := group.cache.get_seq_length() - max(row.length for row in group.rows):
            for layer in group.cache.layers:
                layer.keys, layer.values = layer.keys[:, :, spare:].clone(), layer.values[:, :, spare:].clone()


def _draw(ask: Ask, logits_KV: Tensor, generators: list[torch.Generator]) -> Tensor:
    """The next token ids [K], as `MixtureOfThoughts.think` draws them."""
    if ask.temperature > 0:
        for warper in (
            *warpers(SamplingParams(temperature=ask.temperature, top_p=ask.top_p)),
            GumbelSampler(generators),
        ):
            logits_KV = warper(None, logits_KV)
    return logits_KV.argmax(-1)


def _top(logp_RV: Tensor, count: int) -> list[tuple[tuple[int, float], ...]]:
    if not count:
        return [()] * len(logp_RV)
    best = logp_RV.topk(min(count, logp_RV.shape[1]))
    return [tuple(zip(i, lp, strict=True)) for i, lp in zip(best.indices.tolist(), best.values.tolist(), strict=True)]


def _held_back(text: str, stops: tuple[str, ...]) -> int:
    """Characters at the end of a text that may be the beginning of a stop."""
    return max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)


def _may_join(a: Group, b: Group) -> bool:
    """Two groups may share a forward pass if no row was promised otherwise, and little of it would be padding."""
    if any(row.job.ask.seed is not None for group in (a, b) for row in (group.rows[0],)):
        return False
    if any(type(layer) is not PreallocatedLayer for layer in a.cache.layers):
        return False  # sliding windows and states have no left to pad
    lengths = [row.length for group in (a, b) for row in group.rows]
    return max(lengths) * len(lengths) <= 2 * sum(lengths)


def _join(a: Group, b: Group) -> None:
    """b takes in the rows of a, the shorter of the two padded left."""
    S = max(a.cache.get_seq_length(), b.cache.get_seq_length())
    for ours, theirs in zip(b.cache.layers, a.cache.layers, strict=True):
        for name in ("keys", "values"):
            both = [
                torch.nn.functional.pad(t, (0, 0, S - t.shape[-2], 0))
                for t in (getattr(ours, name), getattr(theirs, name))
            ]
            setattr(ours, name, torch.cat(both))
    b.rows += a.rows
