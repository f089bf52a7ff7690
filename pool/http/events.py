"""``GET /v1/events``: what happens, as server-sent events, for as long as the client listens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Annotated, Final

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from pool import errors
from pool.errors import InputError, UnknownTemplate
from pool.http import openapi
from pool.http.context import state_of
from pool.logs import get_logger

log = get_logger(__name__)

router = APIRouter(tags=["events"], responses=openapi.PROTECTED)

PATH: Final = "/v1/events"
#: Seconds that a client may take to read what it was sent; one that does not is disconnected.
PATIENCE: Final = 30.0
#: The longest that an id is: what SQLite counts up to.
_LONGEST_ID: Final = 19

_EXAMPLE: Final = """retry: 2000
id: 16

event: levels
data: {"server":"http://localhost:8080","in_flight":0,"templates":[{"name":"street-scenes"}]}

id: 17
event: request.ready
data: {"id":17,"kind":"request.ready","at":"2026-01-01T12:00:00.123Z","state":"ready"}

: still here

"""


class EventStream(StreamingResponse):
    """Sends what a generator yields, for as long as the client reads it.

    Not FastAPI's EventSourceResponse: that would write each event anew for each client, and wait
    without an end for one that does not read.
    """

    media_type = "text/event-stream"

    def __init__(self, messages: AsyncGenerator[bytes, None]) -> None:
        # Some proxies would gather the messages otherwise.
        super().__init__(messages, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._messages = messages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(PATIENCE):
                await send(message)

        try:
            await super().__call__(scope, receive, send_in_time)
        except TimeoutError:
            # The answer is left without its end, which closes the connection.
            log.info("client does not read", path=scope["path"], seconds=PATIENCE)
        finally:
            await self._messages.aclose()


@router.get(
    PATH,
    summary="Hear what happens",
    status_code=200,
    response_class=EventStream,
    responses={
        **openapi.problems(errors.InputError, errors.UnknownTemplate, errors.TooBusy),
        200: {"content": {EventStream.media_type: {"example": _EXAMPLE}}},
    },
)
async def events(
    request: Request,
    template: Annotated[str | None, Query(description="Events of this template only")] = None,
    after: Annotated[
        int | None, Query(ge=0, description="Events that come after this id; all from now on")
    ] = None,
    last_event_id: Annotated[
        str | None,
        Header(description="As `after`; what a browser sends when it connects again"),
    ] = None,
) -> EventStream:
    """Server-sent events: hand-outs and transitions as they happen, in any process of the
    pool, each with its id, and `levels`, the status of the pool, at first and whenever it
    changes. A comment comes every 15 seconds when nothing else does.

    Nothing is missed by a client that connects again with the id that it got last, within a
    day; one that does not read what it is sent is disconnected.
    """
    state = state_of(request)
    if template is not None and template not in state.pool.process.templates:
        raise UnknownTemplate(repr(template))
    messages = state.live.follow(_place(last_event_id, after), template)
    # Up to the first message, so that an error has an answer of its own.
    first = await anext(messages)
    return EventStream(_from(first, messages))


def _place(last_event_id: str | None, after: int | None) -> int | None:
    """After which event the stream goes on. The header is the newer one: a browser that connects
    again does so at the address that it was given at first."""
    if not last_event_id:
        return after
    if not (
        last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) <= _LONGEST_ID
    ):
        raise InputError("Last-Event-ID is not an id that this stream has given")
    return int(last_event_id)


async def _from(first: bytes, messages: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    try:
        yield first
        async for message in messages:
            yield message
    finally:
        await messages.aclose()
