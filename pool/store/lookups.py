"""The queries that only look. What changes rows is in :mod:`pool.store.queries`.

Where a query says INDEXED BY, the planner could as well choose an index that is full of finished
rows, since it does not know how many there are; a CROSS JOIN likewise keeps the order of tables.
"""

from __future__ import annotations

from typing import Final

from pool.store.migrations import EXPIRING, LIVE, OPEN, SPOOLED
from pool.store.rows import LEASE_COLUMNS, REQUEST_COLUMNS, TASK_COLUMNS, listed

_TASK: Final = listed(TASK_COLUMNS, "tasks")
_LEASE: Final = listed(LEASE_COLUMNS, "leases")
_REQUEST: Final = listed(REQUEST_COLUMNS, "requests")

# --- Single rows ----------------------------------------------------------------------------------

#: One task by our id.
TASK: Final = f"SELECT {_TASK} FROM tasks WHERE id = :id"

#: The newest task that has the server's id, with its request.
TASK_ON_SERVER: Final = f"""
    SELECT {listed(TASK_COLUMNS, "named")}, {_REQUEST}
    FROM (SELECT * FROM tasks INDEXED BY tasks_on_server
          WHERE task_id = :task_id ORDER BY seq DESC LIMIT 1) AS named
    LEFT JOIN leases ON leases.id = named.lease_id
    LEFT JOIN requests ON requests.id = leases.request_id
"""

#: One lease.
LEASE: Final = f"SELECT {_LEASE} FROM leases WHERE id = :id"

#: One request.
REQUEST: Final = f"SELECT {_REQUEST} FROM requests WHERE id = :id"

#: The task that a lease holds or has used up; none when somebody else may have it by now.
TASK_OF_LEASE: Final = f"SELECT {_TASK} FROM tasks WHERE lease_id = :id"

#: The lease that a key was given for, with what was asked for.
LEASE_BY_KEY: Final = f"""
    SELECT {_LEASE}, leases.payload FROM leases WHERE idempotency_key = :key
"""

#: The request that a key was given for.
REQUEST_BY_KEY: Final = f"SELECT {_REQUEST} FROM requests WHERE idempotency_key = :key"

#: Whether a lease waits and there is a task for it.
CAN_CLAIM: Final = """
    SELECT 1 FROM leases WHERE leases.id = :id AND leases.state = 'waiting' AND EXISTS (
        SELECT 1 FROM tasks
        WHERE tasks.state = 'warm' AND tasks.template = leases.template
          AND tasks.fingerprint = :fingerprint
          AND (tasks.doubted_until IS NULL OR tasks.doubted_until <= :now))
"""

#: Whether a lease waits and there is a task of an older template for it.
CAN_CLAIM_OLDER: Final = """
    SELECT 1 FROM leases WHERE leases.id = :id AND leases.state = 'waiting' AND EXISTS (
        SELECT 1 FROM tasks INDEXED BY tasks_warm
        WHERE tasks.state = 'warm' AND tasks.template = leases.template
          AND tasks.fingerprint <> :fingerprint AND tasks.origin = :older_from
          AND (tasks.doubted_until IS NULL OR tasks.doubted_until <= :now))
"""

#: The template that a waiting lease wants a task of.
WAITS_FOR: Final = "SELECT template FROM leases WHERE id = :id AND state = 'waiting'"

# --- Levels ---------------------------------------------------------------------------------------

#: Live tasks by template and state.
LEVELS: Final = f"""
    SELECT template, state, COUNT(*) FROM tasks INDEXED BY tasks_live
    WHERE {LIVE} GROUP BY template, state
"""

#: Warm tasks of a template as it is now.
WARM_OF: Final = """
    SELECT COUNT(*) FROM tasks INDEXED BY tasks_warm
    WHERE state = 'warm' AND template = :template AND fingerprint = :fingerprint
"""

#: Warm tasks of a template as it was, that were made where it makes them now.
OLDER_WARM_OF: Final = """
    SELECT COUNT(*) FROM tasks INDEXED BY tasks_warm
    WHERE state = 'warm' AND template = :template AND fingerprint <> :fingerprint
      AND origin = :older_from
"""

#: Tasks of a template as it is now that are warm, or on their way into the pool.
CAPACITY_OF: Final = f"""
    SELECT COUNT(*) FROM tasks INDEXED BY tasks_live
    WHERE {LIVE} AND template = :template AND state IN ('warm', 'creating')
      AND fingerprint = :fingerprint AND (state = 'warm' OR NOT cold)
"""

#: Requests that keep the server busy: the foreground.
IN_FLIGHT: Final = f"""
    SELECT COUNT(*) FROM requests INDEXED BY requests_open
    WHERE {OPEN} AND state IN ('uploading', 'importing')
"""

#: Requests that are queued, by template.
QUEUED: Final = f"""
    SELECT template, COUNT(*) FROM requests INDEXED BY requests_open
    WHERE {OPEN} AND state = 'queued' GROUP BY template
"""

#: Requests that are queued in the spool.
QUEUE_LENGTH: Final = f"""
    SELECT COUNT(*) FROM requests INDEXED BY requests_spooled
    WHERE {SPOOLED} AND state = 'queued'
"""

#: The latest beginning or end among the newest requests. An older one that ends late is missed,
#: which is why only the newest are looked at: all would have to be searched.
LAST_ACTIVITY: Final = """
    SELECT COALESCE(MAX(MAX(created_at, COALESCE(finished_at, 0))), 0)
    FROM (SELECT created_at, finished_at FROM requests ORDER BY seq DESC LIMIT 20)
"""

#: A task of another template that was created lately. ``seq`` alone has an index for all rows.
OTHERS_CREATED: Final = """
    SELECT 1
    FROM (SELECT template, task_id, created_at FROM tasks ORDER BY seq DESC LIMIT 500)
    WHERE template <> :template AND task_id IS NOT NULL AND created_at >= :since LIMIT 1
"""

#: Another request whose data was accepted lately.
OTHERS_UPLOADED: Final = """
    SELECT 1 FROM (SELECT id, uploaded_at FROM requests ORDER BY seq DESC LIMIT 500)
    WHERE id <> :id AND uploaded_at >= :since LIMIT 1
"""

#: Leases that wait for a task of a template, but for those of queued requests.
WAITING: Final = """
    SELECT COUNT(*) FROM leases INDEXED BY leases_waiting
    WHERE state = 'waiting' AND template = :template AND request_id IS NULL
"""

# --- Lists ----------------------------------------------------------------------------------------

#: The newest leases in one state.
LEASES_IN_STATE: Final = f"""
    SELECT leases.seq, {_LEASE} FROM leases WHERE state = :state ORDER BY seq DESC LIMIT :limit
"""

#: Leases whose time is up, with their tasks; the longest overdue first.
EXPIRED_LEASES: Final = f"""
    SELECT {listed(LEASE_COLUMNS, "overdue")}, {_TASK}
    FROM (SELECT * FROM leases INDEXED BY leases_expiring
          WHERE {EXPIRING} AND expires_at < :now
          ORDER BY expires_at LIMIT :limit) AS overdue
    CROSS JOIN tasks ON tasks.id = overdue.pooled_id
    ORDER BY overdue.expires_at
"""

#: Leases whose callers upload by themselves, with their tasks, oldest first.
WATCHED_LEASES: Final = f"""
    SELECT {_LEASE}, {_TASK}
    FROM (SELECT * FROM tasks INDEXED BY tasks_live
          WHERE {LIVE} AND state IN ('leased', 'importing')) AS tasks
    CROSS JOIN leases ON leases.id = tasks.lease_id
    WHERE leases.request_id IS NULL AND leases.state IN ('active', 'used')
    ORDER BY tasks.seq
"""

#: What one process tracks, oldest first.
IMPORTING_TASKS: Final = f"""
    SELECT {_TASK}, {_REQUEST}
    FROM (SELECT * FROM requests INDEXED BY requests_open
          WHERE {OPEN} AND owner = :owner AND state = 'importing') AS requests
    CROSS JOIN tasks ON tasks.id = requests.pooled_id
    ORDER BY requests.seq
"""

#: The jobs of a ready task.
JOBS: Final = """
    SELECT id, url, start_frame, stop_frame, assignee FROM jobs
    WHERE pooled_id = :id ORDER BY id
"""

#: A template's hand-outs by bucket of time.
DEMAND: Final = """
    SELECT template, start, hits, waits, colds FROM demand
    WHERE template = :template AND start >= :since ORDER BY start
"""

#: When tasks of a template were asked for, the newest first, and the outcome. A request that was
#: sent to several tasks has several leases, of which the last one counts.
ASKED: Final = """
    SELECT MIN(leases.created_at, COALESCE(requests.created_at, leases.created_at)) AS asked_at,
           leases.outcome
    FROM leases LEFT JOIN requests ON requests.id = leases.request_id
    WHERE leases.template = :template AND leases.state <> 'waiting'
      AND leases.created_at BETWEEN :since AND :until
      AND (requests.id IS NULL OR requests.lease_id = leases.id)
    ORDER BY asked_at DESC LIMIT :limit
"""

#: How long the creates for a template's pool took, the quickest first.
CREATE_TIMES: Final = """
    SELECT warm_at - created_at AS took FROM tasks
    WHERE template = :template AND created_at >= :since AND warm_at IS NOT NULL AND NOT cold
    ORDER BY took
"""


def tasks_in(count: int, *, live: bool, template: bool) -> str:
    """Tasks in ``count`` states, oldest first; ``live`` when all of these are live ones."""
    states = ", ".join(f":state{number}" for number in range(count))
    where = [f"state IN ({states})"]
    by_index = ""
    if live:
        where.append(LIVE)
        by_index = "INDEXED BY tasks_live"
    if template:
        where.append("template = :template")
    return f"SELECT {_TASK} FROM tasks {by_index} WHERE {' AND '.join(where)} ORDER BY seq"


def requests_page(*, state: bool, template: bool, cursor: bool) -> str:
    """Requests, the newest first, that come after a cursor and are of a state and template."""
    index = {
        (True, True): "INDEXED BY requests_by_both",
        (True, False): "INDEXED BY requests_by_state",
        (False, True): "INDEXED BY requests_by_template",
        (False, False): "NOT INDEXED",
    }[state, template]
    where = []
    if state:
        where.append("state = :state")
    if template:
        where.append("template = :template")
    if cursor:
        where.append("seq < :before")
    condition = f"WHERE {' AND '.join(where)}" if where else ""
    return f"""
        SELECT seq, {_REQUEST} FROM requests {index} {condition} ORDER BY seq DESC LIMIT :limit
    """
