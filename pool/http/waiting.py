"""Waiting for requests and leases to come to an end, without a thread for each who waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TypeVar

from starlette.requests import Request

from pool.errors import PoolError
from pool.http.ending import Ending
from pool.http.views import LeaseView, RequestView, read_lease, read_request
from pool.http.watch import Watch
from pool.store import Store
from pool.tracking.tracker import Finished, Tracker

View = TypeVar("View", RequestView, LeaseView)
#: Who waits, by what they wait for. None stands for "look for yourself".
Waiters = dict[str, set[asyncio.Future[View | None]]]
#: Completed when the caller has closed the connection.
Gone = asyncio.Future[None]

#: Views that are read before the first of those who wait for them are told.
AT_ONCE: Final = 50


@asynccontextmanager
async def noticing(request: Request) -> AsyncIterator[Gone]:
    """Whether the caller has gone, once its body has been read."""
    gone = asyncio.ensure_future(_disconnect(request))
    try:
        yield gone
    finally:
        gone.cancel()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Waiting:
    """Those who wait for requests and leases.

    What this process finds to have ended is read by the tracker's thread, which knows first; what
    else ends, or others end, is found by looking at the store, every
    :data:`pool.http.watch.LOOK` seconds while anybody waits. It is read once for all who wait.
    """

    def __init__(self, store: Store, tracker: Tracker, ending: Ending) -> None:
        self._store = store
        self._ending = ending
        self._requests: Waiters[RequestView] = {}
        self._leases: Waiters[LeaseView] = {}
        #: Belongs to the thread that looks.
        self._seen: object = None
        self._watch = Watch("http-waiting", self._look, wanted=lambda: self.count > 0)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop_listening = tracker.listen(self._finished)
        ending.listen(self._end)

    async def request(
        self,
        request_id: str,
        read: Callable[[], Awaitable[RequestView]],
        *,
        seconds: float,
        gone: Gone,
    ) -> RequestView:
        """The request as soon as nothing more will happen to it; as it is after so many
        ``seconds``, or when the server is about to stop.

        ``read`` is what reads it. When the caller has gone, the answer is what was read last.
        """
        return await self._until(self._requests, request_id, read, seconds, gone)

    async def lease(
        self,
        lease_id: str,
        read: Callable[[], Awaitable[LeaseView]],
        *,
        seconds: float,
        gone: Gone,
    ) -> LeaseView:
        """As :meth:`request`, until the jobs of its task exist, or never will."""
        return await self._until(self._leases, lease_id, read, seconds, gone)

    @property
    def count(self) -> int:
        """How many wait now."""
        return sum(map(len, self._requests.values())) + sum(map(len, self._leases.values()))

    def close(self) -> None:
        """Look no more."""
        self._stop_listening()
        self._watch.close()

    # --- On the event loop ----------------------------------------------------------------------

    async def _until(
        self,
        waiters: Waiters[View],
        name: str,
        read: Callable[[], Awaitable[View]],
        seconds: float,
        gone: Gone,
    ) -> View:
        self._loop = loop = asyncio.get_running_loop()
        future: asyncio.Future[View | None] = loop.create_future()
        # Before it is read: what ends from now on is found by looking.
        waiters.setdefault(name, set()).add(future)
        try:
            view = await read()
            if view.over or gone.done() or self._ending.told:
                return view
            self._watch.begin()
            timer = loop.call_later(seconds, _tell, future, None)
            gone.add_done_callback(lambda _: _tell(future, None))
            try:
                told = await future
            finally:
                timer.cancel()
            if told is not None:
                return told
            return view if gone.done() else await read()
        finally:
            waiters[name].discard(future)
            if not waiters[name]:
                del waiters[name]

    def _settle(
        self, requests: Mapping[str, RequestView | None], leases: Mapping[str, LeaseView | None]
    ) -> None:
        _settle(self._requests, requests)
        _settle(self._leases, leases)

    def _stop_waiting(self) -> None:
        self._settle(dict.fromkeys(self._requests), dict.fromkeys(self._leases))

    # --- On other threads -----------------------------------------------------------------------

    def _finished(self, finished: Finished) -> None:
        request_id = finished.request_id
        if request_id is None:
            self._watch.wake()
        elif request_id in self._requests:
            self._call(self._settle, _read(self._store, read_request, [request_id]), {})

    def _end(self) -> None:
        self._call(self._stop_waiting)

    def _call(self, on_loop: Callable[..., None], *arguments: Any) -> None:
        if self._loop is not None:
            # An error means that the loop has ended, and everybody who waited with it.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(on_loop, *arguments)

    def _look(self) -> Callable[[], None]:
        token = self._store.change_token()
        if token == self._seen:
            return _nothing
        # After the token, so that nobody is missed who began to wait meanwhile.
        requests, leases = tuple(self._requests), tuple(self._leases)
        ended_requests = self._store.requests_at_end(requests) if requests else ()
        ended_leases = self._store.leases_at_end(leases) if leases else ()
        over = len(ended_requests) + len(ended_leases) > AT_ONCE
        self._seen = None if over else token
        request_views = _read(self._store, read_request, list(ended_requests)[:AT_ONCE])
        lease_views = _read(self._store, read_lease, list(ended_leases)[:AT_ONCE])

        def settle() -> None:
            self._settle(request_views, lease_views)
            if over:
                self._watch.wake()

        return settle


def _read(
    store: Store, read: Callable[[Store, str], View], names: Collection[str]
) -> dict[str, View | None]:
    """What ended, read for those who wait for it; who cannot be helped looks for themselves."""
    views: dict[str, View | None] = {}
    for name in names:
        try:
            views[name] = read(store, name)
        except PoolError:
            views[name] = None
    return views


def _settle(waiters: Waiters[View], views: Mapping[str, View | None]) -> None:
    for name, view in views.items():
        for future in waiters.get(name, ()):
            _tell(future, view)


def _tell(future: asyncio.Future[Any], what: Any) -> None:
    if not future.done():
        future.set_result(what)


def _nothing() -> None:
    """There is nothing to tell."""
