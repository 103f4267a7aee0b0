"""The body of a request, from bytes to its schema, without holding up other requests.

    router = APIRouter(route_class=BodyRoute)           # the body is parsed in a thread
    reason, param = explain(validation_error.errors())  # one line that names the wrong field, and the field

guard.py bounds what a parser can meet, and every list in schemas.py has a length and ends at its first wrong item.
"""

import asyncio
import json
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.exceptions import HTTPException

from mot.serving.schemas import FIELDS


class BodyRequest(Request):
    async def json(self) -> Any:
        """Raises HTTPException 400 if the body is not JSON."""
        try:
            return await asyncio.to_thread(parse_json, await self.body())
        except ValueError as e:
            raise HTTPException(400, f"invalid body: is not JSON ({e})") from None


class BodyRoute(APIRoute):
    """A route whose body is a BodyRequest."""

    def get_route_handler(self):
        handler = super().get_route_handler()

        async def with_body(request: Request):
            return await handler(BodyRequest(request.scope, request.receive))

        return with_body


def parse_json(body: bytes) -> Any:
    """Raises ValueError if it is not JSON."""
    try:
        return from_json(body)
    except ValueError:  # half of a surrogate pair, which json allows; the schema then names its field
        return json.loads(body)


def explain(errors: list[dict]) -> tuple[str, str | None]:
    """The one message of a body's errors, and its parameter. A value of several possible types has an error for each.

    The error furthest inside is the one to report: [1, "a"] is a list of ids with a wrong item, not a wrong text.
    """
    error = max(errors, key=lambda error: (len(place_of(error)), max_index(error)))
    place, kind, context = place_of(error), error["type"], error.get("ctx", {})
    reason = {"missing": "is missing"}.get(kind, error["msg"])
    if kind == "unknown_field":
        place, reason = [*place, context["name"]], "unknown parameter"
    if kind == "too_long" and context["max_length"] == 0:
        reason = "is not supported; leave it out"
    if not place:
        return f"invalid body: {reason}", None
    return f"{'.'.join(place)}: {reason}", place[0]


def place_of(error: dict) -> list[str]:
    """The fields and indices that lead to an error. Its `loc` also has names of types and keys of the client's."""
    return [str(part) for part in error["loc"][1:] if isinstance(part, int) or part in FIELDS]


def max_index(error: dict) -> int:
    return max((part for part in error["loc"] if isinstance(part, int)), default=-1)
