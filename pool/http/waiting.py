"""Reading requests and leases, and long polls that wait for their end without a thread each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, Generic, TypeVar

from starlette.requests import Request

from pool.errors import LeaseEnded, PoolError, UnknownLease, UnknownRequest
from pool.events.feed import Feed
from pool.handles import error_of
from pool.http.shutdown import Shutdown
from pool.http.workers import Threads
from pool.logs import get_logger
from pool.model import Job, LeaseRecord, LeaseState, RequestRecord, RequestState, TaskState
from pool.store import Store

log = get_logger(__name__)

Record = TypeVar("Record", bound=RequestRecord | LeaseRecord)
#: Done when the caller has closed the connection.
Gone = asyncio.Future[None]

#: Views that are read before the first callers are answered.
AT_ONCE: Final = 50
#: States of a task that will get no jobs.
_LOST: Final = (TaskState.FAILED, TaskState.RETIRED, TaskState.DELETING, TaskState.DELETED)


@dataclass(frozen=True, kw_only=True, slots=True)
class View(Generic[Record]):
    """A request or a lease, with its jobs once they exist, or the error why there will be none.

    ``over``: jobs and error are final.
    """

    record: Record
    jobs: Sequence[Job] = ()
    error: PoolError | None = None
    over: bool


def read_request(store: Store, request_id: str) -> View[RequestRecord]:
    """Return the present state of a request.

    :raises UnknownRequest: there is none.
    """
    record = store.request(request_id)
    if record is None:
        raise UnknownRequest(request_id[:100])
    return view_of(store, record)


def view_of(store: Store, record: RequestRecord) -> View[RequestRecord]:
    """Return the view of a row that was just read."""
    if record.state is RequestState.READY:
        jobs = store.jobs_of(record.pooled_id or "", request_id=record.id)
        return View(record=record, jobs=jobs, over=True)
    over = record.state.finished
    return View(record=record, error=error_of(record) if over else None, over=over)


def read_lease(store: Store, lease_id: str) -> View[LeaseRecord]:
    """Return the present state of a lease; it is over once its task has jobs, or cannot get any.

    :raises UnknownLease: there is none.
    """
    record = store.lease(lease_id)
    if record is None:
        raise UnknownLease(lease_id[:100])
    if record.state in (LeaseState.RELEASED, LeaseState.EXPIRED, LeaseState.ABANDONED):
        # Its task may belong to another caller by now.
        ended = LeaseEnded(f"lease {lease_id} is {record.state.value}")
        return View(record=record, error=ended, over=True)
    if record.state is LeaseState.USED and record.pooled_id is not None:
        if jobs := store.jobs_of(record.pooled_id):
            return View(record=record, jobs=jobs, over=True)
        task = store.task(record.pooled_id)
        if task is None or task.state in _LOST:
            error = PoolError(task.reason if task else "the task was deleted")
            return View(record=record, error=error, over=True)
    return View(record=record, over=False)


@asynccontextmanager
async def noticing(request: Request) -> AsyncIterator[Gone]:
    """Yield a future that is done when the caller disconnects; its body must have been read."""
    gone = asyncio.ensure_future(_disconnect(request))
    try:
        yield gone
    finally:
        gone.cancel()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Waiting:
    """Long polls for the end of a request or a lease. Belongs to the event loop.

    The feed wakes a long poll at each event of its request or lease; those that have ended are then
    read in one call on a worker thread.
    """

    def __init__(self, store: Store, feed: Feed, threads: Threads, shutdown: Shutdown) -> None:
        self._feed = feed
        self._threads = threads
        self._shutdown = shutdown
        self._requests = _Views(partial(read_request, store), store.requests_at_end, threads)
        self._leases = _Views(partial(read_lease, store), store.leases_at_end, threads)
        #: The number of long polls.
        self.count = 0

    async def request(
        self, request_id: str, *, seconds: float, caller: Request
    ) -> View[RequestRecord]:
        """Return the request once it has ended, or its present state after ``seconds``, when the
        caller disconnects, or when the server stops.

        :raises UnknownRequest: there is none.
        """
        return await self._until_over(
            self._requests, request_id, seconds, caller, request=request_id
        )

    async def lease(self, lease_id: str, *, seconds: float, caller: Request) -> View[LeaseRecord]:
        """As :meth:`request`, until the lease's task has jobs, or cannot get any.

        :raises UnknownLease: there is none.
        """
        return await self._until_over(self._leases, lease_id, seconds, caller, lease=lease_id)

    async def _until_over(
        self, views: _Views[Record], name: str, seconds: float, caller: Request, **of: str
    ) -> View[Record]:
        first: View[Record] | None = None

        async def check() -> View[Record] | None:
            nonlocal first
            if first is not None:
                return await views.ended(name)
            first = await self._threads(views.read, name)
            return first if first.over else None

        self.count += 1
        try:
            async with noticing(caller) as gone:
                with self._shutdown.or_gone(gone) as stop:
                    over = await self._feed.wait_for_async(check, seconds, stop=stop, **of)
                if gone.done():
                    over = over or first
        finally:
            self.count -= 1
        return await self._threads(views.read, name) if over is None else over


class _Views(Generic[Record]):
    """Reads views: one by one, or in one batch for all coroutines that ask in the same round of the
    event loop."""

    def __init__(
        self,
        read: Callable[[str], View[Record]],
        at_end: Callable[[Collection[str]], Collection[str]],
        threads: Threads,
    ) -> None:
        self.read = read
        self._at_end = at_end
        self._threads = threads
        self._asked: dict[str, asyncio.Future[View[Record] | None]] = {}
        self._task: asyncio.Task[None] | None = None

    async def ended(self, name: str) -> View[Record] | None:
        """Return the view of that name if it has ended, and None otherwise."""
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
                views, names = await self._threads(self._read_ended, names)
                for name, view in views.items():
                    asked[name].set_result(view)
        except PoolError as error:
            # The long polls ask again a little later.
            log.warning("ends not read", why=str(error))
        finally:
            for future in asked.values():
                if not future.done():
                    future.set_result(None)

    def _read_ended(self, names: Sequence[str]) -> tuple[dict[str, View[Record]], list[str]]:
        """Return the first few that have ended, and the names of the others."""
        ended = list(self._at_end(names))
        views = {}
        for name in ended[:AT_ONCE]:
            with suppress(PoolError):
                views[name] = self.read(name)
        return views, ended[AT_ONCE:]
