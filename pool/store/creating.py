"""Tasks on their way into the pool. Each function is one transaction of the SQLite store."""

from __future__ import annotations

from sqlite_utils import Database

from pool.model import Handout, Outcome, PooledTask, task_name
from pool.store import queries
from pool.store.base import CreateLimit
from pool.store.handing_out import activate
from pool.store.rows import changed, one, task_of, text


def begin_create(
    db: Database,
    pooled_id: str,
    template: str,
    fingerprint: str,
    *,
    origin: str = "",
    limit: CreateLimit | None,
    owner: str,
    now: float,
) -> PooledTask | None:
    row = one(
        db,
        queries.BEGIN_CREATE,
        {
            "id": pooled_id,
            "template": template,
            "fingerprint": fingerprint,
            "origin": origin,
            "name": task_name(pool_id(db), template, pooled_id),
            "cold": limit is None,
            "capacity": limit.capacity if limit else 0,
            "concurrency": limit.concurrency if limit else 0,
            "owner": owner,
            "now": now,
        },
    )
    return task_of(row) if row else None


def record_created(db: Database, pooled_id: str, *, task_id: int, now: float) -> bool:
    return bool(
        changed(db, queries.RECORD_CREATED, {"id": pooled_id, "task_id": task_id, "now": now})
    )


def finish_create(
    db: Database, pooled_id: str, *, prepared: bool, took: float | None = None, now: float
) -> bool:
    row = one(db, queries.FINISH_CREATE, {"id": pooled_id, "prepared": prepared, "now": now})
    if row is not None and took is not None:
        changed(db, queries.LEARN_LEAD_TIME, {"template": row[0], "seconds": took})
    return row is not None


def finish_cold(
    db: Database, pooled_id: str, lease_id: str, *, prepared: bool, now: float
) -> Handout | None:
    row = one(
        db,
        queries.FINISH_COLD,
        {"id": pooled_id, "lease_id": lease_id, "prepared": prepared, "now": now},
    )
    if row is None:
        return None
    return activate(db, lease_id, task_of(row), Outcome.COLD, now=now)


def fail_create(db: Database, pooled_id: str, *, reason: str, now: float) -> bool:
    return bool(
        changed(db, queries.FAIL_CREATE, {"id": pooled_id, "reason": text(reason), "now": now})
    )


def pool_id(db: Database) -> str:
    return str(db.execute("SELECT value FROM meta WHERE key = 'pool_id'").fetchone()[0])
