"""The hand-out: how a warm task goes to a lease that waits for it.

These are parts of transactions. The hand-out itself is one guarded statement (:func:`take_warm`),
so that no two leases get the same task. All that has to be durable before the caller hears of its
task goes with it: the lease is active, it is counted, and the import of its data is written down.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Final

from pool.model import (
    Handout,
    ImportMember,
    LeaseRecord,
    LeaseState,
    Outcome,
    PooledTask,
    Priority,
    RequestRecord,
    new_id,
)
from pool.store.connections import Connection
from pool.store.demand import count_hand_out
from pool.store.records import LEASE, TASK, NewMember, find, record_of, text
from pool.store.schema import IN_LINE, UNDER_WAY


def alive(owner: str) -> str:
    """Return the condition that the process in a column is alive."""
    return f"EXISTS (SELECT 1 FROM owners WHERE owners.owner = {owner} AND owners.until >= :now)"


#: The lease ``:lease_id`` has a task that its caller may upload into.
HELD: Final = """
    EXISTS (SELECT 1 FROM leases
            WHERE id = :lease_id AND state = 'active' AND request_id IS NULL)
"""
#: A lease waits, without a request, and not for ``:owner``; and its owner is gone.
DESERTED: Final = f"""
    state = 'waiting' AND request_id IS NULL AND owner <> :owner AND NOT {alive("leases.owner")}
"""

_GROUPED: Final = f"SELECT COUNT(*) FROM imports {{using}} WHERE {UNDER_WAY} AND grouped"
_OF_PRIORITY: Final = f"{_GROUPED} AND priority = :priority"


# --- Claiming -------------------------------------------------------------------------------------


def take_warm(
    db: Connection,
    lease_id: str,
    template: str,
    fingerprint: str,
    reusable_origin: str | None,
    *,
    places: int | None = None,
    bulk_places: int | None = None,
    now: float,
) -> Callable[[], PooledTask | None]:
    """Give one lease the oldest warm task of its fingerprint; else the newest of an older template,
    which is most like what the template is now. Return what returns it. With ``places``, only
    while fewer imports than these that requests may share are under way; with ``bulk_places``, only
    while fewer than these are of bulk."""
    using = db.using("imports_under_way")
    conditions, limits = "", {}
    if places is not None:
        conditions = f"AND ({_GROUPED.format(using=using)}) < :places"
        limits["places"] = places
    if bulk_places is not None:
        conditions += f" AND ({_OF_PRIORITY.format(using=using)}) < :bulk_places"
        limits |= {"bulk_places": bulk_places, "priority": Priority.BULK.level}
    taken: Callable[[], list[Any]] = list
    for which, order in _claimable(reusable_origin).items():
        if taken():
            break
        taken = db.later(
            f"""
            UPDATE tasks SET state = 'leased', lease_id = :lease_id, changed_at = :now
            WHERE seq = (SELECT seq FROM tasks {db.using("tasks_warm")}
                         WHERE state = 'warm' AND template = :template AND {which}
                           AND (quarantined_until IS NULL OR quarantined_until <= :now)
                         ORDER BY {order} LIMIT 1)
              AND state = 'warm' {conditions}
            RETURNING {TASK}
            """,
            **limits,
            lease_id=lease_id,
            template=template,
            fingerprint=fingerprint,
            reusable_origin=reusable_origin,
            now=now,
        )
    return lambda: next((record_of(PooledTask, row) for row in taken()), None)


def grouped_imports(db: Connection, priority: Priority | None) -> int:
    """Return how many imports are under way that requests may share, of a priority or of any."""
    using = db.using("imports_under_way")
    if priority is None:
        return db.number(_GROUPED.format(using=using))
    return db.number(_OF_PRIORITY.format(using=using), priority=priority.level)


def can_claim(
    db: Connection, lease_id: str, fingerprint: str, reusable_origin: str | None, *, now: float
) -> bool:
    """Return whether :func:`claim_waiting` is worth a transaction that writes."""
    return any(
        db.rows(
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
        )
        for which in _claimable(reusable_origin)
    )


def _claimable(reusable_origin: str | None) -> dict[str, str]:
    """Return which tasks will do, the best first, each with the order in which they are taken."""
    which = {"fingerprint = :fingerprint": "warm_at, seq"}
    # An unknown origin is no origin: such a task may be on another server.
    if reusable_origin:
        which["fingerprint <> :fingerprint AND origin = :reusable_origin"] = (
            "warm_at DESC, seq DESC"
        )
    return which


def claim_waiting(
    db: Connection,
    lease_id: str,
    fingerprint: str,
    reusable_origin: str | None,
    *,
    members: Sequence[NewMember] = (),
    places: int | None = None,
    bulk_places: int | None = None,
    now: float,
) -> Handout | None:
    """Claim a warm task for a lease, if it waits; for ``members``, where its request is not the
    only one. ``places`` as for :func:`take_warm`, and so ``bulk_places`` where the first of the
    members is of bulk."""
    waits = db.one("SELECT template FROM leases WHERE id = :id AND state = 'waiting'", id=lease_id)
    if waits is None:
        return None
    if bulk_places is not None and _queued(db, members[0].request_id).priority is not Priority.BULK:
        bulk_places = None
    task = take_warm(
        db,
        lease_id,
        waits[0],
        fingerprint,
        reusable_origin,
        places=places,
        bulk_places=bulk_places,
        now=now,
    )()
    return activate(db, lease_id, task, Outcome.WAIT, members, now=now) if task else None


def give_to_waiting(db: Connection, template: str, *, now: float) -> None:
    """Give what became warm of a template, in the same transaction, to the leases that have waited
    for it longest, whichever process waits with them.

    So the hand-out is fair, and no waiter has to claim again and again; tenants take turns
    (:func:`place_in_line`). Left out are the leases of
    spooled requests, which the dispatcher serves when their data can be sent, also while it makes a
    task for one and those that share it, and those of
    processes that are gone, for which no caller would take the task. A lease that is not served
    here claims at the end of its patience.
    """
    in_vain: set[tuple[str, str | None]] = set()
    for lease_id, fingerprint, reusable_origin in db.rows(
        f"""
        SELECT id, fingerprint, reusable_origin FROM leases {db.using("leases_in_line")}
        WHERE {IN_LINE} AND template = :template AND {alive("leases.owner")}
          AND NOT EXISTS (SELECT 1 FROM requests
                          WHERE requests.id = leases.request_id
                            AND requests.spooled AND requests.group_key IS NOT NULL)
        ORDER BY place, seq
        """,
        template=template,
        now=now,
    ):
        if (fingerprint, reusable_origin) in in_vain:
            continue
        task = take_warm(db, lease_id, template, fingerprint, reusable_origin, now=now)()
        if task is None:
            in_vain.add((fingerprint, reusable_origin))
        else:
            activate(db, lease_id, task, Outcome.WAIT, now=now)


def place_in_line(db: Connection) -> str:
    """Return the place that a lease of ``:tenant`` which begins to wait for a task of ``:template``
    gets among those that wait: the lowest goes first, and of equal ones the older.

    A tenant has one lease in each place, and one that comes begins where the line is by now: it is
    start-time fair queueing (Goyal, Vin and Cheng, 1996), with tasks that are worth the same.
    """
    line = f"SELECT {{}} FROM leases {db.using('leases_in_line')} WHERE {IN_LINE}"
    of_all = f"{line.format('MIN(place)')} AND template = :template"
    of_tenant = f"{line.format('MAX(place) + 1')} AND template = :template AND tenant = :tenant"
    return db.greatest(f"COALESCE(({of_all}), 0)", f"COALESCE(({of_tenant}), 0)")


# --- What goes with it ----------------------------------------------------------------------------


def activate(
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
        pooled_id=task.id,
        task_id=task.task_id,
        task_name=task.name,
        outcome=outcome,
        now=now,
    )
    assert row is not None
    *values, request_id = row
    lease = record_of(LeaseRecord, values)
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
    requests = [_queued(db, member.request_id) for member in members]
    import_id = open_import(
        db,
        lease,
        owner=requests[0].owner,
        size=sum(request.size for request in requests),
        members=[
            ImportMember(
                request_id=request.id,
                files=request.given,
                names=request.files if member.names is None else member.names,
            )
            for member, request in zip(members, requests, strict=True)
        ],
        grouped=requests[0].group_key is not None,
        priority=requests[0].priority,
    )
    first_frame = 0
    for member, request in zip(members, requests, strict=True):
        db.later(
            """
            UPDATE requests
            SET state = 'uploading', import_id = :import_id, lease_id = :lease_id,
                files_in_group = :names, first_frame = :first_frame
            WHERE id = :id AND state = 'queued'
            """,
            id=request.id,
            import_id=import_id,
            lease_id=lease.id,
            names=None if member.names is None else as_json(member.names),
            first_frame=first_frame,
        )
        first_frame += len(request.files)
        if request.lease_id != lease.id:
            end_lease(db, request.lease_id, LeaseState.ABANDONED)
    first = find(db, RequestRecord, "requests.id = :id", id=requests[0].id)
    assert first is not None
    return first


def _queued(db: Connection, request_id: str) -> RequestRecord:
    request = find(
        db, RequestRecord, "requests.id = :id AND requests.state = 'queued'", id=request_id
    )
    assert request is not None
    return request


def open_import(
    db: Connection,
    lease: LeaseRecord,
    *,
    owner: str,
    size: int,
    members: Sequence[ImportMember],
    grouped: bool,
    priority: Priority,
) -> str:
    """Write an import down, before anything is sent, with its members in order; return its id.
    ``grouped``: its requests may share it. They are of one ``priority``."""
    assert lease.handed_out_at is not None
    import_id = new_id(lease.handed_out_at)
    db.later(
        """
        INSERT INTO imports (id, template, state, owner, lease_id, pooled_id, task_id, outcome,
                             size, grouped, slot, priority, handed_out_at)
        SELECT :id, :template, 'uploading', :owner, :lease_id, :pooled_id, :task_id, :outcome,
               :size, :grouped AND carrier_id IS NULL, carrier_id IS NOT NULL, :priority,
               :handed_out_at
        FROM tasks WHERE tasks.id = :pooled_id
        """,
        id=import_id,
        template=lease.template,
        owner=owner,
        lease_id=lease.id,
        pooled_id=lease.pooled_id,
        task_id=lease.task_id,
        outcome=lease.outcome,
        size=size,
        grouped=grouped,
        priority=priority.level,
        handed_out_at=lease.handed_out_at,
    )
    for position, member in enumerate(members):
        db.later(
            """
            INSERT INTO import_members (import_id, position, request_id, files, names)
            VALUES (:import_id, :position, :request_id, :files, :names)
            """,
            import_id=import_id,
            position=position,
            request_id=member.request_id,
            files=as_json(member.files),
            names=as_json(member.names),
        )
    return import_id


def as_json(names: Sequence[str]) -> str:
    """Return the names of files as they are kept: any name does, even one that is no Unicode."""
    return json.dumps(list(names))


# --- How it ends ----------------------------------------------------------------------------------


def end_lease(db: Connection, lease_id: str, state: LeaseState) -> None:
    """End a lease that waits or is active; one that has ended stays as it is."""
    db.later(
        "UPDATE leases SET state = :state WHERE id = :id AND state IN ('waiting', 'active')",
        id=lease_id,
        state=state,
    )


def return_task(
    db: Connection, lease_id: str, *, state: LeaseState, condition: str = "TRUE", now: float
) -> bool:
    """End a lease and put its untouched task back into the pool; False, and nothing has changed,
    when it has none (any more), or the ``condition`` is not met."""
    row = db.one(
        f"""
        UPDATE tasks
        SET state = 'warm', lease_id = NULL, warm_at = COALESCE(warm_at, :now), changed_at = :now
        WHERE lease_id = :lease_id AND state = 'leased' AND {condition}
        RETURNING template
        """,
        lease_id=lease_id,
        now=now,
    )
    if row is None:
        return False
    end_lease(db, lease_id, state)
    give_to_waiting(db, row[0], now=now)
    return True


def burn_task(
    db: Connection, pooled_id: str, reason: str, *, lease_id: str | None = None, now: float
) -> bool:
    """Fail a task that data has touched, or may have; its lease is used up. With a ``lease_id``
    only while it has that lease."""
    row = db.one(
        """
        UPDATE tasks SET state = 'failed', reason = :reason, changed_at = :now
        WHERE id = :id AND state IN ('leased', 'importing')
          AND (CAST(:lease_id AS TEXT) IS NULL OR lease_id = :lease_id)
        RETURNING lease_id
        """,
        id=pooled_id,
        reason=text(reason),
        lease_id=lease_id,
        now=now,
    )
    if row is None:
        return False
    end_lease(db, row[0], LeaseState.USED)
    return True


def reason_of(code: str, message: str) -> str:
    """Return why a task was burnt."""
    return ": ".join(part for part in (code, message) if part)
