"""Tasks on their way out. Each function is one transaction of the SQLite store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from sqlite_utils import Database

from pool.model import PooledTask
from pool.store.migrations import DOOMED
from pool.store.rows import TASK_COLUMNS, changed, listed, rows, task_of, text

#: One warm task leaves the pool.
RETIRE: Final = """
    UPDATE tasks SET state = 'retired', reason = :reason, changed_at = :now
    WHERE id = :id AND state = 'warm'
"""

#: The warm tasks that an older version of the template has made leave the pool, except those that
#: may still be handed out.
RETIRE_OTHER_FINGERPRINTS: Final = """
    UPDATE tasks INDEXED BY tasks_warm SET state = 'retired', reason = :reason, changed_at = :now
    WHERE state = 'warm' AND template = :template AND fingerprint <> :fingerprint
      AND (:older_from IS NULL OR origin <> :older_from)
"""

#: The oldest of these leave the pool, as far as more warm tasks than it needs can be handed out.
RETIRE_OLDER: Final = f"""
    UPDATE tasks SET state = 'retired', reason = :reason, changed_at = :now
    WHERE state = 'warm' AND seq IN (
        SELECT seq FROM tasks INDEXED BY tasks_warm
        WHERE state = 'warm' AND template = :template AND fingerprint <> :fingerprint
          AND origin = :older_from
        ORDER BY warm_at, seq
        LIMIT MIN(COALESCE(:most, {2**62}), MAX(0, -:keep + (
            SELECT COUNT(*) FROM tasks INDEXED BY tasks_warm
            WHERE state = 'warm' AND template = :template
              AND (fingerprint = :fingerprint OR origin = :older_from)))))
"""

#: The oldest warm tasks beyond a number leave the pool.
RETIRE_EXCESS: Final = """
    UPDATE tasks SET state = 'retired', reason = :reason, changed_at = :now
    WHERE state = 'warm' AND seq IN (
        SELECT seq FROM tasks INDEXED BY tasks_warm
        WHERE state = 'warm' AND template = :template
        ORDER BY warm_at DESC, seq DESC LIMIT -1 OFFSET :keep)
"""

#: Take the tasks that have waited longest to be deleted, or to be tried again. What was tried in
#: times to come was so before the clock was set back.
BEGIN_DELETE: Final = f"""
    UPDATE tasks SET state = 'deleting', owner = :owner, changed_at = :now
    WHERE seq IN (SELECT seq FROM tasks INDEXED BY tasks_doomed
                  WHERE {DOOMED} AND (state <> 'deleting'
                                      OR ABS(:now - changed_at) > :retry_after)
                  ORDER BY changed_at, seq LIMIT :limit)
    RETURNING {listed(TASK_COLUMNS)}
"""

#: The server has the task no more.
FINISH_DELETE: Final = """
    UPDATE tasks SET state = 'deleted', changed_at = :now WHERE id = :id AND state = 'deleting'
"""

#: Somebody has made a task their own, so that it is theirs to delete.
DISOWN: Final = """
    UPDATE tasks SET state = 'deleted', reason = :reason, changed_at = :now
    WHERE id = :id AND state IN ('warm', 'retired', 'deleting')
"""

#: A create that was given up had happened after all.
ADOPT_TASK: Final = """
    UPDATE tasks
    SET state = 'warm', task_id = :task_id, prepared = :prepared, reason = '', warm_at = :now,
        changed_at = :now
    WHERE id = :id AND state = 'deleted' AND task_id IS NULL AND lease_id IS NULL
"""

#: Warm tasks are not handed out for a while.
DOUBT_WARM: Final = "UPDATE tasks SET doubted_until = :until WHERE state = 'warm'"

#: They are handed out again. The ids are a JSON array.
TRUST_WARM: Final = """
    UPDATE tasks SET doubted_until = NULL
    WHERE state = 'warm' AND doubted_until IS NOT NULL
      AND id IN (SELECT value FROM json_each(:ids))
"""

#: A template is paused, if it was not yet, and drained.
DRAIN: Final = """
    INSERT INTO pauses (template, since, drained) VALUES (:template, :now, 1)
    ON CONFLICT (template) DO UPDATE SET drained = 1
"""

# --- The transactions -----------------------------------------------------------------------------


def retire(db: Database, pooled_id: str, *, reason: str, now: float) -> bool:
    return bool(changed(db, RETIRE, {"id": pooled_id, "reason": text(reason), "now": now}))


def retire_other_fingerprints(
    db: Database,
    template: str,
    fingerprint: str,
    *,
    older_from: str | None = None,
    reason: str,
    now: float,
) -> int:
    return changed(
        db,
        RETIRE_OTHER_FINGERPRINTS,
        {
            "template": template,
            "fingerprint": fingerprint,
            "older_from": older_from,
            "reason": text(reason),
            "now": now,
        },
    )


def retire_older(
    db: Database,
    template: str,
    fingerprint: str,
    *,
    older_from: str,
    keep: int,
    most: int | None = None,
    reason: str,
    now: float,
) -> int:
    return changed(
        db,
        RETIRE_OLDER,
        {
            "template": template,
            "fingerprint": fingerprint,
            "older_from": older_from,
            "keep": keep,
            "most": most,
            "reason": text(reason),
            "now": now,
        },
    )


def drain(db: Database, template: str, *, reason: str, now: float) -> int:
    changed(db, DRAIN, {"template": template, "now": now})
    # No task has an empty fingerprint, so these are all of them.
    return retire_other_fingerprints(db, template, "", reason=reason, now=now)


def retire_excess(db: Database, template: str, *, keep: int, reason: str, now: float) -> int:
    return changed(
        db,
        RETIRE_EXCESS,
        {"template": template, "keep": keep, "reason": text(reason), "now": now},
    )


def begin_delete(
    db: Database, *, owner: str, limit: int, retry_after: float, now: float
) -> Sequence[PooledTask]:
    taken = rows(
        db,
        BEGIN_DELETE,
        # SQLite takes a negative limit for none.
        {"owner": owner, "limit": max(0, limit), "retry_after": retry_after, "now": now},
    )
    return sorted(map(task_of, taken), key=lambda task: (task.created_at, task.id))


def finish_delete(db: Database, pooled_id: str, *, now: float) -> bool:
    return bool(changed(db, FINISH_DELETE, {"id": pooled_id, "now": now}))


def disown(db: Database, pooled_id: str, *, reason: str, now: float) -> bool:
    return bool(changed(db, DISOWN, {"id": pooled_id, "reason": text(reason), "now": now}))


def adopt_task(db: Database, pooled_id: str, *, task_id: int, prepared: bool, now: float) -> bool:
    adopted = {"id": pooled_id, "task_id": task_id, "prepared": prepared, "now": now}
    return bool(changed(db, ADOPT_TASK, adopted))


def doubt_warm(db: Database, *, until: float) -> int:
    return changed(db, DOUBT_WARM, {"until": until})


def trust_warm(db: Database, pooled_ids: Sequence[str]) -> int:
    return changed(db, TRUST_WARM, {"ids": json.dumps(list(pooled_ids))})
