"""The engines without HTTP: rows that join and leave a cache, incremental detokenisation, and a stand-in for vLLM.

The stand-in speaks the part of vLLM's API that VllmEngine uses and computes greedily with transformers, so that engine
is tested where vLLM is not installed. test_vllm.py has the same comparisons against a real vLLM.
"""

import contextlib
import json
import threading

import pytest
import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from serving_client import around, in_thread
from transformers import DynamicCache

from mot.inference.think import MixtureOfThoughts
from mot.model.shared_prompt import can_pad, join, pad_left, preallocate, select, trim_left
from mot.serving.engine import detokenize
from mot.serving.server import bind
from mot.serving.vllm_engine import VllmEngine

# Rows that join and leave
# -----------------------------------------------------------------------------------------------


def cache_of(rows: list[list[float]]) -> DynamicCache:
    """A preallocated cache of one layer and one head of width one: these keys, and their negatives as values."""
    keys = torch.tensor(rows)[:, None, :, None]
    cache = DynamicCache()
    cache.update(keys, -keys, 0)
    preallocate(cache)
    return cache


def keys_of(cache: DynamicCache) -> list[list[float]]:
    (layer,) = cache.layers
    assert torch.equal(layer.values, -layer.keys)
    return layer.keys[:, 0, :, 0].tolist()


def test_rows_of_a_cache_join_and_leave():
    cache = cache_of([[1, 2, 3], [4, 5, 6]])
    assert can_pad(cache)
    join(cache, cache_of([[7]]))
    assert keys_of(cache) == [[1, 2, 3], [4, 5, 6], [0, 0, 7]]
    join(cache, cache_of([[1, 1, 1, 1]]))
    assert keys_of(cache) == [[0, 1, 2, 3], [0, 4, 5, 6], [0, 0, 0, 7], [1, 1, 1, 1]]
    select(cache, [2, 0])
    assert keys_of(cache) == [[0, 0, 0, 7], [0, 1, 2, 3]]
    trim_left(cache, 1)
    assert keys_of(cache) == [[0, 0, 7], [1, 2, 3]]
    pad_left(cache, 5)
    assert keys_of(cache) == [[0, 0, 0, 0, 7], [0, 0, 1, 2, 3]]
    new = torch.tensor([[[[8.0]]], [[[9.0]]]])
    cache.update(new, -new, 0)
    assert keys_of(cache) == [[0, 0, 0, 0, 7, 8], [0, 0, 1, 2, 3, 9]]
    plain = DynamicCache()
    plain.update(new, -new, 0)
    assert not can_pad(plain)


class Bytes:
    """A tokenizer whose tokens are bytes."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return bytes(ids).decode(errors="replace")


def test_detokenize_emits_whole_characters():
    ids, emitted, pieces = [], (0, 0), []
    for byte in "aä€".encode():
        ids.append(byte)
        piece, emitted = detokenize(Bytes(), ids, emitted, False)
        pieces.append(piece)
    assert pieces == ["a", "", "ä", "", "", "€"]
    assert detokenize(Bytes(), [*ids, 0xE2], emitted, False)[0] == ""
    assert detokenize(Bytes(), [*ids, 0xE2], emitted, True)[0] == "\ufffd"


# A stand-in for vLLM
# ----------------------------------------------------------------------------------------------------


def vllm_app(mixture: MixtureOfThoughts) -> FastAPI:
    app, tokenizer = FastAPI(), mixture.tokenizer

    @torch.no_grad()
    def logits_TV(ids: list[int]) -> torch.Tensor:
        return mixture.model(torch.tensor([ids])).logits[0].float()

    @app.get("/health")
    def health():
        return {}

    @app.get("/v1/models")
    def models():
        return {"data": [{"id": "stand-in", "max_model_len": 512}]}

    @app.post("/tokenize")
    async def tokenize(request: Request):
        return {"tokens": tokenizer((await request.json())["prompt"], add_special_tokens=False)["input_ids"]}

    @app.post("/v1/completions")
    async def completions(request: Request):
        body = await request.json()
        if "allowed_token_ids" in body:
            allowed = body["allowed_token_ids"]
            logp = logits_TV(body["prompt"])[-1, allowed].log_softmax(-1).tolist()
            top = {f"token_id:{id}": lp for id, lp in zip(allowed, logp, strict=True)}
            return {"choices": [{"logprobs": {"top_logprobs": [top]}}]}
        if "prompt_logprobs" in body:
            ids, logp_TV = body["prompt"], logits_TV(body["prompt"]).log_softmax(-1)
            entries = [{id: {"logprob": logp_TV[t, id].item()}} for t, id in enumerate(ids[1:])]
            return {"choices": [{"prompt_logprobs": [None, *entries]}]}
        return StreamingResponse(stream(body), media_type="text/event-stream")

    def stream(body: dict):
        ids = list(body["prompt"])
        for i in range(body["max_tokens"]):
            logits_V = logits_TV(ids)[-1]
            for id, bias in body["logit_bias"].items():
                logits_V[int(id)] += bias
            logp_V = logits_V.log_softmax(-1)
            token = int(logp_V.argmax())
            ids.append(token)
            ended = token in body["stop_token_ids"]
            finish = "stop" if ended else "length" if i + 1 == body["max_tokens"] else None
            logprobs = {"token_logprobs": [logp_V[token].item()], "top_logprobs": [{f"token_id:{token}": 0.0}]}
            text = "" if ended else tokenizer.decode([token], skip_special_tokens=True)
            choice = {"text": text, "logprobs": logprobs, "token_ids": [token], "finish_reason": finish}
            yield f"data: {json.dumps({'choices': [choice | {'stop_reason': token if ended else None}]})}\n\n"
            if finish:
                break
        yield "data: [DONE]\n\n"

    return app


@contextlib.contextmanager
def vllm_stand_in(mixture: MixtureOfThoughts):
    """Its address."""
    with contextlib.closing(bind("127.0.0.1", 0)) as sock:
        server = uvicorn.Server(uvicorn.Config(vllm_app(mixture), log_config=None))
        thread = threading.Thread(target=server.run, args=([sock],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def mixture(text_run) -> MixtureOfThoughts:
    return MixtureOfThoughts.from_pretrained(str(text_run))


@pytest.fixture(scope="module")
def servers(mixture, text_run):
    """(our server before the stand-in, our embedded server) of the same model."""
    with vllm_stand_in(mixture) as url:
        engine = VllmEngine(url, str(text_run), max_batch=16, max_queue=8)
        with around(engine) as ours, in_thread(mixture) as embedded:
            yield ours, embedded


def test_the_vllm_engine_equals_the_embedded_engine(servers):
    ours, embedded = servers
    for body in (
        {"prompt": "the king ", "n": 4, "max_tokens": 12, "temperature": 0, "logprobs": 0},
        {"prompt": "the king ", "n": 2, "max_tokens": 12, "temperature": 0, "creativity": 0},
        {"prompt": ["a sea ", "night"], "n": 2, "max_tokens": 5, "temperature": 0, "seed": 3},
        {"prompt": "the king ", "thoughts": [3, 1], "max_tokens": 5, "temperature": 0},
        {"prompt": "the king ", "max_tokens": 0, "echo": True, "logprobs": 0, "temperature": 0, "seed": 1},
    ):
        a, b = ours.complete(**body), embedded.complete(**body)
        assert a["usage"] == b["usage"]
        for x, y in zip(a["choices"], b["choices"], strict=True):
            assert (x["text"], x["finish_reason"]) == (y["text"], y["finish_reason"])
            assert x["thought"]["index"] == y["thought"]["index"]
            assert x["thought"]["probability"] == pytest.approx(y["thought"]["probability"], abs=1e-5)
            assert (x["logprobs"] or {}).get("tokens") == (y["logprobs"] or {}).get("tokens")
            assert (x["logprobs"] or {}).get("text_offset") == (y["logprobs"] or {}).get("text_offset")
    routes = [server.post("/v1/route", {"prompt": "the king "}).json()["probabilities"] for server in servers]
    assert routes[0] == pytest.approx(routes[1], abs=1e-5)


def test_a_vllm_that_goes_away_is_503(mixture, text_run):
    with contextlib.ExitStack() as stack:
        with vllm_stand_in(mixture) as url:
            engine = VllmEngine(url, str(text_run), max_batch=16, max_queue=8)
            ours = stack.enter_context(around(engine))
            assert ours.texts(prompt="the king ", n=2, max_tokens=4)
        answer = ours.post("/v1/completions", {"prompt": "the king "})
        assert answer.status_code == 503
        assert answer.json()["error"]["type"] == "server_error"
        ours.wait_until_idle()
        assert engine.counts["accepted"] == engine.counts["completed"] + engine.counts["failed"]


def test_another_model_behind_the_address_is_rejected(mixture, tiny_run):
    with vllm_stand_in(mixture) as url, pytest.raises(ValueError, match="serves 'stand-in', which is not --model"):
        VllmEngine(url, str(tiny_run), max_batch=16, max_queue=8)
