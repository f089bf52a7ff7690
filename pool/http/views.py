"""Leases and requests as the store has them now, with their jobs: what answers are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pool.errors import LeaseEnded, PoolError, UnknownLease, UnknownRequest
from pool.handles import error_of
from pool.http import schemas
from pool.http.schemas import TaskUrl
from pool.model import Job, LeaseRecord, LeaseState, RequestRecord, RequestState, TaskState
from pool.store import Store

#: Where a task stands that will have no jobs.
_LOST = (TaskState.FAILED, TaskState.RETIRED, TaskState.DELETING, TaskState.DELETED)


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestView:
    """A request and, once it is ready, its jobs."""

    record: RequestRecord
    jobs: Sequence[Job] = ()

    @property
    def over(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.record.state.finished

    @property
    def error(self) -> PoolError | None:
        """What it ended with, unless it is ready or still under way."""
        if not self.over or self.record.state is RequestState.READY:
            return None
        return error_of(self.record)


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaseView:
    """A lease, its task's jobs once they exist, and why there will be none."""

    record: LeaseRecord
    jobs: Sequence[Job] = ()
    error: PoolError | None = None

    @property
    def over(self) -> bool:
        """Whether there are jobs, or never will be any."""
        return bool(self.jobs) or self.error is not None


class Views:
    """Reads them; its methods block."""

    def __init__(self, store: Store, task_url: TaskUrl) -> None:
        self._store = store
        self._task_url = task_url

    def request(self, request_id: str) -> RequestView:
        """A request as it is now.

        :raises UnknownRequest: there is none.
        """
        record = self._store.request(request_id)
        if record is None:
            raise UnknownRequest(request_id[:100])
        return self.of(record)

    def of(self, record: RequestRecord) -> RequestView:
        """A request that was just read."""
        if record.state is RequestState.READY and record.pooled_id is not None:
            return RequestView(record=record, jobs=self._store.jobs_of(record.pooled_id))
        return RequestView(record=record)

    def lease(self, lease_id: str) -> LeaseView:
        """A lease as it is now.

        :raises UnknownLease: there is none.
        """
        record = self._store.lease(lease_id)
        if record is None:
            raise UnknownLease(lease_id[:100])
        if record.state in (LeaseState.RELEASED, LeaseState.EXPIRED, LeaseState.ABANDONED):
            # Its task may be somebody else's by now.
            ended = LeaseEnded(f"lease {lease_id} is {record.state.value}")
            return LeaseView(record=record, error=ended)
        if record.state is not LeaseState.USED or record.pooled_id is None:
            return LeaseView(record=record)
        jobs = self._store.jobs_of(record.pooled_id)
        return LeaseView(record=record, jobs=jobs, error=None if jobs else self._failure(record))

    def _failure(self, record: LeaseRecord) -> PoolError | None:
        task = self._store.task(record.pooled_id or "")
        if task is None or task.state in _LOST:
            return PoolError(task.reason if task else "the task was deleted")
        return None

    # --- As documents ---------------------------------------------------------------------------

    def request_document(self, view: RequestView) -> schemas.Request:
        return schemas.request_document(view.record, self._task_url, jobs=view.jobs)

    def lease_document(self, view: LeaseView) -> schemas.Lease:
        error = None if view.error is None else schemas.error_document(view.error)
        return schemas.lease_document(view.record, self._task_url, jobs=view.jobs, error=error)
