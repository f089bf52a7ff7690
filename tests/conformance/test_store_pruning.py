"""What is forgotten, and above all what is not."""

from __future__ import annotations

import pytest

from conformance.store_scene import FINGERPRINT, JOBS, NOW, TEMPLATE, Scene, data, everything, wish
from pool.model import Hold, RequestWarning, TaskState
from pool.store import Opened, Store

LATER = NOW + 1000


def ready(scene: Scene, *, now: float = NOW, key: str | None = None, named: bool = True) -> Opened:
    """A request that was served, from beginning to end."""
    scene.warm(now=now)
    opened = scene.store.open_lease(wish(key=key), request=data(), now=now)
    assert opened.request is not None
    assert opened.lease.pooled_id is not None
    scene.begin_import(opened, now=now)
    assert scene.store.complete_import(opened.lease.pooled_id, JOBS, now=now)
    if named:
        for step in scene.store.steps_of(opened.lease.pooled_id):
            assert scene.store.end_step(step, now=now)
    return opened


def deleted(scene: Scene, *, now: float = NOW) -> str:
    task = scene.retired(now=now)
    scene.store.begin_delete(owner="here", limit=99, retry_after=60, now=now)
    assert scene.store.finish_delete(task.id, now=now)
    return task.id


def prune_all(store: Store, *, before: float, limit: int = 100) -> int:
    pruned = 0
    while some := store.prune(before=before, limit=limit):
        pruned += some
    return pruned


def test_a_served_request_is_forgotten_with_all_that_belongs_to_it(scene: Scene) -> None:
    old = ready(scene)
    kept = ready(scene, now=LATER)
    assert prune_all(scene.store, before=LATER) >= 4  # with its bucket of demand
    assert everything(scene.store) == (
        [scene.task(kept.lease.pooled_id)],
        [scene.lease(kept.lease.id)],
        (scene.request(kept.request),),
    )
    assert scene.store.jobs_of(old.lease.pooled_id or "") == []
    assert scene.store.jobs_of(kept.lease.pooled_id or "") == list(JOBS)


def test_a_deleted_task_is_forgotten(scene: Scene) -> None:
    old, kept = deleted(scene), deleted(scene, now=LATER)
    assert prune_all(scene.store, before=LATER) == 1
    assert scene.store.task(old) is None
    assert scene.task(kept).state is TaskState.DELETED


@pytest.mark.parametrize("limit", [0, -1])
def test_nothing_is_forgotten_when_nothing_is_to_be(scene: Scene, limit: int) -> None:
    deleted(scene)
    assert scene.store.prune(before=LATER, limit=limit) == 0


def test_what_is_under_way_is_kept_however_old(scene: Scene) -> None:
    scene.warm()
    scene.creating()
    scene.retired()
    scene.leased(ttl=1e9)
    scene.uploading()
    scene.importing()
    scene.store.begin_foreign_import(scene.leased().lease.id, now=NOW)
    while scene.store.open_lease(wish(), now=NOW).task:
        pass  # the warm ones are taken, so that others wait
    scene.waiting()
    scene.queued()
    failed = scene.importing()
    scene.store.fail_import(failed.lease.pooled_id or "", code="x", message="", now=NOW)
    scene.warm()
    before = everything(scene.store)
    scene.store.prune(before=LATER, limit=100)
    assert everything(scene.store) == before


def test_a_task_without_its_final_name_is_kept_with_its_request(scene: Scene) -> None:
    opened = ready(scene, named=False)
    scene.store.prune(before=LATER, limit=100)
    name, assign = scene.store.due_steps(now=LATER, limit=9)
    assert name.task == assign.task == scene.task(opened.lease.pooled_id)
    assert name.request == assign.request == scene.request(opened.request)


def test_a_task_whose_last_step_was_given_up_is_forgotten(scene: Scene) -> None:
    opened, given_up = ready(scene, named=False), RequestWarning(code="c", text="t")
    pooled_id = opened.lease.pooled_id or ""
    name, assign = scene.store.steps_of(pooled_id)[::-1]
    scene.store.end_step(name, warning=given_up, now=NOW)
    prune_all(scene.store, before=LATER)
    assert scene.request(opened.request).warnings == (given_up,)
    scene.store.end_step(assign, warning=given_up, now=NOW)
    prune_all(scene.store, before=LATER)
    assert everything(scene.store) == ([], [], ())


def test_a_lease_is_kept_until_its_time_is_up(scene: Scene) -> None:
    opened = scene.leased(ttl=500.0)
    scene.store.give_back(opened.lease.id, now=NOW)
    prune_all(scene.store, before=NOW + 500)
    assert scene.store.lease(opened.lease.id) is not None
    prune_all(scene.store, before=NOW + 501)
    assert scene.store.lease(opened.lease.id) is None
    assert scene.store.warm_of(TEMPLATE, FINGERPRINT) == 1, "its task is still warm"


def test_a_key_lasts_as_long_as_its_row(scene: Scene) -> None:
    first = ready(scene, key="k")
    prune_all(scene.store, before=NOW)
    again = scene.store.open_lease(wish(key="k"), request=data(), now=NOW + 5)
    assert (again.replayed, again.request) == (True, scene.request(first.request))
    prune_all(scene.store, before=LATER)
    assert not scene.store.open_lease(wish(key="k"), request=data(), now=LATER).replayed


def test_a_few_at_a_time(scene: Scene) -> None:
    for _ in range(5):
        deleted(scene)
    assert [scene.store.prune(before=LATER, limit=2) for _ in range(4)] == [2, 2, 1, 0]


def test_rows_that_have_to_stay_do_not_keep_others(scene: Scene) -> None:
    for _ in range(3):
        ready(scene, named=False)
    ready(scene, now=NOW + 1)
    prune_all(scene.store, before=LATER, limit=1)
    assert len(scene.store.tasks(states=tuple(TaskState))) == 3


def test_old_demand_is_forgotten_and_the_totals_are_not(scene: Scene) -> None:
    for now in (NOW, LATER):
        scene.leased(now=now)
    scene.store.prune(before=LATER, limit=100)
    assert [demand.start for demand in scene.store.demand(TEMPLATE, since=0)] == [LATER]
    assert sum(scene.store.hand_outs()[TEMPLATE].values()) == 2


def test_owners_that_are_gone_are_forgotten(scene: Scene) -> None:
    scene.store.renew_owner("gone", until=NOW)
    scene.store.renew_owner("here", until=LATER)
    opened = scene.importing(owner="here")
    assert scene.store.prune(before=LATER, limit=100) == 2, "an owner, and a bucket of demand"
    assert scene.store.adopt_requests("other", now=LATER) == []
    assert scene.states(opened)[0] is TaskState.IMPORTING


def test_when_holds_were_is_forgotten_once_they_are_over(scene: Scene) -> None:
    def hold(template: str) -> None:
        held = Hold(template=template, code="c", reason="r", since=NOW, retry_at=None)
        scene.store.hold(held)

    for template in (TEMPLATE, "other", "still held"):
        hold(template)
    assert scene.store.release_hold(TEMPLATE, now=NOW + 1)
    assert scene.store.release_hold("other", now=NOW + 9)
    assert scene.store.prune(before=NOW + 5, limit=9) == 1
    assert scene.store.prune(before=NOW + 99, limit=9) == 1
    assert list(scene.store.holds()) == ["still held"]
