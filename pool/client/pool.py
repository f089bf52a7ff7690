"""RemotePool: the pool of a daemon over HTTP, for threads.

It runs an :class:`AsyncRemotePool` on an event loop of its own, on a background thread that the
first call starts and ``close`` ends. A call that is interrupted, by Control-C say, is cancelled
there.
"""

from __future__ import annotations

import asyncio
import random
import threading
import weakref
from collections.abc import Awaitable, Callable, Collection, Iterator
from concurrent.futures import Future
from datetime import datetime
from functools import partial, wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Self, TypeVar, Unpack

from pool.client.asynchronous import (
    PATIENCE,
    TIMEOUT,
    AsyncLease,
    AsyncRemotePool,
    Query,
    which_requests,
)
from pool.client.background import BackgroundLoop, result_of
from pool.client.events import EventStream
from pool.client.parse import RemoteRequest
from pool.client.transport import AsyncProgress, Sleep
from pool.clock import Clock
from pool.config.source import Data, Files, Progress, Upload, build_upload
from pool.errors import PoolClosed, PoolError, PoolUnreachable
from pool.handles import Lease, Request
from pool.logs import get_logger
from pool.model import Assignee, Event, Job, RequestRecord

if TYPE_CHECKING:
    import httpx


T = TypeVar("T")
P = ParamSpec("P")

log = get_logger(__name__)


def _awaited(
    method: Callable[Concatenate[AsyncRemotePool, P], Awaitable[T]],
) -> Callable[Concatenate[RemotePool, P], T]:
    """Return a method of the asynchronous pool as one that waits for its result."""

    @wraps(method)
    def call(self: RemotePool, /, *arguments: P.args, **options: P.kwargs) -> T:
        return self._call(method, *arguments, **options)

    return call


class RemotePool:
    """The pool of the daemon at ``url``: the methods of :class:`pool.TaskPool`, over HTTP.

    Parameters and errors are those of the same method there, except as noted here; in addition,
    every call raises :class:`pool.PoolUnreachable` when no daemon answers.

    ``token`` is by default the first one in ``POOL_API_TOKEN``. Every answer must arrive within
    ``timeout`` seconds, beside what the call itself waits for. Lost calls and temporary refusals
    are retried for ``patience`` seconds, so that a restart of the daemon is not noticed; an
    idempotency key makes each call take effect once. A daemon that has never answered is given up
    after five seconds.

    ``client`` is for certificates or a proxy of your own; it is closed with the pool. All methods
    are thread-safe. A forked process opens connections of its own. Close the pool, or use it as a
    context manager; the daemon continues with the requests that it was given.

    :raises ConfigError: the address or the token is invalid.
    :raises InputError: ``timeout``, ``patience`` or ``client`` is invalid.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout: float = TIMEOUT,
        patience: float = PATIENCE,
        client: httpx.AsyncClient | None = None,
        clock: Clock | None = None,
        sleep: Sleep = asyncio.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self._open = partial(
            AsyncRemotePool,
            url,
            token=token,
            timeout=timeout,
            patience=patience,
            client=client,
            clock=clock,
            sleep=sleep,
            rng=rng,
        )
        self._client = client
        self._guard = threading.Lock()
        self._pool = self._open()
        self._loop = BackgroundLoop(self._disconnect)

    def __repr__(self) -> str:
        return f"RemotePool({self.url!r})"

    @property
    def url(self) -> str:
        """The daemon's address."""
        return self._pool.url

    def start(self) -> None:
        """Do nothing: here for code that is written for a TaskPool."""

    def close(self) -> None:
        """Close the connections and end the calls of other threads. Closing twice does nothing."""
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- Leases -----------------------------------------------------------------------------------

    def acquire(
        self,
        template: str,
        *,
        timeout: float | None = None,
        idempotency_key: str | None = None,
        ttl: float | None = None,
        name: str | None = None,
    ) -> Lease:
        """As :meth:`pool.TaskPool.acquire`."""
        lease = self._call(
            AsyncRemotePool.acquire,
            template,
            timeout=timeout,
            idempotency_key=idempotency_key,
            ttl=ttl,
            name=name,
        )
        return self._lease(lease)

    def lease(self, lease_id: str) -> Lease:
        """As :meth:`pool.TaskPool.lease`."""
        return self._lease(self._call(AsyncRemotePool.lease, lease_id))

    def leases(self, template: str | None = None) -> list[Lease]:
        """As :meth:`pool.TaskPool.leases`."""
        return [self._lease(each) for each in self._call(AsyncRemotePool.leases, template)]

    release = _awaited(AsyncRemotePool.release)
    jobs_of_lease = _awaited(AsyncRemotePool.jobs_of_lease)

    # --- Requests ---------------------------------------------------------------------------------

    def submit(
        self,
        template: str,
        files: Files | None = None,
        *,
        name: str | None = None,
        assignee: Assignee | None = None,
        stream: str | None = None,
        priority: str | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
        progress: Progress | None = None,
        **data: Unpack[Data],
    ) -> Request:
        """As :meth:`pool.TaskPool.submit`, but return as soon as the daemon has all data on disk.

        It is the daemon that waits for a task: ``timeout`` is the number of seconds for which lost
        calls and temporary refusals are retried. ``progress`` is called on another thread.
        ``Request.jobs`` waits for the result, and raises the errors of CVAT.
        """
        sent = self._call(
            AsyncRemotePool.send,
            build_upload(files, **data),
            template=template,
            name=name,
            assignee=assignee,
            stream=stream,
            priority=priority,
            idempotency_key=idempotency_key,
            timeout=timeout,
            progress=_off_the_loop(progress),
        )
        return Request(self, sent.record)

    def upload_into(
        self,
        lease: Lease,
        upload: Upload,
        *,
        name: str | None,
        assignee: Assignee | None,
        progress: Progress | None,
    ) -> Request:
        """As :meth:`pool.Lease.upload`, with checked data."""
        sent = self._call(
            AsyncRemotePool.send,
            upload,
            template=lease.template,
            lease_id=lease.id,
            name=name,
            assignee=assignee,
            progress=_off_the_loop(progress),
        )
        return Request(self, sent.record)

    def request(self, request_id: str) -> Request:
        """As :meth:`pool.TaskPool.request`."""
        return Request(self, self.read_request(request_id))

    def requests(
        self,
        states: Collection[str] = (),
        *,
        template: str | None = None,
        text: str | None = None,
        since: datetime | None = None,
        tenant: str | None = None,
    ) -> Iterator[Request]:
        """As :meth:`pool.TaskPool.requests`."""
        return self._requests(which_requests(states, template, text, since, tenant))

    def _requests(self, which: Query) -> Iterator[Request]:
        cursor: str | None = None
        while True:
            page, cursor = self._call(AsyncRemotePool.request_page, which, cursor)
            yield from (Request(self, each) for each in page)
            if cursor is None:
                return

    read_request = _awaited(AsyncRemotePool.read_request)
    events_of = _awaited(AsyncRemotePool.events_of)
    wait_until_shown = _awaited(AsyncRemotePool.wait_until_shown)
    cancel = _awaited(AsyncRemotePool.cancel)

    def erase(self, request_id: str) -> Request:
        """As :meth:`pool.TaskPool.erase`."""
        return Request(self, self._call(AsyncRemotePool.erase, request_id).record)

    def jobs_of_request(self, request: Request, timeout: float | None) -> list[Job]:
        """As :meth:`pool.Request.jobs`."""
        record = request.record
        if not isinstance(record, RemoteRequest) or record.jobs is None:
            record = self._call(AsyncRemotePool.wait_for_request, request.id, timeout)
            request.saw(record)
        return list(record.jobs or ())

    def url_of(self, record: RequestRecord) -> str | None:
        """As :meth:`pool.TaskPool.url_of`."""
        return record.url if isinstance(record, RemoteRequest) else None

    # --- Control ----------------------------------------------------------------------------------

    pause = _awaited(AsyncRemotePool.pause)
    resume = _awaited(AsyncRemotePool.resume)
    drain = _awaited(AsyncRemotePool.drain)
    prewarm = _awaited(AsyncRemotePool.prewarm)
    streams = _awaited(AsyncRemotePool.streams)
    close_stream = _awaited(AsyncRemotePool.close_stream)
    status = _awaited(AsyncRemotePool.status)

    # --- Events -----------------------------------------------------------------------------------

    def events(
        self,
        *,
        kinds: Collection[str] | None = None,
        template: str | None = None,
        after: int | None = None,
    ) -> Iterator[Event]:
        """Iterate over the events as they happen, without an end: from now on, or after the event
        with the id ``after``. ``kinds`` are some of :data:`pool.model.KINDS`, by default all.

        :raises InputError: a kind does not exist.
        :raises PoolUnreachable: no daemon answers. This may come later, too, when a daemon is away
            for long; iterating again continues where this ended.
        """
        return self._listen(kinds, template, after)

    def subscribe(
        self,
        callback: Callable[[Event], None],
        kinds: Collection[str] | None = None,
        *,
        template: str | None = None,
    ) -> Callable[[], None]:
        """As :meth:`pool.TaskPool.subscribe`. No event is missed while the daemon is away, however
        long."""
        events = self._listen(kinds, template, None)
        threading.Thread(
            target=_call_back, args=(events, callback), name="callback", daemon=True
        ).start()
        return events.stop

    # --- Inside -----------------------------------------------------------------------------------

    @property
    def _remote(self) -> AsyncRemotePool:
        """The asynchronous pool of this process.

        :raises PoolError: the process was forked, and a ``client`` cannot be used in two processes.
        """
        with self._guard:
            if self._loop.forked:
                if self._client is not None:
                    raise PoolError("a forked process needs a RemotePool of its own")
                self._pool = self._open()
                self._loop = BackgroundLoop(self._disconnect)
            return self._pool

    async def _disconnect(self) -> None:
        await self._pool.close()
        if self._client is not None:
            await self._client.aclose()

    def _call(
        self,
        method: Callable[Concatenate[AsyncRemotePool, P], Awaitable[T]],
        *arguments: P.args,
        **options: P.kwargs,
    ) -> T:
        """Await a method of the asynchronous pool on the loop."""
        return self._result(partial(method, self._remote, *arguments, **options))

    def _result(self, call: Callable[[], Awaitable[T]]) -> T:
        return result_of(self._loop.begin(call))

    def _listen(
        self, kinds: Collection[str] | None, template: str | None, after: int | None
    ) -> _Events:
        stream = self._remote.event_stream(kinds=kinds, template=template, after=after)
        self._result(stream.open)
        return _Events(self._loop, stream)

    def _lease(self, lease: AsyncLease) -> Lease:
        return Lease(**{**vars(lease), "_pool": self})


class _Events(Iterator[Event]):
    """The events of a stream, until it is stopped or the pool is closed."""

    def __init__(self, loop: BackgroundLoop, stream: EventStream) -> None:
        self._loop = loop
        self._stream = stream
        self._next: Future[Event] | None = None
        self.stopped = False
        #: Closes the connection; also called when this is garbage-collected.
        self.close = weakref.finalize(self, loop.begin_if_open, stream.close)

    def __next__(self) -> Event:
        try:
            self._next = self._loop.begin(self._stream.next)
            if self.stopped:  # before there was a call to cancel
                self._next.cancel()
            event = result_of(self._next)
        except PoolClosed:
            self.stopped = True
        if self.stopped:
            raise StopIteration
        return event

    def stop(self) -> None:
        """End the iteration, from any thread."""
        self.stopped = True
        if self._next is not None:
            self._next.cancel()


def _call_back(events: _Events, callback: Callable[[Event], None]) -> None:
    while not events.stopped:
        try:
            for event in events:
                try:
                    callback(event)
                except Exception:
                    log.exception("callback failed", kind=event.kind, event_id=event.id)
        except PoolUnreachable as error:
            log.warning("events not received", why=str(error))
        except PoolError as error:
            log.error("subscription ended", why=str(error))
            break
    events.close()


def _off_the_loop(progress: Progress | None) -> AsyncProgress | None:
    """Call ``progress`` on another thread: it may call the pool, or block."""
    if progress is None:
        return None

    async def shown(sent: int, total: int) -> None:
        await asyncio.to_thread(progress, sent, total)

    return shown
