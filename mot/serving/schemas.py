"""The bodies of requests and answers: OpenAI's, with our `creativity` and `thoughts`, and `thought` in every choice.

A range that never changes is declared here. The limits that are flags of the server are checked in limits.py.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from mot.serving.guard import shown

MAX_STOPS, MAX_STOP_CHARACTERS = 4, 256
MAX_IDS = 2**20  # of one prompt; its real limit is the model's context
MAX_ITEMS = 2**11  # messages of a conversation, parts of a message, and every other list

# Requests -------------------------------------------------------------------------------------------------------------


class Body(BaseModel):
    """Unknown fields are rejected by name. Types are strict: "5" is not 5."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def check_names(cls, data: Any) -> Any:
        """Raise for the first unknown name only: pydantic makes an error of each, and takes a second for 100,000."""
        if isinstance(data, dict):
            unknown = next((name for name in data if name not in cls.model_fields), None)
            if unknown is not None:
                raise PydanticCustomError("unknown_field", "unknown parameter", {"name": shown(unknown)})
        return data


def whole_characters(text: str) -> str:
    """JSON can write half a surrogate pair, as "\\ud83d", which is no text in any encoding."""
    try:
        text.encode()
    except UnicodeEncodeError as e:
        where = f"has half a character, a lone surrogate, at position {e.start}; send whole characters"
        raise PydanticCustomError("half_character", where) from None
    return text


Text = Annotated[str, AfterValidator(whole_characters)]
Zero = Annotated[float | None, Field(ge=0, le=0)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True, max_length=MAX_IDS)]
Texts = Annotated[list[Text], Field(fail_fast=True, max_length=2**15)]
Nothing = Annotated[list[Any], Field(max_length=0)]
Ignored = Annotated[dict[str, Any], Field(max_length=64)]


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class GenerationBody(Body):
    """The fields that completions and chat completions share. What changes nothing is accepted, as OpenAI does."""

    model: Text | None = Field(None, description="the served model's name; may be left out")
    n: int | None = Field(None, ge=1, description="K: the number of thoughts to follow, per prompt [1]")
    temperature: float | None = Field(None, ge=0, le=2, description="inside each thought; below 1e-5 greedy [1]")
    top_p: float | None = Field(None, gt=0, le=1, description="nucleus sampling inside each thought [1]")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="same seed, same texts, whatever else runs")
    stop: Text | Texts | None = Field(None, description=f"at most {MAX_STOPS} texts that end an answer")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    creativity: float | None = Field(
        None,
        ge=0,
        description="which thoughts, if K < N: 0 the most probable, 1 by the router, large uniform [1]",
    )
    thoughts: Annotated[TokenIds, Field(min_length=1)] | None = Field(
        None, description="follow these thoughts, in this order"
    )
    user: Text | None = Field(None, description="ignored")
    presence_penalty: Zero = Field(None, description="0 only")
    frequency_penalty: Zero = Field(None, description="0 only")
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = Field(None, description="{} only")


class CompletionBody(GenerationBody):
    prompt: Text | Texts | TokenIds | Annotated[list[TokenIds], Field(fail_fast=True, max_length=2**15)] = ""
    max_tokens: int | None = Field(None, ge=0, description="[16, or what the context leaves]")
    best_of: int | None = Field(
        None, ge=1, description="the number of thoughts to follow; the n of best mean log-probability are returned"
    )
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: bool | None = None
    suffix: Literal[""] | None = Field(None, description="empty only")


class TextPart(Body):
    type: Literal["text"]
    text: Text
    cache_control: Ignored | None = Field(None, description="ignored")


class Message(Body):
    """A turn. An answer of ours is one as it stands, also with the fields that clients add to it."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(fail_fast=True, max_length=MAX_ITEMS)] | None = Field(
        None, description="null only from the assistant"
    )
    name: Text | None = None
    refusal: None = None
    annotations: Annotated[list[Any], Field(max_length=MAX_ITEMS)] | None = Field(None, description="ignored")
    audio: None = None
    function_call: None = None
    tool_calls: Nothing | None = None
    cache_control: Ignored | None = Field(None, description="ignored")

    @model_validator(mode="after")
    def check_content(self) -> Self:
        if self.content is None and self.role != "assistant":
            raise PydanticCustomError("missing_content", "content is missing")
        return self


class TextFormat(Body):
    type: Literal["text"]


class ChatBody(GenerationBody):
    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=MAX_ITEMS)]
    max_tokens: int | None = Field(None, ge=1, description="deprecated by OpenAI in favour of max_completion_tokens")
    max_completion_tokens: int | None = Field(None, ge=1, description="[as many as the limits allow]")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: TextFormat | None = Field(None, description="text only")
    store: Literal[False] | None = None
    tools: Nothing | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = Field(None, description="ignored, because there are no tools")
    functions: Nothing | None = None
    function_call: Literal["none", "auto"] | None = None
    metadata: Ignored | None = Field(None, description="ignored")
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True, max_length=MAX_ITEMS)] | None = None
    audio: None = None
    prediction: None = None
    web_search_options: None = None
    service_tier: Literal["auto", "default"] | None = None
    reasoning_effort: Literal["none"] | None = None
    verbosity: Literal["medium"] | None = None
    prompt_cache_key: Text | None = Field(None, description="ignored")
    safety_identifier: Text | None = Field(None, description="ignored")


class RouteBody(Body):
    model: Text | None = None
    prompt: Text | TokenIds


BODIES = (CompletionBody, ChatBody, RouteBody, StreamOptions, Message, TextPart, TextFormat)
FIELDS = frozenset(name for body in BODIES for name in body.model_fields)


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
