"""Forgetting finished rows. Each function is one transaction of the SQLite store.

What refers to a row goes before it: requests, then leases, then tasks. Each is found by an index
that is ordered by age, so that a row which has to stay costs a look, and keeps nobody else.
"""

from __future__ import annotations

from typing import Final

from sqlite_utils import Database

from pool.store.migrations import ENDED, FINISHED
from pool.store.rows import changed, rows

#: Something is left to do for a task.
_UNFINISHED: Final = "EXISTS (SELECT 1 FROM final_steps WHERE final_steps.pooled_id = tasks.id)"

#: Requests that ended long ago, unless their task is still on its way out, or waits for the name
#: or the assignee that the request has for it.
PRUNE_REQUESTS: Final = f"""
    DELETE FROM requests WHERE seq IN (
        SELECT seq FROM requests INDEXED BY requests_finished
        WHERE finished_at IS NOT NULL AND finished_at < :before
          AND state IN ('ready', 'failed', 'cancelled')
          AND NOT EXISTS (SELECT 1 FROM tasks WHERE tasks.id = requests.pooled_id
                            AND (NOT {FINISHED} OR {_UNFINISHED}))
        ORDER BY finished_at LIMIT :limit)
"""

#: Leases that ended long ago, even by the longest time that they were given.
PRUNE_LEASES: Final = f"""
    DELETE FROM leases WHERE seq IN (
        SELECT seq FROM leases INDEXED BY leases_ended
        WHERE {ENDED} AND created_at < :before AND COALESCE(expires_at, created_at) < :before
          AND NOT EXISTS (SELECT 1 FROM requests WHERE requests.lease_id = leases.id)
          AND NOT EXISTS (SELECT 1 FROM tasks WHERE tasks.lease_id = leases.id
                            AND (NOT {FINISHED} OR changed_at >= :before))
        ORDER BY created_at LIMIT :limit)
"""

#: Tasks that nothing has happened to for long, and that no lease or request speaks of any more.
FORGETTABLE_TASKS: Final = f"""
    SELECT id FROM tasks INDEXED BY tasks_finished
    WHERE {FINISHED} AND changed_at < :before AND NOT {_UNFINISHED}
      AND NOT EXISTS (SELECT 1 FROM leases WHERE leases.pooled_id = tasks.id)
      AND NOT EXISTS (SELECT 1 FROM requests WHERE requests.pooled_id = tasks.id)
    ORDER BY changed_at LIMIT :limit
"""

PRUNE_DEMAND: Final = """
    DELETE FROM demand WHERE rowid IN (
        SELECT rowid FROM demand WHERE start < :before LIMIT :limit)
"""

PRUNE_OWNERS: Final = """
    DELETE FROM owners WHERE rowid IN (
        SELECT rowid FROM owners WHERE until < :before LIMIT :limit)
"""

PRUNE_PREWARMS: Final = """
    DELETE FROM prewarms WHERE rowid IN (
        SELECT rowid FROM prewarms WHERE until < :before LIMIT :limit)
"""

PRUNE_HELD: Final = """
    DELETE FROM held WHERE rowid IN (
        SELECT rowid FROM held WHERE until < :before LIMIT :limit)
"""


def prune(db: Database, *, before: float, limit: int) -> int:
    # SQLite takes a negative limit for none.
    old = {"before": before, "limit": max(0, limit)}
    pruned = changed(db, PRUNE_REQUESTS, old) + changed(db, PRUNE_LEASES, old)
    tasks = rows(db, FORGETTABLE_TASKS, old)
    for (pooled_id,) in tasks:
        changed(db, "DELETE FROM jobs WHERE pooled_id = :id", {"id": pooled_id})
        changed(db, "DELETE FROM tasks WHERE id = :id", {"id": pooled_id})
    for statement in (PRUNE_DEMAND, PRUNE_OWNERS, PRUNE_PREWARMS, PRUNE_HELD):
        pruned += changed(db, statement, old)
    return pruned + len(tasks)
