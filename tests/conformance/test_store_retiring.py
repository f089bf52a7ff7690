from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from conformance import store_processes as processes
from conformance.store_scene import FINGERPRINT, NOW, TEMPLATE, Scene, everything, wish
from pool.model import PooledTask, TaskState


def retired(scene: Scene) -> list[str]:
    return [task.id for task in scene.store.tasks(states=[TaskState.RETIRED])]


def take(
    scene: Scene, limit: int, *, now: float = NOW, retry_after: float = 60.0
) -> list[PooledTask]:
    return list(
        scene.store.begin_delete(owner="here", limit=limit, retry_after=retry_after, now=now)
    )


def test_only_warm_tasks_are_retired(scene: Scene) -> None:
    task = scene.warm()
    assert scene.store.retire(task.id, reason="asked for", now=NOW + 1)
    found = scene.task(task.id)
    assert (found.state, found.reason, found.changed_at) == (
        TaskState.RETIRED,
        "asked for",
        NOW + 1,
    )
    others = [task.id, scene.creating().id, scene.leased().lease.pooled_id or "", "unknown"]
    before = everything(scene.store)
    assert not any(scene.store.retire(other, reason="", now=NOW) for other in others)
    assert everything(scene.store) == before


def test_retiring_what_an_older_template_has_made(scene: Scene) -> None:
    scene.warm()
    old = [scene.warm(fingerprint="v1"), scene.warm(fingerprint="v2")]
    scene.warm(template="other", fingerprint="v1")
    assert (
        scene.store.retire_other_fingerprints(TEMPLATE, FINGERPRINT, reason="changed", now=NOW) == 2
    )
    assert retired(scene) == [task.id for task in old]


def test_retiring_the_oldest_beyond_a_number(scene: Scene) -> None:
    scene.warm(now=NOW + 3)
    old = [scene.warm(now=NOW + at) for at in (2, 1)]
    scene.warm(now=NOW + 4)
    scene.warm(template="other", now=NOW)
    assert scene.store.retire_excess(TEMPLATE, keep=4, reason="", now=NOW) == 0
    assert scene.store.retire_excess(TEMPLATE, keep=2, reason="", now=NOW) == 2
    assert sorted(retired(scene)) == sorted(task.id for task in old)
    assert scene.store.retire_excess(TEMPLATE, keep=0, reason="", now=NOW) == 2


def test_deleting(scene: Scene) -> None:
    done = scene.retired()
    failed = scene.creating()
    scene.store.fail_create(failed.id, reason="", now=NOW)
    scene.warm()
    scene.leased()
    taken = take(scene, 9, now=NOW + 1)
    assert [task.id for task in taken] == [done.id, failed.id]
    assert [task.state for task in taken] == [TaskState.DELETING] * 2
    assert taken == [scene.task(done.id), scene.task(failed.id)]
    assert scene.store.finish_delete(done.id, now=NOW + 2)
    assert scene.task(done.id).state is TaskState.DELETED
    assert not scene.store.finish_delete(done.id, now=NOW + 3)
    assert not scene.store.finish_delete("unknown", now=NOW + 3)


def test_a_task_that_was_not_taken_is_not_deleted(scene: Scene) -> None:
    tasks = [scene.warm(), scene.retired(), scene.creating()]
    assert not any(scene.store.finish_delete(task.id, now=NOW) for task in tasks)


@pytest.mark.parametrize("limit", [0, -1])
def test_none_are_taken_when_none_are_asked_for(scene: Scene, limit: int) -> None:
    scene.retired()
    assert take(scene, limit) == []


def test_a_task_is_tried_again_only_after_a_while(scene: Scene) -> None:
    task = scene.retired()
    assert len(take(scene, 9, now=NOW)) == 1
    assert take(scene, 9, now=NOW + 60) == []
    [again] = take(scene, 9, now=NOW + 61)
    assert (again.id, again.changed_at) == (task.id, NOW + 61)


def test_one_that_cannot_be_deleted_does_not_starve_the_others(scene: Scene) -> None:
    stuck = scene.retired(now=NOW)
    others = [scene.retired(now=NOW + 1).id for _ in range(3)]
    turns = []
    for turn in range(4):
        [taken] = take(scene, 1, now=NOW + 100 * (turn + 1), retry_after=10)
        turns.append(taken.id)
        if taken.id != stuck.id:
            scene.store.finish_delete(taken.id, now=NOW + 100 * (turn + 1))
    assert turns == [stuck.id, *others]
    assert [task.id for task in take(scene, 1, now=NOW + 900, retry_after=10)] == [stuck.id]


def test_threads_take_different_tasks(scene: Scene) -> None:
    expected = [scene.retired().id for _ in range(24)]
    with ThreadPoolExecutor(8) as threads:
        taken = [
            task.id for tasks in threads.map(lambda _: take(scene, 3), range(8)) for task in tasks
        ]
    assert sorted(taken) == sorted(expected)


def test_processes_take_different_tasks(scene: Scene, store_url: str) -> None:
    expected = [scene.retired().id for _ in range(40)]
    answers = processes.run(processes.delete_all, *[(store_url, owner) for owner in "abcd"])
    assert sorted(task for taken in answers for task in taken) == sorted(expected)


def test_a_task_handed_out_is_not_retired_by_any_way(scene: Scene) -> None:
    scene.warm()
    scene.store.open_lease(wish(), now=NOW)
    before = everything(scene.store)
    assert not scene.store.disown(scene.store.tasks()[0].id, reason="", now=NOW)
    assert scene.store.retire_other_fingerprints(TEMPLATE, "new", reason="", now=NOW) == 0
    assert scene.store.retire_excess(TEMPLATE, keep=0, reason="", now=NOW) == 0
    assert take(scene, 9) == []
    assert everything(scene.store) == before
