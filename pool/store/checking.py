"""Whether a store is in order: as the database sees it, and as the pool does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pool.store.connections import Connections
from pool.store.migrations import refuse_newer
from pool.store.schema import TABLES, triggers

#: What must not be there, and the rows that it is true of.
_WRONG: Final = {
    "two leases hold the task": """
        SELECT pooled_id FROM leases WHERE state = 'active' GROUP BY pooled_id HAVING COUNT(*) > 1
    """,
    "it is handed out, and its lease holds another task, or none": """
        SELECT id FROM tasks
        WHERE state IN ('leased', 'importing')
          AND NOT EXISTS (SELECT 1 FROM leases
                          WHERE leases.id = tasks.lease_id AND leases.pooled_id = tasks.id)
    """,
    "the lease is active, and its task is not handed out to it": """
        SELECT id FROM leases
        WHERE state = 'active'
          AND NOT EXISTS (SELECT 1 FROM tasks
                          WHERE tasks.id = leases.pooled_id AND tasks.lease_id = leases.id
                            AND tasks.state IN ('leased', 'importing'))
    """,
    "several rows stand for the task of CVAT": """
        SELECT task_id FROM tasks
        WHERE task_id IS NOT NULL AND state IN ('warm', 'leased', 'importing', 'ready')
          AND carrier_id IS NULL
        GROUP BY task_id HAVING COUNT(*) > 1
    """,
    "several slots stand for the job of CVAT": """
        SELECT job_id FROM slots GROUP BY job_id HAVING COUNT(*) > 1
    """,
    "several slots have the data of the request": """
        SELECT request_id FROM slots WHERE request_id IS NOT NULL
        GROUP BY request_id HAVING COUNT(*) > 1
    """,
    "the slot is filled, and its request is not ready": """
        SELECT slots.id FROM slots JOIN requests ON requests.id = slots.request_id
        WHERE requests.state <> 'ready'
    """,
    "the request and its import are not in the same state": """
        SELECT requests.id FROM requests JOIN imports ON imports.id = requests.import_id
        WHERE requests.state IN ('uploading', 'importing', 'ready')
          AND requests.state <> imports.state
    """,
    "the requests that wait are counted wrongly, of the template": """
        SELECT DISTINCT template FROM queues
        WHERE queued <> (SELECT COUNT(*) FROM requests
                         WHERE requests.template = queues.template
                           AND requests.priority = queues.priority
                           AND requests.tenant = queues.tenant AND state = 'queued')
           OR queues.spooled <> (SELECT COUNT(*) FROM requests
                                 WHERE requests.template = queues.template
                                   AND requests.priority = queues.priority
                                   AND requests.tenant = queues.tenant
                                   AND state = 'queued' AND requests.spooled)
    """,
    "the term of maintenance begins before the one before it has ended": """
        SELECT term FROM terms AS later
        WHERE since < (SELECT MAX(until) FROM terms AS earlier WHERE earlier.term < later.term)
    """,
    # A term that ends before it begins is one in which the clock was set back.
    "it was deleted on the server outside of its term of maintenance": """
        SELECT id FROM tasks
        WHERE term IS NOT NULL
          AND NOT EXISTS (SELECT 1 FROM terms
                          WHERE terms.term = tasks.term
                            AND (tasks.deleted_at BETWEEN since AND until OR until < since))
    """,
    "the sink is ahead of the events": """
        SELECT name FROM sinks WHERE cursor > (SELECT COALESCE(MAX(id), 0) FROM events)
    """,
}
#: Rows of a kind that are named.
_NAMED: Final = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreReport:
    """How many rows are in each table, and what is wrong; nothing is if that is empty."""

    place: str
    rows: Mapping[str, int]
    problems: tuple[str, ...]


def check_store(connections: Connections) -> StoreReport:
    """Look at all rows of a store, which may be in use meanwhile.

    :raises StoreError: it cannot be read, or a newer version has changed it.
    """
    with connections.reading() as db:
        refuse_newer(db, connections.place)
        problems = list(db.damage())
        there = db.trigger_names()
        problems += [
            f"the trigger {trigger.name} is missing"
            for trigger in triggers(type(db))
            if trigger.name not in there
        ]
        for what, query in _WRONG.items():
            found = sorted(str(name) for (name,) in db.rows(query))
            named = ", ".join(found[:_NAMED])
            if found:
                more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
                problems.append(f"{what}: {named}{more}")
        rows = {table: db.number(f"SELECT COUNT(*) FROM {table}") for table in TABLES}
    return StoreReport(place=connections.place, rows=rows, problems=tuple(problems))
