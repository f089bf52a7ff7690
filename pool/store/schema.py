"""The tables, indexes and triggers of a SQLite store, made by one migration.

``tasks``, ``leases`` and ``requests`` grow for ever, and nearly all of their rows are finished.
Hence the partial indexes: each holds only the rows that one question needs, so that the question
costs the same however many rows are finished. A query uses such an index only when it repeats the
index's condition, which is why the conditions have names here.

References go one way, to rows that are there before. Two that point at each other would have to
be deferred, and SQLite settles a deferred one by searching the whole table of the other side.

Events are written by triggers, so that no change of a state goes without. A change never fails for
its event: where a time is missing, an older one stands in.
"""

from __future__ import annotations

import random
import secrets
import sqlite3
import threading
import time
from pathlib import Path
from typing import Final

from sqlite_utils import Database, Migrations

from pool.errors import StoreError
from pool.store.connections import Connection, connect, make_file
from pool.store.failures import check_place, explain, is_busy

#: Tasks that still take up room on the server because of the pool.
LIVE: Final = "state NOT IN ('ready', 'deleted')"
#: Tasks that are to go from the server.
DOOMED: Final = "state IN ('retired', 'failed', 'deleting')"
#: Tasks that nothing more will happen to, once the steps that are left for them are done.
FINISHED: Final = "state IN ('ready', 'deleted')"
#: Leases that neither wait nor hold a task that may be given back.
ENDED: Final = "state NOT IN ('waiting', 'active')"
#: Leases that end when their time is up.
EXPIRING: Final = "state = 'active' AND request_id IS NULL"
#: Requests that are not finished.
OPEN: Final = "state IN ('queued', 'uploading', 'importing')"
#: Imports that are not finished.
UNDER_WAY: Final = "state IN ('uploading', 'importing')"
#: Requests whose data is in the spool and that CVAT has not accepted yet.
SPOOLED: Final = "spooled AND state IN ('queued', 'uploading')"

#: The end of a hold that lasts, in seconds since the epoch.
FOREVER: Final = 1e18

#: Longest pause, in seconds, before another try at a file that other processes are making.
_PAUSE: Final = 0.05
_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
#: Threads of one process that open a store do so one after the other.
_opening = threading.Lock()

migrations = Migrations("pool")


def server_seconds(request: str) -> str:
    """CVAT's part of the seconds that a request took, whose row is called ``request``, and whose
    import's is called ``imports``.

    That is what came after CVAT had accepted the data; and before that, while CVAT or the template
    was held, and in uploads and imports that failed. NULL when the data was never accepted.
    """
    db = Connection
    held_until = db.least("held.until", "imports.uploaded_at")
    held_since = db.greatest("held.since", f"{request}.created_at")
    held = f"""
        SELECT SUM({db.greatest("0.0", f"{held_until} - {held_since}")})
        FROM held
        WHERE held.until > {request}.created_at AND held.template IN ('', {request}.template)
    """
    before = db.greatest(f"imports.uploaded_at - {request}.created_at", "0.0")
    lost = f"{request}.lost_seconds + COALESCE(({held}), 0.0)"
    return f"""
        CASE WHEN {request}.finished_at IS NOT NULL AND imports.uploaded_at IS NOT NULL THEN
            {db.greatest(f"{request}.finished_at - imports.uploaded_at", "0.0")}
            + {db.least(before, lost)}
        END
    """


# --- The migration --------------------------------------------------------------------------------

_OUTCOMES: Final = "('hit', 'wait', 'cold')"

_TASKS: Final = f"""
    CREATE TABLE tasks (
        seq INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        template TEXT NOT NULL,
        fingerprint TEXT NOT NULL,
        origin TEXT NOT NULL DEFAULT '',
        state TEXT NOT NULL CHECK (state IN
            ('creating', 'warm', 'leased', 'importing', 'ready',
             'failed', 'retired', 'deleting', 'deleted')),
        name TEXT NOT NULL,
        task_id INTEGER,
        prepared INTEGER NOT NULL DEFAULT 0 CHECK (prepared IN (0, 1)),
        cold INTEGER NOT NULL CHECK (cold IN (0, 1)),
        lease_id TEXT,
        owner TEXT NOT NULL,
        reason TEXT NOT NULL DEFAULT '',
        created_at REAL NOT NULL,
        warm_at REAL,
        quarantined_until REAL,
        changed_at REAL NOT NULL,
        CHECK (state <> 'warm' OR
               (task_id IS NOT NULL AND warm_at IS NOT NULL AND lease_id IS NULL)),
        CHECK (state NOT IN ('leased', 'importing') OR
               (task_id IS NOT NULL AND lease_id IS NOT NULL))
    ) STRICT;
    CREATE INDEX tasks_warm ON tasks (template, fingerprint, warm_at) WHERE state = 'warm';
    CREATE INDEX tasks_live ON tasks (template, state, fingerprint) WHERE {LIVE};
    CREATE INDEX tasks_doomed ON tasks (changed_at) WHERE {DOOMED};
    CREATE INDEX tasks_finished ON tasks (changed_at) WHERE {FINISHED};
    CREATE UNIQUE INDEX tasks_lease ON tasks (lease_id) WHERE lease_id IS NOT NULL;
    CREATE INDEX tasks_on_server ON tasks (task_id) WHERE task_id IS NOT NULL;
"""

_LEASES: Final = f"""
    CREATE TABLE leases (
        seq INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        template TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN
            ('waiting', 'active', 'used', 'released', 'expired', 'abandoned')),
        owner TEXT NOT NULL,
        request_id TEXT,
        fingerprint TEXT NOT NULL,
        reusable_origin TEXT,
        pooled_id TEXT REFERENCES tasks (id),
        task_id INTEGER,
        task_name TEXT NOT NULL DEFAULT '',
        outcome TEXT CHECK (outcome IN {_OUTCOMES}),
        ttl REAL NOT NULL,
        idempotency_key TEXT,
        payload TEXT NOT NULL,
        created_at REAL NOT NULL,
        handed_out_at REAL,
        expires_at REAL,
        served INTEGER NOT NULL DEFAULT 0 CHECK (served IN (0, 1)),
        CHECK (state NOT IN ('active', 'used') OR pooled_id IS NOT NULL)
    ) STRICT;
    CREATE UNIQUE INDEX leases_key ON leases (idempotency_key) WHERE idempotency_key IS NOT NULL;
    CREATE INDEX leases_by_state ON leases (state);
    CREATE INDEX leases_waiting ON leases (template) WHERE state = 'waiting';
    CREATE INDEX leases_expiring ON leases (expires_at) WHERE {EXPIRING};
    CREATE INDEX leases_ended ON leases (created_at) WHERE {ENDED};
    CREATE INDEX leases_of_task ON leases (pooled_id) WHERE pooled_id IS NOT NULL;
"""

#: The task's and the lease's ids stay as they were, also when the task has another lease.
_IMPORTS: Final = f"""
    CREATE TABLE imports (
        seq INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        template TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN
            ('uploading', 'importing', 'ready', 'failed', 'returned')),
        owner TEXT NOT NULL,
        lease_id TEXT NOT NULL UNIQUE REFERENCES leases (id),
        pooled_id TEXT NOT NULL REFERENCES tasks (id),
        task_id INTEGER NOT NULL,
        outcome TEXT NOT NULL CHECK (outcome IN {_OUTCOMES}),
        size INTEGER NOT NULL,
        handed_out_at REAL NOT NULL,
        uploaded_at REAL,
        deadline_at REAL,
        finished_at REAL,
        CHECK ((finished_at IS NULL) = ({UNDER_WAY}))
    ) STRICT;
    CREATE INDEX imports_under_way ON imports (owner, state) WHERE {UNDER_WAY};
    CREATE INDEX imports_of_task ON imports (pooled_id);
    CREATE INDEX imports_ended ON imports (finished_at) WHERE finished_at IS NOT NULL;
    CREATE TABLE import_members (
        import_id TEXT NOT NULL REFERENCES imports (id),
        position INTEGER NOT NULL,
        request_id TEXT NOT NULL,
        files TEXT NOT NULL,
        names TEXT NOT NULL,
        PRIMARY KEY (import_id, position)
    ) STRICT;
"""

#: A page of requests has an index for each filter: only then are the rows in order of ``seq``.
_REQUESTS: Final = f"""
    CREATE TABLE requests (
        seq INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        template TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN
            ('queued', 'uploading', 'importing', 'ready', 'failed', 'cancelled')),
        owner TEXT NOT NULL,
        lease_id TEXT NOT NULL REFERENCES leases (id),
        import_id TEXT REFERENCES imports (id),
        imports_used INTEGER NOT NULL DEFAULT 0,
        name TEXT,
        assignee INTEGER,
        files TEXT NOT NULL,
        size INTEGER NOT NULL,
        payload TEXT NOT NULL,
        idempotency_key TEXT,
        created_at REAL NOT NULL,
        finished_at REAL,
        lost_seconds REAL NOT NULL DEFAULT 0,
        served INTEGER NOT NULL DEFAULT 0 CHECK (served IN (0, 1)),
        spooled INTEGER NOT NULL DEFAULT 0 CHECK (spooled IN (0, 1)),
        error_code TEXT NOT NULL DEFAULT '',
        error TEXT NOT NULL DEFAULT '',
        warnings TEXT NOT NULL DEFAULT '[]',
        warned_at REAL,
        CHECK (state NOT IN ('uploading', 'importing', 'ready') OR import_id IS NOT NULL),
        CHECK (state NOT IN ('queued', 'cancelled') OR import_id IS NULL)
    ) STRICT;
    CREATE UNIQUE INDEX requests_key ON requests (idempotency_key)
    WHERE idempotency_key IS NOT NULL;
    CREATE INDEX requests_open ON requests (state, template) WHERE {OPEN};
    CREATE INDEX requests_spooled ON requests (state) WHERE {SPOOLED};
    CREATE INDEX requests_finished ON requests (finished_at) WHERE finished_at IS NOT NULL;
    CREATE INDEX requests_of_import ON requests (import_id) WHERE import_id IS NOT NULL;
    CREATE INDEX requests_of_lease ON requests (lease_id);
    CREATE INDEX requests_by_state ON requests (state);
    CREATE INDEX requests_by_template ON requests (template);
    CREATE INDEX requests_by_both ON requests (state, template);
"""

#: ``request_id`` is that of the request whose jobs are to be assigned; a task has one name.
_FINAL_STEPS: Final = """
    CREATE TABLE final_steps (
        pooled_id TEXT NOT NULL REFERENCES tasks (id),
        kind TEXT NOT NULL CHECK (kind IN ('name', 'assign')),
        request_id TEXT NOT NULL,
        tries INTEGER NOT NULL DEFAULT 0,
        since REAL NOT NULL,
        due_at REAL NOT NULL,
        jobs_left TEXT,
        PRIMARY KEY (pooled_id, kind, request_id)
    ) STRICT;
    CREATE INDEX final_steps_due ON final_steps (due_at, kind DESC);
"""

_IMPORT_OF_NEW: Final = "(SELECT NEW.import_id AS id) AS one LEFT JOIN imports USING (id)"

#: The event of a request's row, as it is now. One that is queued again has a fresh lease.
_OF_REQUEST: Final = f"""
    INSERT INTO events (kind, at, template, task_id, lease_id, request_id, state, outcome, code,
                        seconds, server_seconds)
    SELECT 'request.' || NEW.state,
           COALESCE(CASE NEW.state
                        WHEN 'queued' THEN (SELECT created_at FROM leases WHERE id = NEW.lease_id)
                        WHEN 'uploading' THEN MAX(NEW.created_at, imports.handed_out_at)
                        WHEN 'importing' THEN imports.uploaded_at
                        ELSE NEW.finished_at
                    END, NEW.created_at),
           NEW.template, imports.task_id, NEW.lease_id, NEW.id, NEW.state, imports.outcome,
           NEW.error_code, MAX(NEW.finished_at - NEW.created_at, 0.0),
           {server_seconds("NEW")}
    FROM {_IMPORT_OF_NEW};
"""

#: The event of a lease's row, as it is now. A lease ends by what happens to its task, in the same
#: transaction and before it, so the time of that is its own. A lease that serves a request is
#: handed out when CVAT has the data; one that is taken back before that has no events, since its
#: task was warm all the time.
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

#: The newest event is never pruned, so no id is given twice.
_EVENTS: Final = f"""
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
    ) STRICT;
    CREATE TRIGGER events_of_new_requests AFTER INSERT ON requests BEGIN {_OF_REQUEST} END;
    CREATE TRIGGER events_of_requests AFTER UPDATE OF state ON requests
    WHEN NEW.state <> OLD.state BEGIN {_OF_REQUEST} END;
    CREATE TRIGGER events_of_warnings AFTER UPDATE OF warnings ON requests
    WHEN NEW.warnings <> OLD.warnings
    BEGIN
        INSERT INTO events (kind, at, template, task_id, lease_id, request_id, state, outcome,
                            code)
        SELECT 'request.warned', COALESCE(NEW.warned_at, NEW.created_at), NEW.template,
               imports.task_id, NEW.lease_id, NEW.id, NEW.state, imports.outcome,
               json_extract(NEW.warnings, '$[#-1].code')
        FROM {_IMPORT_OF_NEW};
    END;
    CREATE TRIGGER events_of_new_leases AFTER INSERT ON leases
    WHEN NEW.served BEGIN {_OF_LEASE} END;
    CREATE TRIGGER events_of_served_leases AFTER UPDATE OF served ON leases
    WHEN NEW.served AND NOT OLD.served BEGIN {_OF_LEASE} END;
    CREATE TRIGGER events_of_leases AFTER UPDATE OF state ON leases
    WHEN OLD.served AND NEW.state <> OLD.state AND NEW.state IN ('used', 'released', 'expired')
    BEGIN {_OF_LEASE} END;
    CREATE TRIGGER events_of_tasks AFTER UPDATE OF state ON tasks
    WHEN NEW.state <> OLD.state AND NEW.state IN ('warm', 'failed', 'retired', 'deleted')
      AND (NEW.state <> 'warm' OR OLD.state <> 'leased'
           OR EXISTS (SELECT 1 FROM leases WHERE id = OLD.lease_id AND served))
    BEGIN
        INSERT INTO events (kind, at, template, task_id, lease_id, state)
        VALUES ('task.' || NEW.state, NEW.changed_at, NEW.template, NEW.task_id, NEW.lease_id,
                NEW.state);
    END;
"""

#: Tables that are no more than their columns: name, columns, primary key, columns that may be NULL.
#: Those of ``_COUNTERS`` begin at 0.
_PLAIN_TABLES: Final[tuple[tuple[str, dict[str, type], tuple[str, ...], tuple[str, ...]], ...]] = (
    (
        "jobs",
        {
            "pooled_id": str,
            "id": int,
            "request_id": str,
            "url": str,
            "start_frame": int,
            "stop_frame": int,
            "assignee": str,
        },
        ("pooled_id", "id"),
        ("request_id", "assignee"),
    ),
    # Hand-outs by bucket of time, for the sizing; all that there ever were, for the metrics.
    (
        "demand",
        {"template": str, "start": float, "hits": int, "waits": int, "colds": int},
        ("template", "start"),
        (),
    ),
    ("hand_outs", {"template": str, "outcome": str, "total": int}, ("template", "outcome"), ()),
    ("lead_times", {"template": str, "seconds": float}, ("template",), ()),
    # How long imports take, by size class.
    ("paces", {"name": str, "first": float, "imports": int, "seen": str}, ("name",), ()),
    ("owners", {"owner": str, "until": float}, ("owner",), ()),
    ("maintenance", {"id": int, "owner": str, "until": float}, ("id",), ()),
    (
        "holds",
        {
            "template": str,
            "code": str,
            "reason": str,
            "since": float,
            "retry_at": float,
            "attempts": int,
            "uploads": int,
        },
        ("template",),
        ("retry_at",),
    ),
    # When holds were in force, also those that have ended.
    ("held", {"seq": int, "template": str, "since": float, "until": float}, ("seq",), ()),
    ("pauses", {"template": str, "since": float, "drained": int}, ("template",), ()),
    (
        "prewarms",
        {"template": str, "size": int, "since": float, "until": float},
        ("template",),
        (),
    ),
    # One row: the configuration of the daemon that maintains the store; lists are JSON.
    (
        "configuration",
        {
            "id": int,
            "loaded_at": float,
            "rejected_at": float,
            "problems": str,
            "restart": str,
            "templates": str,
        },
        ("id",),
        ("rejected_at",),
    ),
    # The installed webhooks; their secret stands in ``meta``.
    (
        "webhooks",
        {
            "scope": str,
            "hook_id": int,
            "target_url": str,
            "installed_at": float,
            "heard_at": float,
            "missed": int,
        },
        ("scope",),
        ("heard_at",),
    ),
    (
        "sinks",
        {"name": str, "cursor": int, "failing_since": float, "delivered": int, "given_up": int},
        ("name",),
        ("failing_since",),
    ),
    # The pool's id, the webhooks' secret, and a row that proves that writing works.
    ("meta", {"key": str, "value": str}, ("key",), ()),
)
_COUNTERS: Final = ("delivered", "given_up", "missed", "drained", "hits", "waits", "colds")


@migrations()
def m001_tables(db: Database) -> None:
    """Make all tables, and choose the eight characters that mark this pool's tasks."""
    # Not executescript: it would commit, and a migration that fails has to leave nothing.
    for script in (_TASKS, _LEASES, _IMPORTS, _REQUESTS, _FINAL_STEPS, _EVENTS):
        for statement in _statements(script):
            db.execute(statement)
    for name, columns, key, optional in _PLAIN_TABLES:
        db.table(name).create(
            columns,
            pk=key if len(key) > 1 else key[0],
            not_null=[column for column in columns if column not in optional],
            defaults={column: 0 for column in columns if column in _COUNTERS},
            foreign_keys=[("pooled_id", "tasks", "id")] if name == "jobs" else (),
            strict=True,
        )
    db.table("held").create_index(["until"], index_name="held_by_end")
    pool_id = "".join(secrets.choice(_ALPHABET) for _ in range(8))
    db.table("meta").insert_all(
        [{"key": "pool_id", "value": pool_id}, {"key": "writes_checked", "value": "0"}]
    )


def _statements(script: str) -> list[str]:
    """The statements of a script; a trigger has semicolons of its own."""
    statements, rest = [], ""
    for part in script.split(";"):
        rest += f"{part};"
        if sqlite3.complete_statement(rest):
            statements.append(rest)
            rest = ""
    return statements


# --- Making a file into a store -------------------------------------------------------------------


def make_ready(path: Path, *, busy_timeout: float) -> str:
    """Make the file and its tables, where they are missing, and return the pool's id.

    Several processes may do this at the same time. SQLite does not wait, but fails, when two of
    them switch a new file to write-ahead logging, so the one that was too early tries again.

    :raises StoreError: the file cannot be used; the message says why.
    """
    check_place(path)
    give_up = time.monotonic() + busy_timeout
    with _opening:
        while True:
            try:
                return _try_make_ready(path, busy_timeout)
            except sqlite3.Error as error:
                if not is_busy(error) or time.monotonic() > give_up:
                    raise explain(error, path, busy_timeout=busy_timeout) from error
            time.sleep(random.uniform(0.0, _PAUSE))


def _unknown_migrations(db: Database) -> set[str]:
    """Return the names of migrations that were applied and that this version does not have."""
    with Database(memory=True) as empty:
        ours = {migration.name for migration in migrations.pending(empty)}
    return {migration.name for migration in migrations.applied(db)} - ours


def _try_make_ready(path: Path, busy_timeout: float) -> str:
    make_file(path)
    db = connect(path, busy_timeout=busy_timeout)
    try:
        if db.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
            raise StoreError(f"{path} is where SQLite cannot share memory; use a local disk")
        if _unknown_migrations(db):
            raise StoreError(f"{path} was made by a newer version of cvat-task-pool; upgrade")
        if migrations.pending(db):
            db.execute("BEGIN IMMEDIATE")
            migrations.apply(db)
            db.execute("COMMIT")
        return str(db.table("meta").get("pool_id")["value"])
    finally:
        db.conn.close()
