"""Spools: the places where the data of requests waits, and who reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pool.model import SPOOL_AWAY, SpoolRecord
from pool.store.connections import Connected, Connection
from pool.store.records import select, text
from pool.store.schema import SPOOLED


class Spools(Connected):
    """The rows of spools."""

    def keep_spool(self, spool: SpoolRecord, *, now: float) -> None:
        """Say that a spool is there and is read, by a process that is to say so again within
        :data:`~pool.model.SPOOL_AWAY` seconds (:meth:`~pool.store.Store.renew_owner`)."""
        with self.connections.writing() as db:
            db.changed(
                """
                INSERT INTO spools (id, place, host, shared, since, seen_at)
                VALUES (:id, :place, :host, :shared, :now, :now)
                ON CONFLICT (id) DO UPDATE SET
                    place = excluded.place, host = excluded.host, shared = excluded.shared
                """,
                id=text(spool.id),
                place=text(spool.place),
                host=text(spool.host),
                shared=spool.shared,
                now=now,
            )
            see_spools(db, {spool.id: ""}, now=now)

    def spools(self) -> Mapping[str, SpoolRecord]:
        """Return all spools by their ids."""
        with self.connections.reading() as db:
            return {spool.id: spool for spool in select(db, SpoolRecord, "ORDER BY id")}

    def waiting_by_spool(self) -> Mapping[str, Mapping[str, int]]:
        """Return how many spooled requests are ``QUEUED``, by spool and template. Reads all of
        them, for those who look at the pool."""
        found: dict[str, dict[str, int]] = {}
        with self.connections.reading() as db:
            for spool, template, count in db.rows(
                f"""
                SELECT spool, template, COUNT(*) FROM requests {db.using("requests_spooled")}
                WHERE {SPOOLED} AND state = 'queued' GROUP BY spool, template
                """
            ):
                found.setdefault(spool, {})[template] = count
        return found


def see_spools(db: Connection, troubles: Mapping[str, str], *, now: float) -> None:
    """Say that a live process reads spools, by their ids, or why it cannot. Requests on one that
    was away have waited for that, and not for a task: the time that they may wait for one is
    over."""
    for spool_id, trouble in troubles.items():
        values: dict[str, Any] = {"id": text(spool_id), "now": now, "trouble": text(trouble)}
        if db.one(
            f"SELECT 1 FROM spools WHERE id = :id AND seen_at < :now - {SPOOL_AWAY}",
            id=values["id"],
            now=now,
        ):
            db.changed(
                f"""
                UPDATE requests {db.using("requests_spooled")} SET patient = :patient
                WHERE {SPOOLED} AND state = 'queued' AND spool = :id AND patient
                """,
                id=values["id"],
                patient=False,
            )
        db.changed(
            f"""
            UPDATE spools SET seen_at = :now,
                since = CASE WHEN seen_at < :now - {SPOOL_AWAY} THEN :now ELSE since END,
                trouble = CASE WHEN :trouble <> '' THEN :trouble ELSE trouble END,
                trouble_at = CASE WHEN :trouble <> '' THEN :now ELSE trouble_at END
            WHERE id = :id
            """,
            **values,
        )


def forget_spools(db: Connection, *, before: float) -> int:
    """Forget spools that no process has read since ``before``, and where nothing waits."""
    return db.changed(
        f"""
        DELETE FROM spools WHERE seen_at < :before
          AND NOT EXISTS (SELECT 1 FROM requests {db.using("requests_spooled")}
                          WHERE {SPOOLED} AND requests.spool = spools.id)
        """,
        before=before,
    )
