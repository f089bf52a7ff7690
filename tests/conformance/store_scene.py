"""Brings a store into the situation that a test is about, by the store's own methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from pool.model import (
    Job,
    LeaseRecord,
    LeaseState,
    PooledTask,
    RequestRecord,
    RequestState,
    TaskState,
    new_id,
)
from pool.store import CreateLimit, NewLease, NewRequest, Opened, Store

NOW = 1_700_000_000.0
TEMPLATE = "streets"
FINGERPRINT = "f00d"
ORIGIN = "0r191n"
JOBS = (
    Job(id=31, url="https://cvat/api/jobs/31", start_frame=0, stop_frame=4, assignee="ann"),
    Job(id=32, url="https://cvat/api/jobs/32", start_frame=5, stop_frame=7),
)


def wish(
    *,
    template: str = TEMPLATE,
    fingerprint: str = FINGERPRINT,
    reusable_origin: str | None = None,
    owner: str = "here",
    ttl: float = 60.0,
    key: str | None = None,
    payload: str = "",
) -> NewLease:
    """A fresh wish for a task."""
    return NewLease(
        id=new_id(),
        template=template,
        fingerprint=fingerprint,
        reusable_origin=reusable_origin,
        owner=owner,
        ttl=ttl,
        idempotency_key=key,
        payload=payload,
    )


def data(*files: str) -> NewRequest:
    """A fresh request."""
    return NewRequest(id=new_id(), name="monday", assignee=7, files=files or ("a.jpg",), size=99)


#: Where the files of carriers stand.
SETTINGS = {"storage": "file:///mnt/share", "format": "jpg"}


def make_carrier(store: Store, slots: int, *, task_id: int = 70, first_job: int = 500) -> str:
    carrier_id = new_id(NOW)
    limit = CreateLimit(capacity=1000, concurrency=9)
    assert store.begin_create(
        carrier_id, TEMPLATE, FINGERPRINT, slots=slots, limit=limit, owner="me", now=NOW
    )
    assert store.record_created(carrier_id, task_id=task_id, now=NOW)
    jobs = [
        Job(
            id=first_job + number,
            url=f"https://cvat.test/jobs/{first_job + number}",
            start_frame=number,
            stop_frame=number,
        )
        for number in range(slots)
    ]
    assert not store.finish_carrier(carrier_id, jobs, now=NOW)
    assert store.begin_carrier(carrier_id, SETTINGS, now=NOW)
    assert store.finish_carrier(carrier_id, jobs, took=1.0, now=NOW)
    return carrier_id


@dataclass
class Scene:
    """A store, and short ways to fill it. Task ids are counted from 1."""

    store: Store
    task_ids: count[int] = field(default_factory=lambda: count(1))

    def creating(
        self,
        *,
        template: str = TEMPLATE,
        fingerprint: str = FINGERPRINT,
        origin: str = ORIGIN,
        now: float = NOW,
    ) -> PooledTask:
        task = self.store.begin_create(
            new_id(),
            template,
            fingerprint,
            origin=origin,
            limit=CreateLimit(capacity=10_000, concurrency=10_000),
            owner="here",
            now=now,
        )
        assert task is not None
        return task

    def warm(
        self,
        *,
        template: str = TEMPLATE,
        fingerprint: str = FINGERPRINT,
        origin: str = ORIGIN,
        now: float = NOW,
    ) -> PooledTask:
        task = self.creating(template=template, fingerprint=fingerprint, origin=origin, now=now)
        assert self.store.record_created(task.id, task_id=next(self.task_ids), now=now)
        assert self.store.finish_create(task.id, prepared=True, now=now)
        return self.task(task.id)

    def leased(self, *, ttl: float = 60.0, now: float = NOW) -> Opened:
        self.warm(now=now)
        return self.store.open_lease(wish(ttl=ttl), now=now)

    def waiting(self, *, key: str | None = None, now: float = NOW) -> Opened:
        opened = self.store.open_lease(wish(key=key), now=now)
        assert opened.task is None
        return opened

    def queued(self, *, key: str | None = None, owner: str = "here", now: float = NOW) -> Opened:
        opened = self.store.open_lease(wish(key=key, owner=owner), request=data(), now=now)
        assert opened.task is None
        return opened

    def uploading(
        self, *, owner: str = "here", request: NewRequest | None = None, now: float = NOW
    ) -> Opened:
        self.warm(now=now)
        return self.store.open_lease(wish(owner=owner), request=request or data(), now=now)

    def importing(
        self, *, owner: str = "here", request: NewRequest | None = None, now: float = NOW
    ) -> Opened:
        opened = self.uploading(owner=owner, request=request, now=now)
        assert opened.request is not None
        assert self.begin_import(opened, deadline=now + 600, now=now)
        return opened

    def begin_import(self, opened: Opened, *, deadline: float = NOW + 600, now: float) -> bool:
        """CVAT has accepted the data of a hand-out's request."""
        assert opened.request is not None
        import_id = self.import_id(opened.request.id)
        return self.store.begin_import(import_id, deadline=deadline, now=now)

    def requeue(self, request_id: str, *, reason: str = "gone", now: float) -> str:
        """A request needs another task; the lease that it waits with, "" when that is refused."""
        queued = self.store.requeue_import(self.import_id(request_id), reason=reason, now=now)
        assert [request.id for request in queued] in ([request_id], [])
        return queued[0].lease_id if queued else ""

    def retired(self, *, now: float = NOW) -> PooledTask:
        task = self.warm(now=now)
        assert self.store.retire(task.id, reason="old", now=now)
        return self.task(task.id)

    # --- Looking --------------------------------------------------------------------------------

    def task(self, pooled_id: str | None) -> PooledTask:
        assert pooled_id is not None
        task = self.store.task(pooled_id)
        assert task is not None
        return task

    def import_id(self, request_id: str) -> str:
        """The id of a request's import; "none" when it has none."""
        request = self.store.request(request_id)
        return (request.import_id if request else None) or "none"

    def lease(self, lease_id: str) -> LeaseRecord:
        lease = self.store.lease(lease_id)
        assert lease is not None
        return lease

    def request(self, request: RequestRecord | None) -> RequestRecord:
        assert request is not None
        found = self.store.request(request.id)
        assert found is not None
        return found

    def states(self, opened: Opened) -> tuple[TaskState | None, LeaseState, RequestState | None]:
        """Where the task, the lease and the request of one hand-out stand now."""
        lease = self.lease(opened.lease.id)
        task = self.store.task(lease.pooled_id) if lease.pooled_id else None
        return (
            task.state if task else None,
            lease.state,
            self.request(opened.request).state if opened.request else None,
        )


def everything(store: Store) -> tuple[Sequence[object], ...]:
    """All rows that a caller can see, to compare before and after."""
    return (
        store.tasks(states=tuple(TaskState)),
        store.leases(limit=100_000),
        store.requests(limit=100_000).requests,
    )
