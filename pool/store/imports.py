"""Imports: data on its way into tasks, and the jobs that CVAT makes of it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from pool.model import (
    ImportMember,
    ImportRecord,
    ImportState,
    Job,
    LearnedPace,
    LeaseState,
    Outcome,
    PooledTask,
    RequestRecord,
    RequestState,
    new_id,
)
from pool.store.connections import Connected, Connection, listed
from pool.store.demand import count_hand_out
from pool.store.handout import (
    HELD,
    burn_task,
    end_lease,
    place_in_line,
    reason_of,
    return_task,
)
from pool.store.records import UNOWNED, find, names_of, select, text
from pool.store.schema import UNDER_WAY

#: Fields of an import that are no columns of its table.
_MEMBERS: Final = ("members", "spooled", "imports_used")
_CONCURRENCY: Final = "import_concurrency"
_COLUMNS: Final = tuple(name for name in names_of(ImportRecord) if name not in _MEMBERS)
#: Seconds for which the process that served a request is left to name and assign its task.
FINAL_GRACE: Final = 30.0


class Imports(Connected):
    """The rows of imports and their members, and of jobs.

    An import is made with the hand-out of its task: see :meth:`~pool.store.Store.open_lease`,
    :meth:`~pool.store.Store.claim_warm` and :meth:`~pool.store.Store.claim_queued`.
    """

    def import_record(self, import_id: str) -> ImportRecord | None:
        """Return one import, with its members in order."""
        with self.connections.reading() as db:
            return _import(db, "id = :id", id=import_id)

    def task_on_server(self, task_id: int) -> tuple[PooledTask, ImportRecord | None] | None:
        """Return the task that has CVAT's id ``task_id``, in whatever state, with the import of its
        lease; None for that while nothing is sent, and when its caller uploads."""
        with self.connections.reading() as db:
            tasks = select(
                db,
                PooledTask,
                f"""
                {db.using("tasks_on_server")}
                WHERE task_id = :task_id AND carrier_id IS NULL ORDER BY seq DESC LIMIT 1
                """,
                task_id=task_id,
            )
            if not tasks:
                return None
            return tasks[0], _import(db, "lease_id = :lease_id", lease_id=tasks[0].lease_id)

    def begin_import(
        self,
        import_id: str,
        *,
        deadline: float,
        frames: Collection[str] | None = None,
        now: float,
    ) -> bool:
        """Note that CVAT has accepted the data: import, requests and task are ``IMPORTING``, the
        lease ``USED``. No effect on an import that is not ``UPLOADING`` (any more).

        With ``frames`` it only seems so, and the import stays in doubt: these are the names that
        the frames may have if the data has arrived.
        """
        with self.connections.writing() as db:
            row = db.one(
                """
                UPDATE imports
                SET state = 'importing', uploaded_at = :now, deadline_at = :deadline,
                    frames = :frames
                WHERE id = :id AND state = 'uploading'
                RETURNING lease_id
                """,
                id=import_id,
                deadline=deadline,
                frames=None if frames is None else json.dumps(sorted(frames)),
                now=now,
            )
            if row is None:
                return False
            _serve(db, import_id, RequestState.IMPORTING, now=now)
            db.changed(
                """
                UPDATE tasks SET state = 'importing', changed_at = :now
                WHERE lease_id = :lease_id AND state = 'leased'
                """,
                lease_id=row[0],
                now=now,
            )
            end_lease(db, row[0], LeaseState.USED)
            return True

    def expect_frames(self, import_id: str, frames: Collection[str]) -> None:
        """Keep the names that the frames of an ``UPLOADING`` import may have, where those of its
        files do not say it: for the process that takes it over, should this one die."""
        with self.connections.writing() as db:
            db.changed(
                "UPDATE imports SET frames = :frames WHERE id = :id AND state = 'uploading'",
                id=import_id,
                frames=json.dumps(sorted(frames)),
            )

    def begin_foreign_import(self, lease_id: str, *, now: float) -> bool:
        """Note that a caller uploads by itself: the task is ``IMPORTING``, the lease ``USED``."""
        with self.connections.writing() as db:
            if not db.changed(
                f"""
                UPDATE tasks SET state = 'importing', changed_at = :now
                WHERE lease_id = :lease_id AND state = 'leased' AND {HELD}
                """,
                lease_id=lease_id,
                now=now,
            ):
                return False
            end_lease(db, lease_id, LeaseState.USED)
            return True

    def complete_import(
        self,
        pooled_id: str,
        jobs: Sequence[Job],
        *,
        verified: bool = False,
        divided: bool = False,
        now: float,
    ) -> bool:
        """Keep the jobs of a task, which is ``READY`` from ``IMPORTING`` or ``LEASED``, its lease
        ``USED``; its import and the members of that (``IMPORTING`` or ``UPLOADING``) are ``READY``
        too. A job goes to the member whose frames it begins with.

        No effect while it is in doubt whether the import's data has arrived (``UPLOADING``, or
        begun with ``frames``), unless the frames of the jobs are ``verified`` to be the import's.

        Being imported is what lies between uploading and ready, even when it was never written
        down. A name for the task is left to do, and for each member that has an assignee the
        assignment of its jobs, due :data:`FINAL_GRACE` later: until then the process that served
        it does them. With ``divided`` the jobs of all others are to be assigned, too: the template
        has assignees, see :meth:`divide_jobs`.
        """
        with self.connections.writing() as db:
            row = db.one(
                """
                UPDATE tasks SET state = 'ready', changed_at = :now
                WHERE id = :id AND state IN ('leased', 'importing')
                  AND (:verified OR NOT EXISTS (
                      SELECT 1 FROM imports
                      WHERE imports.lease_id = tasks.lease_id
                        AND (imports.state = 'uploading' OR imports.frames IS NOT NULL)))
                RETURNING lease_id
                """,
                id=pooled_id,
                verified=verified,
                now=now,
            )
            if row is None:
                return False
            lease_id = row[0]
            members = _complete_members(db, lease_id, now=now)
            end_lease(db, lease_id, LeaseState.USED)
            for job in jobs:
                db.changed(
                    """
                    INSERT INTO jobs (pooled_id, id, request_id, url, start_frame, stop_frame,
                                      assignee)
                    VALUES (:pooled_id, :id, :request_id, :url, :start_frame, :stop_frame,
                            :assignee)
                    """,
                    pooled_id=pooled_id,
                    id=job.id,
                    request_id=member_of(job, members),
                    url=job.url,
                    start_frame=job.start_frame,
                    stop_frame=job.stop_frame,
                    assignee=job.assignee,
                )
            _leave_steps(db, pooled_id, members, divided=divided, now=now)
            return True

    def fail_import(
        self, pooled_id: str, *, lease_id: str | None = None, code: str, message: str, now: float
    ) -> bool:
        """Burn a task: it is ``FAILED`` from ``IMPORTING`` or ``LEASED``, its lease ``USED``. Its
        import has ``FAILED``, and so have its members, with ``code`` and ``message``. With a
        ``lease_id`` no effect once the task has another lease, whose data is then in it."""
        with self.connections.writing() as db:
            reason = reason_of(code, message)
            if not burn_task(db, pooled_id, reason, lease_id=lease_id, now=now):
                return False
            ended = db.rows(
                f"""
                UPDATE imports SET state = 'failed', finished_at = :now
                WHERE pooled_id = :id AND {UNDER_WAY}
                RETURNING id
                """,
                id=pooled_id,
                now=now,
            )
            for (import_id,) in ended:
                db.changed(
                    f"""
                    UPDATE requests {db.using("requests_of_import")}
                    SET state = 'failed', error_code = :code, error = :message, finished_at = :now,
                        hidden = NULL
                    WHERE import_id = :id AND state IN ('uploading', 'importing')
                    """,
                    id=import_id,
                    code=code,
                    message=text(message),
                    now=now,
                )
            return True

    def requeue_import(self, import_id: str, *, reason: str, now: float) -> Sequence[RequestRecord]:
        """Give the members of an import another task: they are ``QUEUED`` from ``UPLOADING`` or
        ``IMPORTING``, each with a fresh waiting lease, and have used up one import more. The import
        has ``FAILED``, its task too, the old lease is ``USED``. A spooled request has no owner
        then. Return the members, in order; none when the import has ended."""
        with self.connections.writing() as db:
            queued = queue_members(db, import_id, ImportState.FAILED, reason=reason, now=now)
            found = [
                find(db, RequestRecord, "requests.id = :id", id=request_id) for request_id in queued
            ]
        return [request for request in found if request is not None]

    def split_import(
        self,
        import_id: str,
        parts: Sequence[Sequence[str]],
        *,
        alone: bool = False,
        untouched: bool = False,
        reason: str,
        now: float,
    ) -> bool:
        """Give the members of an import that has failed other tasks, in ``parts``, each the ids of
        requests that may go together from now on, and with no others; with ``alone`` each goes by
        itself, as one without a ``group_key``. All are ``QUEUED`` again, as
        by :meth:`requeue_import`, but have used up no import more: one of them only need be the
        cause. The import has ``FAILED`` and its task too; if that is ``untouched``, the import is
        ``RETURNED`` and the task ``WARM`` again. False when the import has ended."""
        keys = {
            request_id: None if alone else key
            for part in parts
            for key in [new_id(now)]
            for request_id in part
        }
        state = ImportState.RETURNED if untouched else ImportState.FAILED
        with self.connections.writing() as db:
            return bool(queue_members(db, import_id, state, reason=reason, keys=keys, now=now))

    def members_of(self, import_id: str) -> Sequence[RequestRecord]:
        """Return the requests that an import is for, in the order of their frames."""
        with self.connections.reading() as db:
            return select(
                db,
                RequestRecord,
                """
                JOIN import_members ON import_members.request_id = requests.id
                                   AND import_members.import_id = requests.import_id
                WHERE requests.import_id = :id ORDER BY import_members.position
                """,
                id=import_id,
            )

    def group_sizes(self, *, since: float, limit: int) -> Mapping[str, Sequence[int]]:
        """Return how many requests each of the latest imports has had that are ready since a
        moment, by template; at most the latest ``limit`` imports, the oldest first."""
        with self.connections.reading() as db:
            found = db.rows(
                f"""
                SELECT template, (SELECT MAX(position) + 1 FROM import_members
                                  WHERE import_id = latest.id)
                FROM (SELECT id, template, state FROM imports {db.using("imports_ended")}
                      WHERE finished_at IS NOT NULL AND finished_at >= :since
                      ORDER BY finished_at DESC LIMIT :limit) AS latest
                WHERE state = 'ready'
                """,
                since=since,
                limit=limit,
            )
        sizes: dict[str, list[int]] = {}
        for template, size in reversed(found):
            sizes.setdefault(template, []).append(size or 0)
        return sizes

    def jobs_of(self, pooled_id: str, *, request_id: str | None = None) -> Sequence[Job]:
        """Return the jobs of a ready task, by id, or those of one request; empty before that."""
        with self.connections.reading() as db:
            found = db.rows(
                """
                SELECT id, url, start_frame, stop_frame, assignee FROM jobs
                WHERE pooled_id = :id
                  AND (CAST(:request_id AS TEXT) IS NULL OR request_id = :request_id)
                ORDER BY id
                """,
                id=pooled_id,
                request_id=request_id,
            )
        return [_job_of(*row) for row in found]

    def jobs_of_requests(self, requests: Collection[RequestRecord]) -> Mapping[str, Sequence[Job]]:
        """Return the jobs of those of the requests that have any, by the requests' ids."""
        tasks, wanted = listed({request.pooled_id for request in requests if request.pooled_id})
        ids = {request.id for request in requests}
        found: dict[str, list[Job]] = {}
        with self.connections.reading() as db:
            for request_id, *job in db.rows(
                f"""
                SELECT request_id, id, url, start_frame, stop_frame, assignee FROM jobs
                WHERE pooled_id IN ({tasks}) ORDER BY pooled_id, id
                """,
                **wanted,
            ):
                if request_id in ids:
                    found.setdefault(request_id, []).append(_job_of(*job))
        return found

    # --- What was learned of imports --------------------------------------------------------------

    def import_concurrency(self) -> int | None:
        """Return how many imports at a time the server takes, as it was kept by
        :meth:`adapt_import_concurrency`; None while nothing was."""
        with self.connections.reading() as db:
            row = db.one("SELECT value FROM meta WHERE key = :key", key=_CONCURRENCY)
        return None if row is None else int(row[0])

    def adapt_import_concurrency(self, before: int | None, after: int) -> bool:
        """Keep how many imports at a time the server takes; False, and nothing has changed, where
        what was kept is not ``before`` (any more)."""
        with self.connections.writing() as db:
            row = db.one("SELECT value FROM meta WHERE key = :key", key=_CONCURRENCY)
            if (None if row is None else int(row[0])) != before:
                return False
            db.upsert("meta", {"key": _CONCURRENCY, "value": str(after)}, key="key")
            return True

    def learned_paces(self) -> Mapping[str, LearnedPace]:
        """Return what was kept by :meth:`learn_paces`, by size class."""
        with self.connections.reading() as db:
            found = db.rows("SELECT name, first, imports, seen FROM paces")
        return {
            name: LearnedPace(first=first, imports=imports, seen=tuple(json.loads(seen)))
            for name, first, imports, seen in found
        }

    def learn_paces(self, paces: Mapping[str, LearnedPace]) -> None:
        """Keep what was learned of import times, each in place of what was kept before."""
        with self.connections.writing() as db:
            for name, pace in paces.items():
                row = {
                    "name": text(name),
                    "first": pace.first,
                    "imports": pace.imports,
                    "seen": json.dumps(pace.seen),
                }
                db.upsert("paces", row, key="name")


# --- Parts of these transactions ------------------------------------------------------------------


def cancel_queued(db: Connection, request_id: str, condition: str = "TRUE", *, now: float) -> bool:
    """Cancel a ``QUEUED`` request that meets a condition; its waiting lease is ``ABANDONED``."""
    row = db.one(
        f"""
        UPDATE requests SET state = 'cancelled', hidden = NULL, finished_at = :now
        WHERE id = :id AND state = 'queued' AND {condition}
        RETURNING lease_id
        """,
        id=request_id,
        now=now,
    )
    if row is None:
        return False
    end_lease(db, row[0], LeaseState.ABANDONED)
    return True


def end_import(
    db: Connection, import_id: str, state: ImportState, *, reason: str = "", now: float
) -> None:
    """End an import that is under way: ``FAILED``, which burns its task, or ``RETURNED``, when
    nothing has touched that, which is warm again."""
    row = db.one(
        f"""
        UPDATE imports SET state = :state, finished_at = :now
        WHERE id = :id AND {UNDER_WAY}
        RETURNING pooled_id, lease_id
        """,
        id=import_id,
        state=state,
        now=now,
    )
    if row is None:
        return
    pooled_id, lease_id = row
    if state is ImportState.FAILED:
        burn_task(db, pooled_id, reason, now=now)
        return
    return_task(db, lease_id, state=LeaseState.RELEASED, now=now)


def queue_members(
    db: Connection,
    import_id: str,
    state: ImportState,
    *,
    reason: str = "",
    spool: str | None = None,
    keys: Mapping[str, str | None] | None = None,
    now: float,
) -> list[str]:
    """End an import and queue its members again, each with a fresh lease; return their ids, in
    order. A member of a ``failed`` one has used up one import more, unless the members have new
    group ``keys``, by request. A spooled one has no owner then, nor has any other
    with ``spool``, the id of the spool where its data is. One whose
    frames were to be hidden is ``CANCELLED`` instead."""
    members = db.rows(
        """
        SELECT requests.id, requests.spooled, requests.payload, imports.owner,
               imports.handed_out_at, leases.ttl, leases.template, leases.fingerprint,
               leases.reusable_origin, requests.tenant
        FROM imports
        JOIN leases ON leases.id = imports.lease_id
        JOIN import_members ON import_members.import_id = imports.id
        JOIN requests ON requests.id = import_members.request_id
        WHERE imports.id = :id AND imports.state IN ('uploading', 'importing')
          AND requests.import_id = imports.id
        ORDER BY import_members.position
        """,
        id=import_id,
    )
    for request_id, spooled, payload, owner, handed_out_at, ttl, template, *suits in members:
        waiter = {
            "id": request_id,
            "fresh": new_id(now),
            "owner": UNOWNED if spooled or spool is not None else owner,
            "now": now,
        }
        db.changed(
            f"""
            INSERT INTO leases (id, template, tenant, state, owner, request_id, fingerprint,
                                reusable_origin, ttl, payload, created_at, place)
            VALUES (:fresh, :template, :tenant, 'waiting', :owner, :id, :fingerprint,
                    :reusable_origin, :ttl, :payload, :now, {place_in_line(db)})
            """,
            **waiter,
            template=template,
            fingerprint=suits[0],
            reusable_origin=suits[1],
            tenant=suits[2],
            ttl=ttl,
            payload=payload,
        )
        # What a failed upload or import took is lost, but for the seconds in which the server is
        # held, which are counted as held_seconds (pool.store.schema).
        ended = db.least(":now", "COALESCE((SELECT since FROM holds WHERE template = ''), :now)")
        db.changed(
            f"""
            UPDATE requests
            SET state = 'queued', lease_id = :fresh, import_id = NULL, owner = :owner,
                files_in_group = NULL, first_frame = 0, spooled = :spooled, patient = :patient,
                spool = CASE WHEN spooled THEN spool ELSE :spool END,
                group_key = CASE WHEN :regrouped THEN CAST(:group_key AS TEXT) ELSE group_key END,
                imports_used = imports_used + :used,
                lost_seconds = lost_seconds + {db.greatest("0.0", f"{ended} - :handed_out_at")}
            WHERE id = :id AND state IN ('uploading', 'importing')
            """,
            **waiter,
            spooled=bool(spooled or spool is not None),
            spool=spool or "",
            patient=False,
            used=int(state is ImportState.FAILED and keys is None),
            regrouped=keys is not None,
            group_key=(keys or {}).get(request_id),
            handed_out_at=handed_out_at,
        )
    if members:
        end_import(db, import_id, state, reason=reason, now=now)
    for request_id, *_ in members:
        cancel_queued(db, request_id, "hidden IS NOT NULL", now=now)
    return [request_id for request_id, *_ in members]


def member_of(job: Job, members: Sequence[ImportMember]) -> str | None:
    """Return the request that a job belongs to: the member whose frames it begins with. CVAT
    numbers frames in the order of the names; a member alone has all of them, since its one file
    may be a video or an archive."""
    first = 0
    for member in members[:-1]:
        first += len(member.names)
        if job.start_frame < first:
            return member.request_id
    return members[-1].request_id if members else None


def complete_slot(db: Connection, slot_id: str, lease_id: str, *, now: float) -> str | None:
    """Make the import into a slot ready, with its one request, which is returned; its job, which
    was there before, is the request's from now on."""
    members = _complete_members(db, lease_id, now=now)
    end_lease(db, lease_id, LeaseState.USED)
    if not members:
        return None
    request_id = members[0].request_id
    db.later(
        "UPDATE jobs SET request_id = :request_id WHERE pooled_id = :id",
        id=slot_id,
        request_id=request_id,
    )
    db.later(
        """
        INSERT INTO final_steps (pooled_id, kind, request_id, since, due_at)
        SELECT :id, 'hide', id, :now, :now FROM requests
        WHERE id = :request_id AND hidden IS NOT NULL
        """,
        id=slot_id,
        request_id=request_id,
        now=now,
    )
    return request_id


def _complete_members(db: Connection, lease_id: str, *, now: float) -> list[ImportMember]:
    """Make the import of a lease ready, if it has one, and return its members."""
    row = db.one(
        f"""
        UPDATE imports
        SET state = 'ready', uploaded_at = COALESCE(uploaded_at, :now), finished_at = :now
        WHERE lease_id = :lease_id AND {UNDER_WAY}
        RETURNING id
        """,
        lease_id=lease_id,
        now=now,
    )
    if row is None:
        return []
    import_id = row[0]
    _serve(db, import_id, RequestState.READY, now=now)
    members = db.rows(
        """
        SELECT request_id, files, names FROM import_members WHERE import_id = :id
        ORDER BY position
        """,
        id=import_id,
    )
    return [_member_of(*member) for member in members]


def _leave_steps(
    db: Connection,
    pooled_id: str,
    members: Sequence[ImportMember],
    *,
    divided: bool,
    now: float,
) -> None:
    """Leave a name for a ready task, that of its first member, and for each member the assignment
    of its jobs, if it has an assignee, or with ``divided``; and the hiding of its frames, if that
    is wanted."""
    left = {"pooled_id": pooled_id, "now": now, "due_at": now + FINAL_GRACE}
    db.changed(
        """
        INSERT INTO final_steps (pooled_id, kind, request_id, since, due_at)
        VALUES (:pooled_id, 'name', :request_id, :now, :due_at)
        """,
        **left,
        request_id=members[0].request_id if members else "",
    )
    for member in members:
        db.changed(
            """
            INSERT INTO final_steps (pooled_id, kind, request_id, since, due_at)
            SELECT :pooled_id, 'assign', id, :now, :due_at FROM requests
            WHERE id = :request_id AND state = 'ready' AND (:divided OR assignee IS NOT NULL)
            UNION ALL
            SELECT :pooled_id, 'hide', id, :now, :due_at FROM requests
            WHERE id = :request_id AND state = 'ready' AND hidden IS NOT NULL
            """,
            **left,
            request_id=member.request_id,
            divided=divided,
        )
    if divided and not members:
        db.changed(
            """
            INSERT INTO final_steps (pooled_id, kind, request_id, since, due_at)
            VALUES (:pooled_id, 'assign', '', :now, :due_at)
            """,
            **left,
        )


def _serve(db: Connection, import_id: str, state: RequestState, *, now: float) -> None:
    """Move the members of an import to a state in which CVAT has their data, so that their callers
    are served; count the hand-out of each, once."""
    unserved = db.rows(
        """
        SELECT requests.template, imports.outcome
        FROM requests JOIN imports ON imports.id = requests.import_id
        WHERE requests.import_id = :id AND NOT requests.served
        """,
        id=import_id,
    )
    for place, (template, outcome) in enumerate(unserved):
        count_hand_out(db, template, Outcome(outcome), of_task=place == 0, now=now)
    if unserved:
        db.changed(
            """
            UPDATE leases SET served = :served
            WHERE id = (SELECT lease_id FROM imports WHERE id = :id)
            """,
            id=import_id,
            served=True,
        )
    db.changed(
        f"""
        UPDATE requests {db.using("requests_of_import")}
        SET state = :state, served = :served, finished_at = :finished_at, failures = '[]'
        WHERE import_id = :id AND state IN ('uploading', 'importing')
        """,
        id=import_id,
        state=state,
        served=True,
        finished_at=now if state.finished else None,
    )


def _import(db: Connection, which: str, **wanted: Any) -> ImportRecord | None:
    row = db.one(f"SELECT {', '.join(_COLUMNS)} FROM imports WHERE {which}", **wanted)
    if row is None:
        return None
    values: dict[str, Any] = dict(zip(_COLUMNS, row, strict=True))
    values["state"] = ImportState(values["state"])
    values["outcome"] = Outcome(values["outcome"])
    values["grouped"] = bool(values["grouped"])
    if values["frames"] is not None:
        values["frames"] = tuple(json.loads(values["frames"]))
    members = db.rows(
        """
        SELECT import_members.request_id, import_members.files, import_members.names,
               requests.spooled, requests.imports_used
        FROM import_members LEFT JOIN requests ON requests.id = import_members.request_id
        WHERE import_members.import_id = :id
        ORDER BY import_members.position
        """,
        id=values["id"],
    )
    return ImportRecord(
        **values,
        members=tuple(_member_of(*member[:3]) for member in members),
        # A member that was pruned is NULL: it is not sent again.
        spooled=all(spooled for *_, spooled, _ in members),
        imports_used=max((used or 0 for *_, used in members), default=0),
    )


def _job_of(id: int, url: str, start_frame: int, stop_frame: int, assignee: str | None) -> Job:
    return Job(id=id, url=url, start_frame=start_frame, stop_frame=stop_frame, assignee=assignee)


def _member_of(request_id: str, files: str, names: str) -> ImportMember:
    return ImportMember(
        request_id=request_id, files=tuple(json.loads(files)), names=tuple(json.loads(names))
    )
