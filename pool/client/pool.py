"""The pool of a daemon elsewhere, for threads: the asynchronous one on a loop of its own.

The loop runs on one background thread for each pool, begun by the first call and ended by
``close``. A call hands its coroutine to it and waits; a call that is interrupted, by Control-C
say, cancels it.
"""

from __future__ import annotations

import asyncio
import random
import threading
import weakref
from collections.abc import Awaitable, Callable, Collection, Iterator
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from pool.client.asynchronous import (
    PATIENCE,
    TIMEOUT,
    AsyncLease,
    AsyncRemotePool,
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
from pool.model import Event, Job, RequestRecord
from pool.status import Status

if TYPE_CHECKING:
    import httpx

    from pool.status import Status

T = TypeVar("T")

log = get_logger(__name__)


class RemotePool:
    """The pool of the daemon at ``url``: the methods of :class:`pool.TaskPool`, over HTTP.

    Parameters and errors are those of the same method there; besides, every call raises
    :class:`pool.PoolUnreachable` when no daemon answers. What differs is said here.

    ``token`` is by default the first one in ``POOL_API_TOKEN``. Every answer has to come within
    ``timeout`` seconds, beside what the call itself waits for. Calls that were lost, or refused
    for now, are made again for ``patience`` seconds; each bears an idempotency key, so that it is
    done once all the same, and a daemon that is restarted meanwhile is not noticed. One that has
    never answered is given up after five seconds.

    ``client`` is for certificates or a proxy of your own; it is closed with the pool. All methods
    are thread-safe. A process that was forked off has connections of its own. Close the pool, or
    use it as a context manager: the daemon goes on with what was given to it.

    :raises ConfigError: the address or the token cannot be used.
    :raises InputError: ``timeout``, ``patience`` or ``client`` cannot be used.
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
        """Do nothing, so that code for a TaskPool works: there is nothing to begin here."""

    def close(self) -> None:
        """Close the connections, and end the calls of other threads; closing twice does
        nothing."""
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
    ) -> Lease:
        """As :meth:`pool.TaskPool.acquire`."""
        lease = self._call(
            self._remote.acquire,
            template,
            timeout=timeout,
            idempotency_key=idempotency_key,
            ttl=ttl,
        )
        return self._lease(lease)

    def lease(self, lease_id: str) -> Lease:
        """As :meth:`pool.TaskPool.lease`."""
        return self._lease(self._call(self._remote.lease, lease_id))

    def release(self, lease: Lease | str) -> None:
        """As :meth:`pool.TaskPool.release`."""
        self._call(self._remote.release, lease if isinstance(lease, str) else lease.id)

    def jobs_of_lease(self, lease: Lease, timeout: float | None) -> list[Job]:
        """As :meth:`pool.Lease.jobs`."""
        return self._call(self._remote.jobs_of_lease, lease, timeout)

    # --- Requests ---------------------------------------------------------------------------------

    def submit(
        self,
        template: str,
        files: Files | None = None,
        *,
        name: str | None = None,
        assignee: int | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
        progress: Progress | None = None,
        **data: Unpack[Data],
    ) -> Request:
        """As :meth:`pool.TaskPool.submit`; return as soon as the daemon has all data on disk.

        The daemon waits for a task: ``timeout`` is for how many seconds a daemon is tried that
        does not answer or that refuses for now. ``progress`` is called on another thread.
        ``Request.jobs`` waits for the result, and raises what CVAT says.
        """
        sent = self._call(
            self._remote.send,
            build_upload(files, **data),
            template=template,
            name=name,
            assignee=assignee,
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
        assignee: int | None,
        progress: Progress | None,
    ) -> Request:
        """As :meth:`pool.Lease.upload`, with checked data."""
        sent = self._call(
            self._remote.send,
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

    def read_request(self, request_id: str) -> RequestRecord:
        """Return a request as the daemon describes it now.

        :raises UnknownRequest: there is none.
        """
        return self._call(self._remote.read_request, request_id)

    def jobs_of_request(self, request: Request, timeout: float | None) -> list[Job]:
        """As :meth:`pool.Request.jobs`."""
        record = request.record
        if not isinstance(record, RemoteRequest) or record.jobs is None:
            record = self._call(self._remote.wait_for_request, request.id, timeout)
            request.saw(record)
        return list(record.jobs or ())

    def cancel(self, request: Request) -> bool:
        """As :meth:`pool.Request.cancel`."""
        return self._call(self._remote.cancel, request)

    def url_of(self, record: RequestRecord) -> str | None:
        """As :meth:`pool.TaskPool.url_of`."""
        return record.url if isinstance(record, RemoteRequest) else None

    # --- Control ----------------------------------------------------------------------------------

    def pause(self, template: str) -> None:
        """As :meth:`pool.TaskPool.pause`."""
        self._call(self._remote.pause, template)

    def resume(self, template: str | None = None) -> None:
        """As :meth:`pool.TaskPool.resume`."""
        self._call(self._remote.resume, template)

    def drain(self, template: str) -> int:
        """As :meth:`pool.TaskPool.drain`; what a lost try has retired is not counted."""
        return self._call(self._remote.drain, template)

    def prewarm(self, template: str, count: int, *, duration: float = 900.0) -> None:
        """As :meth:`pool.TaskPool.prewarm`."""
        self._call(self._remote.prewarm, template, count, duration=duration)

    def status(self) -> Status:
        """As :meth:`pool.TaskPool.status`."""
        return self._call(self._remote.status)

    # --- Events -----------------------------------------------------------------------------------

    def events(
        self,
        *,
        kinds: Collection[str] | None = None,
        template: str | None = None,
        after: int | None = None,
    ) -> Iterator[Event]:
        """Return the events from now on, or those after the one with the id ``after``, as they
        happen and without an end. ``kinds`` are some of :data:`pool.model.KINDS`, all by default.

        :raises InputError: there is no such kind.
        :raises PoolUnreachable: no daemon answers; also later, when one is gone for long:
            iterating again then goes on where this ended.
        """
        return self._listen(kinds, template, after)

    def subscribe(
        self,
        callback: Callable[[Event], None],
        kinds: Collection[str] | None = None,
        *,
        template: str | None = None,
    ) -> Callable[[], None]:
        """As :meth:`pool.TaskPool.subscribe`. No event is missed when the daemon is gone for a
        while, however long."""
        events = self._listen(kinds, template, None)
        threading.Thread(
            target=_call_back, args=(events, callback), name="callback", daemon=True
        ).start()
        return events.stop

    # --- Inside -----------------------------------------------------------------------------------

    @property
    def _remote(self) -> AsyncRemotePool:
        """The asynchronous pool of this process.

        :raises PoolError: the process was forked off one that had given a client of its own.
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

    def _call(self, method: Callable[..., Awaitable[T]], *arguments: Any, **options: Any) -> T:
        """Await a method of the asynchronous pool on the loop."""
        return result_of(self._loop.begin(partial(method, *arguments, **options)))

    def _listen(
        self, kinds: Collection[str] | None, template: str | None, after: int | None
    ) -> _Events:
        stream = self._remote.event_stream(kinds=kinds, template=template, after=after)
        self._call(stream.open)
        return _Events(self._loop, stream)

    def _lease(self, lease: AsyncLease) -> Lease:
        return Lease(
            id=lease.id,
            task_id=lease.task_id,
            name=lease.name,
            url=lease.url,
            template=lease.template,
            outcome=lease.outcome,
            expires_at=lease.expires_at,
            _pool=self,
        )


class _Events(Iterator[Event]):
    """The events of a stream, until it is stopped or the pool is closed."""

    def __init__(self, loop: BackgroundLoop, stream: EventStream) -> None:
        self._loop = loop
        self._stream = stream
        self._next: Future[Event] | None = None
        self.stopped = False
        #: Closes the connection; called when nothing refers to this any more.
        self.close = weakref.finalize(self, loop.begin_if_open, stream.close)

    def __next__(self) -> Event:
        try:
            self._next = self._loop.begin(self._stream.next)
            if self.stopped:  # since before there was something to cancel
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
            log.error("events not received any more", why=str(error))
            break
    events.close()


def _off_the_loop(progress: Progress | None) -> AsyncProgress | None:
    """Call ``progress`` on another thread: it may call the pool, or take its time."""
    if progress is None:
        return None

    async def shown(sent: int, total: int) -> None:
        await asyncio.to_thread(progress, sent, total)

    return shown
