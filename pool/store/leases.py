"""Leases: one hand-out of one task to one caller, from asking for it to its end."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Sequence
from dataclasses import replace

from pool.errors import IdempotencyConflict
from pool.model import (
    EVERYTHING,
    Handout,
    LeaseRecord,
    LeaseState,
    Outcome,
    PooledTask,
    RequestRecord,
    Scope,
)
from pool.store.connections import Connected, Connection, listed
from pool.store.demand import count_hand_out
from pool.store.handout import (
    DESERTED,
    HELD,
    activate,
    can_claim,
    claim_waiting,
    end_lease,
    place_in_line,
    return_task,
    take_warm,
)
from pool.store.queue import NotClaimed, check_room, expect, take_queued
from pool.store.records import (
    LEASE,
    TASK,
    UNOWNED,
    LeasePage,
    NewLease,
    NewMember,
    NewRequest,
    Opened,
    check_limit,
    columns_of,
    cursor_of,
    find,
    handout_of,
    record_of,
    text,
    within,
)
from pool.store.requests import BY_KEY, accept_request
from pool.store.schema import EXPIRING, LIVE


class Leases(Connected):
    """The rows of leases."""

    # --- Handing out ------------------------------------------------------------------------------

    def open_lease(
        self,
        lease: NewLease,
        *,
        request: NewRequest | None = None,
        claim: bool = True,
        places: int | None = None,
        most_queued: int | None = None,
        now: float,
    ) -> Opened:
        """Accept a wish for a task and, in the same transaction, claim a warm one if there is.

        With a task: the lease is ``ACTIVE``, the task ``LEASED``, a request ``UPLOADING``; and a
        ``HIT`` is counted, for a request once its data is accepted. Without: the lease is
        ``WAITING`` and a request ``QUEUED``. The template's oldest warm task of the fingerprint is
        taken; where there is none, and only then, the newest of ``lease.reusable_origin``. No two
        callers get the same. Without ``claim`` none is looked for; with ``places``, only while
        fewer than these :meth:`~pool.store.Store.grouped_imports` are under way. A spooled request
        that is ``QUEUED`` has no owner.

        A known ``idempotency_key`` of the tenant changes nothing and answers what it answered
        before, except for a task that was given back: ``task`` is None then. Keys of leases and of
        requests are separate; with a request, the key stands in the request alone.

        :raises pool.errors.IdempotencyConflict: the key is known with another ``payload``.
        :raises pool.errors.QueueFull: the request would be ``QUEUED`` and as many as
            ``most_queued`` spooled ones are already; nothing has changed.
        """
        with self.connections.writing() as db:
            known = _replayed(db, lease, of_request=request is not None)
            if known is not None:
                return known
            taken = (
                take_warm(
                    db,
                    lease.id,
                    lease.template,
                    lease.fingerprint,
                    lease.reusable_origin,
                    places=places,
                    now=now,
                )
                if claim
                else _nothing
            )
            if request is None:
                opened = _insert_lease(db, lease, request, now=now)
                count_hand_out(db, lease.template, Outcome.HIT, lease_id=lease.id, now=now)
            else:
                if request.spooled and taken() is None:
                    check_room(db, most_queued)
                    lease = replace(lease, owner=UNOWNED)
                opened = _insert_lease(db, lease, request, now=now)
                accepted = accept_request(
                    db,
                    request,
                    opened(),
                    payload=lease.payload,
                    idempotency_key=lease.idempotency_key,
                    now=now,
                )
        # Of what a caller wants most, a task alone, nothing is asked before the commit.
        return Opened(
            lease=opened(),
            task=taken(),
            request=None if request is None else accepted,
            replayed=False,
        )

    def claim_warm(
        self, lease_id: str, fingerprint: str, *, reusable_origin: str | None = None, now: float
    ) -> Handout | None:
        """Claim a warm task for a ``WAITING`` lease, as :meth:`open_lease` does; a ``WAIT`` is
        counted, for a request once its data is accepted.

        None when there is no warm task, or when the lease does not wait (any more). A cheap
        read comes first, so that many waiters can ask often.
        """
        with self.connections.reading() as db:
            if not can_claim(db, lease_id, fingerprint, reusable_origin, now=now):
                return None
        with self.connections.writing() as db:
            return claim_waiting(db, lease_id, fingerprint, reusable_origin, now=now)

    def finish_cold(
        self,
        pooled_id: str,
        lease_id: str,
        *,
        members: Sequence[NewMember] = (),
        prepared: bool,
        owner: str = "",
        now: float,
    ) -> Handout | None:
        """Move a task from ``CREATING`` to ``LEASED``, for the waiting lease that it was created
        for (``COLD``). With ``members``, the first of which is the request of that lease, they are
        the members of its import, as by :meth:`~pool.store.Store.claim_queued`: all of it happens
        or nothing does.

        None when the lease waits no longer, or a member does; the task is then left as it is, and
        :meth:`~pool.store.Store.finish_create` can put it into the pool.
        """
        try:
            with self.connections.writing() as db:
                row = expect(
                    db.one(
                        f"""
                        UPDATE tasks
                        SET state = 'leased', lease_id = :lease_id, prepared = :prepared,
                            changed_at = :now
                        WHERE id = :id AND state = 'creating' AND task_id IS NOT NULL
                          AND EXISTS (SELECT 1 FROM leases
                                      WHERE id = :lease_id AND state = 'waiting')
                        RETURNING {TASK}
                        """,
                        id=pooled_id,
                        lease_id=lease_id,
                        prepared=prepared,
                        now=now,
                    )
                )
                for member in members:
                    expect(take_queued(db, member.request_id, owner, now=now))
                task = record_of(PooledTask, row)
                return activate(db, lease_id, task, Outcome.COLD, members, now=now)
        except NotClaimed:
            return None

    def inherit_lease(self, lease_id: str, *, owner: str, now: float) -> bool:
        """Take over a ``WAITING`` lease without a request, whose owner is gone: another call with
        its idempotency key waits in place of the first. One's own is not taken."""
        wanted = {"id": lease_id, "owner": owner, "now": now}
        with self.connections.reading() as db:
            # Asked as often as claim_warm, and nearly always in vain.
            if not db.rows(f"SELECT 1 FROM leases WHERE id = :id AND {DESERTED}", **wanted):
                return False
        with self.connections.writing() as db:
            return db.met(
                f"UPDATE leases SET owner = :owner WHERE id = :id AND {DESERTED}", **wanted
            )

    def attach_request(
        self,
        lease_id: str,
        request: NewRequest,
        *,
        owner: str,
        idempotency_key: str | None = None,
        payload: str = "",
        now: float,
    ) -> Handout | None:
        """Give an ``ACTIVE`` lease a request, when its holder leaves the upload to the pool.

        The request is ``UPLOADING`` into the lease's task, with the lease's outcome, and its name
        where it has none itself. None when the
        lease is not active, or has a request already. No hand-out is counted: the lease was. An
        ``idempotency_key`` must not be known (:meth:`~pool.store.Store.request_by_key`).
        """
        with self.connections.writing() as db:
            row = db.one(
                f"""
                UPDATE leases SET request_id = :request_id
                WHERE id = :id AND state = 'active' AND request_id IS NULL
                RETURNING {LEASE}
                """,
                id=lease_id,
                request_id=request.id,
            )
            if row is None:
                return None
            lease = record_of(LeaseRecord, row)
            task = find(db, PooledTask, "lease_id = :id", id=lease_id)
            assert task is not None
            accepted = accept_request(
                db,
                replace(request, name=lease.name if request.name is None else request.name),
                replace(lease, owner=owner),
                payload=payload,
                idempotency_key=idempotency_key,
                # The lease was counted when its caller got it.
                served=True,
                now=now,
            )
            return Handout(lease=lease, task=task, request=accepted)

    # --- Endings ----------------------------------------------------------------------------------

    def abandon_lease(self, lease_id: str, *, now: float) -> bool:
        """End a ``WAITING`` lease (``ABANDONED``); its idempotency key is free for another try. So
        is that of the request that waits with it, if one does, which is ``CANCELLED``."""
        with self.connections.writing() as db:
            row = db.one(
                """
                UPDATE leases SET state = 'abandoned', idempotency_key = NULL
                WHERE id = :id AND state = 'waiting'
                RETURNING request_id
                """,
                id=lease_id,
            )
            if row is None:
                return False
            db.changed(
                """
                UPDATE requests SET state = 'cancelled', finished_at = :now, idempotency_key = NULL
                WHERE id = :id AND state = 'queued'
                """,
                id=row[0],
                now=now,
            )
            return True

    def give_back(self, lease_id: str, *, now: float, expired: bool = False) -> bool:
        """End an ``ACTIVE`` lease without a request; its untouched task is ``WARM`` again.

        The lease becomes ``RELEASED``, or ``EXPIRED`` when ``expired`` is set.
        """
        state = LeaseState.EXPIRED if expired else LeaseState.RELEASED
        with self.connections.writing() as db:
            return return_task(db, lease_id, state=state, condition=HELD, now=now)

    def end_lease(self, lease_id: str, *, reason: str, now: float) -> bool:
        """End an ``ACTIVE`` lease without a request (``EXPIRED``); its task is ``RETIRED``."""
        with self.connections.writing() as db:
            if not db.changed(
                f"""
                UPDATE tasks SET state = 'retired', reason = :reason, changed_at = :now
                WHERE lease_id = :lease_id AND state = 'leased' AND {HELD}
                """,
                lease_id=lease_id,
                reason=text(reason),
                now=now,
            ):
                return False
            end_lease(db, lease_id, LeaseState.EXPIRED)
            return True

    # --- Looking ----------------------------------------------------------------------------------

    def lease(self, lease_id: str) -> LeaseRecord | None:
        """Return one lease."""
        with self.connections.reading() as db:
            return find(db, LeaseRecord, "id = :id", id=lease_id)

    def leases(
        self, states: Sequence[LeaseState] = (), *, limit: int = 100
    ) -> Sequence[LeaseRecord]:
        """Return the newest leases first."""
        found = []
        with self.connections.reading() as db:
            # State by state, so that the newest few are found without sorting all there ever were.
            for state in dict.fromkeys(states or LeaseState):
                found += db.rows(
                    f"""
                    SELECT seq, {LEASE} FROM leases WHERE state = :state
                    ORDER BY seq DESC LIMIT :limit
                    """,
                    state=state,
                    limit=max(0, limit),
                )
        found.sort(key=lambda row: -int(row[0]))
        return [record_of(LeaseRecord, row[1:]) for row in found[: max(0, limit)]]

    def open_leases(
        self,
        *,
        template: str | None = None,
        scope: Scope = EVERYTHING,
        limit: int = 50,
        cursor: str | None = None,
    ) -> LeasePage:
        """Return the leases without a request that wait for a task (``WAITING``) or have one
        (``ACTIVE``), newest first, a page at a time: of those that a caller sees.

        :raises pool.errors.InputError: no page gave such a cursor, or ``limit`` is below 1.
        """
        check_limit(limit)
        narrowed = "" if template is None else "AND template = :template"
        narrowed += "" if cursor is None else " AND seq < :before"
        seen, wanted = within(scope)
        narrowed += seen
        with self.connections.reading() as db:
            # No more is sorted than are open.
            found = db.rows(
                f"""
                SELECT seq, {LEASE} FROM leases WHERE seq IN (
                    SELECT seq FROM leases {db.using("leases_waiting")}
                    WHERE state = 'waiting' AND request_id IS NULL {narrowed}
                    UNION ALL
                    SELECT seq FROM leases {db.using("leases_expiring")}
                    WHERE {EXPIRING} {narrowed})
                ORDER BY seq DESC LIMIT :limit
                """,
                template=template,
                before=None if cursor is None else cursor_of(cursor),
                # One more than asked for tells whether there is another page.
                limit=limit + 1,
                **wanted,
            )
        page = found[:limit]
        return LeasePage(
            leases=tuple(record_of(LeaseRecord, row[1:]) for row in page),
            next_cursor=str(page[-1][0]) if len(found) > limit else None,
        )

    def waiting(self, template: str) -> int:
        """Return how many leases without a request wait for a task of the template, of all
        processes. What else wants a task is :meth:`~pool.store.Store.queued`."""
        with self.connections.reading() as db:
            return db.number(
                f"""
                SELECT COUNT(*) FROM leases {db.using("leases_waiting")}
                WHERE state = 'waiting' AND template = :template AND request_id IS NULL
                """,
                template=template,
            )

    def expired_leases(self, *, now: float, limit: int = 100) -> Sequence[Handout]:
        """Return ``ACTIVE`` leases without a request whose ``expires_at`` has passed, with their
        tasks; the longest overdue first."""
        with self.connections.reading() as db:
            found = db.rows(
                f"""
                SELECT {columns_of(LeaseRecord, "overdue")}, {columns_of(PooledTask, "tasks")}
                FROM (SELECT * FROM leases {db.using("leases_expiring")}
                      WHERE {EXPIRING} AND expires_at < :now
                      ORDER BY expires_at LIMIT :limit) AS overdue
                JOIN tasks ON tasks.id = overdue.pooled_id
                ORDER BY overdue.expires_at
                """,
                now=now,
                limit=max(0, limit),
            )
        return [handout_of(row) for row in found]

    def watched_leases(self, *, besides: Container[str] = ()) -> Sequence[Handout]:
        """Return ``ACTIVE`` leases without a request, and ``USED`` ones whose task is
        ``IMPORTING``, oldest task first: their callers upload by themselves, and the pool
        tracks the import. Leave out those whose task is in ``besides``, by our ids, and those of
        slots, into which none but the pool can upload."""
        with self.connections.reading() as db:
            columns = f"{columns_of(LeaseRecord, 'leases')}, {columns_of(PooledTask, 'busy')}"
            found = db.rows(f"""
                SELECT busy.id, {columns}
                FROM (SELECT * FROM tasks {db.using("tasks_live")}
                      WHERE {LIVE} AND state IN ('leased', 'importing')
                        AND carrier_id IS NULL) AS busy
                JOIN leases ON leases.id = busy.lease_id
                WHERE leases.request_id IS NULL AND leases.state IN ('active', 'used')
                ORDER BY busy.seq
            """)
        return [handout_of(row[1:]) for row in found if row[0] not in besides]

    def leases_at_end(self, lease_ids: Collection[str]) -> frozenset[str]:
        """Return those of the leases of which no (more) jobs are to be expected: they have ended
        without data, or the task that they used has its jobs, or will have none."""
        marks, wanted = listed(lease_ids)
        with self.connections.reading() as db:
            found = db.rows(
                f"""
                SELECT leases.id FROM leases
                LEFT JOIN tasks ON tasks.id = leases.pooled_id AND tasks.lease_id = leases.id
                WHERE leases.id IN ({marks}) AND (
                    leases.state IN ('released', 'expired', 'abandoned')
                    OR (leases.state = 'used'
                        AND (tasks.id IS NULL OR tasks.state <> 'importing')))
                """,
                **wanted,
            )
        return frozenset(lease_id for (lease_id,) in found)


# --- Parts of these transactions ------------------------------------------------------------------


def _replayed(db: Connection, lease: NewLease, *, of_request: bool) -> Opened | None:
    """Return what the lease's key was answered with; None when it is new, or there is none."""
    key = lease.idempotency_key
    if key is None:
        return None
    request: RequestRecord | None = None
    if of_request:
        request = find(db, RequestRecord, BY_KEY, key=key, tenant=text(lease.tenant))
        if request is None:
            return None
        payload = request.payload
        record = find(db, LeaseRecord, "id = :id", id=request.lease_id)
        assert record is not None
    else:
        row = db.one(
            f"""
            SELECT {LEASE}, payload FROM leases
            WHERE tenant = :tenant AND idempotency_key = :key
            """,
            key=key,
            tenant=text(lease.tenant),
        )
        if row is None:
            return None
        *values, payload = row
        record = record_of(LeaseRecord, values)
    if payload != lease.payload or record.template != lease.template:
        raise IdempotencyConflict(f"{key!r}; choose another key")
    # None when the lease gave its task back: another may have it by now.
    task = find(db, PooledTask, "lease_id = :id", id=record.id)
    return Opened(lease=record, task=task, request=request, replayed=True)


def _nothing() -> None:
    return None


def _insert_lease(
    db: Connection, lease: NewLease, request: NewRequest | None, *, now: float
) -> Callable[[], LeaseRecord]:
    """Write down a lease, with the task that was taken for it, if one was; return what returns
    it."""
    inserted = db.later(
        f"""
        INSERT INTO leases
            (id, template, tenant, state, name, owner, request_id, fingerprint, reusable_origin,
             pooled_id, task_id, task_name, outcome, ttl, idempotency_key, payload, created_at,
             handed_out_at, expires_at, served, place)
        SELECT
            :id, :template, :tenant, CASE WHEN tasks.id IS NULL THEN 'waiting' ELSE 'active' END,
            CAST(:name AS TEXT), :owner, :request_id, :fingerprint, :reusable_origin, tasks.id,
            tasks.task_id, COALESCE(tasks.name, ''),
            CASE WHEN tasks.id IS NOT NULL THEN :outcome END, :ttl,
            :idempotency_key, :payload, :now, tasks.changed_at, tasks.changed_at + :ttl,
            tasks.id IS NOT NULL AND :alone,
            CASE WHEN tasks.id IS NULL THEN {place_in_line(db)} ELSE 0 END
        FROM (SELECT 1 AS one) AS one LEFT JOIN tasks ON tasks.lease_id = :id
        RETURNING {LEASE}
        """,
        id=lease.id,
        template=lease.template,
        tenant=text(lease.tenant),
        name=None if lease.name is None else text(lease.name),
        owner=lease.owner,
        request_id=request.id if request else None,
        fingerprint=lease.fingerprint,
        reusable_origin=lease.reusable_origin,
        outcome=Outcome.HIT,
        ttl=lease.ttl,
        # A request's key stands in its own row: keys of leases and of requests are separate.
        idempotency_key=None if request else lease.idempotency_key,
        payload=lease.payload,
        alone=request is None,
        now=now,
    )
    return lambda: record_of(LeaseRecord, inserted()[0])
