"""The scale-out engine: a vLLM server computes, on one machine or many, with no code of ours inside it.

    engine = VllmEngine("http://gpu:8000", "outputs/run", max_batch=128, max_queue=128)    # used as in engine.py

Two kinds of requests go to its OpenAI API. The first asks for one token, of thought tokens only, with the
log-probabilities of all of them: p(k | prompt). It also fills vLLM's prefix cache. The other K are prompt + thought
token each, and find the full blocks of the prompt there. Only vLLM has the weights. From the model's directory we need
the tokenizer, the configuration and the thought tokens.

The chosen thoughts and their order are those of the embedded engine, and so are greedy texts, up to rounding. vLLM does
the sampling, so a seed repeats a text as far as vLLM's batches compute alike.
"""

import asyncio
import json
import os
import threading
from collections.abc import AsyncIterator

import httpx
import torch

from mot.inference.sampling import generator_of, generators_of
from mot.inference.settings import SamplingParams
from mot.inference.think import MixtureOfThoughts
from mot.runtime.flags import one_line
from mot.serving.engine import Engine, GenerationRequest, Job, Prefilled, RequestFailed, TextDelta, Token, detokenize
from mot.serving.logprobs import place_tokens
from mot.serving.token_text import TokenText
from mot.thoughts import choose_thoughts, repeats

PROBE = "The quick brown fox jumps over the lazy dog."  # both sides must split it into the same tokens
HEALTH_SECONDS = 2.0  # between two health checks of vLLM
NEVER = -100  # logit bias of the thought tokens inside a text, the least that the API takes


class VllmEngine(Engine):
    """A job is a task of an event loop in a thread of its own.

    `counts` also has prefills and prefill_tokens that vLLM was asked for, and tokens.
    Raises ValueError if there is no vLLM at `url`, or another model in it.
    """

    def __init__(self, url: str, path: str, max_batch: int, max_queue: int):
        super().__init__(MixtureOfThoughts.without_weights(path), max_batch, max_queue)
        if self.mixture.thought_length > 1:
            raise ValueError(
                f"--engine vllm: a thought of {path} is a sequence of {self.mixture.thought_length} tokens, "
                "which is not routed over HTTP; leave --engine vllm out"
            )
        self.url, self.reachable, self.texts = url.rstrip("/"), True, TokenText(self.mixture.tokenizer)
        self.tasks: dict[Job, asyncio.Task] = {}
        key = os.environ.get("VLLM_API_KEY")
        self.http = httpx.AsyncClient(
            base_url=self.url,
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(None, connect=5.0),  # a text may take minutes, a connection may not
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=256),
            trust_env=False,
        )
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._run, name="vllm", daemon=True)
        self.thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._handshake(path), self.loop).result()
        except ValueError:
            self.close()
            raise
        self.health = asyncio.run_coroutine_threadsafe(self._poll_health(), self.loop)

    # Called by the API, from any thread -----------------------------------------------------------------------------

    def wake(self) -> None:
        self.loop.call_soon_threadsafe(self._admit)

    def cancel(self, job: Job) -> None:
        """Close the job's connections, at which vLLM stops computing."""
        if job.outcome is None:
            self.loop.call_soon_threadsafe(self._cancel, job)

    def cost(self, prompt_tokens: int, sampling: SamplingParams) -> int:
        """The most tokens in vLLM's cache, which holds the prompt once."""
        return prompt_tokens + max(sampling.num_thoughts, 1) * (1 + sampling.max_new_tokens)

    def alive(self) -> bool:
        """True if vLLM answers."""
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

    async def _handshake(self, path: str) -> None:
        """Check that a vLLM answers and serves this model. Raises ValueError."""
        where, mixture = f"--vllm_url {self.url}", self.mixture
        try:
            models = (await self._request("GET", "/v1/models"))["data"]
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError) as e:
            raise ValueError(
                f"{where}: no vLLM answers there ({_message(e)}); start one with `vllm serve {path}`, "
                "or leave --engine vllm out"
            ) from None
        self.name = models[0]["id"]
        context = models[0].get("max_model_len") or mixture.model.config.max_position_embeddings
        mixture.model.config.max_position_embeddings = min(context, mixture.model.config.max_position_embeddings)
        ids = mixture.tokenizer(PROBE, add_special_tokens=False)["input_ids"]
        try:
            body = {"model": self.name, "prompt": PROBE, "add_special_tokens": False}
            theirs = (await self._request("POST", "/tokenize", body))["tokens"]
            if theirs != ids:
                raise ValueError("another tokenizer")
            if mixture.thoughts:
                await self._route(ids or [mixture.tokenizer.eos_token_id])
        except (httpx.HTTPError, ValueError, KeyError) as e:
            raise ValueError(
                f"{where}: serves '{self.name}', which is not --model {path} ({_message(e)}); start it with "
                f"`vllm serve {path} --max-logprobs {max(20, len(mixture.thoughts))}`"
            ) from None

    async def _poll_health(self) -> None:
        while True:
            await asyncio.sleep(HEALTH_SECONDS)
            try:
                self.reachable = (await self.http.get("/health", timeout=10.0)).status_code == 200
            except httpx.HTTPError:
                self.reachable = False

    def _admit(self) -> None:
        """Start waiting jobs in order of arrival."""
        with self.work:
            while self.waiting and not self.closed and self._next_fits():
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
        """Compute one job. An exception fails this job only."""
        try:
            chosen = await self._prefill(job)
            generators = generators_of(job.request.sampling.seed, job.request.prompt, chosen)
            async with asyncio.TaskGroup() as texts:
                for place, (k, g) in enumerate(zip(chosen, generators, strict=True)):
                    texts.create_task(self._generate(job, place, k, g.initial_seed()))
            self._end(job, "completed")
        except asyncio.CancelledError:
            # The API cancels as soon as it has every text, perhaps before vLLM has closed the streams.
            complete = job.request.sampling.num_thoughts > 0 and job.unfinished == 0
            self._end(job, "completed" if complete else "aborted")
        except Exception as e:
            first = e.exceptions[0] if isinstance(e, ExceptionGroup) else e
            self._end(job, "failed")
            status = 503 if isinstance(first, httpx.TransportError) else 500
            self._emit(job, RequestFailed(f"vLLM: {_message(first)}", status))

    def _end(self, job: Job, outcome: str) -> None:
        self.tasks.pop(job, None)
        super()._end(job, outcome)
        self._admit()

    # One job --------------------------------------------------------------------------------------------------------

    async def _prefill(self, job: Job) -> list[int]:
        """Route, choose, and emit Prefilled. Returns the thought of every text that is to be generated."""
        request, mixture, sampling = job.request, self.mixture, job.request.sampling
        router_N = await self._route(request.ids) if mixture.thoughts else torch.zeros(1)
        prompt = await self._score_prompt(request) if request.score_prompt else []
        N, K = len(router_N), sampling.num_thoughts
        p_N = router_N.softmax(-1)
        chosen = list(request.thoughts or ())
        if K and request.thoughts is None:
            generator = generator_of(sampling.seed, request.prompt, "router")
            few_k = choose_thoughts(router_N[None], min(K, N), sampling.creativity, generator).thought_k
            chosen = few_k[repeats(p_N[few_k][None], K)[0]].tolist()
        router = p_N.tolist() if mixture.thoughts else []
        self._emit(job, Prefilled(router, [(k, p_N[k].item()) for k in chosen], prompt))
        self.counts["prefills"] += 1
        self.counts["prefill_tokens"] += len(request.ids)
        if sampling.max_new_tokens == 0:
            for place in range(K):
                self._emit(job, TextDelta(place, "", [], "length", 0, 0.0))
            return []
        return chosen

    async def _route(self, ids: list[int]) -> torch.Tensor:
        """log p(k | prompt) [N] up to a constant, nats: vLLM's log-probabilities of the thought tokens."""
        thoughts = self.mixture.thoughts
        body = {"prompt": ids, "max_tokens": 1, "temperature": 0, "allowed_token_ids": thoughts}
        body |= {"logprobs": len(thoughts), "logprob_token_ids": thoughts, "return_tokens_as_token_ids": True}
        answer = await self._request("POST", "/v1/completions", {"model": self.name, **body})
        logprobs = answer["choices"][0]["logprobs"]["top_logprobs"][0]
        return torch.tensor([logprobs[f"token_id:{id}"] for id in thoughts])

    async def _score_prompt(self, request: GenerationRequest) -> list[Token]:
        """The prompt's tokens with their log-probabilities. The first has none."""
        count = request.top_logprobs or 0
        body = {"model": self.name, "prompt": request.ids, "max_tokens": 1, "prompt_logprobs": count}
        answer = await self._request("POST", "/v1/completions", body)
        tokens = []
        for id, entries in zip(request.ids, answer["choices"][0]["prompt_logprobs"], strict=True):
            logprobs = {int(i): entry["logprob"] for i, entry in (entries or {}).items()}
            best = sorted(logprobs.items(), key=lambda pair: -pair[1])[:count]
            tokens.append(Token(id, 0, logprobs.get(id), tuple(best)))
        return tokens

    def _body(self, request: GenerationRequest, k: int, seed: int) -> dict:
        """The body of the request that continues the prompt with thought `k`."""
        sampling, thoughts = request.sampling, self.mixture.thoughts
        body = {
            "model": self.name,
            "prompt": request.ids + (self.mixture.tokens_of(k) if thoughts else []),
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "stop": list(request.stops),
            "stop_token_ids": self.mixture.ends,
            "logit_bias": {str(id): NEVER for id in thoughts},
            "logprobs": request.top_logprobs or 0,
            "return_tokens_as_token_ids": True,
            "return_token_ids": True,
            "stream": True,
        }
        return body | {"seed": seed} if request.seeded else body

    async def _generate(self, job: Job, place: int, k: int, seed: int) -> None:
        """Stream one text from vLLM and emit it as TextDeltas."""
        request, mixture = job.request, self.mixture
        generated, logprob_sum, finish = 0, 0.0, None
        ids, decoded = [], (0, 0)  # of `detokenize`
        characters, emitted = 0, 0  # characters of `ids`, characters emitted
        pending, unplaced = [], []  # tokens not yet emitted; the last of them, whose character is not whole yet
        async for chunk in self._stream(self._body(request, k, seed)):
            (choice,) = chunk["choices"]
            logprobs = choice["logprobs"] or {"token_logprobs": [], "top_logprobs": []}
            new_ids, finish = choice["token_ids"] or [], choice["finish_reason"]
            for id, logprob, best in zip(new_ids, logprobs["token_logprobs"], logprobs["top_logprobs"], strict=False):
                generated, logprob_sum = generated + 1, logprob_sum + logprob
                if id in mixture.ends:
                    continue
                if request.top_logprobs is not None:
                    top = [(int(name.removeprefix("token_id:")), lp) for name, lp in (best or {}).items()]
                    unplaced.append(Token(id, 0, logprob, tuple(top[: request.top_logprobs])))
                ids.append(id)
                added, decoded = detokenize(mixture.tokenizer, ids, decoded, False)
                if added:
                    pending += place_tokens(self.texts, unplaced, added, characters)
                    characters, unplaced = characters + len(added), []
            text, cut = choice["text"], isinstance(choice.get("stop_reason"), str)  # a number if a token id ended it
            if finish:
                added = detokenize(mixture.tokenizer, ids, decoded, True)[0]
                pending += place_tokens(self.texts, unplaced, added, characters)
                if not cut:  # vLLM drops the bytes of a character that never became whole
                    text += added
            emitted += len(text)
            self.counts["tokens"] += len(new_ids)
            if finish == "abort":
                raise ValueError("vLLM aborted the text")
            job.unfinished -= finish is not None
            if text or finish:
                # vLLM holds back text that may become a stop or a character; its tokens wait for the text.
                tokens = [t for t in pending if t.offset < emitted or (finish and not cut)]
                pending = pending[len(tokens) :]
                self._emit(job, TextDelta(place, text, tokens, finish, generated, logprob_sum / max(generated, 1)))
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

    async def _request(self, method: str, path: str, body: dict | None = None) -> dict:
        answer = await self.http.request(method, path, json=body)
        if answer.status_code != 200:
            raise ValueError(f"{answer.status_code} {answer.text}")
        return answer.json()


def _message(e: Exception) -> str:
    """One line: some exceptions of httpx have no message but their name."""
    return one_line(str(e) or type(e).__name__, 200)
