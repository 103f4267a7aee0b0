"""The scale-out engine: a vLLM server computes, on one machine or many, with no code of ours inside it.

    engine = VllmEngine("http://gpu:8000", "outputs/run", max_batch=128, max_queue=128)     # used as mot.serving.engine says

Two kinds of requests to its OpenAI API. The first asks for one token, of thought tokens only, with the log-probabilities of all
of them: p(k | prompt). It also fills vLLM's prefix cache. The other K are prompt + thought token each, and find the prompt's
full blocks there. Weights are vLLM's alone; of the model's directory we need the tokenizer, the configuration and which tokens
are thoughts.

What is chosen, and in which order, is as in the embedded engine; so are greedy texts, up to rounding. Draws are vLLM's own: a seed repeats a
text as far as vLLM's batches compute alike.
"""

import asyncio
import json
import os
import threading
from collections.abc import AsyncIterator

import httpx
import torch

from mot.inference.sampling import generator_of, generators_of
from mot.inference.think import MixtureOfThoughts
from mot.serving.engine import Ask, Begun, Failed, Job, Jobs, Said, Token, spell
from mot.thoughts import choose_thoughts, repeats

PROBE = "The quick brown fox jumps over the lazy dog."  # both sides must cut it into the same tokens
PULSE = 2.0  # seconds between two looks at whether vLLM lives
NEVER = -100  # logit bias of the thought tokens inside a text, the least that the API takes


class VllmEngine(Jobs):
    """A job is a task of an event loop in a thread of its own.

    `counts` has, beside the jobs': prefills and prefill_tokens that vLLM was asked for; tokens.
    Raises ValueError where there is no vLLM, or another model in it.
    """

    def __init__(self, url: str, path: str, max_batch: int, max_queue: int):
        super().__init__(MixtureOfThoughts.without_weights(path), max_batch, max_queue)
        if self.mixture.thought_length > 1:
            raise ValueError(
                f"--engine vllm: a thought of {path} is a sequence of {self.mixture.thought_length} tokens, "
                "which is not routed over HTTP; leave --engine vllm out"
            )
        self.url, self.reachable = url.rstrip("/"), True
        self.tasks: dict[Job, asyncio.Task] = {}
        key = os.environ.get("VLLM_API_KEY")
        # Texts may take minutes; what must be quick is that something answers at all.
        self.http = httpx.AsyncClient(
            base_url=self.url,
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(None, connect=5.0),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=256),
            trust_env=False,
        )
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._run, name="vllm", daemon=True)
        self.thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._meet(path), self.loop).result()
        except ValueError:
            self.close()
            raise
        self.pulse = asyncio.run_coroutine_threadsafe(self._watch(), self.loop)

    # What the API asks, from any thread -----------------------------------------------------------------------------

    def wake(self) -> None:
        self.loop.call_soon_threadsafe(self._admit)

    def cancel(self, job: Job) -> None:
        """vLLM stops when the connection closes."""
        if job.outcome is None:
            self.loop.call_soon_threadsafe(self._cancel, job)

    def cost(self, prompt: int, texts: int, max_tokens: int) -> int:
        """Tokens in vLLM's cache at most: the prompt's own are there once."""
        return prompt + max(texts, 1) * (1 + max_tokens)

    def alive(self) -> bool:
        """Does vLLM answer?"""
        return self.thread.is_alive() and self.reachable

    def close(self) -> None:
        self.closed = True
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()

    # The thread -----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        left = asyncio.all_tasks(self.loop)
        for task in left:
            task.cancel()
        self.loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self.loop.run_until_complete(self.http.aclose())
        self.loop.close()

    async def _meet(self, path: str) -> None:
        """Is there a vLLM, and does it serve this model?"""
        where, mixture = f"--vllm_url {self.url}", self.mixture
        try:
            models = (await self._answer("GET", "/v1/models"))["data"]
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError) as e:
            raise ValueError(
                f"{where}: no vLLM answers there ({_short(e)}); start one with `vllm serve {path}`, or leave --engine vllm out"
            ) from None
        self.name = models[0]["id"]
        context = models[0].get("max_model_len") or mixture.model.config.max_position_embeddings
        mixture.model.config.max_position_embeddings = min(context, mixture.model.config.max_position_embeddings)
        ids = mixture.tokenizer(PROBE, add_special_tokens=False)["input_ids"]
        try:
            body = {"model": self.name, "prompt": PROBE, "add_special_tokens": False}
            theirs = (await self._answer("POST", "/tokenize", body))["tokens"]
            if theirs != ids:
                raise ValueError("another tokenizer")
            if mixture.thoughts:
                await self._route(ids or [mixture.tokenizer.eos_token_id])
        except (httpx.HTTPError, ValueError, KeyError) as e:
            raise ValueError(
                f"{where}: serves '{self.name}', which cannot stand for --model {path} ({_short(e)}); start it with "
                f"`vllm serve {path} --max-logprobs {max(20, len(mixture.thoughts))}`"
            ) from None

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(PULSE)
            try:
                self.reachable = (await self.http.get("/health", timeout=10.0)).status_code == 200
            except httpx.HTTPError:
                self.reachable = False

    def _admit(self) -> None:
        """In the order in which they came."""
        with self.work:
            while self.waiting and not self.closed and self._texts_fit():
                job = self.waiting.popleft()
                self.running.append(job)
                self.tasks[job] = self.loop.create_task(self._work(job))

    def _cancel(self, job: Job) -> None:
        job.cancelled = True
        if job in self.tasks:
            self.tasks[job].cancel()
        elif job in self.waiting:
            with self.work:
                self.waiting.remove(job)
            self._end(job, "aborted")

    async def _work(self, job: Job) -> None:
        """A mistake ends the job that it befalls, not the engine."""
        try:
            following = await self._begin(job)
            generators = generators_of(job.seed, job.ask.prompt, following)
            async with asyncio.TaskGroup() as texts:
                for place, (k, g) in enumerate(zip(following, generators, strict=True)):
                    texts.create_task(self._follow(job, place, k, g.initial_seed()))
            self._end(job, "completed")
        except asyncio.CancelledError:
            self._end(job, "aborted")
        except Exception as e:
            first = e.exceptions[0] if isinstance(e, ExceptionGroup) else e
            self._end(job, "failed")
            gone = isinstance(first, httpx.TransportError)
            self._emit(job, Failed(f"vLLM: {_short(first)}", 503 if gone else 500))

    def _end(self, job: Job, outcome: str) -> None:
        self.tasks.pop(job, None)
        super()._end(job, outcome)
        self._admit()

    # One job --------------------------------------------------------------------------------------------------------

    async def _begin(self, job: Job) -> list[int]:
        """Route, choose, and tell so; the thought of every text that is to be generated."""
        ask, mixture = job.ask, self.mixture
        router_N = await self._route(ask.ids) if mixture.thoughts else torch.zeros(1)
        prompt = await self._score(ask) if ask.score_prompt else []
        N, K = len(router_N), ask.texts
        p_N = router_N.softmax(-1)
        chosen = list(ask.thoughts or ())
        if K and ask.thoughts is None:
            g = generator_of(job.seed, ask.prompt, "router")
            few_k = choose_thoughts(router_N[None], min(K, N), ask.creativity, g).thought_k
            chosen = few_k[repeats(p_N[few_k][None], K)[0]].tolist()
        self._emit(job, Begun(p_N.tolist() if mixture.thoughts else [], [(k, p_N[k].item()) for k in chosen], prompt))
        self.counts["prefills"] += 1
        self.counts["prefill_tokens"] += len(ask.ids)
        if ask.max_tokens == 0:
            for place in range(K):
                self._emit(job, Said(place, "", [], "length", 0, 0.0))
            return []
        return chosen

    async def _route(self, ids: list[int]) -> torch.Tensor:
        """log p(k | prompt) [N] up to a constant, nats: vLLM's log-probabilities of the thought tokens."""
        thoughts = self.mixture.thoughts
        body = {"prompt": ids, "max_tokens": 1, "temperature": 0, "allowed_token_ids": thoughts}
        body |= {"logprobs": len(thoughts), "logprob_token_ids": thoughts, "return_tokens_as_token_ids": True}
        answer = await self._answer("POST", "/v1/completions", {"model": self.name, **body})
        told = answer["choices"][0]["logprobs"]["top_logprobs"][0]
        return torch.tensor([told[f"token_id:{id}"] for id in thoughts])

    async def _score(self, ask: Ask) -> list[Token]:
        """The prompt's tokens with their log-probabilities. The first has none."""
        body = {"model": self.name, "prompt": ask.ids, "max_tokens": 1, "prompt_logprobs": ask.top or 0}
        answer = await self._answer("POST", "/v1/completions", body)
        tokens = []
        for id, told in zip(ask.ids, answer["choices"][0]["prompt_logprobs"], strict=True):
            told = {int(i): entry["logprob"] for i, entry in (told or {}).items()}
            best = sorted(told.items(), key=lambda pair: -pair[1])[: ask.top or 0]
            tokens.append(Token(id, 0, told.get(id), tuple(best)))
        return tokens

    async def _follow(self, job: Job, place: int, k: int, seed: int) -> None:
        """One text: what vLLM streams, as what the API tells."""
        ask, mixture = job.ask, self.mixture
        thoughts = mixture.thoughts
        body = {
            "model": self.name,
            "prompt": ask.ids + (mixture.tokens_of(k) if thoughts else []),
            "max_tokens": ask.max_tokens,
            "temperature": ask.temperature,
            "top_p": ask.top_p,
            "stop": list(ask.stops),
            "stop_token_ids": mixture.ends,
            "logit_bias": {str(id): NEVER for id in thoughts},
            "logprobs": ask.top or 0,
            "return_tokens_as_token_ids": True,
            "return_token_ids": True,
            "stream": True,
        }
        if ask.seed is not None:
            body["seed"] = seed
        generated, total, finish = 0, 0.0, None
        said, decoded = [], (0, 0)  # ids, and how far they are text: see `spell`
        spelled, told_to, kept = 0, 0, []  # characters of the ids, of what is told; tokens not yet told
        async for chunk in self._stream(body):
            (choice,) = chunk["choices"]
            told, ids = choice["logprobs"] or {"token_logprobs": [], "top_logprobs": []}, choice["token_ids"] or []
            finish = choice["finish_reason"]
            for id, logprob, best in zip(ids, told["token_logprobs"], told["top_logprobs"], strict=False):
                generated, total = generated + 1, total + logprob
                if id in mixture.ends:
                    continue
                if ask.top is not None:
                    top = [(int(name.removeprefix("token_id:")), lp) for name, lp in (best or {}).items()]
                    kept.append(Token(id, spelled, logprob, tuple(top[: ask.top])))
                said.append(id)
                more, decoded = spell(mixture.tokenizer, said, decoded, False)
                spelled += len(more)
            text, cut = choice["text"], isinstance(choice.get("stop_reason"), str)  # a number where an id has ended it
            if finish and not cut:  # vLLM drops the bytes of a character that never became whole
                text += spell(mixture.tokenizer, said, decoded, True)[0]
            told_to += len(text)
            self.counts["tokens"] += len(ids)
            if finish == "abort":
                raise ValueError("the text was aborted")
            job.left -= finish is not None
            if text or finish:
                # vLLM holds a text back that may become a stop or a character; the tokens wait for it.
                tokens = [t for t in kept if t.at < told_to or (finish and not cut)]
                kept = kept[len(tokens) :]
                self._emit(job, Said(place, text, tokens, finish, generated, total / max(generated, 1)))
        if finish is None:
            raise httpx.RemoteProtocolError("the stream broke off")

    async def _stream(self, body: dict) -> AsyncIterator[dict]:
        async with self.http.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code != 200:
                raise ValueError(f"{answer.status_code} {(await answer.aread()).decode(errors='replace')}")
            async for line in answer.aiter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    chunk = json.loads(line.removeprefix("data: "))
                    if "error" in chunk:
                        raise ValueError(str(chunk["error"]))
                    yield chunk

    async def _answer(self, method: str, path: str, body: dict | None = None) -> dict:
        answer = await self.http.request(method, path, json=body)
        if answer.status_code != 200:
            raise ValueError(f"{answer.status_code} {answer.text}")
        return answer.json()


def _short(e: Exception) -> str:
    return " ".join(f"{type(e).__name__ if not str(e) else e}".split())[:200]
