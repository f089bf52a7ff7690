"""The two steps of a graceful shutdown, for long polls, streams and uploads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial

from starlette.requests import Request

from pool.errors import Stopping


@dataclass(frozen=True, slots=True)
class Connection:
    """The connection of a caller that waits: ``gone`` is done once the caller disconnects, ``stop``
    then, too, or once the server stops."""

    gone: asyncio.Future[None]
    stop: asyncio.Future[None]


class Shutdown:
    """A shutdown that lets answers end by themselves.

    After :meth:`begin`, long polls answer with the present state, streams end, and no new body is
    read. :meth:`cut_off` is called when the time is over: bodies that are still being read are
    answered with an error.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._listeners: set[Callable[[], None]] = set()
        self._begun = False
        #: Belongs to the event loop.
        self._limits: set[asyncio.Timeout] = set()

    @property
    def begun(self) -> bool:
        """Whether the server is stopping."""
        return self._begun

    def begin(self) -> None:
        """Begin the shutdown; a second call does nothing. Thread-safe."""
        with self._guard:
            self._begun = True
            listeners, self._listeners = self._listeners, set()
        for listener in listeners:
            listener()

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call ``listener`` once when the shutdown begins, on the thread of :meth:`begin`, or now
        if it has begun. Return a function that removes the listener."""
        with self._guard:
            begun = self._begun
            if not begun:
                self._listeners.add(listener)
        if begun:
            listener()
        return partial(self._forget, listener)

    def _forget(self, listener: Callable[[], None]) -> None:
        with self._guard:
            self._listeners.discard(listener)

    # --- On the event loop ------------------------------------------------------------------------

    @asynccontextmanager
    async def watching(self, request: Request) -> AsyncIterator[Connection]:
        """Watch the connection of a caller inside the ``with`` block; its body must have been
        read."""
        loop = asyncio.get_running_loop()
        gone = loop.create_task(_disconnect(request))
        stop: asyncio.Future[None] = loop.create_future()

        def end(_: object = None) -> None:
            if not stop.done():
                stop.set_result(None)

        def end_from_any_thread() -> None:
            # RuntimeError: the loop has ended, and the answer with it.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(end)

        gone.add_done_callback(end)
        forget = self.listen(end_from_any_thread)
        try:
            yield Connection(gone, stop)
        finally:
            forget()
            gone.cancel()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """Read a body inside the ``with`` block.

        :raises Stopping: the shutdown has begun, or cuts off what the block reads.
        """
        if self._begun:
            raise Stopping
        try:
            async with asyncio.timeout(None) as limit:
                self._limits.add(limit)
                try:
                    yield
                finally:
                    self._limits.discard(limit)
        except TimeoutError:
            if limit.expired():
                raise Stopping from None
            raise

    def cut_off(self) -> None:
        """Abort all blocks of :meth:`reading`."""
        for limit in self._limits:
            limit.reschedule(0.0)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
