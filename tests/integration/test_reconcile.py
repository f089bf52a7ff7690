"""Rows and server are brought together, with a scripted server and a clock that the test moves."""

from __future__ import annotations

import pytest
from support.clock import ManualClock
from support.scripted import ScriptedCvat
from support.stepped import CONTENT, Stepped, uploads

from pool.cvat.records import ImportState, ImportStatus
from pool.errors import CvatBusy, CvatRejected, CvatUnreachable
from pool.maintenance.deletion import DeletionReport
from pool.maintenance.reconcile import LOOK_EVERY, Reconcile
from pool.maintenance.reconcile_rules import Action, orphan_after, stuck_after
from pool.model import PooledTask, RequestState, TaskState, new_id, pool_mark, task_name
from pool.store import CreateLimit, Store

HTTP_TIMEOUT = 30.0
STUCK, ORPHAN = stuck_after(HTTP_TIMEOUT), orphan_after(HTTP_TIMEOUT)
VERIFY_EVERY = 600.0
FILES = [("a.jpg", CONTENT)]


@pytest.fixture
def reconcile(empty: Stepped) -> Reconcile:
    return service(empty)


@pytest.fixture
def warm(daemon: Stepped) -> list[PooledTask]:
    """A full pool of three."""
    return list(daemon.store.tasks())


def service(daemon: Stepped) -> Reconcile:
    """One of its own, as ``cvat-pool reconcile`` has it: a daemon's reports go to its metrics."""
    return Reconcile(
        daemon.store,
        daemon.process.cvat(),
        daemon.process.templates,
        daemon.maintenance.term,
        http_timeout=HTTP_TIMEOUT,
        verify_every=VERIFY_EVERY,
        clock=daemon.clock,
    )


def state_of(store: Store, task: PooledTask) -> TaskState:
    found = store.task(task.id)
    assert found is not None
    return found.state


def calls(cvat: ScriptedCvat) -> list[str]:
    made = [call[0] for call in cvat.calls]
    cvat.calls.clear()
    return made


# --- All at once -----------------------------------------------------------------------------


def test_a_pool_in_order_costs_one_call_and_changes_nothing(
    daemon: Stepped, reconcile: Reconcile, warm: list[PooledTask], cvat: ScriptedCvat
) -> None:
    report = reconcile.run_once()
    assert (report.verified, report.done) == (3, {})
    assert calls(cvat) == ["marked_tasks"]
    assert list(daemon.store.tasks()) == warm


@pytest.mark.parametrize("fate", ["gone", "hidden", "filled", "renamed", "moved", "abroad"])
def test_a_warm_task_that_is_not_as_it_was_left(
    daemon: Stepped, reconcile: Reconcile, warm: list[PooledTask], cvat: ScriptedCvat, fate: str
) -> None:
    task = warm[0]
    task_id = task.task_id or 0
    info = cvat.tasks_there[task_id]
    match fate:
        case "gone":
            del cvat.tasks_there[task_id]
        case "hidden":
            del cvat.tasks_there[task_id]
            cvat.elsewhere[task_id] = None
        case "filled":
            cvat.put_task(task_id, task.name, size=3, jobs=1)
        case "renamed":
            cvat.put_task(task_id, "my night drive")
        case "moved":
            cvat.put_task(task_id, task.name, project=4)
        case "abroad":
            cvat.elsewhere[task_id] = cvat.tasks_there.pop(task_id)
    report = reconcile.run_once()
    assert report.verified == 2
    retired = fate in ("gone", "hidden")
    assert report.done == {(Action.RETIRE if retired else Action.DISOWN): 1}
    assert state_of(daemon.store, task) is (TaskState.RETIRED if retired else TaskState.DELETED)
    left = daemon.store.task(task.id)
    assert left is not None and left.reason
    daemon.run("delete")
    assert cvat.count("delete_task") == 0, "whatever became of it, it is not deleted"
    if fate == "hidden":
        cvat.elsewhere.clear()
        cvat.tasks_there[task_id] = info
        daemon.clock.advance(61.0)
        assert daemon.run("delete").deleted == 1
    reconcile.run_once()
    assert len(daemon.store.tasks()) == 2


@pytest.mark.parametrize("state", ["leased", "importing", "ready"])
def test_a_task_that_was_handed_out_is_not_touched_whatever_it_is_called(
    daemon: Stepped,
    reconcile: Reconcile,
    warm: list[PooledTask],
    cvat: ScriptedCvat,
    state: str,
) -> None:
    if state == "leased":
        task_id = daemon.pool.acquire("scenes").task_id
    else:
        task_id = daemon.pool.submit("scenes", FILES).task_id or 0
    if state == "ready":
        daemon.import_all()
    task = next(each for each in warm if each.task_id == task_id)
    mark = pool_mark(daemon.store.pool_id)
    names = [
        task.name,
        warm[1].name,
        task_name(daemon.store.pool_id, "x", new_id()),
        f"{mark} mine",
        "mine",
    ]
    for name in names:
        cvat.put_task(task_id, name, age=1e6, size=3 if state == "ready" else 0)
        assert service(daemon).run_once().done == {}
        assert task_id in cvat.tasks_there
    assert state_of(daemon.store, task).value == state


def test_strangers_without_our_mark_are_not_touched(
    empty: Stepped, reconcile: Reconcile, cvat: ScriptedCvat
) -> None:
    cvat.put_task(1, task_name("another1", "scenes", new_id()), age=1e6)
    cvat.put_task(2, "an empty task", age=1e6)
    plan = reconcile.plan()
    assert plan.findings == ()
    reconcile.run_once()
    assert set(cvat.tasks_there) == {1, 2}


def test_an_orphan_is_deleted_once_it_is_old_enough(
    daemon: Stepped, reconcile: Reconcile, warm: list[PooledTask], cvat: ScriptedCvat
) -> None:
    name = task_name(daemon.store.pool_id, "scenes", new_id())
    cvat.put_task(900, name, age=ORPHAN)
    assert reconcile.run_once().done == {}
    cvat.put_task(900, name, age=ORPHAN + 1)
    assert [finding.action for finding in reconcile.plan().findings] == [Action.DELETE]
    assert 900 in cvat.tasks_there, "a plan changes nothing"
    reconcile.apply(reconcile.plan())
    assert 900 not in cvat.tasks_there
    assert len(cvat.tasks_there) == 3


def test_an_orphan_with_data_or_data_on_its_way_is_left_alone(
    empty: Stepped, reconcile: Reconcile, cvat: ScriptedCvat
) -> None:
    for number, size in ((900, 5), (901, 0)):
        name = task_name(empty.store.pool_id, "scenes", new_id())
        cvat.put_task(number, name, age=1e6, size=size, prepared=True)
    cvat.states[901] = ImportState(status=ImportStatus.STARTED)
    assert reconcile.run_once().done == {}
    assert set(cvat.tasks_there) == {900, 901}


# --- Creates whose answer was lost -----------------------------------------------------------


@pytest.mark.parametrize("happened", [True, False])
def test_a_create_whose_answer_was_lost_is_settled_by_its_name(
    empty: Stepped, reconcile: Reconcile, cvat: ScriptedCvat, clock: ManualClock, happened: bool
) -> None:
    stuck = begin_create(empty)
    reconcile.run_once()
    calls(cvat)
    if happened:
        cvat.put_task(500, stuck.name)
    clock.advance(STUCK)
    assert reconcile.run_once().skipped, "the lost POST may still commit"
    assert calls(cvat) == []
    clock.advance(1.0)
    assert reconcile.run_once().done == {
        (Action.FINISH_CREATE if happened else Action.FAIL_CREATE): 1
    }
    assert calls(cvat) == ["marked_tasks"], "one call, however many creates"
    assert state_of(empty.store, stuck) is (TaskState.WARM if happened else TaskState.FAILED)


def begin_create(empty: Stepped) -> PooledTask:
    """A create whose process died before it heard of the answer."""
    template = empty.process.templates["scenes"]
    task = empty.store.begin_create(
        new_id(),
        template.name,
        template.fingerprint,
        limit=CreateLimit(capacity=9, concurrency=9),
        owner="dead",
        now=empty.clock.now(),
    )
    assert task is not None
    return task


def test_a_create_that_happens_after_it_was_given_up_is_adopted(
    empty: Stepped,
    reconcile: Reconcile,
    cvat: ScriptedCvat,
    clock: ManualClock,
) -> None:
    late = begin_create(empty)
    clock.advance(STUCK + 1)
    reconcile.run_once()
    assert empty.run("delete").deleted == 1
    cvat.put_task(500, late.name, age=ORPHAN + 1, prepared=True)
    clock.advance(LOOK_EVERY)
    assert reconcile.run_once().done == {Action.ADOPT: 1}
    adopted = empty.store.task(late.id)
    assert adopted is not None
    assert (adopted.state, adopted.task_id, adopted.prepared) == (TaskState.WARM, 500, True)
    assert empty.pool.acquire("scenes").task_id == 500


def test_of_two_tasks_of_one_name_one_goes(
    daemon: Stepped, reconcile: Reconcile, warm: list[PooledTask], cvat: ScriptedCvat
) -> None:
    cvat.put_task(900, warm[0].name, age=1e6)
    assert reconcile.run_once().done == {Action.DELETE: 1}
    assert 900 not in cvat.tasks_there
    assert warm[0].task_id in cvat.tasks_there


# --- The rotation ----------------------------------------------------------------------------


def test_each_warm_task_is_looked_at_every_so_often_in_one_call(
    daemon: Stepped, reconcile: Reconcile, warm: list[PooledTask], cvat: ScriptedCvat
) -> None:
    clock = daemon.clock
    reconcile.run_once()
    calls(cvat)
    for _ in range(int(2 * VERIFY_EVERY / 10) + 1):
        reconcile.run_once()
        clock.advance(10.0)
    assert calls(cvat) == ["tasks", "tasks"]
    cvat.put_task(warm[1].task_id or 0, "mine")
    clock.advance(VERIFY_EVERY)
    assert reconcile.run_once().done == {Action.DISOWN: 1}


def test_a_task_that_became_warm_meanwhile_is_looked_at_in_its_turn(
    daemon: Stepped, reconcile: Reconcile, warm: list[PooledTask], cvat: ScriptedCvat
) -> None:
    clock = daemon.clock
    reconcile.run_once()
    clock.advance(VERIFY_EVERY / 2)
    assert reconcile.run_once().skipped
    daemon.pool.submit("scenes", FILES)
    daemon.import_all()
    daemon.advance(1.0)
    daemon.fill()
    clock.advance(VERIFY_EVERY / 2)
    assert reconcile.run_once().verified == 3
    clock.advance(VERIFY_EVERY / 2)
    assert reconcile.run_once().skipped


def test_the_rotation_steps_back_for_requests_but_not_for_ever(
    daemon: Stepped, reconcile: Reconcile, warm: list[PooledTask]
) -> None:
    clock = daemon.clock
    reconcile.run_once()
    daemon.pool.submit("scenes", FILES)
    clock.advance(VERIFY_EVERY)
    assert reconcile.run_once().skipped
    clock.advance(VERIFY_EVERY)
    assert reconcile.run_once().verified == 2


def test_a_server_that_is_down_is_not_hammered(
    daemon: Stepped, reconcile: Reconcile, warm: list[PooledTask], cvat: ScriptedCvat
) -> None:
    clock = daemon.clock
    cvat.failures["marked_tasks"] = [CvatUnreachable("down") for _ in range(999)]
    for _ in range(360):
        reconcile.run_once()
        clock.advance(10.0)
    assert 5 <= len(calls(cvat)) <= 15, "in an hour"
    assert len(daemon.store.tasks()) == 3, "nothing is known, so nothing is decided"
    cvat.failures.clear()
    clock.advance(600.0)
    assert reconcile.run_once().verified == 3


# --- After an unclean stop -------------------------------------------------------------------


def test_doubted_tasks_are_handed_out_once_they_were_looked_at(
    daemon: Stepped,
    reconcile: Reconcile,
    warm: list[PooledTask],
    cvat: ScriptedCvat,
) -> None:
    cvat.put_task(warm[0].task_id or 0, warm[0].name, size=9, jobs=1)
    daemon.store.quarantine_warm(until=daemon.clock.now() + 5.0)
    report = reconcile.run_once()
    assert (report.verified, report.done) == (2, {Action.DISOWN: 1})
    others = {each.task_id for each in warm[1:]}
    assert {daemon.pool.acquire("scenes").task_id for _ in others} == others


# --- What is about to be deleted -------------------------------------------------------------


def test_a_task_that_somebody_filled_before_it_was_deleted_is_left_to_them(
    daemon: Stepped, warm: list[PooledTask], cvat: ScriptedCvat
) -> None:
    filled, renamed, empty = warm
    for task in warm:
        daemon.store.retire(task.id, reason="older than max_age", now=daemon.clock.now())
    cvat.put_task(filled.task_id or 0, filled.name, size=2, jobs=1)
    cvat.put_task(renamed.task_id or 0, "mine")
    assert daemon.run("delete") == DeletionReport(deleted=1, disowned=2)
    assert set(cvat.tasks_there) == {filled.task_id, renamed.task_id}
    assert state_of(daemon.store, filled) is TaskState.DELETED
    assert state_of(daemon.store, empty) is TaskState.DELETED
    assert service(daemon).run_once().done == {}, "nor is it an orphan afterwards"


def test_a_request_that_met_somebody_elses_data_gets_another_task(
    daemon: Stepped, warm: list[PooledTask], cvat: ScriptedCvat
) -> None:
    def put_theirs(operation: str) -> None:
        if operation == "upload" and cvat.count("upload") == 1:
            (task_id,) = uploads(cvat)
            cvat.put_task(task_id, cvat.tasks_there[task_id].name, size=2, jobs=1)

    cvat.before = put_theirs
    cvat.failures["upload"] = [
        CvatRejected('HTTP 400 Bad Request: ["Adding more data is not supported"]', http_status=400)
    ]
    request = daemon.pool.submit("scenes", FILES)
    assert request.state is RequestState.IMPORTING
    theirs, ours = uploads(cvat)
    assert request.task_id == ours != theirs
    assert daemon.run("delete") == DeletionReport(disowned=1)
    assert theirs in cvat.tasks_there


def test_a_burnt_task_is_deleted_with_our_data_in_it(
    daemon: Stepped, warm: list[PooledTask], cvat: ScriptedCvat
) -> None:
    request = daemon.pool.submit("scenes", FILES)
    task = next(each for each in warm if each.task_id == request.task_id)
    daemon.track()
    assert request.state is RequestState.FAILED, "CVAT made no jobs"
    cvat.put_task(task.task_id or 0, task.name, size=2, jobs=1)
    assert daemon.run("delete").deleted == 1
    assert task.task_id not in cvat.tasks_there


def test_nothing_is_deleted_unseen(
    daemon: Stepped, warm: list[PooledTask], cvat: ScriptedCvat, clock: ManualClock
) -> None:
    for task in warm:
        daemon.store.retire(task.id, reason="old", now=clock.now())
    cvat.failures["tasks"] = [CvatBusy("later", http_status=503)]
    assert daemon.run("delete") == DeletionReport(failed=3)
    assert cvat.count("delete_task") == 0
    clock.advance(61.0)
    assert daemon.run("delete") == DeletionReport(deleted=3)
