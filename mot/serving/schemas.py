"""The bodies of requests and answers: OpenAI's, with our `creativity` and `thoughts`, and `thought` in every choice.

A range that never changes is declared here. The limits that are flags of the server are checked in limits.py.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_STOPS, MAX_STOP_CHARACTERS = 4, 256

# Requests -------------------------------------------------------------------------------------------------------------


class Body(BaseModel):
    """Unknown fields are rejected by name. Types are strict: "5" is not 5."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class StreamOptions(Body):
    include_usage: bool = False


Zero = Annotated[float | None, Field(ge=0, le=0)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class GenerationBody(Body):
    """The fields that completions and chat completions share."""

    model: str | None = Field(None, description="the served model's name; may be left out")
    n: int | None = Field(None, ge=1, description="K: the number of thoughts to follow, per prompt [1]")
    temperature: float | None = Field(None, ge=0, le=2, description="inside each thought; 0 is greedy [1]")
    top_p: float | None = Field(None, gt=0, le=1, description="nucleus sampling inside each thought [1]")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="same seed, same texts, whatever else runs")
    stop: str | list[str] | None = Field(None, description=f"at most {MAX_STOPS} texts that end an answer")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    creativity: float | None = Field(
        None,
        ge=0,
        description="which thoughts, if K < N: 0 the most probable, 1 by the router, large uniform [1]",
    )
    thoughts: list[TokenId] | None = Field(None, min_length=1, description="follow these thoughts, in this order")
    user: str | None = Field(None, description="ignored")
    presence_penalty: Zero = Field(None, description="0 only")
    frequency_penalty: Zero = Field(None, description="0 only")


class CompletionBody(GenerationBody):
    prompt: str | list[str] | list[TokenId] | list[list[TokenId]] = ""
    max_tokens: int | None = Field(None, ge=0, description="[16]")
    best_of: int | None = Field(
        None, ge=1, description="the number of thoughts to follow; the n of best mean log-probability are returned"
    )
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: bool | None = None


class TextPart(Body):
    type: Literal["text"]
    text: str


class Message(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None


class ChatBody(GenerationBody):
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1, description="deprecated by OpenAI in favour of max_completion_tokens")
    max_completion_tokens: int | None = Field(None, ge=1, description="[as many as the limits allow]")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)


class RouteBody(Body):
    model: str | None = None
    prompt: str | list[TokenId]


# Answers --------------------------------------------------------------------------------------------------------------


class Thought(BaseModel):
    index: int
    probability: float


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Logprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class BaseChoice(BaseModel):
    """The fields that the choices of completions and of chat completions share."""

    index: int
    finish_reason: Literal["stop", "length"] | None
    thought: Thought | None


class Choice(BaseChoice):
    text: str
    logprobs: Logprobs | None


class Completion(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | None


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    content: list[TokenLogprob]
    refusal: None = None


class Answer(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseChoice):
    message: Answer
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Route(BaseModel):
    object: Literal["route"]
    model: str
    probabilities: list[float] = Field(
        description="p(k | prompt), sums to 1; for thought sequences, of the first token"
    )


class Model(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    thoughts: int = Field(description="N, the number of thought tokens; 0 for a plain language model")
    different_thoughts: int = Field(description="N ** L if a thought is a sequence of L tokens")
    max_thoughts: int
    max_tokens: int


class Models(BaseModel):
    object: Literal["list"]
    data: list[Model]


class Status(BaseModel):
    status: str


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    error: ErrorDetail


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": Error, "description": description}
    for status, description in {
        400: "a value is wrong or exceeds a limit",
        401: "the key is missing or wrong",
        404: "no such model",
        408: "the body came too slowly",
        413: "the body is too large",
        415: "the body is not application/json",
        421: "without a key only loopback names are served",
        429: "the queue is full: retry after Retry-After seconds",
        431: "the headers are too large",
        500: "the engine failed",
        503: "the server is shutting down or its engine has stopped",
    }.items()
}
GUARD_ERRORS = {status: ERRORS[status] for status in (401, 421, 431)}
EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
EVENT_STREAM = {200: {"content": {"text/event-stream": {"schema": EVENT}}}}
