"""Requests: data that callers gave to the pool, and who works on it.

A request whose data is in the spool is not bound to the process of its caller: any process that
can read the spool can serve it. While it is ``QUEUED`` it has no owner; while a worker has it, the
owner is the worker's process.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Final

from pool.errors import InputError
from pool.model import (
    Handout,
    LeaseState,
    PooledTask,
    RequestRecord,
    RequestState,
    RequestWarning,
)
from pool.store.connections import Connected, Connection, listed
from pool.store.leases import (
    DESERTED,
    burn_task,
    can_claim,
    check_room,
    claim_waiting,
    end_lease,
    queue_length,
)
from pool.store.records import (
    NOBODY,
    REQUEST,
    TASK_WIDTH,
    Page,
    Unserved,
    columns_of,
    request_of,
    request_or_none,
    task_of,
    text,
)
from pool.store.schema import OPEN, SPOOLED

#: No live process other than ``:owner`` owns a request.
_FREE: Final = """
    (owner IN (:nobody, :owner) OR NOT EXISTS (
        SELECT 1 FROM owners WHERE owners.owner = requests.owner AND owners.until >= :now))
"""
#: The caller works on the request still: it has the lease that the caller knows of.
_STILL_UNDER: Final = "(:under IS NULL OR requests.lease_id = :under)"


class Requests(Connected):
    """The rows of requests.

    A call that names a lease as ``under`` has no effect once the request has another: its worker
    was taken for dead, and another one has the request.
    """

    # --- Endings, and new beginnings --------------------------------------------------------------

    def fail_request(
        self, request_id: str, *, under: str | None = None, code: str, message: str, now: float
    ) -> bool:
        """Fail a request before CVAT has accepted its data.

        From ``QUEUED``: its waiting lease is ``ABANDONED``, and its idempotency key is free for
        another try, since nothing was done for it; that of a spooled one is not, since its caller
        knows that it is accepted. From ``UPLOADING``: its lease is ``USED`` and its task
        ``FAILED``, since data may have touched it.
        """
        with self.connections.writing() as db:
            row = _fail(db, request_id, under, code, message, untouched=False, now=now)
            if row is None:
                return False
            lease_id, pooled_id = row
            if pooled_id is None:
                end_lease(db, lease_id, LeaseState.ABANDONED)
            else:
                burn_task(db, pooled_id, code, message, now=now)
            return True

    def return_request(
        self, request_id: str, *, under: str | None = None, code: str, message: str, now: float
    ) -> bool:
        """Fail a request before any data was sent: as :meth:`fail_request`, but from
        ``UPLOADING`` its untouched task is ``WARM`` again, its lease ``RELEASED``, and its key
        free like that of a ``QUEUED`` one."""
        with self.connections.writing() as db:
            row = _fail(db, request_id, under, code, message, untouched=True, now=now)
            if row is None:
                return False
            lease_id, pooled_id = row
            if pooled_id is None:
                end_lease(db, lease_id, LeaseState.ABANDONED)
            else:
                _return_task(db, pooled_id, now=now)
                end_lease(db, lease_id, LeaseState.RELEASED)
            return True

    def requeue_request(
        self, request_id: str, *, under: str | None = None, lease_id: str, reason: str, now: float
    ) -> bool:
        """Queue a request that needs another task: ``QUEUED`` from ``UPLOADING`` or ``IMPORTING``,
        with a fresh waiting lease ``lease_id``. The old task is ``FAILED``, the old lease
        ``USED``; one more task is spent. A spooled request has no owner then."""
        with self.connections.writing() as db:
            old = db.one("SELECT pooled_id FROM requests WHERE id = :id", id=request_id)
            if old is None or not db.changed(
                f"""
                INSERT INTO leases (id, template, state, owner, request_id, ttl, payload,
                                    created_at)
                SELECT :fresh, leases.template, 'waiting',
                       CASE WHEN requests.spooled THEN :nobody ELSE requests.owner END,
                       requests.id, leases.ttl, leases.payload, :now
                FROM requests JOIN leases ON leases.id = requests.lease_id
                WHERE requests.id = :id AND requests.state IN ('uploading', 'importing')
                  AND {_STILL_UNDER}
                """,
                id=request_id,
                under=under,
                fresh=lease_id,
                nobody=NOBODY,
                now=now,
            ):
                return False
            db.changed(
                f"""
                UPDATE requests
                SET state = 'queued', lease_id = :fresh, pooled_id = NULL, task_id = NULL,
                    outcome = NULL, handed_out_at = NULL, uploaded_at = NULL, deadline_at = NULL,
                    owner = CASE WHEN spooled THEN :nobody ELSE owner END,
                    tasks_spent = tasks_spent + 1, lost_seconds = lost_seconds + {_lost(db)}
                WHERE id = :id AND state IN ('uploading', 'importing')
                """,
                id=request_id,
                fresh=lease_id,
                nobody=NOBODY,
                now=now,
            )
            burn_task(db, old[0], "", reason, now=now)
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
        forgotten), with their leases, and return them. Each is taken over by one process only.

        Leases that wait without a request, and whose owner is gone, are ``ABANDONED``. Spooled
        requests that CVAT has not accepted yet are left to :meth:`take_spooled`.
        """
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
            adopted = [
                request_of(row)
                for row in db.rows(
                    f"""
                    UPDATE requests {db.using("requests_open")} SET owner = :owner
                    WHERE {OPEN} AND owner <> :owner AND NOT ({SPOOLED})
                      AND NOT EXISTS (SELECT 1 FROM owners
                                      WHERE owners.owner = requests.owner
                                        AND owners.until >= :now)
                    RETURNING {REQUEST}
                    """,
                    owner=owner,
                    now=now,
                )
            ]
            for request in adopted:
                db.changed(
                    "UPDATE leases SET owner = :owner WHERE id = :id",
                    owner=owner,
                    id=request.lease_id,
                )
        return sorted(adopted, key=lambda request: (request.created_at, request.id))

    def warn(self, request_id: str, warning: RequestWarning, *, now: float) -> bool:
        """Add a warning to a request; of each code one."""
        with self.connections.writing() as db:
            return add_warning(db, request_id, warning, now=now)

    # --- The spool --------------------------------------------------------------------------------

    def queue_request(
        self, request_id: str, *, under: str, lease_id: str, most: int | None, now: float
    ) -> RequestRecord | None:
        """Queue a request whose data is in the spool, until it can be served: it is ``QUEUED``
        and has no owner.

        From ``UPLOADING``, when nothing has touched its task: that is ``WARM`` again and the
        lease ``RELEASED``, and the request waits with the fresh lease ``lease_id``. From
        ``QUEUED`` it keeps the lease that it waits with. None when its lease is not ``under``
        (any more), or its state another one.

        :raises pool.errors.QueueFull: ``most`` spooled requests are ``QUEUED`` already; nothing
            has changed.
        """
        with self.connections.writing() as db:
            before = db.one(
                """
                SELECT state, pooled_id FROM requests
                WHERE id = :id AND lease_id = :under AND state IN ('queued', 'uploading')
                """,
                id=request_id,
                under=under,
            )
            if before is None:
                return None
            check_room(db, most)
            if before[0] == RequestState.QUEUED:
                waits_with = under
                _own_waiting_lease(db, under, NOBODY)
            else:
                waits_with = lease_id
                db.changed(
                    """
                    INSERT INTO leases (id, template, state, owner, request_id, ttl, payload,
                                        created_at)
                    SELECT :fresh, template, 'waiting', :nobody, request_id, ttl, payload, :now
                    FROM leases WHERE id = :under
                    """,
                    fresh=lease_id,
                    under=under,
                    nobody=NOBODY,
                    now=now,
                )
            row = db.one(
                f"""
                UPDATE requests
                SET state = 'queued', spooled = :spooled, owner = :nobody, lease_id = :waits_with,
                    pooled_id = NULL, task_id = NULL, outcome = NULL, handed_out_at = NULL,
                    lost_seconds = lost_seconds + {_lost(db)}
                WHERE id = :id AND lease_id = :under AND state IN ('queued', 'uploading')
                RETURNING {REQUEST}
                """,
                id=request_id,
                under=under,
                spooled=True,
                waits_with=waits_with,
                nobody=NOBODY,
                now=now,
            )
            assert row is not None
            if before[0] == RequestState.UPLOADING:
                _return_task(db, before[1], now=now)
                end_lease(db, under, LeaseState.RELEASED)
            return request_of(row)

    def unserved(self, *, owner: str, now: float, each: int) -> Sequence[Unserved]:
        """Return spooled requests that are ``QUEUED`` or ``UPLOADING`` and have no owner, or one
        that is gone, or ``owner`` itself: they are there to be taken. The oldest first, at most
        ``each`` of each template."""
        with self.connections.reading() as db:
            found = db.rows(
                f"""
                SELECT id, template, state, lease_id, created_at FROM (
                    SELECT seq, id, template, state, lease_id, created_at,
                           ROW_NUMBER() OVER (PARTITION BY template ORDER BY seq) AS place
                    FROM requests {db.using("requests_spooled")}
                    WHERE {SPOOLED} AND {_FREE}) AS free
                WHERE place <= :each ORDER BY seq
                """,
                owner=owner,
                nobody=NOBODY,
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
        """Own one of the :meth:`unserved`; None when it is none (any more). Of two processes
        that try, one gets it."""
        with self.connections.writing() as db:
            return _take_spooled(db, request_id, owner, now=now)

    def claim_queued(
        self,
        request_id: str,
        fingerprint: str,
        *,
        older_from: str | None = None,
        owner: str,
        now: float,
    ) -> Handout | None:
        """Own a ``QUEUED`` one of the :meth:`unserved` and claim a warm task for it, as
        :meth:`~pool.store.Store.claim_warm` does: either both happen or nothing does."""
        with self.connections.reading() as db:
            queued = db.one(
                "SELECT lease_id FROM requests WHERE id = :id AND state = 'queued'", id=request_id
            )
            if queued is None or not can_claim(db, queued[0], fingerprint, older_from, now=now):
                return None
        with self.connections.writing() as db:
            request = _take_spooled(db, request_id, owner, now=now)
            if request is None:
                return None
            handout = claim_waiting(db, request.lease_id, fingerprint, older_from, now=now)
            if handout is None:
                # Another one got the task, so the request has no owner again.
                db.changed(
                    "UPDATE requests SET owner = :nobody WHERE id = :id AND state = 'queued'",
                    id=request_id,
                    nobody=NOBODY,
                )
                _own_waiting_lease(db, request.lease_id, NOBODY)
            return handout

    def queue_length(self) -> int:
        """Return how many spooled requests are ``QUEUED``."""
        with self.connections.reading() as db:
            return queue_length(db)

    # --- Looking ----------------------------------------------------------------------------------

    def request(self, request_id: str) -> RequestRecord | None:
        """Return one request."""
        with self.connections.reading() as db:
            row = db.one(f"SELECT {REQUEST} FROM requests WHERE id = :id", id=request_id)
        return request_of(row) if row else None

    def request_by_key(self, idempotency_key: str) -> RequestRecord | None:
        """Return the request that was made under a key."""
        with self.connections.reading() as db:
            row = db.one(
                f"SELECT {REQUEST} FROM requests WHERE idempotency_key = :key", key=idempotency_key
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
            "state = :state": state is not None,
            "template = :template": template is not None,
            "seq < :before": cursor is not None,
        }
        where = " AND ".join(condition for condition, asked in conditions.items() if asked)
        with self.connections.reading() as db:
            found = db.rows(
                f"""
                SELECT seq, {REQUEST} FROM requests {f"WHERE {where}" if where else ""}
                ORDER BY seq DESC LIMIT :limit
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
                    SELECT 1 FROM (SELECT id, uploaded_at FROM requests
                                   ORDER BY seq DESC LIMIT 500) AS latest
                    WHERE id <> :id AND uploaded_at >= :since LIMIT 1
                    """,
                    id=request_id,
                    since=since,
                )
            )

    def task_on_server(self, task_id: int) -> tuple[PooledTask, RequestRecord | None] | None:
        """Return the task that has CVAT's id ``task_id``, in whatever state, with the request that
        it serves, if it serves one."""
        with self.connections.reading() as db:
            row = db.one(
                f"""
                SELECT {columns_of(PooledTask, "named")}, {columns_of(RequestRecord, "requests")}
                FROM (SELECT * FROM tasks {db.using("tasks_on_server")}
                      WHERE task_id = :task_id ORDER BY seq DESC LIMIT 1) AS named
                LEFT JOIN leases ON leases.id = named.lease_id
                LEFT JOIN requests ON requests.id = leases.request_id
                """,
                task_id=task_id,
            )
        return (task_of(row[:TASK_WIDTH]), request_or_none(row[TASK_WIDTH:])) if row else None


# --- Parts of these and other transactions --------------------------------------------------------


def add_warning(db: Connection, request_id: str, warning: RequestWarning, *, now: float) -> bool:
    """Add a warning to a request, unless it has one of the same code."""
    row = db.one("SELECT warnings FROM requests WHERE id = :id", id=request_id)
    warnings = json.loads(row[0]) if row else []
    if row is None or any(known["code"] == warning.code for known in warnings):
        return False
    warnings.append(asdict(warning) | {"text": text(warning.text)})
    return bool(
        db.changed(
            """
            UPDATE requests SET warnings = :warnings, warned_at = :now
            WHERE id = :id AND warnings = :before
            """,
            id=request_id,
            warnings=json.dumps(warnings),
            before=row[0],
            now=now,
        )
    )


def _fail(
    db: Connection,
    request_id: str,
    under: str | None,
    code: str,
    message: str,
    *,
    untouched: bool,
    now: float,
) -> tuple[str, str | None] | None:
    """Fail a request whose data has not been accepted; return its lease and its task, if any."""
    row = db.one(
        f"""
        UPDATE requests
        SET state = 'failed', error_code = :code, error = :message, finished_at = :now,
            idempotency_key =
                CASE WHEN NOT spooled AND (state = 'queued' OR :untouched) THEN NULL
                     ELSE idempotency_key END
        WHERE id = :id AND state IN ('queued', 'uploading') AND {_STILL_UNDER}
        RETURNING lease_id, pooled_id
        """,
        id=request_id,
        under=under,
        code=code,
        message=text(message),
        untouched=untouched,
        now=now,
    )
    return (row[0], row[1]) if row else None


def _take_spooled(
    db: Connection, request_id: str, owner: str, *, now: float
) -> RequestRecord | None:
    row = db.one(
        f"""
        UPDATE requests SET owner = :owner WHERE id = :id AND {SPOOLED} AND {_FREE}
        RETURNING {REQUEST}
        """,
        id=request_id,
        owner=owner,
        nobody=NOBODY,
        now=now,
    )
    if row is None:
        return None
    request = request_of(row)
    _own_waiting_lease(db, request.lease_id, owner)
    return request


def _own_waiting_lease(db: Connection, lease_id: str, owner: str) -> None:
    db.changed(
        "UPDATE leases SET owner = :owner WHERE id = :id AND state = 'waiting'",
        id=lease_id,
        owner=owner,
    )


def _return_task(db: Connection, pooled_id: str, *, now: float) -> None:
    """Make the untouched task of a request warm again."""
    db.changed(
        """
        UPDATE tasks
        SET state = 'warm', lease_id = NULL, warm_at = COALESCE(warm_at, :now), changed_at = :now
        WHERE id = :id AND state = 'leased'
        """,
        id=pooled_id,
        now=now,
    )


def _lost(db: Connection) -> str:
    """The seconds that a failed upload or import took of a request, but for those in which the
    server is held, which :func:`pool.store.schema.server_seconds` counts."""
    ended = db.least(":now", "COALESCE((SELECT since FROM holds WHERE template = ''), :now)")
    return db.greatest("0.0", f"COALESCE({ended} - handed_out_at, 0.0)")


def _after(cursor: str) -> int:
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
        raise InputError(f"{cursor[:40]!r} is not a cursor that an earlier page gave")
    return int(cursor)
