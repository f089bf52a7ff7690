"""What callers hold: a lease, a request. Both can be passed between threads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pool import errors
from pool.cvat.records import Progress
from pool.errors import PoolError
from pool.files import Files
from pool.model import Job, Outcome, RequestRecord, RequestState

if TYPE_CHECKING:
    from pool.taskpool import TaskPool


def when(seconds: float | None) -> datetime | None:
    """A stored time as an aware UTC datetime."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def error_of(record: RequestRecord) -> PoolError:
    """The error that a failed or cancelled request ended with, as an exception."""
    if record.state is RequestState.CANCELLED:
        return errors.RequestCancelled(f"request {record.id}")
    for kind in _error_kinds(PoolError):
        if kind.code == record.error_code:
            return kind(record.error)
    return PoolError(record.error)


def _error_kinds(kind: type[PoolError]) -> list[type[PoolError]]:
    kinds = [kind]
    for narrower in kind.__subclasses__():
        kinds.extend(_error_kinds(narrower))
    return kinds


@dataclass(frozen=True, kw_only=True)
class Lease:
    """One task, handed out to you alone.

    Upload into it with :meth:`upload`, or with any other tool: the pool watches the task
    either way. Give it back with :meth:`release` while it is untouched; after ``expires_at``
    the pool looks after it by itself.
    """

    id: str
    task_id: int
    name: str
    url: str
    template: str
    outcome: Outcome
    expires_at: datetime
    _pool: TaskPool = field(repr=False, compare=False)

    def upload(
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
    ) -> Request:
        """Send the data into this task; parameters and errors are those of
        :meth:`pool.TaskPool.submit`.

        :raises pool.LeaseEnded: the lease was used, given back or has expired.
        """
        return self._pool.upload_into(
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

    def jobs(self, timeout: float | None = None) -> list[Job]:
        """The jobs of the task, as soon as they exist, whoever uploaded; waits ``timeout``
        seconds at most.

        :raises pool.WaitTimeout: there are none yet; the pool goes on watching.
        :raises pool.ImportFailed: CVAT could not import the data.
        """
        return self._pool.jobs_of_lease(self, timeout)

    def release(self) -> None:
        """Give the untouched task back to the pool.

        :raises pool.LeaseInUse: data is in it, or on its way.
        """
        self._pool.release(self)


class Request:
    """Data on its way to job ids."""

    def __init__(self, pool: TaskPool, record: RequestRecord) -> None:
        self._pool = pool
        self._record = record

    @property
    def id(self) -> str:
        """The request's own id; :meth:`pool.TaskPool.request` finds it again, also elsewhere."""
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
        return None if self.task_id is None else self._pool.task_url(self.task_id)

    @property
    def outcome(self) -> Outcome | None:
        """How its task was found: ``hit``, ``wait`` or ``cold``."""
        return self._record.outcome

    @property
    def state(self) -> RequestState:
        """Where it stands now."""
        return self.refresh().state

    @property
    def record(self) -> RequestRecord:
        """What was last read from the store."""
        return self._record

    def refresh(self) -> RequestRecord:
        """Read it again from the store, unless it is finished."""
        if not self._record.state.finished:
            self._record = self._pool.read_request(self.id)
        return self._record

    def jobs(self, timeout: float | None = None) -> list[Job]:
        """Its jobs, as soon as the server has them; waits ``timeout`` seconds at most.

        Without a ``timeout`` the wait ends with the template's import time-out.

        :raises pool.WaitTimeout: (a ``TimeoutError``) not yet; the import goes on.
        :raises pool.ImportFailed: CVAT could not import the data; the message is CVAT's.
        :raises pool.ImportTimedOut: the template's import time-out has passed.
        :raises pool.TaskGone: somebody deleted the task.
        :raises pool.RequestCancelled: it was cancelled.
        """
        return self._pool.jobs_of_request(self, timeout)

    def cancel(self) -> bool:
        """Cancel it while it is still queued; False when it is too late for that."""
        return self._pool.cancel(self)

    def __repr__(self) -> str:
        record = self._record
        return f"Request(id={record.id!r}, task_id={record.task_id}, state={record.state.value!r})"
