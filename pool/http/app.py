"""The app that the daemon serves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from pool.config.tokens import Tokens
from pool.http import (
    events,
    leases,
    manual,
    observability,
    openapi,
    page,
    problems,
    requests,
    streams,
    templates,
    webhooks,
)
from pool.http.context import AppState
from pool.http.middleware import AccessControl, CallLog
from pool.http.shutdown import Shutdown
from pool.http.uploads import Uploads
from pool.http.waiting import Waiting
from pool.http.workers import Workers
from pool.observability.observation import Observation
from pool.process import Process
from pool.requests.dispatcher import Dispatcher
from pool.taskpool import TaskPool
from pool.tracking.webhook_receiver import WebhookReceiver
from pool.version import VERSION


def create_app(
    process: Process,
    dispatcher: Dispatcher,
    receiver: WebhookReceiver,
    *,
    observation: Observation,
    shutdown: Shutdown,
    tokens: Tokens | None = None,
) -> FastAPI:
    """Return the app of one daemon, for :mod:`pool.http.server`.

    ``dispatcher`` serves the accepted requests, ``receiver`` handles webhooks. Callers must send
    one of the ``tokens``, and are served as its role allows; without tokens, only programs on this
    machine are served. ``shutdown`` ends long polls and streams.
    """
    pool = TaskPool.over(process)
    workers = Workers()
    state = AppState(
        pool=pool,
        workers=workers,
        waiting=Waiting(process.store, process.feed, workers.store, shutdown),
        uploads=Uploads(pool, dispatcher, workers, shutdown),
        broadcaster=events.Broadcaster(
            process.store,
            process.feed,
            observation.status,
            workers,
            shutdown,
            templates=process.templates,
        ),
        observation=observation,
        receiver=receiver,
        dispatcher=dispatcher,
        shutdown=shutdown,
    )
    observation.listeners = lambda: state.broadcaster.clients

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        workers.close()

    app = FastAPI(
        title="cvat-task-pool",
        version=VERSION,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        lifespan=lifespan,
    )
    app.state.parts = state
    problems.install(app)
    app.add_middleware(AccessControl, tokens=tokens or Tokens())
    app.add_middleware(CallLog, on_answer=observation.metrics.answered)
    # Not by include_router(): FastAPI looks at every call whether an included router has changed.
    for part in (
        leases,
        requests,
        streams,
        templates,
        events,
        observability,
        webhooks,
        page,
        manual,
    ):
        app.router.routes.extend(part.router.routes)
    openapi.describe(app)
    return app
