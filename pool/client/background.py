"""An event loop on a background thread, for callers without one."""

from __future__ import annotations

import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import TypeVar

import anyio
from anyio.from_thread import BlockingPortal

from pool.errors import PoolClosed

T = TypeVar("T")


class BackgroundLoop:
    """An event loop on a thread of its own, started by the first call.

    anyio's portal runs the calls; ``last`` is awaited after them. The thread is a daemon thread, so
    that a pool that was never closed does not delay the end of the process.
    """

    def __init__(self, last: Callable[[], Awaitable[None]]) -> None:
        self._last = last
        # Reentrant: a finalizer may run on a thread that holds it.
        self._guard = threading.RLock()
        self._pid = os.getpid()
        self._portal: BlockingPortal | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def forked(self) -> bool:
        """Whether this process was forked since, and so lacks the thread."""
        return self._pid != os.getpid()

    def begin(self, function: Callable[[], Awaitable[T]]) -> Future[T]:
        """Start a call on the loop; return the future of its result.

        :raises PoolClosed: after :meth:`close`.
        """
        with self._guard:
            if self._closed:
                raise PoolClosed
            if self._portal is None:
                self._portal = self._start()
            return self._portal.start_task_soon(function)

    def begin_if_open(self, function: Callable[[], Awaitable[T]]) -> None:
        """Start a call if the loop runs; for finalizers, on any thread."""
        if not self.forked and self._portal is not None:
            # RuntimeError: this is the loop's own thread.
            with suppress(PoolClosed, RuntimeError):
                self.begin(function)

    def close(self) -> None:
        """Cancel all calls, and end the loop."""
        with self._guard:
            self._closed = True
            portal, self._portal = self._portal, None
        if portal is not None and self._thread is not None and not self.forked:
            portal.call(portal.stop, True)
            self._thread.join()

    def _start(self) -> BlockingPortal:
        started: Future[BlockingPortal] = Future()

        async def serve() -> None:
            async with BlockingPortal() as portal:
                started.set_result(portal)
                await portal.sleep_until_stopped()
            await self._last()

        def run() -> None:
            try:
                anyio.run(serve)
            except BaseException as error:
                if started.done():
                    raise
                started.set_exception(error)

        self._thread = threading.Thread(target=run, name="remote-pool", daemon=True)
        self._thread.start()
        return started.result()


def result_of(future: Future[T]) -> T:
    """Wait for a call and return its result; cancel the call when the wait is interrupted.

    :raises PoolClosed: it was cancelled because the pool is being closed.
    """
    try:
        return future.result()
    except CancelledError:
        raise PoolClosed from None
    except BaseException:
        future.cancel()
        raise
