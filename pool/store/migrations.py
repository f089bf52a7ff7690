"""The tables, as migrations: what is released is never edited, only added to.

``tasks``, ``leases`` and ``requests`` grow for ever, and nearly all of their rows are finished.
Hence the partial indexes: each holds only the rows that one question is about, so that the
question costs the same however many are finished. A query uses such an index only when it
repeats the index's condition, which is why the conditions have names here.

References go one way, to rows that are there before. Two that point at each other would have to
be deferred, and SQLite settles a deferred one by searching the whole table of the other side.
"""

from __future__ import annotations

import secrets
from typing import Final

from sqlite_utils import Database, Migrations

from pool.store.event_schema import EVENT_SCHEMA

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
#: Requests that somebody still works on.
OPEN: Final = "state IN ('queued', 'uploading', 'importing')"
#: Requests whose data is in the spool and that CVAT has not accepted yet.
SPOOLED: Final = "spooled = 1 AND state IN ('queued', 'uploading')"

_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"

migrations = Migrations("pool")


@migrations()
def m001_tasks_leases_requests(db: Database) -> None:
    """The rows that the pool is about. ``seq`` is the order in which they were written."""
    outcomes = "('hit', 'wait', 'cold')"
    for statement in (
        """
        CREATE TABLE tasks (
            seq INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            template TEXT NOT NULL,
            fingerprint TEXT NOT NULL,
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
            changed_at REAL NOT NULL,
            CHECK (state <> 'warm' OR
                   (task_id IS NOT NULL AND warm_at IS NOT NULL AND lease_id IS NULL)),
            CHECK (state NOT IN ('leased', 'importing') OR
                   (task_id IS NOT NULL AND lease_id IS NOT NULL))
        ) STRICT
        """,
        "CREATE INDEX tasks_warm ON tasks (template, fingerprint, warm_at) WHERE state = 'warm'",
        f"CREATE INDEX tasks_live ON tasks (template, state, fingerprint) WHERE {LIVE}",
        f"CREATE INDEX tasks_doomed ON tasks (changed_at) WHERE {DOOMED}",
        "CREATE UNIQUE INDEX tasks_lease ON tasks (lease_id) WHERE lease_id IS NOT NULL",
        f"""
        CREATE TABLE leases (
            seq INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            template TEXT NOT NULL,
            state TEXT NOT NULL CHECK (state IN
                ('waiting', 'active', 'used', 'released', 'expired', 'abandoned')),
            owner TEXT NOT NULL,
            request_id TEXT,
            pooled_id TEXT REFERENCES tasks (id),
            task_id INTEGER,
            task_name TEXT NOT NULL DEFAULT '',
            outcome TEXT CHECK (outcome IN {outcomes}),
            ttl REAL NOT NULL,
            idempotency_key TEXT,
            payload TEXT NOT NULL,
            created_at REAL NOT NULL,
            handed_out_at REAL,
            expires_at REAL,
            served INTEGER NOT NULL DEFAULT 0 CHECK (served IN (0, 1)),
            CHECK (state NOT IN ('active', 'used') OR pooled_id IS NOT NULL)
        ) STRICT
        """,
        """
        CREATE UNIQUE INDEX leases_key ON leases (idempotency_key)
        WHERE idempotency_key IS NOT NULL
        """,
        "CREATE INDEX leases_by_state ON leases (state)",
        "CREATE INDEX leases_waiting ON leases (template) WHERE state = 'waiting'",
        f"CREATE INDEX leases_expiring ON leases (expires_at) WHERE {EXPIRING}",
        f"""
        CREATE TABLE requests (
            seq INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            template TEXT NOT NULL,
            state TEXT NOT NULL CHECK (state IN
                ('queued', 'uploading', 'importing', 'ready', 'failed', 'cancelled')),
            owner TEXT NOT NULL,
            lease_id TEXT NOT NULL REFERENCES leases (id),
            pooled_id TEXT REFERENCES tasks (id),
            task_id INTEGER,
            outcome TEXT CHECK (outcome IN {outcomes}),
            name TEXT,
            assignee INTEGER,
            files TEXT NOT NULL,
            size INTEGER NOT NULL,
            payload TEXT NOT NULL,
            idempotency_key TEXT,
            created_at REAL NOT NULL,
            handed_out_at REAL,
            uploaded_at REAL,
            deadline_at REAL,
            finished_at REAL,
            lost_seconds REAL NOT NULL DEFAULT 0,
            served INTEGER NOT NULL DEFAULT 0 CHECK (served IN (0, 1)),
            error_code TEXT NOT NULL DEFAULT '',
            error TEXT NOT NULL DEFAULT '',
            warnings TEXT NOT NULL DEFAULT '[]',
            warned_at REAL,
            CHECK (state NOT IN ('uploading', 'importing', 'ready') OR pooled_id IS NOT NULL)
        ) STRICT
        """,
        """
        CREATE UNIQUE INDEX requests_key ON requests (idempotency_key)
        WHERE idempotency_key IS NOT NULL
        """,
        f"CREATE INDEX requests_open ON requests (owner, state) WHERE {OPEN}",
        f"CREATE INDEX requests_open_task ON requests (pooled_id) WHERE {OPEN}",
        # One for each filter of a page: only then are the rows in order of seq, unsorted.
        "CREATE INDEX requests_by_state ON requests (state)",
        "CREATE INDEX requests_by_template ON requests (template)",
        "CREATE INDEX requests_by_both ON requests (state, template)",
    ):
        db.execute(statement)
    db.table("jobs").create(
        {
            "pooled_id": str,
            "id": int,
            "url": str,
            "start_frame": int,
            "stop_frame": int,
            "assignee": str,
        },
        pk=("pooled_id", "id"),
        foreign_keys=[("pooled_id", "tasks", "id")],
        not_null=("url", "start_frame", "stop_frame"),
        strict=True,
    )
    db.execute("""
        CREATE TABLE final_steps (
            pooled_id TEXT NOT NULL REFERENCES tasks (id),
            kind TEXT NOT NULL CHECK (kind IN ('name', 'assign')),
            tries INTEGER NOT NULL DEFAULT 0,
            since REAL NOT NULL,
            due_at REAL NOT NULL,
            jobs_left TEXT,
            PRIMARY KEY (pooled_id, kind)
        ) STRICT
    """)
    db.execute("CREATE INDEX final_steps_due ON final_steps (due_at, kind DESC)")


@migrations()
def m002_demand(db: Database) -> None:
    """Hand-outs by bucket of time, and how long creates take, for the sizing; and all hand-outs
    that there ever were, for the metrics."""
    db.table("demand").create(
        {"template": str, "start": float, "hits": int, "waits": int, "colds": int},
        pk=("template", "start"),
        not_null=("hits", "waits", "colds"),
        strict=True,
    )
    db.table("hand_outs").create(
        {"template": str, "outcome": str, "total": int},
        pk=("template", "outcome"),
        not_null=("total",),
        strict=True,
    )
    db.table("lead_times").create(
        {"template": str, "seconds": float}, pk="template", not_null=("seconds",), strict=True
    )


@migrations()
def m003_owners_holds_maintenance(db: Database) -> None:
    """Who is at work on the store; what is not to be created for now, and what was when."""
    db.table("owners").create({"owner": str, "until": float}, pk="owner", strict=True)
    db.table("maintenance").create(
        {"id": int, "owner": str, "until": float},
        pk="id",
        not_null=("owner", "until"),
        strict=True,
    )
    db.table("holds").create(
        {
            "template": str,
            "code": str,
            "reason": str,
            "since": float,
            "retry_at": float,
            "attempts": int,
            "uploads": int,
        },
        pk="template",
        not_null=("code", "reason", "since", "attempts", "uploads"),
        strict=True,
    )
    db.table("held").create(
        {"template": str, "since": float, "until": float},
        not_null=("template", "since", "until"),
        strict=True,
    )
    db.execute("CREATE INDEX held_by_end ON held (until)")
    db.table("pauses").create({"template": str, "since": float}, pk="template", strict=True)
    # One row: the configuration of the daemon that maintains the store; lists are JSON.
    db.table("configuration").create(
        {
            "id": int,
            "loaded_at": float,
            "rejected_at": float,
            "problems": str,
            "restart": str,
            "templates": str,
        },
        pk="id",
        not_null=("loaded_at", "problems", "restart", "templates"),
        strict=True,
    )


@migrations()
def m004_pool_id(db: Database) -> None:
    """Eight characters that mark this pool's tasks; a row that proves that writing works."""
    db.table("meta").create({"key": str, "value": str}, pk="key", strict=True)
    pool_id = "".join(secrets.choice(_ALPHABET) for _ in range(8))
    db.table("meta").insert_all(
        [{"key": "pool_id", "value": pool_id}, {"key": "writes_checked", "value": "0"}]
    )


@migrations()
def m005_paces(db: Database) -> None:
    """How long imports take, as far as was learned."""
    db.table("paces").create(
        {"name": str, "first": float, "imports": int, "seen": str},
        pk="name",
        not_null=("first", "imports", "seen"),
        strict=True,
    )


@migrations()
def m006_webhooks(db: Database) -> None:
    """The webhooks that were installed; their secret stands in ``meta``. Deliveries name tasks
    by the server's id."""
    db.table("webhooks").create(
        {
            "scope": str,
            "hook_id": int,
            "target_url": str,
            "installed_at": float,
            "heard_at": float,
            "missed": int,
        },
        pk="scope",
        not_null=("hook_id", "target_url", "installed_at", "missed"),
        defaults={"missed": 0},
        strict=True,
    )
    db.execute("CREATE INDEX tasks_on_server ON tasks (task_id) WHERE task_id IS NOT NULL")


@migrations()
def m007_doubt_and_pruning(db: Database) -> None:
    """Until when a warm task is not handed out, because nobody has looked at it yet; and what
    finds finished rows by their age, and the rows that refer to them."""
    for statement in (
        "ALTER TABLE tasks ADD COLUMN doubted_until REAL",
        f"CREATE INDEX tasks_finished ON tasks (changed_at) WHERE {FINISHED}",
        f"CREATE INDEX leases_ended ON leases (created_at) WHERE {ENDED}",
        """
        CREATE INDEX requests_finished ON requests (finished_at) WHERE finished_at IS NOT NULL
        """,
        "CREATE INDEX leases_of_task ON leases (pooled_id) WHERE pooled_id IS NOT NULL",
        "CREATE INDEX requests_of_task ON requests (pooled_id) WHERE pooled_id IS NOT NULL",
        "CREATE INDEX requests_of_lease ON requests (lease_id)",
    ):
        db.execute(statement)


@migrations()
def m008_spooled(db: Database) -> None:
    """Which requests have their data in the spool, and how many tasks they have used up."""
    for statement in (
        """
        ALTER TABLE requests
        ADD COLUMN spooled INTEGER NOT NULL DEFAULT 0 CHECK (spooled IN (0, 1))
        """,
        "ALTER TABLE requests ADD COLUMN tasks_spent INTEGER NOT NULL DEFAULT 0",
        f"CREATE INDEX requests_spooled ON requests (state) WHERE {SPOOLED}",
    ):
        db.execute(statement)


@migrations()
def m009_changes(db: Database) -> None:
    """Where a task was made, so that one of an older template is known to be on the same server;
    whether a paused template is drained as well; and pools that are to be larger for a while."""
    db.execute("ALTER TABLE tasks ADD COLUMN origin TEXT NOT NULL DEFAULT ''")
    db.execute("ALTER TABLE pauses ADD COLUMN drained INTEGER NOT NULL DEFAULT 0")
    db.table("prewarms").create(
        {"template": str, "size": int, "since": float, "until": float},
        pk="template",
        not_null=("size", "since", "until"),
        strict=True,
    )


@migrations()
def m010_events(db: Database) -> None:
    """What happened, written down by triggers, so that no change of a state goes without; and how
    far the sinks have been told. The newest event is never forgotten, so no id is given twice."""
    for statement in EVENT_SCHEMA:
        db.execute(statement)


def unknown_to_us(db: Database) -> set[str]:
    """Names of migrations that were applied and that this version does not have."""
    with Database(memory=True) as empty:
        ours = {migration.name for migration in migrations.pending(empty)}
    return {migration.name for migration in migrations.applied(db)} - ours
