"""The stream of events, for any number of clients at once.

Each client has a place of its own among the events, and takes what comes after it when it can: the
newest events from memory, written out once for all clients, older ones from the store. So nothing
piles up for a client that is slow, and one that comes back misses nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from pydantic import TypeAdapter

from pool.errors import PoolError, TooBusy
from pool.events.feed import Feed
from pool.http.shutdown import Shutdown
from pool.http.workers import Workers
from pool.logs import get_logger
from pool.model import Event, event_document
from pool.status import Status
from pool.store import Store

log = get_logger(__name__)

#: Events that are kept in memory, and read from the store at once.
RECENT: Final = 1000
#: Clients at the same time.
MOST_CLIENTS: Final = 1000
#: Seconds after which a client is sent a comment when there is no news.
HEARTBEAT: Final = 15.0
#: Seconds between two messages with levels, at least, and after which they are looked at anew: a
#: hold ends and a rate falls without any change of the store.
LEVELS_PAUSE: Final = 0.25
LEVELS_EVERY: Final = 5.0
#: Milliseconds after which a browser connects again, give or take.
RETRY: Final = 2000

_STATUS: Final = TypeAdapter(Status)


@dataclass(frozen=True, slots=True)
class _Written:
    """An event, and how it is sent."""

    event: Event
    message: bytes


class Live:
    """Makes the streams of all clients. For the event loop alone, but for :meth:`close`.

    Nothing is read while there are no clients.
    """

    def __init__(
        self,
        store: Store,
        feed: Feed,
        read_status: Callable[[], Status],
        workers: Workers,
        shutdown: Shutdown,
        *,
        heartbeat: float = HEARTBEAT,
    ) -> None:
        self._store = store
        self._feed = feed
        self._read_status = read_status
        self._workers = workers
        self._heartbeat = heartbeat
        self._loop: asyncio.AbstractEventLoop | None = None
        self._clients = 0
        self._beginning = asyncio.Lock()
        self._unwatch: Callable[[], None] | None = None
        self._recent: deque[_Written] = deque(maxlen=RECENT)
        #: All events up to here are in ``_recent``, or were before it.
        self._newest = 0
        self._news = asyncio.Event()
        self._changed = asyncio.Event()
        self._levels = b""
        self._levels_task: asyncio.Task[None] | None = None
        self._over = False
        shutdown.listen(self.close)

    @property
    def clients(self) -> int:
        """The number of clients now."""
        return self._clients

    async def follow(
        self, after: int | None, template: str | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Yield what one client is sent: the levels, the events after ``after`` (by default, those
        from now on), of one template if given, and a comment now and then. Ends when the server is
        about to stop.

        :raises TooBusy: there are too many clients.
        """
        if self._clients >= MOST_CLIENTS:
            raise TooBusy(f"{MOST_CLIENTS} clients listen already")
        self._clients += 1
        try:
            await self._begin()
            # A place that there is not yet is of another store, or of this one before it was
            # restored from a copy.
            cursor = self._newest if after is None else min(after, self._newest)
            levels = b""
            # With its place at once, for a client whose connection breaks before the first event.
            yield f"retry: {RETRY}\nid: {cursor}\n\n".encode()
            while not self._over:
                news = self._news
                messages = []
                if levels is not self._levels:
                    levels = self._levels
                    messages.append(levels)
                written = await self._after(cursor)
                if written:
                    cursor = written[-1].event.id
                messages += [
                    each.message
                    for each in written
                    if template is None or each.event.template == template
                ]
                if messages:
                    yield b"".join(messages)
                elif not written and not await self._wait(news):
                    yield b": still here\n\n"
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
        """Take up new events; called on the feed's thread."""
        assert self._loop is not None
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._take, events)

    def _take(self, events: Sequence[Event]) -> None:
        self._changed.set()
        new = [event for event in events if event.id > self._newest]
        if new:
            self._recent.extend(_Written(event, _message(event)) for event in new)
            self._newest = new[-1].id
            self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def _wait(self, news: asyncio.Event) -> bool:
        """Until there is news; False when there was none for a while."""
        try:
            async with asyncio.timeout(self._heartbeat):
                await news.wait()
        except TimeoutError:
            return False
        return True

    async def _after(self, cursor: int) -> Sequence[_Written]:
        """The next events after a place."""
        if cursor >= self._newest:
            return ()
        if self._recent and self._recent[0].event.id <= cursor + 1:
            newer: list[_Written] = []
            for each in reversed(self._recent):
                if each.event.id <= cursor:
                    break
                newer.append(each)
            return newer[::-1]
        events = await self._workers.store(self._store.events_after, cursor, limit=RECENT)
        return [_Written(event, _message(event)) for event in events]

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
            # Whatever it was, the events go on.
            log.exception("levels not read")
            return
        levels = b"event: levels\ndata: " + _STATUS.dump_json(status) + b"\n\n"
        if levels != self._levels:
            self._levels = levels
            self._wake()


def _message(event: Event) -> bytes:
    head = f"id: {event.id}\nevent: {event.kind}\ndata: ".encode()
    # Without line breaks, which would end the data.
    data = json.dumps(event_document(event), ensure_ascii=False, separators=(",", ":"))
    return head + data.encode("utf-8", "replace") + b"\n\n"
