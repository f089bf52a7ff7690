"""Threads for calls that block, as many whatever the number of callers."""

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
    """A few threads on which coroutines make calls that block.

    Not anyio's: those go on when the server stops, and each call waits for a further round of the
    event loop.
    """

    def __init__(self, count: int, name: str) -> None:
        self._executor = ThreadPoolExecutor(count, thread_name_prefix=name)

    async def __call__(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Make a call on one of the threads.

        :raises Stopping: after :meth:`close`.
        """
        # With the caller's context, so that log lines bear the id of the call.
        bound = partial(copy_context().run, partial(call, *args, **kwargs))
        try:
            future = asyncio.get_running_loop().run_in_executor(self._executor, bound)
        except RuntimeError:
            raise Stopping from None  # closed
        return await future

    def close(self) -> None:
        """Begin nothing more; what is under way ends by itself."""
        self._executor.shutdown(wait=False)


class Workers:
    """Three thread pools, so that no call waits for slower ones."""

    def __init__(self) -> None:
        #: For calls that read or write the store.
        self.store = Threads(4, "http-store")
        #: For what writes to the disk what a caller sends.
        self.spool = Threads(4, "http-spool")
        #: For calls that ask CVAT for something.
        self.cvat = Threads(8, "http-cvat")

    def close(self) -> None:
        """Close all of them."""
        for threads in (self.store, self.spool, self.cvat):
            threads.close()
