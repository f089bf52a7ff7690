"""Moving times after the clock was set. One transaction of the SQLite store.

``:since`` to ``:now`` are the times of the new clock, so a row that was written in between needs
no moving.
"""

from __future__ import annotations

from typing import Final

from sqlite_utils import Database

from pool.store.migrations import EXPIRING, OPEN
from pool.store.rows import changed

#: Leases end as far from now as they did.
MOVE_LEASES: Final = f"""
    UPDATE leases INDEXED BY leases_expiring SET expires_at = expires_at + :by
    WHERE {EXPIRING} AND handed_out_at NOT BETWEEN :since AND :now
"""

#: So do the times that imports are given.
MOVE_DEADLINES: Final = f"""
    UPDATE requests INDEXED BY requests_open SET deadline_at = deadline_at + :by
    WHERE {OPEN} AND state = 'importing' AND uploaded_at NOT BETWEEN :since AND :now
"""

#: And prewarms.
MOVE_PREWARMS: Final = """
    UPDATE prewarms SET since = since + :by, until = until + :by
    WHERE since NOT BETWEEN :since AND :now
"""

#: Whoever is alive says so again within a term; whoever is not is found out after one.
RENEW_OWNERS: Final = "UPDATE owners SET until = :now + :term"

#: What is held is tried again at once: if that fails, it is held by the new clock.
SHORTEN_HOLDS: Final = """
    UPDATE holds SET retry_at = MIN(retry_at, :now), since = MIN(since, :now)
    WHERE retry_at > :now OR since > :now
"""

#: Nothing is in doubt for longer than a term.
SHORTEN_DOUBTS: Final = """
    UPDATE tasks INDEXED BY tasks_warm SET doubted_until = :now + :term
    WHERE state = 'warm' AND doubted_until > :now + :term
"""

#: What is left for ready tasks is tried at once.
HASTEN_STEPS: Final = "UPDATE final_steps SET due_at = :now WHERE due_at > :now"


def move_times(db: Database, by: float, *, since: float, term: float, now: float) -> int:
    times = {"by": by, "since": since, "term": term, "now": now}
    return sum(
        changed(db, statement, {name: times[name] for name in times if f":{name}" in statement})
        for statement in (
            MOVE_LEASES,
            MOVE_DEADLINES,
            MOVE_PREWARMS,
            RENEW_OWNERS,
            SHORTEN_HOLDS,
            SHORTEN_DOUBTS,
            HASTEN_STEPS,
        )
    )
