"""What the states of a store ought to be: the model that random calls are checked against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from hypothesis.stateful import RuleBasedStateMachine

from conformance.store_scene import NOW, everything
from pool.model import (
    IMPORT_TRANSITIONS,
    LEASE_TRANSITIONS,
    REQUEST_TRANSITIONS,
    TASK_TRANSITIONS,
    ImportRecord,
    ImportState,
    LeaseState,
    RequestState,
    TaskState,
)
from pool.store import Store

T, L, R = TaskState, LeaseState, RequestState
Row = TypeVar("Row")

#: The states of a request's import, by the request's own.
OF_IMPORT = {
    R.QUEUED: set[ImportState](),
    R.UPLOADING: {ImportState.UPLOADING},
    R.IMPORTING: {ImportState.IMPORTING},
    R.READY: {ImportState.READY},
    R.FAILED: {ImportState.FAILED, ImportState.RETURNED},
    R.CANCELLED: set[ImportState](),
}


@dataclass
class Task:
    state: TaskState = T.CREATING
    lease: str | None = None
    known_to_server: bool = False
    cold: bool = False
    warm_since: int = 0


@dataclass
class Lease:
    state: LeaseState
    request: str | None = None
    task: str | None = None


@dataclass
class Request:
    state: RequestState
    lease: str
    spooled: bool = False


class Model(RuleBasedStateMachine):
    """Tasks, leases and requests, and the moves that are legal, next to a store."""

    store: Store

    def __init__(self) -> None:
        super().__init__()
        self.tasks: dict[str, Task] = {}
        self.leases: dict[str, Lease] = {}
        self.requests: dict[str, Request] = {}
        #: Imports as they were seen last.
        self.imports: dict[str, ImportRecord] = {}
        self.turn = 0

    @property
    def now(self) -> float:
        self.turn += 1
        return NOW + self.turn

    def expect(self, due: bool, call: Callable[[], object]) -> object:
        """Make a call; where it is not due it has to answer so, and to change nothing."""
        before = everything(self.store)
        answer = call()
        assert bool(answer) is due, answer
        if not due:
            assert everything(self.store) == before
        return answer

    def move_task(self, pooled_id: str, state: TaskState) -> Task:
        task = self.tasks[pooled_id]
        assert state in TASK_TRANSITIONS[task.state]
        task.state = state
        if state is T.WARM:
            task.lease = None
            task.warm_since = task.warm_since or self.turn
        return task

    def move_lease(self, lease_id: str, state: LeaseState) -> Lease:
        lease = self.leases[lease_id]
        assert state in LEASE_TRANSITIONS[lease.state]
        lease.state = state
        return lease

    def move_request(self, request_id: str, state: RequestState) -> Request:
        request = self.requests[request_id]
        assert state in REQUEST_TRANSITIONS[request.state]
        request.state = state
        return request

    def hand_out(self, pooled_id: str, lease_id: str) -> None:
        self.move_task(pooled_id, T.LEASED).lease = lease_id
        lease = self.leases[lease_id]
        lease.task = pooled_id
        if lease.request:
            self.move_request(lease.request, R.UPLOADING)

    def oldest_warm(self) -> str | None:
        warm = [(task.warm_since, id) for id, task in self.tasks.items() if task.state is T.WARM]
        return min(warm)[1] if warm else None

    def some_task(self, number: int) -> tuple[str, Task]:
        return _pick(self.tasks, number, Task(T.DELETED))

    def some_lease(self, number: int) -> tuple[str, Lease]:
        return _pick(self.leases, number, Lease(L.ABANDONED))

    def some_request(self, number: int) -> tuple[str, Request]:
        return _pick(self.requests, number, Request(R.CANCELLED, ""))

    def look_at_imports(self) -> None:
        """Check the imports of all requests, and those that there were before."""
        for request in self.store.requests(limit=10_000).requests:
            if request.import_id is None:
                assert not OF_IMPORT[request.state] or request.state is R.FAILED
                continue
            now = self.store.import_record(request.import_id)
            assert now is not None
            assert now.state in OF_IMPORT[request.state]
            assert now.request_ids == (request.id,)
            self.imports.setdefault(now.id, now)
        for before in list(self.imports.values()):
            now = self.store.import_record(before.id)
            assert now is not None
            assert now.state is before.state or now.state in IMPORT_TRANSITIONS[before.state]
            assert (now.members, now.pooled_id) == (before.members, before.pooled_id)
            self.imports[now.id] = now

    def import_id(self, request_id: str) -> str:
        request = self.store.request(request_id)
        return (request.import_id if request else None) or "none"

    def lease_id(self, request_id: str) -> str:
        request = self.store.request(request_id)
        assert request is not None
        return request.lease_id

    def held_task(self, request: Request) -> str | None:
        return self.leases[request.lease].task if request.lease else None


def _pick(rows: dict[str, Row], number: int, otherwise: Row) -> tuple[str, Row]:
    """The row that a number stands for, counted from the newest; "unknown" when there is none."""
    ids = list(rows)[::-1]
    return (ids[number], rows[ids[number]]) if number < len(ids) else ("unknown", otherwise)
