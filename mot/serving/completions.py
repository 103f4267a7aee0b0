"""POST /v1/completions: OpenAI's completions, in which `n` texts are n different thoughts."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from mot.serving.limits import (
    check_available,
    check_numbers,
    encode_text_prompts,
    generation_requests,
    invalid,
    number_of_texts,
)
from mot.serving.logprobs import LogprobFormat
from mot.serving.schemas import ERRORS, EVENT_STREAM, Completion, CompletionBody
from mot.serving.state import State
from mot.serving.stream import AnswerFormat, ResponseStream, TextPart, respond

router = APIRouter()


@router.post("/v1/completions", response_model=Completion, responses=ERRORS | EVENT_STREAM)
async def completions(body: CompletionBody, request: Request) -> Any:
    """`n` continuations of a prompt, each a thought of its own, from one computation of the prompt."""
    state: State = request.app.state.mot
    check_available(state)
    n = number_of_texts(body)
    K, prompts = body.best_of or n, prompts_of(body)
    max_tokens = default_max_tokens(state, len(prompts) * K) if body.max_tokens is None else body.max_tokens
    check_numbers(state, body, max(K, n), max_tokens, len(prompts))
    check_best_of(body, n, K)
    encoded = await asyncio.to_thread(encode_text_prompts, state, prompts)
    top, echo = body.logprobs, bool(body.echo)
    score_prompt = echo and top is not None
    requests = generation_requests(state, body, encoded, K, max_tokens, "prompt", top, score_prompt)
    check_available(state)
    stream, logprob_format = ResponseStream(request, requests), LogprobFormat(state.engine.mixture.tokenizer)
    echoed = [""] * len(prompts)
    if echo:
        echoed = [p if isinstance(p, str) else logprob_format.tokenizer.decode(p) for p in prompts]

    def content(part: TextPart, streamed: bool) -> dict:
        text, logprobs, before = part.text, None, echoed[part.prompt]
        if top is not None:
            logprobs = logprob_format.completions(part.tokens, top, len(before))
        if echo and part.prefilled:
            text = before + text
        if score_prompt and part.prefilled:
            prompt = logprob_format.completions(logprob_format.with_offsets(part.prefilled.prompt), top)
            logprobs = {name: None if value is None else value + logprobs[name] for name, value in prompt.items()}
        return {"text": text, "logprobs": logprobs}

    return await respond(request, body, stream, AnswerFormat("cmpl", "text_completion", "text_completion", content), n)


def prompts_of(body: CompletionBody) -> list[str] | list[list[int]]:
    """A prompt is a text, texts, token ids, or lists of token ids."""
    single = isinstance(body.prompt, str) or not body.prompt or isinstance(body.prompt[0], int)
    return [body.prompt] if single else body.prompt


def default_max_tokens(state: State, texts: int) -> int:
    """OpenAI's 16, or what the limits of the server leave for so many texts."""
    return max(1, min(16, state.settings.max_tokens, state.settings.max_request_tokens // texts))


def check_best_of(body: CompletionBody, n: int, K: int) -> None:
    """Raise ApiError if K texts cannot be reduced to the best n."""
    if n > K:
        raise invalid("best_of", f"{K} is below n, {n}")
    if n < K and body.stream:
        raise invalid("best_of", "cannot be streamed, because the best texts are known last")
    if n < K and body.thoughts is not None:
        raise invalid("best_of", "chooses among thoughts, and `thoughts` names them")
