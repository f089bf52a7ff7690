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

#: Seconds between two looks at a request that another process works on.
LOOK = 0.05


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
        timeout = check_timeout(timeout)
        self.engine.start()
        deadline = None if timeout is None else self.clock.monotonic() + timeout
        while True:
            seen = self.engine.tracker.finished.count
            record = request.refresh()
            if record.state is RequestState.READY and record.pooled_id is not None:
                return list(self.store.jobs_of(record.pooled_id))
            if record.state.finished:
                raise error_of(record)
            mine = record.owner == self.engine.owner and record.state is RequestState.IMPORTING
            self._await(deadline, seen, mine, f"request {request.id}")

    def jobs_of_lease(self, lease: Lease, timeout: float | None) -> list[Job]:
        """What :meth:`Lease.jobs` does."""
        timeout = check_timeout(timeout)
        self.engine.start()
        deadline = None if timeout is None else self.clock.monotonic() + timeout
        while True:
            seen = self.engine.tracker.finished.count
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
            self._await(deadline, seen, True, f"lease {lease.id}")

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

    def _await(self, deadline: float | None, seen: int, mine: bool, what: str) -> None:
        """Wait for news, or a little while for what another process may do."""
        pause = None if mine else LOOK
        if deadline is not None:
            remaining = deadline - self.clock.monotonic()
            if remaining <= 0:
                raise WaitTimeout(what)
            pause = remaining if pause is None else min(pause, remaining)
        # Even one's own import may be ended by somebody else, so look again now and then.
        self.engine.tracker.finished.wait(seen, 1.0 if pause is None else min(pause, 1.0))
