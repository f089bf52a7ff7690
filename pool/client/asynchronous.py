"""AsyncRemotePool: the pool of a daemon over HTTP, for asyncio."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias, TypeVar, Unpack
from urllib.parse import urlencode

from pool.client.events import EventStream
from pool.client.parse import (
    RemoteLease,
    RemoteRequest,
    parse_events,
    parse_lease,
    parse_leases,
    parse_request,
    parse_requests,
    parse_retired,
    parse_status,
    parse_streams,
)
from pool.client.transport import AsyncProgress, Call, Sleep, Transport, body_of
from pool.clock import Clock, SystemClock, rfc3339
from pool.config.arguments import (
    check_assignee,
    check_id,
    check_key,
    check_prewarm,
    check_priority,
    check_search,
    check_since,
    check_states,
    check_stream,
    check_task_name,
    check_template,
    check_tenant,
    check_timeout,
    check_ttl,
)
from pool.config.source import Data, Files, Upload, build_upload
from pool.errors import (
    LeaseEnded,
    TooLate,
    UnknownLease,
    UnknownRequest,
    UnknownStream,
    WaitTimeout,
)
from pool.handles import LeaseHandle, RequestHandle, error_of, shown_at
from pool.model import (
    Assignee,
    Event,
    Frame,
    Hidden,
    Job,
    LeaseState,
    RequestState,
    RequestWarning,
)
from pool.status import Status, StreamStatus

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
#: The names and values of a query.
Query: TypeAlias = Sequence[tuple[str, str]]

#: Seconds within which an answer must arrive, beside what the call itself waits for.
TIMEOUT: Final = 30.0
#: Seconds for which lost and refused calls are retried.
PATIENCE: Final = 30.0
#: Seconds of one long poll: well below the minute after which proxies close a silent connection,
#: and after which the daemon answers.
LONGEST_POLL: Final = 30.0
#: Seconds that the daemon may take to create a task when the pool is empty, beside the time-out of
#: the caller.
COLD: Final = 120.0
#: Requests and leases that are read at once.
PAGE: Final = 100
#: Seconds before the next poll when one ended early, or less than a second is left; doubled each
#: time, up to the longest.
FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 1.0
#: Seconds for which a lost poll is retried even if the wait is nearly over.
LEAST_PATIENCE: Final = 1.0
#: The speed of the slowest disk of a daemon, in bytes a second, and the seconds that writing an
#: upload adds to the time-out at most.
SLOWEST_DISK: Final = 2**20
LONGEST_WRITE: Final = 600.0


class AsyncRemotePool:
    """The pool of the daemon at ``url``, for asyncio.

    Parameters, methods and errors are those of :class:`pool.RemotePool`; each method is awaited.
    One pool belongs to one event loop; any number of its tasks may use it at the same time. A
    given ``client`` is not closed here.
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
        self._transport = Transport(
            url,
            token=token,
            timeout=timeout,
            patience=patience,
            client=client,
            clock=clock or SystemClock(),
            sleep=sleep,
            rng=rng or random.Random(),
        )

    def __repr__(self) -> str:
        return f"AsyncRemotePool({self.url!r})"

    @property
    def url(self) -> str:
        """The daemon's address."""
        return self._transport.address

    async def close(self) -> None:
        """Close the connections; closing twice does nothing."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- Leases -----------------------------------------------------------------------------------

    async def acquire(
        self,
        template: str,
        *,
        timeout: float | None = None,
        idempotency_key: str | None = None,
        ttl: float | None = None,
        name: str | None = None,
    ) -> AsyncLease:
        """As :meth:`pool.TaskPool.acquire`."""
        timeout = check_timeout(timeout)
        wanted = {
            "template": check_template(template),
            "timeout": timeout,
            "ttl": check_ttl(ttl),
            "name": check_task_name(name),
        }
        call = Call(
            method="POST",
            path="/v1/leases",
            headers=_key_header(idempotency_key),
            json={name: value for name, value in wanted.items() if value is not None},
            slack=COLD + (timeout or 0.0),
        )
        return self._lease(parse_lease(await self._transport.call(call)))

    async def lease(self, lease_id: str) -> AsyncLease:
        """As :meth:`pool.TaskPool.lease`."""
        return self._lease(await self._read_lease(lease_id))

    async def leases(self, template: str | None = None) -> list[AsyncLease]:
        """As :meth:`pool.TaskPool.leases`."""
        which = [] if template is None else [("template", check_template(template))]
        found: list[AsyncLease] = []
        cursor: str | None = None
        while True:
            call = Call(method="GET", path=_page_path("/v1/leases", which, cursor))
            page, cursor = parse_leases(await self._transport.call(call))
            found += [self._lease(each) for each in page if each.task_id is not None]
            if cursor is None:
                return found

    async def release(self, lease: LeaseHandle | str) -> None:
        """As :meth:`pool.TaskPool.release`."""
        lease_id = lease if isinstance(lease, str) else lease.id
        answer = await self._transport.answer(Call(method="DELETE", path=_lease_path(lease_id)))
        if answer.error is None:
            return
        # An earlier attempt whose answer was lost may have released it.
        doubtful = isinstance(answer.error, LeaseEnded) and answer.doubtful
        if not doubtful or (await self._read_lease(lease_id)).state is not LeaseState.RELEASED:
            raise answer.error

    async def jobs_of_lease(self, lease: LeaseHandle, timeout: float | None) -> list[Job]:
        """As :meth:`pool.Lease.jobs`."""

        def jobs(document: dict[str, Any]) -> list[Job] | None:
            found = parse_lease(document)
            if found.jobs is not None:
                return list(found.jobs)
            if found.error is not None:
                raise found.error
            if found.state not in (LeaseState.ACTIVE, LeaseState.USED):
                raise LeaseEnded(f"lease {found.id} is {found.state.value}")
            return None

        return await self._poll(_lease_path(lease.id), jobs, timeout, f"lease {lease.id}")

    # --- Requests ---------------------------------------------------------------------------------

    async def submit(
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
        progress: AsyncProgress | None = None,
        **data: Unpack[Data],
    ) -> AsyncRequest:
        """As :meth:`pool.RemotePool.submit`.

        Files are read on other threads; ``progress`` is called on the event loop, and awaited if
        it is a coroutine function.
        """
        return await self.send(
            build_upload(files, **data),
            template=template,
            name=name,
            assignee=assignee,
            stream=stream,
            priority=priority,
            idempotency_key=idempotency_key,
            timeout=timeout,
            progress=progress,
        )

    async def send(
        self,
        upload: Upload,
        *,
        template: str,
        lease_id: str | None = None,
        name: str | None = None,
        assignee: Assignee | None = None,
        stream: str | None = None,
        priority: str | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
        progress: AsyncProgress | None = None,
    ) -> AsyncRequest:
        """Send checked data to the daemon, for a task of the pool or of a lease. No attempt begins
        after ``timeout`` seconds."""
        given = {
            "template": check_template(template),
            "lease_id": lease_id,
            "params": upload.extra or None,
            "job_size": upload.job_sizes[0] if upload.job_sizes else None,
            "name": check_task_name(name),
            "assignee": check_assignee(assignee),
            "stream": check_stream(stream),
            "priority": check_priority(priority),
        }
        fields = {name: value for name, value in given.items() if value is not None}
        until = self._end(timeout)
        with body_of(upload, fields, progress) as body:
            call = Call(
                method="POST",
                path="/v1/requests",
                headers=_key_header(idempotency_key),
                json=None if body is not None else {**fields, **_sources(upload)},
                body=body,
                slack=min(upload.size / SLOWEST_DISK, LONGEST_WRITE),
            )
            answer = await self._transport.call(call, until=until)
        return AsyncRequest(self, parse_request(answer))

    async def request(self, request_id: str) -> AsyncRequest:
        """As :meth:`pool.TaskPool.request`."""
        return AsyncRequest(self, await self.read_request(request_id))

    def requests(
        self,
        states: Collection[str] = (),
        *,
        template: str | None = None,
        text: str | None = None,
        since: datetime | None = None,
        tenant: str | None = None,
    ) -> AsyncGenerator[AsyncRequest, None]:
        """As :meth:`pool.TaskPool.requests`. ::

        async for request in pool.requests(["failed"]): ...
        """
        return self._requests(which_requests(states, template, text, since, tenant))

    async def _requests(self, which: Query) -> AsyncGenerator[AsyncRequest, None]:
        cursor: str | None = None
        while True:
            page, cursor = await self.request_page(which, cursor)
            for each in page:
                yield AsyncRequest(self, each)
            if cursor is None:
                return

    async def request_page(
        self, which: Query, cursor: str | None
    ) -> tuple[list[RemoteRequest], str | None]:
        """Return a page of requests, and the cursor of the next one."""
        call = Call(method="GET", path=_page_path("/v1/requests", which, cursor))
        return parse_requests(await self._transport.call(call))

    async def events_of(self, request_id: str) -> list[Event]:
        """As :meth:`pool.Request.events`."""
        call = Call(method="GET", path=f"{_request_path(request_id)}/events")
        return parse_events(await self._transport.call(call))

    async def read_request(self, request_id: str) -> RemoteRequest:
        """Return a request as the daemon describes it now.

        :raises UnknownRequest: there is none.
        """
        call = Call(method="GET", path=_request_path(request_id))
        return parse_request(await self._transport.call(call))

    async def wait_for_request(self, request_id: str, timeout: float | None) -> RemoteRequest:
        """Return the request once it has its jobs; see :meth:`pool.Request.jobs`."""

        def ready(document: dict[str, Any]) -> RemoteRequest | None:
            request = parse_request(document)
            if request.state is RequestState.READY and request.jobs is not None:
                return request
            if request.state in (RequestState.FAILED, RequestState.CANCELLED):
                raise error_of(request)
            return None

        path = _request_path(request_id)
        return await self._poll(path, ready, timeout, f"request {request_id}")

    async def wait_until_shown(self, request_id: str, timeout: float | None) -> RemoteRequest:
        """Return the request once annotators can open it; see :meth:`pool.Request.shown`."""

        def shown(document: dict[str, Any]) -> RemoteRequest | None:
            request = parse_request(document)
            return request if shown_at(request) is not None else None

        return await self._poll(_request_path(request_id), shown, timeout, f"request {request_id}")

    async def cancel(self, request: RequestHandle[Any, Any], *, hide: bool = False) -> bool:
        """As :meth:`pool.Request.cancel`."""
        query = "?hide=true" if hide else ""
        call = Call(method="DELETE", path=_request_path(request.id) + query)
        answer = await self._transport.answer(call)
        if answer.error is None:
            return True
        if answer.response.status_code != 409:
            raise answer.error
        if answer.doubtful:
            # An earlier attempt whose answer was lost may have cancelled it.
            return (await self.read_request(request.id)).state is RequestState.CANCELLED
        return False

    async def erase(self, request_id: str) -> AsyncRequest:
        """As :meth:`pool.TaskPool.erase`."""
        request = await self.request(request_id)
        if not await self.cancel(request, hide=True):
            raise TooLate(f"request {request_id} is {(await request.refresh()).state.value}")
        return await self.request(request_id)

    # --- Control ----------------------------------------------------------------------------------

    async def pause(self, template: str) -> None:
        """As :meth:`pool.TaskPool.pause`."""
        await self._control(f"{check_template(template)}/pause")

    async def resume(self, template: str | None = None) -> None:
        """As :meth:`pool.TaskPool.resume`."""
        await self._control("resume" if template is None else f"{check_template(template)}/resume")

    async def drain(self, template: str) -> int:
        """As :meth:`pool.TaskPool.drain`. Tasks retired by a lost attempt are not counted."""
        return parse_retired(await self._control(f"{check_template(template)}/drain"))

    async def prewarm(self, template: str, count: int, *, duration: float = 900.0) -> None:
        """As :meth:`pool.TaskPool.prewarm`."""
        count, seconds = check_prewarm(count, duration)
        path = f"{check_template(template)}/prewarm"
        await self._control(path, {"count": count, "seconds": seconds})

    async def streams(self, template: str | None = None) -> list[StreamStatus]:
        """As :meth:`pool.TaskPool.streams`."""
        query = {} if template is None else {"template": check_template(template)}
        call = Call(method="GET", path=_streams_path(query))
        return parse_streams(await self._transport.call(call))

    async def close_stream(self, template: str, name: str, *, tenant: str | None = None) -> None:
        """As :meth:`pool.TaskPool.close_stream`; by default a stream of the token's own tenant."""
        query = {"template": check_template(template), "name": check_stream(name) or ""}
        if tenant is not None:
            query["tenant"] = check_tenant(tenant) or ""
        answer = await self._transport.answer(Call(method="DELETE", path=_streams_path(query)))
        # An earlier attempt whose answer was lost may have closed it.
        if answer.error and not (isinstance(answer.error, UnknownStream) and answer.doubtful):
            raise answer.error

    async def status(self) -> Status:
        """As :meth:`pool.TaskPool.status`."""
        call = Call(method="GET", path="/v1/templates")
        return parse_status(await self._transport.call(call))

    # --- Events -----------------------------------------------------------------------------------

    async def events(
        self,
        *,
        kinds: Collection[str] | None = None,
        template: str | None = None,
        after: int | None = None,
    ) -> AsyncGenerator[Event, None]:
        """As :meth:`pool.RemotePool.events`. ::

            async for event in pool.events(kinds=["request.ready"]): ...

        Without ``after``, those since the iteration began.
        """
        stream = self.event_stream(kinds=kinds, template=template, after=after)
        await stream.open()
        try:
            while True:
                yield await stream.next()
        finally:
            await stream.close()

    def event_stream(
        self,
        *,
        kinds: Collection[str] | None = None,
        template: str | None = None,
        after: int | None = None,
    ) -> EventStream:
        """Return the stream that :meth:`events` reads, not connected yet."""
        return EventStream(self._transport, kinds=kinds, template=template, after=after)

    # --- Inside -----------------------------------------------------------------------------------

    def _lease(self, lease: RemoteLease) -> AsyncLease:
        return AsyncLease(**lease.handle(), _pool=self)

    async def _read_lease(self, lease_id: str) -> RemoteLease:
        call = Call(method="GET", path=_lease_path(lease_id))
        return parse_lease(await self._transport.call(call))

    async def _control(
        self, path: str, wanted: Mapping[str, float] | None = None
    ) -> dict[str, Any]:
        call = Call(method="POST", path=f"/v1/templates/{path}", json=wanted)
        return await self._transport.call(call)

    async def _poll(
        self,
        path: str,
        found: Callable[[dict[str, Any]], T | None],
        timeout: float | None,
        what: str,
    ) -> T:
        """Send long polls until ``found`` returns something for an answer, and return that.

        A poll that a restarting daemon ends early is repeated.
        """
        end, clock = self._end(timeout), self._transport.clock
        pause = FIRST_PAUSE
        while True:
            began = clock.monotonic()
            left = LONGEST_POLL if end is None else max(0.0, end - began)
            wait = int(min(LONGEST_POLL, left))
            # RFC 7240, section 4.3: whole seconds.
            headers = {"Prefer": f"wait={wait}"} if wait else {}
            call = Call(method="GET", path=path, headers=headers, slack=float(wait))
            until = None if end is None else max(end, began + LEAST_PATIENCE)
            result = found(await self._transport.call(call, until=until))
            if result is not None:
                return result
            now = clock.monotonic()
            if end is not None and now >= end:
                raise WaitTimeout(what)
            if now - began < max(wait, pause):
                await self._transport.sleep(pause if end is None else min(pause, end - now))
                pause = min(LONGEST_PAUSE, 2 * pause)

    def _end(self, timeout: float | None) -> float | None:
        timeout = check_timeout(timeout)
        return None if timeout is None else self._transport.clock.monotonic() + timeout


@dataclass(frozen=True, kw_only=True)
class AsyncLease(LeaseHandle):
    """As :class:`pool.Lease`; its methods are awaited."""

    _pool: AsyncRemotePool = field(repr=False, compare=False)

    async def upload(
        self,
        files: Files | None = None,
        *,
        name: str | None = None,
        assignee: Assignee | None = None,
        progress: AsyncProgress | None = None,
        **data: Unpack[Data],
    ) -> AsyncRequest:
        """As :meth:`pool.Lease.upload`."""
        return await self._pool.send(
            build_upload(files, **data),
            template=self.template,
            lease_id=self.id,
            name=name,
            assignee=assignee,
            progress=progress,
        )

    async def jobs(self, timeout: float | None = None) -> list[Job]:
        """As :meth:`pool.Lease.jobs`."""
        return await self._pool.jobs_of_lease(self, timeout)

    async def release(self) -> None:
        """As :meth:`pool.Lease.release`."""
        await self._pool.release(self)


class AsyncRequest(RequestHandle[AsyncRemotePool, RemoteRequest]):
    """As :class:`pool.Request`; its methods, ``state``, ``warnings``, ``hidden`` and ``frames`` are
    awaited."""

    @property
    def url(self) -> str | None:
        """As :attr:`pool.Request.url`."""
        return self._record.url

    @property
    def state(self) -> Coroutine[Any, Any, RequestState]:
        """As :attr:`pool.Request.state`: ``await request.state``."""
        return self._state()

    @property
    def warnings(self) -> Coroutine[Any, Any, tuple[RequestWarning, ...]]:
        """As :attr:`pool.Request.warnings`: ``await request.warnings``."""
        return self._warnings()

    @property
    def hidden(self) -> Coroutine[Any, Any, Hidden | None]:
        """As :attr:`pool.Request.hidden`: ``await request.hidden``."""
        return self._hidden()

    @property
    def frames(self) -> Coroutine[Any, Any, tuple[Frame, ...]]:
        """As :attr:`pool.Request.frames`: ``await request.frames``."""
        return self._frames()

    async def refresh(self) -> RemoteRequest:
        """As :meth:`pool.Request.refresh`."""
        if not self._record.state.finished:
            self._record = await self._pool.read_request(self.id)
        return self._record

    async def jobs(self, timeout: float | None = None) -> list[Job]:
        """As :meth:`pool.Request.jobs`."""
        if self._record.jobs is None:
            self._record = await self._pool.wait_for_request(self.id, timeout)
        return list(self._record.jobs or ())

    async def events(self) -> list[Event]:
        """As :meth:`pool.Request.events`."""
        return await self._pool.events_of(self.id)

    async def shown(self, timeout: float | None = None) -> datetime:
        """As :meth:`pool.Request.shown`."""
        self._record = await self._pool.wait_until_shown(self.id, timeout)
        shown = shown_at(self._record)
        assert shown is not None
        return shown

    async def cancel(self, *, hide: bool = False) -> bool:
        """As :meth:`pool.Request.cancel`."""
        return await self._pool.cancel(self, hide=hide)

    async def _warnings(self) -> tuple[RequestWarning, ...]:
        self._record = await self._pool.read_request(self.id)
        return self._record.warnings

    async def _hidden(self) -> Hidden | None:
        self._record = await self._pool.read_request(self.id)
        return self._record.hidden

    async def _frames(self) -> tuple[Frame, ...]:
        return (await self.refresh()).frames

    async def _state(self) -> RequestState:
        return (await self.refresh()).state


def which_requests(
    states: Collection[str],
    template: str | None,
    text: str | None,
    since: datetime | None,
    tenant: str | None,
) -> Query:
    """Return the query of a list of requests."""
    which = [("state", state.value) for state in check_states(states)]
    if template is not None:
        which.append(("template", check_template(template)))
    if text is not None:
        which.append(("text", check_search(text) or ""))
    if since is not None:
        which.append(("since", rfc3339(check_since(since) or 0.0)))
    if tenant is not None:
        which.append(("tenant", check_tenant(tenant) or ""))
    return which


def _page_path(path: str, which: Query, cursor: str | None) -> str:
    after = [] if cursor is None else [("cursor", cursor)]
    return f"{path}?{urlencode([*which, ('limit', str(PAGE)), *after])}"


def _sources(upload: Upload) -> dict[str, Any]:
    if upload.cloud is not None:
        return {"cloud": {"storage_id": upload.cloud[0], "keys": list(upload.cloud[1])}}
    return {"share": list(upload.share)} if upload.share else {"urls": list(upload.urls)}


def _key_header(key: str | None) -> dict[str, str]:
    """Return the header with the caller's key or a random one, by which the daemon tells a repeated
    attempt from a second call."""
    return {"Idempotency-Key": check_key(key) or secrets.token_hex(16)}


def _lease_path(lease_id: str) -> str:
    return f"/v1/leases/{check_id(lease_id, UnknownLease)}"


def _streams_path(query: Mapping[str, str]) -> str:
    return f"/v1/streams?{urlencode(query)}" if query else "/v1/streams"


def _request_path(request_id: str) -> str:
    return f"/v1/requests/{check_id(request_id, UnknownRequest)}"
