"""``GET /v1/history``: the last hour, for whoever draws it."""

from __future__ import annotations

import json
from typing import Annotated, Final

from fastapi import APIRouter, Response
from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from pool.http.workers import Workers
from pool.model import EndedRequest
from pool.observability.history import History

PATH: Final = "/v1/history"

_closed = with_config(ConfigDict(extra="forbid"))


@_closed
class TemplateLevels(TypedDict):
    """Levels of one template, a number for each sample; null where it was not there."""

    warm: list[int | None]
    creating: list[int | None]
    target: list[int | None]


@_closed
class Ended(TypedDict):
    """How a request ended, and how long it took."""

    request_id: str
    template: Annotated[str, Field(examples=["street-scenes"])]
    outcome: Annotated[str | None, Field(description="How its task was found", examples=["hit"])]
    at: Annotated[float, Field(description="When, in seconds since 1970", examples=[1767268800.1])]
    seconds: Annotated[float, Field(description="From the request to the job ids", examples=[0.31])]
    server_seconds: Annotated[
        float | None,
        Field(
            description="CVAT's part of it: after it had accepted the data, and while it was away",
            examples=[0.24],
        ),
    ]
    state: Annotated[str, Field(description="ready or failed", examples=["ready"])]
    code: Annotated[str, Field(description="Why it failed; empty when it is ready")]
    error: Annotated[str, Field(description="The same, in words")]


@_closed
class Hour(TypedDict):
    """The last hour."""

    interval: Annotated[float, Field(description="Seconds between two samples", examples=[5.0])]
    at: Annotated[list[float], Field(description="When each was taken", examples=[[1767268800.0]])]
    templates: dict[str, TemplateLevels]
    requests: Annotated[list[Ended], Field(description="The newest 1000, the newest last")]


def history_router(history: History, workers: Workers) -> APIRouter:
    """The route, for one history."""
    router = APIRouter(tags=["status"])

    @router.get(PATH, summary="See the last hour", response_model=Hour)
    async def hour() -> Response:
        """Levels against targets, sampled every few seconds since the daemon has been running,
        and the requests that have ended, whichever process they were of."""
        # Written where it is read: it can be large, and is asked for often.
        body = await workers.store(_written, history)
        return Response(body, media_type="application/json")

    return router


def _written(history: History) -> bytes:
    hour = history.hour()
    document: Hour = {
        "interval": hour.interval,
        "at": hour.at,
        "templates": {
            name: {"warm": levels.warm, "creating": levels.creating, "target": levels.target}
            for name, levels in hour.templates.items()
        },
        "requests": [_ended(request) for request in hour.requests],
    }
    return json.dumps(document, separators=(",", ":")).encode()


def _ended(request: EndedRequest) -> Ended:
    return {
        "request_id": request.request_id,
        "template": request.template,
        "outcome": request.outcome,
        "at": request.at,
        "seconds": request.seconds,
        "server_seconds": request.server_seconds,
        "state": request.state,
        "code": request.code,
        "error": request.error,
    }
