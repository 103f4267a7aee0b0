"""The app: its routes, error handlers and middleware.

    app = create_app(engine, settings, keys)      # settings: a ServeSettings; keys: digests, see guard.py

The two routes of OpenAI's are in completions.py and chat.py; the others are here. All errors have OpenAI's form.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import generate_latest
from starlette.exceptions import HTTPException

import mot
from mot.inference.settings import SamplingParams
from mot.serving import chat, completions, pages
from mot.serving.access_log import AccessLogMiddleware
from mot.serving.body import BodyRoute, explain
from mot.serving.engine import Engine, GenerationRequest
from mot.serving.guard import ApiError, Guard
from mot.serving.limits import check_available, check_length, check_model, encode_text_prompts, invalid
from mot.serving.logprobs import LogprobFormat
from mot.serving.metrics import Metrics
from mot.serving.schemas import ERRORS, GUARD_ERRORS, Model, Models, Route, RouteBody, Status
from mot.serving.settings import ServeSettings
from mot.serving.state import State
from mot.serving.stream import ResponseStream, until_disconnect

router = APIRouter(route_class=BodyRoute)
PROBE_ERRORS = {status: ERRORS[status] for status in (503, 421, 431)}  # no key is needed


def create_app(engine: Engine, settings: ServeSettings, keys: list[bytes]) -> FastAPI:
    """The whole app. `app.state.mot` is its State."""
    app = FastAPI(
        title="Mixture of Thoughts", version=mot.__version__, redirect_slashes=False, docs_url=None, redoc_url=None
    )
    name, logprobs = Path(settings.model).resolve().name, LogprobFormat(engine.mixture.tokenizer)
    app.state.mot = state = State(engine, settings, Metrics(engine), name, logprobs)
    for routes in (completions.router, chat.router, router, pages.router):
        app.include_router(routes)
    app.add_exception_handler(RequestValidationError, handle_invalid_body)
    app.add_exception_handler(HTTPException, handle_http_error)
    app.add_exception_handler(ApiError, handle_api_error)
    # The middleware that is added last is the outermost.
    app.state.openapi = json.dumps(app.openapi()).encode()
    app.state.docs = pages.write_docs(app)  # before the first client, whom the schema would hold up for 0.1 s
    app.add_middleware(
        Guard,
        keys=keys,
        host=settings.host,
        body_paths={path for path, operations in app.openapi()["paths"].items() if "post" in operations},
        max_body_bytes=settings.max_body_bytes,
        full=lambda: engine.full() or state.active > state.most_active,
    )
    app.add_middleware(AccessLogMiddleware, state=state)
    return app


# Errors ---------------------------------------------------------------------------------------------------------------


async def handle_api_error(request: Request, e: ApiError) -> Response:
    return Response(json.dumps(e.body()), e.status, e.headers(), "application/json")


async def handle_invalid_body(request: Request, e: RequestValidationError) -> Response:
    message, param = explain(e.errors())
    return await handle_api_error(request, ApiError(400, message, param))


async def handle_http_error(request: Request, e: HTTPException) -> Response:
    response = await handle_api_error(request, ApiError(e.status_code, str(e.detail)))
    response.headers.update(e.headers or {})
    if "GET" in response.headers.get("allow", ""):  # the guard makes GET of HEAD
        response.headers["allow"] = "GET, HEAD"
    return response


# The router and the models --------------------------------------------------------------------------------------------


@router.post("/v1/route", response_model=Route, responses=ERRORS)
async def route(body: RouteBody, request: Request) -> Any:
    """p(k | prompt) alone."""
    state: State = request.app.state.mot
    check_available(state)
    check_model(state, body.model)
    if not state.engine.mixture.thoughts:
        raise invalid("prompt", "this model has no thoughts to route to")
    ((text, ids),) = await asyncio.to_thread(encode_text_prompts, state, [body.prompt])
    check_length(state, ids, 0, "prompt")
    stream = ResponseStream(request, [GenerationRequest(text, ids, SamplingParams(num_thoughts=0, max_new_tokens=0))])

    async def probabilities() -> Route:
        ((_, prefilled),) = [event async for event in stream.events()]
        return Route(object="route", model=state.name, probabilities=prefilled.router)

    return await until_disconnect(request, probabilities())


def describe_model(state: State) -> Model:
    mixture, settings = state.engine.mixture, state.settings
    return Model(
        id=state.name,
        object="model",
        created=state.created,
        owned_by="mixture-of-thoughts",
        thoughts=len(mixture.thoughts),
        different_thoughts=mixture.different_thoughts,
        max_thoughts=settings.max_thoughts,
        max_tokens=settings.max_tokens,
    )


@router.get("/v1/models", response_model=Models, responses=GUARD_ERRORS)
async def models(request: Request):
    return Models(object="list", data=[describe_model(request.app.state.mot)])


@router.get("/v1/models/{model}", response_model=Model, responses=GUARD_ERRORS | {404: ERRORS[404]})
async def model(model: str, request: Request):
    check_model(request.app.state.mot, model)
    return describe_model(request.app.state.mot)


# Operations -----------------------------------------------------------------------------------------------------------


@router.get("/health", response_model=Status, responses=PROBE_ERRORS)
async def health(request: Request):
    """Does the process work at all?"""
    state: State = request.app.state.mot
    if not state.draining:
        check_available(state)
    return Status(status="ok")


@router.get("/ready", response_model=Status, responses=PROBE_ERRORS)
async def ready(request: Request):
    """May new requests be sent here?"""
    check_available(request.app.state.mot)
    return Status(status="ready")


PLAIN_TEXT = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


@router.get("/metrics", responses=GUARD_ERRORS | PLAIN_TEXT, response_class=Response)
async def metrics(request: Request):
    """Prometheus' text format."""
    content = generate_latest(request.app.state.mot.metrics.registry)
    return Response(content, media_type="text/plain; version=0.0.4; charset=utf-8")
