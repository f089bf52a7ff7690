"""Errors as problem documents (RFC 9457, ``application/problem+json``)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from pool.errors import InputError, PoolEmpty, PoolError, Unauthorized
from pool.http.schemas import BodyInvalid, Problem

MEDIA_TYPE: Final = "application/problem+json"
#: The prefix that makes the ``type`` of a problem from the ``code`` of its error.
TYPE_PREFIX: Final = "urn:cvat-task-pool:error:"
#: Seconds after which a refused call may be repeated, unless the error says it.
RETRY_AFTER: Final = 1
#: Findings of a validation in one problem at most.
MOST_FINDINGS: Final = 20
#: Methods that a route may have.
METHODS: Final = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
#: nginx's status for a closed connection; only the log has it.
_CLIENT_CLOSED_REQUEST: Final = 499


def problem(
    status: int,
    *,
    code: str = "",
    title: str = "",
    headers: Mapping[str, str] | None = None,
    **members: Any,
) -> Response:
    """Return an answer with a problem document. Without a ``code``, its type is about:blank. Empty
    members are left out."""
    document = Problem(
        type=TYPE_PREFIX + code if code else "about:blank",
        title=title or HTTPStatus(status).phrase,
        status=status,
        **{name: value for name, value in members.items() if value},
    )
    return Response(
        document.model_dump_json(exclude_unset=True),
        status,
        headers=headers,
        media_type=MEDIA_TYPE,
    )


def problem_of(
    error: PoolError, *, headers: Mapping[str, str] | None = None, **members: Any
) -> Response:
    """Return the problem document of an error."""
    if isinstance(error, BodyInvalid):
        members["errors"] = _findings(error.findings.errors(include_url=False, include_input=False))
    return problem(
        error.status,
        code=error.code,
        title=error.title,
        detail=error.detail,
        headers={**_headers_of(error), **(headers or {})},
        **members,
    )


def _headers_of(error: PoolError) -> dict[str, str]:
    if isinstance(error, Unauthorized):
        return {"WWW-Authenticate": "Bearer"}
    after = error.retry_after
    if after is None and (error.status in (408, 429, 503) or isinstance(error, PoolEmpty)):
        after = RETRY_AFTER
    return {} if after is None else {"Retry-After": str(max(0, math.ceil(after)))}


def _findings(errors: Any) -> list[dict[str, str]]:
    # Without the input: it may be large, or contain a secret.
    return [
        {"where": ".".join(map(str, each["loc"])), "what": each["msg"]}
        for each in errors[:MOST_FINDINGS]
    ]


def install(app: FastAPI) -> None:
    """Answer every error of an app with a problem document."""

    @app.exception_handler(PoolError)
    async def on_pool_error(_: Request, error: PoolError) -> Response:
        return problem_of(error)

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = ", ".join(_allowed(request))
        return problem(error.status_code, headers=headers)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(_: Request, error: RequestValidationError) -> Response:
        found = _findings(error.errors())
        return problem(422, code=InputError.code, title=InputError().title, errors=found)

    @app.exception_handler(ClientDisconnect)
    async def on_disconnect(_: Request, _error: ClientDisconnect) -> Response:
        return Response(status_code=_CLIENT_CLOSED_REQUEST)


def _allowed(request: Request) -> list[str]:
    """Return the methods of all routes of a path. Starlette's Allow has those of the first."""
    return [
        method
        for method in METHODS
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL
            for route in request.app.routes
        )
    ]
