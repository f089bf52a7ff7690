from __future__ import annotations

from conformance.store_scene import FINGERPRINT, NOW, TEMPLATE, Scene, everything, wish
from pool.model import LeaseState, Outcome, TaskState
from pool.store import Store

# --- Tasks of other people, and tasks that are ours after all -------------------------------------


def test_a_task_that_a_person_uses_is_left_to_them(scene: Scene) -> None:
    warm, retired, deleting = scene.warm(), scene.retired(), scene.retired(now=NOW - 1)
    scene.store.begin_delete(owner="here", limit=1, retry_after=60, now=NOW)
    for task in (warm, retired, deleting):
        assert scene.store.disown(task.id, reason="renamed", now=NOW + 3)
        found = scene.task(task.id)
        assert (found.state, found.reason, found.changed_at) == (
            TaskState.DELETED,
            "renamed",
            NOW + 3,
        )
        assert found.task_id == task.task_id, "it tells whose task that is"
    assert scene.store.begin_delete(owner="here", limit=9, retry_after=0, now=NOW + 9) == []
    before = everything(scene.store)
    assert not scene.store.disown(warm.id, reason="again", now=NOW + 4)
    assert not scene.store.disown("unknown", reason="", now=NOW + 4)
    assert everything(scene.store) == before


def test_a_create_that_was_given_up_can_be_adopted(scene: Scene) -> None:
    task = scene.creating()
    assert not scene.store.adopt_task(task.id, task_id=9, prepared=True, now=NOW)
    scene.store.fail_create(task.id, reason="never happened", now=NOW)
    assert not scene.store.adopt_task(task.id, task_id=9, prepared=True, now=NOW)
    scene.store.begin_delete(owner="here", limit=9, retry_after=60, now=NOW)
    scene.store.finish_delete(task.id, now=NOW)
    assert scene.store.adopt_task(task.id, task_id=9, prepared=True, now=NOW + 5)
    found = scene.task(task.id)
    assert (found.state, found.task_id, found.prepared) == (TaskState.WARM, 9, True)
    assert (found.warm_at, found.reason) == (NOW + 5, "")
    assert scene.store.open_lease(wish(), now=NOW + 6).task == scene.task(task.id)


def test_a_row_that_had_a_task_is_never_adopted(scene: Scene) -> None:
    gone = scene.retired()
    scene.store.begin_delete(owner="here", limit=9, retry_after=60, now=NOW)
    scene.store.finish_delete(gone.id, now=NOW)
    used = scene.importing()
    before = everything(scene.store)
    for pooled_id in (gone.id, used.lease.pooled_id or "", scene.warm().id, "unknown"):
        before = everything(scene.store)
        assert not scene.store.adopt_task(pooled_id, task_id=9, prepared=True, now=NOW)
        assert everything(scene.store) == before


# --- Doubts ---------------------------------------------------------------------------------------


def test_a_doubted_task_is_not_handed_out_until_it_is_trusted(scene: Scene) -> None:
    first, second = scene.warm(now=NOW), scene.warm(now=NOW + 1)
    assert scene.store.quarantine_warm(until=NOW + 60) == 2
    fresh = scene.warm(now=NOW + 2)
    waiting = [scene.store.open_lease(wish(), now=NOW + 3) for _ in range(2)]
    assert [opened.task and opened.task.id for opened in waiting] == [fresh.id, None]
    lease_id = waiting[1].lease.id
    assert scene.store.claim_warm(lease_id, FINGERPRINT, now=NOW + 3) is None
    assert scene.store.clear_quarantine([second.id, "unknown"], now=NOW + 3) == 1
    handout = scene.store.claim_warm(lease_id, FINGERPRINT, now=NOW + 3)
    assert handout is not None
    assert (handout.task.id, handout.lease.outcome) == (second.id, Outcome.WAIT)
    assert scene.store.open_lease(wish(), now=NOW + 4).task is None
    assert scene.task(first.id).state is TaskState.WARM
    assert scene.store.clear_quarantine([second.id], now=NOW + 3) == 0


def test_doubts_end_by_themselves(scene: Scene) -> None:
    first, second = scene.warm(now=NOW), scene.warm(now=NOW + 1)
    scene.store.quarantine_warm(until=NOW + 60)
    waiting = scene.waiting(now=NOW + 59)
    assert scene.store.claim_warm(waiting.lease.id, FINGERPRINT, now=NOW + 59.9) is None
    handout = scene.store.claim_warm(waiting.lease.id, FINGERPRINT, now=NOW + 60)
    assert handout is not None
    assert handout.task.id == first.id
    assert scene.store.open_lease(wish(), now=NOW + 60).task == scene.task(second.id)


def test_doubted_tasks_count_as_capacity(scene: Scene) -> None:
    scene.warm()
    scene.store.quarantine_warm(until=NOW + 60)
    assert scene.store.capacity_of(TEMPLATE, FINGERPRINT) == 1
    assert scene.store.warm_of(TEMPLATE, FINGERPRINT) == 1


def test_only_warm_tasks_are_doubted(scene: Scene) -> None:
    opened = scene.leased()
    scene.creating()
    assert scene.store.quarantine_warm(until=NOW + 60) == 0
    assert scene.store.give_back(opened.lease.id, now=NOW + 1)
    assert scene.lease(opened.lease.id).state is LeaseState.RELEASED
    assert scene.store.open_lease(wish(), now=NOW + 2).task is not None


# --- Unclean stops --------------------------------------------------------------------------------


def test_a_term_that_was_not_given_up_is_remembered(store: Store) -> None:
    first = store.begin_term("a", seconds=10, clock=lambda: NOW)
    assert first is not None and first.broken_off is None
    second = store.begin_term("b", seconds=10, clock=lambda: NOW + 10)
    assert second is not None and second.broken_off == "a"
    assert store.end_term(second.term, "b", now=NOW + 11)
    third = store.begin_term("c", seconds=19, clock=lambda: NOW + 11)
    assert third is not None and third.broken_off is None, "an orderly end"
