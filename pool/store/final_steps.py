"""What is left to do for ready tasks: their names, and the assignment of their jobs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from pool.model import FinalKind, FinalStep, PooledTask, RequestRecord, RequestWarning
from pool.store.connections import Connected, Connection, Row
from pool.store.records import REQUEST, WITH_IMPORT, columns_of, names_of, record_of, text
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

    def steps_of(self, pooled_id: str) -> Sequence[FinalStep]:
        """Return what is left for one task, due or not."""
        with self.connections.reading() as db:
            return _steps(db, "WHERE pooled_id = :id", id=pooled_id)

    def end_step(
        self,
        step: FinalStep,
        *,
        name: str | None = None,
        warning: RequestWarning | None = None,
        now: float,
    ) -> bool:
        """End a step, once only: it is done, or given up, and then its request has the
        ``warning``. ``name`` is what the task is called from now on."""
        with self.connections.writing() as db:
            if not db.changed(f"DELETE FROM final_steps WHERE {_THIS_STEP}", **_key(step)):
                return False
            if name is not None:
                db.changed(
                    "UPDATE tasks SET name = :name, changed_at = :now WHERE id = :id",
                    id=step.task.id,
                    name=text(name),
                    now=now,
                )
            if warning is not None and step.request is not None:
                add_warning(db, step.request.id, warning, now=now)
            return True

    def postpone_step(
        self, step: FinalStep, *, tries: int, left: Sequence[int] | None, due_at: float
    ) -> bool:
        """Try a step again later; the values are those of :class:`pool.model.FinalStep`."""
        with self.connections.writing() as db:
            return db.met(
                f"""
                UPDATE final_steps SET tries = :tries, jobs_left = :left, due_at = :due_at
                WHERE {_THIS_STEP}
                """,
                **_key(step),
                tries=tries,
                left=None if left is None else json.dumps(list(left)),
                due_at=due_at,
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
    kind, tries, since, due_at, left, members, *joined = row
    width = len(names_of(PooledTask))
    task, request = joined[:width], joined[width:]
    return FinalStep(
        kind=FinalKind(kind),
        tries=tries,
        since=since,
        due_at=due_at,
        left=None if left is None else tuple(json.loads(left)),
        others=max(0, members - 1),
        task=record_of(PooledTask, task),
        # The task of a caller that uploaded has none.
        request=None if request[0] is None else record_of(RequestRecord, request),
    )
