"""Which process maintains the store, term by term; which processes are alive, and which of them are
daemons."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from pool.model import DaemonRecord, TermRecord
from pool.store.connections import Connected, Connection
from pool.store.records import text
from pool.store.spools import see_spools


class _Newest(NamedTuple):
    """The row of the newest term, whether it lasts or not."""

    term: int
    owner: str
    since: float
    until: float
    ended: bool


class Terms(Connected):
    """The rows of terms and of processes."""

    # --- Who maintains ----------------------------------------------------------------------------

    def begin_term(
        self, owner: str, *, seconds: float, clock: Callable[[], float]
    ) -> TermRecord | None:
        """Become the one process that maintains the store, for so many ``seconds``, in a term with
        a number of its own.

        None while a term lasts, also one's own. It lasts no longer than twice the term that is
        asked for: one that ends later was written before the clock was set back. The ``clock`` is
        asked when no other process writes: that may take long, and a time from before that would
        make present terms look so.
        """
        with self.connections.writing() as db:
            before = _newest(db)
            now = clock()
            if before is not None and now < before.until <= now + 2 * seconds:
                return None
            begun = TermRecord(term=0, owner=owner, since=now, until=now + seconds)
            row = db.one(
                """
                INSERT INTO terms (owner, since, until) VALUES (:owner, :since, :until)
                RETURNING term
                """,
                owner=owner,
                since=begun.since,
                until=begun.until,
            )
            assert row is not None
            # No two terms overlap, whatever the clock was.
            db.changed(
                "UPDATE terms SET until = :now WHERE until > :now AND term < :term",
                now=now,
                term=int(row[0]),
            )
        begun = replace(begun, term=int(row[0]))
        if before is None or before.ended:
            return begun
        return replace(begun, broken_off=before.owner, broken_off_at=min(now, before.until))

    def renew_term(
        self,
        term: int,
        owner: str,
        *,
        seconds: float,
        clock: Callable[[], float],
        deleting: str | None = None,
    ) -> bool:
        """Have one's own term last for so many ``seconds`` from now; False when it has ended, or
        another has begun. The ``clock`` is asked as in :meth:`begin_term`.

        The task ``deleting`` is about to be deleted on the server: its row has the term, and the
        time, in the same transaction.
        """
        with self.connections.writing() as db:
            newest = _newest(db)
            now = clock()
            if newest is None or newest.ended or newest.until <= now:
                return False
            if (newest.term, newest.owner) != (term, owner):
                return False
            db.changed(
                "UPDATE terms SET until = :until WHERE term = :term", term=term, until=now + seconds
            )
            if deleting is not None:
                db.changed(
                    "UPDATE tasks SET term = :term, deleted_at = :now WHERE id = :id",
                    id=deleting,
                    term=term,
                    now=now,
                )
        return True

    def end_term(self, term: int, owner: str, *, now: float) -> bool:
        """End one's own term in an orderly way, now; False when it had ended."""
        with self.connections.writing() as db:
            return db.met(
                """
                UPDATE terms SET until = :now, ended = :yes
                WHERE term = :term AND owner = :owner AND until > :now AND NOT ended
                """,
                term=term,
                owner=owner,
                now=now,
                yes=True,
            )

    def present_term(self, *, now: float) -> TermRecord | None:
        """Return the term in which the store is maintained now, if it is."""
        with self.connections.reading() as db:
            newest = _newest(db)
        if newest is None or newest.until <= now:
            return None
        return TermRecord(
            term=newest.term, owner=newest.owner, since=newest.since, until=newest.until
        )

    def maintainer(self, *, now: float) -> str | None:
        """Return the process that maintains the store now, if one does."""
        present = self.present_term(now=now)
        return present.owner if present else None

    # --- Who is alive -----------------------------------------------------------------------------

    def renew_owner(
        self,
        owner: str,
        *,
        until: float,
        daemon: bool = False,
        url: str = "",
        version: str = "",
        since: float = 0.0,
        spool: str = "",
        spools: Mapping[str, str] | None = None,
        cut_off: bool = False,
        now: float = 0.0,
    ) -> None:
        """Say that the process ``owner`` is alive, and will have said so again by ``until``; what
        it is, since when, in which spool it puts data, and whether it alone cannot reach the
        server. ``spools`` are all that it can read, by their ids, each with why it cannot be used
        ``now``."""
        row = {
            "daemon": daemon,
            "url": url,
            "version": version,
            "since": since,
            "spool": spool,
            "cut_off": cut_off,
        }
        with self.connections.writing() as db:
            db.upsert("owners", {"owner": owner, "until": until, **row}, key="owner")
            see_spools(db, spools or {}, now=now)

    def daemons(self, *, now: float) -> Sequence[DaemonRecord]:
        """Return the daemons that are alive, the oldest first."""
        with self.connections.reading() as db:
            found = db.rows(
                """
                SELECT owner, url, version, since, until, spool, cut_off FROM owners
                WHERE daemon AND until > :now ORDER BY since, owner
                """,
                now=now,
            )
        return [
            DaemonRecord(
                owner=owner,
                url=url,
                version=version,
                since=since,
                until=until,
                spool=spool,
                cut_off=bool(cut_off),
            )
            for owner, url, version, since, until, spool, cut_off in found
        ]

    def reach_server(self, owner: str, *, now: float) -> None:
        """Say that the process ``owner`` has just had an answer from the server."""
        with self.connections.writing() as db:
            db.changed(
                "UPDATE owners SET reached_at = :now WHERE owner = :owner", owner=owner, now=now
            )

    def others_reach_server(self, owner: str, *, since: float, now: float) -> bool:
        """Whether a daemon other than ``owner`` that is alive has said so since."""
        with self.connections.reading() as db:
            found = db.one(
                """
                SELECT 1 FROM owners
                WHERE daemon AND owner <> :owner AND until > :now AND reached_at >= :since
                """,
                owner=owner,
                since=since,
                now=now,
            )
        return found is not None

    def serve_templates(self, owner: str, templates: Collection[str]) -> bool:
        """Say that the process ``owner`` serves requests of these templates; False where it has not
        said yet that it is alive."""
        with self.connections.writing() as db:
            return db.met(
                "UPDATE owners SET templates = :templates WHERE owner = :owner",
                owner=owner,
                templates=text(json.dumps(sorted(templates), ensure_ascii=False)),
            )

    def served_templates(self, *, now: float) -> Collection[str]:
        """Return the templates of which any live process serves requests."""
        with self.connections.reading() as db:
            found = db.rows("SELECT templates FROM owners WHERE until > :now", now=now)
        return {name for (templates,) in found for name in json.loads(templates)}

    def others_renewed(self, owner: str, *, after: float) -> bool:
        """Whether any process but ``owner`` has said that it is alive up to a time after
        ``after``."""
        with self.connections.reading() as db:
            found = db.one(
                "SELECT 1 FROM owners WHERE owner <> :owner AND until > :after LIMIT 1",
                owner=owner,
                after=after,
            )
        return found is not None

    def spare_owners(self, *, now: float, term: float, lull: float) -> int:
        """Where no process has renewed for more than ``lull`` seconds, let those that were alive
        when one did count as alive for another ``term``, which is how long each renews for; return
        how many. They could not renew, or all of them are gone."""
        with self.connections.reading() as db:
            newest = db.rows("SELECT MAX(until) FROM owners")[0][0]
        if newest is None or newest >= now + term - lull:
            return 0
        with self.connections.writing() as db:
            return db.changed(
                """
                UPDATE owners SET until = :until
                WHERE until >= :alive AND until < :until
                """,
                until=now + term,
                alive=newest - term,
            )

    def forget_owner(self, owner: str) -> None:
        """Say that the process ``owner`` ends in an orderly way: what it owns is free at once."""
        with self.connections.writing() as db:
            db.changed("DELETE FROM owners WHERE owner = :owner", owner=owner)


def _newest(db: Connection) -> _Newest | None:
    row = db.one("SELECT term, owner, since, until, ended FROM terms ORDER BY term DESC LIMIT 1")
    return None if row is None else _Newest._make([*row[:-1], bool(row[-1])])
