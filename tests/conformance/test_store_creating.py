from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from conformance import store_processes as processes
from conformance.store_scene import FINGERPRINT, NOW, TEMPLATE, Scene, everything, wish
from pool.model import LeaseState, Outcome, RequestState, TaskState, new_id, task_name
from pool.store import CreateLimit, Store

LIMIT = CreateLimit(capacity=3, concurrency=2)


def begin(
    store: Store,
    *,
    limit: CreateLimit | None = LIMIT,
    template: str = TEMPLATE,
    fingerprint: str = FINGERPRINT,
) -> str | None:
    task = store.begin_create(new_id(), template, fingerprint, limit=limit, owner="here", now=NOW)
    return task.id if task else None


def test_the_intent_is_a_row_that_bears_the_name_on_the_server(store: Store) -> None:
    pooled_id = new_id()
    task = store.begin_create(pooled_id, TEMPLATE, FINGERPRINT, limit=LIMIT, owner="here", now=NOW)
    assert task is not None
    assert task == store.task(pooled_id)
    assert task.state is TaskState.CREATING
    assert task.name == task_name(store.pool_id, TEMPLATE, pooled_id)
    assert (task.task_id, task.warm_at, task.lease_id) == (None, None, None)
    assert (task.created_at, task.changed_at) == (NOW, NOW)


def test_a_created_task_becomes_warm(store: Store) -> None:
    pooled_id = begin(store)
    assert pooled_id is not None
    assert not store.finish_create(pooled_id, prepared=True, now=NOW)
    assert store.record_created(pooled_id, task_id=17, now=NOW + 1)
    assert store.finish_create(pooled_id, prepared=True, now=NOW + 2)
    task = store.task(pooled_id)
    assert task is not None
    assert (task.state, task.task_id, task.prepared) == (TaskState.WARM, 17, True)
    assert (task.created_at, task.warm_at, task.changed_at) == (NOW, NOW + 2, NOW + 2)


def test_an_id_that_was_recorded_is_not_replaced(store: Store) -> None:
    pooled_id = begin(store)
    assert pooled_id is not None
    assert store.record_created(pooled_id, task_id=17, now=NOW)
    assert store.record_created(pooled_id, task_id=17, now=NOW)
    assert not store.record_created(pooled_id, task_id=18, now=NOW)


def test_a_create_fails_only_while_it_is_creating(scene: Scene) -> None:
    task = scene.creating()
    assert scene.store.fail_create(task.id, reason="403", now=NOW + 1)
    assert scene.task(task.id).reason == "403"
    assert scene.task(task.id).state is TaskState.FAILED
    before = everything(scene.store)
    assert not scene.store.fail_create(task.id, reason="again", now=NOW + 2)
    assert not scene.store.record_created(task.id, task_id=1, now=NOW + 2)
    assert not scene.store.finish_create(task.id, prepared=False, now=NOW + 2)
    assert not scene.store.fail_create("unknown", reason="", now=NOW)
    assert everything(scene.store) == before


def test_no_more_are_creating_than_the_concurrency(store: Store) -> None:
    assert begin(store)
    assert begin(store)
    assert begin(store) is None
    assert store.levels()[TEMPLATE][TaskState.CREATING] == 2


def test_no_more_are_warm_or_creating_than_the_capacity(scene: Scene) -> None:
    for _ in range(3):
        scene.warm()
    assert begin(scene.store) is None
    assert scene.store.capacity_of(TEMPLATE, FINGERPRINT) == 3
    scene.store.open_lease(wish(), now=NOW)
    assert scene.store.capacity_of(TEMPLATE, FINGERPRINT) == 2
    assert begin(scene.store)


def test_other_templates_and_fingerprints_have_their_own_limits(scene: Scene) -> None:
    for _ in range(3):
        scene.warm()
        scene.warm(template="other")
    assert begin(scene.store) is None
    assert begin(scene.store, fingerprint="new")
    assert begin(scene.store, fingerprint="new")
    assert begin(scene.store, fingerprint="newer") is None, "concurrency is the template's"
    assert begin(scene.store, template="other", fingerprint="new")


def test_cold_creates_have_no_limit_and_take_none_of_it(store: Store) -> None:
    for _ in range(5):
        assert begin(store, limit=None)
    assert store.capacity_of(TEMPLATE, FINGERPRINT) == 0
    assert begin(store)
    assert begin(store)
    assert begin(store) is None


def test_threads_do_not_create_beyond_the_limit(store: Store) -> None:
    limit = CreateLimit(capacity=20, concurrency=20)

    def create_all() -> int:
        begun = 0
        while begin(store, limit=limit):
            begun += 1
        return begun

    with ThreadPoolExecutor(8) as threads:
        begun = [future.result() for future in [threads.submit(create_all) for _ in range(8)]]
    assert sum(begun) == 20


def test_processes_do_not_create_beyond_the_limit(store: Store, store_url: str) -> None:
    assert sum(processes.run(processes.create_all, *[(store_url, 30)] * 4)) == 30
    assert store.levels()[TEMPLATE][TaskState.CREATING] == 30


# --- Cold ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_request", [False, True])
def test_a_cold_task_goes_to_its_lease_alone(scene: Scene, with_request: bool) -> None:
    opened = scene.queued() if with_request else scene.waiting()
    other = scene.waiting()
    pooled_id = begin(scene.store, limit=None)
    assert pooled_id is not None
    lease_id = opened.lease.id
    assert scene.store.finish_cold(pooled_id, lease_id, prepared=True, now=NOW) is None
    assert scene.store.record_created(pooled_id, task_id=5, now=NOW)
    handout = scene.store.finish_cold(pooled_id, lease_id, prepared=True, now=NOW + 3)

    assert handout is not None
    assert handout.task == scene.task(pooled_id)
    assert handout.lease == scene.lease(lease_id)
    assert handout.task.state is TaskState.LEASED
    assert handout.task.lease_id == lease_id
    assert handout.lease.state is LeaseState.ACTIVE
    assert handout.lease.outcome is Outcome.COLD
    assert (handout.lease.task_id, handout.lease.task_name) == (5, handout.task.name)
    assert (handout.lease.handed_out_at, handout.lease.expires_at) == (NOW + 3, NOW + 63)
    if with_request:
        assert handout.request == scene.request(opened.request)
        assert handout.request is not None
        assert handout.request.state is RequestState.UPLOADING
        assert handout.request.outcome is Outcome.COLD
        assert handout.request.task_id == 5
    else:
        assert handout.request is None
    assert scene.lease(other.lease.id).state is LeaseState.WAITING
    counted = {} if with_request else {TEMPLATE: {Outcome.COLD: 1}}
    assert scene.store.hand_outs() == counted, "a request is counted once CVAT has its data"


def test_a_cold_task_whose_lease_waits_no_longer_can_go_into_the_pool(scene: Scene) -> None:
    opened = scene.waiting()
    pooled_id = begin(scene.store, limit=None)
    assert pooled_id is not None
    scene.store.record_created(pooled_id, task_id=5, now=NOW)
    scene.store.abandon_lease(opened.lease.id, now=NOW)
    before = everything(scene.store)
    assert scene.store.finish_cold(pooled_id, opened.lease.id, prepared=False, now=NOW) is None
    assert scene.store.finish_cold(pooled_id, "unknown", prepared=False, now=NOW) is None
    assert everything(scene.store) == before
    assert scene.store.finish_create(pooled_id, prepared=False, now=NOW)
    assert scene.store.capacity_of(TEMPLATE, FINGERPRINT) == 1


def test_a_cold_task_given_back_is_warm_from_then_on(scene: Scene) -> None:
    opened = scene.waiting()
    pooled_id = begin(scene.store, limit=None)
    assert pooled_id is not None
    scene.store.record_created(pooled_id, task_id=5, now=NOW)
    scene.store.finish_cold(pooled_id, opened.lease.id, prepared=True, now=NOW)
    assert scene.store.give_back(opened.lease.id, now=NOW + 9)
    task = scene.task(pooled_id)
    assert task == replace(task, state=TaskState.WARM, warm_at=NOW + 9, lease_id=None)


def test_another_templates_create_is_one_that_cvat_has_answered(scene: Scene) -> None:
    scene.creating(template="other", now=NOW)
    scene.warm(now=NOW)
    assert not scene.store.others_created(TEMPLATE, since=NOW)
    scene.warm(template="other", now=NOW)
    assert scene.store.others_created(TEMPLATE, since=NOW)
    assert not scene.store.others_created(TEMPLATE, since=NOW + 1)
