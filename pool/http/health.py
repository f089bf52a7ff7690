"""``GET /healthz`` and ``GET /readyz``: whether the daemon is alive, and whether it is of use."""

from __future__ import annotations

from dataclasses import asdict
from typing import Final

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from pool.http.workers import Workers
from pool.observability.health import Health, HealthReport

ALIVE: Final = "/healthz"
READY: Final = "/readyz"


def health_router(health: Health, workers: Workers) -> APIRouter:
    """The routes, for one daemon. Both are open to everybody who can reach it."""
    router = APIRouter(tags=["health"])

    @router.get(ALIVE, summary="Whether the daemon is alive")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @router.get(
        READY,
        summary="Whether the daemon does what it is there for",
        response_model=HealthReport,
        responses={503: {"model": HealthReport, "description": "It does not: see the checks"}},
    )
    async def readyz() -> JSONResponse:
        """Whether the store can be written, CVAT answers and is not held, all services have run
        lately, and it is this daemon that maintains the store."""
        report = await workers.store(health.run_once)
        return JSONResponse(asdict(report), 200 if report.ready else 503)

    return router
