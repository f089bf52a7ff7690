"""``GET /metrics``: what is measured, for Prometheus."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Header, Response

from pool.http.workers import Workers
from pool.observability.metrics import Metrics

PATH: Final = "/metrics"


def metrics_router(metrics: Metrics, workers: Workers) -> APIRouter:
    """The route, for the metrics of one daemon."""
    router = APIRouter(tags=["status"])

    @router.get(
        PATH,
        summary="Read the metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}, "application/openmetrics-text": {}}}},
    )
    async def read(accept: Annotated[str, Header(include_in_schema=False)] = "") -> Response:
        """In Prometheus' text format, or in OpenMetrics' where that is asked for."""
        body, media_type = await workers.store(metrics.expose, accept)
        return Response(body, headers={"Content-Type": media_type})

    return router
