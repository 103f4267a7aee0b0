"""POST /v1/completions: OpenAI's completions, in which `n` texts are n different thoughts."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from mot.serving.body import BodyRoute
from mot.serving.limits import (
    check_available,
    check_numbers,
    encode_text_prompts,
    generation_requests,
    invalid,
    number_of_texts,
    room_for_answer,
)
from mot.serving.schemas import ERRORS, EVENT_STREAM, Completion, CompletionBody
from mot.serving.state import State
from mot.serving.stream import AnswerFormat, ResponseStream, TextPart, respond

router = APIRouter(route_class=BodyRoute)


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
    if body.max_tokens is None:
        max_tokens = min(max_tokens, room_for_answer(state, max(len(ids) for _, ids in encoded), K))
    top, echo = body.logprobs, bool(body.echo)
    score_prompt = echo and top is not None
    requests = generation_requests(state, body, encoded, K, max_tokens, "prompt", top, score_prompt)
    check_available(state)
    stream, logprob_format, scores = ResponseStream(request, requests), state.logprobs, {}
    echoed = [""] * len(prompts)
    if echo:
        echoed = [p if isinstance(p, str) else logprob_format.tokenizer.decode(p) for p in prompts]

    def prompt_scores(part: TextPart) -> dict:
        if part.prompt not in scores:
            by_id = not isinstance(prompts[part.prompt], str)
            placed = logprob_format.with_offsets(part.prefilled.prompt, with_special=by_id)
            scores[part.prompt] = logprob_format.completions(placed, top)
        return scores[part.prompt]

    def content(part: TextPart, streamed: bool) -> dict:
        text, logprobs, before = part.text, None, echoed[part.prompt]
        if top is not None:
            logprobs = logprob_format.completions(part.tokens, top, len(before))
        if echo and part.prefilled:
            text = before + text
        if score_prompt and part.prefilled:
            pairs = prompt_scores(part).items()
            logprobs = {name: None if value is None else value + logprobs[name] for name, value in pairs}
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
