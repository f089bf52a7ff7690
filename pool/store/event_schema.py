"""The tables and triggers of migration ``m010_events``: released, and so never edited.

A change never fails for its event: where a time should be missing, an older one stands in. A lease
ends by what happens to its task, in the same transaction and before it, so the time of that is its
own. A lease that serves a request is handed out when CVAT has the data; one that is taken back
before, CVAT being away, was none to anybody, and its task was warm all the time.
"""

from __future__ import annotations

from typing import Final

#: The end of a hold that lasts, in seconds since the epoch.
FOREVER: Final = 1e18


def server_seconds(request: str) -> str:
    """CVAT's part of the time that a request took, whose row is called ``request``.

    That is what came after it had accepted the data; and before that, while it or its template was
    held, and in tries that came to nothing. None of a request whose data was never accepted.
    """
    held = f"""
        SELECT SUM(MAX(0.0, MIN(held.until, {request}.uploaded_at)
                            - MAX(held.since, {request}.created_at)))
        FROM held
        WHERE held.until > {request}.created_at AND held.template IN ('', {request}.template)
    """
    return f"""
        CASE WHEN {request}.finished_at IS NOT NULL AND {request}.uploaded_at IS NOT NULL THEN
            MAX({request}.finished_at - {request}.uploaded_at, 0.0)
            + MIN(MAX({request}.uploaded_at - {request}.created_at, 0.0),
                  {request}.lost_seconds + COALESCE(({held}), 0.0))
        END
    """


#: The event of a request's row, as it is now. One that is queued again has a fresh lease.
_OF_REQUEST: Final = f"""
    INSERT INTO events (kind, at, template, task_id, lease_id, request_id, state, outcome, code,
                        seconds, server_seconds)
    VALUES ('request.' || NEW.state,
            COALESCE(CASE NEW.state
                         WHEN 'queued' THEN (SELECT created_at FROM leases WHERE id = NEW.lease_id)
                         WHEN 'uploading' THEN MAX(NEW.created_at, NEW.handed_out_at)
                         WHEN 'importing' THEN NEW.uploaded_at
                         ELSE NEW.finished_at
                     END, NEW.created_at),
            NEW.template, NEW.task_id, NEW.lease_id, NEW.id, NEW.state, NEW.outcome,
            NEW.error_code, MAX(NEW.finished_at - NEW.created_at, 0.0),
            {server_seconds("NEW")});
"""

#: The event of a lease's row, as it is now.
_OF_LEASE: Final = """
    INSERT INTO events (kind, at, template, task_id, lease_id, request_id, state, outcome, seconds)
    VALUES ('lease.' || CASE NEW.state WHEN 'active' THEN 'handed_out' ELSE NEW.state END,
            COALESCE(CASE NEW.state
                         WHEN 'active' THEN NEW.handed_out_at
                         ELSE (SELECT changed_at FROM tasks WHERE id = NEW.pooled_id)
                     END, NEW.handed_out_at, NEW.created_at),
            NEW.template, NEW.task_id, NEW.id, NEW.request_id, NEW.state, NEW.outcome,
            CASE NEW.state WHEN 'active' THEN
                MAX(NEW.handed_out_at - COALESCE(
                    (SELECT created_at FROM requests WHERE id = NEW.request_id),
                    NEW.created_at), 0.0)
            END);
"""

#: The event of the newest warning of a request.
_OF_WARNING: Final = """
    INSERT INTO events (kind, at, template, task_id, lease_id, request_id, state, outcome, code)
    VALUES ('request.warned', COALESCE(NEW.warned_at, NEW.created_at), NEW.template, NEW.task_id,
            NEW.lease_id, NEW.id, NEW.state, NEW.outcome,
            json_extract(NEW.warnings, '$[#-1].code'));
"""

EVENT_SCHEMA: Final = (
    """
    CREATE TABLE events (
        id INTEGER PRIMARY KEY,
        kind TEXT NOT NULL,
        at REAL NOT NULL,
        template TEXT NOT NULL,
        task_id INTEGER,
        lease_id TEXT,
        request_id TEXT,
        state TEXT NOT NULL,
        outcome TEXT,
        code TEXT NOT NULL DEFAULT '',
        seconds REAL,
        server_seconds REAL
    ) STRICT
    """,
    """
    CREATE TABLE sinks (
        name TEXT PRIMARY KEY,
        cursor INTEGER NOT NULL,
        failing_since REAL,
        delivered INTEGER NOT NULL DEFAULT 0,
        given_up INTEGER NOT NULL DEFAULT 0
    ) STRICT
    """,
    f"CREATE TRIGGER events_of_new_requests AFTER INSERT ON requests BEGIN {_OF_REQUEST} END",
    f"""
    CREATE TRIGGER events_of_requests AFTER UPDATE OF state ON requests
    WHEN NEW.state <> OLD.state BEGIN {_OF_REQUEST} END
    """,
    f"""
    CREATE TRIGGER events_of_warnings AFTER UPDATE OF warnings ON requests
    WHEN NEW.warnings <> OLD.warnings BEGIN {_OF_WARNING} END
    """,
    f"""
    CREATE TRIGGER events_of_new_leases AFTER INSERT ON leases
    WHEN NEW.served BEGIN {_OF_LEASE} END
    """,
    f"""
    CREATE TRIGGER events_of_served_leases AFTER UPDATE OF served ON leases
    WHEN NEW.served AND NOT OLD.served BEGIN {_OF_LEASE} END
    """,
    f"""
    CREATE TRIGGER events_of_leases AFTER UPDATE OF state ON leases
    WHEN OLD.served AND NEW.state <> OLD.state AND NEW.state IN ('used', 'released', 'expired')
    BEGIN {_OF_LEASE} END
    """,
    """
    CREATE TRIGGER events_of_tasks AFTER UPDATE OF state ON tasks
    WHEN NEW.state <> OLD.state AND NEW.state IN ('warm', 'failed', 'retired', 'deleted')
      AND (NEW.state <> 'warm' OR OLD.state <> 'leased'
           OR EXISTS (SELECT 1 FROM leases WHERE id = OLD.lease_id AND served))
    BEGIN
        INSERT INTO events (kind, at, template, task_id, lease_id, state)
        VALUES ('task.' || NEW.state, NEW.changed_at, NEW.template, NEW.task_id, NEW.lease_id,
                NEW.state);
    END
    """,
)
