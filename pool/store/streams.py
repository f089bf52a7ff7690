"""Streams: requests that have tasks of slots for themselves, one after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from pool.model import STREAM_FINGERPRINT, Stream, new_id
from pool.store.connections import Connected, Connection
from pool.store.imports import FINAL_GRACE
from pool.store.records import OpenStream, columns_of, record_of, select, text
from pool.store.schema import LIVE

#: Seconds to within which it is known when a stream was last used.
USED_WITHIN: Final = 1.0


class Streams(Connected):
    """The rows of streams, and the slots that they have: these have a stream's fingerprint, so that
    no other request takes them."""

    def use_stream(
        self,
        template: str,
        name: str,
        fingerprint: str,
        *,
        tenant: str = "",
        request_id: str = "",
        now: float,
    ) -> Stream | None:
        """Return the tenant's open stream of that name, opened now where there is none, with a
        carrier that has a warm slot: the oldest of the template none of whose slots was handed out
        yet becomes the stream's own when it has none, its last slot is used, or the template has
        changed since.
        None where there is no such carrier, or where an older request of the stream than this one
        waits for a slot: none overtakes another.

        A cheap read comes first, so that a stream in use costs no commit: when it was used is known
        to within :data:`USED_WITHIN` seconds."""
        with self.connections.reading() as db:
            if _waits_before(db, template, tenant, name, request_id):
                return None
            stream = _open_stream(db, template, tenant, name)
            if stream is not None and _has_warm(db, stream):
                recent = abs(now - stream.last_at) < USED_WITHIN
                if recent and _made_by(db, stream) == fingerprint:
                    return stream
            elif not _whole_carriers(db, template, fingerprint, now=now):
                return None
        with self.connections.writing() as db:
            if _waits_before(db, template, tenant, name, request_id):
                return None
            stream = _open_stream(db, template, tenant, name)
            if stream is not None and _has_warm(db, stream):
                if _made_by(db, stream) == fingerprint:
                    db.changed(
                        "UPDATE streams SET last_at = :now WHERE id = :id", id=stream.id, now=now
                    )
                    return stream
                _retire_warm(db, stream, reason="the template has changed", now=now)
            whole = _whole_carriers(db, template, fingerprint, now=now)
            if not whole:
                return None
            if stream is None:
                stream = Stream(
                    id=new_id(now),
                    template=template,
                    tenant=tenant,
                    name=name,
                    opened_at=now,
                    last_at=now,
                )
                db.changed(
                    """
                    INSERT INTO streams (id, template, tenant, name, opened_at, last_at)
                    VALUES (:id, :template, :tenant, :name, :now, :now)
                    """,
                    id=stream.id,
                    template=template,
                    tenant=text(tenant),
                    name=text(name),
                    now=now,
                )
            # An origin that is not known is that of no older template, whose tasks would do.
            db.changed(
                f"""
                UPDATE tasks {db.using("tasks_of_carrier")}
                SET fingerprint = :fingerprint, origin = ''
                WHERE carrier_id = :carrier_id AND state = 'warm'
                """,
                fingerprint=stream.fingerprint,
                carrier_id=whole[0],
            )
            db.changed(
                """
                UPDATE streams SET carrier_id = :carrier_id, carriers = carriers + 1, last_at = :now
                WHERE id = :id
                """,
                id=stream.id,
                carrier_id=whole[0],
                now=now,
            )
            stream = _streams(db, "WHERE id = :id", id=stream.id)[0]
            db.changed(
                "UPDATE carriers SET stream_id = :stream_id WHERE id = :id",
                id=whole[0],
                stream_id=stream.id,
            )
            _title(db, whole[0], stream.title, now=now)
            return stream

    def carriers_missing(self, template: str, fingerprint: str, *, now: float) -> int:
        """Return how many more carriers of a template have to be made for the streams whose
        requests wait: each needs one none of whose slots was handed out yet."""
        with self.connections.reading() as db:
            waiting = db.number(
                f"""
                SELECT COUNT(*) FROM (
                SELECT DISTINCT tenant, stream FROM requests {db.using("requests_of_stream")}
                WHERE state = 'queued' AND template = :template AND stream IS NOT NULL
                  AND no_slot = ''
                  AND NOT EXISTS (
                    SELECT 1 FROM streams {db.using("streams_open")}
                    JOIN tasks {db.using("tasks_warm")}
                      ON tasks.state = 'warm' AND tasks.template = streams.template
                     AND tasks.fingerprint = '{STREAM_FINGERPRINT}' || streams.id
                    WHERE streams.template = requests.template
                      AND streams.tenant = requests.tenant AND streams.name = requests.stream
                      AND streams.closed_at IS NULL)) AS waiting
                """,
                template=template,
            )
            if not waiting:
                return 0
            creating = db.number(
                f"""
                SELECT COUNT(*) FROM tasks {db.using("tasks_live")}
                WHERE {LIVE} AND state = 'creating' AND template = :template
                  AND fingerprint = :fingerprint AND slots > 0
                """,
                template=template,
                fingerprint=fingerprint,
            )
            there = len(_whole_carriers(db, template, fingerprint, now=now)) + creating
            return max(0, waiting - there)

    def streams(self, *, template: str | None = None) -> Sequence[OpenStream]:
        """Return the streams that are open, of one template or of all, by template, name and
        tenant."""
        with self.connections.reading() as db:
            found = db.rows(
                f"""
                SELECT {columns_of(Stream, "streams")}, carriers.task_id,
                       COALESCE(carriers.slots, 0),
                       (SELECT COUNT(*) FROM tasks {db.using("tasks_of_carrier")}
                        WHERE carrier_id = streams.carrier_id AND state = 'ready')
                FROM streams {db.using("streams_open")}
                LEFT JOIN tasks AS carriers ON carriers.id = streams.carrier_id
                WHERE closed_at IS NULL
                  {"" if template is None else "AND streams.template = :template"}
                ORDER BY streams.template, streams.name, streams.tenant
                """,
                template=template,
            )
        return [
            OpenStream(
                stream=record_of(Stream, row[:-3]), task_id=row[-3], slots=row[-2], filled=row[-1]
            )
            for row in found
        ]

    def stream(self, template: str, name: str, *, tenant: str = "") -> Stream | None:
        """Return the tenant's open stream of that name."""
        with self.connections.reading() as db:
            return _open_stream(db, template, tenant, name)

    def close_stream(self, stream_id: str, *, reason: str, now: float) -> bool:
        """Close a stream: its slots that are warm still are ``RETIRED``. False when it is closed
        already."""
        with self.connections.writing() as db:
            if not db.changed(
                "UPDATE streams SET closed_at = :now WHERE id = :id AND closed_at IS NULL",
                id=stream_id,
                now=now,
            ):
                return False
            _retire_warm(
                db, _streams(db, "WHERE id = :id", id=stream_id)[0], reason=reason, now=now
            )
            return True

    def retire_of_closed_streams(self, *, reason: str, now: float) -> int:
        """Retire warm slots whose stream is closed: they were given back since. Return how many."""
        with self.connections.writing() as db:
            return db.changed(
                f"""
                UPDATE tasks SET state = 'retired', reason = :reason, changed_at = :now
                WHERE state = 'warm' AND seq IN (
                    SELECT seq FROM tasks {db.using("tasks_warm")}
                    WHERE state = 'warm' AND fingerprint LIKE '{STREAM_FINGERPRINT}%'
                      AND NOT EXISTS (
                        SELECT 1 FROM streams
                        WHERE streams.id = SUBSTR(tasks.fingerprint, {len(STREAM_FINGERPRINT) + 1})
                          AND streams.closed_at IS NULL))
                """,
                reason=text(reason),
                now=now,
            )


# --- Parts of these transactions ------------------------------------------------------------------


def _title(db: Connection, carrier_id: str, title: str, *, now: float) -> None:
    """Leave it to the final steps to rename the task of a carrier."""
    db.changed(
        "UPDATE carriers SET title = :title WHERE id = :id", id=carrier_id, title=text(title)
    )
    db.changed(
        """
        INSERT INTO final_steps (pooled_id, kind, request_id, since, due_at)
        VALUES (:id, 'name', '', :now, :due_at)
        ON CONFLICT (pooled_id, kind, request_id) DO UPDATE SET tries = 0, since = :now
        """,
        id=carrier_id,
        due_at=now + FINAL_GRACE,
        now=now,
    )


def _has_warm(db: Connection, stream: Stream) -> bool:
    return bool(
        db.rows(
            f"""
            SELECT 1 FROM tasks {db.using("tasks_warm")}
            WHERE state = 'warm' AND template = :template AND fingerprint = :fingerprint LIMIT 1
            """,
            template=stream.template,
            fingerprint=stream.fingerprint,
        )
    )


def _made_by(db: Connection, stream: Stream) -> str | None:
    """Return the fingerprint of the template that a stream's carrier was made by."""
    row = db.one("SELECT fingerprint FROM tasks WHERE id = :id", id=stream.carrier_id)
    return None if row is None else row[0]


def _retire_warm(db: Connection, stream: Stream, *, reason: str, now: float) -> None:
    """Retire what is left of a stream's carrier."""
    db.changed(
        """
        UPDATE tasks SET state = 'retired', reason = :reason, changed_at = :now
        WHERE state = 'warm' AND template = :template AND fingerprint = :fingerprint
        """,
        template=stream.template,
        fingerprint=stream.fingerprint,
        reason=text(reason),
        now=now,
    )


def _whole_carriers(db: Connection, template: str, fingerprint: str, *, now: float) -> list[str]:
    """Return the carriers of a template none of whose slots was handed out yet, oldest first."""
    found = db.rows(
        f"""
        SELECT carrier_id FROM (
            SELECT carrier_id, COUNT(*) AS warm, MIN(seq) AS oldest
            FROM tasks {db.using("tasks_warm")}
            WHERE state = 'warm' AND template = :template AND fingerprint = :fingerprint
              AND carrier_id IS NOT NULL
              AND (quarantined_until IS NULL OR quarantined_until <= :now)
            GROUP BY carrier_id) AS found
        WHERE warm = (SELECT slots FROM tasks WHERE tasks.id = found.carrier_id)
        ORDER BY oldest
        """,
        template=template,
        fingerprint=fingerprint,
        now=now,
    )
    return [carrier_id for (carrier_id,) in found]


def _waits_before(db: Connection, template: str, tenant: str, name: str, request_id: str) -> bool:
    """Whether a request of a stream is queued that is older than another one, which may not be
    recorded yet."""
    return bool(
        db.rows(
            f"""
            SELECT 1 FROM requests AS others {db.using("requests_of_stream")}
            WHERE others.state = 'queued' AND others.template = :template
              AND others.tenant = :tenant AND others.stream = :name AND others.no_slot = ''
              AND NOT EXISTS (SELECT 1 FROM requests AS this
                              WHERE this.id = :request_id
                                AND (others.created_at, others.id) >= (this.created_at, this.id))
            LIMIT 1
            """,
            template=template,
            tenant=text(tenant),
            name=text(name),
            request_id=request_id,
        )
    )


def _open_stream(db: Connection, template: str, tenant: str, name: str) -> Stream | None:
    found = _streams(
        db,
        """
        WHERE template = :template AND tenant = :tenant AND name = :name AND closed_at IS NULL
        """,
        template=template,
        tenant=text(tenant),
        name=text(name),
    )
    return found[0] if found else None


def _streams(db: Connection, which: str, **wanted: Any) -> list[Stream]:
    return select(db, Stream, which, **wanted)
