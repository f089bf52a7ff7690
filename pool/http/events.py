"""``GET /v1/events``: events and levels as server-sent events, for any number of clients.

Each client has its own cursor. The newest events are kept in memory, encoded once for all clients;
older ones are read from the store. So a slow client costs no memory, and one that reconnects
misses nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncGenerator, Callable, Container, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import TypeAdapter
from starlette import types
from starlette.types import Message, Receive, Send

from pool import errors
from pool.errors import InputError, PoolError, TooBusy, UnknownTemplate
from pool.events.feed import Feed
from pool.http import openapi
from pool.http.access import ALLOWED, GuardedRoute, caller_of
from pool.http.shutdown import Shutdown
from pool.http.workers import Workers
from pool.logs import get_logger
from pool.model import EVERYTHING, Event, Scope, event_document
from pool.observability.status import narrowed
from pool.status import Status
from pool.store import Store

log = get_logger(__name__)

router = APIRouter(tags=["events"], responses=openapi.PROTECTED, route_class=GuardedRoute)

#: Events that are kept in memory, and read from the store at once.
RECENT: Final = 1000
#: Clients at the same time.
MOST_CLIENTS: Final = 1000
#: Seconds without news after which a client is sent a comment.
HEARTBEAT: Final = 15.0
#: Shortest pause between two messages with levels, in seconds, and the pause after which they are
#: read without a change of the store: a hold ends and a rate falls by time alone.
LEVELS_PAUSE: Final = 0.25
LEVELS_EVERY: Final = 5.0
#: Milliseconds after which a browser reconnects.
RETRY: Final = 2000

PATH: Final = "/v1/events"
#: Seconds that a client may take to read a message before it is disconnected.
PATIENCE: Final = 30.0
#: Digits of the longest event id: SQLite's integers have 64 bits.
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

_STATUS: Final = TypeAdapter(Status)


@dataclass(frozen=True, slots=True)
class _Encoded:
    """An event, and its message in the stream."""

    event: Event
    message: bytes


class Broadcaster:
    """Makes the streams of all clients. Nothing is read while there are no clients.

    Belongs to the event loop; only :meth:`close` is thread-safe.
    """

    def __init__(
        self,
        store: Store,
        feed: Feed,
        read_status: Callable[[], Status],
        workers: Workers,
        shutdown: Shutdown,
        *,
        templates: Container[str],
    ) -> None:
        self._store = store
        self._feed = feed
        self._read_status = read_status
        self._workers = workers
        self._templates = templates
        self._loop: asyncio.AbstractEventLoop | None = None
        self._clients = 0
        self._beginning = asyncio.Lock()
        self._unwatch: Callable[[], None] | None = None
        self._recent: deque[_Encoded] = deque(maxlen=RECENT)
        #: All events up to here are in ``_recent``, or were before it.
        self._newest = 0
        self._news = asyncio.Event()
        self._changed = asyncio.Event()
        self._status: Status | None = None
        #: The messages with that status, by what their clients see of it.
        self._levels: dict[Scope, bytes] = {}
        self._levels_task: asyncio.Task[None] | None = None
        self._over = False
        shutdown.listen(self.close)

    @property
    def clients(self) -> int:
        """The number of clients now."""
        return self._clients

    async def follow(
        self,
        after: int | None,
        template: str | None = None,
        *,
        scope: Scope = EVERYTHING,
        allowed: Callable[[], bool] = lambda: True,
    ) -> AsyncGenerator[bytes, None]:
        """Yield the messages of one client: the levels, the events after the id ``after`` (by
        default, those from now on), of one ``template`` if given, and comments: what it sees of
        them. Return when the server stops, or the client is no longer ``allowed`` to listen.

        :raises UnknownTemplate: the configuration has no such template.
        :raises TooBusy: there are too many clients.
        """
        known = template in self._templates and scope.covers_template(template or "")
        if template is not None and not known:
            raise UnknownTemplate(repr(template))
        if self._clients >= MOST_CLIENTS:
            raise TooBusy(f"{MOST_CLIENTS} clients listen already")
        self._clients += 1
        try:
            await self._begin()
            # A cursor past the newest event is of another store, or of this one before it was
            # restored from a backup.
            cursor = self._newest if after is None else min(after, self._newest)
            levels = b""
            clock = asyncio.get_running_loop().time
            sent_at = clock()
            # The cursor at once, for a client whose connection breaks before the first event.
            yield f"retry: {RETRY}\nid: {cursor}\n\n".encode()
            while not self._over and allowed():
                news = self._news
                messages = []
                if (latest := await self._levels_of(scope)) not in (b"", levels):
                    levels = latest
                    messages.append(levels)
                written = await self._after(cursor)
                if written:
                    cursor = written[-1].event.id
                messages += [
                    each.message
                    for each in written
                    if template in (None, each.event.template) and scope.covers(each.event)
                ]
                left = sent_at + HEARTBEAT - clock()
                if messages:
                    yield b"".join(messages)
                elif left <= 0 or not (written or await self._wait(news, left)):
                    yield b": still here\n\n"
                else:
                    continue
                sent_at = clock()
        finally:
            self._clients -= 1
            if not self._clients:
                await self._rest()

    def close(self) -> None:
        """End all streams. Safe from any thread."""
        self._over = True
        if self._loop is not None:
            # An error means that the loop has ended, and all streams with it.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._wake)

    # --- Beginning and ending ---------------------------------------------------------------------

    async def _begin(self) -> None:
        async with self._beginning:
            if self._unwatch is not None:
                return
            self._loop = asyncio.get_running_loop()
            self._recent.clear()
            self._unwatch, newest = await self._workers.store(self._watch)
            self._newest = max(self._newest, newest)
            await self._look_at_levels()
            self._levels_task = self._loop.create_task(self._follow_levels(), name="levels")

    def _watch(self) -> tuple[Callable[[], None], int]:
        # In this order, so that no event comes in between.
        unwatch = self._feed.on(self._notice)
        try:
            return unwatch, self._store.last_event_id()
        except BaseException:
            unwatch()
            raise

    async def _rest(self) -> None:
        async with self._beginning:
            if self._clients or self._unwatch is None:
                return
            unwatch, self._unwatch = self._unwatch, None
            unwatch()
            if self._levels_task is not None:
                self._levels_task.cancel()
                self._levels_task = None

    # --- Events -----------------------------------------------------------------------------------

    def _notice(self, events: Sequence[Event]) -> None:
        """Pass new events to the event loop; called on the feed's thread."""
        assert self._loop is not None
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._take, events)

    def _take(self, events: Sequence[Event]) -> None:
        self._changed.set()
        new = [event for event in events if event.id > self._newest]
        if new:
            self._recent.extend(_Encoded(event, _message(event)) for event in new)
            self._newest = new[-1].id
            self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def _wait(self, news: asyncio.Event, seconds: float) -> bool:
        """Wait for news; return False when there was none for so long."""
        try:
            async with asyncio.timeout(seconds):
                await news.wait()
        except TimeoutError:
            return False
        return True

    async def _after(self, cursor: int) -> Sequence[_Encoded]:
        """Return the next events after a cursor."""
        if cursor >= self._newest:
            return ()
        if self._recent and self._recent[0].event.id <= cursor + 1:
            newer: list[_Encoded] = []
            for each in reversed(self._recent):
                if each.event.id <= cursor:
                    break
                newer.append(each)
            return newer[::-1]
        events = await self._workers.store(self._store.events_after, cursor, limit=RECENT)
        return [_Encoded(event, _message(event)) for event in events]

    # --- Levels -----------------------------------------------------------------------------------

    async def _follow_levels(self) -> None:
        while True:
            await asyncio.sleep(LEVELS_PAUSE)
            with suppress(TimeoutError):
                async with asyncio.timeout(LEVELS_EVERY):
                    await self._changed.wait()
            await self._look_at_levels()

    async def _look_at_levels(self) -> None:
        """Read the levels once for all clients."""
        self._changed.clear()
        try:
            status = await self._workers.store(self._read_status)
        except PoolError as error:
            log.info("levels not read", why=str(error))
            return
        except Exception:
            # Events are sent all the same.
            log.exception("levels not read")
            return
        if status != self._status:
            self._status, self._levels = status, {}
            self._wake()

    async def _levels_of(self, scope: Scope) -> bytes:
        """Return the message with what clients of a scope see of the levels; an empty one where
        that cannot be read."""
        status, levels = self._status, self._levels
        if status is None or scope in levels:
            return levels.get(scope, b"")
        if scope != EVERYTHING:
            try:
                status = await self._workers.store(narrowed, status, scope, self._store)
            except PoolError as error:
                log.info("levels not read", why=str(error))
                return b""
        levels[scope] = b"event: levels\ndata: " + _STATUS.dump_json(status) + b"\n\n"
        return levels[scope]


def _message(event: Event) -> bytes:
    head = f"id: {event.id}\nevent: {event.kind}\ndata: ".encode()
    # Without line breaks, which would end the data.
    data = json.dumps(event_document(event), ensure_ascii=False, separators=(",", ":"))
    return head + data.encode("utf-8", "replace") + b"\n\n"


class EventStream(StreamingResponse):
    """Send the ``first`` message and the others, as long as the client reads them.

    FastAPI's EventSourceResponse would encode each event again for each client, and wait for ever
    for a client that does not read. sse-starlette's replaces a method of uvicorn's server.
    """

    media_type = "text/event-stream"

    def __init__(self, first: bytes, messages: AsyncGenerator[bytes, None]) -> None:
        super().__init__(
            _chain(first, messages),
            # Without the second one, some proxies buffer the messages.
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )
        self._messages = messages

    async def __call__(self, scope: types.Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(PATIENCE):
                await send(message)

        try:
            await super().__call__(scope, receive, send_in_time)
        except TimeoutError:
            # An answer without its end closes the connection.
            log.info("client does not read its events", path=scope["path"], seconds=PATIENCE)
        finally:
            await self._messages.aclose()


@router.get(
    PATH,
    summary="Stream events",
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
        int | None, Query(ge=0, description="Events after this id; by default those from now on")
    ] = None,
    last_event_id: Annotated[
        str | None,
        Header(description="As `after`; sent by a browser that reconnects"),
    ] = None,
) -> EventStream:
    """Server-sent events: hand-outs and state changes as they happen, in any process of the
    pool, each with its id; and `levels`, the status of the pool, at first and whenever it
    changes: what the caller sees of them. A comment is sent after 15 seconds without news.

    A client that reconnects within a day with the last id that it received misses nothing. A
    client that does not read is disconnected.
    """
    broadcaster: Broadcaster = request.app.state.parts.broadcaster
    scope = caller_of(request).scope
    messages = broadcaster.follow(
        _cursor(last_event_id, after),
        template,
        scope=scope,
        allowed=request.scope.get(ALLOWED, lambda: True),
    )
    # The first message now, so that an error is answered as a problem.
    return EventStream(await anext(messages), messages)


def _cursor(last_event_id: str | None, after: int | None) -> int | None:
    """Return the event id after which the stream begins. The header goes before ``after``: a
    browser reconnects at the address that it was given at first."""
    if not last_event_id:
        return after
    if not (
        last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) <= _LONGEST_ID
    ):
        raise InputError("Last-Event-ID is not an id of this stream")
    return int(last_event_id)


async def _chain(
    first: bytes, messages: AsyncGenerator[bytes, None]
) -> AsyncGenerator[bytes, None]:
    yield first
    async for message in messages:
        yield message
