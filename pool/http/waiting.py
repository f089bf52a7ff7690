"""Long polls: waiting for the ends of requests and leases, without a thread for each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, Generic, TypeVar

from starlette.requests import Request

from pool.errors import PoolError
from pool.events.feed import Feed
from pool.http.shutdown import Shutdown
from pool.http.views import LeaseView, RequestView, read_lease, read_request
from pool.http.workers import Workers
from pool.logs import get_logger
from pool.store import Store

log = get_logger(__name__)

View = TypeVar("View", RequestView, LeaseView)
#: Done when the caller has closed the connection.
Gone = asyncio.Future[None]

#: Views that are read before the first of their callers are answered.
AT_ONCE: Final = 50


@asynccontextmanager
async def noticing(request: Request) -> AsyncIterator[Gone]:
    """Yield a future that is done when the caller has gone, once its body has been read."""
    gone = asyncio.ensure_future(_disconnect(request))
    try:
        yield gone
    finally:
        gone.cancel()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Waiting:
    """Has answers wait for the end of a request or a lease. For the event loop alone.

    The feed wakes those whose request or lease had an event; what has ended is then read on one
    thread for all of them.
    """

    def __init__(self, store: Store, feed: Feed, workers: Workers, shutdown: Shutdown) -> None:
        self._feed = feed
        self._workers = workers
        self._shutdown = shutdown
        self._read_request = partial(read_request, store)
        self._read_lease = partial(read_lease, store)
        self._ended_request = _Ended(store.requests_at_end, self._read_request, workers)
        self._ended_lease = _Ended(store.leases_at_end, self._read_lease, workers)
        #: How many wait now.
        self.count = 0

    async def request(self, request_id: str, *, seconds: float, caller: Request) -> RequestView:
        """Return the request once nothing more will happen to it, or as it is after ``seconds``,
        when the caller has gone, or when the server is about to stop.

        :raises UnknownRequest: there is none.
        """
        return await self._until_over(
            request_id, self._read_request, self._ended_request, seconds, caller, request=request_id
        )

    async def lease(self, lease_id: str, *, seconds: float, caller: Request) -> LeaseView:
        """As :meth:`request`, until the jobs of the lease's task exist, or never will.

        :raises UnknownLease: there is none.
        """
        return await self._until_over(
            lease_id, self._read_lease, self._ended_lease, seconds, caller, lease=lease_id
        )

    async def _until_over(
        self,
        name: str,
        read: Callable[[str], View],
        ended: _Ended[View],
        seconds: float,
        caller: Request,
        **of: str,
    ) -> View:
        view = await self._workers.store(read, name)
        if view.over:
            return view
        self.count += 1
        try:
            async with noticing(caller) as gone:
                with self._shutdown.or_gone(gone) as stop:
                    over = await self._feed.wait_for_async(
                        partial(ended, name), seconds, stop=stop, **of
                    )
                if over is not None or gone.done():
                    return over or view
        finally:
            self.count -= 1
        return await self._workers.store(read, name)


class _Ended(Generic[View]):
    """Reads what has ended, once for all coroutines that ask in the same turn of the event loop."""

    def __init__(
        self,
        at_end: Callable[[Collection[str]], Collection[str]],
        read: Callable[[str], View],
        workers: Workers,
    ) -> None:
        self._at_end = at_end
        self._read: Callable[[str], View] = read
        self._workers = workers
        self._asked: dict[str, asyncio.Future[View | None]] = {}
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, name: str) -> View | None:
        """Return what there is of that name if it has ended, and None otherwise."""
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
                views, names = await self._workers.store(self._read_ended, names)
                for name, view in views.items():
                    asked[name].set_result(view)
        except PoolError as error:
            # They ask again a little later.
            log.warning("ends not read", why=str(error))
        finally:
            for future in asked.values():
                if not future.done():
                    future.set_result(None)

    def _read_ended(self, names: Sequence[str]) -> tuple[dict[str, View | None], list[str]]:
        """Return the first few that have ended, and the names of the others."""
        ended = list(self._at_end(names))
        return {name: self._read_one(name) for name in ended[:AT_ONCE]}, ended[AT_ONCE:]

    def _read_one(self, name: str) -> View | None:
        try:
            return self._read(name)
        except PoolError:
            return None
