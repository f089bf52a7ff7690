"""What a daemon's services do, and what the callers of its process get meanwhile: refilling,
handing out, tracking, retiring, deleting.

The services run one by one, on a scripted CVAT and a clock that the test moves.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from support.clock import ManualClock
from support.scripted import ScriptedCvat
from support.stepped import (
    CONTENT,
    FAILED,
    IMPORTING,
    QUEUED,
    READY,
    Start,
    Stepped,
    caller,
    go_down,
    uploads,
)
from support.waiting import poll_until

from pool import Request, TaskPool
from pool.config.settings import Settings, Template
from pool.cvat.records import ImportState, ImportStatus
from pool.errors import (
    CvatBusy,
    CvatError,
    CvatForbidden,
    CvatNotFound,
    CvatRejected,
    CvatUnreachable,
    PoolEmpty,
    PoolError,
)
from pool.maintenance.heartbeat import TERM
from pool.model import LeaseState, Outcome, TaskState
from pool.store import Store
from pool.tracking.poll_schedule import FIRST_POLL_UNSEEN, TOGETHER


@pytest.fixture
def alone(
    settings: Settings, store: Store, cvat: ScriptedCvat, clock: ManualClock
) -> Iterator[TaskPool]:
    """A process without a daemon on its store."""
    with caller(settings, store, cvat, clock) as pool:
        yield pool


def submit(pool: TaskPool, name: str = "a.jpg") -> Request:
    return pool.submit("scenes", [(name, CONTENT)])


def with_pool(template: Template, **changes: Any) -> Template:
    return replace(template, pool=replace(template.pool, **changes))


# --- What wakes the services --------------------------------------------------------------------


def test_a_hand_out_wakes_no_dispatcher_while_no_request_waits(
    daemon: Stepped, monkeypatch: pytest.MonkeyPatch
) -> None:
    woken = list[str]()
    for scheduler in (daemon.maintenance.scheduler, daemon._daemon.scheduler):
        monkeypatch.setattr(scheduler, "wake", woken.append)

    def wakes(service: str) -> None:
        """It is woken once the news has come through."""

        def woken_now() -> bool:
            daemon.maintenance.wake_services()
            daemon._daemon.wake_dispatcher()
            return service in woken

        poll_until(woken_now)

    daemon.pool.acquire("scenes")
    wakes("refill")
    assert "dispatch" not in woken
    go_down(daemon.cvat)
    woken.clear()
    waiting = submit(daemon.pool)
    wakes("dispatch")
    assert daemon.read(waiting.id).state is QUEUED
    # Now that one waits, it may be what any change makes possible.
    daemon.run("dispatch")
    woken.clear()
    daemon.pool.prewarm("scenes", 3)
    wakes("dispatch")


# --- Refill -----------------------------------------------------------------------------------


def test_an_empty_pool_is_filled_to_its_target(
    empty: Stepped, store: Store, template: Template, cvat: ScriptedCvat
) -> None:
    most = 0

    def look(operation: str) -> None:
        nonlocal most
        if operation == "create_task":
            most = max(most, empty.levels()["creating"])

    cvat.before = look
    assert empty.fill() == 3
    assert 1 <= most <= template.pool.create_concurrency
    assert empty.levels() == {"warm": 3}
    assert cvat.count("create_task") == cvat.count("prepare_upload") == 3
    assert empty.fill() == 0
    names = {task.name for task in cvat.tasks_there.values()}
    assert len(names) == 3, "each has a name of its own"
    assert all(f"[cvat-pool {store.pool_id}]" in name and "empty" in name for name in names)


def test_a_failed_create_holds_the_template_and_is_tried_again(
    empty: Stepped, store: Store, template: Template, cvat: ScriptedCvat
) -> None:
    cvat.failures["create_task"] = [CvatBusy("try later", http_status=429, retry_after=5.0)] * 2
    empty.fill()
    assert "try later" in store.holds()[template.name].reason
    assert empty.levels() == {"failed": 2}
    asked = cvat.count("create_task")
    empty.fill()
    assert cvat.count("create_task") == asked, "a held template is left alone"
    empty.advance(10.0)
    empty.fill()
    assert empty.levels()["warm"] == 3
    assert store.holds() == {}


def test_a_refused_template_holds_alone(
    empty: Stepped, store: Store, template: Template, cvat: ScriptedCvat
) -> None:
    cvat.failures["create_task"] = [CvatForbidden("read-only")] * 2
    empty.fill()
    assert list(store.holds()) == [template.name]
    empty.advance(61.0)
    assert empty.fill() == 3


def test_after_an_outage_one_create_tries_before_the_others(
    empty: Stepped, store: Store, cvat: ScriptedCvat
) -> None:
    cvat.failures["create_task"] = [CvatUnreachable("down") for _ in range(3)]
    assert empty.one_round() == 2
    empty.advance(60.0)
    assert empty.one_round() == 1, "it failed, and the hold goes on"
    assert empty.one_round() == 0
    empty.advance(60.0)
    assert empty.one_round() == 1
    assert store.holds() == {}
    assert empty.fill() == 2


def test_a_server_that_is_down_for_an_hour_is_not_hammered(
    empty: Stepped, cvat: ScriptedCvat, clock: ManualClock
) -> None:
    cvat.failures["create_task"] = [CvatUnreachable("down") for _ in range(10_000)]
    for _ in range(3600):
        empty.fill()
        clock.advance(1.0)
    assert 60 <= cvat.count("create_task") <= 600, "between one and ten a minute"
    cvat.failures.clear()
    empty.advance(60.0)
    assert empty.fill() == 3
    assert empty.levels()["warm"] == 3


def test_a_paused_template_is_left_alone(empty: Stepped) -> None:
    empty.pool.pause("scenes")
    assert empty.fill() == 0
    empty.pool.resume("scenes")
    assert empty.fill() == 3


def test_a_create_that_a_stop_prevents_leaves_nothing_half_made(
    empty: Stepped, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row is written, and then there is no worker any more."""
    begin_create = store.begin_create

    def begin_and_stop(*arguments: Any, **options: Any) -> Any:
        task = begin_create(*arguments, **options)
        empty.maintenance.begin_no_more()
        return task

    monkeypatch.setattr(store, "begin_create", begin_and_stop, raising=False)
    assert empty.fill() == 0
    assert empty.levels() == {"failed": 1}


def test_refilling_waits_until_it_is_quiet(daemon: Stepped) -> None:
    submit(daemon.pool)
    assert (daemon.run("refill"), daemon.refill.stepped_back) == (0, True)
    daemon.import_all()
    assert daemon.run("refill") == 0, "another one may follow"
    daemon.advance(1.0)
    assert daemon.fill() == 1
    assert not daemon.refill.stepped_back


def test_a_pool_about_to_run_dry_is_refilled_one_by_one(
    daemon: Stepped, cvat: ScriptedCvat
) -> None:
    for _ in range(3):
        submit(daemon.pool)
    assert daemon.one_round() == 1
    assert daemon.levels()["warm"] == 1


# --- Handing out, and sending on the caller's thread ------------------------------------------


def test_an_empty_pool_without_a_daemon_creates_directly(
    alone: TaskPool, cvat: ScriptedCvat, clock: ManualClock
) -> None:
    lease = alone.acquire("scenes")
    assert lease.outcome is Outcome.COLD
    assert lease.task_id in cvat.tasks_there
    assert clock.monotonic() == 0.0, "there is nothing to wait for"


def test_an_empty_pool_with_a_daemon_is_waited_for(
    empty: Stepped, template: Template, clock: ManualClock
) -> None:
    assert empty.pool.acquire("scenes").outcome is Outcome.COLD
    assert clock.monotonic() == pytest.approx(template.pool.max_wait)


@pytest.mark.parametrize(
    ("on_empty", "refusal", "error"),
    [
        ("fail", None, PoolEmpty),
        ("wait", None, PoolEmpty),
        ("create", CvatForbidden("read-only"), CvatForbidden),
    ],
)
def test_a_caller_that_gets_no_task_leaves_nothing_that_would_swallow_one(
    start: Start,
    store: Store,
    template: Template,
    cvat: ScriptedCvat,
    on_empty: str,
    refusal: CvatError | None,
    error: type[PoolError],
) -> None:
    daemon = start(with_pool(template, on_empty=on_empty))
    cvat.failures["create_task"] = [refusal] if refusal else []
    with pytest.raises(error):
        submit(daemon.pool)
    (record,) = store.requests().requests
    assert (record.state, record.error_code) == (FAILED, error.code)
    assert store.leases([LeaseState.WAITING]) == []
    daemon.advance(61.0)
    daemon.fill()
    assert daemon.levels()["warm"] == 3


@pytest.mark.parametrize(
    ("error", "tried"), [(CvatRejected("image_quality"), 1), (CvatNotFound("gone"), 3)]
)
def test_a_request_tries_no_other_task_in_vain_and_none_for_ever(
    daemon: Stepped, store: Store, cvat: ScriptedCvat, error: CvatError, tried: int
) -> None:
    cvat.failures["upload"] = [error] * 9
    with pytest.raises(type(error)):
        submit(daemon.pool)
    assert len(set(uploads(cvat))) == cvat.count("upload") == tried, "each of them is burnt"
    assert daemon.levels().get("warm", 0) == 3 - tried
    (record,) = store.requests().requests
    assert record.state is FAILED


def test_uploads_of_a_caller_run_one_at_a_time_on_its_thread(
    daemon: Stepped, cvat: ScriptedCvat
) -> None:
    """Neither the daemon's workers nor any other thread sends them: they are done on return."""
    senders: list[threading.Thread] = []
    cvat.before = lambda operation: (
        senders.append(threading.current_thread()) if operation == "upload" else None
    )
    for number in range(3):
        request = submit(daemon.pool, f"{number}.jpg")
        assert request.state is IMPORTING
        assert senders == [threading.current_thread()] * (number + 1)
    assert uploads(cvat)[-1] == request.task_id
    callers = [threading.Thread(target=submit, args=(daemon.pool,)) for _ in range(2)]
    for each in callers:
        each.start()
    for each in callers:
        each.join()
    assert set(senders[3:]) == set(callers), "each caller's on its own"


# --- Tracker ----------------------------------------------------------------------------------


@pytest.fixture
def importing(daemon: Stepped) -> Request:
    return submit(daemon.pool)


def polls_of(cvat: ScriptedCvat) -> list[list[int]]:
    """The tasks that each poll asked for."""
    return [sorted(call[1]) for call in cvat.calls if call[0] == "jobs"]


def begin(daemon: Stepped, *names: str) -> list[int]:
    """Imports that CVAT is at work on; the ids of their tasks."""
    tasks = [submit(daemon.pool, name).task_id or 0 for name in names]
    daemon.cvat.states.update({each: ImportState(status=ImportStatus.STARTED) for each in tasks})
    return tasks


def test_the_first_list_of_jobs_ends_the_wait(
    daemon: Stepped, importing: Request, cvat: ScriptedCvat
) -> None:
    cvat.make_ready(importing.task_id or 0, jobs=2)
    daemon.track()
    assert [job.start_frame for job in importing.jobs(timeout=0)] == [0, 1]
    assert cvat.count("jobs") == 1
    assert cvat.count("import_state") == 0, "asked only when an import is late"


def test_what_was_learned_survives_a_restart(
    daemon: Stepped, store: Store, cvat: ScriptedCvat, clock: ManualClock
) -> None:
    for _ in range(3):
        daemon.fill()
        (task_id,), began = begin(daemon, "a.jpg"), clock.monotonic()
        daemon.track(until=lambda began=began: clock.monotonic() >= began + 2.0)  # type: ignore[misc]
        cvat.make_ready(task_id)
        daemon.track()
        daemon.advance(1.0)
    daemon.stop()
    (pace,) = store.learned_paces().values()
    assert pace.imports == 3
    assert 1.0 < pace.first < 2.5


def test_imports_due_together_go_into_one_poll(daemon: Stepped, cvat: ScriptedCvat) -> None:
    tasks = begin(daemon, "a.jpg", "b.jpg", "c.jpg")
    daemon.import_all()
    assert polls_of(cvat) == [sorted(tasks)]


def test_imports_that_wait_are_polled_along_with_one_that_is_due(
    daemon: Stepped, cvat: ScriptedCvat, clock: ManualClock
) -> None:
    """One more id in a poll costs next to nothing, where asking for it is not premature."""
    polls = partial(polls_of, cvat)
    # Both have been asked for, and long enough ago for the pauses of the two to drift apart.
    both = sorted(begin(daemon, "a.jpg", "b.jpg"))
    daemon.track(until=lambda: clock.monotonic() >= 5.0)
    assert polls() == [both] * len(polls())

    # The moment of a new one is yet to come: a poll before that would be in vain.
    for _ in range(2):
        late, accepted_at, seen = submit(daemon.pool).task_id, clock.monotonic(), len(polls())
        asked: list[list[int]] = []
        while late not in [task_id for poll in asked for task_id in poll]:
            daemon.advance(daemon.process.tracker.seconds_until_due() or 0.0)
            asked_at = clock.monotonic()
            daemon.process.tracker.run_once()
            asked = polls()[seen:]
        assert asked_at - accepted_at == pytest.approx(FIRST_POLL_UNSEEN, abs=TOGETHER + 0.001)
        both = sorted([*both, late or 0])
        assert asked[-1] == both
        daemon.fill()
    assert len(asked) > 2, "the third was asked for meanwhile"

    # A task into which its caller uploads by itself is looked at once in a while only.
    daemon.advance(2.0)
    lease, seen, end = daemon.pool.acquire("scenes"), len(polls()), clock.monotonic() + 4.0
    daemon.run("leases")
    daemon.track(until=lambda: clock.monotonic() >= end)
    own = [poll for poll in polls()[seen:] if lease.task_id in poll]
    assert 2 <= len(own) <= 5


def test_the_first_poll_is_answered_at_its_moment(
    daemon: Stepped, cvat: ScriptedCvat, clock: ManualClock
) -> None:
    """It looks in the middle of its way there and back, which was learned of earlier polls."""
    asked_at: list[float] = []

    def travel(operation: str) -> None:
        if operation == "jobs":
            asked_at.append(clock.monotonic())
            clock.advance(0.08)

    cvat.before = travel
    begin(daemon, "a.jpg")
    daemon.track(until=lambda: clock.monotonic() >= 20.0)
    daemon.import_all()
    asked_at.clear()
    # Of another size, so that nothing is known but how far away the server is.
    files = [(f"{number}.jpg", bytes(10_000)) for number in range(9)]
    daemon.pool.submit("scenes", files)
    accepted_at = clock.monotonic()
    daemon.import_all()
    (first,) = asked_at
    assert first + 0.04 - accepted_at == pytest.approx(FIRST_POLL_UNSEEN, abs=0.005)


@pytest.mark.parametrize(
    ("status", "code", "asked"),
    [
        (ImportStatus.TASK_GONE, "task-gone", 1),
        # Forgotten: given up after several answers.
        (ImportStatus.UNKNOWN, "import-failed", 3),
        (ImportStatus.QUEUED, "import-timed-out", None),
    ],
)
def test_an_import_that_comes_to_no_end_is_given_up(
    daemon: Stepped,
    importing: Request,
    cvat: ScriptedCvat,
    clock: ManualClock,
    status: ImportStatus,
    code: str,
    asked: int | None,
) -> None:
    cvat.states[importing.task_id or 0] = ImportState(status=status)
    daemon.track()
    assert daemon.read(importing.id).error_code == code
    if asked is None:
        assert 60.0 <= clock.monotonic() < 62.0, "as long as the template says"
    else:
        assert cvat.count("import_state") == asked


def test_a_server_that_fails_while_polling_is_asked_again_later(
    daemon: Stepped, importing: Request, cvat: ScriptedCvat, clock: ManualClock
) -> None:
    cvat.failures["jobs"] = [CvatUnreachable("down") for _ in range(5)]
    daemon.import_all()
    assert importing.state is READY
    assert cvat.count("jobs") == 6
    assert clock.monotonic() > 2.0, "it backed off"


def test_imports_of_a_process_that_died_are_taken_over(
    daemon: Stepped, start: Start, importing: Request, clock: ManualClock
) -> None:
    heir = start()
    assert heir.process.recovery.adopt() == 0
    heir.advance(TERM + 1.0)
    assert heir.run("adopt") == 1
    assert heir.run("adopt") == 0
    heir.import_all()
    assert heir.states(importing.id) == {READY}


def test_a_callers_own_upload_is_followed(
    daemon: Stepped, store: Store, cvat: ScriptedCvat
) -> None:
    lease = daemon.pool.acquire("scenes")
    daemon.run("leases")
    daemon.process.tracker.run_once()
    cvat.make_ready(lease.task_id)
    daemon.track()
    record = store.lease(lease.id)
    assert record is not None and record.state is LeaseState.USED
    task = store.task(record.pooled_id or "")
    assert task is not None and task.state is TaskState.READY


# --- Retire, expire, delete -------------------------------------------------------------------


def test_old_tasks_are_replaced_a_few_at_a_time(
    daemon: Stepped, template: Template, cvat: ScriptedCvat
) -> None:
    first, old = set(cvat.tasks_there), template.pool.max_age
    daemon.advance(0.8 * old - 1)
    assert daemon.run("retirement") == 0
    daemon.advance(0.2 * old + 2)
    assert daemon.run("retirement") == 2
    assert daemon.run("retirement") == 0, "not before they are replaced"
    daemon.fill()
    assert daemon.run("retirement") == 1
    daemon.fill()
    assert daemon.run("delete").deleted == 3
    assert len(cvat.tasks_there) == 3
    assert not first & set(cvat.tasks_there)


def test_old_tasks_are_kept_while_none_is_created(daemon: Stepped, template: Template) -> None:
    daemon.advance(template.pool.max_age + 1)
    daemon.pool.pause("scenes")
    assert daemon.run("retirement") == 0
    daemon.pool.resume("scenes")
    assert daemon.run("retirement") == 2


def take_out(daemon: Stepped) -> None:
    """The template is taken out of the configuration."""
    daemon.process.templates.replace({})
    assert daemon.run("retirement") == 3


def test_a_task_that_cannot_be_deleted_does_not_starve_the_others(
    daemon: Stepped, cvat: ScriptedCvat
) -> None:
    take_out(daemon)
    cvat.failures["delete_task"] = [CvatBusy("no", http_status=500)]
    report = daemon.run("delete")
    assert (report.deleted, report.failed) == (2, 1)
    assert daemon.run("delete").deleted == 0
    daemon.advance(61.0)
    assert daemon.run("delete").deleted == 1


@pytest.mark.parametrize(
    ("fate", "state"),
    [("untouched", "warm"), ("deleted", "retired"), ("used", "ready"), ("filled", "retired")],
)
def test_an_expired_lease_is_followed_to_its_end(
    daemon: Stepped, store: Store, cvat: ScriptedCvat, fate: str, state: str
) -> None:
    lease = daemon.pool.acquire("scenes", ttl=10.0)
    record = store.lease(lease.id)
    assert record is not None
    if fate == "deleted":
        cvat.tasks_there.pop(lease.task_id)
    if fate == "used":
        cvat.make_ready(lease.task_id)
    if fate == "filled":
        cvat.put_task(lease.task_id, lease.task_name, size=3)
    assert daemon.run("lease_expiry") == 0, "not before its time"
    daemon.advance(11.0)
    daemon.run("lease_expiry")
    after = store.task(record.pooled_id or "")
    assert after is not None and after.state.value == state


def test_an_expired_lease_that_cvat_cannot_tell_of_does_not_keep_the_others(
    daemon: Stepped, cvat: ScriptedCvat
) -> None:
    for _ in range(3):
        daemon.pool.acquire("scenes", ttl=10.0)
    daemon.advance(11.0)
    cvat.failures["import_state"] = [CvatForbidden("no"), CvatForbidden("no")]
    assert daemon.run("lease_expiry") == 1
    asked = cvat.count("import_state")
    assert daemon.run("lease_expiry") == 0
    assert cvat.count("import_state") == asked, "not before a while has passed"
    daemon.advance(61.0)
    assert daemon.run("lease_expiry") == 2
