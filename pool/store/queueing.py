"""Requests that wait in the spool. Each function is one transaction of the SQLite store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from sqlite_utils import Database

from pool.model import Handout, LeaseState, RequestRecord, RequestState
from pool.store import handing_out, lookups
from pool.store.migrations import SPOOLED
from pool.store.queries import LOST, RETURN_TASK
from pool.store.queue_rows import NOBODY, Unserved
from pool.store.rows import REQUEST_COLUMNS, changed, listed, number, one, request_of, rows

_REQUEST: Final = listed(REQUEST_COLUMNS)

#: Whoever owns a request does not work on it, as far as ``:owner`` is concerned.
_FREE: Final = """
    (owner IN (:nobody, :owner) OR NOT EXISTS (
        SELECT 1 FROM owners WHERE owners.owner = requests.owner AND owners.until >= :now))
"""

#: A request that waits for a task anyway waits in the spool.
SPOOL_QUEUED: Final = f"""
    UPDATE requests SET spooled = 1, owner = :nobody
    WHERE id = :id AND lease_id = :under AND state = 'queued'
    RETURNING {_REQUEST}
"""

#: A request that had a task gives it back and waits.
SPOOL_UPLOADING: Final = f"""
    UPDATE requests
    SET state = 'queued', spooled = 1, owner = :nobody, lease_id = :lease_id, pooled_id = NULL,
        task_id = NULL, outcome = NULL, handed_out_at = NULL,
        lost_seconds = lost_seconds + {LOST}
    WHERE id = :id AND lease_id = :under AND state = 'uploading'
    RETURNING {_REQUEST}
"""

#: The fresh lease that it waits with, as the old one was.
INSERT_WAITING_LEASE: Final = """
    INSERT INTO leases (id, template, state, owner, request_id, ttl, payload, created_at)
    SELECT :lease_id, leases.template, 'waiting', :nobody, requests.id, leases.ttl,
           leases.payload, :now
    FROM requests JOIN leases ON leases.id = requests.lease_id
    WHERE requests.id = :id AND requests.lease_id = :under AND requests.state = 'uploading'
"""

#: Who works on a lease's request.
OWN_LEASE: Final = "UPDATE leases SET owner = :owner WHERE id = :id AND state = 'waiting'"

#: What nobody works on.
UNSERVED: Final = f"""
    SELECT id, template, state, lease_id, created_at FROM (
        SELECT seq, id, template, state, lease_id, created_at,
               ROW_NUMBER() OVER (PARTITION BY template ORDER BY seq) AS place
        FROM requests INDEXED BY requests_spooled WHERE {SPOOLED} AND {_FREE})
    WHERE place <= :each ORDER BY seq
"""

#: What a queued request waits with.
LEASE_OF_QUEUED: Final = "SELECT lease_id FROM requests WHERE id = :id AND state = 'queued'"

#: One process works on it.
TAKE_SPOOLED: Final = f"""
    UPDATE requests SET owner = :owner WHERE id = :id AND {SPOOLED} AND {_FREE}
    RETURNING {_REQUEST}
"""

#: Nobody works on it after all.
DISOWN_REQUEST: Final = "UPDATE requests SET owner = :nobody WHERE id = :id AND state = 'queued'"


def queue_request(
    db: Database, request_id: str, *, under: str, lease_id: str, most: int | None, now: float
) -> RequestRecord | None:
    moved = {
        "id": request_id,
        "under": under,
        "lease_id": lease_id,
        "nobody": NOBODY,
        "now": now,
    }
    row = one(db, lookups.REQUEST, {"id": request_id})
    if row is None or request_of(row).lease_id != under:
        return None
    before = request_of(row)
    if before.state is RequestState.QUEUED:
        handing_out.check_room(db, most)
        after = one(db, SPOOL_QUEUED, moved)
        changed(db, OWN_LEASE, {"owner": NOBODY, "id": under})
    elif before.state is RequestState.UPLOADING:
        handing_out.check_room(db, most)
        changed(db, INSERT_WAITING_LEASE, moved)
        after = one(db, SPOOL_UPLOADING, moved)
        changed(db, RETURN_TASK, {"id": before.pooled_id, "now": now})
        handing_out.end_lease_as(db, under, LeaseState.RELEASED)
    else:
        return None
    assert after is not None
    return request_of(after)


def unserved(db: Database, *, owner: str, now: float, each: int) -> Sequence[Unserved]:
    found = rows(db, UNSERVED, {"owner": owner, "nobody": NOBODY, "now": now, "each": each})
    return [
        Unserved(
            id=id,
            template=template,
            state=RequestState(state),
            lease_id=lease_id,
            created_at=created_at,
        )
        for id, template, state, lease_id, created_at in found
    ]


def can_claim_queued(
    db: Database, request_id: str, fingerprint: str, *, older_from: str | None = None, now: float
) -> bool:
    """Whether :func:`claim_queued` is worth a transaction that writes."""
    row = one(db, LEASE_OF_QUEUED, {"id": request_id})
    return row is not None and handing_out.can_claim(
        db, row[0], fingerprint, older_from=older_from, now=now
    )


def take_spooled(db: Database, request_id: str, *, owner: str, now: float) -> RequestRecord | None:
    row = one(db, TAKE_SPOOLED, {"id": request_id, "owner": owner, "nobody": NOBODY, "now": now})
    if row is None:
        return None
    request = request_of(row)
    changed(db, OWN_LEASE, {"owner": owner, "id": request.lease_id})
    return request


def claim_queued(
    db: Database,
    request_id: str,
    fingerprint: str,
    *,
    older_from: str | None = None,
    owner: str,
    now: float,
) -> Handout | None:
    request = take_spooled(db, request_id, owner=owner, now=now)
    if request is None:
        return None
    handout = handing_out.claim_warm(
        db, request.lease_id, fingerprint, older_from=older_from, now=now
    )
    if handout is None:
        # Somebody else got the task, so it is nobody's again.
        changed(db, DISOWN_REQUEST, {"id": request_id, "nobody": NOBODY})
        changed(db, OWN_LEASE, {"owner": NOBODY, "id": request.lease_id})
    return handout


def queued(db: Database) -> Mapping[str, int]:
    return {template: int(count) for template, count in rows(db, lookups.QUEUED, {})}


def request_by_key(db: Database, idempotency_key: str) -> RequestRecord | None:
    row = one(db, lookups.REQUEST_BY_KEY, {"key": idempotency_key})
    return request_of(row) if row else None


def queue_length(db: Database) -> int:
    return number(db, lookups.QUEUE_LENGTH, {})
