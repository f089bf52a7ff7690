"""What a store does when a template has changed, and for people: older tasks, drains, prewarms."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from conformance.store_scene import (
    FINGERPRINT,
    NOW,
    ORIGIN,
    TEMPLATE,
    Scene,
    data,
    everything,
    wish,
)
from pool.model import LeaseState, Outcome, Prewarm, RequestState, TaskState
from pool.store import Store


def claimed(scene: Scene, *, reusable_origin: str | None = ORIGIN) -> str | None:
    """The task that a caller gets now, by our id."""
    opened = scene.store.open_lease(wish(reusable_origin=reusable_origin), now=NOW + 9)
    return opened.task.id if opened.task else None


def warm(scene: Scene) -> list[str]:
    return [task.id for task in scene.store.tasks(states=[TaskState.WARM])]


def retire_older(scene: Scene, *, keep: int = 0, most: int | None = None) -> int:
    return scene.store.retire_older(
        TEMPLATE,
        FINGERPRINT,
        reusable_origin=ORIGIN,
        keep=keep,
        most=most,
        reason="changed",
        now=NOW,
    )


# --- Handing out tasks of an older template -------------------------------------------------------


def test_a_task_knows_where_it_was_made(scene: Scene) -> None:
    assert scene.warm().origin == ORIGIN
    assert scene.warm(origin="").origin == ""


def test_an_older_task_is_handed_out_only_to_those_it_will_do_for(scene: Scene) -> None:
    older = scene.warm(fingerprint="v1")
    assert claimed(scene, reusable_origin=None) is None
    opened = scene.store.open_lease(wish(reusable_origin=ORIGIN), request=data(), now=NOW + 1)
    assert scene.states(opened) == (TaskState.LEASED, LeaseState.ACTIVE, RequestState.UPLOADING)
    assert (opened.task and opened.task.id, opened.lease.outcome) == (older.id, Outcome.HIT)


def test_a_fresh_task_comes_first_whatever_its_age(scene: Scene) -> None:
    older = scene.warm(fingerprint="v1", now=NOW)
    fresh = scene.warm(now=NOW + 5)
    assert [claimed(scene), claimed(scene), claimed(scene)] == [fresh.id, older.id, None]


def test_of_the_older_ones_the_newest_comes_first(scene: Scene) -> None:
    tasks = [scene.warm(fingerprint=f"v{at}", now=NOW + at) for at in (2, 1, 3)]
    assert [claimed(scene) for _ in tasks] == [tasks[2].id, tasks[0].id, tasks[1].id]


@pytest.mark.parametrize("origin", ["elsewhere", ""])
@pytest.mark.parametrize("asked_for", [ORIGIN, ""])
def test_a_task_made_elsewhere_or_at_an_unknown_place_is_never_handed_out(
    scene: Scene, origin: str, asked_for: str
) -> None:
    scene.warm(fingerprint="v1", origin=origin)
    assert claimed(scene, reusable_origin=asked_for) is None
    waiting = scene.waiting()
    assert (
        scene.store.claim_warm(waiting.lease.id, FINGERPRINT, reusable_origin=asked_for, now=NOW)
        is None
    )


def test_where_a_task_was_made_does_not_matter_while_its_template_is_the_same(scene: Scene) -> None:
    task = scene.warm(origin="")
    assert claimed(scene) == task.id


def test_an_older_task_of_another_template_or_in_doubt_is_not_handed_out(scene: Scene) -> None:
    scene.warm(template="other", fingerprint="v1")
    scene.warm(fingerprint="v1")
    scene.store.quarantine_warm(until=NOW + 99)
    assert claimed(scene) is None
    waiting = scene.waiting()
    assert (
        scene.store.claim_warm(waiting.lease.id, FINGERPRINT, reusable_origin=ORIGIN, now=NOW)
        is None
    )


def test_a_waiter_takes_an_older_task_where_it_will_do(scene: Scene) -> None:
    queued = scene.queued()
    older = scene.warm(fingerprint="v1")
    assert scene.store.claim_warm(queued.lease.id, FINGERPRINT, now=NOW) is None
    handout = scene.store.claim_warm(queued.lease.id, FINGERPRINT, reusable_origin=ORIGIN, now=NOW)
    assert handout is not None
    assert (handout.task.id, handout.lease.outcome) == (older.id, Outcome.WAIT)
    assert scene.states(queued)[2] is RequestState.UPLOADING


def test_a_waiter_takes_a_fresh_task_before_an_older_one(scene: Scene) -> None:
    waiting = scene.waiting()
    scene.warm(fingerprint="v1")
    fresh = scene.warm()
    handout = scene.store.claim_warm(waiting.lease.id, FINGERPRINT, reusable_origin=ORIGIN, now=NOW)
    assert handout is not None
    assert handout.task.id == fresh.id


def test_an_older_task_that_is_given_back_is_as_old_as_before(scene: Scene) -> None:
    older = scene.warm(fingerprint="v1")
    opened = scene.store.open_lease(wish(reusable_origin=ORIGIN), now=NOW)
    assert scene.store.give_back(opened.lease.id, now=NOW)
    assert scene.task(older.id).fingerprint == "v1"
    assert claimed(scene, reusable_origin=None) is None
    assert claimed(scene) == older.id


def test_no_two_callers_get_the_same_while_a_template_changes(scene: Scene) -> None:
    """Callers of the old configuration, of the new one, and the one that retires."""
    tasks = {scene.warm(fingerprint=print).id for print in ("v1", FINGERPRINT) for _ in range(20)}

    def take(number: int) -> str | None:
        if number % 5 == 0:
            retire_older(scene, keep=30, most=1)
        # Those of the old configuration take the fresh ones for older, and the other way round.
        wanted = wish(fingerprint="v1" if number % 2 else FINGERPRINT, reusable_origin=ORIGIN)
        opened = scene.store.open_lease(wanted, now=NOW + 9)
        return opened.task.id if opened.task else None

    with ThreadPoolExecutor(8) as threads:
        taken = [task for task in threads.map(take, range(60)) if task is not None]
    retired = [task.id for task in scene.store.tasks(states=[TaskState.RETIRED])]
    assert sorted(taken + retired) == sorted(tasks)
    assert warm(scene) == []


# --- Retiring them as they are replaced -----------------------------------------------------------


def test_older_tasks_are_counted_by_where_they_were_made(scene: Scene) -> None:
    scene.warm()
    scene.warm(fingerprint="v1")
    scene.warm(fingerprint="v2")
    scene.warm(fingerprint="v1", origin="elsewhere")
    scene.warm(template="other", fingerprint="v1")
    assert scene.store.older_warm_of(TEMPLATE, FINGERPRINT, reusable_origin=ORIGIN) == 2
    assert scene.store.older_warm_of(TEMPLATE, "v1", reusable_origin=ORIGIN) == 2


def test_the_oldest_older_tasks_are_retired_down_to_a_number(scene: Scene) -> None:
    kept = [scene.warm(now=NOW).id, scene.warm(fingerprint="v2", now=NOW + 3).id]
    first, second = (scene.warm(fingerprint="v1", now=NOW + at).id for at in (1, 2))
    assert retire_older(scene, keep=4) == 0
    assert retire_older(scene, keep=3, most=0) == 0
    assert retire_older(scene, keep=2, most=1) == 1
    assert warm(scene) == [kept[0], kept[1], second]
    assert scene.task(first).reason == "changed"
    assert retire_older(scene, keep=2) == 1
    assert warm(scene) == kept
    assert retire_older(scene, keep=0) == 1
    assert warm(scene) == kept[:1], "its own are never retired"


def test_tasks_that_will_not_do_neither_count_nor_go_with_the_older_ones(scene: Scene) -> None:
    scene.warm(fingerprint="v1", origin="elsewhere")
    scene.warm(template="other", fingerprint="v1")
    scene.warm(fingerprint="v1")
    scene.store.open_lease(wish(reusable_origin=ORIGIN), now=NOW)
    scene.warm()
    before = everything(scene.store)
    assert retire_older(scene, keep=0) == 0
    assert everything(scene.store) == before


def test_those_that_may_still_be_handed_out_are_spared(scene: Scene) -> None:
    scene.warm()
    spared = scene.warm(fingerprint="v1")
    for origin in ("elsewhere", ""):
        scene.warm(fingerprint="v1", origin=origin)

    def retire(reusable_origin: str | None) -> int:
        return scene.store.retire_other_fingerprints(
            TEMPLATE, FINGERPRINT, reusable_origin=reusable_origin, reason="changed", now=NOW
        )

    assert retire(ORIGIN) == 2
    assert scene.task(spared.id).state is TaskState.WARM
    assert retire(None) == 1


# --- Draining -------------------------------------------------------------------------------------


def test_draining_retires_what_is_warm_and_pauses(scene: Scene) -> None:
    leased = scene.leased()
    for fingerprint in (FINGERPRINT, "v1"):
        scene.warm(fingerprint=fingerprint)
    other = scene.warm(template="other")
    assert scene.store.drain(TEMPLATE, reason="drained", now=NOW) == 2
    assert warm(scene) == [other.id]
    assert scene.states(leased)[0] is TaskState.LEASED
    assert {task.reason for task in scene.store.tasks(states=[TaskState.RETIRED])} == {"drained"}
    assert scene.store.paused() == {TEMPLATE: NOW}
    assert list(scene.store.drained()) == [TEMPLATE]
    assert scene.store.drain(TEMPLATE, reason="drained", now=NOW + 1) == 0
    assert scene.store.paused() == {TEMPLATE: NOW}, "since it was paused first"


def test_resuming_ends_a_drain(scene: Scene) -> None:
    scene.store.drain(TEMPLATE, reason="", now=NOW)
    scene.store.pause(TEMPLATE, now=NOW + 1)
    assert list(scene.store.drained()) == [TEMPLATE], "a pause does not end it"
    assert scene.store.resume(TEMPLATE)
    assert list(scene.store.drained()) == []
    assert scene.store.paused() == {}
    scene.store.pause(TEMPLATE, now=NOW + 2)
    assert list(scene.store.drained()) == [], "and a later pause is only that"


def test_a_paused_template_can_be_drained(scene: Scene) -> None:
    scene.warm()
    scene.store.pause(TEMPLATE, now=NOW)
    assert scene.store.drain(TEMPLATE, reason="", now=NOW + 5) == 1
    assert scene.store.paused() == {TEMPLATE: NOW}
    assert list(scene.store.drained()) == [TEMPLATE]


# --- Prewarming -----------------------------------------------------------------------------------


def prewarm(template: str = TEMPLATE, *, size: int = 9, until: float = NOW + 60) -> Prewarm:
    return Prewarm(template=template, size=size, since=NOW, until=until)


def test_a_prewarm_is_replaced_by_the_next_and_ended(
    store: Store, open_another: Callable[[], Store]
) -> None:
    assert store.prewarms() == {}
    store.prewarm(prewarm(size=3))
    store.prewarm(prewarm(size=5, until=NOW + 9))
    store.prewarm(prewarm("other"))
    assert open_another().prewarms() == {
        TEMPLATE: prewarm(size=5, until=NOW + 9),
        "other": prewarm("other"),
    }
    assert store.end_prewarm(TEMPLATE)
    assert not store.end_prewarm(TEMPLATE)
    assert list(store.prewarms()) == ["other"]


def test_what_people_want_is_noticed_by_others(
    store: Store, open_another: Callable[[], Store]
) -> None:
    other = open_another()
    before = store.change_token()
    other.prewarm(prewarm())
    after = store.change_token()
    assert after != before
    other.drain(TEMPLATE, reason="", now=NOW)
    assert store.change_token() != after


def test_a_prewarm_that_is_over_is_forgotten(store: Store) -> None:
    store.prewarm(prewarm(until=NOW))
    store.prewarm(prewarm("other", until=NOW + 1))
    assert store.prune(before=NOW + 1, limit=9) == 1
    assert list(store.prewarms()) == ["other"]
