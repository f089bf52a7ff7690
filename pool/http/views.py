"""Leases and requests as the store has them now, with their jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pool.errors import LeaseEnded, PoolError, UnknownLease, UnknownRequest
from pool.handles import error_of
from pool.model import Job, LeaseRecord, LeaseState, RequestRecord, RequestState, TaskState
from pool.store import Store

#: States of a task that will have no jobs.
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


def read_request(store: Store, request_id: str) -> RequestView:
    """Return a request as it is now.

    :raises UnknownRequest: there is none.
    """
    record = store.request(request_id)
    if record is None:
        raise UnknownRequest(request_id[:100])
    return view_of(store, record)


def view_of(store: Store, record: RequestRecord) -> RequestView:
    """Return a request that was just read, with its jobs."""
    if record.state is RequestState.READY and record.pooled_id is not None:
        return RequestView(
            record=record, jobs=store.jobs_of(record.pooled_id, request_id=record.id)
        )
    return RequestView(record=record)


def read_lease(store: Store, lease_id: str) -> LeaseView:
    """Return a lease as it is now.

    :raises UnknownLease: there is none.
    """
    record = store.lease(lease_id)
    if record is None:
        raise UnknownLease(lease_id[:100])
    if record.state in (LeaseState.RELEASED, LeaseState.EXPIRED, LeaseState.ABANDONED):
        # Its task may be another caller's by now.
        ended = LeaseEnded(f"lease {lease_id} is {record.state.value}")
        return LeaseView(record=record, error=ended)
    if record.state is not LeaseState.USED or record.pooled_id is None:
        return LeaseView(record=record)
    if jobs := store.jobs_of(record.pooled_id):
        return LeaseView(record=record, jobs=jobs)
    task = store.task(record.pooled_id)
    if task is None or task.state in _LOST:
        error = PoolError(task.reason if task else "the task was deleted")
        return LeaseView(record=record, error=error)
    return LeaseView(record=record)
