"""What has come of a request or a lease: its jobs, an error, or neither yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from pool.errors import LeaseEnded, PoolError, UnknownLease, UnknownRequest
from pool.handles import error_of
from pool.model import Job, LeaseRecord, LeaseState, RequestRecord, RequestState, TaskState
from pool.store import Store

Record = TypeVar("Record", bound=RequestRecord | LeaseRecord)

#: States of a task that will get no jobs.
_LOST: Final = (TaskState.FAILED, TaskState.RETIRED, TaskState.DELETING, TaskState.DELETED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Result(Generic[Record]):
    """A request or a lease, with its jobs once they exist, or the error why there will be none.

    ``over``: jobs and error are final.
    """

    record: Record
    jobs: Sequence[Job] = ()
    error: PoolError | None = None
    over: bool


def read_request(store: Store, request_id: str) -> Result[RequestRecord]:
    """Return the present state of a request.

    :raises UnknownRequest: there is none.
    """
    record = store.request(request_id)
    if record is None:
        raise UnknownRequest(request_id[:100])
    return result_of(store, record)


def result_of(store: Store, record: RequestRecord) -> Result[RequestRecord]:
    """Return the result of a row that was just read."""
    if record.state is RequestState.READY:
        jobs = store.jobs_of(record.pooled_id or "", request_id=record.id)
        return Result(record=record, jobs=jobs, over=True)
    over = record.state.finished
    error = error_of(record) if over else None
    return Result(record=record, error=error, over=over)


def read_lease(store: Store, lease_id: str) -> Result[LeaseRecord]:
    """Return the present state of a lease; it is over once its task has jobs, as that of a slot has
    from the start, or cannot get any.

    :raises UnknownLease: there is none.
    """
    record = store.lease(lease_id)
    if record is None:
        raise UnknownLease(lease_id[:100])
    if record.state in (LeaseState.RELEASED, LeaseState.EXPIRED, LeaseState.ABANDONED):
        # Its task may belong to another caller by now.
        ended = LeaseEnded(f"lease {lease_id} is {record.state.value}")
        return Result(record=record, error=ended, over=True)
    if record.state in (LeaseState.ACTIVE, LeaseState.USED) and record.pooled_id is not None:
        task = store.task(record.pooled_id)
        if task is None or task.state in _LOST:
            # Also of a slot, although its jobs exist: they will have no data.
            error = PoolError(task.reason if task else "the task was deleted")
            return Result(record=record, error=error, over=True)
        # The jobs of a slot are there before its data.
        if jobs := store.jobs_of(record.pooled_id):
            return Result(record=record, jobs=jobs, over=True)
    return Result(record=record, over=False)
