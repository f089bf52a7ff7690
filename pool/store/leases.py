"""Leases: the hand-out of warm tasks to callers, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, Final

from pool.errors import IdempotencyConflict, QueueFull
from pool.model import (
    Handout,
    LeaseRecord,
    LeaseState,
    Outcome,
    PooledTask,
    RequestRecord,
    RequestState,
    new_id,
)
from pool.store.connections import Connected, Connection, Row, listed
from pool.store.demand import count_hand_out
from pool.store.records import (
    LEASE,
    LEASE_WIDTH,
    REQUEST,
    REQUESTS,
    TASK,
    UNOWNED,
    NewLease,
    NewMember,
    NewRequest,
    Opened,
    columns_of,
    lease_of,
    request_of,
    task_of,
    text,
)
from pool.store.schema import EXPIRING, LIVE, SPOOLED


class Leases(Connected):
    """The rows of hand-outs."""

    # --- Handing out ------------------------------------------------------------------------------

    def open_lease(
        self,
        lease: NewLease,
        *,
        request: NewRequest | None = None,
        claim: bool = True,
        most_queued: int | None = None,
        now: float,
    ) -> Opened:
        """Accept a wish for a task and, in the same transaction, claim a warm one if there is.

        With a task: the lease is ``ACTIVE``, the task ``LEASED``, a request ``UPLOADING``; and a
        ``HIT`` is counted, for a request once its data is accepted. Without: the lease is
        ``WAITING`` and a request ``QUEUED``. The template's oldest warm task of the fingerprint is
        taken; where there is none, and only then, the newest of ``lease.reusable_origin``. No two
        callers get the same. Without ``claim`` none is looked for. A spooled request that is
        ``QUEUED`` has no owner.

        A known ``idempotency_key`` changes nothing and answers what it answered before, except
        for a task that was given back: ``task`` is None then. Keys of leases and of requests are
        separate; with a request, the key stands in the request alone.

        :raises pool.errors.IdempotencyConflict: the key is known with another ``payload``.
        :raises pool.errors.QueueFull: the request would be ``QUEUED`` and as many as
            ``most_queued`` spooled ones are already; nothing has changed.
        """
        with self.connections.writing() as db:
            known = _replayed(db, lease, of_request=request is not None)
            if known is not None:
                return known
            task = (
                _claim(
                    db, lease.id, lease.template, lease.fingerprint, lease.reusable_origin, now=now
                )
                if claim
                else None
            )
            if task is None and request is not None and request.spooled:
                check_room(db, most_queued)
                lease = replace(lease, owner=UNOWNED)
            record = _insert_lease(db, lease, task, request, now=now)
            if request is not None:
                accepted = _insert_request(
                    db,
                    request,
                    record,
                    payload=lease.payload,
                    idempotency_key=lease.idempotency_key,
                    now=now,
                )
                return Opened(lease=record, task=task, request=accepted, replayed=False)
            if task is not None:
                count_hand_out(db, lease.template, Outcome.HIT, now=now)
            return Opened(lease=record, task=task, request=None, replayed=False)

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
        self, pooled_id: str, lease_id: str, *, prepared: bool, now: float
    ) -> Handout | None:
        """Move a task from ``CREATING`` to ``LEASED``, for the waiting lease that it was created
        for (``COLD``).

        None when the lease waits no longer; the task is then left as it is, and
        :meth:`~pool.store.Store.finish_create` can put it into the pool.
        """
        with self.connections.writing() as db:
            row = db.one(
                f"""
                UPDATE tasks
                SET state = 'leased', lease_id = :lease_id, prepared = :prepared, changed_at = :now
                WHERE id = :id AND state = 'creating' AND task_id IS NOT NULL
                  AND EXISTS (SELECT 1 FROM leases WHERE id = :lease_id AND state = 'waiting')
                RETURNING {TASK}
                """,
                id=pooled_id,
                lease_id=lease_id,
                prepared=prepared,
                now=now,
            )
            return _activate(db, lease_id, task_of(row), Outcome.COLD, now=now) if row else None

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

        The request is ``UPLOADING`` into the lease's task, with the lease's outcome. None when the
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
            lease = lease_of(row)
            task = db.one(f"SELECT {TASK} FROM tasks WHERE lease_id = :id", id=lease_id)
            assert task is not None
            accepted = _insert_request(
                db,
                request,
                replace(lease, owner=owner),
                payload=payload,
                idempotency_key=idempotency_key,
                # The lease was counted when its caller got it.
                served=True,
                now=now,
            )
            return Handout(lease=lease, task=task_of(task), request=accepted)

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
        with self.connections.writing() as db:
            row = db.one(
                """
                UPDATE tasks
                SET state = 'warm', lease_id = NULL, warm_at = COALESCE(warm_at, :now),
                    changed_at = :now
                WHERE lease_id = :lease_id AND state = 'leased'
                  AND EXISTS (SELECT 1 FROM leases
                              WHERE id = :lease_id AND state = 'active' AND request_id IS NULL)
                RETURNING template
                """,
                lease_id=lease_id,
                now=now,
            )
            if row is None:
                return False
            end_lease(db, lease_id, LeaseState.EXPIRED if expired else LeaseState.RELEASED)
            give_to_waiting(db, row[0], now=now)
            return True

    def end_lease(self, lease_id: str, *, reason: str, now: float) -> bool:
        """End an ``ACTIVE`` lease without a request (``EXPIRED``); its task is ``RETIRED``."""
        with self.connections.writing() as db:
            if not db.changed(
                """
                UPDATE tasks SET state = 'retired', reason = :reason, changed_at = :now
                WHERE lease_id = :lease_id AND state = 'leased'
                  AND EXISTS (SELECT 1 FROM leases
                              WHERE id = :lease_id AND state = 'active' AND request_id IS NULL)
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
            row = db.one(f"SELECT {LEASE} FROM leases WHERE id = :id", id=lease_id)
        return lease_of(row) if row else None

    def leases(
        self, states: Sequence[LeaseState] = (), *, limit: int = 100
    ) -> Sequence[LeaseRecord]:
        """Return the newest leases first."""
        found: list[Row] = []
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
        return [lease_of(row[1:]) for row in found[: max(0, limit)]]

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
        return [_handout_of(row) for row in found]

    def watched_leases(self) -> Sequence[Handout]:
        """Return ``ACTIVE`` leases without a request, and ``USED`` ones whose task is
        ``IMPORTING``, oldest task first: their callers upload by themselves, and the pool
        tracks the import."""
        with self.connections.reading() as db:
            found = db.rows(f"""
                SELECT {columns_of(LeaseRecord, "leases")}, {columns_of(PooledTask, "busy")}
                FROM (SELECT * FROM tasks {db.using("tasks_live")}
                      WHERE {LIVE} AND state IN ('leased', 'importing')) AS busy
                JOIN leases ON leases.id = busy.lease_id
                WHERE leases.request_id IS NULL AND leases.state IN ('active', 'used')
                ORDER BY busy.seq
            """)
        return [_handout_of(row) for row in found]

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


# --- Parts of these and other transactions --------------------------------------------------------

#: A lease waits, without a request, and not for ``:owner``; and its owner is gone.
DESERTED: Final = """
    state = 'waiting' AND request_id IS NULL AND owner <> :owner
      AND NOT EXISTS (SELECT 1 FROM owners
                      WHERE owners.owner = leases.owner AND owners.until >= :now)
"""


def _replayed(db: Connection, lease: NewLease, *, of_request: bool) -> Opened | None:
    """Return what the lease's key was answered with; None when it is new, or there is none."""
    key = lease.idempotency_key
    if key is None:
        return None
    request: RequestRecord | None = None
    if of_request:
        row = db.one(f"SELECT {REQUEST} FROM {REQUESTS} WHERE idempotency_key = :key", key=key)
        if row is None:
            return None
        request = request_of(row)
        payload = request.payload
        held = db.one(f"SELECT {LEASE} FROM leases WHERE id = :id", id=request.lease_id)
        assert held is not None
        record = lease_of(held)
    else:
        row = db.one(f"SELECT {LEASE}, payload FROM leases WHERE idempotency_key = :key", key=key)
        if row is None:
            return None
        record, payload = lease_of(row[:LEASE_WIDTH]), row[-1]
    if payload != lease.payload or record.template != lease.template:
        raise IdempotencyConflict(f"{key!r}; choose another key")
    # None when the lease gave its task back: another may have it by now.
    task = db.one(f"SELECT {TASK} FROM tasks WHERE lease_id = :id", id=record.id)
    return Opened(
        lease=record, task=task_of(task) if task else None, request=request, replayed=True
    )


def check_room(db: Connection, most: int | None, *, wanted: int = 1) -> None:
    """Raise QueueFull when ``wanted`` more spooled requests would be more than ``most``."""
    if most is not None and queue_length(db) + wanted > most:
        raise QueueFull(f"{most} requests wait, as many as daemon.max_queued allows")


def queue_length(db: Connection) -> int:
    """Return how many spooled requests are ``QUEUED``."""
    return db.number(f"""
        SELECT COUNT(*) FROM requests {db.using("requests_spooled")}
        WHERE {SPOOLED} AND state = 'queued'
    """)


def can_claim(
    db: Connection, lease_id: str, fingerprint: str, reusable_origin: str | None, *, now: float
) -> bool:
    """Return whether :func:`claim_waiting` is worth a transaction that writes."""
    for which in _claimable(reusable_origin):
        if db.rows(
            f"""
            SELECT 1 FROM leases WHERE leases.id = :id AND leases.state = 'waiting' AND EXISTS (
                SELECT 1 FROM tasks {db.using("tasks_warm")}
                WHERE tasks.state = 'warm' AND tasks.template = leases.template AND {which}
                  AND (tasks.quarantined_until IS NULL OR tasks.quarantined_until <= :now))
            """,
            id=lease_id,
            fingerprint=fingerprint,
            reusable_origin=reusable_origin,
            now=now,
        ):
            return True
    return False


def claim_waiting(
    db: Connection,
    lease_id: str,
    fingerprint: str,
    reusable_origin: str | None,
    *,
    members: Sequence[NewMember] = (),
    now: float,
) -> Handout | None:
    """Claim a warm task for a lease, if it waits; for ``members``, where its request is not the
    only one."""
    waits = db.one("SELECT template FROM leases WHERE id = :id AND state = 'waiting'", id=lease_id)
    if waits is None:
        return None
    task = _claim(db, lease_id, waits[0], fingerprint, reusable_origin, now=now)
    return _activate(db, lease_id, task, Outcome.WAIT, members, now=now) if task else None


def give_to_waiting(db: Connection, template: str, *, now: float) -> None:
    """Give what became warm of a template, in the same transaction, to the leases that have waited
    for it longest, whichever process waits with them.

    So the hand-out is fair, and no waiter has to claim again and again. Left out are the leases of
    spooled requests, which the dispatcher serves when their data can be sent, and those of
    processes that are gone, for which no caller would take the task. A lease that is not served
    here claims at the end of its patience.
    """
    in_vain: set[tuple[str, str | None]] = set()
    for lease_id, fingerprint, reusable_origin in db.rows(
        f"""
        SELECT id, fingerprint, reusable_origin FROM leases {db.using("leases_waiting")}
        WHERE state = 'waiting' AND template = :template
          AND EXISTS (SELECT 1 FROM owners
                      WHERE owners.owner = leases.owner AND owners.until >= :now)
        ORDER BY seq
        """,
        template=template,
        now=now,
    ):
        if (fingerprint, reusable_origin) in in_vain:
            continue
        task = _claim(db, lease_id, template, fingerprint, reusable_origin, now=now)
        if task is None:
            in_vain.add((fingerprint, reusable_origin))
        else:
            _activate(db, lease_id, task, Outcome.WAIT, now=now)


def _claim(
    db: Connection,
    lease_id: str,
    template: str,
    fingerprint: str,
    reusable_origin: str | None,
    *,
    now: float,
) -> PooledTask | None:
    """The hand-out: give one lease the oldest warm task of its fingerprint; else the newest of an
    older template, which is most like what the template is now. One statement for each, so that no
    two leases get the same task."""
    for which, order in _claimable(reusable_origin).items():
        row = db.one(
            f"""
            UPDATE tasks SET state = 'leased', lease_id = :lease_id, changed_at = :now
            WHERE seq = (SELECT seq FROM tasks {db.using("tasks_warm")}
                         WHERE state = 'warm' AND template = :template AND {which}
                           AND (quarantined_until IS NULL OR quarantined_until <= :now)
                         ORDER BY {order} LIMIT 1)
              AND state = 'warm'
            RETURNING {TASK}
            """,
            lease_id=lease_id,
            template=template,
            fingerprint=fingerprint,
            reusable_origin=reusable_origin,
            now=now,
        )
        if row is not None:
            return task_of(row)
    return None


def _claimable(reusable_origin: str | None) -> dict[str, str]:
    """Return which tasks will do, the best first, each with the order in which they are taken."""
    which = {"fingerprint = :fingerprint": "warm_at, seq"}
    # An unknown origin is no origin: such a task may be on another server.
    if reusable_origin:
        which["fingerprint <> :fingerprint AND origin = :reusable_origin"] = (
            "warm_at DESC, seq DESC"
        )
    return which


def _activate(
    db: Connection,
    lease_id: str,
    task: PooledTask,
    outcome: Outcome,
    members: Sequence[NewMember] = (),
    *,
    now: float,
) -> Handout:
    """Give a waiting lease the task that was just taken for it, and count that if it is all that
    its caller wants: a request is served once CVAT has its data."""
    row = db.one(
        f"""
        UPDATE leases
        SET state = 'active', pooled_id = :pooled_id, task_id = :task_id, task_name = :task_name,
            outcome = :outcome, handed_out_at = :now, expires_at = :now + ttl,
            served = (request_id IS NULL)
        WHERE id = :id AND state = 'waiting'
        RETURNING {LEASE}, request_id
        """,
        id=lease_id,
        **_handed_out(task, outcome),
        now=now,
    )
    assert row is not None
    lease, request_id = lease_of(row[:LEASE_WIDTH]), row[LEASE_WIDTH]
    if request_id is None:
        count_hand_out(db, lease.template, outcome, now=now)
        return Handout(lease=lease, task=task)
    request = _begin_upload(db, lease, members or (NewMember(request_id=request_id),))
    return Handout(lease=lease, task=task, request=request)


def _begin_upload(
    db: Connection, lease: LeaseRecord, members: Sequence[NewMember]
) -> RequestRecord:
    """Make queued requests the members of one import into the task of a lease, and return the
    first. The others wait with leases of their own no longer."""
    found = [
        db.one(
            "SELECT owner, files, size, lease_id FROM requests WHERE id = :id AND state = 'queued'",
            id=member.request_id,
        )
        for member in members
    ]
    rows = [row for row in found if row is not None]
    assert len(rows) == len(members)
    import_id = open_import(
        db,
        lease,
        owner=rows[0][0],
        size=sum(size for _, _, size, _ in rows),
        members=[
            (
                member.request_id,
                files,
                files if member.names is None else json.dumps(list(member.names)),
            )
            for member, (_, files, _, _) in zip(members, rows, strict=True)
        ],
    )
    for member, (_, _, _, waited_with) in zip(members, rows, strict=True):
        db.changed(
            """
            UPDATE requests SET state = 'uploading', import_id = :import_id, lease_id = :lease_id
            WHERE id = :id AND state = 'queued'
            """,
            id=member.request_id,
            import_id=import_id,
            lease_id=lease.id,
        )
        if waited_with != lease.id:
            end_lease(db, waited_with, LeaseState.ABANDONED)
    request = db.one(
        f"SELECT {REQUEST} FROM {REQUESTS} WHERE requests.id = :id", id=members[0].request_id
    )
    assert request is not None
    return request_of(request)


def open_import(
    db: Connection,
    lease: LeaseRecord,
    *,
    owner: str,
    size: int,
    members: Sequence[tuple[str, str, str]],
) -> str:
    """Write an import down, before anything is sent: which requests it is for, in which order, and
    by which names CVAT sees their files (both lists as JSON). Return its id."""
    assert lease.handed_out_at is not None
    import_id = new_id(lease.handed_out_at)
    db.changed(
        """
        INSERT INTO imports (id, template, state, owner, lease_id, pooled_id, task_id, outcome,
                             size, handed_out_at)
        VALUES (:id, :template, 'uploading', :owner, :lease_id, :pooled_id, :task_id, :outcome,
                :size, :handed_out_at)
        """,
        id=import_id,
        template=lease.template,
        owner=owner,
        lease_id=lease.id,
        pooled_id=lease.pooled_id,
        task_id=lease.task_id,
        outcome=lease.outcome,
        size=size,
        handed_out_at=lease.handed_out_at,
    )
    for position, (request_id, files, names) in enumerate(members):
        db.changed(
            """
            INSERT INTO import_members (import_id, position, request_id, files, names)
            VALUES (:import_id, :position, :request_id, :files, :names)
            """,
            import_id=import_id,
            position=position,
            request_id=request_id,
            files=files,
            names=names,
        )
    return import_id


def _insert_lease(
    db: Connection,
    lease: NewLease,
    task: PooledTask | None,
    request: NewRequest | None,
    *,
    now: float,
) -> LeaseRecord:
    row = db.one(
        f"""
        INSERT INTO leases
            (id, template, state, owner, request_id, fingerprint, reusable_origin, pooled_id,
             task_id, task_name, outcome, ttl, idempotency_key, payload, created_at,
             handed_out_at, expires_at, served)
        VALUES
            (:id, :template, :state, :owner, :request_id, :fingerprint, :reusable_origin,
             :pooled_id, :task_id, :task_name, :outcome, :ttl, :idempotency_key, :payload, :now,
             :handed_out_at, :handed_out_at + :ttl, :served)
        RETURNING {LEASE}
        """,
        id=lease.id,
        template=lease.template,
        state=LeaseState.ACTIVE if task else LeaseState.WAITING,
        owner=lease.owner,
        request_id=request.id if request else None,
        fingerprint=lease.fingerprint,
        reusable_origin=lease.reusable_origin,
        **_handed_out(task, Outcome.HIT),
        ttl=lease.ttl,
        # A request's key stands in its own row: keys of leases and of requests are separate.
        idempotency_key=None if request else lease.idempotency_key,
        payload=lease.payload,
        handed_out_at=now if task else None,
        served=task is not None and request is None,
        now=now,
    )
    assert row is not None
    return lease_of(row)


def _handed_out(task: PooledTask | None, outcome: Outcome) -> dict[str, Any]:
    return {
        "pooled_id": task.id if task else None,
        "task_id": task.task_id if task else None,
        "task_name": task.name if task else "",
        "outcome": outcome if task else None,
    }


def _insert_request(
    db: Connection,
    request: NewRequest,
    lease: LeaseRecord,
    *,
    payload: str,
    idempotency_key: str | None,
    served: bool = False,
    now: float,
) -> RequestRecord:
    """Accept a caller's data, with an import into the task that its lease has, if it has one."""
    # As JSON: any name does, even one that is no Unicode.
    files = json.dumps(list(request.files))
    import_id = None
    if lease.pooled_id is not None:
        import_id = open_import(
            db,
            lease,
            owner=lease.owner,
            size=request.size,
            members=[(request.id, files, files)],
        )
    db.changed(
        """
        INSERT INTO requests
            (id, template, state, owner, lease_id, import_id, name, assignee, files, size, payload,
             idempotency_key, created_at, spooled, served)
        VALUES
            (:id, :template, :state, :owner, :lease_id, :import_id, :name, :assignee, :files,
             :size, :payload, :idempotency_key, :now, :spooled, :served)
        """,
        id=request.id,
        template=lease.template,
        state=RequestState.UPLOADING if import_id else RequestState.QUEUED,
        owner=lease.owner,
        lease_id=lease.id,
        import_id=import_id,
        name=None if request.name is None else text(request.name),
        assignee=request.assignee,
        files=files,
        size=request.size,
        payload=payload,
        idempotency_key=idempotency_key,
        spooled=request.spooled,
        served=served,
        now=now,
    )
    row = db.one(f"SELECT {REQUEST} FROM {REQUESTS} WHERE requests.id = :id", id=request.id)
    assert row is not None
    return request_of(row)


def end_lease(db: Connection, lease_id: str | None, state: LeaseState) -> None:
    """End a lease that waits or is active; one that has ended stays as it is."""
    db.changed(
        "UPDATE leases SET state = :state WHERE id = :id AND state IN ('waiting', 'active')",
        id=lease_id,
        state=state,
    )


def burn_task(db: Connection, pooled_id: str, reason: str, *, now: float) -> bool:
    """Fail a task that data has touched, or may have; its lease is used up."""
    row = db.one(
        """
        UPDATE tasks SET state = 'failed', reason = :reason, changed_at = :now
        WHERE id = :id AND state IN ('leased', 'importing')
        RETURNING lease_id
        """,
        id=pooled_id,
        reason=text(reason),
        now=now,
    )
    if row is None:
        return False
    end_lease(db, row[0], LeaseState.USED)
    return True


def reason_of(code: str, message: str) -> str:
    """Return why a task was burnt."""
    return ": ".join(part for part in (code, message) if part)


def _handout_of(row: Row) -> Handout:
    return Handout(lease=lease_of(row[:LEASE_WIDTH]), task=task_of(row[LEASE_WIDTH:]))
