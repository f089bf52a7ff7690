"""The shutdown of the server, in two steps, for all answers that wait or read."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial

from pool.errors import Stopping


class Shutdown:
    """A shutdown that cuts off no answer that could end by itself.

    After :meth:`begin` a long poll answers what there is now, a stream of events ends, and no new
    body is read. :meth:`cut_off` says that the time is over: what is still being read gets an
    answer instead.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._listeners: set[Callable[[], None]] = set()
        self._begun = False
        #: Belongs to the event loop.
        self._limits: set[asyncio.Timeout] = set()

    @property
    def begun(self) -> bool:
        """Whether the server is about to stop."""
        return self._begun

    def begin(self) -> None:
        """Say that the server is about to stop; saying so twice does nothing. Thread-safe."""
        with self._guard:
            self._begun = True
            listeners, self._listeners = self._listeners, set()
        for listener in listeners:
            listener()

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Have ``listener`` called once when it begins, on the thread that says so, or at once
        when it has begun. Return what takes the listener away."""
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
        """Yield a future that is done once the server is about to stop, or ``gone`` is done."""
        loop = asyncio.get_running_loop()
        either: asyncio.Future[None] = loop.create_future()

        def end(_: object = None) -> None:
            if not either.done():
                either.set_result(None)

        def end_from_any_thread() -> None:
            # An error means that the loop has ended, and the answer with it.
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
        """Read a body in the block.

        :raises Stopping: the server is about to stop, or the time for that is over.
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
        """End all blocks of :meth:`reading`."""
        for limit in self._limits:
            limit.reschedule(0.0)
