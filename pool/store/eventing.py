"""What happened, and who was told. Each function is one transaction of the SQLite store.

No function here writes an event: the triggers of migration ``m010_events`` do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Final

from sqlite_utils import Database

from pool.model import EndedRequest, Event, SinkRecord
from pool.store.event_schema import server_seconds
from pool.store.rows import changed, listed, number, one, rows

EVENT_COLUMNS: Final = tuple(field.name for field in fields(Event))
SINK_COLUMNS: Final = tuple(field.name for field in fields(SinkRecord))
#: Columns of one query here, which are no columns of a table.
ENDED_COLUMNS: Final = tuple(field.name for field in fields(EndedRequest))

#: The oldest events after one, of some kinds if any are given (as a JSON array).
EVENTS_AFTER: Final = f"""
    SELECT {listed(EVENT_COLUMNS)} FROM events
    WHERE id > :after AND (:kinds IS NULL OR kind IN (SELECT value FROM json_each(:kinds)))
    ORDER BY id LIMIT :limit
"""

#: The newest event. It is never forgotten, so that its id is never given again.
LAST_EVENT_ID: Final = "SELECT COALESCE(MAX(id), 0) FROM events"

#: When the oldest event after one was.
EVENT_AT: Final = "SELECT at FROM events WHERE id > :after ORDER BY id LIMIT 1"

#: The oldest few events that may be forgotten. Only the few oldest are looked at, so that it costs
#: no more when none of all the others may be.
PRUNE_EVENTS: Final = """
    DELETE FROM events WHERE id IN (
        SELECT id FROM (SELECT id, at FROM events ORDER BY id LIMIT :limit)
        WHERE id < :last AND (
            id <= :last - :keep OR at < :before OR (at < :told_before AND id <= :told)))
"""

#: Up to where all sinks have been told; the newest event when there are none.
TOLD: Final = "SELECT COALESCE(MIN(cursor), :last) FROM sinks"

#: The newest ends of requests, as ENDED_COLUMNS. Nothing of what may be large is read.
ENDED_REQUESTS: Final = f"""
    SELECT id, template, outcome, finished_at, MAX(finished_at - created_at, 0.0),
           {server_seconds("requests")}, state, error_code, error
    FROM requests INDEXED BY requests_finished
    WHERE finished_at IS NOT NULL AND finished_at >= :since AND state IN ('ready', 'failed')
    ORDER BY finished_at DESC LIMIT :limit
"""

#: A new sink begins with what comes next.
OPEN_SINK: Final = """
    INSERT INTO sinks (name, cursor) VALUES (:name, :last) ON CONFLICT (name) DO NOTHING
"""

#: The sinks that are no more. The names are a JSON array.
FORGET_SINKS: Final = "DELETE FROM sinks WHERE name NOT IN (SELECT value FROM json_each(:names))"

#: A sink need not be told any more of events up to one.
PASS_EVENTS: Final = """
    UPDATE sinks
    SET cursor = :up_to, delivered = delivered + :delivered, given_up = given_up + :given_up,
        failing_since = CASE WHEN :delivered > 0 THEN NULL ELSE failing_since END
    WHERE name = :name AND cursor < :up_to
"""

#: Deliveries to a sink fail from now on.
FAIL_SINK: Final = """
    UPDATE sinks SET failing_since = :now WHERE name = :name AND failing_since IS NULL
"""


def events_after(
    db: Database, event_id: int, *, limit: int, kinds: Sequence[str] = ()
) -> Sequence[Event]:
    wanted = {
        "after": event_id,
        "limit": max(0, limit),
        "kinds": json.dumps(list(kinds)) if kinds else None,
    }
    return [
        Event(**dict(zip(EVENT_COLUMNS, row, strict=True)))
        for row in rows(db, EVENTS_AFTER, wanted)
    ]


def last_event_id(db: Database) -> int:
    return number(db, LAST_EVENT_ID, {})


def event_at(db: Database, event_id: int) -> float | None:
    row = one(db, EVENT_AT, {"after": event_id})
    return float(row[0]) if row else None


def prune_events(db: Database, *, told_before: float, before: float, keep: int, limit: int) -> int:
    last = last_event_id(db)
    told = number(db, TOLD, {"last": last})
    bounds = {
        "last": last,
        "told": told,
        "told_before": told_before,
        "before": before,
        "keep": max(0, keep),
        "limit": max(0, limit),
    }
    return changed(db, PRUNE_EVENTS, bounds)


def ended_requests(db: Database, *, since: float, limit: int) -> Sequence[EndedRequest]:
    found = rows(db, ENDED_REQUESTS, {"since": since, "limit": max(0, limit)})
    return [EndedRequest(**dict(zip(ENDED_COLUMNS, row, strict=True))) for row in reversed(found)]


def open_sinks(db: Database, names: Sequence[str]) -> Mapping[str, SinkRecord]:
    changed(db, FORGET_SINKS, {"names": json.dumps(list(names))})
    last = last_event_id(db)
    for name in names:
        changed(db, OPEN_SINK, {"name": name, "last": last})
    return sinks(db)


def sinks(db: Database) -> Mapping[str, SinkRecord]:
    found = rows(db, f"SELECT {listed(SINK_COLUMNS)} FROM sinks ORDER BY name", {})
    records = (SinkRecord(**dict(zip(SINK_COLUMNS, row, strict=True))) for row in found)
    return {record.name: record for record in records}


def pass_events(
    db: Database, sink: str, *, up_to: int, delivered: int = 0, given_up: int = 0
) -> bool:
    passed = {"name": sink, "up_to": up_to, "delivered": delivered, "given_up": given_up}
    return bool(changed(db, PASS_EVENTS, passed))


def fail_sink(db: Database, sink: str, *, now: float) -> bool:
    return bool(changed(db, FAIL_SINK, {"name": sink, "now": now}))
