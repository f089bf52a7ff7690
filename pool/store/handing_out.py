"""Tasks on their way to callers. Each function is one transaction of the SQLite store."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sqlite_utils import Database

from pool.errors import IdempotencyConflict, QueueFull
from pool.model import (
    Handout,
    LeaseRecord,
    LeaseState,
    Outcome,
    PooledTask,
    RequestRecord,
    RequestState,
)
from pool.store import lookups, queries
from pool.store.base import DEMAND_BUCKET, NewLease, NewRequest, Opened
from pool.store.queue_rows import NOBODY
from pool.store.rows import (
    LEASE_COLUMNS,
    changed,
    file_list,
    lease_of,
    number,
    one,
    request_of,
    task_of,
    text,
)


def open_lease(
    db: Database,
    lease: NewLease,
    *,
    request: NewRequest | None = None,
    claim: bool = True,
    most_queued: int | None = None,
    now: float,
) -> Opened:
    known = _known(db, lease, of_request=request is not None)
    if known is not None:
        return known
    task: PooledTask | None = None
    if claim:
        task = _claim(
            db, lease.id, lease.template, lease.fingerprint, older_from=lease.older_from, now=now
        )
    if task is None and request is not None and request.spooled:
        check_room(db, most_queued)
        lease = replace(lease, owner=NOBODY)
    record = _insert_lease(db, lease, task, request_id=request.id if request else None, now=now)
    accepted = _insert_request(db, lease, request, task, now=now) if request else None
    if task is not None and request is None:
        count(db, lease.template, Outcome.HIT, now=now)
    return Opened(lease=record, task=task, request=accepted, replayed=False)


def _known(db: Database, lease: NewLease, *, of_request: bool) -> Opened | None:
    """What was answered to the lease's key before; None when the key is new, or there is none."""
    if lease.idempotency_key is None:
        return None
    key = {"key": lease.idempotency_key}
    request: RequestRecord | None = None
    if of_request:
        row = one(db, lookups.REQUEST_BY_KEY, key)
        if row is None:
            return None
        request = request_of(row)
        payload = request.payload
        held = one(db, lookups.LEASE, {"id": request.lease_id})
        assert held is not None
        record = lease_of(held)
    else:
        row = one(db, lookups.LEASE_BY_KEY, key)
        if row is None:
            return None
        record, payload = lease_of(row[: len(LEASE_COLUMNS)]), row[-1]
    if payload != lease.payload or record.template != lease.template:
        raise IdempotencyConflict(f"{lease.idempotency_key!r}; choose another key")
    task = one(db, lookups.TASK_OF_LEASE, {"id": record.id})
    return Opened(
        lease=record, task=task_of(task) if task else None, request=request, replayed=True
    )


def check_room(db: Database, most: int | None) -> None:
    """Raise QueueFull when as many as ``most`` spooled requests are queued."""
    if most is not None and number(db, lookups.QUEUE_LENGTH, {}) >= most:
        raise QueueFull(f"{most} requests wait, as many as daemon.max_queued allows")


def can_claim(
    db: Database, lease_id: str, fingerprint: str, *, older_from: str | None = None, now: float
) -> bool:
    """Whether :func:`claim_warm` is worth a transaction that writes."""
    wanted = {"id": lease_id, "fingerprint": fingerprint, "now": now}
    if one(db, lookups.CAN_CLAIM, wanted) is not None:
        return True
    return bool(older_from) and (
        one(db, lookups.CAN_CLAIM_OLDER, {**wanted, "older_from": older_from}) is not None
    )


def claim_warm(
    db: Database, lease_id: str, fingerprint: str, *, older_from: str | None = None, now: float
) -> Handout | None:
    waits_for = one(db, lookups.WAITS_FOR, {"id": lease_id})
    if waits_for is None:
        return None
    task = _claim(db, lease_id, waits_for[0], fingerprint, older_from=older_from, now=now)
    return activate(db, lease_id, task, Outcome.WAIT, now=now) if task else None


def _claim(
    db: Database,
    lease_id: str,
    template: str,
    fingerprint: str,
    *,
    older_from: str | None,
    now: float,
) -> PooledTask | None:
    wanted = {
        "lease_id": lease_id,
        "template": template,
        "fingerprint": fingerprint,
        "now": now,
    }
    row = one(db, queries.CLAIM, wanted)
    # An unknown origin is no origin: such a task may be on another server.
    if row is None and older_from:
        row = one(db, queries.CLAIM_OLDER, {**wanted, "older_from": older_from})
    return task_of(row) if row else None


def is_deserted(db: Database, lease_id: str, *, owner: str, now: float) -> bool:
    """Whether :func:`inherit_lease` is worth a transaction that writes."""
    return one(db, queries.IS_DESERTED, {"id": lease_id, "owner": owner, "now": now}) is not None


def inherit_lease(db: Database, lease_id: str, *, owner: str, now: float) -> bool:
    return bool(changed(db, queries.INHERIT_LEASE, {"id": lease_id, "owner": owner, "now": now}))


def activate(
    db: Database, lease_id: str, task: PooledTask, outcome: Outcome, *, now: float
) -> Handout:
    """Give a waiting lease the task that was just taken for it, and count that if it is all that
    its caller wants: a request is served once CVAT has its data."""
    handed_out = {**_handed_out(task, outcome), "now": now}
    row = one(db, queries.ACTIVATE_LEASE, {"id": lease_id, **handed_out})
    assert row is not None
    lease = lease_of(row)
    request = one(db, queries.START_REQUEST, {"lease_id": lease_id, **handed_out})
    if request is None:
        count(db, lease.template, outcome, now=now)
    return Handout(lease=lease, task=task, request=request_of(request) if request else None)


def abandon_lease(db: Database, lease_id: str, *, now: float) -> bool:
    row = one(db, queries.ABANDON_LEASE, {"id": lease_id})
    if row is None:
        return False
    changed(db, queries.ABANDON_REQUEST, {"id": row[0], "now": now})
    return True


def give_back(db: Database, lease_id: str, *, now: float, expired: bool = False) -> bool:
    if not changed(db, queries.UNLEASE_TASK, {"lease_id": lease_id, "now": now}):
        return False
    end_lease_as(db, lease_id, LeaseState.EXPIRED if expired else LeaseState.RELEASED)
    return True


def end_lease(db: Database, lease_id: str, *, reason: str, now: float) -> bool:
    if not changed(
        db,
        queries.RETIRE_LEASED_TASK,
        {"lease_id": lease_id, "reason": text(reason), "now": now},
    ):
        return False
    end_lease_as(db, lease_id, LeaseState.EXPIRED)
    return True


def end_lease_as(db: Database, lease_id: str | None, state: LeaseState) -> None:
    """End a lease that waits or is active; one that has ended stays as it is."""
    changed(db, queries.END_LEASE, {"id": lease_id, "state": state})


def attach_request(
    db: Database,
    lease_id: str,
    request: NewRequest,
    *,
    owner: str,
    idempotency_key: str | None = None,
    payload: str = "",
    now: float,
) -> Handout | None:
    row = one(db, queries.ATTACH_REQUEST, {"id": lease_id, "request_id": request.id})
    if row is None:
        return None
    lease = lease_of(row)
    task = one(db, lookups.TASK_OF_LEASE, {"id": lease_id})
    assert task is not None
    row = one(
        db,
        queries.INSERT_REQUEST,
        {
            **_asked_for(request),
            "template": lease.template,
            "state": RequestState.UPLOADING,
            "owner": owner,
            "lease_id": lease.id,
            "pooled_id": lease.pooled_id,
            "task_id": lease.task_id,
            "outcome": lease.outcome,
            "payload": payload,
            "idempotency_key": idempotency_key,
            "handed_out_at": lease.handed_out_at,
            # The lease was counted when its caller got it.
            "served": True,
            "now": now,
        },
    )
    assert row is not None
    return Handout(lease=lease, task=task_of(task), request=request_of(row))


def _insert_lease(
    db: Database, lease: NewLease, task: PooledTask | None, *, request_id: str | None, now: float
) -> LeaseRecord:
    row = one(
        db,
        queries.INSERT_LEASE,
        {
            "id": lease.id,
            "template": lease.template,
            "state": LeaseState.ACTIVE if task else LeaseState.WAITING,
            "owner": lease.owner,
            "request_id": request_id,
            **_handed_out(task, Outcome.HIT),
            "ttl": lease.ttl,
            # A request's key stands in its own row: keys of leases and of requests are separate.
            "idempotency_key": None if request_id else lease.idempotency_key,
            "payload": lease.payload,
            "handed_out_at": now if task else None,
            "served": task is not None and request_id is None,
            "now": now,
        },
    )
    assert row is not None
    return lease_of(row)


def _insert_request(
    db: Database, lease: NewLease, request: NewRequest, task: PooledTask | None, *, now: float
) -> RequestRecord:
    row = one(
        db,
        queries.INSERT_REQUEST,
        {
            **_asked_for(request),
            "template": lease.template,
            "state": RequestState.UPLOADING if task else RequestState.QUEUED,
            "owner": lease.owner,
            "lease_id": lease.id,
            **_handed_out(task, Outcome.HIT),
            "payload": lease.payload,
            "idempotency_key": lease.idempotency_key,
            "handed_out_at": now if task else None,
            "served": False,
            "now": now,
        },
    )
    assert row is not None
    return request_of(row)


def _asked_for(request: NewRequest) -> dict[str, Any]:
    return {
        "id": request.id,
        "name": None if request.name is None else text(request.name),
        "assignee": request.assignee,
        "files": file_list(request.files),
        "size": request.size,
        "spooled": request.spooled,
    }


def _handed_out(task: PooledTask | None, outcome: Outcome) -> dict[str, Any]:
    return {
        "pooled_id": task.id if task else None,
        "task_id": task.task_id if task else None,
        "task_name": task.name if task else "",
        "outcome": outcome if task else None,
    }


def count(db: Database, template: str, outcome: Outcome, *, now: float) -> None:
    """Count one hand-out that has served its caller."""
    start = now // DEMAND_BUCKET * DEMAND_BUCKET
    counted = {"template": template, "outcome": outcome}
    changed(db, queries.COUNT_DEMAND, {**counted, "start": start})
    changed(db, queries.COUNT_HAND_OUT, counted)
