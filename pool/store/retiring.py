"""Tasks on their way out. Each function is one transaction of the SQLite store."""

from __future__ import annotations

from collections.abc import Sequence

from sqlite_utils import Database

from pool.model import PooledTask
from pool.store import queries
from pool.store.rows import changed, rows, task_of, text


def retire(db: Database, pooled_id: str, *, reason: str, now: float) -> bool:
    return bool(changed(db, queries.RETIRE, {"id": pooled_id, "reason": text(reason), "now": now}))


def retire_older(
    db: Database, template: str, *, warm_before: float, reason: str, now: float
) -> int:
    return changed(
        db,
        queries.RETIRE_OLDER,
        {"template": template, "warm_before": warm_before, "reason": text(reason), "now": now},
    )


def retire_other_fingerprints(
    db: Database, template: str, fingerprint: str, *, reason: str, now: float
) -> int:
    return changed(
        db,
        queries.RETIRE_OTHER_FINGERPRINTS,
        {"template": template, "fingerprint": fingerprint, "reason": text(reason), "now": now},
    )


def retire_excess(db: Database, template: str, *, keep: int, reason: str, now: float) -> int:
    return changed(
        db,
        queries.RETIRE_EXCESS,
        {"template": template, "keep": keep, "reason": text(reason), "now": now},
    )


def begin_delete(
    db: Database, *, owner: str, limit: int, retry_after: float, now: float
) -> Sequence[PooledTask]:
    taken = rows(
        db,
        queries.BEGIN_DELETE,
        # SQLite takes a negative limit for none.
        {"owner": owner, "limit": max(0, limit), "tried_before": now - retry_after, "now": now},
    )
    return sorted(map(task_of, taken), key=lambda task: (task.created_at, task.id))


def finish_delete(db: Database, pooled_id: str, *, now: float) -> bool:
    return bool(changed(db, queries.FINISH_DELETE, {"id": pooled_id, "now": now}))
