"""Random sequences of calls, in any order and on rows in any state, against a model of states.

The model knows which call is due in which state and where it leads; the tables of legal
transitions are checked on every step. Whatever a call was, the store must then stand where the
model stands, and where the call was not due, nothing at all may have changed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from conformance.store_factories import FACTORIES
from conformance.store_model import L, Lease, Model, R, Request, T, Task
from conformance.store_scene import FINGERPRINT, JOBS, NOW, TEMPLATE, data, everything, wish
from pool.model import new_id
from pool.store import CreateLimit, NewMember, NewRequest, open_store


class Calls(Model):
    """Which row a call is about is drawn as a number: rows are few, so that they are met often."""

    folder: tempfile.TemporaryDirectory[str]

    @initialize(factory=st.sampled_from(sorted(FACTORIES)))
    def open(self, factory: str) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.store = open_store(FACTORIES[factory](Path(self.folder.name)))

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            self.folder.cleanup()

    # --- Creating -------------------------------------------------------------------------------

    @rule(cold=st.booleans())
    def begin_create(self, cold: bool) -> None:
        counted = [
            task
            for task in self.tasks.values()
            if task.state is T.WARM or (task.state is T.CREATING and not task.cold)
        ]
        creating = [task for task in counted if task.state is T.CREATING]
        pooled_id = new_id()
        due = cold or (len(counted) < 4 and len(creating) < 2)
        limit = None if cold else CreateLimit(capacity=4, concurrency=2)
        self.expect(
            due,
            lambda: self.store.begin_create(
                pooled_id, TEMPLATE, FINGERPRINT, limit=limit, owner="me", now=self.now
            ),
        )
        if due:
            self.tasks[pooled_id] = Task(cold=cold)

    @rule(number=st.integers(0, 9))
    def record_created(self, number: int) -> None:
        pooled_id, task = self.some_task(number)
        due = task.state is T.CREATING
        self.expect(due, lambda: self.store.record_created(pooled_id, task_id=7, now=self.now))
        task.known_to_server |= due

    @rule(number=st.integers(0, 9))
    def finish_create(self, number: int) -> None:
        pooled_id, task = self.some_task(number)
        due = task.state is T.CREATING and task.known_to_server
        self.expect(due, lambda: self.store.finish_create(pooled_id, prepared=True, now=self.now))
        if due:
            self.move_task(pooled_id, T.WARM)

    @rule()
    def create(self) -> None:
        """What refilling does; so that there is often something to hand out."""
        self.begin_create(cold=False)
        for number, task in enumerate(self.tasks.values()):
            if task.state is T.CREATING:
                self.record_created(number)
                self.finish_create(number)

    @rule(number=st.integers(0, 9), lease_number=st.integers(0, 9))
    def finish_cold(self, number: int, lease_number: int) -> None:
        pooled_id, task = self.some_task(number)
        lease_id, lease = self.some_lease(lease_number)
        due = task.state is T.CREATING and task.known_to_server and lease.state is L.WAITING
        self.expect(
            due, lambda: self.store.finish_cold(pooled_id, lease_id, prepared=True, now=self.now)
        )
        if due:
            self.move_lease(lease_id, L.ACTIVE)
            self.hand_out(pooled_id, lease_id)

    @rule(number=st.integers(0, 9))
    def fail_create(self, number: int) -> None:
        pooled_id, task = self.some_task(number)
        due = task.state is T.CREATING
        self.expect(due, lambda: self.store.fail_create(pooled_id, reason="x", now=self.now))
        if due:
            self.move_task(pooled_id, T.FAILED)

    # --- Handing out ----------------------------------------------------------------------------

    @rule(with_request=st.booleans(), spooled=st.booleans(), claim=st.booleans())
    def open_lease(self, with_request: bool, spooled: bool, claim: bool) -> None:
        pooled_id = self.oldest_warm() if claim else None
        wanted = wish()
        request = replace(data(), spooled=spooled) if with_request else None
        opened = self.store.open_lease(wanted, request=request, claim=claim, now=self.now)
        assert opened.lease.pooled_id == pooled_id
        self.leases[wanted.id] = Lease(
            L.ACTIVE if pooled_id else L.WAITING, request.id if request else None
        )
        if request:
            self.requests[request.id] = Request(R.QUEUED, wanted.id, spooled)
        if pooled_id:
            self.hand_out(pooled_id, wanted.id)

    @rule(number=st.integers(0, 9))
    def claim_warm(self, number: int) -> None:
        lease_id, lease = self.some_lease(number)
        pooled_id = self.oldest_warm()
        due = lease.state is L.WAITING and pooled_id is not None
        self.expect(due, lambda: self.store.claim_warm(lease_id, FINGERPRINT, now=self.now))
        if due and pooled_id:
            self.move_lease(lease_id, L.ACTIVE)
            self.hand_out(pooled_id, lease_id)

    @rule(number=st.integers(0, 9))
    def abandon_lease(self, number: int) -> None:
        lease_id, lease = self.some_lease(number)
        due = lease.state is L.WAITING
        self.expect(due, lambda: self.store.abandon_lease(lease_id, now=self.now))
        if due:
            self.move_lease(lease_id, L.ABANDONED)
            if lease.request:
                self.move_request(lease.request, R.CANCELLED)

    @rule(number=st.integers(0, 9))
    def attach_request(self, number: int) -> None:
        lease_id, lease = self.some_lease(number)
        request: NewRequest = data()
        due = lease.state is L.ACTIVE and lease.request is None
        self.expect(
            due,
            lambda: self.store.attach_request(lease_id, request, owner="me", now=self.now),
        )
        if due:
            lease.request = request.id
            self.requests[request.id] = Request(R.UPLOADING, lease_id)

    @rule(number=st.integers(0, 9), way=st.sampled_from(["back", "expired", "end", "foreign"]))
    def end_or_use_lease(self, number: int, way: str) -> None:
        lease_id, lease = self.some_lease(number)
        due = lease.state is L.ACTIVE and lease.request is None
        calls: dict[str, Callable[[], bool]] = {
            "back": lambda: self.store.give_back(lease_id, now=self.now),
            "expired": lambda: self.store.give_back(lease_id, now=self.now, expired=True),
            "end": lambda: self.store.end_lease(lease_id, reason="x", now=self.now),
            "foreign": lambda: self.store.begin_foreign_import(lease_id, now=self.now),
        }
        leads_to = {
            "back": (T.WARM, L.RELEASED),
            "expired": (T.WARM, L.EXPIRED),
            "end": (T.RETIRED, L.EXPIRED),
            "foreign": (T.IMPORTING, L.USED),
        }
        self.expect(due, calls[way])
        if due:
            task_state, lease_state = leads_to[way]
            assert lease.task is not None
            self.move_task(lease.task, task_state)
            self.move_lease(lease_id, lease_state)

    # --- Data on its way ------------------------------------------------------------------------

    @rule(number=st.integers(0, 9))
    def begin_import(self, number: int) -> None:
        request_id, request = self.some_request(number)
        due, import_id = request.state is R.UPLOADING, self.import_id(request_id)
        self.expect(due, lambda: self.store.begin_import(import_id, deadline=NOW, now=self.now))
        if due:
            self.move_request(request_id, R.IMPORTING)
            self.move_task(self.held_task(request) or "", T.IMPORTING)
            self.move_lease(request.lease, L.USED)

    @rule(number=st.integers(0, 9), succeeds=st.booleans(), verified=st.booleans())
    def end_import(self, number: int, succeeds: bool, verified: bool) -> None:
        pooled_id, task = self.some_task(number)
        due = task.state in (T.LEASED, T.IMPORTING)
        if due and succeeds and not verified:
            request = self.leases[task.lease or ""].request
            due = request is None or self.requests[request].state is not R.UPLOADING
        self.expect(
            due,
            lambda: (
                self.store.complete_import(pooled_id, JOBS, verified=verified, now=self.now)
                if succeeds
                else self.store.fail_import(pooled_id, code="x", message="y", now=self.now)
            ),
        )
        if not due:
            return
        assert task.lease is not None
        self.move_task(pooled_id, T.READY if succeeds else T.FAILED)
        lease = self.leases[task.lease]
        if lease.state is L.ACTIVE:
            self.move_lease(task.lease, L.USED)
        if lease.request:
            if succeeds and self.requests[lease.request].state is R.UPLOADING:
                # Imported before anybody could say that it was being imported.
                self.move_request(lease.request, R.IMPORTING)
            self.move_request(lease.request, R.READY if succeeds else R.FAILED)

    @rule(number=st.integers(0, 9), untouched=st.booleans())
    def fail_request(self, number: int, untouched: bool) -> None:
        request_id, request = self.some_request(number)
        was = request.state
        due = was in (R.QUEUED, R.UPLOADING)
        self.expect(
            due,
            lambda: self.store.fail_request(
                request_id, untouched=untouched, code="x", message="y", now=self.now
            ),
        )
        if not due:
            return
        self.move_request(request_id, R.FAILED)
        if was is R.QUEUED:
            self.move_lease(request.lease, L.ABANDONED)
        else:
            self.move_task(self.held_task(request) or "", T.WARM if untouched else T.FAILED)
            self.move_lease(request.lease, L.RELEASED if untouched else L.USED)

    @rule(number=st.integers(0, 9))
    def requeue_request(self, number: int) -> None:
        request_id, request = self.some_request(number)
        was, import_id = request.state, self.import_id(request_id)
        due = was in (R.UPLOADING, R.IMPORTING)
        self.expect(due, lambda: self.store.requeue_import(import_id, reason="x", now=self.now))
        if not due:
            return
        fresh = self.lease_id(request_id)
        self.move_request(request_id, R.QUEUED)
        self.move_task(self.held_task(request) or "", T.FAILED)
        if was is R.UPLOADING:
            self.move_lease(request.lease, L.USED)
        self.leases[request.lease].request = None
        self.leases[fresh] = Lease(L.WAITING, request_id)
        request.lease = fresh

    @rule(number=st.integers(0, 9), lost=st.booleans())
    def queue_request(self, number: int, lost: bool) -> None:
        request_id, request = self.some_request(number)
        was = request.state
        due = was in (R.QUEUED, R.UPLOADING) and not lost
        expected = "another" if lost else request.lease
        self.expect(
            due,
            lambda: self.store.queue_request(
                request_id, expected_lease_id=expected, most=None, now=self.now
            ),
        )
        if not due:
            return
        request.spooled = True
        fresh = self.lease_id(request_id)
        if was is R.UPLOADING:
            self.move_request(request_id, R.QUEUED)
            self.move_task(self.held_task(request) or "", T.WARM)
            self.move_lease(request.lease, L.RELEASED)
            self.leases[request.lease].request = None
            self.leases[fresh] = Lease(L.WAITING, request_id)
            request.lease = fresh

    @rule(number=st.integers(0, 9))
    def take_spooled(self, number: int) -> None:
        request_id, request = self.some_request(number)
        due = request.spooled and request.state in (R.QUEUED, R.UPLOADING)
        before = everything(self.store)
        taken = self.store.take_spooled(request_id, owner="me", now=self.now)
        assert bool(taken) is due
        assert due or everything(self.store) == before

    @rule(number=st.integers(0, 9))
    def claim_queued(self, number: int) -> None:
        request_id, request = self.some_request(number)
        pooled_id = self.oldest_warm()
        due = request.spooled and request.state is R.QUEUED and pooled_id is not None
        self.expect(
            due,
            lambda: self.store.claim_queued(
                [NewMember(request_id=request_id)], FINGERPRINT, owner="me", now=self.now
            ),
        )
        if due and pooled_id:
            self.move_lease(request.lease, L.ACTIVE)
            self.hand_out(pooled_id, request.lease)

    @rule(number=st.integers(0, 9))
    def cancel_request(self, number: int) -> None:
        request_id, request = self.some_request(number)
        due = request.state is R.QUEUED
        self.expect(due, lambda: self.store.cancel_request(request_id, now=self.now))
        if due:
            self.move_request(request_id, R.CANCELLED)
            self.move_lease(request.lease, L.ABANDONED)

    # --- Retiring and deleting ------------------------------------------------------------------

    @rule(number=st.integers(0, 9))
    def retire(self, number: int) -> None:
        pooled_id, task = self.some_task(number)
        due = task.state is T.WARM
        self.expect(due, lambda: self.store.retire(pooled_id, reason="x", now=self.now))
        if due:
            self.move_task(pooled_id, T.RETIRED)

    @rule(keep=st.integers(1, 3))
    def retire_excess(self, keep: int) -> None:
        warm = sorted(
            (task.warm_since, id) for id, task in self.tasks.items() if task.state is T.WARM
        )
        excess = warm[: max(0, len(warm) - keep)]
        self.expect(
            bool(excess),
            lambda: self.store.retire_excess(TEMPLATE, keep=keep, reason="x", now=self.now),
        )
        for _, pooled_id in excess:
            self.move_task(pooled_id, T.RETIRED)

    @rule(limit=st.integers(1, 3))
    def begin_delete(self, limit: int) -> None:
        doomed = [id for id, task in self.tasks.items() if task.state in (T.FAILED, T.RETIRED)]
        taken = self.store.begin_delete(owner="me", limit=limit, retry_after=1e6, now=self.now)
        assert len(taken) == min(limit, len(doomed))
        for task in taken:
            self.move_task(task.id, T.DELETING)

    @rule(number=st.integers(0, 9))
    def finish_delete(self, number: int) -> None:
        pooled_id, task = self.some_task(number)
        due = task.state is T.DELETING
        self.expect(due, lambda: self.store.finish_delete(pooled_id, now=self.now))
        if due:
            self.move_task(pooled_id, T.DELETED)

    @rule(number=st.integers(0, 9))
    def disown(self, number: int) -> None:
        pooled_id, task = self.some_task(number)
        due = task.state in (T.WARM, T.RETIRED, T.DELETING)
        self.expect(due, lambda: self.store.disown(pooled_id, reason="x", now=self.now))
        if due:
            self.move_task(pooled_id, T.DELETED)

    @rule(number=st.integers(0, 9))
    def adopt_task(self, number: int) -> None:
        pooled_id, task = self.some_task(number)
        due = pooled_id != "unknown" and task.state is T.DELETED and not task.known_to_server
        self.expect(
            due,
            lambda: self.store.adopt_task(pooled_id, task_id=8, prepared=True, now=self.now),
        )
        if due:
            task.known_to_server = True
            self.move_task(pooled_id, T.WARM)

    # --- What always holds ----------------------------------------------------------------------

    @invariant()
    def the_store_stands_where_the_model_stands(self) -> None:
        if not hasattr(self, "store"):
            return
        tasks = self.store.tasks(states=tuple(T))
        leases = self.store.leases(limit=10_000)
        requests = self.store.requests(limit=10_000).requests
        assert {task.id: task.state for task in tasks} == {
            id: task.state for id, task in self.tasks.items()
        }
        assert {lease.id: lease.state for lease in leases} == {
            id: lease.state for id, lease in self.leases.items()
        }
        assert {request.id: (request.state, request.lease_id) for request in requests} == {
            id: (request.state, request.lease) for id, request in self.requests.items()
        }
        self.look_at_imports()
        holders = [task.lease_id for task in tasks if task.lease_id]
        assert len(holders) == len(set(holders)), "a lease has at most one task"
        active = [lease.pooled_id for lease in leases if lease.state is L.ACTIVE]
        leased = [task.id for task in tasks if task.state is T.LEASED]
        assert sorted(map(str, active)) == sorted(leased), "a task has at most one lease"


TestCalls = Calls.TestCase
TestCalls.settings = settings(
    max_examples=60,
    stateful_step_count=40,
)
