"""The app that the daemon serves: its routers, put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from pool.http.accepting import Accepting
from pool.http.auth import Guard
from pool.http.envelope import Envelope
from pool.http.handing_out import HandingOut
from pool.http.leases import lease_router
from pool.http.observing import observing_router
from pool.http.openapi import describe
from pool.http.page import page_router
from pool.http.problems import install
from pool.http.requests import request_router
from pool.http.served import Served
from pool.http.templates import template_router
from pool.http.views import Views
from pool.http.waiting import Waiting
from pool.http.webhooks import webhook_router
from pool.http.workers import Workers
from pool.observability.observation import Observation
from pool.taskpool import TaskPool
from pool.version import VERSION


def create_app(served: Served) -> FastAPI:
    """The app for one daemon. Serving it is :mod:`pool.http.server`'s."""
    engine, ending = served.engine, served.ending
    pool = TaskPool.over(engine)
    workers = Workers()
    views = Views(engine.store, pool.task_url)
    waiting = Waiting(engine.store, engine.tracker, views, ending)
    handing_out = HandingOut(engine, workers, ending)
    accepting = Accepting(pool, served.dispatch, workers, ending)
    observation = served.observation or Observation(engine)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        handing_out.close()
        waiting.close()
        workers.close()

    app = FastAPI(
        title="cvat-task-pool",
        version=VERSION,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        lifespan=lifespan,
    )
    app.state.waiting, app.state.accepting = waiting, accepting
    install(app)
    app.add_middleware(Guard, tokens=served.tokens)
    app.add_middleware(Envelope, on_answer=observation.metrics.answered)

    app.include_router(lease_router(pool, workers, views, waiting, handing_out))
    app.include_router(request_router(pool, workers, views, waiting, accepting))
    app.include_router(template_router(pool, workers))
    app.include_router(observing_router(engine, observation, workers, ending))
    app.include_router(
        webhook_router(served.receiver, patience=pool.settings.daemon.receive_timeout)
    )
    app.include_router(page_router())
    describe(app)
    return app
