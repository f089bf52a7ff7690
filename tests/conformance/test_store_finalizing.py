"""What is left to do for ready tasks, and the warnings of what was given up."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.daemons import OWNER, maintains

from conformance.store_scene import JOBS, NOW, Scene
from pool.model import (
    FinalKind,
    FinalStep,
    Hidden,
    Job,
    LeaseState,
    RequestState,
    RequestWarning,
    new_id,
)
from pool.store import FINAL_GRACE, NewRequest, Opened

NAME, ASSIGN = FinalKind.NAME, FinalKind.ASSIGN
REFUSED = RequestWarning(code="not-named", text='not "n"')


def ready(scene: Scene, *, now: float = NOW) -> Opened:
    opened = scene.importing()
    assert scene.store.complete_import(opened.lease.pooled_id or "", JOBS, now=now)
    return opened


def due(scene: Scene, now: float, *, limit: int = 9) -> list[tuple[str | None, FinalKind]]:
    """Of which lease, and what."""
    steps = scene.store.due_steps(now=now, limit=limit)
    return [(step.task.lease_id, step.kind) for step in steps]


def test_a_ready_task_is_left_a_while_to_who_has_served_it(scene: Scene) -> None:
    asked, foreign = ready(scene), scene.leased()
    scene.store.complete_import(foreign.lease.pooled_id or "", JOBS, now=NOW + 2)
    assert due(scene, NOW + FINAL_GRACE - 0.1) == []
    first = [(asked.lease.id, NAME), (asked.lease.id, ASSIGN)]
    assert due(scene, NOW + FINAL_GRACE + 1) == first
    assert due(scene, NOW + FINAL_GRACE + 2) == [*first, (foreign.lease.id, NAME)]
    assert due(scene, NOW + 99, limit=1) == first[:1]
    assert due(scene, NOW + 99, limit=2) == first
    (step, _) = scene.store.steps_of(asked.lease.pooled_id or "")
    assert step == FinalStep(
        kind=NAME,
        task=scene.task(asked.lease.pooled_id),
        request=scene.request(asked.request),
        tries=0,
        since=NOW,
        due_at=NOW + FINAL_GRACE,
    )


def step_of(scene: Scene, opened: Opened, kind: FinalKind) -> FinalStep:
    """One step of a hand-out's task, as it was left, or would be."""
    return FinalStep(
        kind=kind,
        task=scene.task(opened.lease.pooled_id),
        request=opened.request,
        tries=0,
        since=NOW,
        due_at=NOW,
    )


def test_the_name_of_a_callers_own_upload_is_left_too(scene: Scene) -> None:
    opened = scene.leased()
    scene.store.complete_import(opened.lease.pooled_id or "", JOBS, now=NOW)
    (step,) = scene.store.due_steps(now=NOW + FINAL_GRACE, limit=9)
    assert (step.kind, step.request) == (NAME, None)
    assert scene.store.postpone_step(step, tries=1, left=None, due_at=NOW + 90)
    assert scene.store.end_step(step, name="n", now=NOW + 91)
    assert scene.task(opened.lease.pooled_id).name == "n"
    assert scene.store.steps_of(opened.lease.pooled_id or "") == []


def test_nothing_is_left_for_a_task_that_is_not_ready(scene: Scene) -> None:
    opened = scene.importing()
    assert scene.store.steps_of(opened.lease.pooled_id or "") == []
    assert not scene.store.end_step(step_of(scene, opened, NAME), name="n", now=NOW)
    assert scene.task(opened.lease.pooled_id).name != "n"


def test_a_step_ends_once_and_alone(scene: Scene) -> None:
    opened = ready(scene)
    pooled_id = opened.lease.pooled_id or ""
    step = step_of(scene, opened, NAME)
    assert scene.store.end_step(step, name="monday", now=NOW + 4)
    assert not scene.store.end_step(step, name="tuesday", now=NOW + 5)
    assert scene.task(pooled_id).name == "monday"
    assert due(scene, NOW + 99) == [(opened.lease.id, ASSIGN)]


def test_a_step_that_failed_goes_behind_the_others_and_keeps_what_is_left(scene: Scene) -> None:
    opened, other = ready(scene), ready(scene)
    pooled_id = opened.lease.pooled_id or ""
    assign = step_of(scene, opened, ASSIGN)
    assert scene.store.postpone_step(assign, tries=2, left=[31], due_at=NOW + 90)
    assert due(scene, NOW + 99) == [
        (opened.lease.id, NAME),
        (other.lease.id, NAME),
        (other.lease.id, ASSIGN),
        (opened.lease.id, ASSIGN),
    ]
    (_, step) = scene.store.steps_of(pooled_id)
    assert (step.tries, step.left, step.due_at) == (2, (31,), NOW + 90)
    scene.store.end_step(assign, now=NOW)
    assert not scene.store.postpone_step(assign, tries=3, left=None, due_at=NOW)


def test_what_was_given_up_stands_on_the_request_and_is_an_event(scene: Scene) -> None:
    opened = ready(scene)
    before = scene.store.last_event_id()
    scene.store.end_step(step_of(scene, opened, NAME), warning=REFUSED, now=NOW + 7)
    assert scene.request(opened.request).warnings == (REFUSED,)
    (event,) = scene.store.events_after(before, limit=9)
    assert (event.kind, event.code, event.at) == ("request.warned", "not-named", NOW + 7)
    assert (event.request_id, event.state) == (scene.request(opened.request).id, "ready")


def test_a_request_is_warned_once_of_each_thing_whatever_its_state(scene: Scene) -> None:
    request = scene.queued().request
    assert request is not None
    assert scene.store.warn(request.id, REFUSED, now=NOW)
    assert not scene.store.warn(request.id, REFUSED, now=NOW + 1)
    other = RequestWarning(code="unknown-assignee", text="nobody \udc80")
    assert scene.store.warn(request.id, other, now=NOW + 2)
    kept = RequestWarning(code="unknown-assignee", text="nobody ?")
    assert scene.request(request).warnings == (REFUSED, kept)
    kinds = [each.kind for each in scene.store.events_after(0, limit=99)]
    assert kinds.count("request.warned") == 2
    assert not scene.store.warn("none", REFUSED, now=NOW)


def test_a_clock_that_was_set_back_does_not_keep_a_step(scene: Scene) -> None:
    ready(scene)
    now = NOW - 5000
    term = maintains(scene.store, until=now + 6.0, now=now).term
    scene.store.move_times(-5000.0, since=now, grace=9.0, term=term, owner=OWNER, now=now)
    assert len(due(scene, NOW - 5000)) == 2


# --- Jobs that are divided among a template's assignees -------------------------------------------


def divided(scene: Scene, among: list[int | str], jobs: int, *, by_load: bool = False) -> list[Any]:
    """Whom so many jobs of a fresh task are given to."""
    opened = scene.importing(request=NewRequest(id=new_id(), files=("a.jpg",), size=1))
    pooled_id = opened.lease.pooled_id or ""
    made = [Job(id=n, url="u", start_frame=n, stop_frame=n) for n in range(1, jobs + 1)]
    assert scene.store.complete_import(pooled_id, made, divided=True, now=NOW)
    scene.store.divide_jobs(pooled_id, among, by_load=by_load)
    (step,) = (each for each in scene.store.steps_of(pooled_id) if each.kind == ASSIGN)
    given = scene.store.divided_jobs(step)
    assert list(given) == [job.id for job in made]
    scene.store.divide_jobs(pooled_id, ["late"], by_load=by_load)
    assert scene.store.divided_jobs(step) == given, "once for all"
    return list(given.values())


def test_jobs_are_given_in_turn(scene: Scene) -> None:
    assert divided(scene, ["ann", 7], 3) == ["ann", 7, "ann"]
    assert divided(scene, ["ann", 7], 2) == [7, "ann"]
    assert divided(scene, ["ann", 7, "new"], 4) == ["new", 7, "ann", "new"], "new ones come first"
    assert divided(scene, ["ann"], 2) == ["ann", "ann"]


def test_jobs_are_given_to_those_who_have_the_fewest(scene: Scene) -> None:
    users: list[int | str] = ["ann", 7, "bob"]
    for user, jobs in zip(users, (5, 3, 4), strict=True):
        scene.store.keep_workload(user, jobs, now=NOW)
    assert divided(scene, users, 4, by_load=True) == [7, "bob", 7, "ann"]
    assert divided(scene, ["bob"], 2) == ["bob", "bob"], "in turn, which counts as well"
    assert divided(scene, users, 2, by_load=True) == [7, "ann"]
    assert divided(scene, ["late", "ann"], 2, by_load=True) == ["late", "ann"], "not counted yet"


def test_a_workload_is_counted_again_after_a_while(scene: Scene) -> None:
    scene.store.keep_workload("ann", 1, now=NOW)
    for now, due in ((NOW + 9, [7]), (NOW + 11, ["ann", 7]), (NOW - 1, ["ann", 7])):
        assert scene.store.workloads_to_count(["ann", 7], older_than=10, now=now) == due


def test_jobs_of_a_request_that_names_an_assignee_are_its_own(scene: Scene) -> None:
    opened = scene.importing()
    pooled_id = opened.lease.pooled_id or ""
    assert scene.store.complete_import(pooled_id, JOBS, divided=True, now=NOW)
    scene.store.divide_jobs(pooled_id, ["ann"])
    (_, step) = scene.store.steps_of(pooled_id)
    assert (step.request is not None, scene.store.divided_jobs(step)) == (True, {})


def test_a_callers_own_upload_is_divided_too(scene: Scene) -> None:
    opened = scene.leased()
    pooled_id = opened.lease.pooled_id or ""
    scene.store.complete_import(pooled_id, JOBS, divided=True, now=NOW)
    scene.store.divide_jobs(pooled_id, ["ann", "bob"])
    (_, step) = scene.store.steps_of(pooled_id)
    assert (step.kind, step.request) == (ASSIGN, None)
    assert scene.store.divided_jobs(step) == {31: "ann", 32: "bob"}
    assert scene.store.postpone_step(step, tries=0, left=[32], assigned={31: "Ann"}, due_at=NOW)
    assert scene.store.end_step(step, assigned={32: "Bob"}, now=NOW)
    assert [job.assignee for job in scene.store.jobs_of(pooled_id)] == ["Ann", "Bob"]


@pytest.mark.parametrize("assignee", [7, "ann", "0x"])
def test_an_assignee_is_kept_as_it_was_given(scene: Scene, assignee: int | str) -> None:
    request = NewRequest(id=new_id(), assignee=assignee, files=("a.jpg",), size=1)
    opened = scene.importing(request=request)
    assert scene.request(opened.request).assignee == assignee


# --- Hiding frames -------------------------------------------------------------------------------


def hide_step(scene: Scene, opened: Opened) -> FinalStep:
    (step,) = (
        step
        for step in scene.store.steps_of(opened.lease.pooled_id or "")
        if step.kind is FinalKind.HIDE
    )
    return step


@pytest.mark.parametrize("asked", ["on its way", "ready"])
def test_frames_are_hidden_once_they_exist(scene: Scene, asked: str) -> None:
    opened = scene.importing() if asked == "on its way" else ready(scene)
    assert opened.request is not None
    hidden = scene.store.hide_request(opened.request.id, now=NOW + 1)
    assert hidden is not None and hidden.hidden is Hidden.PENDING
    if asked == "on its way":
        assert scene.store.steps_of(opened.lease.pooled_id or "") == []
        scene.store.complete_import(opened.lease.pooled_id or "", JOBS, now=NOW + 2)
    step = hide_step(scene, opened)
    assert scene.store.hide_request(opened.request.id, now=NOW + 3) == step.request
    assert scene.store.end_step(step, now=NOW + 4)
    assert scene.request(opened.request).hidden is Hidden.DONE
    scene.store.hide_request(opened.request.id, now=NOW + 5)
    assert FinalKind.HIDE not in {
        step.kind for step in scene.store.steps_of(opened.lease.pooled_id or "")
    }


def test_what_could_not_be_hidden_may_be_tried_again(scene: Scene) -> None:
    opened = ready(scene)
    assert opened.request is not None
    for number in range(2):
        scene.store.hide_request(opened.request.id, now=NOW + number)
        warning = RequestWarning(code="not-hidden", text="no")
        assert scene.store.end_step(hide_step(scene, opened), warning=warning, now=NOW + number)
        assert scene.request(opened.request).hidden is None


def test_one_at_a_time_hides_frames_of_a_task(scene: Scene) -> None:
    opened = ready(scene)
    assert opened.request is not None
    scene.store.hide_request(opened.request.id, now=NOW)
    step = hide_step(scene, opened)
    assert scene.store.claim_hiding(step, until=NOW + 9, now=NOW)
    assert not scene.store.claim_hiding(step, until=NOW + 9, now=NOW + 1)
    assert scene.store.claim_hiding(step, until=NOW + 20, now=NOW + 10), "it died"
    scene.store.postpone_step(step, tries=1, left=None, due_at=NOW + 11)
    assert scene.store.claim_hiding(step, until=NOW + 20, now=NOW + 11)


def test_what_has_no_frames_is_not_hidden(scene: Scene) -> None:
    opened = scene.importing()
    assert opened.request is not None
    scene.store.hide_request(opened.request.id, now=NOW)
    pooled_id = opened.lease.pooled_id or ""
    scene.store.fail_import(pooled_id, code="import-failed", message="bad", now=NOW)
    assert scene.request(opened.request).hidden is None
    assert scene.store.hide_request(opened.request.id, now=NOW) is None
    assert scene.store.steps_of(pooled_id) == []


def test_what_was_to_be_hidden_is_not_queued_again(scene: Scene) -> None:
    opened = scene.importing()
    assert opened.request is not None
    scene.store.hide_request(opened.request.id, now=NOW)
    scene.store.requeue_import(opened.request.import_id or "", reason="lost", now=NOW + 1)
    request = scene.request(opened.request)
    assert (request.state, request.finished_at) == (RequestState.CANCELLED, NOW + 1)
    assert scene.lease(request.lease_id).state is LeaseState.ABANDONED


def test_turns_are_fair_when_several_decide_at_once(scene: Scene) -> None:
    users: list[int | str] = ["ann", "bob", "cem"]
    tasks: list[str] = []
    for _ in range(8):
        opened = scene.importing(request=NewRequest(id=new_id(), files=("a.jpg",), size=1))
        tasks.append(opened.lease.pooled_id or "")
        made = [Job(id=n, url="u", start_frame=n, stop_frame=n) for n in range(3)]
        assert scene.store.complete_import(tasks[-1], made, divided=True, now=NOW)

    def divide(number: int) -> None:
        # Two for each task.
        scene.store.divide_jobs(tasks[number % len(tasks)], users)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(divide, range(2 * len(tasks))))
    for pooled_id in tasks:
        (step,) = (each for each in scene.store.steps_of(pooled_id) if each.kind == ASSIGN)
        assert sorted(map(str, scene.store.divided_jobs(step).values())) == users
