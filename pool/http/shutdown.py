"""The two steps of a graceful shutdown, for long polls, streams and uploads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial

from pool.errors import Stopping


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

    @contextmanager
    def or_gone(self, gone: asyncio.Future[None]) -> Iterator[asyncio.Future[None]]:
        """Yield a future that is done once the shutdown begins or ``gone`` is done."""
        loop = asyncio.get_running_loop()
        either: asyncio.Future[None] = loop.create_future()

        def end(_: object = None) -> None:
            if not either.done():
                either.set_result(None)

        def end_from_any_thread() -> None:
            # RuntimeError: the loop has ended, and the answer with it.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(end)

        gone.add_done_callback(end)
        forget = self.listen(end_from_any_thread)
        try:
            yield either
        finally:
            forget()
            gone.remove_done_callback(end)

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
