"""Errors as problem documents (RFC 9457, ``application/problem+json``)."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from pool.errors import CvatBusy, PoolError
from pool.logs import get_logger

log = get_logger(__name__)

MEDIA_TYPE = "application/problem+json"
#: Before the ``code`` of an error makes the ``type`` of its problem.
TYPE_PREFIX = "urn:cvat-task-pool:error:"


def problem(
    status: int,
    *,
    code: str = "",
    title: str = "",
    detail: str = "",
    headers: Mapping[str, str] | None = None,
    **more: Any,
) -> JSONResponse:
    """One problem document. Without a ``code`` it says no more than its status."""
    document: dict[str, Any] = {
        "type": TYPE_PREFIX + code if code else "about:blank",
        "title": title or HTTPStatus(status).phrase,
        "status": status,
    }
    if detail:
        document["detail"] = detail
    return JSONResponse(
        {**document, **more}, status, headers=dict(headers or {}), media_type=MEDIA_TYPE
    )


def install(app: FastAPI) -> None:
    """Have every error of the app answered with a problem document."""

    @app.exception_handler(PoolError)
    async def on_pool_error(_: Request, error: PoolError) -> JSONResponse:
        headers = {}
        if isinstance(error, CvatBusy) and error.retry_after is not None:
            headers["Retry-After"] = str(round(error.retry_after))
        title = (type(error).__doc__ or "").strip().splitlines()[0].rstrip(".")
        return problem(
            error.status, code=error.code, title=title, detail=error.detail, headers=headers
        )

    @app.exception_handler(HTTPException)
    async def on_http_error(_: Request, error: HTTPException) -> JSONResponse:
        return problem(error.status_code, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        # What was sent is not sent back: it may be large, or a secret in the wrong place.
        wrong = [
            {"where": ".".join(map(str, each["loc"])), "what": each["msg"]}
            for each in error.errors()
        ]
        return problem(422, code="input", title="The input cannot be used", errors=wrong)

    @app.exception_handler(Exception)
    async def on_crash(request: Request, error: Exception) -> JSONResponse:
        log.error("request failed", path=request.url.path, why=repr(error))
        return problem(500)
