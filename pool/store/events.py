"""Events, and how far the sinks have got. They are written by the triggers of
:mod:`pool.store.schema`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pool.model import EVERYTHING, EndedRequest, Event, Scope, SinkRecord
from pool.store.connections import Connected, Connection, listed
from pool.store.records import record_of, select, within
from pool.store.schema import not_own_seconds


class Events(Connected):
    """The rows of events, and the sinks that they are delivered to.

    Every change of a state that has a kind in :data:`pool.model.KINDS` is an event,
    written in the transaction of the change itself, by any process: none can be missed, and none
    is there of a change that did not happen. Its time is the ``now`` of that change. A reader that
    has seen an event has seen all that there will ever be with a smaller id.
    """

    def events_after(
        self, event_id: int, *, limit: int, kinds: Sequence[str] = ()
    ) -> Sequence[Event]:
        """Return the oldest events after ``event_id``, at most ``limit`` of them, of ``kinds`` if
        any are given. Those that were pruned are left out."""
        marks, wanted = listed(kinds)
        with self.connections.reading() as db:
            return select(
                db,
                Event,
                f"""
                WHERE id > :after {f"AND kind IN ({marks})" if kinds else ""}
                ORDER BY id LIMIT :limit
                """,
                after=event_id,
                limit=max(0, limit),
                **wanted,
            )

    def request_events(self, request_id: str) -> Sequence[Event]:
        """Return the events of a request that were not pruned, the oldest first."""
        with self.connections.reading() as db:
            return select(
                db,
                Event,
                f"""
                {db.using("events_of_request")}
                WHERE request_id IS NOT NULL AND request_id = :request_id ORDER BY id
                """,
                request_id=request_id,
            )

    def last_event_id(self) -> int:
        """Return the newest event's id; 0 before the first. It never goes back."""
        with self.connections.reading() as db:
            return _last_event_id(db)

    def event_at(self, event_id: int) -> float | None:
        """Return when the oldest event after ``event_id`` was; None when there is none."""
        with self.connections.reading() as db:
            row = db.one(
                "SELECT at FROM events WHERE id > :after ORDER BY id LIMIT 1", after=event_id
            )
        return float(row[0]) if row else None

    def prune_events(self, *, passed_before: float, before: float, keep: int, limit: int) -> int:
        """Delete the oldest events, at most ``limit`` of them; return how many.

        These are events from before ``passed_before`` that every sink has passed; and those from
        before ``before``, and all but the newest ``keep``, passed or not. The newest one always
        stays, so that its id is never given again.
        """
        with self.connections.writing() as db:
            last = _last_event_id(db)
            passed = db.number("SELECT COALESCE(MIN(cursor), :last) FROM sinks", last=last)
            # Only the few oldest are looked at, so that it costs no more when none of all the
            # others may be deleted.
            return db.changed(
                """
                DELETE FROM events WHERE id IN (
                    SELECT id FROM (SELECT id, at FROM events ORDER BY id LIMIT :limit) AS oldest
                    WHERE id < :last AND (id <= :last - :keep OR at < :before
                                          OR (at < :passed_before AND id <= :passed)))
                """,
                last=last,
                passed=passed,
                passed_before=passed_before,
                before=before,
                keep=max(0, keep),
                limit=max(0, limit),
            )

    def ended_requests(
        self, *, since: float, limit: int, scope: Scope = EVERYTHING
    ) -> Sequence[EndedRequest]:
        """Return the newest ``limit`` requests that became ``READY`` or ``FAILED`` since ``since``,
        the oldest of them first: of those that a caller sees."""
        seen, wanted = within(scope)
        with self.connections.reading() as db:
            server_seconds, held_seconds = not_own_seconds(db, "ended")
            # Nothing of what may be large is read.
            found = db.rows(
                f"""
                SELECT ended.id, ended.template, ended.tenant, imports.outcome, ended.finished_at,
                       {db.greatest("ended.finished_at - ended.created_at", "0.0")},
                       {server_seconds}, {held_seconds}, ended.state, ended.error_code, ended.error
                FROM (SELECT * FROM requests {db.using("requests_finished")}
                      WHERE finished_at IS NOT NULL AND finished_at >= :since
                        AND state IN ('ready', 'failed') {seen}
                      ORDER BY finished_at DESC LIMIT :limit) AS ended
                LEFT JOIN imports ON imports.id = ended.import_id
                ORDER BY ended.finished_at DESC
                """,
                since=since,
                limit=max(0, limit),
                **wanted,
            )
        return [record_of(EndedRequest, row) for row in reversed(found)]

    # --- Sinks ------------------------------------------------------------------------------------

    def open_sinks(self, names: Sequence[str]) -> Mapping[str, SinkRecord]:
        """Have these sinks, and no others. A new one gets what comes from now on; a known one goes
        on where it was; all others are forgotten."""
        with self.connections.writing() as db:
            last = _last_event_id(db)
            for gone in _sinks(db).keys() - set(names):
                db.changed("DELETE FROM sinks WHERE name = :name", name=gone)
            for name in names:
                db.changed(
                    """
                    INSERT INTO sinks (name, cursor, delivered, given_up)
                    VALUES (:name, :last, 0, 0) ON CONFLICT (name) DO NOTHING
                    """,
                    name=name,
                    last=last,
                )
            return _sinks(db)

    def sinks(self) -> Mapping[str, SinkRecord]:
        """Return all sinks by name."""
        with self.connections.reading() as db:
            return _sinks(db)

    def pass_events(self, sink: str, *, up_to: int, delivered: int = 0, given_up: int = 0) -> bool:
        """Move a sink's cursor past the events up to ``up_to``: so many of them were
        ``delivered``, so many ``given_up``, and the others are not for it. False, and nothing is
        counted, when it was there already. A delivery ends a failure (:meth:`fail_sink`)."""
        with self.connections.writing() as db:
            return db.met(
                """
                UPDATE sinks
                SET cursor = :up_to, delivered = delivered + :delivered,
                    given_up = given_up + :given_up,
                    failing_since = CASE WHEN :delivered > 0 THEN NULL ELSE failing_since END
                WHERE name = :name AND cursor < :up_to
                """,
                name=sink,
                up_to=up_to,
                delivered=delivered,
                given_up=given_up,
            )

    def fail_sink(self, sink: str, *, now: float) -> bool:
        """Note that a delivery failed. False when the sink has been failing already."""
        with self.connections.writing() as db:
            return db.met(
                """
                UPDATE sinks SET failing_since = :now
                WHERE name = :name AND failing_since IS NULL
                """,
                name=sink,
                now=now,
            )


def _last_event_id(db: Connection) -> int:
    return db.number("SELECT COALESCE(MAX(id), 0) FROM events")


def _sinks(db: Connection) -> dict[str, SinkRecord]:
    return {sink.name: sink for sink in select(db, SinkRecord, "ORDER BY name")}
