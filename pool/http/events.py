"""``GET /v1/events``: what happens, as server-sent events, for as long as the client listens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Container
from typing import Annotated, Final

from fastapi import APIRouter, Header, Query
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pool.errors import InputError, UnknownTemplate
from pool.http.live import Live
from pool.logs import get_logger

log = get_logger(__name__)

PATH: Final = "/v1/events"
MEDIA_TYPE: Final = "text/event-stream"
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


class EventStream(Response):
    """Sends what a generator yields, for as long as the client reads it."""

    media_type = MEDIA_TYPE

    def __init__(self, messages: AsyncGenerator[bytes, None], *, patience: float) -> None:
        # Some proxies would gather the messages otherwise.
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._messages = messages
        self._patience = patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(scope, send))
        gone = asyncio.ensure_future(_until_gone(receive))
        try:
            await asyncio.wait((sending, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, gone):
                task.cancel()
            await asyncio.gather(sending, gone, return_exceptions=True)
            await self._messages.aclose()
        if not sending.cancelled():
            sending.result()

    async def _send(self, scope: Scope, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        try:
            async for message in self._messages:
                async with asyncio.timeout(self._patience):
                    await send({"type": "http.response.body", "body": message, "more_body": True})
        except TimeoutError:
            # The answer is left without its end, which closes the connection.
            log.info("client does not read", path=scope["path"], seconds=self._patience)
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def events_router(
    live: Live, templates: Container[str], *, patience: float = PATIENCE
) -> APIRouter:
    """The route, for what ``live`` tells of the ``templates`` in force."""
    router = APIRouter(tags=["events"])

    @router.get(
        PATH,
        summary="Hear what happens",
        status_code=200,
        response_class=EventStream,
        responses={200: {"content": {MEDIA_TYPE: {"example": _EXAMPLE}}}},
    )
    async def events(
        template: Annotated[str | None, Query(description="Events of this template only")] = None,
        after: Annotated[
            int | None, Query(ge=0, description="Events that come after this id; all from now on")
        ] = None,
        last_event_id: Annotated[
            str | None,
            Header(description="As `after`; what a browser sends when it connects again"),
        ] = None,
    ) -> Response:
        """Server-sent events: hand-outs and transitions as they happen, in any process of the
        pool, each with its id, and `levels`, the status of the pool, at first and whenever it
        changes. A comment comes every 15 seconds when nothing else does.

        Nothing is missed by a client that connects again with the id that it got last, within a
        day; one that does not read what it is sent is disconnected.
        """
        if template is not None and template not in templates:
            raise UnknownTemplate(repr(template))
        messages = live.follow(_place(last_event_id, after), template)
        # Up to the first message, so that an error has an answer of its own.
        first = await anext(messages)
        return EventStream(_from(first, messages), patience=patience)

    return router


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
