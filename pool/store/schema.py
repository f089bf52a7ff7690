"""The tables and indexes that a store begins with, and its triggers.

They are written in SQLite's words; :mod:`pool.store.postgresql` says the types in its own.

``tasks``, ``leases`` and ``requests`` grow for ever, and nearly all of their rows are finished.
Hence the partial indexes: each holds only the rows that one question needs, so that the question
costs the same however many rows are finished. A query uses such an index only when it repeats the
index's condition, which is why the conditions have names here.

References go one way, to rows that are there before. Two that point at each other would have to
be deferred, and SQLite settles a deferred one by searching the whole table of the other side.

Events are written by triggers, so that no change of a state goes without, and so are the counts of
those that wait. A change never fails for
its event: where a time is missing, an older one stands in.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping
from typing import Final

from pool.store.connections import Dialect, Trigger

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
#: Leases with which a process waits for a task.
IN_LINE: Final = "state = 'waiting' AND owner <> ''"
#: Requests of a tenant other than the operator.
OF_TENANT: Final = "tenant <> ''"
#: Requests whose data is in the spool and that CVAT has not accepted yet.
SPOOLED: Final = "spooled AND state IN ('queued', 'uploading')"
#: Spooled requests for which a process makes a task.
TAKEN: Final = "spooled AND state = 'queued' AND owner <> ''"

#: The end of a hold that lasts, in seconds since the epoch.
FOREVER: Final = 1e18

_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"


def not_own_seconds(db: type[Dialect] | Dialect, request: str) -> tuple[str, str]:
    """CVAT's part of the seconds that a request took, and the part in which it was held: two
    expressions, in a query in which the request's row is called ``request``, and its import's
    ``imports``.

    It was held while CVAT or the template was, until CVAT had accepted the data, and while CVAT was
    afterwards. CVAT's is the rest of what came after that, and uploads and imports that failed
    before it. Both are NULL when the data was never accepted.
    """

    def held(since: str, until: str, *templates: str) -> str:
        """The seconds in which one or two names were held. Holds of one name never overlap; what
        those of two have in common is counted once."""

        def total(first: str, last: str, rows: str) -> str:
            shared = f"{db.least(last, until)} - {db.greatest(first, since)}"
            return f"""
                COALESCE((SELECT SUM({db.greatest("0.0", shared)}) FROM {rows}), 0.0)
            """

        found = " + ".join(
            total("held.since", "held.until", f"held WHERE template = {each} AND until > {since}")
            for each in templates
        )
        if len(templates) == 2:
            one, other = templates
            common = total(
                db.greatest("a.since", "b.since"),
                db.least("a.until", "b.until"),
                f"""
                held AS a JOIN held AS b ON b.template = {other} AND b.until > {since}
                WHERE a.template = {one} AND a.until > {since}
                """,
            )
            found += f" - {common}"
        return db.least(db.greatest(f"{until} - {since}", "0.0"), found)

    asked, accepted, ended = (
        f"{request}.created_at",
        "imports.uploaded_at",
        f"{request}.finished_at",
    )
    before = held(asked, accepted, "''", f"{request}.template")
    after = held(accepted, ended, "''")
    left = db.greatest(f"{accepted} - {asked} - {before}", "0.0")
    server = f"""
        {db.greatest(f"{ended} - {accepted} - {after}", "0.0")}
        + {db.least(left, f"{request}.lost_seconds")}
    """
    ends = f"CASE WHEN {ended} IS NOT NULL AND {accepted} IS NOT NULL THEN"
    return f"{ends} {server} END", f"{ends} {before} + {after} END"


# --- The migration --------------------------------------------------------------------------------

_OUTCOMES: Final = "('hit', 'wait', 'cold')"

#: ``disowned``: it is ``deleted`` here alone, and stays on the server. ``term`` is the term of
#: maintenance in which its deletion on the server was begun last, at ``deleted_at``.
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
        slots INTEGER NOT NULL DEFAULT 0,
        carrier_id TEXT REFERENCES tasks (id),
        prepared INTEGER NOT NULL DEFAULT 0 CHECK (prepared IN (0, 1)),
        cold INTEGER NOT NULL CHECK (cold IN (0, 1)),
        lease_id TEXT,
        owner TEXT NOT NULL,
        reason TEXT NOT NULL DEFAULT '',
        disowned INTEGER NOT NULL DEFAULT 0 CHECK (disowned IN (0, 1)),
        created_at REAL NOT NULL,
        warm_at REAL,
        quarantined_until REAL,
        term INTEGER,
        deleted_at REAL,
        changed_at REAL NOT NULL,
        CHECK (state <> 'warm' OR
               (task_id IS NOT NULL AND warm_at IS NOT NULL AND lease_id IS NULL)),
        CHECK (state NOT IN ('leased', 'importing') OR
               (task_id IS NOT NULL AND lease_id IS NOT NULL))
    ) STRICT;
    CREATE INDEX tasks_warm ON tasks (template, fingerprint, warm_at, seq) WHERE state = 'warm';
    CREATE INDEX tasks_live ON tasks (template, state, fingerprint) WHERE {LIVE};
    CREATE INDEX tasks_doomed ON tasks (changed_at) WHERE {DOOMED};
    CREATE INDEX tasks_finished ON tasks (changed_at) WHERE {FINISHED};
    CREATE UNIQUE INDEX tasks_lease ON tasks (lease_id) WHERE lease_id IS NOT NULL;
    CREATE INDEX tasks_on_server ON tasks (task_id) WHERE task_id IS NOT NULL;
    CREATE INDEX tasks_of_carrier ON tasks (carrier_id) WHERE carrier_id IS NOT NULL;
    CREATE INDEX tasks_of_term ON tasks (term) WHERE term IS NOT NULL;
"""

_LEASES: Final = f"""
    CREATE TABLE leases (
        seq INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        template TEXT NOT NULL,
        tenant TEXT NOT NULL DEFAULT '',
        state TEXT NOT NULL CHECK (state IN
            ('waiting', 'active', 'used', 'released', 'expired', 'abandoned')),
        name TEXT,
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
        place INTEGER NOT NULL DEFAULT 0,
        CHECK (state NOT IN ('active', 'used') OR pooled_id IS NOT NULL)
    ) STRICT;
    CREATE UNIQUE INDEX leases_key ON leases (tenant, idempotency_key)
    WHERE idempotency_key IS NOT NULL;
    CREATE INDEX leases_by_state ON leases (state);
    CREATE INDEX leases_waiting ON leases (template) WHERE state = 'waiting';
    CREATE INDEX leases_in_line ON leases (template, tenant, place) WHERE {IN_LINE};
    CREATE INDEX leases_expiring ON leases (expires_at) WHERE {EXPIRING};
    CREATE INDEX leases_ended ON leases (created_at) WHERE {ENDED};
    CREATE INDEX leases_of_task ON leases (pooled_id) WHERE pooled_id IS NOT NULL;
"""

#: The task's and the lease's ids stay as they were, also when the task has another lease.
#: ``frames``, as JSON, is there while it is in doubt whether CVAT has the data. ``grouped``: its
#: requests may share a task with others, whether they do or not, so that it takes a place.
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
        grouped INTEGER NOT NULL DEFAULT 0 CHECK (grouped IN (0, 1)),
        slot INTEGER NOT NULL DEFAULT 0 CHECK (slot IN (0, 1)),
        priority INTEGER NOT NULL DEFAULT 1 CHECK (priority IN (0, 1, 2)),
        frames TEXT,
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

#: ``files`` are the names in CVAT in a task of the request's own, ``files_in_group`` those in one
#: that it shares; ``given`` is null where the caller calls the files so, too. ``frame_numbers``
#: count from ``first_frame``. ``priority`` is the level of a :class:`pool.model.Priority`.
#: ``patient``: it waits for a warm task alone, since ``created_at``, so that its template says how
#: long; one that waits for anything else, or again, has waited long enough. ``failed_at`` is when
#: its upload failed last, ``failures`` when it did while the server as a whole did not.
#: A page of requests has an index for each filter: only then are the rows in order of ``seq``.
#: ``sought`` is what a search looks through, in lower case.
_REQUESTS: Final = f"""
    CREATE TABLE requests (
        seq INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        template TEXT NOT NULL,
        tenant TEXT NOT NULL DEFAULT '',
        state TEXT NOT NULL CHECK (state IN
            ('queued', 'uploading', 'importing', 'ready', 'failed', 'cancelled')),
        owner TEXT NOT NULL,
        lease_id TEXT NOT NULL REFERENCES leases (id),
        import_id TEXT REFERENCES imports (id),
        imports_used INTEGER NOT NULL DEFAULT 0,
        group_key TEXT,
        priority INTEGER NOT NULL DEFAULT 1 CHECK (priority IN (0, 1, 2)),
        name TEXT,
        assignee TEXT,
        files TEXT NOT NULL,
        files_in_group TEXT,
        given TEXT,
        frame_numbers TEXT,
        first_frame INTEGER NOT NULL DEFAULT 0,
        size INTEGER NOT NULL,
        payload TEXT NOT NULL,
        idempotency_key TEXT,
        created_at REAL NOT NULL,
        finished_at REAL,
        lost_seconds REAL NOT NULL DEFAULT 0,
        served INTEGER NOT NULL DEFAULT 0 CHECK (served IN (0, 1)),
        spooled INTEGER NOT NULL DEFAULT 0 CHECK (spooled IN (0, 1)),
        patient INTEGER NOT NULL DEFAULT 0 CHECK (patient IN (0, 1)),
        paused_until REAL,
        failed_at REAL,
        failures TEXT NOT NULL DEFAULT '[]',
        spool TEXT NOT NULL DEFAULT '',
        hidden TEXT CHECK (hidden IN ('pending', 'done')),
        no_slot TEXT NOT NULL DEFAULT '',
        stream TEXT,
        shown_at REAL,
        error_code TEXT NOT NULL DEFAULT '',
        error TEXT NOT NULL DEFAULT '',
        warnings TEXT NOT NULL DEFAULT '[]',
        warned_at REAL,
        sought TEXT NOT NULL,
        CHECK (state NOT IN ('uploading', 'importing', 'ready') OR import_id IS NOT NULL),
        CHECK (state NOT IN ('queued', 'cancelled') OR import_id IS NULL)
    ) STRICT;
    CREATE UNIQUE INDEX requests_key ON requests (tenant, idempotency_key)
    WHERE idempotency_key IS NOT NULL;
    CREATE INDEX requests_open ON requests (state, template, seq) WHERE {OPEN};
    CREATE INDEX requests_spooled ON requests (template, priority, tenant, spool, seq)
    WHERE {SPOOLED};
    CREATE INDEX requests_taken ON requests (template) WHERE {TAKEN};
    CREATE INDEX requests_of_stream ON requests (template, tenant, stream)
    WHERE state = 'queued' AND stream IS NOT NULL;
    CREATE INDEX requests_finished ON requests (finished_at) WHERE finished_at IS NOT NULL;
    CREATE INDEX requests_of_import ON requests (import_id) WHERE import_id IS NOT NULL;
    CREATE INDEX requests_of_lease ON requests (lease_id);
    CREATE INDEX requests_by_state ON requests (state, seq);
    CREATE INDEX requests_by_template ON requests (template, seq);
    CREATE INDEX requests_by_both ON requests (state, template, seq);
    CREATE INDEX requests_by_time ON requests (created_at, seq);
    CREATE INDEX requests_by_tenant ON requests (tenant, seq) WHERE {OF_TENANT};
    CREATE INDEX requests_by_tenant_and_state ON requests (tenant, state, seq) WHERE {OF_TENANT};
"""

#: ``settings``, as JSON, say where the files of a carrier stand. Of its frames that are hidden one
#: process at a time writes the list: ``writer``, until ``writer_until``. A slot's row is that of
#: the same id in ``tasks``; ``look_at`` is when its carrier is looked at for it. Slots of a stream
#: have its fingerprint, so that no other request takes them.
_SLOTS: Final = """
    CREATE TABLE carriers (
        id TEXT NOT NULL PRIMARY KEY REFERENCES tasks (id),
        template TEXT NOT NULL,
        task_id INTEGER NOT NULL,
        settings TEXT NOT NULL,
        stream_id TEXT,
        title TEXT NOT NULL DEFAULT '',
        gone_since REAL,
        looked_at REAL NOT NULL,
        writer TEXT NOT NULL DEFAULT '',
        writer_until REAL NOT NULL DEFAULT 0
    ) STRICT;
    CREATE INDEX carriers_looked ON carriers (looked_at);
    CREATE TABLE slots (
        id TEXT NOT NULL PRIMARY KEY REFERENCES tasks (id),
        carrier_id TEXT NOT NULL REFERENCES tasks (id),
        position INTEGER NOT NULL,
        job_id INTEGER NOT NULL,
        start_frame INTEGER NOT NULL,
        stop_frame INTEGER NOT NULL,
        request_id TEXT,
        filled INTEGER NOT NULL DEFAULT 0,
        filled_at REAL,
        shown_at REAL,
        erased INTEGER NOT NULL DEFAULT 0 CHECK (erased IN (0, 1)),
        looks INTEGER NOT NULL DEFAULT 0,
        look_at REAL
    ) STRICT;
    CREATE INDEX slots_of_carrier ON slots (carrier_id, position);
    CREATE INDEX slots_due ON slots (look_at) WHERE look_at IS NOT NULL;
    CREATE TABLE streams (
        id TEXT NOT NULL PRIMARY KEY,
        template TEXT NOT NULL,
        tenant TEXT NOT NULL DEFAULT '',
        name TEXT NOT NULL,
        carrier_id TEXT,
        carriers INTEGER NOT NULL DEFAULT 0,
        opened_at REAL NOT NULL,
        last_at REAL NOT NULL,
        closed_at REAL
    ) STRICT;
    CREATE UNIQUE INDEX streams_open ON streams (template, tenant, name)
    WHERE closed_at IS NULL;
"""

#: How many requests are queued, and how many of them are spooled, by template, priority and tenant:
#: counted by triggers, since counting the rows of a long queue for each that joins it would take
#: longer than all else. A template that has ever had requests has a row.
_QUEUES: Final = """
    CREATE TABLE queues (
        template TEXT NOT NULL,
        priority INTEGER NOT NULL,
        tenant TEXT NOT NULL,
        queued INTEGER NOT NULL,
        spooled INTEGER NOT NULL,
        PRIMARY KEY (template, priority, tenant)
    ) STRICT;
"""

#: ``request_id`` is that of the request whose jobs are to be assigned or hidden; a task has one
#: name. ``claimed_until``: a process hides frames of the task, and no other does meanwhile.
_FINAL_STEPS: Final = """
    CREATE TABLE final_steps (
        pooled_id TEXT NOT NULL REFERENCES tasks (id),
        kind TEXT NOT NULL CHECK (kind IN ('name', 'assign', 'hide')),
        request_id TEXT NOT NULL,
        tries INTEGER NOT NULL DEFAULT 0,
        since REAL NOT NULL,
        due_at REAL NOT NULL,
        jobs_left TEXT,
        claimed_until REAL,
        PRIMARY KEY (pooled_id, kind, request_id)
    ) STRICT;
    CREATE INDEX final_steps_due ON final_steps (due_at, kind DESC);
"""

#: The newest event is never pruned, so no id is given twice.
_EVENTS: Final = """
    CREATE TABLE events (
        id INTEGER PRIMARY KEY,
        kind TEXT NOT NULL,
        at REAL NOT NULL,
        template TEXT NOT NULL,
        tenant TEXT NOT NULL DEFAULT '',
        task_id INTEGER,
        lease_id TEXT,
        request_id TEXT,
        state TEXT NOT NULL,
        outcome TEXT,
        code TEXT NOT NULL DEFAULT '',
        seconds REAL,
        server_seconds REAL,
        held_seconds REAL
    ) STRICT;
    CREATE INDEX events_of_request ON events (request_id) WHERE request_id IS NOT NULL;
"""

#: Tables that are no more than their columns. ``jobs.assigned_to`` is the one of the template's
#: assignees that the pool has chosen, ``assignee`` the one that CVAT has named. ``turns`` numbers
#: the latest job that each assignee of a template was given, ``workloads`` has the open jobs of an
#: assignee when CVAT was asked, and what was given since. ``demand`` has hand-outs by bucket of
#: time, for the sizing, ``hand_outs`` all that there ever were, for the metrics; ``levels`` has
#: those of the last week, rolled up to steps of some seconds that begin ``at`` a moment;
#: ``paces`` how long imports take, by size class; ``held`` when holds were in force, also those
#: that have ended. ``owners`` are the processes at work, and where those listen that are daemons;
#: ``terms`` say which of these has maintained the store, and when: the present or latest term is
#: the highest, and stays; one that was given up has ``ended``. ``spools`` are the places where the
#: data of requests waits: ``seen_at`` is when a process last said that it reads one, ``since`` when
#: that began after none had for a while. ``configuration`` has one row, that of the daemon that
#: maintains the store; lists are JSON. ``webhooks`` are the installed ones; their secret stands in
#: ``meta``, as do the pool's id and a row that proves that writing works.
_PLAIN: Final = """
    CREATE TABLE spools (
        id TEXT NOT NULL PRIMARY KEY,
        place TEXT NOT NULL,
        host TEXT NOT NULL,
        shared INTEGER NOT NULL CHECK (shared IN (0, 1)),
        since REAL NOT NULL,
        seen_at REAL NOT NULL,
        trouble TEXT NOT NULL DEFAULT '',
        trouble_at REAL
    ) STRICT;
    CREATE TABLE jobs (
        pooled_id TEXT NOT NULL REFERENCES tasks (id),
        id INTEGER NOT NULL,
        request_id TEXT,
        url TEXT NOT NULL,
        start_frame INTEGER NOT NULL,
        stop_frame INTEGER NOT NULL,
        assignee TEXT,
        assigned_to TEXT,
        PRIMARY KEY (pooled_id, id)
    ) STRICT;
    CREATE TABLE turns (
        template TEXT NOT NULL,
        assignee TEXT NOT NULL,
        latest INTEGER NOT NULL,
        PRIMARY KEY (template, assignee)
    ) STRICT;
    CREATE TABLE workloads (
        assignee TEXT NOT NULL PRIMARY KEY,
        jobs INTEGER NOT NULL,
        counted_at REAL NOT NULL
    ) STRICT;
    CREATE TABLE demand (
        template TEXT NOT NULL,
        start REAL NOT NULL,
        hits INTEGER NOT NULL DEFAULT 0,
        waits INTEGER NOT NULL DEFAULT 0,
        colds INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (template, start)
    ) STRICT;
    CREATE TABLE hand_outs (
        template TEXT NOT NULL,
        outcome TEXT NOT NULL,
        total INTEGER NOT NULL,
        PRIMARY KEY (template, outcome)
    ) STRICT;
    CREATE TABLE levels (
        step INTEGER NOT NULL,
        at REAL NOT NULL,
        template TEXT NOT NULL,
        samples INTEGER NOT NULL,
        warm REAL NOT NULL,
        least REAL NOT NULL,
        creating REAL NOT NULL,
        target REAL NOT NULL,
        PRIMARY KEY (step, at, template)
    ) STRICT;
    CREATE TABLE lead_times (template TEXT NOT NULL PRIMARY KEY, seconds REAL NOT NULL) STRICT;
    CREATE TABLE paces (
        name TEXT NOT NULL PRIMARY KEY,
        first REAL NOT NULL,
        imports INTEGER NOT NULL,
        seen TEXT NOT NULL
    ) STRICT;
    CREATE TABLE owners (
        owner TEXT NOT NULL PRIMARY KEY,
        until REAL NOT NULL,
        daemon INTEGER NOT NULL DEFAULT 0 CHECK (daemon IN (0, 1)),
        url TEXT NOT NULL DEFAULT '',
        version TEXT NOT NULL DEFAULT '',
        since REAL NOT NULL DEFAULT 0,
        spool TEXT NOT NULL DEFAULT '',
        templates TEXT NOT NULL DEFAULT '[]',
        cut_off INTEGER NOT NULL DEFAULT 0 CHECK (cut_off IN (0, 1)),
        reached_at REAL
    ) STRICT;
    CREATE TABLE terms (
        term INTEGER PRIMARY KEY,
        owner TEXT NOT NULL,
        since REAL NOT NULL,
        until REAL NOT NULL,
        ended INTEGER NOT NULL DEFAULT 0 CHECK (ended IN (0, 1))
    ) STRICT;
    CREATE TABLE holds (
        template TEXT NOT NULL PRIMARY KEY,
        code TEXT NOT NULL,
        reason TEXT NOT NULL,
        since REAL NOT NULL,
        retry_at REAL,
        attempts INTEGER NOT NULL,
        uploads INTEGER NOT NULL CHECK (uploads IN (0, 1)),
        tried_by TEXT
    ) STRICT;
    CREATE TABLE held (
        seq INTEGER PRIMARY KEY,
        template TEXT NOT NULL,
        since REAL NOT NULL,
        until REAL NOT NULL
    ) STRICT;
    CREATE INDEX held_by_end ON held (until);
    CREATE TABLE pauses (
        template TEXT NOT NULL PRIMARY KEY,
        since REAL NOT NULL,
        drained INTEGER NOT NULL DEFAULT 0 CHECK (drained IN (0, 1))
    ) STRICT;
    CREATE TABLE prewarms (
        template TEXT NOT NULL PRIMARY KEY,
        size INTEGER NOT NULL,
        since REAL NOT NULL,
        until REAL NOT NULL
    ) STRICT;
    CREATE TABLE configuration (
        id INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
        loaded_at REAL NOT NULL,
        rejected_at REAL,
        problems TEXT NOT NULL,
        restart TEXT NOT NULL,
        templates TEXT NOT NULL
    ) STRICT;
    CREATE TABLE webhooks (
        scope TEXT NOT NULL PRIMARY KEY,
        hook_id INTEGER NOT NULL,
        target_url TEXT NOT NULL,
        installed_at REAL NOT NULL,
        heard_at REAL,
        missed INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE TABLE sinks (
        name TEXT NOT NULL PRIMARY KEY,
        cursor INTEGER NOT NULL,
        failing_since REAL,
        delivered INTEGER NOT NULL DEFAULT 0,
        given_up INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE TABLE meta (key TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL) STRICT;
"""

#: Copies of this store into another one, and of another one into this: what says that a store may
#: not be used (:mod:`pool.store.copying`). It is not copied.
_COPIES: Final = """
    CREATE TABLE copies (
        id TEXT NOT NULL PRIMARY KEY,
        role TEXT NOT NULL CHECK (role IN ('source', 'target')),
        place TEXT NOT NULL,
        began_at REAL NOT NULL,
        complete INTEGER NOT NULL DEFAULT 0 CHECK (complete IN (0, 1))
    ) STRICT;
"""


def tables() -> Iterator[str]:
    """The statements that make the tables and their indexes, in SQLite's words."""
    for script in (
        _TASKS,
        _LEASES,
        _IMPORTS,
        _REQUESTS,
        _SLOTS,
        _QUEUES,
        _FINAL_STEPS,
        _EVENTS,
        _PLAIN,
        _COPIES,
    ):
        yield from filter(None, map(str.strip, script.split(";")))


#: The tables whose rows are a pool, each after those that it refers to.
TABLES: Final = tuple(
    name
    for statement in tables()
    for name in re.findall(r"^CREATE TABLE (\w+)", statement)
    if name != "copies"
)


def first_meta() -> Mapping[str, str]:
    """The first rows of ``meta``, with eight new characters that mark this pool's tasks."""
    pool_id = "".join(secrets.choice(_ALPHABET) for _ in range(8))
    return {"pool_id": pool_id, "writes_checked": "0"}


# --- Triggers -------------------------------------------------------------------------------------


def triggers(db: type[Dialect]) -> Iterator[Trigger]:
    """The triggers that count those that are queued, and write the events."""
    queued = "CASE WHEN {row}.state = 'queued' THEN 1 ELSE 0 END"
    spooled = "CASE WHEN {row}.state = 'queued' AND {row}.spooled THEN 1 ELSE 0 END"
    yield Trigger(
        name="queues_of_new_requests",
        table="requests",
        event="INSERT",
        body=f"""
            INSERT INTO queues (template, priority, tenant, queued, spooled)
            VALUES (NEW.template, NEW.priority, NEW.tenant, {queued.format(row="NEW")},
                    {spooled.format(row="NEW")})
            ON CONFLICT (template, priority, tenant) DO UPDATE
            SET queued = queues.queued + excluded.queued,
                spooled = queues.spooled + excluded.spooled;
        """,
    )
    yield Trigger(
        name="queues_of_requests",
        table="requests",
        event="UPDATE OF state, spooled",
        when="'queued' IN (OLD.state, NEW.state)",
        body=f"""
            UPDATE queues
            SET queued = queued + {queued.format(row="NEW")} - {queued.format(row="OLD")},
                spooled = spooled + {spooled.format(row="NEW")} - {spooled.format(row="OLD")}
            WHERE template = NEW.template AND priority = NEW.priority AND tenant = NEW.tenant;
        """,
    )
    import_of_new = "(SELECT NEW.import_id AS id) AS one LEFT JOIN imports USING (id)"
    server_seconds, held_seconds = not_own_seconds(db, "NEW")
    # The event of a request's row, as it is now. One that is queued again has a fresh lease.
    of_request = f"""
        INSERT INTO events (kind, at, template, tenant, task_id, lease_id, request_id, state,
                            outcome, code, seconds, server_seconds, held_seconds)
        SELECT 'request.' || NEW.state,
               COALESCE(CASE NEW.state
                            WHEN 'queued' THEN (SELECT created_at FROM leases
                                                WHERE id = NEW.lease_id)
                            WHEN 'uploading' THEN
                                {db.greatest("NEW.created_at", "imports.handed_out_at")}
                            WHEN 'importing' THEN imports.uploaded_at
                            ELSE NEW.finished_at
                        END, NEW.created_at),
               NEW.template, NEW.tenant, imports.task_id, NEW.lease_id, NEW.id, NEW.state,
               imports.outcome, NEW.error_code,
               {db.greatest("NEW.finished_at - NEW.created_at", "0.0")},
               {server_seconds}, {held_seconds}
        FROM {import_of_new};
    """
    request_created = "(SELECT created_at FROM requests WHERE id = NEW.request_id)"
    waited = f"NEW.handed_out_at - COALESCE({request_created}, NEW.created_at)"
    # The event of a lease's row, as it is now. A lease ends by what happens to its task, in the
    # same transaction and before it, so the time of that is its own. A lease that serves a request
    # is handed out when CVAT has the data; one that is taken back before that has no events, since
    # its task was warm all the time.
    of_lease = f"""
        INSERT INTO events (kind, at, template, tenant, task_id, lease_id, request_id, state,
                            outcome, seconds)
        VALUES ('lease.' || CASE NEW.state WHEN 'active' THEN 'handed_out' ELSE NEW.state END,
                COALESCE(CASE NEW.state
                             WHEN 'active' THEN NEW.handed_out_at
                             ELSE (SELECT changed_at FROM tasks WHERE id = NEW.pooled_id)
                         END, NEW.handed_out_at, NEW.created_at),
                NEW.template, NEW.tenant, NEW.task_id, NEW.id, NEW.request_id, NEW.state,
                NEW.outcome, CASE NEW.state WHEN 'active' THEN {db.greatest(waited, "0.0")} END);
    """
    yield Trigger(name="events_of_new_requests", table="requests", event="INSERT", body=of_request)
    yield Trigger(
        name="events_of_requests",
        table="requests",
        event="UPDATE OF state",
        when="NEW.state <> OLD.state",
        body=of_request,
    )
    yield Trigger(
        name="events_of_warnings",
        table="requests",
        event="UPDATE OF warnings",
        when="NEW.warnings <> OLD.warnings",
        body=f"""
            INSERT INTO events (kind, at, template, tenant, task_id, lease_id, request_id, state,
                                outcome, code)
            SELECT 'request.warned', COALESCE(NEW.warned_at, NEW.created_at), NEW.template,
                   NEW.tenant, imports.task_id, NEW.lease_id, NEW.id, NEW.state, imports.outcome,
                   {db.of_last("NEW.warnings", "code")}
            FROM {import_of_new};
        """,
    )
    yield Trigger(
        name="events_of_shown_requests",
        table="requests",
        event="UPDATE OF shown_at",
        when="NEW.shown_at IS NOT NULL AND OLD.shown_at IS NULL",
        body=f"""
            INSERT INTO events (kind, at, template, tenant, task_id, lease_id, request_id, state,
                                outcome)
            SELECT 'request.shown', NEW.shown_at, NEW.template, NEW.tenant, imports.task_id,
                   NEW.lease_id, NEW.id, NEW.state, imports.outcome
            FROM {import_of_new};
        """,
    )
    yield Trigger(
        name="events_of_new_leases",
        table="leases",
        event="INSERT",
        when="NEW.served",
        body=of_lease,
    )
    yield Trigger(
        name="events_of_served_leases",
        table="leases",
        event="UPDATE OF served",
        when="NEW.served AND NOT OLD.served",
        body=of_lease,
    )
    yield Trigger(
        name="events_of_leases",
        table="leases",
        event="UPDATE OF state",
        when="""
            OLD.served AND NEW.state <> OLD.state AND NEW.state IN ('used', 'released', 'expired')
        """,
        body=of_lease,
    )
    yield Trigger(
        name="events_of_tasks",
        table="tasks",
        event="UPDATE OF state",
        when="""
            NEW.state <> OLD.state
            AND (NEW.state IN ('warm', 'failed', 'retired', 'deleted')
                 OR NEW.state = 'ready' AND NEW.slots > 0)
            AND (NEW.carrier_id IS NULL OR NEW.state = 'warm')
            AND (NEW.state <> 'warm' OR OLD.state <> 'leased'
                 OR EXISTS (SELECT 1 FROM leases WHERE id = OLD.lease_id AND served))
        """,
        body="""
            INSERT INTO events (kind, at, template, tenant, task_id, lease_id, state)
            VALUES ('task.' || CASE NEW.state WHEN 'ready' THEN 'warm' ELSE NEW.state END,
                    NEW.changed_at, NEW.template,
                    COALESCE((SELECT tenant FROM leases WHERE id = NEW.lease_id), ''),
                    NEW.task_id, NEW.lease_id, NEW.state);
        """,
    )
