"""What is left to do for ready tasks. Each function is one transaction of the SQLite store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

from sqlite_utils import Database

from pool.model import FinalKind, FinalStep, RequestWarning
from pool.store.base import FINAL_GRACE
from pool.store.rows import (
    REQUEST_COLUMNS,
    TASK_COLUMNS,
    Row,
    changed,
    listed,
    one,
    request_of,
    rows,
    task_of,
    text,
)

#: A task that is ready needs a name.
BEGIN_NAMING: Final = """
    INSERT INTO final_steps (pooled_id, kind, since, due_at) VALUES (:id, 'name', :now, :due_at)
"""

#: And an assignment, where its request wants one.
BEGIN_ASSIGNMENT: Final = """
    INSERT INTO final_steps (pooled_id, kind, since, due_at)
    SELECT :id, 'assign', :now, :due_at
    WHERE EXISTS (SELECT 1 FROM requests
                  WHERE pooled_id = :id AND state = 'ready' AND assignee IS NOT NULL)
"""


def _steps(which: str) -> str:
    return f"""
        SELECT steps.kind, steps.tries, steps.since, steps.due_at, steps.jobs_left,
               {listed(TASK_COLUMNS, "tasks")}, {listed(REQUEST_COLUMNS, "requests")}
        FROM (SELECT * FROM final_steps {which}) AS steps
        CROSS JOIN tasks ON tasks.id = steps.pooled_id
        LEFT JOIN leases ON leases.id = tasks.lease_id
        LEFT JOIN requests ON requests.id = leases.request_id
        ORDER BY steps.due_at, steps.kind DESC
    """


DUE_STEPS: Final = _steps(
    "INDEXED BY final_steps_due WHERE due_at <= :now ORDER BY due_at, kind DESC LIMIT :n"
)
STEPS_OF: Final = _steps("WHERE pooled_id = :id")

END_STEP: Final = "DELETE FROM final_steps WHERE pooled_id = :id AND kind = :kind"

#: A ready task bears its final name.
NAME_TASK: Final = "UPDATE tasks SET name = :name, changed_at = :now WHERE id = :id"

#: The request that a ready task has served.
REQUEST_OF_TASK: Final = """
    SELECT leases.request_id FROM tasks JOIN leases ON leases.id = tasks.lease_id
    WHERE tasks.id = :id AND leases.request_id IS NOT NULL
"""

POSTPONE_STEP: Final = """
    UPDATE final_steps SET tries = :tries, jobs_left = :left, due_at = :due_at
    WHERE pooled_id = :id AND kind = :kind
"""

#: A request has one more warning, unless it has one with the same code.
WARN: Final = """
    UPDATE requests
    SET warnings = json_insert(warnings, '$[#]', json(:warning)), warned_at = :now
    WHERE id = :id AND NOT EXISTS (
        SELECT 1 FROM json_each(requests.warnings) AS each
        WHERE json_extract(each.value, '$.code') = :code)
"""


def begin_final_steps(db: Database, pooled_id: str, *, now: float) -> None:
    begun = {"id": pooled_id, "now": now, "due_at": now + FINAL_GRACE}
    changed(db, BEGIN_NAMING, begun)
    changed(db, BEGIN_ASSIGNMENT, begun)


def due_steps(db: Database, *, now: float, limit: int) -> Sequence[FinalStep]:
    return [_step_of(row) for row in rows(db, DUE_STEPS, {"now": now, "n": max(0, limit)})]


def steps_of(db: Database, pooled_id: str) -> Sequence[FinalStep]:
    return [_step_of(row) for row in rows(db, STEPS_OF, {"id": pooled_id})]


def end_step(
    db: Database,
    pooled_id: str,
    kind: FinalKind,
    *,
    name: str | None = None,
    warning: RequestWarning | None = None,
    now: float,
) -> bool:
    if not changed(db, END_STEP, {"id": pooled_id, "kind": kind}):
        return False
    if name is not None:
        changed(db, NAME_TASK, {"id": pooled_id, "name": text(name), "now": now})
    if warning is not None and (request := one(db, REQUEST_OF_TASK, {"id": pooled_id})):
        warn(db, request[0], warning, now=now)
    return True


def postpone_step(
    db: Database,
    pooled_id: str,
    kind: FinalKind,
    *,
    tries: int,
    left: Sequence[int] | None,
    due_at: float,
) -> bool:
    postponed = {
        "id": pooled_id,
        "kind": kind,
        "tries": tries,
        "left": None if left is None else json.dumps(list(left)),
        "due_at": due_at,
    }
    return bool(changed(db, POSTPONE_STEP, postponed))


def warn(db: Database, request_id: str, warning: RequestWarning, *, now: float) -> bool:
    said = {**asdict(warning), "text": text(warning.text)}
    values = {"id": request_id, "code": warning.code, "warning": json.dumps(said), "now": now}
    return bool(changed(db, WARN, values))


def _step_of(row: Row) -> FinalStep:
    kind, tries, since, due_at, left = row[:5]
    task, request = row[5 : 5 + len(TASK_COLUMNS)], row[5 + len(TASK_COLUMNS) :]
    return FinalStep(
        kind=FinalKind(kind),
        tries=tries,
        since=since,
        due_at=due_at,
        left=None if left is None else tuple(json.loads(left)),
        task=task_of(task),
        request=None if request[0] is None else request_of(request),
    )
