"""What follows from what the server says: decisions without a store or a server."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pool.config.settings import Template
from pool.cvat.records import ImportStatus, TaskInfo
from pool.maintenance.reconcile_rules import (
    CALLS_OF_A_CREATE,
    Action,
    Orphan,
    Sight,
    judge_carrier,
    judge_doomed,
    judge_orphan,
    judge_stuck,
    judge_warm,
    longest_unseen,
    orphan_after,
    stuck_after,
)
from pool.model import Carrier, PooledTask, TaskState, check_name, named_in, task_name

POOL = "abcd1234"
TEMPLATE = Template(name="scenes", labels=({"name": "car"},))
TEMPLATES = {TEMPLATE.name: TEMPLATE}
YOUNG = orphan_after(30.0)
OLD = YOUNG + 1


def row(state: TaskState = TaskState.WARM, *, task_id: int | None = 7) -> PooledTask:
    return PooledTask(
        id="01x",
        template=TEMPLATE.name,
        fingerprint=TEMPLATE.fingerprint,
        state=state,
        name=task_name(POOL, TEMPLATE.name, "01x"),
        task_id=task_id,
        reason="it was old",
        created_at=0.0,
        changed_at=0.0,
    )


def there(task_id: int = 7, **differs: object) -> TaskInfo:
    info = TaskInfo(
        id=task_id,
        name=row().name,
        size=0,
        has_data=True,
        jobs=0,
        project_id=None,
        organization_id=None,
        age=OLD,
    )
    return replace(info, **differs)  # type: ignore[arg-type]


# --- Deadlines and names ---------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [0.1, 1.0, 30.0, 600.0])
def test_the_deadlines_are_in_order(timeout: float) -> None:
    assert timeout < CALLS_OF_A_CREATE * timeout < stuck_after(timeout) < orphan_after(timeout)


def test_the_name_tells_the_row() -> None:
    for template in ("scenes", "a b: empty, waiting for data c", "x" * 300):
        assert named_in(POOL, task_name(POOL, template, "01x")) == "01x"
        assert named_in(POOL, check_name(POOL, template, "01y")) == "01y"


@pytest.mark.parametrize(
    "name",
    [
        task_name("another1", "scenes", "01x"),
        f"my copy of {task_name(POOL, 'scenes', '01x')}",
        f"{task_name(POOL, 'scenes', '01x')} (mine)",
        f"[cvat-pool {POOL}] night drive",
        "",
    ],
)
def test_any_other_name_tells_nothing(name: str) -> None:
    assert named_in(POOL, name) is None


# --- Warm tasks ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sight", "action"),
    [
        (Sight(info=there()), None),
        (Sight(info=there(has_data=False)), None),
        (Sight(), Action.RETIRE),
        (Sight(hidden=True), Action.RETIRE),
        (Sight(info=there(size=1)), Action.DISOWN),
        (Sight(info=there(jobs=1)), Action.DISOWN),
        (Sight(info=there(name="mine now")), Action.DISOWN),
        (Sight(info=there(name="mine now"), elsewhere=True), Action.DISOWN),
        (Sight(info=there(project_id=3)), Action.DISOWN),
        (Sight(info=there(), elsewhere=True), Action.DISOWN),
    ],
)
def test_what_becomes_of_a_warm_task(sight: Sight, action: Action | None) -> None:
    finding = judge_warm(row(), sight, TEMPLATE)
    assert (finding.action if finding else None) is action
    if finding:
        assert finding.reason
        assert (finding.pooled_id, finding.task_id) == ("01x", 7)


@pytest.mark.parametrize("template", [None, replace(TEMPLATE, project=3, labels=())])
def test_where_a_task_of_an_older_template_belongs_is_not_known(template: Template | None) -> None:
    for sight in (Sight(info=there(project_id=5)), Sight(info=there(), elsewhere=True)):
        assert judge_warm(row(), sight, template) is None


def test_a_task_of_an_older_template_may_still_be_handed_out_where_it_was_made() -> None:
    """In which project it belongs is not known any more; on which server it is."""
    older = replace(row(), fingerprint="older", origin=TEMPLATE.origin)
    assert judge_warm(older, Sight(info=there(project_id=5)), TEMPLATE) is None
    moved = judge_warm(older, Sight(info=there(), elsewhere=True), TEMPLATE)
    assert moved is not None
    assert moved.action is Action.DISOWN
    unknown = replace(older, origin="")
    assert judge_warm(unknown, Sight(info=there(), elsewhere=True), TEMPLATE) is None


def test_a_task_of_a_project_belongs_there() -> None:
    template = Template(name="scenes", project=3)
    task = replace(row(), fingerprint=template.fingerprint)
    assert judge_warm(task, Sight(info=there(project_id=3)), template) is None
    moved = judge_warm(task, Sight(info=there()), template)
    assert moved is not None
    assert moved.reason == "moved to no project"


# --- Creates of which nothing was heard ------------------------------------------------------


def test_a_create_is_settled_by_its_name() -> None:
    stuck = row(TaskState.CREATING, task_id=None)
    assert judge_stuck(stuck, []).action is Action.FAIL_CREATE
    found = judge_stuck(stuck, [there(8), there(9)])
    assert (found.action, found.task_id, found.prepared) == (Action.FINISH_CREATE, 8, True)
    used = judge_stuck(stuck, [there(8, size=2)])
    assert (used.action, used.task_id) == (Action.FAIL_CREATE, 8)
    known = row(TaskState.CREATING, task_id=9)
    assert judge_stuck(known, [there(8), there(9)]).task_id == 9
    assert judge_stuck(known, [there(9, name="mine now")]).action is Action.FAIL_CREATE


# --- Tasks that no row holds -----------------------------------------------------------------


def given_up(**differs: object) -> PooledTask:
    return replace(row(TaskState.DELETED, task_id=None), **differs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("info", "held_by", "importing", "action"),
    [
        # Adopted only when a row tells that nobody can have been given it.
        (there(), given_up(), "unknown", Action.ADOPT),
        (there(), None, "unknown", Action.DELETE),
        (there(), given_up(fingerprint="older"), "unknown", Action.DELETE),
        (there(), given_up(template="gone"), "unknown", Action.DELETE),
        (there(), given_up(), "failed", Action.DELETE),
        (there(8), row(), "unknown", Action.DELETE),
        (there(8), row(TaskState.READY), "unknown", Action.DELETE),
        # Left alone: whatever may be somebody's, or not yet ours to judge.
        (there(age=YOUNG), None, "unknown", Action.LEAVE),
        (there(age=-50.0), None, "unknown", Action.LEAVE),
        (there(age=None), None, "unknown", Action.LEAVE),
        (there(size=1), None, "unknown", Action.LEAVE),
        (there(jobs=1), given_up(), "unknown", Action.LEAVE),
        (there(), None, "queued", Action.LEAVE),
        (there(), given_up(), "started", Action.LEAVE),
        (there(), None, "finished", Action.LEAVE),
        (there(project_id=4), given_up(), "unknown", Action.LEAVE),
        (there(), row(TaskState.DELETED), "unknown", Action.LEAVE),
        # Its own service has not ended it yet.
        (there(), row(TaskState.CREATING, task_id=None), "unknown", None),
        (there(), row(TaskState.FAILED, task_id=None), "unknown", None),
        (there(), row(TaskState.DELETING, task_id=None), "unknown", None),
    ],
)
def test_what_becomes_of_a_stranger(
    info: TaskInfo, held_by: PooledTask | None, importing: str, action: Action | None
) -> None:
    stranger = Orphan(info=info, named="01x", row=held_by, importing=ImportStatus(importing))
    finding = judge_orphan(stranger, TEMPLATES, old_after=YOUNG)
    assert (finding.action if finding else None) is action
    if finding:
        assert finding.task_id == info.id


def test_a_renamed_stranger_is_left_alone() -> None:
    stranger = Orphan(info=there(name=f"[cvat-pool {POOL}] mine"), named=None, row=None)
    finding = judge_orphan(stranger, TEMPLATES, old_after=YOUNG)
    assert finding is not None
    assert finding.action is Action.LEAVE


# --- Tasks on their way out ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sight", "served", "importing", "action"),
    [
        (Sight(info=there()), False, "unknown", Action.DELETE),
        (Sight(info=there()), False, "failed", Action.DELETE),
        (Sight(info=there()), True, "started", Action.DELETE),
        (Sight(info=there(size=1, jobs=1)), True, "unknown", Action.DELETE),
        (Sight(info=there(), elsewhere=True), False, "unknown", Action.DELETE),
        (Sight(), False, "unknown", Action.LEAVE),
        (Sight(info=there(size=1)), False, "unknown", Action.DISOWN),
        (Sight(info=there()), False, "queued", Action.DISOWN),
        (Sight(info=there(name="mine now")), True, "unknown", Action.DISOWN),
        (Sight(hidden=True), False, "unknown", None),
    ],
)
def test_what_is_deleted(sight: Sight, served: bool, importing: str, action: Action | None) -> None:
    status = ImportStatus(importing)
    assert judge_doomed(row(), sight, served=served, importing=status) is action


def test_data_that_was_there_before_ours_is_not_deleted() -> None:
    refused = replace(row(), reason="HTTP 400 Bad Request: Adding more data is not supported")
    sight = Sight(info=there(size=1, jobs=1))
    unknown = ImportStatus.UNKNOWN
    assert judge_doomed(refused, sight, served=True, importing=unknown) is Action.DISOWN


# --- The rotation ----------------------------------------------------------------------------


# --- Carriers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sight", "action"),
    [
        (Sight(info=there(size=3, jobs=3)), None),
        (Sight(info=there(size=3, jobs=3, name="camera 7")), None),
        (Sight(), Action.RETIRE),
        (Sight(hidden=True), Action.RETIRE),
        (Sight(info=there(name="mine now")), Action.DISOWN),
        (Sight(info=there(project_id=3)), Action.DISOWN),
        (Sight(info=there(), elsewhere=True), Action.DISOWN),
    ],
)
def test_what_becomes_of_a_carrier(sight: Sight, action: Action | None) -> None:
    """It has data from the start, and may be called as its stream is."""
    task = replace(row(TaskState.READY), slots=3, origin=TEMPLATE.origin)
    carrier = Carrier(id="01x", template="scenes", task_id=7, settings={}, title="camera 7")
    finding = judge_carrier(carrier, task, sight, TEMPLATE, origin=TEMPLATE.origin)
    assert (finding.action if finding else None) is action
    doomed = {None: Action.DELETE, Action.RETIRE: Action.LEAVE}.get(action)
    if sight.info and sight.info.name == "mine now":
        doomed = Action.DISOWN
    if doomed and not sight.hidden:
        unknown = ImportStatus.UNKNOWN
        judged = judge_doomed(task, sight, served=False, importing=unknown, title="camera 7")
        assert judged is doomed


def test_a_carrier_of_another_place_is_where_it_was() -> None:
    task = replace(row(TaskState.READY), slots=3, origin="made elsewhere")
    carrier = Carrier(id="01x", template="scenes", task_id=7, settings={})
    sight = Sight(info=there(size=3, jobs=3), elsewhere=True)
    assert judge_carrier(carrier, task, sight, None, origin=TEMPLATE.origin) is None


def test_those_unseen_for_longest_come_first() -> None:
    tasks = [replace(row(), id=name) for name in "abcd"]
    seen = {"a": 3.0, "b": 1.0, "c": 2.0, "d": 1.0}
    chosen = longest_unseen(tasks, seen, batch=3)
    assert [task.id for task in chosen] == ["b", "d", "c"]
