"""Requests: data that callers gave to the pool, from acceptance to the end."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product
from typing import Any, Final

from pool.model import (
    EVERYTHING,
    ImportMember,
    ImportState,
    LeaseRecord,
    LeaseState,
    Priority,
    RequestRecord,
    RequestState,
    RequestWarning,
    Scope,
)
from pool.store.connections import Connected, Connection, listed
from pool.store.handout import (
    DESERTED,
    alive,
    as_json,
    end_lease,
    open_import,
    reason_of,
)
from pool.store.imports import cancel_queued, end_import
from pool.store.records import (
    REQUEST,
    REQUESTS,
    UNOWNED,
    NewRequest,
    Page,
    check_limit,
    cursor_of,
    find,
    record_of,
    select,
    text,
    within,
)
from pool.store.schema import OPEN, UNDER_WAY

#: The condition for the request of a ``:tenant`` with a ``:key``.
BY_KEY: Final = "requests.tenant = :tenant AND requests.idempotency_key = :key"
#: Requests that a page of a search looks through.
SEARCHED: Final = 20_000


#: A condition that rows are alike in a column, and its parameter.
_Condition = tuple[str, dict[str, str]]


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
                hidden = NULL,
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
                  AND (CAST(:expected AS TEXT) IS NULL OR lease_id = :expected)
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
            return cancel_queued(db, request_id, now=now)

    def hide_request(self, request_id: str, *, now: float) -> RequestRecord | None:
        """Have the frames of an ``UPLOADING``, ``IMPORTING`` or ``READY`` request hidden as soon as
        they exist; None for any other. Should its import have to be repeated, it is ``CANCELLED``
        instead. Return the request, which says whether they are ``hidden`` yet."""
        with self.connections.writing() as db:
            if db.changed(
                """
                UPDATE requests SET hidden = 'pending'
                WHERE id = :id AND state IN ('uploading', 'importing', 'ready') AND hidden IS NULL
                """,
                id=request_id,
            ):
                db.changed(
                    """
                    INSERT INTO final_steps (pooled_id, kind, request_id, since, due_at)
                    SELECT imports.pooled_id, 'hide', requests.id, :now, :now
                    FROM requests JOIN imports ON imports.id = requests.import_id
                    WHERE requests.id = :id AND requests.state = 'ready'
                    """,
                    id=request_id,
                    now=now,
                )
            return find(
                db,
                RequestRecord,
                "requests.id = :id AND requests.hidden IS NOT NULL",
                id=request_id,
            )

    def adopt_requests(self, owner: str, *, now: float) -> Sequence[RequestRecord]:
        """Take over all unfinished requests whose owner is gone (not renewed in time, or
        forgotten), with their leases and imports, and return them. Each is taken over by one
        process only.

        Leases that wait without a request, and whose owner is gone, are ``ABANDONED``. Spooled
        requests that CVAT has not accepted yet are left to :meth:`take_spooled`.
        """
        taker = {"owner": owner, "now": now}
        with self.connections.writing() as db:
            db.changed(
                f"""
                UPDATE leases {db.using("leases_waiting")}
                SET state = 'abandoned', idempotency_key = NULL
                WHERE {DESERTED}
                """,
                **taker,
            )
            adopted = db.rows(
                f"""
                UPDATE requests {db.using("requests_open")} SET owner = :owner
                WHERE {OPEN} AND state = 'queued' AND NOT spooled AND owner <> :owner
                  AND NOT {alive("requests.owner")}
                RETURNING lease_id
                """,
                **taker,
            )
            adopted += db.rows(
                f"""
                UPDATE imports {db.using("imports_under_way")} SET owner = :owner
                WHERE {UNDER_WAY} AND owner <> :owner AND NOT {alive("imports.owner")}
                  AND (state = 'importing'
                       OR NOT EXISTS (SELECT 1 FROM requests
                                      WHERE requests.import_id = imports.id AND spooled))
                RETURNING lease_id
                """,
                **taker,
            )
            requests: list[RequestRecord] = []
            for (lease_id,) in adopted:
                db.changed(
                    "UPDATE leases SET owner = :owner WHERE id = :id", owner=owner, id=lease_id
                )
                requests += select(db, RequestRecord, "WHERE requests.lease_id = :id", id=lease_id)
        return sorted(requests, key=lambda each: (each.created_at, each.id))

    def hand_over_imports(self, owner: str) -> Sequence[str]:
        """Leave the imports that CVAT works on, and the process ``owner`` tracks, to others, as
        :meth:`adopt_requests` takes them over. Return the ids of their tasks' rows."""
        with self.connections.writing() as db:
            handed_over = db.rows(
                f"""
                UPDATE imports {db.using("imports_under_way")} SET owner = :unowned
                WHERE {UNDER_WAY} AND state = 'importing' AND owner = :owner
                RETURNING pooled_id
                """,
                owner=owner,
                unowned=UNOWNED,
            )
        return [pooled_id for (pooled_id,) in handed_over]

    def number_frames(self, request_id: str, frame_numbers: Sequence[int | None] | None) -> None:
        """Keep the numbers that the frames of an ``UPLOADING`` request will have, where they are
        no longer those that it was accepted with."""
        with self.connections.writing() as db:
            db.changed(
                """
                UPDATE requests SET frame_numbers = :frame_numbers
                WHERE id = :id AND state = 'uploading'
                """,
                id=request_id,
                frame_numbers=_numbers(frame_numbers),
            )

    def warn(self, request_id: str, warning: RequestWarning, *, now: float) -> bool:
        """Add a warning to a request; of each code one."""
        with self.connections.writing() as db:
            return add_warning(db, request_id, warning, now=now)

    # --- Looking ----------------------------------------------------------------------------------

    def request(self, request_id: str) -> RequestRecord | None:
        """Return one request."""
        with self.connections.reading() as db:
            return find(db, RequestRecord, "requests.id = :id", id=request_id)

    def request_by_key(self, idempotency_key: str, *, tenant: str = "") -> RequestRecord | None:
        """Return the request that a tenant made under a key."""
        with self.connections.reading() as db:
            return find(db, RequestRecord, BY_KEY, key=idempotency_key, tenant=text(tenant))

    def requests(
        self,
        states: Collection[RequestState] = (),
        *,
        template: str | None = None,
        text: str | None = None,
        since: float | None = None,
        scope: Scope = EVERYTHING,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page:
        """Return the newest requests first, a page at a time: those in one of the ``states``, of a
        ``template``, accepted at ``since`` (seconds since the epoch) or later, where these are
        given, of those that a caller sees.

        ``text`` is a part of its id, its name, its stream or the name of one of its files, in upper
        or lower case. A page looks through :data:`SEARCHED` requests for it at most, so that one
        with fewer than ``limit`` may have a next one, too.

        :raises pool.errors.InputError: no page gave such a cursor, or ``limit`` is below 1.
        """
        check_limit(limit)
        conditions = ["seq >= :oldest"]
        wanted: dict[str, Any] = {"oldest": 0}
        if template is not None:
            conditions.append("template = :template")
            wanted["template"] = template
        if cursor is not None:
            conditions.append("seq < :before")
            wanted["before"] = cursor_of(cursor)
        looked_to: int | None = None
        of_states = _each("state", states)
        # Of a tenant, its own rows are looked through.
        of_templates = [] if scope.tenant else _each("template", scope.templates)
        seen, own = within(scope if scope.tenant else replace(scope, templates=frozenset()))
        conditions += [seen.removeprefix(" AND ")] if seen else []
        wanted |= own
        alike = [*product(of_states or [("", {})], of_templates or [("", {})])]
        with self.connections.reading() as db:
            if since is not None:
                # From an index: no older row is read.
                wanted["oldest"] = _first_since(db, since)
                conditions.append("created_at >= :since")
                wanted["since"] = since
            if text is not None:
                looked_to = _looked_to(db, alike, conditions, wanted)
                wanted["oldest"] = max(wanted["oldest"], looked_to or 0)
                conditions.append("sought LIKE :text ESCAPE '!'")
                wanted["text"] = _containing(text)
            newest, named = _newest(alike, conditions)
            found = db.rows(
                f"""
                SELECT requests.seq, {REQUEST} FROM {REQUESTS} WHERE requests.seq IN ({newest})
                ORDER BY requests.seq DESC LIMIT :limit
                """,
                **wanted,
                **named,
                # One more than asked for tells whether there is another page.
                limit=limit + 1,
                skipped=0,
            )
        page = found[:limit]
        last = page[-1][0] if len(found) > limit else looked_to
        return Page(
            requests=tuple(record_of(RequestRecord, row[1:]) for row in page),
            next_cursor=None if last is None else str(last),
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

    def unfinished(self, request_ids: Collection[str]) -> frozenset[str]:
        """Return those of the requests that are not finished."""
        marks, wanted = listed(request_ids)
        with self.connections.reading() as db:
            found = db.rows(f"SELECT id FROM requests WHERE id IN ({marks}) AND {OPEN}", **wanted)
        return frozenset(request_id for (request_id,) in found)

    def queued(self) -> Mapping[str, int]:
        """Return how many requests are ``QUEUED``, spooled or not, by template."""
        with self.connections.reading() as db:
            return dict(
                db.rows("""
                    SELECT template, CAST(SUM(queued) AS INTEGER) FROM queues
                    WHERE queued > 0 GROUP BY template
                """)
            )

    def oldest_waiting(self) -> Mapping[str, float]:
        """Return since when the oldest of the ``QUEUED`` requests and of the leases without one
        that wait has waited, by template."""
        with self.connections.reading() as db:
            found = db.rows(
                f"""
                SELECT template, (SELECT created_at FROM requests {db.using("requests_open")}
                                  WHERE {OPEN} AND state = 'queued'
                                    AND requests.template = waiting.template
                                  ORDER BY seq LIMIT 1)
                FROM (SELECT DISTINCT template FROM queues WHERE queued > 0) AS waiting
                UNION ALL
                SELECT template, MIN(created_at) FROM leases {db.using("leases_waiting")}
                WHERE state = 'waiting' AND request_id IS NULL GROUP BY template
                """
            )
        oldest: dict[str, float] = {}
        for template, since in found:
            if since is not None:
                oldest[template] = min(since, oldest.get(template, since))
        return oldest

    def queued_by_priority(self) -> Mapping[str, Mapping[Priority, int]]:
        """Return how many requests are ``QUEUED``, by template and priority."""
        found: dict[str, dict[Priority, int]] = {}
        with self.connections.reading() as db:
            for template, level, count in db.rows(
                """
                SELECT template, priority, CAST(SUM(queued) AS INTEGER) FROM queues
                WHERE queued > 0 GROUP BY template, priority
                """
            ):
                found.setdefault(template, {})[tuple(Priority)[level]] = count
        return found

    def in_flight(self, *, scope: Scope = EVERYTHING) -> int:
        """Return how many requests are ``UPLOADING`` or ``IMPORTING``, of all processes: the
        foreground; of those that a caller sees."""
        seen, wanted = within(scope)
        with self.connections.reading() as db:
            return db.number(
                f"""
                SELECT COUNT(*) FROM requests {db.using("requests_open")}
                WHERE {OPEN} AND state IN ('uploading', 'importing') {seen}
                """,
                **wanted,
            )

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


def accept_request(
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
    import_id = None
    if lease.pooled_id is not None:
        import_id = open_import(
            db,
            lease,
            owner=lease.owner,
            size=request.size,
            members=[
                ImportMember(
                    request_id=request.id,
                    files=request.given or request.files,
                    names=request.files,
                )
            ],
            grouped=request.group_key is not None,
            priority=request.priority,
        )
    db.later(
        """
        INSERT INTO requests
            (id, template, tenant, state, owner, lease_id, import_id, name, assignee, files, given,
             frame_numbers, size, payload, idempotency_key, created_at, spooled, group_key,
             priority, served, no_slot, stream, sought, patient, spool)
        VALUES
            (:id, :template, :tenant, :state, :owner, :lease_id, :import_id, :name, :assignee,
             :files, :given, :frame_numbers, :size, :payload, :idempotency_key, :now, :spooled,
             :group_key, :priority, :served, :no_slot, :stream, :sought, :patient, :spool)
        """,
        id=request.id,
        template=lease.template,
        tenant=text(request.tenant),
        state=RequestState.UPLOADING if import_id else RequestState.QUEUED,
        owner=lease.owner,
        lease_id=lease.id,
        import_id=import_id,
        name=None if request.name is None else text(request.name),
        assignee=None if request.assignee is None else text(str(request.assignee)),
        files=as_json(request.files),
        given=None if request.given in (None, request.files) else json.dumps(request.given),
        frame_numbers=_numbers(request.frame_numbers),
        size=request.size,
        payload=payload,
        idempotency_key=idempotency_key,
        spooled=request.spooled,
        patient=request.spooled and import_id is None,
        group_key=request.group_key,
        priority=request.priority.level,
        served=served,
        no_slot=text(request.no_slot),
        stream=None if request.stream is None else text(request.stream),
        spool=request.spool,
        sought=_sought(request),
        now=now,
    )
    accepted = find(db, RequestRecord, "requests.id = :id", id=request.id)
    assert accepted is not None
    return accepted


def _numbers(frame_numbers: Sequence[int | None] | None) -> str | None:
    return None if frame_numbers is None else json.dumps(frame_numbers)


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


def _each(column: str, values: Collection[str]) -> list[_Condition]:
    """Return a condition for each of the values that a column may have."""
    return [
        (f"{column} = :{column}{number}", {f"{column}{number}": value})
        for number, value in enumerate(dict.fromkeys(values))
    ]


def _newest(
    alike: Sequence[Sequence[_Condition]], conditions: Sequence[str]
) -> tuple[str, dict[str, str]]:
    """Return a query for the ``:limit`` newest requests after ``:skipped``, with its parameters:
    by ``seq`` alone, of each that are ``alike``, since only these are in order in an index."""
    named: dict[str, str] = {}
    queries = []
    for each in alike:
        which = [condition for condition, _ in each if condition]
        for _, values in each:
            named |= values
        queries.append(f"""
            SELECT seq FROM (
                SELECT seq FROM requests WHERE {" AND ".join([*which, *conditions])}
                ORDER BY seq DESC LIMIT :limit OFFSET :skipped) AS newest
        """)
    return " UNION ALL ".join(queries), named


def _first_since(db: Connection, since: float) -> int:
    """Return the number of the first request that was accepted since then, or one that none has."""
    # An expression, since for the column itself planners read all rows in its order.
    return db.number(
        f"""
        SELECT COALESCE(MIN(seq + 0), :none) FROM requests {db.using("requests_by_time")}
        WHERE created_at >= :since
        """,
        since=since,
        none=2**62,
    )


def _looked_to(
    db: Connection,
    alike: Sequence[Sequence[_Condition]],
    conditions: Sequence[str],
    wanted: Mapping[str, Any],
) -> int | None:
    """Return the last request that a page of a search looks at, or None where that is all."""
    newest, named = _newest(alike, conditions)
    row = db.one(
        f"SELECT MAX(seq) FROM ({newest}) AS last",
        **wanted,
        **named,
        limit=1,
        skipped=SEARCHED - 1,
    )
    return row[0] if row else None


def _containing(part: str) -> str:
    """Return the pattern of what contains a text."""
    return f"%{re.sub('[!%_]', lambda found: f'!{found[0]}', text(part.casefold()))}%"


def _sought(request: NewRequest) -> str:
    """Return what a search looks through: each name once."""
    names = (request.id, request.name, request.stream, *(request.given or ()), *request.files)
    return text("\n".join(name for name in dict.fromkeys(names) if name).casefold())
