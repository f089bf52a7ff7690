"""Threads for calls that block, as many whatever the number of callers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Final, ParamSpec, TypeVar

from pool.errors import Stopping

P = ParamSpec("P")
R = TypeVar("R")

#: Threads for calls to the store, for what is written to the spool, and for calls to CVAT.
STORE: Final = 4
SPOOL: Final = 4
CVAT: Final = 8


class Workers:
    """Three thread pools, so that no call waits for slower ones. After
    :meth:`close` every call raises :class:`pool.errors.Stopping`."""

    def __init__(self) -> None:
        self._store = ThreadPoolExecutor(STORE, thread_name_prefix="http-store")
        self._spool = ThreadPoolExecutor(SPOOL, thread_name_prefix="http-spool")
        self._cvat = ThreadPoolExecutor(CVAT, thread_name_prefix="http-cvat")

    async def store(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Make a call that reads or writes the store."""
        return await _run(self._store, call, *args, **kwargs)

    async def spool(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Make a call that writes what a caller sends to the disk."""
        return await _run(self._spool, call, *args, **kwargs)

    async def cvat(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Make a call that asks CVAT for something."""
        return await _run(self._cvat, call, *args, **kwargs)

    def close(self) -> None:
        """Begin nothing more; what is under way ends by itself."""
        for executor in (self._store, self._spool, self._cvat):
            executor.shutdown(wait=False)


async def _run(
    executor: ThreadPoolExecutor, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs
) -> R:
    # With the caller's context, so that log lines bear the id of the call.
    bound = partial(copy_context().run, partial(call, *args, **kwargs))
    try:
        future = asyncio.get_running_loop().run_in_executor(executor, bound)
    except RuntimeError:
        raise Stopping from None  # closed
    return await future
