"""The queue: requests whose data is in the spool, and the workers that take them.

Such a request is not bound to the process of its caller: any process that can read the spool can
serve it. While it is ``QUEUED`` it has no owner; while a worker has it, the owner is the worker's
process.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from operator import itemgetter
from typing import Any, Final, TypeVar

from pool.errors import QueueFull
from pool.model import Handout, ImportState, Priority, RequestRecord, RequestState
from pool.store.connections import Connected, Connection
from pool.store.handout import alive, can_claim, claim_waiting, grouped_imports
from pool.store.imports import queue_members
from pool.store.records import UNOWNED, WITH_IMPORT, MadeFor, NewMember, Unserved, find
from pool.store.schema import OPEN, SPOOLED, TAKEN

T = TypeVar("T")

#: Failures of one request that are remembered.
MOST_FAILURES: Final = 20

#: Queues that one query reads from: SQLite takes at most 500. And what makes a queue.
_QUEUES_AT_ONCE: Final = 100
_QUEUE: Final = ("template", "priority", "tenant", "spool")
#: What is read of those that are there to be taken, in a query of ``requests``.
_UNSERVED: Final = """
    requests.seq, requests.id, requests.template, requests.tenant, requests.state,
    requests.lease_id, requests.created_at, requests.group_key, requests.priority, requests.size,
    CASE WHEN requests.group_key IS NOT NULL THEN requests.files ELSE '[]' END,
    requests.frame_numbers, requests.no_slot <> '', requests.stream, requests.patient,
    requests.paused_until, requests.failed_at
"""


class Queue(Connected):
    """The rows of spooled requests that CVAT has not accepted yet."""

    def queue_request(
        self,
        request_id: str,
        *,
        expected_lease_id: str,
        most: int | None,
        spool: str = "",
        now: float,
    ) -> RequestRecord | None:
        """Queue a request whose data is in the spool, until it can be served: it is ``QUEUED``
        and has no owner. ``spool`` is the id of the spool where that is; one that was spooled
        before keeps its own.

        From ``UPLOADING``, when nothing has touched its task: the import is ``RETURNED``, the task
        ``WARM`` again, the lease ``RELEASED``, and each member waits with a fresh lease. From
        ``QUEUED`` it keeps the lease that it waits with. It waits for a warm task alone no longer:
        the time of its template is over for it. None when its lease is not
        ``expected_lease_id`` (any more), or its state another one.

        :raises pool.errors.QueueFull: ``most`` spooled requests are ``QUEUED`` already; nothing
            has changed.
        """
        with self.connections.writing() as db:
            before = db.one(
                """
                SELECT import_id, spooled FROM requests
                WHERE id = :id AND lease_id = :expected AND state IN ('queued', 'uploading')
                """,
                id=request_id,
                expected=expected_lease_id,
            )
            if before is None:
                return None
            import_id, spooled = before
            if import_id is None:
                if not spooled:
                    check_room(db, most)
                db.changed(
                    """
                    UPDATE requests SET spooled = :spooled, owner = :unowned, patient = :patient,
                        spool = CASE WHEN spooled THEN spool ELSE :spool END
                    WHERE id = :id AND state = 'queued'
                    """,
                    id=request_id,
                    spooled=True,
                    patient=False,
                    spool=spool,
                    unowned=UNOWNED,
                )
                _own_waiting_lease(db, expected_lease_id, UNOWNED)
            else:
                queued = queue_members(db, import_id, ImportState.RETURNED, spool=spool, now=now)
                check_room(db, most, wanted=0)
                assert queued
            return find(db, RequestRecord, "requests.id = :id", id=request_id)

    def unserved(
        self, *, spools: Collection[str], owner: str, now: float, each: int
    ) -> Sequence[Unserved]:
        """Return spooled requests that are ``QUEUED`` or ``UPLOADING`` and have no owner, or one
        that is gone, or ``owner`` itself: they are there to be taken. The oldest first, at most
        ``each`` of each template, priority and tenant: however many wait, no more are read.

        Of the ``QUEUED``, only those whose data is in one of the ``spools``, by their ids. One that
        is ``UPLOADING`` is to be queued again, for which its data is not needed."""
        with self.connections.reading() as db:
            queues = [
                (*queue, spool)
                for spool in dict.fromkeys(spools)
                for queue in db.rows(
                    f"""
                    SELECT template, priority, tenant FROM queues
                    WHERE EXISTS (SELECT 1 FROM requests {db.using("requests_spooled")}
                                  WHERE {SPOOLED} AND requests.template = queues.template
                                    AND requests.priority = queues.priority
                                    AND requests.tenant = queues.tenant
                                    AND requests.spool = :spool)
                    """,
                    spool=spool,
                )
            ]
            taker: dict[str, Any] = {"owner": owner, "unowned": UNOWNED, "now": now, "each": each}
            found = db.rows(
                f"""
                SELECT {_UNSERVED} FROM (
                    SELECT * FROM requests {db.using("requests_open")}
                    WHERE {OPEN} AND state = 'uploading' AND spooled) AS requests
                {WITH_IMPORT}
                WHERE {_free("imports.owner")}
                ORDER BY requests.seq LIMIT :each
                """,
                **taker,
            )
            for first in range(0, len(queues), _QUEUES_AT_ONCE):
                some = queues[first : first + _QUEUES_AT_ONCE]
                which = {
                    f"{name}{number}": value
                    for number, queue in enumerate(some)
                    for name, value in zip(_QUEUE, queue, strict=True)
                }
                found += db.rows(
                    " UNION ALL ".join(_oldest(db, number) for number in range(len(some))),
                    **which,
                    **taker,
                )
        return [_unserved(*row) for _, *row in sorted(found, key=itemgetter(0))]

    def send_alone(self, request_id: str) -> None:
        """Have a ``QUEUED`` request share no task with others from now on."""
        with self.connections.writing() as db:
            db.changed(
                "UPDATE requests SET group_key = NULL WHERE id = :id AND state = 'queued'",
                id=request_id,
            )

    def wait_for_more(self, template: str) -> int:
        """Note that the ``QUEUED`` requests of a template that waited for a warm task alone wait
        for something else: for these the time that the template gives is over. Return how many."""
        with self.connections.writing() as db:
            return db.changed(
                f"""
                UPDATE requests {db.using("requests_spooled")} SET patient = :patient
                WHERE {SPOOLED} AND state = 'queued' AND template = :template AND patient
                """,
                template=template,
                patient=False,
            )

    def pause_request(self, request_id: str, *, until: float) -> None:
        """Have no process begin a request before ``until``, should it wait again."""
        with self.connections.writing() as db:
            db.changed(
                "UPDATE requests SET paused_until = :until WHERE id = :id",
                id=request_id,
                until=until,
            )

    def upload_failed(self, request_id: str, *, counts: bool, now: float) -> Sequence[float]:
        """Note that a request's upload failed now, and whether that ``counts`` among its own
        failures, since the server as a whole did not fail. Return when it has failed so since CVAT
        accepted it last, the latest :data:`MOST_FAILURES`, in order."""
        with self.connections.writing() as db:
            row = db.one("SELECT failures FROM requests WHERE id = :id", id=request_id)
            before = [] if row is None else json.loads(row[0])
            if before and before[-1] > now:
                before = []  # before the clock was set back
            failures = [*before[-MOST_FAILURES + 1 :], now] if counts else before
            db.changed(
                "UPDATE requests SET failed_at = :now, failures = :failures WHERE id = :id",
                id=request_id,
                failures=json.dumps(failures),
                now=now,
            )
            return failures

    def made_by_others(self, *, owner: str, now: float) -> Sequence[MadeFor]:
        """Return for which spooled requests live processes other than ``owner`` make tasks."""
        with self.connections.reading() as db:
            found = db.rows(
                f"""
                SELECT template, group_key, priority, tenant
                FROM requests {db.using("requests_taken")}
                WHERE {TAKEN} AND owner <> :owner AND {alive("requests.owner")}
                """,
                owner=owner,
                now=now,
            )
        return [(template, key, tuple(Priority)[level], who) for template, key, level, who in found]

    def take_spooled(
        self, request_id: str, *, owner: str, made_by_others: int | None = None, now: float
    ) -> RequestRecord | None:
        """Own one of the :meth:`unserved`, with its import if it has one; None when it is none (any
        more). Of two processes that try, one gets it. With ``made_by_others`` only while no more
        tasks of its template than these are :meth:`made_by_others`."""
        with self.connections.writing() as db:
            if made_by_others is not None and made_by_others < db.number(
                f"""
                SELECT COUNT(*) FROM requests {db.using("requests_taken")}
                WHERE {TAKEN} AND owner <> :owner AND {alive("requests.owner")}
                  AND template = (SELECT template FROM requests WHERE id = :id)
                """,
                id=request_id,
                owner=owner,
                now=now,
            ):
                return None
            if not take_queued(db, request_id, owner, now=now) and not db.changed(
                f"""
                UPDATE imports SET owner = :owner
                WHERE id = (SELECT import_id FROM requests
                            WHERE id = :id AND spooled AND state = 'uploading')
                  AND state = 'uploading' AND {_free("imports.owner")}
                """,
                id=request_id,
                owner=owner,
                unowned=UNOWNED,
                now=now,
            ):
                return None
            return find(db, RequestRecord, "requests.id = :id", id=request_id)

    def claim_queued(
        self,
        members: Sequence[NewMember],
        fingerprint: str,
        *,
        reusable_origin: str | None = None,
        places: int | None = None,
        bulk_places: int | None = None,
        owner: str,
        now: float,
    ) -> Handout | None:
        """Own ``QUEUED`` ones of the :meth:`unserved` and claim one warm task for all of them, as
        :meth:`~pool.store.Store.claim_warm` does: either all of it happens or nothing does.

        They become the members of one import, in this order; the lease of the first is the
        import's, those of the others are ``ABANDONED``. With ``places``, only while fewer than
        these :meth:`grouped_imports` are under way, and where the first is ``BULK``, with
        ``bulk_places`` only while fewer than these are of bulk.
        """
        first = members[0].request_id
        with self.connections.reading() as db:
            queued = db.one(
                "SELECT lease_id FROM requests WHERE id = :id AND state = 'queued'", id=first
            )
            if queued is None or not can_claim(
                db, queued[0], fingerprint, reusable_origin, now=now
            ):
                return None
        try:
            with self.connections.writing() as db:
                for member in members:
                    expect(take_queued(db, member.request_id, owner, now=now))
                return expect(
                    claim_waiting(
                        db,
                        queued[0],
                        fingerprint,
                        reusable_origin,
                        members=members,
                        places=places,
                        bulk_places=bulk_places,
                        now=now,
                    )
                )
        except NotClaimed:
            # The transaction is rolled back, so that the requests have no owner again.
            return None

    def grouped_imports(self, priority: Priority | None = None) -> int:
        """Return how many imports are under way that requests may share, whether they do or not:
        those of requests that have a ``group_key``; or how many of these are of a priority."""
        with self.connections.reading() as db:
            return grouped_imports(db, priority)

    def queue_length(self) -> int:
        """Return how many spooled requests are ``QUEUED``."""
        with self.connections.reading() as db:
            return queue_length(db)


# --- Parts of these and other transactions --------------------------------------------------------


def check_room(db: Connection, most: int | None, *, wanted: int = 1) -> None:
    """Raise QueueFull when ``wanted`` more spooled requests would be more than ``most``."""
    if most is not None and queue_length(db) + wanted > most:
        raise QueueFull(f"{most} requests wait, as many as daemon.max_queued allows")


def queue_length(db: Connection) -> int:
    """Return how many spooled requests are ``QUEUED``."""
    return db.number("SELECT COALESCE(SUM(spooled), 0) FROM queues")


def _free(owner: str) -> str:
    """Return the condition that the owner in a column is no live process other than ``:owner``."""
    return f"({owner} IN (:unowned, :owner) OR NOT {alive(owner)})"


class NotClaimed(Exception):
    """There was no task for these requests, or another process has one of them."""


def expect(done: T | None) -> T:
    """Return what was done, or have the transaction rolled back where nothing was."""
    if not done:
        raise NotClaimed
    return done


def _oldest(db: Connection, number: int) -> str:
    """Return the query for the oldest ``QUEUED`` ones of the :meth:`Queue.unserved` of one
    template, priority, tenant and spool, which are the parameters with this ``number``: ``each``
    rows, read in the order of the index."""
    return f"""
        SELECT * FROM (
            SELECT {_UNSERVED} FROM requests {db.using("requests_spooled")}
            WHERE {SPOOLED} AND template = :template{number} AND priority = :priority{number}
              AND tenant = :tenant{number} AND spool = :spool{number}
              AND state = 'queued' AND {_free("requests.owner")}
            ORDER BY requests.seq LIMIT :each
        ) AS queue{number}
    """


def _unserved(
    id: str,
    template: str,
    tenant: str,
    state: str,
    lease_id: str,
    created_at: float,
    group_key: str | None,
    level: int,
    size: int,
    files: str,
    numbers: str | None,
    no_slot: bool,
    stream: str | None,
    patient: bool,
    paused_until: float | None,
    failed_at: float | None,
) -> Unserved:
    return Unserved(
        id=id,
        template=template,
        tenant=tenant,
        state=RequestState(state),
        lease_id=lease_id,
        created_at=created_at,
        group_key=group_key,
        priority=tuple(Priority)[level],
        size=size,
        files=tuple(json.loads(files)),
        frame_numbers=None if numbers is None else tuple(json.loads(numbers)),
        no_slot=bool(no_slot),
        stream=stream,
        patient=bool(patient),
        paused_until=paused_until,
        failed_at=failed_at,
    )


def take_queued(db: Connection, request_id: str, owner: str, *, now: float) -> bool:
    """Own a ``QUEUED`` request that is there to be taken, and the lease that it waits with."""
    row = db.one(
        f"""
        UPDATE requests SET owner = :owner
        WHERE id = :id AND {SPOOLED} AND state = 'queued' AND {_free("requests.owner")}
        RETURNING lease_id
        """,
        id=request_id,
        owner=owner,
        unowned=UNOWNED,
        now=now,
    )
    if row is not None:
        _own_waiting_lease(db, row[0], owner)
    return row is not None


def _own_waiting_lease(db: Connection, lease_id: str, owner: str) -> None:
    db.changed(
        "UPDATE leases SET owner = :owner WHERE id = :id AND state = 'waiting'",
        id=lease_id,
        owner=owner,
    )
