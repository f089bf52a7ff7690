"""Waiting for the jobs of requests and leases, whoever works on them."""

from __future__ import annotations

from pool.clock import Clock
from pool.config.arguments import check_id, check_timeout
from pool.errors import LeaseEnded, PoolError, UnknownLease, UnknownRequest, WaitTimeout
from pool.handles import Lease, Request, error_of
from pool.model import (
    Handout,
    Job,
    LeaseRecord,
    LeaseState,
    RequestRecord,
    RequestState,
    TaskState,
)
from pool.process import Engine
from pool.store import Store


class Awaiting:
    """The half of :class:`~pool.taskpool.TaskPool` that follows what was handed out to its end."""

    engine: Engine
    store: Store
    clock: Clock

    def read_request(self, request_id: str) -> RequestRecord:
        """A request's row.

        :raises UnknownRequest: there is none.
        """
        record = self.store.request(check_id(request_id, UnknownRequest))
        if record is None:
            raise UnknownRequest(request_id)
        return record

    def jobs_of_request(self, request: Request, timeout: float | None) -> list[Job]:
        """What :meth:`Request.jobs` does."""

        def jobs() -> list[Job] | None:
            record = request.refresh()
            if record.state is RequestState.READY and record.pooled_id is not None:
                return list(self.store.jobs_of(record.pooled_id, request_id=record.id))
            if record.state.finished:
                raise error_of(record)
            return None

        timeout = check_timeout(timeout)
        self.engine.start()
        found = self.engine.feed.wait_for(jobs, timeout, request=request.id)
        if found is None:
            raise WaitTimeout(f"request {request.id}")
        return found

    def jobs_of_lease(self, lease: Lease, timeout: float | None) -> list[Job]:
        """What :meth:`Lease.jobs` does."""

        def jobs() -> list[Job] | None:
            record = self._lease_record(lease.id)
            task = self.store.task(record.pooled_id) if record.pooled_id else None
            if task is None or task.state in (TaskState.RETIRED, TaskState.DELETED):
                raise LeaseEnded(f"lease {lease.id} is {record.state.value}")
            if task.state is TaskState.READY:
                return list(self.store.jobs_of(task.id))
            if task.state in (TaskState.FAILED, TaskState.DELETING):
                raise PoolError(task.reason)
            if record.state in (LeaseState.RELEASED, LeaseState.EXPIRED):
                raise LeaseEnded(f"lease {lease.id} is {record.state.value}")
            self.engine.tracker.watch_lease(Handout(lease=record, task=task))
            return None

        timeout = check_timeout(timeout)
        self.engine.start()
        found = self.engine.feed.wait_for(jobs, timeout, lease=lease.id)
        if found is None:
            raise WaitTimeout(f"lease {lease.id}")
        return found

    def cancel(self, request: Request) -> bool:
        """What :meth:`Request.cancel` does."""
        cancelled = self.store.cancel_request(request.id, now=self.clock.now())
        if cancelled and request.refresh().spooled:
            self.engine.spool.drop(request.id)
        return cancelled

    def _lease_record(self, lease_id: str) -> LeaseRecord:
        record = self.store.lease(check_id(lease_id, UnknownLease))
        if record is None:
            raise UnknownLease(lease_id)
        return record
