"""The services on a real store, with a scripted server and a clock that the test moves."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, cast

import pytest
from support.clock import ManualClock
from support.scripted import ScriptedCvat
from support.services import fill, one_round, open_lease, refill_of

from pool.config.settings import Template
from pool.config.source import build_upload
from pool.cvat.records import ImportState, ImportStatus
from pool.errors import (
    CvatAmbiguous,
    CvatBusy,
    CvatForbidden,
    CvatNotFound,
    CvatRejected,
    CvatUnreachable,
    PoolEmpty,
)
from pool.maintenance.deletion import Deletion
from pool.maintenance.heartbeat import TERM
from pool.maintenance.lease_expiry import LeaseExpiry
from pool.maintenance.refill import Refill
from pool.maintenance.retirement import Retirement
from pool.model import Handout, LeaseState, Outcome, RequestRecord, RequestState, TaskState
from pool.process import Process
from pool.store import NewRequest, Store
from pool.tracking.poll_schedule import FIRST_POLL_UNSEEN, TOGETHER

IMAGE = build_upload([("a.jpg", b"some bytes")])


@pytest.fixture
def refill(engine: Process) -> Refill:
    return refill_of(engine)


def levels(store: Store, template: Template) -> dict[str, int]:
    counts = store.levels()[template.name].counts
    return {state.value: count for state, count in counts.items() if count}


def new_request(number: int = 1) -> NewRequest:
    return NewRequest(id=f"request{number}", files=("a.jpg",), size=10)


def hand_out(engine: Process, template: Template, number: int = 1) -> Handout:
    opened = open_lease(engine, template, request=new_request(number))
    assert opened.task is not None
    return Handout(lease=opened.lease, task=opened.task, request=opened.request)


def submit(engine: Process, template: Template, number: int = 1) -> RequestRecord:
    return engine.runner.submit(
        template,
        new_request(number),
        IMAGE,
        idempotency_key=None,
        payload="",
        timeout=None,
        progress=None,
    )


def send(engine: Process, template: Template, handout: Handout) -> RequestRecord:
    assert handout.request is not None
    return engine.runner.run(template, handout, IMAGE)


def polls_of(cvat: ScriptedCvat) -> list[list[int]]:
    """The tasks that each poll asked for."""
    return [sorted(call[1]) for call in cvat.calls if call[0] == "jobs"]


def read(engine: Process, number: int = 1) -> RequestRecord:
    record = engine.store.request(f"request{number}")
    assert record is not None
    return record


# --- Refill ----------------------------------------------------------------------------------


def test_an_empty_pool_is_filled_to_its_target(
    engine: Process, refill: Refill, template: Template, cvat: ScriptedCvat
) -> None:
    assert fill(refill) == 3
    assert levels(engine.store, template) == {"warm": 3}
    assert cvat.count("create_task") == cvat.count("prepare_upload") == 3
    assert fill(refill) == 0


def test_every_task_bears_a_name_of_its_own_with_the_mark(
    engine: Process, refill: Refill, cvat: ScriptedCvat
) -> None:
    fill(refill)
    names = {task.name for task in cvat.tasks_there.values()}
    assert len(names) == 3
    assert all(f"[cvat-pool {engine.store.pool_id}]" in name for name in names)
    assert all("empty" in name for name in names)


def test_no_more_creates_are_in_flight_than_configured(
    engine: Process, refill: Refill, template: Template, cvat: ScriptedCvat
) -> None:
    most = 0

    def look(operation: str) -> None:
        nonlocal most
        if operation == "create_task":
            most = max(most, levels(engine.store, template)["creating"])

    cvat.before = look
    fill(refill)
    assert 1 <= most <= template.pool.create_concurrency


def test_a_failed_create_holds_the_template_and_is_tried_again(
    engine: Process, refill: Refill, template: Template, cvat: ScriptedCvat, clock: ManualClock
) -> None:
    cvat.failures["create_task"] = [CvatBusy("try later", http_status=429, retry_after=5.0)] * 2
    fill(refill)
    hold = engine.store.holds()[template.name]
    assert "try later" in hold.reason
    assert levels(engine.store, template) == {"failed": 2}
    asked = cvat.count("create_task")
    fill(refill)
    assert cvat.count("create_task") == asked, "a held template is left alone"
    clock.advance(10.0)
    fill(refill)
    assert levels(engine.store, template)["warm"] == 3
    assert engine.store.holds() == {}


def test_a_refused_template_holds_alone(
    engine: Process, refill: Refill, template: Template, cvat: ScriptedCvat, clock: ManualClock
) -> None:
    cvat.failures["create_task"] = [CvatForbidden("read-only")] * 2
    fill(refill)
    assert list(engine.store.holds()) == [template.name]
    clock.advance(61.0)
    assert fill(refill) == 3


def test_after_an_outage_one_create_tries_before_the_others(
    engine: Process, refill: Refill, cvat: ScriptedCvat, clock: ManualClock
) -> None:
    cvat.failures["create_task"] = [CvatUnreachable("down") for _ in range(3)]
    assert one_round(refill, cvat) == 2
    clock.advance(60.0)
    assert one_round(refill, cvat) == 1, "it failed, and the hold goes on"
    assert one_round(refill, cvat) == 0
    clock.advance(60.0)
    assert one_round(refill, cvat) == 1
    assert engine.store.holds() == {}
    assert fill(refill) == 2


def test_a_server_that_is_down_for_an_hour_is_not_hammered(
    engine: Process, refill: Refill, template: Template, cvat: ScriptedCvat, clock: ManualClock
) -> None:
    cvat.failures["create_task"] = [CvatUnreachable("down") for _ in range(10_000)]
    for _ in range(3600):
        fill(refill)
        clock.advance(1.0)
    assert 60 <= cvat.count("create_task") <= 600, "between one and ten a minute"
    cvat.failures.clear()
    clock.advance(60.0)
    assert fill(refill) == 3
    assert levels(engine.store, template)["warm"] == 3


def test_a_paused_template_is_left_alone(
    engine: Process, refill: Refill, template: Template, cvat: ScriptedCvat
) -> None:
    engine.store.pause(template.name, now=0.0)
    assert fill(refill) == 0
    engine.store.resume(template.name)
    assert fill(refill) == 3


def test_a_create_that_a_stop_prevents_leaves_nothing_half_made(
    engine: Process, refill: Refill, template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row is written, and then there is no worker any more."""
    begin_create = engine.store.begin_create

    def begin_and_stop(*arguments: Any, **options: Any) -> Any:
        task = begin_create(*arguments, **options)
        refill.stop(0.0)
        return task

    monkeypatch.setattr(engine.store, "begin_create", begin_and_stop, raising=False)
    assert refill.run_once() == 0
    assert levels(engine.store, template) == {"failed": 1}


def test_refilling_waits_until_it_is_quiet(
    engine: Process, refill: Refill, template: Template, cvat: ScriptedCvat, clock: ManualClock
) -> None:
    fill(refill)
    request = submit(engine, template)
    assert (refill.run_once(), refill.stepped_back) == (0, True)
    cvat.make_ready(request.task_id or 0)
    run_until_idle(engine, clock)
    assert (refill.run_once(), refill.stepped_back) == (0, True), "another one may follow"
    clock.advance(1.0)
    assert fill(refill) == 1
    assert not refill.stepped_back


def test_a_pool_about_to_run_dry_is_refilled_one_by_one(
    engine: Process, refill: Refill, template: Template, cvat: ScriptedCvat
) -> None:
    fill(refill)
    for number in range(3):
        submit(engine, template, number)
    assert one_round(refill, cvat) == 1
    assert levels(engine.store, template)["warm"] == 1


# --- Handing out -----------------------------------------------------------------------------


def test_a_warm_task_is_a_hit_without_a_call_to_the_server(
    engine: Process, refill: Refill, template: Template, cvat: ScriptedCvat
) -> None:
    fill(refill)
    cvat.calls.clear()
    handout = hand_out(engine, template)
    assert handout.lease.outcome is Outcome.HIT
    assert cvat.calls == []


def test_an_empty_pool_without_a_daemon_creates_directly(
    engine: Process, template: Template, cvat: ScriptedCvat, clock: ManualClock
) -> None:
    handout = hand_out(engine, template)
    assert handout.lease.outcome is Outcome.COLD
    assert handout.task.task_id in cvat.tasks_there
    assert clock.monotonic() == 0.0, "there is nobody to wait for"


def test_an_empty_pool_with_a_daemon_is_waited_for(
    engine: Process, template: Template, clock: ManualClock
) -> None:
    engine.store.acquire_maintenance("daemon", until=clock.now() + 99, now=clock.now())
    handout = hand_out(engine, template)
    assert handout.lease.outcome is Outcome.COLD
    assert clock.monotonic() == pytest.approx(template.pool.max_wait)


def test_on_empty_fail_fails_at_once(engine: Process, template: Template) -> None:
    strict = replace(template, pool=replace(template.pool, on_empty="fail"))
    with pytest.raises(PoolEmpty):
        submit(engine, strict)
    assert read(engine).state is RequestState.FAILED
    assert engine.store.leases([LeaseState.WAITING]) == []


def test_a_waiter_that_gives_up_swallows_no_task(
    engine: Process, refill: Refill, template: Template, clock: ManualClock
) -> None:
    patient = replace(template, pool=replace(template.pool, on_empty="wait"))
    engine.store.acquire_maintenance("daemon", until=clock.now() + 99, now=clock.now())
    with pytest.raises(PoolEmpty):
        submit(engine, patient)
    clock.advance(1.0)
    fill(refill)
    assert levels(engine.store, template) == {"warm": 3}


def test_a_failed_cold_create_leaves_nothing_waiting(
    engine: Process, template: Template, cvat: ScriptedCvat
) -> None:
    cvat.failures["create_task"] = [CvatForbidden("read-only")]
    with pytest.raises(CvatForbidden):
        submit(engine, template)
    assert engine.store.leases([LeaseState.WAITING]) == []
    assert read(engine).error_code == "cvat-forbidden"


# --- Requests --------------------------------------------------------------------------------


def test_an_unreachable_server_costs_no_task(
    engine: Process, refill: Refill, template: Template, cvat: ScriptedCvat
) -> None:
    fill(refill)
    cvat.failures["upload"] = [CvatUnreachable("refused")]
    with pytest.raises(CvatUnreachable):
        submit(engine, template)
    assert levels(engine.store, template) == {"warm": 3}


def test_a_refused_upload_burns_the_task(
    engine: Process, refill: Refill, template: Template, cvat: ScriptedCvat
) -> None:
    fill(refill)
    cvat.failures["upload"] = [CvatRejected("image_quality")]
    with pytest.raises(CvatRejected):
        submit(engine, template)
    assert levels(engine.store, template) == {"warm": 2, "failed": 1}


def test_a_task_deleted_behind_our_back_is_replaced(
    engine: Process, refill: Refill, template: Template, cvat: ScriptedCvat
) -> None:
    fill(refill)
    cvat.failures["upload"] = [CvatNotFound("No Task matches the given query.")]
    handout = hand_out(engine, template)
    request = send(engine, template, handout)
    assert request.state is RequestState.IMPORTING
    assert request.task_id != handout.task.task_id
    assert levels(engine.store, template) == {"warm": 1, "failed": 1, "importing": 1}


def test_a_lost_answer_is_settled_by_looking(
    engine: Process, refill: Refill, template: Template, cvat: ScriptedCvat
) -> None:
    fill(refill)
    handout = hand_out(engine, template)
    assert handout.task.task_id is not None
    cvat.failures["upload"] = [CvatAmbiguous("reset")]
    cvat.states[handout.task.task_id] = ImportState(status=ImportStatus.STARTED)
    request = send(engine, template, handout)
    assert cvat.count("upload") == 1, "never sent again to the same task"
    assert (request.state, request.task_id) == (RequestState.IMPORTING, handout.task.task_id)


def test_a_post_that_never_arrived_gets_another_task(
    engine: Process, refill: Refill, template: Template, cvat: ScriptedCvat
) -> None:
    fill(refill)
    cvat.failures["upload"] = [CvatAmbiguous("reset")]
    handout = hand_out(engine, template)
    request = send(engine, template, handout)
    assert request.task_id != handout.task.task_id
    uploads = [call[1] for call in cvat.calls if call[0] == "upload"]
    assert len(set(uploads)) == 2, "each task got the data at most once"


def test_a_request_does_not_try_for_ever(
    engine: Process, refill: Refill, template: Template, cvat: ScriptedCvat
) -> None:
    fill(refill)
    cvat.failures["upload"] = [CvatNotFound("gone") for _ in range(9)]
    with pytest.raises(CvatNotFound):
        submit(engine, template)
    assert cvat.count("upload") == 3
    assert read(engine).state is RequestState.FAILED


# --- Tracker ---------------------------------------------------------------------------------


@pytest.fixture
def importing(engine: Process, refill: Refill, template: Template) -> RequestRecord:
    fill(refill)
    return submit(engine, template)


def run_until_idle(engine: Process, clock: ManualClock, *, limit: float = 100.0) -> None:
    end = clock.monotonic() + limit
    while (wait := engine.tracker.seconds_until_due()) is not None and clock.monotonic() < end:
        clock.advance(wait)
        engine.tracker.run_once()


def test_the_first_list_of_jobs_ends_the_wait(
    engine: Process, importing: RequestRecord, cvat: ScriptedCvat, clock: ManualClock
) -> None:
    assert importing.task_id is not None and importing.pooled_id is not None
    cvat.make_ready(importing.task_id, jobs=2)
    run_until_idle(engine, clock)
    assert read(engine).state is RequestState.READY
    assert [job.start_frame for job in engine.store.jobs_of(importing.pooled_id)] == [0, 1]
    assert cvat.count("jobs") == 1
    assert cvat.count("import_state") == 0, "asked only when an import is late"


def test_what_was_learned_survives_a_restart(
    engine: Process, refill: Refill, template: Template, cvat: ScriptedCvat, clock: ManualClock
) -> None:
    for number in range(3):
        fill(refill)
        request = submit(engine, template, number)
        cvat.states[request.task_id or 0] = ImportState(status=ImportStatus.STARTED)
        run_until_idle(engine, clock, limit=2.0)
        cvat.make_ready(request.task_id or 0)
        run_until_idle(engine, clock)
        clock.advance(1.0)
    engine.tracker.stop()
    (pace,) = engine.store.learned_paces().values()
    assert pace.imports == 3
    assert 1.0 < pace.first < 2.5


def test_imports_due_together_go_into_one_poll(
    engine: Process, refill: Refill, template: Template, cvat: ScriptedCvat, clock: ManualClock
) -> None:
    fill(refill)
    requests = [submit(engine, template, n) for n in (1, 2, 3)]
    for request in requests:
        cvat.make_ready(request.task_id or 0)
    run_until_idle(engine, clock)
    polls = [call[1] for call in cvat.calls if call[0] == "jobs"]
    assert [sorted(poll) for poll in polls] == [sorted(r.task_id for r in requests if r.task_id)]


def test_imports_that_wait_are_polled_along_with_one_that_is_due(
    engine: Process, refill: Refill, template: Template, cvat: ScriptedCvat, clock: ManualClock
) -> None:
    """One more id in a poll costs next to nothing, where asking for it is not premature."""
    fill(refill)
    tracker, polls = engine.tracker, partial(polls_of, cvat)
    first, second = (submit(engine, template, n) for n in (1, 2))
    for request in (first, second):
        cvat.states[request.task_id or 0] = ImportState(status=ImportStatus.STARTED)
    # Both have been asked for, and long enough ago for the pauses of the two to drift apart.
    while clock.monotonic() < 5.0:
        clock.advance(tracker.seconds_until_due() or 0.0)
        tracker.run_once()
    # Tasks are warmed by several threads, so that the ids come in any order.
    both = sorted(filter(None, (first.task_id, second.task_id)))
    assert polls() == [both] * len(polls())

    # The moment of a new one is yet to come: a poll before that would be in vain.
    for number in (3, 4):
        late = submit(engine, template, number)
        accepted_at, seen = clock.monotonic(), len(polls())
        while not (asked := polls()[seen:]) or late.task_id not in asked[-1]:
            clock.advance(tracker.seconds_until_due() or 0.0)
            asked_at = clock.monotonic()
            tracker.run_once()
        assert asked_at - accepted_at == pytest.approx(FIRST_POLL_UNSEEN, abs=TOGETHER + 0.001)
        both = sorted([*both, late.task_id or 0])
        assert asked[-1] == both
    assert len(asked) > 2, "the third was asked for meanwhile"

    # A task into which its caller uploads by itself is looked at once in a while only.
    lease = open_lease(engine, template)
    assert lease.task is not None
    tracker.watch_lease(Handout(lease=lease.lease, task=lease.task))
    seen = len(polls())
    while clock.monotonic() < 8.0:
        clock.advance(tracker.seconds_until_due() or 0.0)
        tracker.run_once()
    own = [poll for poll in polls()[seen:] if lease.task.task_id in poll]
    assert 2 <= len(own) <= 4 < len(polls()[seen:])


def test_the_first_poll_is_answered_at_its_moment(
    engine: Process, refill: Refill, template: Template, cvat: ScriptedCvat, clock: ManualClock
) -> None:
    """It looks in the middle of its way there and back, which was learned of earlier polls."""
    asked_at: list[float] = []

    def travel(operation: str) -> None:
        if operation == "jobs":
            asked_at.append(clock.monotonic())
            clock.advance(0.08)

    fill(refill)
    cvat.before = travel
    before = submit(engine, template, 1)
    cvat.states[before.task_id or 0] = ImportState(status=ImportStatus.STARTED)
    run_until_idle(engine, clock, limit=20.0)
    cvat.make_ready(before.task_id or 0)
    run_until_idle(engine, clock)
    asked_at.clear()
    # Of another size, so that nothing is known but how far away the server is.
    larger = NewRequest(id="request2", files=("a.jpg",) * 9, size=90_000)
    opened = open_lease(engine, template, request=larger)
    assert opened.task is not None
    send(engine, template, Handout(lease=opened.lease, task=opened.task, request=opened.request))
    accepted_at = clock.monotonic()
    cvat.make_ready(opened.task.task_id or 0)
    run_until_idle(engine, clock)
    (first,) = asked_at
    assert first + 0.04 - accepted_at == pytest.approx(FIRST_POLL_UNSEEN, abs=0.005)


def test_a_deleted_task_is_told_apart(
    engine: Process, importing: RequestRecord, cvat: ScriptedCvat, clock: ManualClock
) -> None:
    cvat.states[importing.task_id or 0] = ImportState(status=ImportStatus.TASK_GONE)
    run_until_idle(engine, clock)
    assert read(engine).error_code == "task-gone"


def test_a_forgotten_import_is_given_up_after_several_answers(
    engine: Process, importing: RequestRecord, cvat: ScriptedCvat, clock: ManualClock
) -> None:
    run_until_idle(engine, clock)
    assert read(engine).error_code == "import-failed"
    assert cvat.count("import_state") == 3


def test_an_import_that_hangs_ends_with_the_templates_time_out(
    engine: Process, importing: RequestRecord, cvat: ScriptedCvat, clock: ManualClock
) -> None:
    cvat.states[importing.task_id or 0] = ImportState(status=ImportStatus.QUEUED)
    run_until_idle(engine, clock)
    assert read(engine).error_code == "import-timed-out"
    assert 60.0 <= clock.monotonic() < 62.0


def test_a_server_that_fails_while_polling_is_asked_again_later(
    engine: Process, importing: RequestRecord, cvat: ScriptedCvat, clock: ManualClock
) -> None:
    cvat.failures["jobs"] = [CvatUnreachable("down") for _ in range(5)]
    cvat.make_ready(importing.task_id or 0)
    run_until_idle(engine, clock)
    assert read(engine).state is RequestState.READY
    assert cvat.count("jobs") == 6
    assert clock.monotonic() > 2.0, "it backed off"


def test_imports_of_a_process_that_died_are_taken_over(
    engine: Process, importing: RequestRecord, cvat: ScriptedCvat, clock: ManualClock
) -> None:
    other = Process(engine.settings, store=engine.store, cvat=cast(Any, cvat), clock=clock)
    engine.heartbeat.run_once()
    assert other.recovery.adopt() == 0
    clock.advance(TERM + 1)
    assert other.recovery.adopt() == 1
    assert other.recovery.adopt() == 0
    cvat.make_ready(importing.task_id or 0)
    run_until_idle(other, clock)
    assert read(other).state is RequestState.READY
    other.close()


def test_a_callers_own_upload_is_followed(
    engine: Process, refill: Refill, template: Template, cvat: ScriptedCvat, clock: ManualClock
) -> None:
    fill(refill)
    opened = open_lease(engine, template)
    assert opened.task is not None and opened.task.task_id is not None
    (watched,) = engine.store.watched_leases()
    engine.tracker.watch_lease(watched)
    engine.tracker.run_once()
    cvat.make_ready(opened.task.task_id)
    run_until_idle(engine, clock)
    task = engine.store.task(opened.task.id)
    assert task is not None and task.state is TaskState.READY
    lease = engine.store.lease(opened.lease.id)
    assert lease is not None and lease.state is LeaseState.USED


# --- Retire, expire, delete, finalize ------------------------------------------------------------


def retirement(engine: Process, templates: dict[str, Template] | None = None) -> Retirement:
    chosen = engine.settings.templates if templates is None else templates
    return Retirement(engine.store, chosen, clock=engine.clock)


def expiry(engine: Process) -> LeaseExpiry:
    return LeaseExpiry(engine.store, engine.cvat(), clock=engine.clock)


def deletion(engine: Process) -> Deletion:
    return Deletion(engine.store, engine.cvat(), owner=engine.owner, clock=engine.clock)


def test_old_tasks_are_replaced_a_few_at_a_time(
    engine: Process, refill: Refill, template: Template, cvat: ScriptedCvat, clock: ManualClock
) -> None:
    fill(refill)
    first = set(cvat.tasks_there)
    service = retirement(engine)
    clock.advance(0.8 * template.pool.max_age - 1)
    assert service.run_once() == 0
    clock.advance(0.2 * template.pool.max_age + 2)
    assert service.run_once() == 2
    assert service.run_once() == 0, "not before they are replaced"
    fill(refill)
    assert service.run_once() == 1
    fill(refill)
    assert deletion(engine).run_once().deleted == 3
    assert len(cvat.tasks_there) == 3
    assert not first & set(cvat.tasks_there)


def test_old_tasks_are_kept_while_nothing_is_created(
    engine: Process, refill: Refill, template: Template, clock: ManualClock
) -> None:
    fill(refill)
    clock.advance(template.pool.max_age + 1)
    service = retirement(engine)
    engine.store.pause(template.name, now=clock.now())
    assert service.run_once() == 0
    engine.store.resume(template.name)
    assert service.run_once() == 2


def test_tasks_of_a_template_that_was_taken_out_are_retired(
    engine: Process, refill: Refill
) -> None:
    fill(refill)
    assert retirement(engine, {}).run_once() == 3


@pytest.mark.parametrize("fate", ["untouched", "deleted", "used", "filled"])
def test_an_expired_lease_is_followed_to_its_end(
    engine: Process,
    refill: Refill,
    template: Template,
    cvat: ScriptedCvat,
    clock: ManualClock,
    fate: str,
) -> None:
    fill(refill)
    opened = open_lease(engine, template, ttl=10.0)
    task = opened.task
    assert task is not None and task.task_id is not None
    if fate == "deleted":
        cvat.tasks_there.pop(task.task_id)
    if fate == "used":
        cvat.make_ready(task.task_id)
    if fate == "filled":
        cvat.put_task(task.task_id, task.name, size=3)
    assert expiry(engine).run_once() == 0, "not before its time"
    clock.advance(11.0)
    expiry(engine).run_once()
    states = {"untouched": "warm", "deleted": "retired", "used": "ready", "filled": "retired"}
    after = engine.store.task(task.id)
    assert after is not None and after.state.value == states[fate]


def test_an_expired_lease_that_cvat_cannot_tell_of_does_not_keep_the_others(
    engine: Process, refill: Refill, template: Template, cvat: ScriptedCvat, clock: ManualClock
) -> None:
    fill(refill)
    for _ in range(3):
        open_lease(engine, template, ttl=10.0)
    clock.advance(11.0)
    cvat.failures["import_state"] = [CvatForbidden("no"), CvatForbidden("no")]
    service = expiry(engine)
    assert service.run_once() == 1
    asked = cvat.count("import_state")
    assert service.run_once() == 0
    assert cvat.count("import_state") == asked, "not before a while has passed"
    clock.advance(61.0)
    assert service.run_once() == 2


def test_a_task_that_cannot_be_deleted_does_not_starve_the_others(
    engine: Process, refill: Refill, template: Template, cvat: ScriptedCvat, clock: ManualClock
) -> None:
    fill(refill)
    retirement(engine, {}).run_once()
    cvat.failures["delete_task"] = [CvatBusy("no", http_status=500)]
    report = deletion(engine).run_once()
    assert (report.deleted, report.failed) == (2, 1)
    assert deletion(engine).run_once().deleted == 0
    clock.advance(61.0)
    assert deletion(engine).run_once().deleted == 1
