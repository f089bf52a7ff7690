"""``/healthz``, ``/readyz``, ``/metrics`` and ``/v1/history``: how a daemon is doing."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import TypeAdapter

from pool.http import openapi
from pool.http.context import state_of
from pool.observability.health import HealthReport
from pool.observability.history import History, HourReport

router = APIRouter()

_HOUR = TypeAdapter(HourReport)


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
    summary="Whether the daemon does what it is there for",
    responses={
        **openapi.OPEN,
        503: {"model": HealthReport, "description": "It does not: see the checks"},
    },
    openapi_extra=openapi.NO_TOKEN,
)
async def readyz(request: Request, response: Response) -> HealthReport:
    """Whether the store can be written, CVAT answers and is not held, all services have run
    lately, and it is this daemon that maintains the store."""
    state = state_of(request)
    report = await state.workers.store(state.observation.health.run_once)
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
    """In Prometheus' text format, or in OpenMetrics' where that is asked for."""
    state = state_of(request)
    accept = request.headers.get("Accept", "")
    body, media_type = await state.workers.store(state.observation.metrics.expose, accept)
    return Response(body, headers={"Content-Type": media_type})


@router.get(
    "/v1/history",
    tags=["status"],
    summary="See the last hour",
    response_model=HourReport,
    responses=openapi.PROTECTED,
)
async def history(request: Request) -> Response:
    """Levels against targets, sampled every few seconds since the daemon has been running,
    and the requests that have ended, whichever process they were of."""
    state = state_of(request)
    # Written on the thread that reads it: it can be large, and is asked for often.
    body = await state.workers.store(_hour, state.observation.history)
    return Response(body, media_type="application/json")


def _hour(history: History) -> bytes:
    return _HOUR.dump_json(history.hour())
