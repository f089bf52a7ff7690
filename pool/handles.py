"""What callers hold: a lease, a request. Both can be passed between threads."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Generic, Protocol, TypeVar, Unpack

from pool import errors
from pool.config.source import Data, Files, Progress, Upload, build_upload
from pool.errors import PoolError
from pool.model import (
    Assignee,
    Event,
    Frame,
    Hidden,
    Job,
    Outcome,
    Placed,
    RequestRecord,
    RequestState,
    RequestWarning,
)

PoolOfIt = TypeVar("PoolOfIt")
Record = TypeVar("Record", bound=RequestRecord)


def when(seconds: float | None) -> datetime | None:
    """Return a stored time as an aware UTC datetime."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def error_of(record: RequestRecord) -> PoolError:
    """Return the error that a failed or cancelled request ended with."""
    if record.state is RequestState.CANCELLED:
        return errors.RequestCancelled(f"request {record.id}")
    return (errors.kind_of_error(record.error_code) or PoolError)(record.error)


def shown_at(record: RequestRecord) -> datetime | None:
    """Return since when annotators can open a request, which is once it is ready, where it is in no
    slot; None while they cannot.

    :raises PoolError: they never will.
    """
    if record.state in (RequestState.FAILED, RequestState.CANCELLED):
        raise error_of(record)
    if record.placed is not Placed.SLOT:
        return when(record.finished_at) if record.state is RequestState.READY else None
    if record.shown_at is None and record.hidden is not None:
        raise errors.RequestCancelled(f"request {record.id} is hidden")
    return when(record.shown_at)


class Pool(Protocol):
    """What handles need of their pool, in this process or at an address."""

    def upload_into(
        self,
        lease: Lease,
        upload: Upload,
        *,
        name: str | None,
        assignee: Assignee | None,
        progress: Progress | None,
    ) -> Request: ...

    def jobs_of_lease(self, lease: Lease, timeout: float | None) -> list[Job]: ...

    def release(self, lease: Lease | str) -> None: ...

    def read_request(self, request_id: str) -> RequestRecord: ...

    def jobs_of_request(self, request: Request, timeout: float | None) -> list[Job]: ...

    def events_of(self, request_id: str) -> list[Event]: ...

    def wait_until_shown(self, request_id: str, timeout: float | None) -> RequestRecord: ...

    def cancel(self, request: Request, *, hide: bool = False) -> bool: ...

    def url_of(self, record: RequestRecord) -> str | None: ...


@dataclass(frozen=True, kw_only=True)
class LeaseHandle:
    """One leased task, as its caller's handle describes it. ``name`` is what its caller calls it,
    ``task_name`` that of the task when it was handed out, ``owner`` the process that it was asked
    of, ``tenant`` the name of the token that it was asked with, "" for the operator."""

    id: str
    name: str | None = None
    task_id: int
    task_name: str
    url: str
    template: str
    outcome: Outcome
    owner: str
    tenant: str = ""
    created_at: datetime
    expires_at: datetime


@dataclass(frozen=True, kw_only=True)
class Lease(LeaseHandle):
    """One task, handed out to you alone.

    Upload into it with :meth:`upload`, or with any other tool: the pool watches the task
    either way. Give it back with :meth:`release` while it is untouched; after ``expires_at``
    the pool looks after it by itself.

    Of a template with slots it is a slot: a job that exists, in a task whose other jobs may be
    others'. Only :meth:`upload` fills it: the task has data already.
    """

    _pool: Pool = field(repr=False, compare=False)

    def upload(
        self,
        files: Files | None = None,
        *,
        name: str | None = None,
        assignee: Assignee | None = None,
        progress: Progress | None = None,
        **data: Unpack[Data],
    ) -> Request:
        """Send the data into this task; parameters and errors are those of
        :meth:`pool.TaskPool.submit`.

        :raises pool.LeaseEnded: the lease was used, given back or has expired.
        """
        return self._pool.upload_into(
            self, build_upload(files, **data), name=name, assignee=assignee, progress=progress
        )

    def jobs(self, timeout: float | None = None) -> list[Job]:
        """Return the jobs of the task, whichever tool uploaded, as soon as they exist, which that
        of a slot does from the start; wait ``timeout`` seconds at most.

        :raises pool.WaitTimeout: there are none yet; the pool goes on watching.
        :raises pool.ImportFailed: CVAT could not import the data.
        """
        return self._pool.jobs_of_lease(self, timeout)

    def release(self) -> None:
        """Give the untouched task back to the pool.

        :raises pool.LeaseInUse: data is in it, or on its way.
        """
        self._pool.release(self)


class RequestHandle(Generic[PoolOfIt, Record]):
    """What a request's handle says of it without asking again."""

    def __init__(self, pool: PoolOfIt, record: Record) -> None:
        self._pool = pool
        self._record = record

    @property
    def id(self) -> str:
        """The request's own id, by which the pool finds it again, also in another process."""
        return self._record.id

    @property
    def template(self) -> str:
        """The template that its task is made by."""
        return self._record.template

    @property
    def task_id(self) -> int | None:
        """CVAT's id of its task, known at once; None only while it is queued: it waits for a task,
        or for CVAT to be back."""
        return self._record.task_id

    @property
    def outcome(self) -> Outcome | None:
        """How its task was found: ``hit``, ``wait`` or ``cold``."""
        return self._record.outcome

    @property
    def placed(self) -> Placed | None:
        """What its data went into: a ``slot``, a job that was there before; a ``group``, a task
        that requests share; or a ``task`` of its own. None while it is queued."""
        return self._record.placed

    @property
    def no_slot(self) -> str:
        """Why it did not go into a slot, where its template has them; else ""."""
        return self._record.no_slot

    @property
    def stream(self) -> str | None:
        """The name of the stream that it belongs to."""
        return self._record.stream

    @property
    def record(self) -> Record:
        """The request as it was last read."""
        return self._record

    def __repr__(self) -> str:
        record = self._record
        return (
            f"{type(self).__name__}(id={record.id!r}, task_id={record.task_id}, "
            f"state={record.state.value!r})"
        )


class Request(RequestHandle[Pool, RequestRecord]):
    """Data on its way to job ids."""

    @property
    def url(self) -> str | None:
        """The page of its task, unless the pool has deleted that, as one whose import failed."""
        return self._pool.url_of(self._record)

    @property
    def state(self) -> RequestState:
        """Its state now."""
        return self.refresh().state

    @property
    def warnings(self) -> tuple[RequestWarning, ...]:
        """What it has to do without, as of now: a name that CVAT refused, or an assignee. They may
        come a while after the jobs."""
        self._record = self._pool.read_request(self.id)
        return self._record.warnings

    @property
    def frames(self) -> tuple[Frame, ...]:
        """What became of each of its files, in your order: what you call it, its name in CVAT, and
        the number of its frame in the task; final once the request is ready."""
        return self.refresh().frames

    def refresh(self) -> RequestRecord:
        """Read it again from the store, unless it is finished."""
        if not self._record.state.finished:
            self._record = self._pool.read_request(self.id)
        return self._record

    def saw(self, record: RequestRecord) -> None:
        """Keep a record that was just read."""
        self._record = record

    def jobs(self, timeout: float | None = None) -> list[Job]:
        """Return its jobs, as soon as the server has them; wait ``timeout`` seconds at most.

        Without a ``timeout`` the wait ends with the template's import time-out, which begins when
        CVAT has the data: a request that is queued waits for as long as that takes.

        :raises pool.WaitTimeout: (a ``TimeoutError``) not yet; the import goes on.
        :raises pool.ImportFailed: CVAT could not import the data; the message is CVAT's.
        :raises pool.ImportTimedOut: the template's import time-out has passed.
        :raises pool.TaskGone: the task was deleted on the server.
        :raises pool.RequestCancelled: it was cancelled.
        """
        return self._pool.jobs_of_request(self, timeout)

    def events(self) -> list[Event]:
        """Return what has happened to it, the oldest first, as far as it is still kept: for a day,
        or until all sinks have it."""
        return self._pool.events_of(self.id)

    def shown(self, timeout: float | None = None) -> datetime:
        """Return since when annotators can open its jobs, as soon as they can; wait ``timeout``
        seconds at most. A request in no slot is shown once it is ready.

        Without a ``timeout`` the wait lasts for as long as CVAT takes; a warning ``not-shown`` says
        why that may be long.

        :raises pool.WaitTimeout: (a ``TimeoutError``) not yet; the pool goes on.
        :raises pool.RequestCancelled: it was cancelled, or is hidden.
        :raises pool.PoolError: it has failed, as :meth:`jobs` says.
        """
        self._record = self._pool.wait_until_shown(self.id, timeout)
        shown = shown_at(self._record)
        assert shown is not None
        return shown

    @property
    def hidden(self) -> Hidden | None:
        """How far its frames are hidden, as of now: see :meth:`cancel`."""
        self._record = self._pool.read_request(self.id)
        return self._record.hidden

    def cancel(self, *, hide: bool = False) -> bool:
        """Cancel it while it is still queued; return False when it is too late for that.

        With ``hide`` it is not: as soon as its frames exist they are marked as deleted, so that
        people see them no longer, and exports leave them out. It is ready all the same, and its
        bytes stay in CVAT until its task is deleted, which others may share; those in a slot are
        gone once they are hidden. Only a request that has failed is too late for that.
        """
        return self._pool.cancel(self, hide=hide)
