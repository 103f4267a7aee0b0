"""POST /v1/chat/completions: OpenAI's chat completions, in which `n` answers are n different thoughts."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from mot.data.encode import encode_prompts
from mot.runtime.flags import one_line
from mot.serving.body import BodyRoute
from mot.serving.limits import (
    Encoded,
    check_available,
    check_numbers,
    generation_requests,
    invalid,
    number_of_texts,
    room_for_answer,
)
from mot.serving.schemas import ERRORS, EVENT_STREAM, ChatBody, ChatCompletion, Message
from mot.serving.state import State
from mot.serving.stream import AnswerFormat, ResponseStream, TextPart, respond

router = APIRouter(route_class=BodyRoute)


@router.post("/v1/chat/completions", response_model=ChatCompletion, responses=ERRORS | EVENT_STREAM)
async def chat_completions(body: ChatBody, request: Request) -> Any:
    """`n` answers to a conversation, each a thought of its own, if the model's tokenizer has a chat template."""
    state: State = request.app.state.mot
    check_available(state)
    K, tokenizer = number_of_texts(body), state.engine.mixture.tokenizer
    max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    tokens = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    check_numbers(state, body, K, max_tokens or 1, prompts=1, tokens=tokens)
    if body.top_logprobs and not body.logprobs:
        raise invalid("top_logprobs", "needs logprobs")
    if not tokenizer.chat_template:
        raise invalid("messages", "the model's tokenizer has no chat template; use /v1/completions")
    text, ids = await asyncio.to_thread(encode_conversation, state, body.messages)
    room = room_for_answer(state, len(ids), K)
    max_tokens = room if max_tokens is None else min(max_tokens, room)  # an answer ends where the context is full
    top = (body.top_logprobs or 0) if body.logprobs else None
    requests = generation_requests(state, body, [(text, ids)], K, max_tokens, "messages", top)
    check_available(state)
    stream, logprob_format = ResponseStream(request, requests), state.logprobs

    def content(part: TextPart, streamed: bool) -> dict:
        message = {"role": "assistant", "content": part.text}
        if streamed and not part.prefilled:
            message = {"content": part.text}
        logprobs = None if top is None else logprob_format.chat(part.tokens)
        return {"delta" if streamed else "message": message, "logprobs": logprobs}

    form = AnswerFormat("chatcmpl", "chat.completion", "chat.completion.chunk", content)
    return await respond(request, body, stream, form, K)


def encode_conversation(state: State, messages: list[Message]) -> Encoded:
    """Token ids of a conversation in the model's chat template. Raises ApiError."""
    tokenizer = state.engine.mixture.tokenizer
    turns = [{"role": message.role, "content": text_of(message)} for message in messages]
    try:
        (ids,) = encode_prompts(tokenizer, [turns])
    except (ValueError, TypeError) as e:  # a model's own template raises these for roles and for their order
        raise invalid("messages", f"do not fit the model's chat template ({one_line(e, 200)})") from None
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
        raise invalid("messages", "contain a character that is not in the model's vocabulary")
    return str(turns), ids


def text_of(message: Message) -> str:
    if isinstance(message.content, str):
        return message.content
    if message.content is None:  # an assistant's turn without a text
        return ""
    return "".join(part.text for part in message.content)
