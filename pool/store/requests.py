"""Requests: data that callers gave to the pool, and who works on it.

A request whose data is in the spool is not bound to the process of its caller: any process that
can read the spool can serve it. While it is ``QUEUED`` it has no owner; while a worker has it, the
owner is the worker's process.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from pool.errors import InputError
from pool.model import (
    Handout,
    ImportState,
    LeaseState,
    RequestRecord,
    RequestState,
    RequestWarning,
)
from pool.store.connections import Connected, Connection, listed
from pool.store.imports import end_import, queue_members
from pool.store.leases import (
    DESERTED,
    can_claim,
    check_room,
    claim_waiting,
    end_lease,
    queue_length,
    reason_of,
)
from pool.store.records import (
    REQUEST,
    REQUESTS,
    UNOWNED,
    WITH_IMPORT,
    NewMember,
    Page,
    Unserved,
    request_of,
    text,
)
from pool.store.schema import OPEN, SPOOLED, UNDER_WAY

T = TypeVar("T")


class Requests(Connected):
    """The rows of requests.

    A call that names an ``expected_lease_id`` has no effect once the request has another lease:
    its worker was taken for dead, and another one has the request.
    """

    # --- Endings, and new beginnings --------------------------------------------------------------

    def fail_request(
        self,
        request_id: str,
        *,
        expected_lease_id: str | None = None,
        untouched: bool = False,
        code: str,
        message: str,
        now: float,
    ) -> bool:
        """Fail a request before CVAT has accepted its data.

        From ``QUEUED``: its waiting lease is ``ABANDONED``, and its idempotency key is free for
        another try, since nothing was done for it; that of a spooled one is not, since its caller
        knows that it is accepted. From ``UPLOADING``: its import fails, with all its members, the
        lease is ``USED`` and the task ``FAILED``, since data may have touched it. If that is
        ``untouched``, the import is ``RETURNED``, the task ``WARM`` again, the lease ``RELEASED``,
        and the key free like that of a ``QUEUED`` one.
        """
        failed = """
            SET state = 'failed', error_code = :code, error = :message, finished_at = :now,
                idempotency_key =
                    CASE WHEN NOT spooled AND (state = 'queued' OR :untouched) THEN NULL
                         ELSE idempotency_key END
        """
        failure: dict[str, Any] = {"code": code, "message": text(message), "now": now}
        with self.connections.writing() as db:
            row = db.one(
                f"""
                UPDATE requests {failed}
                WHERE id = :id AND state IN ('queued', 'uploading')
                  AND (:expected IS NULL OR lease_id = :expected)
                RETURNING lease_id, import_id
                """,
                id=request_id,
                expected=expected_lease_id,
                untouched=untouched,
                **failure,
            )
            if row is None:
                return False
            lease_id, import_id = row
            if import_id is None:
                end_lease(db, lease_id, LeaseState.ABANDONED)
                return True
            db.changed(
                f"""
                UPDATE requests {db.using("requests_of_import")} {failed}
                WHERE import_id = :import_id AND state = 'uploading'
                """,
                import_id=import_id,
                untouched=untouched,
                **failure,
            )
            state = ImportState.RETURNED if untouched else ImportState.FAILED
            end_import(db, import_id, state, reason=reason_of(code, message), now=now)
            return True

    def cancel_request(self, request_id: str, *, now: float) -> bool:
        """Cancel a ``QUEUED`` request; its waiting lease is ``ABANDONED``."""
        with self.connections.writing() as db:
            row = db.one(
                """
                UPDATE requests SET state = 'cancelled', finished_at = :now
                WHERE id = :id AND state = 'queued'
                RETURNING lease_id
                """,
                id=request_id,
                now=now,
            )
            if row is None:
                return False
            end_lease(db, row[0], LeaseState.ABANDONED)
            return True

    def adopt_requests(self, owner: str, *, now: float) -> Sequence[RequestRecord]:
        """Take over all unfinished requests whose owner is gone (not renewed in time, or
        forgotten), with their leases and imports, and return them. Each is taken over by one
        process only.

        Leases that wait without a request, and whose owner is gone, are ``ABANDONED``. Spooled
        requests that CVAT has not accepted yet are left to :meth:`take_spooled`.
        """
        taker = {"owner": owner, "unowned": UNOWNED, "now": now}
        with self.connections.writing() as db:
            db.changed(
                f"""
                UPDATE leases {db.using("leases_waiting")}
                SET state = 'abandoned', idempotency_key = NULL
                WHERE {DESERTED}
                """,
                owner=owner,
                now=now,
            )
            adopted = db.rows(
                f"""
                UPDATE requests {db.using("requests_open")} SET owner = :owner
                WHERE {OPEN} AND state = 'queued' AND NOT spooled AND owner <> :owner
                  AND {_gone("requests.owner")}
                RETURNING lease_id
                """,
                **taker,
            )
            adopted += db.rows(
                f"""
                UPDATE imports {db.using("imports_under_way")} SET owner = :owner
                WHERE {UNDER_WAY} AND owner <> :owner AND {_gone("imports.owner")}
                  AND (state = 'importing'
                       OR NOT EXISTS (SELECT 1 FROM requests
                                      WHERE requests.import_id = imports.id AND spooled))
                RETURNING lease_id
                """,
                **taker,
            )
            requests = []
            for (lease_id,) in adopted:
                db.changed(
                    "UPDATE leases SET owner = :owner WHERE id = :id", owner=owner, id=lease_id
                )
                requests += db.rows(
                    f"SELECT {REQUEST} FROM {REQUESTS} WHERE requests.lease_id = :id", id=lease_id
                )
        return sorted(map(request_of, requests), key=lambda each: (each.created_at, each.id))

    def warn(self, request_id: str, warning: RequestWarning, *, now: float) -> bool:
        """Add a warning to a request; of each code one."""
        with self.connections.writing() as db:
            return add_warning(db, request_id, warning, now=now)

    # --- The spool --------------------------------------------------------------------------------

    def queue_request(
        self, request_id: str, *, expected_lease_id: str, most: int | None, now: float
    ) -> RequestRecord | None:
        """Queue a request whose data is in the spool, until it can be served: it is ``QUEUED``
        and has no owner.

        From ``UPLOADING``, when nothing has touched its task: the import is ``RETURNED``, the task
        ``WARM`` again, the lease ``RELEASED``, and each member waits with a fresh lease. From
        ``QUEUED`` it keeps the lease that it waits with. None when its lease is not
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
                    UPDATE requests SET spooled = :spooled, owner = :unowned
                    WHERE id = :id AND state = 'queued'
                    """,
                    id=request_id,
                    spooled=True,
                    unowned=UNOWNED,
                )
                _own_waiting_lease(db, expected_lease_id, UNOWNED)
            else:
                queued = queue_members(db, import_id, ImportState.RETURNED, spool=True, now=now)
                check_room(db, most, wanted=0)
                assert queued
            return _request(db, request_id)

    def unserved(self, *, owner: str, now: float, each: int) -> Sequence[Unserved]:
        """Return spooled requests that are ``QUEUED`` or ``UPLOADING`` and have no owner, or one
        that is gone, or ``owner`` itself: they are there to be taken. The oldest first, at most
        ``each`` of each template."""
        with self.connections.reading() as db:
            found = db.rows(
                f"""
                SELECT id, template, state, lease_id, created_at FROM (
                    SELECT requests.seq, requests.id, requests.template, requests.state,
                           requests.lease_id, requests.created_at,
                           ROW_NUMBER() OVER (PARTITION BY requests.template
                                              ORDER BY requests.seq) AS place
                    FROM (SELECT * FROM requests {db.using("requests_spooled")}
                          WHERE {SPOOLED}) AS requests
                    {WITH_IMPORT}
                    WHERE {_free("COALESCE(imports.owner, requests.owner)")}
                ) AS free
                WHERE place <= :each ORDER BY seq
                """,
                owner=owner,
                unowned=UNOWNED,
                now=now,
                each=each,
            )
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

    def take_spooled(self, request_id: str, *, owner: str, now: float) -> RequestRecord | None:
        """Own one of the :meth:`unserved`, with its import if it has one; None when it is none (any
        more). Of two processes that try, one gets it."""
        with self.connections.writing() as db:
            if not _take_queued(db, request_id, owner, now=now) and not db.changed(
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
            return _request(db, request_id)

    def claim_queued(
        self,
        members: Sequence[NewMember],
        fingerprint: str,
        *,
        reusable_origin: str | None = None,
        owner: str,
        now: float,
    ) -> Handout | None:
        """Own ``QUEUED`` ones of the :meth:`unserved` and claim one warm task for all of them, as
        :meth:`~pool.store.Store.claim_warm` does: either all of it happens or nothing does.

        They become the members of one import, in this order; the lease of the first is the
        import's, those of the others are ``ABANDONED``.
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
                    _expect(_take_queued(db, member.request_id, owner, now=now))
                return _expect(
                    claim_waiting(
                        db, queued[0], fingerprint, reusable_origin, members=members, now=now
                    )
                )
        except _NotClaimed:
            # The transaction is rolled back, so that the requests have no owner again.
            return None

    def queue_length(self) -> int:
        """Return how many spooled requests are ``QUEUED``."""
        with self.connections.reading() as db:
            return queue_length(db)

    # --- Looking ----------------------------------------------------------------------------------

    def request(self, request_id: str) -> RequestRecord | None:
        """Return one request."""
        with self.connections.reading() as db:
            return _request(db, request_id)

    def request_by_key(self, idempotency_key: str) -> RequestRecord | None:
        """Return the request that was made under a key."""
        with self.connections.reading() as db:
            row = db.one(
                f"SELECT {REQUEST} FROM {REQUESTS} WHERE idempotency_key = :key",
                key=idempotency_key,
            )
        return request_of(row) if row else None

    def requests(
        self,
        *,
        state: RequestState | None = None,
        template: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page:
        """Return the newest requests first, a page at a time.

        :raises pool.errors.InputError: no page gave such a cursor, or ``limit`` is below 1.
        """
        if limit < 1:
            raise InputError("the limit of a page must be at least 1")
        conditions = {
            "requests.state = :state": state is not None,
            "requests.template = :template": template is not None,
            "requests.seq < :before": cursor is not None,
        }
        where = " AND ".join(condition for condition, asked in conditions.items() if asked)
        with self.connections.reading() as db:
            found = db.rows(
                f"""
                SELECT requests.seq, {REQUEST} FROM {REQUESTS} {f"WHERE {where}" if where else ""}
                ORDER BY requests.seq DESC LIMIT :limit
                """,
                state=state,
                template=template,
                before=None if cursor is None else _after(cursor),
                # One more than asked for tells whether there is another page.
                limit=limit + 1,
            )
        page = found[:limit]
        return Page(
            requests=tuple(request_of(row[1:]) for row in page),
            next_cursor=str(page[-1][0]) if len(found) > limit else None,
        )

    def requests_at_end(self, request_ids: Collection[str]) -> frozenset[str]:
        """Return those of the requests to which nothing more will happen."""
        marks, wanted = listed(request_ids)
        with self.connections.reading() as db:
            found = db.rows(
                f"""
                SELECT id FROM requests
                WHERE id IN ({marks}) AND state IN ('ready', 'failed', 'cancelled')
                """,
                **wanted,
            )
        return frozenset(request_id for (request_id,) in found)

    def queued(self) -> Mapping[str, int]:
        """Return how many requests are ``QUEUED``, spooled or not, by template."""
        with self.connections.reading() as db:
            return dict(
                db.rows(f"""
                    SELECT template, COUNT(*) FROM requests {db.using("requests_open")}
                    WHERE {OPEN} AND state = 'queued' GROUP BY template
                """)
            )

    def in_flight(self) -> int:
        """Return how many requests are ``UPLOADING`` or ``IMPORTING``, of all processes: the
        foreground."""
        with self.connections.reading() as db:
            return db.number(f"""
                SELECT COUNT(*) FROM requests {db.using("requests_open")}
                WHERE {OPEN} AND state IN ('uploading', 'importing')
            """)

    def last_activity(self) -> float:
        """Return when one of the newest requests last began or ended; 0 when there never was one.

        An older one that ends late is missed: all would have to be searched.
        """
        with self.connections.reading() as db:
            latest = db.one(f"""
                SELECT MAX({db.greatest("created_at", "COALESCE(finished_at, 0)")})
                FROM (SELECT created_at, finished_at FROM requests
                      ORDER BY seq DESC LIMIT 20) AS newest
            """)
        return float(latest[0] or 0.0) if latest else 0.0

    def others_uploaded(self, request_id: str, *, since: float) -> bool:
        """Return whether CVAT has accepted another request's data since, among the latest few
        hundred."""
        with self.connections.reading() as db:
            return bool(
                db.rows(
                    """
                    SELECT 1 FROM (SELECT id, uploaded_at FROM imports
                                   ORDER BY seq DESC LIMIT 500) AS latest
                    WHERE uploaded_at >= :since
                      AND NOT EXISTS (SELECT 1 FROM import_members
                                      WHERE import_id = latest.id AND request_id = :id)
                    LIMIT 1
                    """,
                    id=request_id,
                    since=since,
                )
            )


# --- Parts of these and other transactions --------------------------------------------------------


def add_warning(db: Connection, request_id: str, warning: RequestWarning, *, now: float) -> bool:
    """Add a warning to a request, unless it has one of the same code."""
    row = db.one("SELECT warnings FROM requests WHERE id = :id", id=request_id)
    warnings = json.loads(row[0]) if row else []
    if row is None or any(known["code"] == warning.code for known in warnings):
        return False
    warnings.append(asdict(warning) | {"text": text(warning.text)})
    return db.met(
        """
        UPDATE requests SET warnings = :warnings, warned_at = :now
        WHERE id = :id AND warnings = :before
        """,
        id=request_id,
        warnings=json.dumps(warnings),
        before=row[0],
        now=now,
    )


def _request(db: Connection, request_id: str) -> RequestRecord | None:
    row = db.one(f"SELECT {REQUEST} FROM {REQUESTS} WHERE requests.id = :id", id=request_id)
    return request_of(row) if row else None


def _gone(owner: str) -> str:
    """The owner in a column is no live process."""
    return f"""
        NOT EXISTS (SELECT 1 FROM owners WHERE owners.owner = {owner} AND owners.until >= :now)
    """


def _free(owner: str) -> str:
    """The owner in a column is no live process other than ``:owner``."""
    return f"({owner} IN (:unowned, :owner) OR {_gone(owner)})"


class _NotClaimed(Exception):
    """There was no task for these requests, or another process has one of them."""


def _expect(done: T | None) -> T:
    if not done:
        raise _NotClaimed
    return done


def _take_queued(db: Connection, request_id: str, owner: str, *, now: float) -> bool:
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


def _after(cursor: str) -> int:
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
        raise InputError(f"{cursor[:40]!r} is not a cursor that an earlier page gave")
    return int(cursor)
