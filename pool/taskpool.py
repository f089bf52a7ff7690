"""The pool as Python code uses it: acquire, submit, release, control, status."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self, Unpack

from pool.clock import Clock
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
from pool.config.settings import Settings, Template
from pool.config.source import (
    Data,
    Files,
    Progress,
    Upload,
    build_upload,
    digest,
    fit,
    frame_numbers,
)
from pool.cvat import CvatClient
from pool.cvat.records import ImportStatus
from pool.errors import (
    InputError,
    LeaseEnded,
    LeaseInUse,
    TooLate,
    UnknownLease,
    UnknownRequest,
    UnknownStream,
    WaitTimeout,
)
from pool.handles import Lease, Request, shown_at, when
from pool.maintenance.retirement import DRAINED
from pool.maintenance.stream_expiry import CLOSED
from pool.model import (
    EVERYTHING,
    Assignee,
    Event,
    Handout,
    Job,
    LeaseRecord,
    LeaseState,
    Prewarm,
    Priority,
    RequestRecord,
    RequestState,
    Scope,
    new_id,
)
from pool.observability.status import data_away, narrowed, read_status
from pool.process import Process
from pool.requests.breaker import SERVER
from pool.requests.results import Result, read_lease, result_of
from pool.status import Status, StreamStatus
from pool.store import NewRequest, Store

#: Requests and leases that are read at once.
PAGE: Final = 100


class TaskPool:
    """A warm pool of CVAT tasks.

    Works beside a daemon on the same store, which then keeps the pool filled, and without one:
    an empty pool creates tasks directly. All methods are thread-safe. Close it, or use it as a
    context manager; what is not finished then is taken over by the daemon.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        store: Store | None = None,
        cvat: CvatClient | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        process = Process(settings, store=store, cvat=cvat, clock=clock, rng=rng)
        self._work_on(process, own=True)

    def _work_on(self, process: Process, *, own: bool) -> None:
        self.process = process
        self.settings = process.settings
        self.store = process.store
        self.clock = process.clock
        self._owns_process = own

    @classmethod
    def from_config(cls, path: str | Path = "config.toml") -> Self:
        """Return a pool as ``config.toml`` describes it; the server is not asked anything yet.

        A change of the templates in the file is taken over while the pool is used, within a
        second of the next call; a file that is wrong changes nothing.

        :raises ConfigError: the file, or where it points to, is wrong.
        :raises StoreError: the store cannot be opened.
        """
        from pool.config.loader import load

        pool = cls(load(path))
        pool.process.follow_file()
        return pool

    @classmethod
    def over(cls, process: Process) -> Self:
        """Return a pool on the parts of a running process, such as the daemon; closing the pool
        leaves them running."""
        pool = cls.__new__(cls)
        pool._work_on(process, own=False)
        return pool

    # --- Life -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to track, and open connections to the server in the background.

        Entering the context does this. Without it, it happens with the first hand-out, which
        then takes a little longer.
        """
        self.process.start(connect=True)

    def close(self) -> None:
        """Send what waits for others of this process, within ``daemon.stop_timeout``, and stop
        tracking; unfinished requests are taken over by the daemon. Closing twice does nothing."""
        if self._owns_process:
            self.process.close()

    def __enter__(self) -> Self:
        self.start()
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
        name: str | None = None,
    ) -> Lease:
        """Return a task for you alone, at once when the pool has a warm one.

        An empty pool waits and creates as the template's ``on_empty`` and ``max_wait`` say, and
        waits ``timeout`` seconds at most. The same ``idempotency_key`` gives the same lease, for as
        long as it is kept: ``store.keep_finished`` after its end, by default 30 days. The lease
        lasts ``ttl`` seconds, by default the template's ``lease_ttl``. ``name`` is what it is
        called in lists, and its task once that has data. Of a template with slots it is one of
        these: its job exists, and only :meth:`pool.Lease.upload` fills it.

        :raises InputError: the time-out, the key, the name or the ``ttl``, which is 1 s to 30 days,
            cannot be used.
        :raises UnknownTemplate: the configuration has no such template.
        :raises PoolEmpty: no task in time, and the template says not to create one.
        :raises CvatError: the pool was empty and CVAT did not create one.
        """
        chosen = self.process.template(template)
        timeout, ttl = check_timeout(timeout), check_ttl(ttl)
        key, name = check_key(idempotency_key), check_task_name(name)
        self.process.start()
        opened = self.process.placement.acquire(
            chosen, name=name, idempotency_key=key, ttl=ttl, timeout=timeout
        )
        if opened.task is None:
            raise LeaseEnded(f"the lease of this idempotency key ended ({opened.lease.state})")
        return self._lease(opened.lease)

    def release(self, lease: Lease | str) -> None:
        """Give an untouched task, or a slot, back to the pool, as warm as it was.

        The server is asked whether it really is untouched.

        :raises UnknownLease: there is no such lease.
        :raises LeaseInUse: data is in the task, or on its way.
        :raises LeaseEnded: the lease was given back before, or has expired.
        """
        lease_id = lease if isinstance(lease, str) else lease.id
        record = self._lease_record(lease_id)
        if record.state is LeaseState.USED:
            raise LeaseInUse(f"lease {lease_id}")
        if record.state is not LeaseState.ACTIVE or record.task_id is None:
            raise LeaseEnded(f"lease {lease_id} is {record.state.value}")
        info = self.process.cvat().tasks([record.task_id]).get(record.task_id)
        now = self.clock.now()
        if info is None:
            self.store.end_lease(lease_id, reason="deleted on the server", now=now)
            raise LeaseEnded(f"task {record.task_id} was deleted on the server")
        slot = self.store.slot(record.pooled_id or "")
        if slot is not None:
            if self.process.cvat().annotated(slot.job_id):
                raise LeaseInUse(f"job {slot.job_id} is annotated")
        elif not info.empty or self._import_began(record.task_id):
            raise LeaseInUse(f"task {record.task_id} has data")
        if not self.store.give_back(lease_id, now=now):
            raise LeaseInUse(f"lease {lease_id}")
        self.process.tracker.forget(record.pooled_id or "")

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
        """Put data into a task of the pool; returns as soon as CVAT has accepted it.

        While CVAT cannot be reached and there is a daemon on the store, it returns as soon as the
        data is in the spool: the request is ``QUEUED`` then, has no task yet, and is served by
        the daemon when CVAT is back, however long that takes. Without a daemon it fails at once.
        Where requests may share an import it is ``QUEUED`` while no place is free for one: the
        daemon, or without one this process, sends it with others.

        ``files`` are paths, ``(name, bytes)`` pairs, open binary files, an archive or a video;
        or one of ``share`` (names on the server's share), ``urls`` (fetched by the server) and
        ``cloud`` (a cloud storage's id and keys in it) is given. ``name`` and ``assignee`` (a
        user's id) are set once the job ids are out. ``params`` are data parameters by CVAT's
        names, on top of the template's. ``priority``, by default the template's, is
        "interactive", "normal" or "bulk": which of the requests that wait go first. ``progress``
        is called with (bytes sent, bytes in all), maybe from other threads but never from two at
        a time; a connection that was cut in the middle makes it begin again, with another task.
        An empty pool is waited for ``timeout`` seconds at most. The same ``idempotency_key`` gives
        the same request, for as long as it is kept: ``store.keep_finished`` after its end, by
        default 30 days.

        Requests of one ``stream``, a name such as "camera 7", go into the same task, one job each,
        in the order in which they come; when it is full, into the next. It opens with its first
        request, and takes a whole task of slots, which has more than one (``slots.per_task``).
        See :meth:`streams` and :meth:`close_stream`.

        :raises InputError: the input cannot be used; nothing was done.
        :raises UnknownTemplate: the configuration has no such template.
        :raises PoolEmpty: no task in time, and the template says not to create one.
        :raises CvatError: CVAT did not take the data.
        :raises QueueFull: CVAT cannot be reached, and too much waits for it already.
        :raises IdempotencyConflict: the key was used before with other content.
        """
        chosen = self.process.template(template)
        timeout, key = check_timeout(timeout), check_key(idempotency_key)
        upload = build_upload(files, **data)
        fit(upload, chosen)
        request = self._new_request(chosen, upload, name, assignee, priority, stream)
        payload = ""
        if key is not None:
            payload = digest(
                upload,
                template=template,
                name=name,
                assignee=request.assignee,
                stream=request.stream,
            )
        self.process.start()
        record = self.process.runner.submit(
            chosen,
            request,
            upload,
            idempotency_key=key,
            payload=payload,
            timeout=timeout,
            progress=progress,
        )
        return Request(self, record)

    def upload_into(
        self,
        lease: Lease,
        upload: Upload,
        *,
        name: str | None,
        assignee: Assignee | None,
        progress: Progress | None,
    ) -> Request:
        """Send data into the task of a lease: see :meth:`pool.Lease.upload`."""
        chosen = self.process.template(lease.template)
        fit(upload, chosen)
        request = self._new_request(chosen, upload, name, assignee, tenant=lease.tenant)
        self.process.start()
        record = self.process.runner.upload_into(
            chosen, lease.id, request, upload, progress=progress
        )
        return Request(self, record)

    # --- Requests -----------------------------------------------------------------------------

    def request(self, request_id: str) -> Request:
        """Return a request by its id, from whichever process it came.

        :raises UnknownRequest: there is none.
        """
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
        """Iterate over the requests, of all processes, the newest first: those in one of the
        ``states``, of a ``template``, with a ``text`` in their id, their name, their stream or the
        name of a file (in upper or lower case), accepted ``since`` then, where these are given.

        They are read a page at a time, as far as the iteration goes.

        :raises InputError: there is no such state, the text is empty or too long, or ``since`` has
            no time zone.
        :raises UnknownTemplate: no template can have such a name.
        """
        which = {
            "template": None if template is None else check_template(template),
            "text": check_search(text),
            "since": check_since(since),
            "scope": Scope(tenant=check_tenant(tenant)),
        }
        return self._requests(check_states(states), which)

    def _requests(
        self, states: Collection[RequestState], which: Mapping[str, Any]
    ) -> Iterator[Request]:
        cursor: str | None = None
        while True:
            page = self.store.requests(states, **which, limit=PAGE, cursor=cursor)
            yield from (Request(self, record) for record in self.say_away(page.requests))
            if (cursor := page.next_cursor) is None:
                return

    def lease(self, lease_id: str) -> Lease:
        """Return a lease by its id, from whichever process it came.

        :raises UnknownLease: there is none, or it never got a task.
        """
        record = self._lease_record(lease_id)
        if record.task_id is None:
            raise UnknownLease(f"{lease_id} has no task")
        return self._lease(record)

    def leases(self, template: str | None = None) -> list[Lease]:
        """Return the leases that have a task, of one template or of all, the newest first. Those of
        requests are not among them.

        :raises UnknownTemplate: no template can have such a name.
        """
        template = None if template is None else check_template(template)
        found: list[Lease] = []
        cursor: str | None = None
        while True:
            page = self.store.open_leases(template=template, limit=PAGE, cursor=cursor)
            found += [self._lease(record) for record in page.leases if record.task_id is not None]
            if (cursor := page.next_cursor) is None:
                return found

    def task_url(self, task_id: int) -> str:
        """Return the address of a task's page."""
        return f"{self.settings.cvat.url.rstrip('/')}/tasks/{task_id}"

    def url_of(self, record: RequestRecord) -> str | None:
        """Return the address of the page of a request's task, while it has one."""
        there = record.task_id is not None and not record.task_deleted
        return self.task_url(record.task_id or 0) if there else None

    # --- Waiting ----------------------------------------------------------------------------------

    def read_request(self, request_id: str) -> RequestRecord:
        """Return a request's row.

        :raises UnknownRequest: there is none.
        """
        record = self.store.request(check_id(request_id, UnknownRequest))
        if record is None:
            raise UnknownRequest(request_id)
        return self.say_away([record])[0]

    def say_away(
        self, records: Sequence[RequestRecord], scope: Scope = EVERYTHING
    ) -> list[RequestRecord]:
        """Return requests with ``data_away``, where their data is on a machine that is away, as one
        of that ``scope`` sees it."""
        if not any(each.spooled and each.state is RequestState.QUEUED for each in records):
            return list(records)
        spools, now = self.store.spools(), self.clock.now()
        return [
            replace(each, data_away=data_away(each, spools, scope=scope, now=now))
            for each in records
        ]

    def events_of(self, request_id: str) -> list[Event]:
        """Return the events of a request: see :meth:`pool.Request.events`."""
        return list(self.store.request_events(self.read_request(request_id).id))

    def jobs_of_request(self, request: Request, timeout: float | None) -> list[Job]:
        """Wait for the jobs of a request: see :meth:`pool.Request.jobs`."""

        def look() -> Result[RequestRecord]:
            return result_of(self.store, request.refresh())

        self.process.start()
        self._serve_what_was_left(request)
        return self._wait_for_jobs(look, timeout, "request", request.id)

    def _serve_what_was_left(self, request: Request) -> None:
        """Serve a request, for whose jobs a caller waits here, if its process is gone: without a
        daemon no other process would."""
        record, process = request.record, self.process
        if record.state.finished or record.owner == process.owner or process.breaker.has_daemon():
            return
        if record.state is RequestState.QUEUED and record.spooled:
            process.local_dispatcher.wake()
        else:
            request.saw(process.recovery.await_request(record))

    def jobs_of_lease(self, lease: Lease, timeout: float | None) -> list[Job]:
        """Wait for the jobs of a lease's task: see :meth:`pool.Lease.jobs`."""

        def look() -> Result[LeaseRecord]:
            result = read_lease(self.store, lease.id)
            task = self.store.task(result.record.pooled_id or "")
            if not result.over and task is not None:
                self.process.tracker.watch_lease(Handout(lease=result.record, task=task))
            return result

        return self._wait_for_jobs(look, timeout, "lease", lease.id)

    def _wait_for_jobs(
        self,
        look: Callable[[], Result[Any]],
        timeout: float | None,
        what: Literal["request", "lease"],
        name: str,
    ) -> list[Job]:
        def jobs() -> list[Job] | None:
            result = look()
            if result.error is not None:
                raise result.error
            return list(result.jobs) if result.over else None

        timeout = check_timeout(timeout)
        self.process.start()
        found = self.process.feed.wait_for(jobs, timeout, **{what: name})
        if found is None:
            raise WaitTimeout(f"{what} {name}")
        return found

    def wait_until_shown(self, request_id: str, timeout: float | None) -> RequestRecord:
        """Return a request once annotators can open it: see :meth:`pool.Request.shown`."""

        def look() -> RequestRecord | None:
            record = self.read_request(request_id)
            return record if shown_at(record) is not None else None

        timeout = check_timeout(timeout)
        self.process.start()
        found = self.process.feed.wait_for(look, timeout, request=request_id)
        if found is None:
            raise WaitTimeout(f"request {request_id}")
        return found

    def cancel(self, request: Request, *, hide: bool = False) -> bool:
        """Cancel a queued request, or hide its frames: see :meth:`pool.Request.cancel`."""
        now = self.clock.now()
        if self.store.cancel_request(request.id, now=now):
            if request.refresh().spooled:
                self.process.spool.drop(request.id)
            return True
        hidden = self.store.hide_request(request.id, now=now) if hide else None
        if hidden is None:
            return False
        request.saw(hidden)
        if hidden.state is RequestState.READY:
            self.process.finalize_soon(hidden.pooled_id or "")
        return True

    def erase(self, request_id: str) -> Request:
        """Hide the frames of a request that is ready, or on its way, and return it; cancel one that
        is queued. A second time is no error.

        People see the frames no longer, and exports leave them out. **Their bytes stay in CVAT**
        until the request's task (``task_id``) is deleted there, which others may share; those of a
        request in a slot are gone once they are hidden.

        :raises UnknownRequest: there is none.
        :raises TooLate: it has failed, so that it has no frames.
        """
        request = self.request(request_id)
        if not self.cancel(request, hide=True) and request.state is not RequestState.CANCELLED:
            raise TooLate(f"request {request_id} is {request.record.state.value}")
        return request

    # --- Operating --------------------------------------------------------------------------------

    # The effect of these stands in the store: for all processes, and after they have ended.

    def pause(self, template: str) -> None:
        """Create no more tasks of a template for the pool, in any process, until :meth:`resume`.

        :raises UnknownTemplate: the configuration has no such template.
        """
        self.store.pause(self.process.template(template).name, now=self.clock.now())

    def drain(self, template: str) -> int:
        """Take all warm tasks of a template out of the pool, and create no more for it, until
        :meth:`resume`; return how many were taken out.

        They are retired now, and the daemon deletes them on the server. Tasks that callers have
        are left to them; one that is given back is retired, too. A caller that asks meanwhile is
        served as by any empty pool, as ``on_empty`` says.

        :raises UnknownTemplate: the configuration has no such template.
        """
        chosen = self.process.template(template)
        return self.store.drain(chosen.name, reason=DRAINED, now=self.clock.now())

    def resume(self, template: str | None = None) -> None:
        """Create tasks of a template again, after :meth:`pause` or :meth:`drain`, and try at once
        what is held, the server included; of all templates when none is named.

        :raises UnknownTemplate: the configuration has no such template.
        """
        templates = self.process.follow_configuration()
        names = set(templates) if template is None else {templates.named(template).name}
        for name in names & self.store.paused().keys():
            self.store.resume(name)
        for name in (names | {SERVER}) & self.store.holds().keys():
            self.store.release_hold(name, now=self.clock.now())

    def prewarm(self, template: str, count: int, *, duration: float = 900.0) -> None:
        """Keep at least ``count`` tasks of a template warm for the next ``duration`` seconds.

        Takes the place of an earlier prewarm of the template; a ``count`` of 0 ends it. Afterwards
        the size is what it would be without: no more are created, and those that are warm stay
        until they are handed out or too old. Nothing is created while the template is paused.

        :raises InputError: ``count`` is not from 0 to the template's ``max_size``, or ``duration``
            is not from 1 ms to 30 days.
        :raises UnknownTemplate: the configuration has no such template.
        """
        chosen = self.process.template(template)
        count, duration = check_prewarm(count, duration)
        most = chosen.pool.max_size
        if count > most:
            raise InputError(f"a prewarm of {count}: {chosen.name!r} has at most {most}, max_size")
        if not count:
            self.store.end_prewarm(chosen.name)
            return
        now = self.clock.now()
        self.store.prewarm(
            Prewarm(template=chosen.name, size=count, since=now, until=now + duration)
        )

    def streams(
        self, template: str | None = None, *, scope: Scope = EVERYTHING
    ) -> list[StreamStatus]:
        """Return the streams that are open, of one template or of all, that a caller sees; reads
        the store only.

        :raises UnknownTemplate: the configuration has no such template.
        """
        found = self.store.streams(template=None if template is None else check_template(template))
        found = [each for each in found if scope.covers(each.stream)]
        if template is not None and not found:
            self._template(template, scope)
        return [
            StreamStatus(
                template=each.stream.template,
                tenant=each.stream.tenant,
                name=each.stream.name,
                opened_at=datetime.fromtimestamp(each.stream.opened_at, UTC),
                used_at=datetime.fromtimestamp(each.stream.last_at, UTC),
                tasks=each.stream.carriers,
                task_id=each.task_id,
                url=None if each.task_id is None else self.task_url(each.task_id),
                filled=each.filled,
                slots=each.slots,
            )
            for each in found
        ]

    def close_stream(self, template: str, name: str, *, tenant: str | None = None) -> None:
        """Close a stream: what is left of its task is filled no more, and put out of the
        annotators' way. A later request of the same name opens another, in a task of its own.
        Each ``tenant``, the name of a token, has its own; by default it is the operator's.

        :raises UnknownStream: none of that name is open.
        :raises UnknownTemplate: the configuration has no such template.
        """
        stream = self.store.stream(
            check_template(template), check_stream(name) or "", tenant=check_tenant(tenant) or ""
        )
        if stream is None:
            self.process.template(template)
        elif self.store.close_stream(stream.id, reason=CLOSED, now=self.clock.now()):
            return
        raise UnknownStream(f"{name!r} of template {template!r}")

    def status(self, *, scope: Scope = EVERYTHING) -> Status:
        """Return levels, demand and troubles of all templates that a caller sees; reads the store
        only."""
        templates = self.process.follow_configuration()
        status = read_status(self.store, self.settings, templates, now=self.clock.now())
        return narrowed(status, scope, self.store)

    def subscribe(
        self,
        callback: Callable[[Event], None],
        kinds: Collection[str] | None = None,
        *,
        template: str | None = None,
    ) -> Callable[[], None]:
        """Have ``callback`` called with each event from now on, whichever process it is of, in
        order and on a thread of its own; return what ends that.

        ``kinds`` are some of :data:`pool.model.KINDS`, all by default. What the
        callback raises is logged.

        :raises InputError: there is no such kind.
        """
        return self.process.feed.subscribe(callback, kinds=kinds, template=template)

    # --- Inside ---------------------------------------------------------------------------------

    def _template(self, name: str, scope: Scope) -> Template:
        """Return the template of that name, if a caller sees it."""
        self.process.follow_configuration()
        return self.process.templates.within(scope).named(name)

    def _lease_record(self, lease_id: str) -> LeaseRecord:
        record = self.store.lease(check_id(lease_id, UnknownLease))
        if record is None:
            raise UnknownLease(lease_id)
        return record

    def _lease(self, record: LeaseRecord) -> Lease:
        expires_at = when(record.expires_at)
        if record.task_id is None or record.outcome is None or expires_at is None:
            raise LeaseEnded(f"lease {record.id} has no task")
        return Lease(
            id=record.id,
            name=record.name,
            task_id=record.task_id,
            task_name=record.task_name,
            url=self.task_url(record.task_id),
            template=record.template,
            outcome=record.outcome,
            owner=record.owner,
            tenant=record.tenant,
            created_at=datetime.fromtimestamp(record.created_at, UTC),
            expires_at=expires_at,
            _pool=self,
        )

    def _import_began(self, task_id: int) -> bool:
        return self.process.cvat().import_state(task_id).status is not ImportStatus.UNKNOWN

    def _new_request(
        self,
        template: Template,
        upload: Upload,
        name: str | None,
        assignee: Assignee | None,
        priority: str | None = None,
        stream: str | None = None,
        *,
        tenant: str = "",
    ) -> NewRequest:
        return NewRequest(
            id=new_id(self.clock.now()),
            tenant=tenant,
            name=check_task_name(name),
            assignee=check_assignee(assignee),
            files=upload.names,
            given=upload.given,
            frame_numbers=frame_numbers(upload, template.data),
            size=upload.size,
            priority=check_priority(priority) or Priority(template.importing.priority),
            stream=check_stream(stream),
        )
