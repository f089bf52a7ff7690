"""The OpenAPI document: what FastAPI finds out by itself, and what it cannot know.

Bodies are read and answers are made by hand, for the sake of streams and of speed, so the routes
say here what they take and give, by the names of the schemas in :mod:`pool.http.schemas` and
:mod:`pool.http.bodies`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter

from pool import errors
from pool.errors import PoolError
from pool.http import bodies, schemas
from pool.http.auth import WEBHOOKS, is_open
from pool.http.envelope import CALL_ID
from pool.http.headers import IDEMPOTENCY_KEY, LONGEST_WAIT, PREFER, PREFERENCE_APPLIED, RETRY_AFTER
from pool.http.problems import MEDIA_TYPE, problem_document, title_of

Document = dict[str, Any]

JSON: Final = "application/json"
DESCRIPTION: Final = (
    "Ready tasks of a CVAT server, and data into them.\n\n"
    "All times are RFC 3339 in UTC, all durations are seconds. Every error is a problem document "
    "(RFC 9457) whose `type` ends with a stable code. Calls that make something take an "
    f"`{IDEMPOTENCY_KEY}`: to send the same call again with the same key is safe, and gives the "
    "same answer."
)
_SCHEMAS: Final[tuple[Any, ...]] = (
    schemas.Lease,
    schemas.Request,
    schemas.RequestPage,
    schemas.Status,
    schemas.TemplateStatus,
    schemas.DrainedTemplate,
    schemas.Problem,
)
_BODIES: Final[tuple[Any, ...]] = (
    bodies.LeaseWish,
    bodies.RequestWish,
    bodies.RequestFields,
    bodies.Prewarm,
)
#: What any call may be answered with.
EVERYWHERE: Final[tuple[type[PoolError], ...]] = (
    errors.Forbidden,
    errors.StoreError,
    errors.Stopping,
)
#: What any call with a body may be answered with.
WITH_BODY: Final[tuple[type[PoolError], ...]] = (
    errors.InputError,
    errors.TooLarge,
    errors.TooSlow,
    errors.WrongMediaType,
)
#: What a call that asks CVAT for something may be answered with.
FROM_CVAT: Final[tuple[type[PoolError], ...]] = (
    errors.CvatUnreachable,
    errors.CvatBusy,
    errors.CvatRefusedCredentials,
    errors.CvatForbidden,
    errors.CvatNotFound,
    errors.CvatRejected,
)


def ref(name: str) -> Document:
    """A schema by its name."""
    return {"$ref": f"#/components/schemas/{name}"}


# --- What the routes say --------------------------------------------------------------------------


def answer(
    description: str,
    schema: str | None = None,
    *,
    example: object = None,
    headers: Mapping[str, str] | None = None,
) -> Document:
    """An answer that is no error. ``headers`` are descriptions by name."""
    told: Document = {"description": description}
    if schema is not None:
        content: Document = {"schema": ref(schema)}
        if example is not None:
            # FastAPI leaves out what is null, which an example needs: as text it stays whole.
            content["example"] = json.dumps(example)
        told["content"] = {JSON: content}
    if headers:
        told["headers"] = {name: _header(text) for name, text in headers.items()}
    return told


def problems(*kinds: type[PoolError]) -> dict[int | str, Document]:
    """The errors that a route answers with, by status, beside those of every route."""
    by_status: dict[int, list[type[PoolError]]] = {}
    for kind in (*kinds, *EVERYWHERE):
        known = by_status.setdefault(kind.status, [])
        if kind not in known:
            known.append(kind)
    return {status: _problem(status, found) for status, found in sorted(by_status.items())}


def takes(schema: str, *, example: object) -> Document:
    """What FastAPI calls ``openapi_extra``, of a route with a body of JSON."""
    return {"requestBody": body({JSON: {"schema": ref(schema), "example": example}})}


def body(content: Document) -> Document:
    """A body that has to be sent."""
    return {"required": True, "content": content}


def header(name: str, description: str, schema: Document) -> Document:
    """A header that may be sent."""
    return {"name": name, "in": "header", "description": description, "schema": schema}


KEY_HEADER: Final = header(
    IDEMPOTENCY_KEY,
    "The same key gives the same answer, for ever; with other content, 409.",
    {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[\\x21-\\x7e]+$"},
)
WAIT_HEADER: Final = header(
    PREFER,
    f"`wait=10` has the answer wait until there are jobs, 10 seconds at most; {LONGEST_WAIT} are "
    "the most.",
    {"type": "string", "examples": ["wait=10"]},
)
APPLIED: Final = {PREFERENCE_APPLIED: "For how long the answer waited at most"}


# --- The document ---------------------------------------------------------------------------------


def describe(app: FastAPI) -> None:
    """Have the app's OpenAPI document be complete."""

    def document() -> Document:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _document(app: FastAPI) -> Document:
    document = get_openapi(
        title=app.title,
        version=app.version,
        description=DESCRIPTION,
        routes=app.routes,
        separate_input_output_schemas=False,
    )
    components = document.setdefault("components", {})
    components["schemas"] = {
        **{
            name: schema
            for name, schema in components.get("schemas", {}).items()
            if name not in ("HTTPValidationError", "ValidationError")
        },
        **_component_schemas(),
    }
    components["securitySchemes"] = {
        "token": {
            "type": "http",
            "scheme": "bearer",
            "description": "One of the tokens in POOL_API_TOKEN. Not needed where none is set: "
            "then callers on the same machine are served, and no others.",
        }
    }
    document["security"] = [{"token": []}, {}]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            _complete(path, operation)
    return document


def _component_schemas() -> Document:
    adapters = [
        *((kind, "serialization", TypeAdapter(kind)) for kind in _SCHEMAS),
        *((kind, "validation", TypeAdapter(kind)) for kind in _BODIES),
    ]
    _, definitions = TypeAdapter.json_schemas(
        adapters,  # type: ignore[arg-type]
        ref_template="#/components/schemas/{model}",
    )
    return dict(definitions["$defs"])


def _complete(path: str, operation: Document) -> None:
    """What is the same for all operations."""
    responses = operation["responses"]
    invalid = responses.get("422", {})
    if "HTTPValidationError" in str(invalid):
        responses["422"] = _problem(422, [errors.InputError])
    if is_open(path):
        operation["security"] = []
    else:
        responses["401"] = _problem(401, [errors.Unauthorized])
    if path != WEBHOOKS:
        responses.setdefault("403", _problem(403, [errors.Forbidden]))
    responses.setdefault("503", _problem(503, [errors.StoreError, errors.Stopping]))
    for status in ("400", "408", "431", "500"):
        # Of what is no HTTP, or none that anybody would read; and of mistakes in here.
        responses.setdefault(status, _problem(int(status), []))
    for response in responses.values():
        content = response.get("content", {}).get(JSON, {})
        if isinstance(content.get("example"), str):
            content["example"] = json.loads(content["example"])
        response.setdefault("headers", {})[CALL_ID] = _header("The id of the call, as in the log")
    operation["responses"] = dict(sorted(responses.items()))


def _problem(status: int, kinds: Iterable[type[PoolError]]) -> Document:
    examples: dict[str, Document] = {
        kind.code: {
            "summary": title_of(kind()),
            "value": problem_document(kind.status, code=kind.code, title=title_of(kind())),
        }
        for kind in kinds
    }
    if not examples:
        phrase = HTTPStatus(status).phrase
        examples = {"other": {"summary": phrase, "value": problem_document(status)}}
    told: Document = {
        "description": "; ".join(each["summary"] for each in examples.values()),
        "content": {MEDIA_TYPE: {"schema": ref("Problem"), "examples": examples}},
    }
    if status in (408, 429, 503):
        told["headers"] = {RETRY_AFTER: _header("Seconds after which to try again")}
    return told


def _header(description: str) -> Document:
    return {"description": description, "schema": {"type": "string"}}
