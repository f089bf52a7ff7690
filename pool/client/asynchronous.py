"""The pool of a daemon elsewhere, for asyncio: the same names, with ``await`` before them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Collection, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pool.client.answers import SeenLease, SeenRequest
from pool.client.body import body_of
from pool.client.events import Following
from pool.client.pool import PATIENCE, TIMEOUT
from pool.client.retries import Retries
from pool.client.talks import Talks, fields_of
from pool.client.wire import AsyncWire, Sleep, find_token
from pool.clock import Clock, SystemClock
from pool.cvat.records import Progress, Upload
from pool.model import Event, Job, Outcome, RequestState, RequestWarning
from pool.requests.source import Files, build_upload

if TYPE_CHECKING:
    import httpx

    from pool.model import Status


class AsyncRemotePool:
    """The pool of the daemon at ``url``, for asyncio; see :class:`pool.RemotePool`, whose
    parameters, methods and errors it has.

    One belongs to one event loop; any number of its tasks may use it at the same time.
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
        clock = clock or SystemClock()
        self._wire = AsyncWire(
            url, token=find_token(token), timeout=timeout, sleep=sleep, client=client
        )
        retries = Retries(patience=patience, clock=clock, rng=rng or random.Random())
        self._talks = Talks(retries, clock=clock)

    def __repr__(self) -> str:
        return f"AsyncRemotePool({self.url!r})"

    @property
    def url(self) -> str:
        """The daemon's address."""
        return self._wire.address

    # --- Life -----------------------------------------------------------------------------------

    async def close(self) -> None:
        """Close the connections; closing twice does nothing."""
        await self._wire.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    # --- Handing out ------------------------------------------------------------------------------

    async def acquire(
        self,
        template: str,
        *,
        timeout: float | None = None,
        idempotency_key: str | None = None,
        ttl: float | None = None,
    ) -> AsyncLease:
        """A task for you alone; see :meth:`pool.RemotePool.acquire`."""
        talk = self._talks.acquire(template, timeout=timeout, ttl=ttl, key=idempotency_key)
        return self._lease(await self._wire.run(talk))

    async def release(self, lease: AsyncLease | str) -> None:
        """Give an untouched task back; see :meth:`pool.TaskPool.release`."""
        await self._wire.run(self._talks.release(lease if isinstance(lease, str) else lease.id))

    async def submit(
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
    ) -> AsyncRequest:
        """Put data into a task of the pool; see :meth:`pool.RemotePool.submit`.

        Files are read on other threads; ``progress`` is called on the loop.
        """
        upload = build_upload(files, share=share, urls=urls, cloud=cloud, params=params)
        fields = fields_of(upload, template=template, name=name, assignee=assignee)
        return await self._send(upload, fields, progress, key=idempotency_key, timeout=timeout)

    async def upload_into(
        self,
        lease: AsyncLease,
        files: Files | None = None,
        *,
        share: Sequence[str] | None = None,
        urls: Sequence[str] | None = None,
        cloud: tuple[int, Sequence[str]] | None = None,
        name: str | None = None,
        assignee: int | None = None,
        params: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> AsyncRequest:
        """What :meth:`AsyncLease.upload` does."""
        upload = build_upload(files, share=share, urls=urls, cloud=cloud, params=params)
        fields = fields_of(
            upload, template=lease.template, lease_id=lease.id, name=name, assignee=assignee
        )
        return await self._send(upload, fields, progress)

    # --- Requests -----------------------------------------------------------------------------

    async def request(self, request_id: str) -> AsyncRequest:
        """A request by its id, from whichever process it came.

        :raises UnknownRequest: there is none.
        """
        return AsyncRequest(self, await self.read_request(request_id))

    async def lease(self, lease_id: str) -> AsyncLease:
        """A lease by its id, from whichever process it came.

        :raises UnknownLease: there is none, or it never got a task.
        """
        return self._lease(await self._wire.run(self._talks.lease(lease_id)))

    async def read_request(self, request_id: str) -> SeenRequest:
        """A request as the daemon tells of it now.

        :raises UnknownRequest: there is none.
        """
        return await self._wire.run(self._talks.request(request_id))

    async def end_of_request(self, request_id: str, timeout: float | None) -> SeenRequest:
        """What :meth:`AsyncRequest.jobs` waits for."""
        return await self._wire.run(self._talks.end_of_request(request_id, timeout))

    async def jobs_of_lease(self, lease: AsyncLease, timeout: float | None) -> list[Job]:
        """What :meth:`AsyncLease.jobs` does."""
        return await self._wire.run(self._talks.jobs_of_lease(lease.id, timeout))

    async def cancel(self, request: AsyncRequest) -> bool:
        """What :meth:`AsyncRequest.cancel` does."""
        return await self._wire.run(self._talks.cancel(request.id))

    # --- Control --------------------------------------------------------------------------------

    async def pause(self, template: str) -> None:
        """What :meth:`pool.TaskPool.pause` does."""
        await self._wire.run(self._talks.control(template, "pause"))

    async def resume(self, template: str | None = None) -> None:
        """What :meth:`pool.TaskPool.resume` does."""
        await self._wire.run(self._talks.control(template, "resume"))

    async def drain(self, template: str) -> int:
        """What :meth:`pool.TaskPool.drain` does."""
        return await self._wire.run(self._talks.drain(template))

    async def prewarm(self, template: str, count: int, *, duration: float = 900.0) -> None:
        """What :meth:`pool.TaskPool.prewarm` does."""
        await self._wire.run(self._talks.prewarm(template, count, duration))

    async def status(self) -> Status:
        """Levels, demand and troubles of all templates, as the daemon sees them."""
        return await self._wire.run(self._talks.status())

    # --- Events ---------------------------------------------------------------------------------

    async def events(
        self,
        *,
        kinds: Collection[str] | None = None,
        template: str | None = None,
        after: int | None = None,
    ) -> AsyncGenerator[Event, None]:
        """The events from when the iteration begins, or those after the one with the id
        ``after``; see :meth:`pool.RemotePool.events`. ::

            async for event in pool.events(kinds=["request.ready"]): ...
        """
        following = Following(kinds=kinds, template=template, after=after)
        while True:
            response = await self._wire.open(self._talks.listen(following))
            try:
                async with aclosing(self._wire.pieces(response)) as pieces:
                    async for data in pieces:
                        for event in following.feed(data):
                            yield event
            finally:
                await response.aclose()
            await self._wire.run(self._talks.rest())

    # --- Inside ---------------------------------------------------------------------------------

    def _lease(self, seen: SeenLease) -> AsyncLease:
        return AsyncLease(**seen.held(), _pool=self)

    async def _send(
        self,
        upload: Upload,
        fields: Mapping[str, Any],
        progress: Progress | None,
        *,
        key: str | None = None,
        timeout: float | None = None,
    ) -> AsyncRequest:
        with body_of(upload, fields, progress) as body:
            talk = self._talks.submit(fields, upload, body, key=key, timeout=timeout)
            return AsyncRequest(self, await self._wire.run(talk))


@dataclass(frozen=True, kw_only=True)
class AsyncLease:
    """One task, handed out to you alone; see :class:`pool.Lease`."""

    id: str
    task_id: int
    name: str
    url: str
    template: str
    outcome: Outcome
    expires_at: datetime
    _pool: AsyncRemotePool = field(repr=False, compare=False)

    async def upload(
        self,
        files: Files | None = None,
        *,
        share: Sequence[str] | None = None,
        urls: Sequence[str] | None = None,
        cloud: tuple[int, Sequence[str]] | None = None,
        name: str | None = None,
        assignee: int | None = None,
        params: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> AsyncRequest:
        """Send the data into this task; see :meth:`pool.Lease.upload`."""
        return await self._pool.upload_into(
            self,
            files,
            share=share,
            urls=urls,
            cloud=cloud,
            name=name,
            assignee=assignee,
            params=params,
            progress=progress,
        )

    async def jobs(self, timeout: float | None = None) -> list[Job]:
        """The jobs of the task, as soon as they exist; see :meth:`pool.Lease.jobs`."""
        return await self._pool.jobs_of_lease(self, timeout)

    async def release(self) -> None:
        """Give the untouched task back to the pool; see :meth:`pool.Lease.release`."""
        await self._pool.release(self)


class AsyncRequest:
    """Data on its way to job ids; see :class:`pool.Request`."""

    def __init__(self, pool: AsyncRemotePool, record: SeenRequest) -> None:
        self._pool = pool
        self._record = record

    @property
    def id(self) -> str:
        """The request's own id; :meth:`AsyncRemotePool.request` finds it again."""
        return self._record.id

    @property
    def template(self) -> str:
        """The template that its task is made by."""
        return self._record.template

    @property
    def task_id(self) -> int | None:
        """CVAT's id of its task, known at once; None only while it waits for a task."""
        return self._record.task_id

    @property
    def url(self) -> str | None:
        """The page of its task."""
        return self._record.url

    @property
    def outcome(self) -> Outcome | None:
        """How its task was found: ``hit``, ``wait`` or ``cold``."""
        return self._record.outcome

    @property
    def state(self) -> Coroutine[Any, Any, RequestState]:
        """Where it stands now, to be awaited: ``await request.state``."""
        return self._state()

    @property
    def warnings(self) -> Coroutine[Any, Any, tuple[RequestWarning, ...]]:
        """What it has to do without, to be awaited: ``await request.warnings``; see
        :attr:`pool.Request.warnings`."""
        return self._warnings()

    @property
    def record(self) -> SeenRequest:
        """What the daemon last told of it."""
        return self._record

    async def refresh(self) -> SeenRequest:
        """Ask the daemon for it again, unless it is finished."""
        if not self._record.state.finished:
            self._record = await self._pool.read_request(self.id)
        return self._record

    async def jobs(self, timeout: float | None = None) -> list[Job]:
        """Its jobs, as soon as the server has them; see :meth:`pool.Request.jobs`."""
        if self._record.jobs is None:
            self._record = await self._pool.end_of_request(self.id, timeout)
        return list(self._record.jobs or ())

    async def cancel(self) -> bool:
        """Cancel it while it is still queued; False when it is too late for that."""
        return await self._pool.cancel(self)

    async def _warnings(self) -> tuple[RequestWarning, ...]:
        self._record = await self._pool.read_request(self.id)
        return self._record.warnings

    async def _state(self) -> RequestState:
        return (await self.refresh()).state

    def __repr__(self) -> str:
        record = self._record
        return (
            f"AsyncRequest(id={record.id!r}, task_id={record.task_id}, "
            f"state={record.state.value!r})"
        )
