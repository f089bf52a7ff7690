"""A task that becomes warm goes to the lease that has waited longest, in the same transaction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from conformance.store_scene import NOW, ORIGIN, TEMPLATE, Scene, data, wish
from pool.model import LeaseState, Outcome, RequestState, TaskState
from pool.store import Opened

ALIVE = NOW + 1000


@pytest.fixture(autouse=True)
def owners(scene: Scene) -> None:
    scene.store.renew_owner("here", until=ALIVE)
    scene.store.renew_owner("there", until=ALIVE)


def waiting(
    scene: Scene, *, owner: str = "here", fingerprint: str = "f00d", tenant: str = ""
) -> Opened:
    wanted = replace(wish(owner=owner, fingerprint=fingerprint), tenant=tenant)
    opened = scene.store.open_lease(wanted, now=NOW)
    assert opened.task is None
    return opened


def create(scene: Scene) -> str:
    return scene.warm(now=NOW + 1).id


def give_back(scene: Scene, held: Opened) -> str:
    assert scene.store.give_back(held.lease.id, now=NOW + 1)
    return held.task.id if held.task else ""


def fail_untouched(scene: Scene, held: Opened) -> str:
    assert held.request is not None
    assert scene.store.fail_request(
        held.request.id, untouched=True, code="c", message="m", now=NOW + 1
    )
    return held.task.id if held.task else ""


def test_each_goes_to_the_one_that_waited_longest(scene: Scene) -> None:
    first, second, third = (waiting(scene, owner=owner) for owner in ("there", "here", "there"))
    tasks = [create(scene) for _ in range(2)]
    leases = [scene.lease(each.lease.id) for each in (first, second, third)]
    assert [each.pooled_id for each in leases] == [*tasks, None]
    assert [each.outcome for each in leases] == [Outcome.WAIT, Outcome.WAIT, None]
    assert scene.states(first) == (TaskState.LEASED, LeaseState.ACTIVE, None)
    assert leases[0].expires_at == NOW + 1 + 60.0
    assert scene.store.hand_outs()[TEMPLATE] == {Outcome.WAIT: 2}


def test_tenants_take_turns(scene: Scene) -> None:
    """One that waits with many holds up no other, and none that comes again and again goes before
    all of these."""
    busy = [waiting(scene, tenant="busy") for _ in range(4)]
    rare = waiting(scene, tenant="rare", owner="there")
    names = {each.lease.id: f"busy {number}" for number, each in enumerate(busy, 1)}
    names[rare.lease.id] = "rare 1"

    def next_one() -> str:
        task = create(scene)
        (lease_id,) = (each for each in names if scene.lease(each).pooled_id == task)
        return names[lease_id]

    assert [next_one() for _ in range(2)] == ["busy 1", "rare 1"]
    names[waiting(scene, tenant="rare").lease.id] = "rare 2"
    names[waiting(scene).lease.id] = "the operator"
    assert [next_one() for _ in range(5)] == [
        "busy 2",
        "rare 2",
        "the operator",
        "busy 3",
        "busy 4",
    ]


def test_what_is_given_back_goes_on(scene: Scene) -> None:
    held = scene.leased()
    next_one = waiting(scene, owner="there")
    task = give_back(scene, held)
    assert scene.lease(held.lease.id).state is LeaseState.RELEASED
    assert scene.lease(next_one.lease.id).pooled_id == task
    assert scene.task(task).lease_id == next_one.lease.id


def test_the_task_of_a_request_that_failed_before_its_upload_goes_on(scene: Scene) -> None:
    held = scene.uploading()
    next_one = waiting(scene)
    task = fail_untouched(scene, held)
    assert scene.request(held.request).state is RequestState.FAILED
    assert scene.lease(next_one.lease.id).pooled_id == task


def test_a_request_whose_caller_waits_begins(scene: Scene) -> None:
    opened = scene.queued()
    task = create(scene)
    request = scene.request(opened.request)
    assert (request.state, request.outcome) == (RequestState.UPLOADING, Outcome.WAIT)
    assert request.task_id == scene.task(task).task_id
    assert scene.store.hand_outs() == {}, "its caller is not served before CVAT has the data"


def test_a_request_in_the_spool_is_the_dispatchers(scene: Scene) -> None:
    spooled = scene.store.open_lease(wish(), request=replace(data(), spooled=True), now=NOW)
    younger = waiting(scene)
    task = create(scene)
    assert scene.request(spooled.request).state is RequestState.QUEUED
    assert scene.lease(younger.lease.id).pooled_id == task


def test_what_an_abandoned_lease_waited_for_goes_to_the_next(scene: Scene) -> None:
    first, second = waiting(scene), waiting(scene)
    assert scene.store.abandon_lease(first.lease.id, now=NOW)
    task = create(scene)
    assert scene.lease(second.lease.id).pooled_id == task
    assert not scene.store.abandon_lease(second.lease.id, now=NOW + 2), "it was given one before"
    assert scene.states(second) == (TaskState.LEASED, LeaseState.ACTIVE, None)


@pytest.mark.parametrize("gone", ["forgotten", "dead", "unknown"])
def test_a_process_that_is_gone_gets_none(scene: Scene, gone: str) -> None:
    if gone == "forgotten":
        scene.store.forget_owner("there")
    if gone == "dead":
        scene.store.renew_owner("there", until=NOW + 0.5)
    left = waiting(scene, owner="elsewhere" if gone == "unknown" else "there")
    alive = waiting(scene)
    task = create(scene)
    assert scene.lease(left.lease.id).state is LeaseState.WAITING
    assert scene.lease(alive.lease.id).pooled_id == task


def test_a_task_of_another_template_or_version_is_given_to_none(scene: Scene) -> None:
    outdated, other = (
        waiting(scene, fingerprint="0ld"),
        scene.store.open_lease(wish(template="parks"), now=NOW),
    )
    suits = waiting(scene)
    tasks = [create(scene), create(scene)]
    assert scene.lease(suits.lease.id).pooled_id == tasks[0]
    for each in (outdated, other):
        assert scene.lease(each.lease.id).state is LeaseState.WAITING
    assert scene.task(tasks[1]).state is TaskState.WARM


def test_an_older_one_will_do_where_the_template_says_so(scene: Scene) -> None:
    strict = scene.store.open_lease(wish(fingerprint="new"), now=NOW)
    lenient = scene.store.open_lease(wish(fingerprint="new", reusable_origin=ORIGIN), now=NOW)
    task = create(scene)
    assert scene.lease(strict.lease.id).state is LeaseState.WAITING
    assert scene.lease(lenient.lease.id).pooled_id == task


def test_one_in_quarantine_is_given_once_it_is_cleared(scene: Scene) -> None:
    task = create(scene)
    scene.store.quarantine_warm(until=NOW + 100)
    lease = waiting(scene)
    scene.creating()
    assert scene.lease(lease.lease.id).state is LeaseState.WAITING
    assert scene.store.clear_quarantine([task], now=NOW + 2) == 1
    assert scene.lease(lease.lease.id).pooled_id == task


def test_one_that_was_given_up_and_found_again_is_given(scene: Scene) -> None:
    created = scene.creating()
    scene.store.fail_create(created.id, reason="never happened", now=NOW)
    scene.store.begin_delete(owner="here", limit=9, retry_after=60, now=NOW)
    scene.store.finish_delete(created.id, now=NOW)
    lease = waiting(scene)
    assert scene.store.adopt_task(created.id, task_id=9, prepared=True, now=NOW + 5)
    assert scene.lease(lease.lease.id).pooled_id == created.id


def test_a_lease_that_needs_another_task_waits_in_its_turn(scene: Scene) -> None:
    opened = scene.uploading()
    first = waiting(scene)
    assert opened.request is not None
    import_id = scene.import_id(opened.request.id)
    (queued,) = scene.store.requeue_import(import_id, reason="r", now=NOW)
    tasks = [create(scene), create(scene)]
    assert scene.lease(first.lease.id).pooled_id == tasks[0]
    assert scene.lease(queued.lease_id).pooled_id == tasks[1]


@pytest.mark.parametrize("makes_warm", [give_back, fail_untouched])
def test_without_a_waiter_it_is_warm(
    scene: Scene, makes_warm: Callable[[Scene, Opened], str]
) -> None:
    held = scene.leased() if makes_warm is give_back else scene.uploading()
    assert scene.task(makes_warm(scene, held)).state is TaskState.WARM
