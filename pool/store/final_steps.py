"""What is left to do for ready tasks: their names, and the assignment of their jobs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from pool.model import (
    Assignee,
    FinalKind,
    FinalStep,
    Hidden,
    PooledTask,
    RequestRecord,
    RequestWarning,
)
from pool.store.connections import Connected, Connection, Row, listed
from pool.store.records import (
    REQUEST,
    WITH_IMPORT,
    assignee_of,
    columns_of,
    names_of,
    record_of,
    text,
)
from pool.store.requests import add_warning


class FinalSteps(Connected):
    """The rows of the steps that :meth:`~pool.store.Store.complete_import` leaves."""

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

    def steps_of(self, *pooled_ids: str) -> Sequence[FinalStep]:
        """Return what is left for these tasks, due or not."""
        marks, wanted = listed(pooled_ids)
        with self.connections.reading() as db:
            return _steps(db, f"WHERE pooled_id IN ({marks})", **wanted)

    def end_step(
        self,
        step: FinalStep,
        *,
        name: str | None = None,
        assigned: Mapping[int, str] | None = None,
        warning: RequestWarning | None = None,
        now: float,
    ) -> bool:
        """End a step, once only: it is done, or given up, and then its request has the
        ``warning``. ``name`` is what the task is called from now on, and ``assigned`` are the
        names of the users who have its jobs, by the jobs' ids. A request whose frames were to be
        hidden says whether they are."""
        with self.connections.writing() as db:
            if not db.changed(f"DELETE FROM final_steps WHERE {_THIS_STEP}", **_key(step)):
                return False
            if name is not None:
                carrier_id = step.task.carrier_id or step.task.id
                db.changed(
                    "UPDATE tasks SET name = :name, changed_at = :now WHERE id = :id",
                    id=carrier_id,
                    name=text(name),
                    now=now,
                )
                if step.task.carrier_id or step.task.slots:
                    # Its slots are the same task.
                    db.changed(
                        f"""
                        UPDATE tasks {db.using("tasks_of_carrier")} SET name = :name
                        WHERE carrier_id = :id
                        """,
                        id=carrier_id,
                        name=text(name),
                    )
            _keep_assigned(db, step, assigned)
            if step.kind is FinalKind.HIDE and step.request is not None:
                db.changed(
                    "UPDATE requests SET hidden = :hidden WHERE id = :id",
                    id=step.request.id,
                    hidden=Hidden.DONE if warning is None else None,
                )
            if warning is not None and step.request is not None:
                add_warning(db, step.request.id, warning, now=now)
            return True

    def claim_hiding(self, step: FinalStep, *, until: float, now: float) -> bool:
        """Let no other process hide frames of a step's task before ``until``, or the end of this
        try; False while another one does."""
        with self.connections.writing() as db:
            return db.met(
                f"""
                UPDATE final_steps SET claimed_until = :until
                WHERE {_THIS_STEP} AND NOT EXISTS (
                    SELECT 1 FROM final_steps AS other
                    WHERE other.pooled_id = :id AND other.claimed_until > :now)
                """,
                **_key(step),
                until=until,
                now=now,
            )

    def postpone_step(
        self,
        step: FinalStep,
        *,
        tries: int,
        left: Sequence[int] | None,
        assigned: Mapping[int, str] | None = None,
        due_at: float,
    ) -> bool:
        """Try a step again later; the values are those of :class:`pool.model.FinalStep`, and as
        :meth:`end_step` has them."""
        with self.connections.writing() as db:
            _keep_assigned(db, step, assigned)
            return db.met(
                f"""
                UPDATE final_steps
                SET tries = :tries, jobs_left = :left, due_at = :due_at, claimed_until = NULL
                WHERE {_THIS_STEP}
                """,
                **_key(step),
                tries=tries,
                left=None if left is None else json.dumps(list(left)),
                due_at=due_at,
            )

    # --- Jobs that are divided among a template's assignees ---------------------------------------

    def divide_jobs(
        self, pooled_id: str, among: Sequence[Assignee], *, by_load: bool = False
    ) -> None:
        """Choose one of the assignees of a template for each job of a ready task for which none is
        chosen yet, but for those of requests that name an assignee themselves.

        In turn: the one whose latest job of this template is the longest ago, and of those that
        never had one the first. With ``by_load`` the one with the fewest open jobs, by the latest
        :meth:`keep_workload` and all that was chosen since; of several, the one whose turn it is.
        """
        with self.connections.reading() as db:
            if not _undivided(db, pooled_id):
                return
        with self.connections.writing() as db:
            # Another process may have been first.
            jobs = _undivided(db, pooled_id)
            row = db.one("SELECT template FROM tasks WHERE id = :id", id=pooled_id)
            if not jobs or row is None or not among:
                return
            turns = dict(
                db.rows("SELECT assignee, latest FROM turns WHERE template = :name", name=row[0])
            )
            latest = max(turns.values(), default=0)
            turns = {user: turns.get(user, 0) for user in (text(str(each)) for each in among)}
            loads = _loads(db, turns) if by_load else dict.fromkeys(turns, 0)
            chosen = dict.fromkeys(turns, 0)
            for job_id in jobs:
                user = min(turns, key=lambda user: (loads[user], turns[user]))
                latest += 1
                turns[user] = latest
                loads[user] += by_load
                chosen[user] += 1
                db.changed(
                    "UPDATE jobs SET assigned_to = :user WHERE pooled_id = :id AND id = :job_id",
                    id=pooled_id,
                    job_id=job_id,
                    user=user,
                )
            for user, count in chosen.items():
                if count:
                    turn = {"template": row[0], "assignee": user, "latest": turns[user]}
                    db.upsert("turns", turn, key="template, assignee")
                    # Also for those who are chosen in turn: another template may go by their load.
                    db.changed(
                        "UPDATE workloads SET jobs = jobs + :count WHERE assignee = :user",
                        count=count,
                        user=user,
                    )

    def divided_jobs(self, step: FinalStep) -> Mapping[int, Assignee]:
        """Return who was chosen by :meth:`divide_jobs` for the jobs of a step, by their ids."""
        with self.connections.reading() as db:
            found = db.rows(
                """
                SELECT id, assigned_to FROM jobs
                WHERE pooled_id = :id AND assigned_to IS NOT NULL
                  AND COALESCE(request_id, '') = :request_id
                ORDER BY id
                """,
                id=step.task.id,
                request_id=_key(step)["request_id"],
            )
        return {job_id: assignee_of(user) for job_id, user in found}

    def workloads_to_count(
        self, users: Sequence[Assignee], *, older_than: float, now: float
    ) -> Sequence[Assignee]:
        """Return those of the users whose open jobs were counted longer ago than so many seconds,
        or never."""
        with self.connections.reading() as db:
            found = db.rows(
                """
                SELECT assignee FROM workloads
                WHERE counted_at BETWEEN :now - CAST(:older_than AS REAL) AND :now
                """,
                older_than=older_than,
                now=now,
            )
        counted = {user for (user,) in found}
        return [user for user in users if text(str(user)) not in counted]

    def keep_workload(self, user: Assignee, jobs: int, *, now: float) -> None:
        """Keep how many open jobs a user has on the server."""
        row = {"assignee": text(str(user)), "jobs": jobs, "counted_at": now}
        with self.connections.writing() as db:
            db.upsert("workloads", row, key="assignee")


def _loads(db: Connection, users: Iterable[str]) -> dict[str, int]:
    """Return how many open jobs each of the users has. One that could not be counted is taken to
    have as few as any."""
    counted = dict(db.rows("SELECT assignee, jobs FROM workloads"))
    least = min((counted[user] for user in users if user in counted), default=0)
    return {user: counted.get(user, least) for user in users}


def _undivided(db: Connection, pooled_id: str) -> list[int]:
    found = db.rows(
        """
        SELECT jobs.id FROM jobs LEFT JOIN requests ON requests.id = jobs.request_id
        WHERE jobs.pooled_id = :id AND jobs.assigned_to IS NULL AND requests.assignee IS NULL
        ORDER BY jobs.id
        """,
        id=pooled_id,
    )
    return [job_id for (job_id,) in found]


def _keep_assigned(db: Connection, step: FinalStep, assigned: Mapping[int, str] | None) -> None:
    for job_id, user in (assigned or {}).items():
        db.changed(
            "UPDATE jobs SET assignee = :user WHERE pooled_id = :id AND id = :job_id",
            id=step.task.id,
            job_id=job_id,
            user=text(user),
        )


#: One step among those of a task.
_THIS_STEP: Final = "pooled_id = :id AND kind = :kind AND request_id = :request_id"


def _key(step: FinalStep) -> dict[str, str]:
    return {
        "id": step.task.id,
        "kind": step.kind,
        "request_id": step.request.id if step.request else "",
    }


def _steps(db: Connection, which: str, **wanted: Any) -> Sequence[FinalStep]:
    return [
        _step_of(row)
        for row in db.rows(
            f"""
            SELECT steps.kind, steps.tries, steps.since, steps.due_at, steps.jobs_left,
                   (SELECT COUNT(*) FROM import_members
                    WHERE import_members.import_id = requests.import_id),
                   COALESCE((SELECT title FROM carriers WHERE carriers.id = steps.pooled_id),
                            (SELECT name FROM leases
                             WHERE leases.id = tasks.lease_id AND leases.request_id IS NULL)),
                   {columns_of(PooledTask, "tasks")}, {REQUEST}
            FROM (SELECT * FROM final_steps {which}) AS steps
            JOIN tasks ON tasks.id = steps.pooled_id
            LEFT JOIN requests ON requests.id = steps.request_id {WITH_IMPORT}
            ORDER BY steps.due_at, steps.kind DESC
            """,
            **wanted,
        )
    ]


def _step_of(row: Row) -> FinalStep:
    kind, tries, since, due_at, left, members, title, *joined = row
    width = len(names_of(PooledTask))
    task, request = joined[:width], joined[width:]
    return FinalStep(
        kind=FinalKind(kind),
        tries=tries,
        since=since,
        due_at=due_at,
        left=None if left is None else tuple(json.loads(left)),
        others=max(0, members - 1),
        title=title or "",
        task=record_of(PooledTask, task),
        # The task of a caller that uploaded has none.
        request=None if request[0] is None else record_of(RequestRecord, request),
    )
