"""Bounded thread pools for blocking calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

from pool.errors import Stopping

P = ParamSpec("P")
R = TypeVar("R")


class Threads:
    """A thread pool on which coroutines make blocking calls.

    anyio's worker threads cannot be closed when the server stops, and cost a further round of the
    event loop for each call.
    """

    def __init__(self, count: int, name: str) -> None:
        self._executor = ThreadPoolExecutor(count, thread_name_prefix=name)

    async def __call__(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Make a call on one of the threads.

        :raises Stopping: after :meth:`close`.
        """
        # With the caller's context: log lines have the call id from it.
        bound = partial(copy_context().run, partial(call, *args, **kwargs))
        try:
            future = asyncio.get_running_loop().run_in_executor(self._executor, bound)
        except RuntimeError:
            raise Stopping from None  # closed
        return await future

    def close(self) -> None:
        """Accept no more calls; running ones end by themselves."""
        self._executor.shutdown(wait=False)


class Workers:
    """Three thread pools, so that no call waits for slower ones of another kind."""

    def __init__(self) -> None:
        #: Calls to the store.
        self.store = Threads(4, "http-store")
        #: Writes of uploads to the disk.
        self.spool = Threads(4, "http-spool")
        #: Calls to CVAT.
        self.cvat = Threads(8, "http-cvat")

    def close(self) -> None:
        """Close all three."""
        for threads in (self.store, self.spool, self.cvat):
            threads.close()
