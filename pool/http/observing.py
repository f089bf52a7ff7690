"""The routes by which a daemon is looked at: events, history, metrics, and how it is doing."""

from __future__ import annotations

from fastapi import APIRouter

from pool.http.ending import Ending
from pool.http.events import events_router
from pool.http.health import health_router
from pool.http.history import history_router
from pool.http.live import Live
from pool.http.metrics import metrics_router
from pool.http.schemas import status_document
from pool.http.workers import Workers
from pool.observability.observation import Observation
from pool.process import Engine


def observing_router(
    engine: Engine, observation: Observation, workers: Workers, ending: Ending
) -> APIRouter:
    """All of them, for one daemon."""
    live = Live(
        engine.store,
        engine.feed,
        lambda: status_document(observation.status()),
        workers,
        ending,
    )
    observation.listeners = lambda: live.clients
    router = APIRouter()
    router.include_router(events_router(live, engine.templates))
    router.include_router(history_router(observation.history, workers))
    router.include_router(metrics_router(observation.metrics, workers))
    router.include_router(health_router(observation.health, workers))
    return router
