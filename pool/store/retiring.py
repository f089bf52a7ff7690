"""Tasks on their way out. Each function is one transaction of the SQLite store."""

from __future__ import annotations

import json
from collections.abc import Sequence

from sqlite_utils import Database

from pool.model import PooledTask
from pool.store import queries
from pool.store.rows import changed, rows, task_of, text


def retire(db: Database, pooled_id: str, *, reason: str, now: float) -> bool:
    return bool(changed(db, queries.RETIRE, {"id": pooled_id, "reason": text(reason), "now": now}))


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


def disown(db: Database, pooled_id: str, *, reason: str, now: float) -> bool:
    return bool(changed(db, queries.DISOWN, {"id": pooled_id, "reason": text(reason), "now": now}))


def adopt_task(db: Database, pooled_id: str, *, task_id: int, prepared: bool, now: float) -> bool:
    adopted = {"id": pooled_id, "task_id": task_id, "prepared": prepared, "now": now}
    return bool(changed(db, queries.ADOPT_TASK, adopted))


def doubt_warm(db: Database, *, until: float) -> int:
    return changed(db, queries.DOUBT_WARM, {"until": until})


def trust_warm(db: Database, pooled_ids: Sequence[str]) -> int:
    return changed(db, queries.TRUST_WARM, {"ids": json.dumps(list(pooled_ids))})
