"""Imports: data on its way into tasks, the jobs that CVAT makes of it, and what is left to do
then."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pool.model import (
    FinalKind,
    FinalStep,
    Job,
    LearnedPace,
    LeaseState,
    Outcome,
    PooledTask,
    RequestRecord,
    RequestWarning,
)
from pool.store.connections import Connected, Connection, Row
from pool.store.leases import burn_task, count_hand_out, end_lease
from pool.store.records import (
    TASK_WIDTH,
    columns_of,
    request_of,
    request_or_none,
    task_of,
    text,
)
from pool.store.requests import add_warning
from pool.store.schema import OPEN

#: Seconds for which the process that served a request is left to name and assign its task.
FINAL_GRACE: Final = 30.0


class Imports(Connected):
    """The rows of data on its way, of jobs, and of the steps that are left for ready tasks."""

    def begin_import(
        self, request_id: str, *, under: str | None = None, deadline: float, now: float
    ) -> bool:
        """CVAT has accepted the data: request and task are ``IMPORTING``, the lease ``USED``.

        No effect once the request has another lease than ``under``: see
        :class:`pool.store.requests.Requests`.
        """
        with self.connections.writing() as db:
            still_uploading = """state = 'uploading'
                AND (:under IS NULL OR requests.lease_id = :under)"""
            _serve(db, f"id = :id AND {still_uploading}", now=now, id=request_id, under=under)
            row = db.one(
                f"""
                UPDATE requests
                SET state = 'importing', served = :served, uploaded_at = :now,
                    deadline_at = :deadline
                WHERE id = :id AND {still_uploading}
                RETURNING lease_id
                """,
                id=request_id,
                under=under,
                served=True,
                deadline=deadline,
                now=now,
            )
            if row is None:
                return False
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

    def begin_foreign_import(self, lease_id: str, *, now: float) -> bool:
        """A caller's own upload was noticed: the task is ``IMPORTING``, the lease ``USED``."""
        with self.connections.writing() as db:
            if not db.changed(
                """
                UPDATE tasks SET state = 'importing', changed_at = :now
                WHERE lease_id = :lease_id AND state = 'leased'
                  AND EXISTS (SELECT 1 FROM leases
                              WHERE id = :lease_id AND state = 'active' AND request_id IS NULL)
                """,
                lease_id=lease_id,
                now=now,
            ):
                return False
            end_lease(db, lease_id, LeaseState.USED)
            return True

    def complete_import(self, pooled_id: str, jobs: Sequence[Job], *, now: float) -> bool:
        """The jobs exist: the task is ``READY`` from ``IMPORTING`` or ``LEASED``, its lease
        ``USED``, its requests (``IMPORTING`` or ``UPLOADING``) ``READY``; the jobs are kept.

        Being imported is what lies between uploading and ready, even when it was never written
        down. A name for the task is left to do, and an assignment where the request has an
        assignee, due :data:`FINAL_GRACE` later: until then the process that served it does them.
        """
        with self.connections.writing() as db:
            row = db.one(
                """
                UPDATE tasks SET state = 'ready', changed_at = :now
                WHERE id = :id AND state IN ('leased', 'importing')
                RETURNING lease_id
                """,
                id=pooled_id,
                now=now,
            )
            if row is None:
                return False
            of_task = f"pooled_id = :id AND {OPEN} AND state IN ('uploading', 'importing')"
            _serve(db, of_task, now=now, id=pooled_id)
            db.changed(
                f"""
                UPDATE requests
                SET state = 'ready', served = :served,
                    uploaded_at = COALESCE(uploaded_at, :now), finished_at = :now
                WHERE {of_task}
                """,
                id=pooled_id,
                served=True,
                now=now,
            )
            end_lease(db, row[0], LeaseState.USED)
            for job in jobs:
                db.changed(
                    """
                    INSERT INTO jobs (pooled_id, id, url, start_frame, stop_frame, assignee)
                    VALUES (:pooled_id, :id, :url, :start_frame, :stop_frame, :assignee)
                    """,
                    pooled_id=pooled_id,
                    id=job.id,
                    url=job.url,
                    start_frame=job.start_frame,
                    stop_frame=job.stop_frame,
                    assignee=job.assignee,
                )
            left = {"id": pooled_id, "now": now, "due_at": now + FINAL_GRACE}
            db.changed(
                """
                INSERT INTO final_steps (pooled_id, kind, since, due_at)
                VALUES (:id, 'name', :now, :due_at)
                """,
                **left,
            )
            db.changed(
                f"""
                INSERT INTO final_steps (pooled_id, kind, since, due_at)
                SELECT :id, 'assign', :now, :due_at
                WHERE EXISTS (SELECT 1 FROM requests {db.using("requests_of_task")}
                              WHERE pooled_id = :id AND state = 'ready' AND assignee IS NOT NULL)
                """,
                **left,
            )
            return True

    def fail_import(self, pooled_id: str, *, code: str, message: str, now: float) -> bool:
        """The task is burnt: ``FAILED`` from ``IMPORTING`` or ``LEASED``, its lease ``USED``,
        and its requests ``FAILED`` with ``code`` and ``message``."""
        with self.connections.writing() as db:
            if not burn_task(db, pooled_id, code, message, now=now):
                return False
            db.changed(
                f"""
                UPDATE requests
                SET state = 'failed', error_code = :code, error = :message, finished_at = :now
                WHERE pooled_id = :id AND {OPEN} AND state IN ('uploading', 'importing')
                """,
                id=pooled_id,
                code=code,
                message=text(message),
                now=now,
            )
            return True

    def importing_tasks(self, *, owner: str) -> Sequence[tuple[PooledTask, RequestRecord]]:
        """Return ``IMPORTING`` requests that ``owner`` tracks, oldest first, with their tasks."""
        with self.connections.reading() as db:
            found = db.rows(
                f"""
                SELECT {columns_of(PooledTask, "tasks")}, {columns_of(RequestRecord, "tracked")}
                FROM (SELECT * FROM requests {db.using("requests_open")}
                      WHERE {OPEN} AND owner = :owner AND state = 'importing') AS tracked
                JOIN tasks ON tasks.id = tracked.pooled_id
                ORDER BY tracked.seq
                """,
                owner=owner,
            )
        return [(task_of(row[:TASK_WIDTH]), request_of(row[TASK_WIDTH:])) for row in found]

    def jobs_of(self, pooled_id: str) -> Sequence[Job]:
        """Return the jobs of a ready task, by id; empty before that."""
        with self.connections.reading() as db:
            found = db.rows(
                """
                SELECT id, url, start_frame, stop_frame, assignee FROM jobs
                WHERE pooled_id = :id ORDER BY id
                """,
                id=pooled_id,
            )
        return [
            Job(id=id, url=url, start_frame=start_frame, stop_frame=stop_frame, assignee=assignee)
            for id, url, start_frame, stop_frame, assignee in found
        ]

    # --- What is left to do for a ready task ------------------------------------------------------

    def due_steps(self, *, now: float, limit: int) -> Sequence[FinalStep]:
        """Return what is left for ``READY`` tasks and due, the longest due first; see
        :meth:`complete_import`."""
        with self.connections.reading() as db:
            return _steps(
                db,
                f"""{db.using("final_steps_due")} WHERE due_at <= :now
                    ORDER BY due_at, kind DESC LIMIT :limit""",
                now=now,
                limit=max(0, limit),
            )

    def steps_of(self, pooled_id: str) -> Sequence[FinalStep]:
        """Return what is left for one task, due or not."""
        with self.connections.reading() as db:
            return _steps(db, "WHERE pooled_id = :id", id=pooled_id)

    def end_step(
        self,
        pooled_id: str,
        kind: FinalKind,
        *,
        name: str | None = None,
        warning: RequestWarning | None = None,
        now: float,
    ) -> bool:
        """End a step, once only: it is done, or given up, and then its request has the
        ``warning``. ``name`` is what the task is called from now on."""
        with self.connections.writing() as db:
            if not db.changed(
                "DELETE FROM final_steps WHERE pooled_id = :id AND kind = :kind",
                id=pooled_id,
                kind=kind,
            ):
                return False
            if name is not None:
                db.changed(
                    "UPDATE tasks SET name = :name, changed_at = :now WHERE id = :id",
                    id=pooled_id,
                    name=text(name),
                    now=now,
                )
            if warning is not None:
                served = db.one(
                    """
                    SELECT leases.request_id FROM tasks JOIN leases ON leases.id = tasks.lease_id
                    WHERE tasks.id = :id AND leases.request_id IS NOT NULL
                    """,
                    id=pooled_id,
                )
                if served is not None:
                    add_warning(db, served[0], warning, now=now)
            return True

    def postpone_step(
        self,
        pooled_id: str,
        kind: FinalKind,
        *,
        tries: int,
        left: Sequence[int] | None,
        due_at: float,
    ) -> bool:
        """Try a step again later; the values are those of :class:`pool.model.FinalStep`."""
        with self.connections.writing() as db:
            return bool(
                db.changed(
                    """
                    UPDATE final_steps SET tries = :tries, jobs_left = :left, due_at = :due_at
                    WHERE pooled_id = :id AND kind = :kind
                    """,
                    id=pooled_id,
                    kind=kind,
                    tries=tries,
                    left=None if left is None else json.dumps(list(left)),
                    due_at=due_at,
                )
            )

    # --- What was learned of import times ---------------------------------------------------------

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


def _serve(db: Connection, which: str, *, now: float, **wanted: Any) -> None:
    """Count the hand-outs of requests whose data CVAT has, each once: their callers are served."""
    for template, outcome in db.rows(
        f"""
        UPDATE leases SET served = :served
        WHERE id IN (SELECT lease_id FROM requests WHERE NOT served AND {which})
        RETURNING template, outcome
        """,
        served=True,
        **wanted,
    ):
        count_hand_out(db, template, Outcome(outcome), now=now)


def _steps(db: Connection, which: str, **wanted: Any) -> Sequence[FinalStep]:
    return [
        _step_of(row)
        for row in db.rows(
            f"""
            SELECT steps.kind, steps.tries, steps.since, steps.due_at, steps.jobs_left,
                   {columns_of(PooledTask, "tasks")}, {columns_of(RequestRecord, "requests")}
            FROM (SELECT * FROM final_steps {which}) AS steps
            JOIN tasks ON tasks.id = steps.pooled_id
            LEFT JOIN leases ON leases.id = tasks.lease_id
            LEFT JOIN requests ON requests.id = leases.request_id
            ORDER BY steps.due_at, steps.kind DESC
            """,
            **wanted,
        )
    ]


def _step_of(row: Row) -> FinalStep:
    kind, tries, since, due_at, left, *joined = row
    return FinalStep(
        kind=FinalKind(kind),
        tries=tries,
        since=since,
        due_at=due_at,
        left=None if left is None else tuple(json.loads(left)),
        task=task_of(joined[:TASK_WIDTH]),
        request=request_or_none(joined[TASK_WIDTH:]),
    )
