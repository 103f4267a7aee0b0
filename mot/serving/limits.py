"""From a request's body to what the engine computes. Every limit is checked before anything is allocated for it.

    check_available(state); check_numbers(state, body, K, max_tokens, prompts=1)
    encoded = encode_text_prompts(state, ["ROMEO:"])
    requests = generation_requests(state, body, encoded, K, max_tokens, "prompt", top_logprobs=None)

All functions raise ApiError with the name of the wrong parameter. What a field may be by itself is in schemas.py.
"""

from secrets import randbits

from mot.data.encode import encode_prompts
from mot.inference.settings import SMALLEST_TEMPERATURE, SamplingParams
from mot.serving.engine import Engine, GenerationRequest
from mot.serving.guard import ApiError, shown
from mot.serving.schemas import MAX_STOP_CHARACTERS, MAX_STOPS, GenerationBody
from mot.serving.state import State

Encoded = tuple[str, list[int]]  # (what `think` seeds its generators by, token ids)


def invalid(param: str, message: str, code: str | None = None) -> ApiError:
    """A 400 that names the parameter."""
    return ApiError(400, f"{param}: {message}", param, code)


def check_available(state: State) -> None:
    if state.draining:
        raise ApiError(503, "the server is shutting down; retry on another one")
    if not state.engine.alive():
        raise ApiError(503, "the engine has stopped; the server's log has the reason")


def check_model(state: State, name: str | None) -> None:
    if name not in (None, state.name):
        there = f"there is '{state.name}'"
        raise ApiError(404, f"The model '{shown(name)}' does not exist; {there}", "model", "model_not_found")


def number_of_texts(body: GenerationBody) -> int:
    """`n`, or the number of `thoughts` if only these are given."""
    if body.thoughts is not None and body.n not in (None, len(body.thoughts)):
        raise invalid("n", f"{body.n}, but {len(body.thoughts)} thoughts are named; leave one of the two out")
    return body.n or len(body.thoughts or [0])


def stops_of(body: GenerationBody) -> tuple[str, ...]:
    return (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())


def temperature_of(body: GenerationBody) -> float:
    """OpenAI's 1, and 0, greedy, below 1e-5: logits divided by such a number may overflow."""
    if body.temperature is None:
        return 1.0
    return body.temperature if body.temperature >= SMALLEST_TEMPERATURE else 0.0


def check_numbers(
    state: State, body: GenerationBody, K: int, max_tokens: int, prompts: int, tokens: str = "max_tokens"
) -> None:
    """Check everything that is known before a prompt is tokenised: K texts of `max_tokens` from each of `prompts`.

    `tokens` is the field that gave `max_tokens`.
    """
    settings, mixture, thoughts, stops = state.settings, state.engine.mixture, body.thoughts, stops_of(body)
    check_model(state, body.model)
    if settings.max_thoughts < K:
        raise invalid("n", f"{K}: at most {settings.max_thoughts} thoughts per prompt")
    if max_tokens > settings.max_tokens:
        raise invalid(tokens, f"{max_tokens}: at most {settings.max_tokens} per text")
    if prompts > settings.max_queue:
        raise invalid("prompt", f"{prompts} prompts: at most {settings.max_queue} per request")
    if prompts * K * max_tokens > settings.max_request_tokens:
        most = settings.max_request_tokens
        raise invalid(tokens, f"{prompts} x {K} texts of {max_tokens} tokens: at most {most} per request")
    if len(stops) > MAX_STOPS:
        raise invalid("stop", f"{len(stops)} stops: at most {MAX_STOPS}")
    if any(len(stop) > MAX_STOP_CHARACTERS for stop in stops):
        raise invalid("stop", f"at most {MAX_STOP_CHARACTERS} characters each")
    if "" in stops:
        raise invalid("stop", "an empty stop would end every answer at once")
    if thoughts is not None and not mixture.thoughts:
        raise invalid("thoughts", "this model has no thoughts")
    W = mixture.different_thoughts
    if thoughts and max(thoughts) >= W:
        raise invalid("thoughts", f"must be from 0 to {W - 1}")
    repeated = K > W if thoughts is None else len(set(thoughts)) < len(thoughts)
    if repeated and temperature_of(body) == 0:
        reason = f"{K} texts of {W} different thoughts repeat, and greedy repeats are copies"
        raise invalid("temperature", f"{body.temperature:g}: {reason}; ask for fewer texts or give temperature > 0")
    if body.stream_options is not None and body.stream_options.include_usage and not body.stream:
        raise invalid("stream_options", "include_usage needs stream")


def encode_text_prompts(state: State, prompts: list[str] | list[list[int]]) -> list[Encoded]:
    """Token ids of prompts that are texts, or the given ids if they are ids of ordinary tokens."""
    tokenizer, thoughts = state.engine.mixture.tokenizer, set(state.engine.mixture.thoughts)
    if isinstance(prompts[0], str):
        try:
            return list(zip(prompts, encode_prompts(tokenizer, prompts, "prompt"), strict=True))
        except ValueError as e:
            raise ApiError(400, str(e), "prompt") from None
    size, context = len(tokenizer), context_length(state.engine)
    for ids in prompts:
        if len(ids) > context:
            message = f"This model's maximum context length is {context} tokens; prompt has {len(ids)}"
            raise ApiError(400, message, "prompt", "context_length_exceeded")
        if wrong := next((i for i in ids if i >= size), None):
            raise invalid("prompt", f"token {wrong} is not in the vocabulary of {size}")
        if wrong := next((i for i in ids if i in thoughts), None):
            raise invalid("prompt", f"token {wrong} is a thought token; ask for it with `thoughts`")
    prompts = [ids or [tokenizer.eos_token_id] for ids in prompts]
    return [(str(ids), ids) for ids in prompts]


def context_length(engine: Engine) -> int:
    """The most tokens that a row may have."""
    return getattr(engine.mixture.model.config, "max_position_embeddings", None) or 2**31


def check_length(state: State, ids: list[int], max_tokens: int, param: str) -> None:
    """Check the prompt `ids` against its own limit, and prompt, thought and text together against the context."""
    mixture, most = state.engine.mixture, state.settings.max_prompt_tokens
    if most is not None and len(ids) > most:
        raise invalid(param, f"has {len(ids)} tokens, at most {most} are allowed", "context_length_exceeded")
    context = context_length(state.engine)
    needed = len(ids) + (mixture.thought_length if mixture.thoughts else 0) + max_tokens
    if needed > context:
        message = f"This model's maximum context length is {context} tokens; {param} and max_tokens need {needed}"
        raise ApiError(400, message, param, "context_length_exceeded")


def room_for_answer(state: State, prompt_tokens: int, K: int) -> int:
    """The longest answer that the limits of the server and of the model allow, at least one token."""
    settings, before = state.settings, prompt_tokens + state.engine.mixture.thought_length
    room = min(
        settings.max_tokens,
        settings.max_request_tokens // K,
        context_length(state.engine) - before,
        settings.max_cached_tokens // K - before,
    )
    return max(room, 1)


def generation_requests(
    state: State,
    body: GenerationBody,
    encoded: list[Encoded],
    K: int,
    max_tokens: int,
    param: str,
    top_logprobs: int | None,
    score_prompt: bool = False,
) -> list[GenerationRequest]:
    """What the engine computes for a body, one request per prompt. `param` is the field that holds the prompts."""
    requests = []
    for text, ids in encoded:
        check_length(state, ids, max_tokens, param)
        sampling = SamplingParams(
            num_thoughts=K,
            max_new_tokens=max_tokens,
            temperature=temperature_of(body),
            top_p=1.0 if body.top_p is None else body.top_p,
            creativity=1.0 if body.creativity is None else body.creativity,
            seed=randbits(63) if body.seed is None else body.seed,  # per prompt: two equal prompts are not copies
        )
        cost, room = state.engine.cost(len(ids), sampling), state.settings.max_cached_tokens
        if cost > room:
            texts = f"{K} texts of {len(ids)} + {max_tokens} tokens"
            raise invalid(param, f"{texts} need a cache of {cost} tokens, the server has {room}")
        request = GenerationRequest(
            text,
            ids,
            sampling,
            seeded=body.seed is not None,
            stops=stops_of(body),
            thoughts=None if body.thoughts is None else tuple(body.thoughts),
            top_logprobs=top_logprobs,
            score_prompt=score_prompt,
        )
        requests.append(request)
    return requests
