"""``/healthz``, ``/readyz``, ``/metrics`` and ``/v1/history``."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import TypeAdapter

from pool.http import openapi
from pool.http.context import state_of
from pool.observability.health import HealthReport
from pool.observability.history import History, HourReport

router = APIRouter(responses=openapi.ANYWHERE)

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
    summary="Whether the daemon is ready",
    responses={
        **openapi.OPEN,
        503: {"model": HealthReport, "description": "Not ready: see the checks"},
    },
    openapi_extra=openapi.NO_TOKEN,
)
async def readyz(request: Request, response: Response) -> HealthReport:
    """Ready: the store can be written, CVAT answers and is not held, all services have run
    recently, and this daemon maintains the store."""
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
    """In the text format of Prometheus, or of OpenMetrics if the Accept header asks for it."""
    state = state_of(request)
    accept = request.headers.get("Accept", "")
    body, media_type = await state.workers.store(state.observation.metrics.expose, accept)
    return Response(body, headers={"Content-Type": media_type})


@router.get(
    "/v1/history",
    tags=["status"],
    summary="Read the history of the last hour",
    response_model=HourReport,
    responses=openapi.PROTECTED,
)
async def history(request: Request) -> Response:
    """Levels and targets, sampled every few seconds while the daemon runs, and the requests that
    ended, of all processes."""
    state = state_of(request)
    # Serialized on the worker thread: it can be large, and is requested often.
    body = await state.workers.store(_hour, state.observation.history)
    return Response(body, media_type="application/json")


def _hour(history: History) -> bytes:
    return _HOUR.dump_json(history.hour())
