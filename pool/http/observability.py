"""``/healthz``, ``/readyz``, ``/metrics``, ``/v1/history``, and ``/v1/token``."""

from __future__ import annotations

import asyncio
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import TypeAdapter

from pool import errors
from pool.http import openapi
from pool.http.access import GuardedRoute, caller_of, check_sees_all
from pool.http.context import state_of
from pool.http.schemas import Token
from pool.model import Scope
from pool.observability.health import HealthReport
from pool.observability.history import HOUR, LONGEST, SHORTEST, History, HistoryReport

#: The health checks need no token: the operator calls them.
router = APIRouter(responses=openapi.ANYWHERE, route_class=GuardedRoute)

_REPORT: Final = TypeAdapter(HistoryReport)


@router.get(
    "/healthz",
    tags=["health"],
    summary="Whether the daemon is alive",
    responses=openapi.OPEN,
    openapi_extra=openapi.NO_TOKEN,
)
async def healthz() -> dict[str, Literal["ok"]]:
    return {"status": "ok"}


@router.get(
    "/readyz",
    tags=["health"],
    summary="Whether the daemon is ready",
    responses={
        **openapi.OPEN,
        503: {"model": HealthReport, "description": "Not ready: see the checks"},
    },
    openapi_extra=openapi.NO_TOKEN,
)
async def readyz(request: Request, response: Response) -> HealthReport:
    """Ready: the store can be written, CVAT answers or is held for all daemons, and all services of
    this daemon have run recently. Which daemon maintains the store makes no difference."""
    state = state_of(request)
    # Not on the threads for the store, which a store that hangs may hold.
    report = await asyncio.to_thread(state.observation.health.run_once)
    response.status_code = 200 if report.ready else 503
    return report


@router.get(
    "/metrics",
    tags=["status"],
    summary="Read the metrics",
    response_class=Response,
    responses={
        **openapi.PROTECTED,
        200: {"content": {"text/plain": {}, "application/openmetrics-text": {}}},
    },
)
async def metrics(request: Request) -> Response:
    """In the text format of Prometheus, or of OpenMetrics if the Accept header asks for it."""
    check_sees_all(caller_of(request))
    state = state_of(request)
    accept = request.headers.get("Accept", "")
    body, media_type = await state.workers.store(state.observation.metrics.expose, accept)
    return Response(body, headers={"Content-Type": media_type})


@router.get(
    "/v1/history",
    tags=["status"],
    summary="Read the history, of the last hour or of a week",
    response_model=HistoryReport,
    responses={**openapi.PROTECTED, **openapi.problems(errors.InputError)},
)
async def history(
    request: Request,
    seconds: Annotated[
        int, Query(ge=SHORTEST, le=LONGEST, description="How far back, in seconds")
    ] = HOUR,
) -> Response:
    """Levels and targets, in steps of 10 seconds for an hour, of a minute for six hours, and of ten
    minutes for a week, also across restarts of the daemon; and the latest requests that ended, of
    all processes."""
    state, scope = state_of(request), caller_of(request).scope
    # Serialized on the worker thread: it can be large, and is requested often.
    body = await state.workers.store(_report, state.observation.history, seconds, scope)
    return Response(body, media_type="application/json")


@router.get(
    "/v1/token",
    tags=["status"],
    summary="Read what the token is for",
    response_description="Its role",
    responses=openapi.PROTECTED,
)
async def token(request: Request) -> Token:
    """Its name, its role, and the templates that it is bound to."""
    caller = caller_of(request)
    return Token(name=caller.tenant, role=caller.role, templates=sorted(caller.templates))


def _report(history: History, seconds: int, scope: Scope) -> bytes:
    return _REPORT.dump_json(history.report(seconds, scope=scope))
