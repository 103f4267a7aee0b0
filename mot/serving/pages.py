"""The two pages of the server: the playground at /, and the API's fields at /docs. Neither loads anything.

    app.include_router(pages.router)

A page's own style and script run by their hashes in its content-security policy, and nothing else does.
"""

import base64
import hashlib
import re
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment

from mot.serving.schemas import GUARD_ERRORS

HERE = Path(__file__).parent
PLAYGROUND = (HERE / "playground.html").read_text(encoding="utf-8")
DOCS = (HERE / "docs.html.j2").read_text(encoding="utf-8")

router = APIRouter()


def page(content: str) -> HTMLResponse:
    """A page that may run what is in it, and ask this server."""

    def hashes(element: str) -> str:
        found = re.findall(rf"<{element}>(.*?)</{element}>", content, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in found]
        return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"

    policy = (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"content-security-policy": policy, "referrer-policy": "no-referrer", "cache-control": "no-cache"}
    return HTMLResponse(content, headers=headers)


@router.get("/", response_class=HTMLResponse, responses=GUARD_ERRORS)
async def playground():
    """K thoughts side by side in a browser."""
    return page(PLAYGROUND)


@router.get("/docs", response_class=HTMLResponse, include_in_schema=False)
@router.get("/redoc", response_class=HTMLResponse, include_in_schema=False)
async def docs(request: Request):
    return page(request.app.state.docs)


@router.get("/openapi.json", include_in_schema=False)
async def openapi(request: Request):
    return Response(request.app.state.openapi, media_type="application/json")


def write_docs(app: FastAPI) -> str:
    """The page of /docs, from the app's OpenAPI schema."""
    schema = app.openapi()
    template = Environment(autoescape=True).from_string(DOCS)
    about = {"title": app.title, "version": app.version, "paths": schema["paths"]}
    return template.render(**about, schemas=schema["components"]["schemas"], kind=kind, name_of=name_of)


def kind(field: dict) -> str:
    """The type of a field with its range, e.g. "integer >= 1 or null"."""
    if "anyOf" in field:
        return " or ".join(kind(option) for option in field["anyOf"])
    if "$ref" in field:
        return name_of(field)
    if "const" in field or "enum" in field:
        return " or ".join(repr(value) for value in field.get("enum", [field.get("const")]))
    name = field.get("type", "anything")
    if name == "array":
        name = f"list of {kind(field['items'])}"
    if field.get("maxLength", field.get("maxItems", field.get("maxProperties"))) == 0:
        name = f"empty {name.partition(' ')[0]}"
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    return " ".join([name, *(f"{sign} {field[bound]:g}" for bound, sign in bounds.items() if bound in field)])


def name_of(part: dict) -> str:
    """The name of the schema that a part of the OpenAPI schema refers to."""
    return re.search(r"#/components/schemas/(\w+)", str(part))[1]
