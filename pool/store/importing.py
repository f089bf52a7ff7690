"""Data on its way into tasks. Each function is one transaction of the SQLite store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from sqlite_utils import Database

from pool.model import Job, LeaseState, Outcome, RequestRecord
from pool.store import queries
from pool.store.finalizing import begin_final_steps
from pool.store.handing_out import count, end_lease_as
from pool.store.queue_rows import NOBODY
from pool.store.rows import Parameters, changed, one, request_of, rows, text


def begin_import(
    db: Database, request_id: str, *, under: str | None = None, deadline: float, now: float
) -> bool:
    accepted = {"id": request_id, "under": under, "deadline": deadline, "now": now}
    _serve(db, queries.SERVE_REQUEST, accepted, now=now)
    row = one(db, queries.BEGIN_IMPORT, accepted)
    if row is None:
        return False
    changed(db, queries.IMPORT_INTO_TASK, {"lease_id": row[0], "now": now})
    end_lease_as(db, row[0], LeaseState.USED)
    return True


def begin_foreign_import(db: Database, lease_id: str, *, now: float) -> bool:
    if not changed(db, queries.IMPORT_INTO_FOREIGN_TASK, {"lease_id": lease_id, "now": now}):
        return False
    end_lease_as(db, lease_id, LeaseState.USED)
    return True


def complete_import(db: Database, pooled_id: str, jobs: Sequence[Job], *, now: float) -> bool:
    row = one(db, queries.COMPLETE_TASK, {"id": pooled_id, "now": now})
    if row is None:
        return False
    _serve(db, queries.SERVE_REQUESTS, {"id": pooled_id}, now=now)
    changed(db, queries.COMPLETE_REQUESTS, {"id": pooled_id, "now": now})
    end_lease_as(db, row[0], LeaseState.USED)
    for job in jobs:
        changed(db, queries.INSERT_JOB, {"pooled_id": pooled_id, **asdict(job)})
    begin_final_steps(db, pooled_id, now=now)
    return True


def fail_import(db: Database, pooled_id: str, *, code: str, message: str, now: float) -> bool:
    failure = {"code": code, "message": text(message), "now": now}
    if not _burn(db, pooled_id, code, message, now=now):
        return False
    changed(db, queries.FAIL_REQUESTS, {"id": pooled_id, **failure})
    return True


def fail_request(
    db: Database,
    request_id: str,
    *,
    under: str | None = None,
    code: str,
    message: str,
    now: float,
) -> bool:
    row = _fail(db, request_id, under, code, message, untouched=False, now=now)
    if row is None:
        return False
    lease_id, pooled_id = row
    if pooled_id is None:
        end_lease_as(db, lease_id, LeaseState.ABANDONED)
    else:
        _burn(db, pooled_id, code, message, now=now)
    return True


def return_request(
    db: Database,
    request_id: str,
    *,
    under: str | None = None,
    code: str,
    message: str,
    now: float,
) -> bool:
    row = _fail(db, request_id, under, code, message, untouched=True, now=now)
    if row is None:
        return False
    lease_id, pooled_id = row
    if pooled_id is None:
        end_lease_as(db, lease_id, LeaseState.ABANDONED)
    else:
        changed(db, queries.RETURN_TASK, {"id": pooled_id, "now": now})
        end_lease_as(db, lease_id, LeaseState.RELEASED)
    return True


def requeue_request(
    db: Database,
    request_id: str,
    *,
    under: str | None = None,
    lease_id: str,
    reason: str,
    now: float,
) -> bool:
    moved = {
        "id": request_id,
        "under": under,
        "new_lease_id": lease_id,
        "nobody": NOBODY,
        "now": now,
    }
    old = one(db, "SELECT pooled_id FROM requests WHERE id = :id", moved)
    if old is None or not changed(db, queries.INSERT_FRESH_LEASE, moved):
        return False
    changed(db, queries.REQUEUE_REQUEST, moved)
    _burn(db, old[0], "", reason, now=now)
    return True


def cancel_request(db: Database, request_id: str, *, now: float) -> bool:
    row = one(db, queries.CANCEL_REQUEST, {"id": request_id, "now": now})
    if row is None:
        return False
    end_lease_as(db, row[0], LeaseState.ABANDONED)
    return True


def adopt_requests(db: Database, owner: str, *, now: float) -> Sequence[RequestRecord]:
    adopter = {"owner": owner, "now": now}
    changed(db, queries.ABANDON_ORPHANED_LEASES, adopter)
    adopted = [request_of(row) for row in rows(db, queries.ADOPT_REQUESTS, adopter)]
    for request in adopted:
        changed(db, queries.ADOPT_LEASE, {"owner": owner, "id": request.lease_id})
    return sorted(adopted, key=lambda request: (request.created_at, request.id))


def _serve(db: Database, which: str, wanted: Parameters, *, now: float) -> None:
    """Count the hand-outs of requests whose data CVAT has, each once."""
    for template, outcome in rows(db, which, wanted):
        count(db, template, Outcome(outcome), now=now)


def _fail(
    db: Database,
    request_id: str,
    under: str | None,
    code: str,
    message: str,
    *,
    untouched: bool,
    now: float,
) -> tuple[str, str | None] | None:
    """Fail a request whose data has not been accepted; answers its lease and its task, if any."""
    row = one(
        db,
        queries.FAIL_REQUEST,
        {
            "id": request_id,
            "under": under,
            "code": code,
            "message": text(message),
            "untouched": untouched,
            "now": now,
        },
    )
    return (row[0], row[1]) if row else None


def _burn(db: Database, pooled_id: str, code: str, message: str, *, now: float) -> bool:
    """Fail a task that is no use any more; its lease is used up."""
    reason = ": ".join(part for part in (code, text(message)) if part)
    row = one(db, queries.BURN_TASK, {"id": pooled_id, "reason": reason, "now": now})
    if row is None:
        return False
    end_lease_as(db, row[0], LeaseState.USED)
    return True
