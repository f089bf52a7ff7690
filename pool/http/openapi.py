"""The OpenAPI document, where FastAPI cannot derive it.

Routes read bodies under bounds of bytes and time, and errors are problem documents; so routes
declare both by these functions. The models are in :mod:`pool.http.schemas`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, TypeAdapter

from pool import errors
from pool.errors import PoolError
from pool.http import schemas
from pool.http.access import ALL, ROLES
from pool.http.middleware import CALL_ID
from pool.http.problems import MEDIA_TYPE, problem
from pool.http.reading import IDEMPOTENCY_KEY, LONGEST_WAIT, PREFER, PREFERENCE_APPLIED, RETRY_AFTER
from pool.status import Status

Document = dict[str, Any]

DESCRIPTION: Final = (
    "Leases warm tasks of a CVAT server, and imports data into them.\n\n"
    "All times are RFC 3339 in UTC, all durations are seconds. Every error is a problem document "
    "(RFC 9457) whose `type` ends with a stable code. Calls that create something take an "
    f"`{IDEMPOTENCY_KEY}`: the same call with the same key may be repeated, and is answered the "
    "same."
)
_MODELS: Final[tuple[type, ...]] = (
    schemas.LeaseBody,
    schemas.RequestBody,
    schemas.RequestFields,
    schemas.PrewarmBody,
    schemas.Lease,
    schemas.Request,
    schemas.RequestPage,
    Status,
    schemas.DrainedTemplate,
    schemas.Problem,
)
#: Errors of any call with a body.
WITH_BODY: Final[tuple[type[PoolError], ...]] = (
    errors.InputError,
    errors.TooLarge,
    errors.TooSlow,
    errors.WrongMediaType,
)
#: Errors of a call for which CVAT is called.
FROM_CVAT: Final[tuple[type[PoolError], ...]] = (
    errors.CvatUnreachable,
    errors.CvatBusy,
    errors.CvatRefusedCredentials,
    errors.CvatForbidden,
    errors.CvatNotFound,
    errors.CvatRejected,
)
_UNAVAILABLE: Final = (errors.StoreError, errors.Stopping)


def ref(model: type[BaseModel]) -> Document:
    """Return a reference to a model."""
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def takes(model: type[BaseModel], *, example: object) -> Document:
    """Return FastAPI's ``openapi_extra`` for a route with a body of JSON."""
    content = {"application/json": {"schema": ref(model), "example": example}}
    return {"requestBody": {"required": True, "content": content}}


def answer(description: str, headers: Mapping[str, str] | None = None) -> Document:
    """Return the description of an answer, with those of its headers."""
    described = {name: _header(text) for name, text in (headers or {}).items()}
    return {"description": description, "headers": described}


def problems(*kinds: type[PoolError]) -> dict[int | str, Document]:
    """Return the errors of a route by their status."""
    by_status: dict[int, list[type[PoolError]]] = {}
    for kind in (*kinds, *(_UNAVAILABLE if any(kind.status == 503 for kind in kinds) else ())):
        known = by_status.setdefault(kind.status, [])
        if kind not in known:
            known.append(kind)
    return {status: _problem(status, *found) for status, found in by_status.items()}


def _problem(status: int, *kinds: type[PoolError]) -> Document:
    titles = {kind.code: kind().title for kind in kinds} or {"": HTTPStatus(status).phrase}
    examples = {
        code or "other": {
            "summary": title,
            "value": json.loads(bytes(problem(status, code=code, title=title).body)),
        }
        for code, title in titles.items()
    }
    return {
        "description": "; ".join(titles.values()),
        "content": {MEDIA_TYPE: {"schema": ref(schemas.Problem), "examples": examples}},
        "headers": {RETRY_AFTER: _header("Seconds after which to try again")}
        if status in (408, 429, 503)
        else {},
    }


def _header(description: str) -> Document:
    return {"description": description, "schema": {"type": "string"}}


def _parameter(name: str, description: str, **schema: Any) -> Document:
    schema = {"type": "string", **schema}
    return {
        "in": "header",
        "name": name,
        "required": False,
        "description": description,
        "schema": schema,
    }


#: Headers of calls, for ``parameters`` in ``openapi_extra``: routes read them themselves.
WAIT: Final = _parameter(
    PREFER,
    "`wait=10` waits up to 10 seconds for the jobs before the answer; the longest wait is "
    f"{LONGEST_WAIT} seconds.",
    examples=["wait=10"],
)
KEY: Final = _parameter(
    IDEMPOTENCY_KEY,
    "The same key gives the same answer for as long as its row is kept: `store.keep_finished` "
    "after the end, by default 30 days; 409 with other content.",
    minLength=1,
    maxLength=255,
    pattern="^[\\x21-\\x7e]+$",
)
APPLIED: Final = {PREFERENCE_APPLIED: "The longest wait that was allowed"}
#: Errors of any route: malformed, too long or too slow HTTP, and faults of the server.
ANYWHERE: Final[dict[int | str, Document]] = {
    **{status: _problem(status) for status in (400, 408, 431, 500)},
    503: _problem(503, *_UNAVAILABLE),
}
#: Errors of routes that need a token or, where none is set, a caller on this machine.
PROTECTED: Final[dict[int | str, Document]] = {
    **ANYWHERE,
    **problems(errors.Unauthorized, errors.Forbidden, errors.NotAllowed),
}
#: Errors of routes that need no token.
OPEN: Final[dict[int | str, Document]] = problems(errors.Forbidden)
#: ``openapi_extra`` of routes that need no token.
NO_TOKEN: Final[Document] = {"security": []}


def describe(app: FastAPI) -> None:
    """Complete the app's OpenAPI document, which is made once."""

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
    # FastAPI knows only the models of its own parameters, and drops null from examples.
    _, own = TypeAdapter.json_schemas(
        [(model, "validation", TypeAdapter(model)) for model in _MODELS],
        ref_template="#/components/schemas/{model}",
    )
    components = document["components"]
    components["schemas"] |= own["$defs"]
    components["securitySchemes"] = {
        "token": {
            "type": "http",
            "scheme": "bearer",
            "description": "One of the tokens in POOL_API_TOKEN, which may do everything, or of "
            "the configuration's [tokens], which have a role: `read` sees everything, `submit` "
            "gives data to the pool and sees what is its own, `operate` may do everything; one "
            "that is bound to templates does so for these alone. Of what a token does not see, a "
            "call answers as if it were not there. Not needed where there are no tokens: then "
            "callers on the same machine are served, and no others.",
        }
    }
    document["security"] = [{"token": []}, {}]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if (roles := ROLES.get((method.upper(), path), ALL)) != ALL:
                needs = f"Needs a token with the role {' or '.join(sorted(roles))}."
                operation["description"] = f"{operation.get('description', '')}\n\n{needs}".strip()
            for response in operation["responses"].values():
                response.setdefault("headers", {})[CALL_ID] = _header(
                    "The id of the call, as in the log"
                )
            operation["responses"] = dict(sorted(operation["responses"].items()))
    return document
