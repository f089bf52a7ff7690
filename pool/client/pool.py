"""The pool of a daemon elsewhere, as Python code uses it."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakSet

from pool.client.answers import SeenLease, SeenRequest
from pool.client.body import body_of
from pool.client.events import Following
from pool.client.listening import Listening
from pool.client.retries import Retries
from pool.client.talks import Talks, fields_of
from pool.client.wire import Wire, find_token
from pool.clock import Clock, SystemClock
from pool.cvat.records import Progress, Upload
from pool.handles import Lease, Request
from pool.model import Event, Job, RequestRecord
from pool.requests.source import Files, build_upload

if TYPE_CHECKING:
    import httpx

    from pool.model import Status

#: Seconds within which an answer has to come, beside what the call itself waits for.
TIMEOUT = 30.0
#: Seconds for which a daemon that does not answer any more, or asks to come again, is tried.
PATIENCE = 30.0


class RemotePool:
    """The pool of the daemon at ``url``; use it as a :class:`pool.TaskPool`.

    ``token`` is by default the first one in ``POOL_API_TOKEN``. Every answer has to come within
    ``timeout`` seconds, beside what the call itself waits for. Calls that were lost, or refused
    for now, are made again for ``patience`` seconds; each bears an idempotency key, so that it is
    done once all the same, and a daemon that is restarted meanwhile is not noticed. One that has
    never answered is given up after five seconds.

    ``client`` is for those who need certificates or a proxy of their own; it is not closed here.
    All methods are thread-safe. Close the pool, or use it as a context manager: the daemon goes
    on with what was given to it.

    :raises ConfigError: the address or the token cannot be used.
    :raises InputError: ``timeout`` or ``patience`` cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout: float = TIMEOUT,
        patience: float = PATIENCE,
        client: httpx.Client | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        clock = clock or SystemClock()
        self._wire = Wire(url, token=find_token(token), timeout=timeout, clock=clock, client=client)
        retries = Retries(patience=patience, clock=clock, rng=rng or random.Random())
        self._talks = Talks(retries, clock=clock)
        self._guard = threading.Lock()
        self._listenings: WeakSet[Listening] = WeakSet()

    def __repr__(self) -> str:
        return f"RemotePool({self.url!r})"

    @property
    def url(self) -> str:
        """The daemon's address."""
        return self._wire.address

    # --- Life -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Does nothing, so that code for a TaskPool works: there is nothing to begin here."""

    def close(self) -> None:
        """Close the connections; closing twice does nothing."""
        with self._guard:
            listenings = list(self._listenings)
        # Before their connections are closed, which would wake nobody who reads.
        for listening in listenings:
            listening.stop()
        self._wire.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # --- Handing out ------------------------------------------------------------------------------

    def acquire(
        self,
        template: str,
        *,
        timeout: float | None = None,
        idempotency_key: str | None = None,
        ttl: float | None = None,
    ) -> Lease:
        """A task for you alone; parameters and errors are those of :meth:`pool.TaskPool.acquire`.

        :raises PoolUnreachable: no daemon answers.
        """
        talk = self._talks.acquire(template, timeout=timeout, ttl=ttl, key=idempotency_key)
        return self._lease(self._wire.run(talk))

    def release(self, lease: Lease | str) -> None:
        """Give an untouched task back; errors are those of :meth:`pool.TaskPool.release`."""
        self._wire.run(self._talks.release(lease if isinstance(lease, str) else lease.id))

    def submit(
        self,
        template: str,
        files: Files | None = None,
        *,
        share: Sequence[str] | None = None,
        urls: Sequence[str] | None = None,
        cloud: tuple[int, Sequence[str]] | None = None,
        name: str | None = None,
        assignee: int | None = None,
        idempotency_key: str | None = None,
        params: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        progress: Progress | None = None,
    ) -> Request:
        """Put data into a task of the pool; returns as soon as the daemon has all of it on disk.

        Parameters are those of :meth:`pool.TaskPool.submit`, except that the daemon does the
        waiting for a task: ``timeout`` is for how many seconds a daemon is tried that does not
        answer or that refuses for now. What becomes of the data, ``Request.jobs`` tells.

        :raises InputError: the input cannot be used; nothing was done.
        :raises UnknownTemplate: the configuration has no such template.
        :raises IdempotencyConflict: the key was used before with other content.
        :raises PoolUnreachable: no daemon answers.
        """
        upload = build_upload(files, share=share, urls=urls, cloud=cloud, params=params)
        fields = fields_of(upload, template=template, name=name, assignee=assignee)
        return self._send(upload, fields, progress, key=idempotency_key, timeout=timeout)

    def upload_into(
        self,
        lease: Lease,
        files: Files | None = None,
        *,
        share: Sequence[str] | None = None,
        urls: Sequence[str] | None = None,
        cloud: tuple[int, Sequence[str]] | None = None,
        name: str | None = None,
        assignee: int | None = None,
        params: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> Request:
        """What :meth:`pool.Lease.upload` does."""
        upload = build_upload(files, share=share, urls=urls, cloud=cloud, params=params)
        fields = fields_of(
            upload, template=lease.template, lease_id=lease.id, name=name, assignee=assignee
        )
        return self._send(upload, fields, progress)

    # --- Requests -----------------------------------------------------------------------------

    def request(self, request_id: str) -> Request:
        """A request by its id, from whichever process it came.

        :raises UnknownRequest: there is none.
        """
        return Request(self, self.read_request(request_id))

    def lease(self, lease_id: str) -> Lease:
        """A lease by its id, from whichever process it came.

        :raises UnknownLease: there is none, or it never got a task.
        """
        return self._lease(self._wire.run(self._talks.lease(lease_id)))

    def read_request(self, request_id: str) -> RequestRecord:
        """A request as the daemon tells of it now.

        :raises UnknownRequest: there is none.
        """
        return self._wire.run(self._talks.request(request_id))

    def jobs_of_request(self, request: Request, timeout: float | None) -> list[Job]:
        """What :meth:`pool.Request.jobs` does."""
        seen = request.record
        if not isinstance(seen, SeenRequest) or seen.jobs is None:
            seen = self._wire.run(self._talks.end_of_request(request.id, timeout))
            request.saw(seen)
        return list(seen.jobs or ())

    def jobs_of_lease(self, lease: Lease, timeout: float | None) -> list[Job]:
        """What :meth:`pool.Lease.jobs` does."""
        return self._wire.run(self._talks.jobs_of_lease(lease.id, timeout))

    def cancel(self, request: Request) -> bool:
        """What :meth:`pool.Request.cancel` does."""
        return self._wire.run(self._talks.cancel(request.id))

    def url_of(self, record: RequestRecord) -> str | None:
        """The page of a request's task, once it has one."""
        return record.url if isinstance(record, SeenRequest) else None

    # --- Control --------------------------------------------------------------------------------

    def pause(self, template: str) -> None:
        """What :meth:`pool.TaskPool.pause` does."""
        self._wire.run(self._talks.control(template, "pause"))

    def resume(self, template: str | None = None) -> None:
        """What :meth:`pool.TaskPool.resume` does."""
        self._wire.run(self._talks.control(template, "resume"))

    def drain(self, template: str) -> int:
        """What :meth:`pool.TaskPool.drain` does."""
        return self._wire.run(self._talks.drain(template))

    def prewarm(self, template: str, count: int, *, duration: float = 900.0) -> None:
        """What :meth:`pool.TaskPool.prewarm` does."""
        self._wire.run(self._talks.prewarm(template, count, duration))

    def status(self) -> Status:
        """Levels, demand and troubles of all templates, as the daemon sees them."""
        return self._wire.run(self._talks.status())

    # --- Events ---------------------------------------------------------------------------------

    def events(
        self,
        *,
        kinds: Collection[str] | None = None,
        template: str | None = None,
        after: int | None = None,
    ) -> Iterator[Event]:
        """The events from now on, or those after the one with the id ``after``, without an end,
        as they happen. ``kinds`` are some of :data:`pool.model.KINDS`, all by default.

        :raises InputError: there is no such kind.
        :raises PoolUnreachable: no daemon answers; also later, when one is gone for long.
        """
        return iter(self._listen(kinds, template, after))

    def subscribe(
        self,
        callback: Callable[[Event], None],
        kinds: Collection[str] | None = None,
        *,
        template: str | None = None,
    ) -> Callable[[], None]:
        """Have ``callback`` called with each event from now on, in order and on a thread of its
        own; the answer ends that. As :meth:`pool.TaskPool.subscribe`.

        None is missed when the daemon is gone for a while, be it long.

        :raises PoolUnreachable: no daemon answers.
        """
        listening = self._listen(kinds, template, None)
        listening.call(callback)
        return listening.stop

    # --- Inside ---------------------------------------------------------------------------------

    def _listen(
        self, kinds: Collection[str] | None, template: str | None, after: int | None
    ) -> Listening:
        following = Following(kinds=kinds, template=template, after=after)
        listening = Listening(self._wire, self._talks, following)
        with self._guard:
            self._listenings.add(listening)
        return listening

    def _lease(self, seen: SeenLease) -> Lease:
        return Lease(**seen.held(), _pool=self)

    def _send(
        self,
        upload: Upload,
        fields: Mapping[str, Any],
        progress: Progress | None,
        *,
        key: str | None = None,
        timeout: float | None = None,
    ) -> Request:
        with body_of(upload, fields, progress) as body:
            talk = self._talks.submit(fields, upload, body, key=key, timeout=timeout)
            return Request(self, self._wire.run(talk))
