"""The app that the daemon serves: its routers, put together."""

from __future__ import annotations

from fastapi import FastAPI

from pool import __version__
from pool.http.problems import install
from pool.http.webhooks import Receiver, webhook_router


def create_app(*, receiver: Receiver) -> FastAPI:
    """The app for one daemon. Serving it is :mod:`pool.http.server`'s."""
    app = FastAPI(
        title="cvat-task-pool",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    install(app)

    @app.get("/healthz", tags=["health"], summary="Whether the daemon is alive")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    app.include_router(webhook_router(receiver))
    return app
