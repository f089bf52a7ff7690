"""What the maintenance of a store keeps: the configuration, what is held, paused and prewarmed; and
what it does to old rows, and when the clock was set."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

from pool.model import ConfigRecord, Hold, Prewarm
from pool.store.connections import Connected
from pool.store.handout import alive
from pool.store.records import select, text
from pool.store.schema import ENDED, EXPIRING, FINISHED, FOREVER, UNDER_WAY
from pool.store.spools import forget_spools
from pool.store.tasks import retire_warm


class Maintenance(Connected):
    """The rows of maintenance."""

    # --- The configuration in force ---------------------------------------------------------------

    def keep_configuration(self, record: ConfigRecord) -> None:
        """Keep the configuration of the daemon that maintains the store, in place of the one
        before."""
        lists = {
            name: text(json.dumps(getattr(record, name), ensure_ascii=False))
            for name in ("problems", "restart", "templates")
        }
        times = {"loaded_at": record.loaded_at, "rejected_at": record.rejected_at}
        with self.connections.writing() as db:
            db.upsert("configuration", {"id": 1, **times, **lists}, key="id")

    def configuration(self) -> ConfigRecord | None:
        """Return the configuration that was kept last, if one was."""
        with self.connections.reading() as db:
            row = db.one(
                "SELECT loaded_at, rejected_at, problems, restart, templates FROM configuration"
            )
        if row is None:
            return None
        problems, restart, templates = map(json.loads, row[2:])
        return ConfigRecord(
            loaded_at=row[0],
            rejected_at=row[1],
            problems=tuple(problems),
            restart=tuple(restart),
            templates=templates,
        )

    # --- Holds ------------------------------------------------------------------------------------

    def hold(self, hold: Hold) -> None:
        """Keep a template's hold, in place of the one before."""
        with self.connections.writing() as db:
            db.upsert("holds", asdict(hold) | {"reason": text(hold.reason)}, key="template")
            db.changed(
                """
                INSERT INTO held (template, since, until)
                SELECT :template, :since, :forever
                WHERE NOT EXISTS (SELECT 1 FROM held
                                  WHERE until = :forever AND template = :template)
                """,
                template=hold.template,
                since=hold.since,
                forever=FOREVER,
            )

    def release_hold(self, template: str, *, now: float) -> bool:
        """End a template's hold; False when there was none. What passed of a request's time in
        between is counted apart (:attr:`pool.model.Event.held_seconds`)."""
        with self.connections.writing() as db:
            db.changed(
                "UPDATE held SET until = :now WHERE until = :forever AND template = :template",
                template=template,
                now=now,
                forever=FOREVER,
            )
            return db.met("DELETE FROM holds WHERE template = :name", name=template)

    def begin_trial(self, template: str, *, owner: str, now: float) -> bool:
        """Have one process try what a hold leaves to one call; False where there is no hold, it is
        not time yet, or another process that is alive tries it."""
        condition = f"""
            template = :template AND retry_at IS NOT NULL AND (retry_at <= :now OR since > :now)
            AND (tried_by IS NULL OR tried_by = :owner OR NOT {alive("holds.tried_by")})
        """
        values: dict[str, Any] = {"template": template, "owner": owner, "now": now}
        # Many ask while one tries, and what is written wakes all that look at the store.
        with self.connections.reading() as db:
            if db.one(f"SELECT 1 FROM holds WHERE {condition}", **values) is None:
                return False
        with self.connections.writing() as db:
            return db.met(f"UPDATE holds SET tried_by = :owner WHERE {condition}", **values)

    def end_trial(self, template: str, *, owner: str) -> None:
        """Let others try what a hold leaves to one call, if ``owner`` tries it."""
        with self.connections.writing() as db:
            db.changed(
                """
                UPDATE holds SET tried_by = NULL
                WHERE template = :template AND tried_by = :owner
                """,
                template=template,
                owner=owner,
            )

    def holds(self) -> Mapping[str, Hold]:
        """Return all holds by template."""
        with self.connections.reading() as db:
            return {hold.template: hold for hold in select(db, Hold)}

    # --- What people want -------------------------------------------------------------------------

    def pause(self, template: str, *, now: float) -> None:
        """Stop creating tasks of a template until :meth:`resume`. A second pause changes
        nothing."""
        with self.connections.writing() as db:
            db.changed(
                """
                INSERT INTO pauses (template, since, drained) VALUES (:template, :now, :drained)
                ON CONFLICT (template) DO NOTHING
                """,
                template=template,
                drained=False,
                now=now,
            )

    def drain(self, template: str, *, reason: str, now: float) -> int:
        """Pause a template and retire all its warm tasks; return how many. Those that become warm
        afterwards are for :mod:`pool.maintenance.retirement` to retire."""
        with self.connections.writing() as db:
            db.changed(
                """
                INSERT INTO pauses (template, since, drained) VALUES (:template, :now, :drained)
                ON CONFLICT (template) DO UPDATE SET drained = excluded.drained
                """,
                template=template,
                drained=True,
                now=now,
            )
            return retire_warm(db, template, reason=reason, now=now)

    def resume(self, template: str) -> bool:
        """End a pause, drained or not; False when there was none."""
        with self.connections.writing() as db:
            return db.met("DELETE FROM pauses WHERE template = :name", name=template)

    def paused(self) -> Mapping[str, float]:
        """Return paused templates, drained ones among them, and since when."""
        with self.connections.reading() as db:
            return dict(db.rows("SELECT template, since FROM pauses"))

    def drained(self) -> Collection[str]:
        """Return the paused templates that are drained."""
        with self.connections.reading() as db:
            return {name for (name,) in db.rows("SELECT template FROM pauses WHERE drained")}

    def prewarm(self, prewarm: Prewarm) -> None:
        """Keep a template's prewarm, in place of the one before."""
        with self.connections.writing() as db:
            db.upsert("prewarms", asdict(prewarm), key="template")

    def end_prewarm(self, template: str) -> bool:
        """Forget a template's prewarm; False when there was none."""
        with self.connections.writing() as db:
            return db.met("DELETE FROM prewarms WHERE template = :name", name=template)

    def prewarms(self) -> Mapping[str, Prewarm]:
        """Return all prewarms by template, those whose time is over among them."""
        with self.connections.reading() as db:
            return {prewarm.template: prewarm for prewarm in select(db, Prewarm)}

    # --- When the clock was set -------------------------------------------------------------------

    def move_times(
        self, by: float, *, since: float, grace: float, term: int, owner: str, now: float
    ) -> int | None:
        """Keep what is still to come as far from ``now`` as it was, after the store's clock was set
        by ``by`` seconds, forward or back. Return how many rows were changed; None, and change
        nothing, unless ``owner`` maintains the store in ``term``.

        That is the ends of leases, the deadlines of imports, prewarms, how long streams have been
        idle and tasks of slots gone, except those that were written by the new clock already, from
        ``since`` on. Processes count as alive for another
        ``grace`` seconds; nothing is held or quarantined for longer than before: holds are due now,
        quarantines end within ``grace``, and what is left for ready tasks and slots is tried at
        once.
        """
        new_clock: dict[str, Any] = {"by": by, "since": since, "now": now}
        with self.connections.writing() as db:
            lasts = db.one(
                """
                SELECT 1 FROM terms
                WHERE term = :term AND owner = :owner AND until > :now AND NOT ended
                  AND term = (SELECT MAX(term) FROM terms)
                """,
                term=term,
                owner=owner,
                now=now,
            )
            if lasts is None:
                return None
            retry_at, held_since = db.least("retry_at", ":now"), db.least("since", ":now")
            return (
                db.changed(
                    f"""
                    UPDATE leases {db.using("leases_expiring")} SET expires_at = expires_at + :by
                    WHERE {EXPIRING} AND handed_out_at NOT BETWEEN :since AND :now
                    """,
                    **new_clock,
                )
                + db.changed(
                    f"""
                    UPDATE imports {db.using("imports_under_way")}
                    SET deadline_at = deadline_at + :by
                    WHERE {UNDER_WAY} AND state = 'importing'
                      AND uploaded_at NOT BETWEEN :since AND :now
                    """,
                    **new_clock,
                )
                + db.changed(
                    """
                    UPDATE prewarms SET since = since + :by, until = until + :by
                    WHERE since NOT BETWEEN :since AND :now
                    """,
                    **new_clock,
                )
                + db.changed("UPDATE owners SET until = :until", until=now + grace)
                + db.changed(
                    f"""
                    UPDATE holds SET retry_at = {retry_at}, since = {held_since}
                    WHERE retry_at > :now OR since > :now
                    """,
                    now=now,
                )
                + db.changed(
                    f"""
                    UPDATE tasks {db.using("tasks_warm")} SET quarantined_until = :latest
                    WHERE state = 'warm' AND quarantined_until > :latest
                    """,
                    latest=now + grace,
                )
                + db.changed("UPDATE final_steps SET due_at = :now WHERE due_at > :now", now=now)
                + db.changed("UPDATE slots SET look_at = :now WHERE look_at > :now", now=now)
                + db.changed(
                    """
                    UPDATE streams SET last_at = last_at + :by
                    WHERE closed_at IS NULL AND last_at NOT BETWEEN :since AND :now
                    """,
                    **new_clock,
                )
                + db.changed(
                    """
                    UPDATE carriers SET gone_since = gone_since + :by
                    WHERE gone_since NOT BETWEEN :since AND :now
                    """,
                    **new_clock,
                )
            )

    # --- What is forgotten ------------------------------------------------------------------------

    def prune(self, *, before: float, limit: int) -> int:
        """Delete finished rows that have not changed since before ``before``, at most ``limit``
        of each kind; return how many.

        These are requests that ended, imports that ended, leases that ended and whose time is up,
        tasks that are ``DELETED``, or ``READY`` with their final name, with their jobs; buckets of
        demand; owners that are gone; terms of maintenance, once no task that was deleted in one has
        a row; prewarms that are over; streams that are closed; and when holds were. Carriers and
        their slots stay for as long as their files. A row that another one still refers to is kept:
        requests go first, then imports, leases and tasks. An idempotency key goes with its row.
        Each kind is found by an index in order of age, so that a row which has to stay costs a
        look, and keeps no other.
        """
        old: dict[str, Any] = {"before": before, "limit": max(0, limit)}
        steps_left = "EXISTS (SELECT 1 FROM final_steps WHERE final_steps.pooled_id = tasks.id)"
        with self.connections.writing() as db:
            # A task on its way out, or that waits for the name or the assignee of its request,
            # keeps that.
            pruned = db.changed(
                f"""
                DELETE FROM requests WHERE seq IN (
                    SELECT seq FROM requests {db.using("requests_finished")}
                    WHERE finished_at IS NOT NULL AND finished_at < :before
                      AND state IN ('ready', 'failed', 'cancelled')
                      AND NOT EXISTS (
                          SELECT 1 FROM imports JOIN tasks ON tasks.id = imports.pooled_id
                          WHERE imports.id = requests.import_id
                            AND (tasks.state NOT IN ('ready', 'deleted') OR {steps_left}))
                    ORDER BY finished_at LIMIT :limit)
                """,
                **old,
            )
            imports = db.rows(
                f"""
                SELECT id FROM imports {db.using("imports_ended")}
                WHERE finished_at IS NOT NULL AND finished_at < :before
                  AND NOT EXISTS (SELECT 1 FROM requests WHERE requests.import_id = imports.id)
                  AND NOT EXISTS (SELECT 1 FROM tasks
                                  WHERE tasks.id = imports.pooled_id AND {steps_left})
                ORDER BY finished_at LIMIT :limit
                """,
                **old,
            )
            for (import_id,) in imports:
                db.changed("DELETE FROM import_members WHERE import_id = :id", id=import_id)
                db.changed("DELETE FROM imports WHERE id = :id", id=import_id)
            pruned += db.changed(
                f"""
                DELETE FROM leases WHERE seq IN (
                    SELECT seq FROM leases {db.using("leases_ended")}
                    WHERE {ENDED} AND created_at < :before
                      AND COALESCE(expires_at, created_at) < :before
                      AND NOT EXISTS (SELECT 1 FROM requests WHERE requests.lease_id = leases.id)
                      AND NOT EXISTS (SELECT 1 FROM imports WHERE imports.lease_id = leases.id)
                      AND NOT EXISTS (SELECT 1 FROM tasks WHERE tasks.lease_id = leases.id
                                        AND (tasks.state NOT IN ('ready', 'deleted')
                                             OR tasks.changed_at >= :before))
                    ORDER BY created_at LIMIT :limit)
                """,
                **old,
            )
            tasks = db.rows(
                f"""
                SELECT id FROM tasks {db.using("tasks_finished")}
                WHERE {FINISHED} AND changed_at < :before AND NOT {steps_left}
                  AND NOT EXISTS (SELECT 1 FROM leases WHERE leases.pooled_id = tasks.id)
                  AND NOT EXISTS (SELECT 1 FROM imports WHERE imports.pooled_id = tasks.id)
                  AND NOT EXISTS (SELECT 1 FROM carriers
                                  WHERE carriers.id IN (tasks.id, tasks.carrier_id))
                  AND NOT EXISTS (SELECT 1 FROM tasks AS slots WHERE slots.carrier_id = tasks.id)
                ORDER BY changed_at LIMIT :limit
                """,
                **old,
            )
            for (pooled_id,) in tasks:
                db.changed("DELETE FROM jobs WHERE pooled_id = :id", id=pooled_id)
                db.changed("DELETE FROM tasks WHERE id = :id", id=pooled_id)
            # The newest is the present one, and its number is never given again.
            pruned += db.changed(
                """
                DELETE FROM terms WHERE term IN (
                    SELECT term FROM terms
                    WHERE until < :before AND term < (SELECT MAX(term) FROM terms)
                      AND NOT EXISTS (SELECT 1 FROM tasks WHERE tasks.term = terms.term)
                    ORDER BY term LIMIT :limit)
                """,
                **old,
            )
            for table, key, age in (
                ("demand", "template, start", "start"),
                ("owners", "owner", "until"),
                ("streams", "id", "closed_at"),
                ("prewarms", "template", "until"),
                ("held", "seq", "until"),
            ):
                pruned += db.changed(
                    f"""
                    DELETE FROM {table} WHERE ({key}) IN (
                        SELECT {key} FROM {table} WHERE {age} < :before LIMIT :limit)
                    """,
                    **old,
                )
            pruned += forget_spools(db, before=before)
        return pruned + len(imports) + len(tasks)
