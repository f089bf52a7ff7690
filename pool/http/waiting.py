"""Long polls: waiting for the end of requests and leases without a thread for each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, Generic

from starlette.requests import Request

from pool.errors import PoolError
from pool.events.feed import Feed
from pool.http.shutdown import Shutdown
from pool.http.workers import Threads
from pool.logs import get_logger
from pool.model import LeaseRecord, RequestRecord
from pool.requests.results import Record, Result, read_lease, read_request
from pool.store import Store

log = get_logger(__name__)

#: Results that are read before the first callers are answered.
AT_ONCE: Final = 50


class Waiting:
    """Long polls for the end of a request or a lease. Belongs to the event loop.

    The feed wakes a long poll at each event of its request or lease; those that have ended are then
    read in one call on a worker thread.
    """

    def __init__(self, store: Store, feed: Feed, threads: Threads, shutdown: Shutdown) -> None:
        self._feed = feed
        self._threads = threads
        self._shutdown = shutdown
        self._requests = _Results(partial(read_request, store), store.requests_at_end, threads)
        self._leases = _Results(partial(read_lease, store), store.leases_at_end, threads)
        #: The number of long polls.
        self.count = 0

    async def request(
        self, request_id: str, *, seconds: float, caller: Request
    ) -> Result[RequestRecord]:
        """Return the request once it has ended, or its present state after ``seconds``, when the
        caller disconnects, or when the server stops.

        :raises UnknownRequest: there is none.
        """
        return await self._until_over(
            self._requests, request_id, seconds, caller, request=request_id
        )

    async def lease(self, lease_id: str, *, seconds: float, caller: Request) -> Result[LeaseRecord]:
        """As :meth:`request`, until the lease's task has jobs, or cannot get any.

        :raises UnknownLease: there is none.
        """
        return await self._until_over(self._leases, lease_id, seconds, caller, lease=lease_id)

    async def _until_over(
        self, results: _Results[Record], name: str, seconds: float, caller: Request, **of: str
    ) -> Result[Record]:
        first: Result[Record] | None = None

        async def check() -> Result[Record] | None:
            nonlocal first
            if first is not None:
                return await results.ended(name)
            first = await self._threads(results.read, name)
            return first if first.over else None

        self.count += 1
        try:
            async with self._shutdown.watching(caller) as connection:
                over = await self._feed.wait_for_async(check, seconds, stop=connection.stop, **of)
                if connection.gone.done():
                    over = over or first
        finally:
            self.count -= 1
        return await self._threads(results.read, name) if over is None else over


class _Results(Generic[Record]):
    """Reads results: one by one, or in one batch for all coroutines that ask in the same round of
    the event loop."""

    def __init__(
        self,
        read: Callable[[str], Result[Record]],
        at_end: Callable[[Collection[str]], Collection[str]],
        threads: Threads,
    ) -> None:
        self.read = read
        self._at_end = at_end
        self._threads = threads
        self._asked: dict[str, asyncio.Future[Result[Record] | None]] = {}
        self._task: asyncio.Task[None] | None = None

    async def ended(self, name: str) -> Result[Record] | None:
        """Return the result of that name if it has ended, and None otherwise."""
        if not self._asked:
            self._task = asyncio.create_task(self._answer())
        if name not in self._asked:
            self._asked[name] = asyncio.get_running_loop().create_future()
        # Shielded: others may wait for the same.
        return await asyncio.shield(self._asked[name])

    async def _answer(self) -> None:
        asked, self._asked = self._asked, {}
        names: Sequence[str] = tuple(asked)
        try:
            while names:
                results, names = await self._threads(self._read_ended, names)
                for name, view in results.items():
                    asked[name].set_result(view)
        except PoolError as error:
            # The long polls ask again a little later.
            log.warning("long polls not answered yet", why=str(error))
        finally:
            for future in asked.values():
                if not future.done():
                    future.set_result(None)

    def _read_ended(self, names: Sequence[str]) -> tuple[dict[str, Result[Record]], list[str]]:
        """Return the first few that have ended, and the names of the others."""
        ended = list(self._at_end(names))
        results = {}
        for name in ended[:AT_ONCE]:
            with suppress(PoolError):
                results[name] = self.read(name)
        return results, ended[AT_ONCE:]
