"""Looking at rows. Each function is one query of the SQLite store."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence

from sqlite_utils import Database

from pool.errors import InputError
from pool.model import (
    LIVE_TASK_STATES,
    Demand,
    Handout,
    Job,
    LeaseRecord,
    LeaseState,
    Levels,
    Outcome,
    PooledTask,
    RequestRecord,
    RequestState,
    TaskState,
)
from pool.store import lookups
from pool.store.base import Asked, Page
from pool.store.rows import (
    LEASE_COLUMNS,
    REQUEST_COLUMNS,
    TASK_COLUMNS,
    Row,
    lease_of,
    number,
    one,
    request_of,
    rows,
    task_of,
)


def levels(db: Database) -> Mapping[str, Levels]:
    counts: dict[str, dict[TaskState, int]] = {}
    for template, state, how_many in rows(db, lookups.LEVELS, {}):
        counts.setdefault(template, {})[TaskState(state)] = how_many
    return {template: Levels(counts=states) for template, states in counts.items()}


def warm_of(db: Database, template: str, fingerprint: str) -> int:
    return number(db, lookups.WARM_OF, {"template": template, "fingerprint": fingerprint})


def older_warm_of(db: Database, template: str, fingerprint: str, *, older_from: str) -> int:
    made_by = {"template": template, "fingerprint": fingerprint, "older_from": older_from}
    return number(db, lookups.OLDER_WARM_OF, made_by)


def capacity_of(db: Database, template: str, fingerprint: str) -> int:
    return number(db, lookups.CAPACITY_OF, {"template": template, "fingerprint": fingerprint})


def in_flight(db: Database) -> int:
    return number(db, lookups.IN_FLIGHT, {})


def last_activity(db: Database) -> float:
    row = one(db, lookups.LAST_ACTIVITY, {})
    return float(row[0]) if row else 0.0


def waiting(db: Database, template: str) -> int:
    return number(db, lookups.WAITING, {"template": template})


def task(db: Database, pooled_id: str) -> PooledTask | None:
    row = one(db, lookups.TASK, {"id": pooled_id})
    return task_of(row) if row else None


def task_on_server(db: Database, task_id: int) -> tuple[PooledTask, RequestRecord | None] | None:
    row = one(db, lookups.TASK_ON_SERVER, {"task_id": task_id})
    return (task_of(row[: len(TASK_COLUMNS)]), _request_if_any(row)) if row else None


def tasks(
    db: Database, *, template: str | None = None, states: Sequence[TaskState] = ()
) -> Sequence[PooledTask]:
    wanted = tuple(dict.fromkeys(states)) or LIVE_TASK_STATES
    sql = lookups.tasks_in(
        len(wanted),
        live=set(wanted) <= set(LIVE_TASK_STATES),
        template=template is not None,
    )
    parameters = {f"state{number}": state for number, state in enumerate(wanted)}
    return [task_of(row) for row in rows(db, sql, {**parameters, "template": template})]


def lease(db: Database, lease_id: str) -> LeaseRecord | None:
    row = one(db, lookups.LEASE, {"id": lease_id})
    return lease_of(row) if row else None


def leases(
    db: Database, states: Sequence[LeaseState] = (), *, limit: int = 100
) -> Sequence[LeaseRecord]:
    # State by state, so that the newest few are found without sorting all there ever were.
    found: list[Row] = []
    for state in dict.fromkeys(states or LeaseState):
        found += rows(db, lookups.LEASES_IN_STATE, {"state": state, "limit": max(0, limit)})
    found.sort(key=lambda row: -int(row[0]))
    return [lease_of(row[1:]) for row in found[: max(0, limit)]]


def request(db: Database, request_id: str) -> RequestRecord | None:
    row = one(db, lookups.REQUEST, {"id": request_id})
    return request_of(row) if row else None


def requests(
    db: Database,
    *,
    state: RequestState | None = None,
    template: str | None = None,
    limit: int = 50,
    cursor: str | None = None,
) -> Page:
    if limit < 1:
        raise InputError("the limit of a page must be at least 1")
    sql = lookups.requests_page(
        state=state is not None, template=template is not None, cursor=cursor is not None
    )
    found = rows(
        db,
        sql,
        {
            "state": state,
            "template": template,
            "before": None if cursor is None else _after(cursor),
            # One more than asked for tells whether there is another page.
            "limit": limit + 1,
        },
    )
    page = found[:limit]
    return Page(
        requests=tuple(request_of(row[1:]) for row in page),
        next_cursor=str(page[-1][0]) if len(found) > limit else None,
    )


def _after(cursor: str) -> int:
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
        raise InputError(f"{cursor[:40]!r} is not a cursor that an earlier page gave")
    return int(cursor)


def jobs_of(db: Database, pooled_id: str) -> Sequence[Job]:
    return [
        Job(id=id, url=url, start_frame=start_frame, stop_frame=stop_frame, assignee=assignee)
        for id, url, start_frame, stop_frame, assignee in rows(db, lookups.JOBS, {"id": pooled_id})
    ]


def expired_leases(db: Database, *, now: float, limit: int = 100) -> Sequence[Handout]:
    found = rows(db, lookups.EXPIRED_LEASES, {"now": now, "limit": max(0, limit)})
    return [_handout_of(row) for row in found]


def watched_leases(db: Database) -> Sequence[Handout]:
    return [_handout_of(row) for row in rows(db, lookups.WATCHED_LEASES, {})]


def importing_tasks(db: Database, *, owner: str) -> Sequence[tuple[PooledTask, RequestRecord]]:
    return [
        (task_of(row[: len(TASK_COLUMNS)]), request_of(row[len(TASK_COLUMNS) :]))
        for row in rows(db, lookups.IMPORTING_TASKS, {"owner": owner})
    ]


def demand(db: Database, template: str, *, since: float) -> Sequence[Demand]:
    found = rows(db, lookups.DEMAND, {"template": template, "since": since})
    return [
        Demand(template=template, start=start, hits=hits, waits=waits, colds=colds)
        for template, start, hits, waits, colds in found
    ]


def lead_times(db: Database) -> Mapping[str, float]:
    return {row["template"]: row["seconds"] for row in db.table("lead_times").rows}


def asked(db: Database, template: str, *, since: float, until: float, limit: int) -> Asked:
    wanted = {"template": template, "since": since, "until": until, "limit": max(0, limit)}
    times = array("d")
    outcomes: Counter[Outcome | None] = Counter()
    for asked_at, outcome in db.execute(lookups.ASKED, wanted):
        times.append(asked_at)
        outcomes[outcome and Outcome(outcome)] += 1
    times.reverse()
    return Asked(times=times, outcomes=outcomes)


def create_times(db: Database, template: str, *, since: float) -> Sequence[float]:
    found = db.execute(lookups.CREATE_TIMES, {"template": template, "since": since})
    return array("d", (took for (took,) in found))


def hand_outs(db: Database) -> Mapping[str, Mapping[Outcome, int]]:
    totals: dict[str, dict[Outcome, int]] = {}
    for row in db.table("hand_outs").rows:
        totals.setdefault(row["template"], {})[Outcome(row["outcome"])] = row["total"]
    return totals


def _handout_of(row: Row) -> Handout:
    return Handout(
        lease=lease_of(row[: len(LEASE_COLUMNS)]), task=task_of(row[len(LEASE_COLUMNS) :])
    )


def _request_if_any(row: Row) -> RequestRecord | None:
    values = row[len(TASK_COLUMNS) :]
    assert len(values) == len(REQUEST_COLUMNS)
    return None if values[0] is None else request_of(values)
