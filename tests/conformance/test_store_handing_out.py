from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import pytest

from conformance import store_processes as processes
from conformance.store_scene import FINGERPRINT, NOW, TEMPLATE, Scene, data, everything, wish
from pool.model import LeaseState, Outcome, RequestState, TaskState
from pool.store import Store


def test_a_lease_with_a_warm_task(scene: Scene) -> None:
    task = scene.warm()
    wanted = wish(ttl=60.0)
    opened = scene.store.open_lease(wanted, now=NOW + 5)
    assert opened.task == scene.task(task.id)
    assert opened.lease == scene.store.lease(wanted.id)
    assert (opened.request, opened.replayed) == (None, False)
    assert opened.task is not None
    assert (opened.task.state, opened.task.lease_id) == (TaskState.LEASED, wanted.id)
    lease = opened.lease
    assert (lease.id, lease.template, lease.owner) == (wanted.id, TEMPLATE, "here")
    assert (lease.state, lease.outcome) == (LeaseState.ACTIVE, Outcome.HIT)
    assert (lease.pooled_id, lease.task_id, lease.task_name) == (task.id, 1, task.name)
    assert (lease.created_at, lease.handed_out_at, lease.expires_at) == (NOW + 5, NOW + 5, NOW + 65)


def test_a_lease_without_a_warm_task_waits(scene: Scene) -> None:
    scene.creating()
    opened = scene.store.open_lease(wish(key="k"), now=NOW)
    assert opened.lease == scene.lease(opened.lease.id)
    assert opened.lease.state is LeaseState.WAITING
    assert opened.lease.idempotency_key == "k"
    assert (opened.lease.outcome, opened.lease.expires_at, opened.task) == (None, None, None)
    assert scene.store.waiting(TEMPLATE) == 1
    assert scene.store.waiting("other") == 0
    assert scene.store.hand_outs() == {}


def test_a_request_with_a_warm_task_is_uploading(scene: Scene) -> None:
    task = scene.warm()
    wanted, files = wish(payload="digest"), data("a.jpg", "b.jpg", "grüße \udcff.png")
    opened = scene.store.open_lease(wanted, request=files, now=NOW + 5)
    request = opened.request
    assert request is not None
    assert request == scene.store.request(files.id)
    assert (request.id, request.lease_id, request.state) == (
        files.id,
        wanted.id,
        RequestState.UPLOADING,
    )
    assert (request.pooled_id, request.task_id, request.outcome) == (task.id, 1, Outcome.HIT)
    assert (request.files, request.size, request.name) == (files.files, 99, "monday")
    assert (request.assignee, request.payload, request.owner) == (7, "digest", "here")
    assert (request.created_at, request.handed_out_at) == (NOW + 5, NOW + 5)
    assert (request.uploaded_at, request.finished_at) == (None, None)


def test_a_request_without_a_warm_task_is_queued(scene: Scene) -> None:
    opened = scene.queued()
    assert scene.states(opened) == (None, LeaseState.WAITING, RequestState.QUEUED)


def test_the_oldest_warm_task_goes_first(scene: Scene) -> None:
    newer = scene.warm(now=NOW + 1)
    oldest = scene.warm(now=NOW)
    newest = scene.warm(now=NOW + 2)
    taken = [scene.store.open_lease(wish(), now=NOW + 9).lease.pooled_id for _ in range(3)]
    assert taken == [oldest.id, newer.id, newest.id]


def test_a_task_of_another_fingerprint_or_template_is_never_handed_out(scene: Scene) -> None:
    scene.warm(fingerprint="old")
    scene.warm(template="other")
    opened = scene.store.open_lease(wish(), now=NOW)
    assert opened.task is None
    assert scene.store.claim_warm(opened.lease.id, FINGERPRINT, now=NOW) is None


def test_only_warm_tasks_are_handed_out(scene: Scene) -> None:
    scene.creating()
    scene.retired()
    scene.importing()
    assert scene.store.open_lease(wish(), now=NOW).task is None


# --- Waiting -------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_request", [False, True])
def test_a_waiting_lease_claims_a_task_that_became_warm(scene: Scene, with_request: bool) -> None:
    opened = scene.queued() if with_request else scene.waiting()
    lease_id = opened.lease.id
    before = everything(scene.store)
    assert scene.store.claim_warm(lease_id, FINGERPRINT, now=NOW) is None
    assert everything(scene.store) == before
    task = scene.warm()
    handout = scene.store.claim_warm(lease_id, FINGERPRINT, now=NOW + 2)
    assert handout is not None
    assert handout.task == scene.task(task.id)
    assert handout.lease == scene.lease(lease_id)
    assert (handout.lease.state, handout.lease.outcome) == (LeaseState.ACTIVE, Outcome.WAIT)
    assert (handout.lease.handed_out_at, handout.lease.expires_at) == (NOW + 2, NOW + 62)
    assert scene.store.waiting(TEMPLATE) == 0
    if with_request:
        assert handout.request == scene.request(opened.request)
        assert handout.request is not None
        assert handout.request.state is RequestState.UPLOADING
        assert (handout.request.pooled_id, handout.request.outcome) == (task.id, Outcome.WAIT)
    else:
        assert handout.request is None


def test_a_lease_that_does_not_wait_claims_nothing(scene: Scene) -> None:
    active = scene.leased()
    abandoned = scene.waiting()
    assert scene.store.abandon_lease(abandoned.lease.id, now=NOW)
    scene.warm()
    before = everything(scene.store)
    for lease_id in (active.lease.id, abandoned.lease.id, "unknown"):
        assert scene.store.claim_warm(lease_id, FINGERPRINT, now=NOW) is None
    assert everything(scene.store) == before


def test_abandoning(scene: Scene) -> None:
    opened = scene.waiting()
    assert scene.store.abandon_lease(opened.lease.id, now=NOW)
    assert scene.lease(opened.lease.id).state is LeaseState.ABANDONED
    assert scene.store.waiting(TEMPLATE) == 0
    active = scene.leased()
    for lease_id in (opened.lease.id, active.lease.id, "unknown"):
        assert not scene.store.abandon_lease(lease_id, now=NOW)


def test_abandoning_the_lease_of_a_request_cancels_it_and_frees_its_key(scene: Scene) -> None:
    opened = scene.queued(key="k")
    assert scene.store.abandon_lease(opened.lease.id, now=NOW + 1)
    assert scene.states(opened) == (None, LeaseState.ABANDONED, RequestState.CANCELLED)
    assert scene.request(opened.request).finished_at == NOW + 1
    assert not scene.queued(key="k").replayed


# --- Ending --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expired", "state"), [(False, LeaseState.RELEASED), (True, LeaseState.EXPIRED)]
)
def test_giving_back_an_untouched_task(scene: Scene, expired: bool, state: LeaseState) -> None:
    opened = scene.leased()
    assert scene.store.give_back(opened.lease.id, now=NOW + 8, expired=expired)
    task = scene.task(opened.lease.pooled_id)
    assert (task.state, task.lease_id) == (TaskState.WARM, None)
    assert task.warm_at == NOW, "it is as old as it was"
    assert scene.lease(opened.lease.id).state is state
    assert scene.lease(opened.lease.id).task_id == task.task_id
    again = scene.store.open_lease(wish(), now=NOW + 9)
    assert again.lease.pooled_id == task.id
    assert not scene.store.give_back(opened.lease.id, now=NOW + 9), "it is another lease's now"
    assert scene.task(task.id).lease_id == again.lease.id


def test_ending_a_lease_retires_its_task(scene: Scene) -> None:
    opened = scene.leased()
    assert scene.store.end_lease(opened.lease.id, reason="was renamed", now=NOW + 8)
    task = scene.task(opened.lease.pooled_id)
    assert (task.state, task.reason) == (TaskState.RETIRED, "was renamed")
    assert scene.lease(opened.lease.id).state is LeaseState.EXPIRED


def test_leases_that_cannot_end_so(scene: Scene) -> None:
    of_request, waiting, used, ended = (
        scene.uploading(),
        scene.waiting(),
        scene.leased(),
        scene.leased(),
    )
    scene.store.begin_foreign_import(used.lease.id, now=NOW)
    scene.store.give_back(ended.lease.id, now=NOW)
    before = everything(scene.store)
    for opened in (of_request, waiting, used, ended):
        assert not scene.store.give_back(opened.lease.id, now=NOW)
        assert not scene.store.end_lease(opened.lease.id, reason="", now=NOW)
    assert not scene.store.give_back("unknown", now=NOW)
    assert everything(scene.store) == before


def test_expired_leases(scene: Scene) -> None:
    later, sooner = scene.leased(ttl=50), scene.leased(ttl=40)
    scene.uploading(now=NOW - 1000)
    scene.leased(ttl=100)
    assert scene.store.expired_leases(now=NOW + 40) == []
    overdue = scene.store.expired_leases(now=NOW + 60)
    assert [handout.lease.id for handout in overdue] == [sooner.lease.id, later.lease.id]
    assert overdue[0].task == sooner.task
    assert overdue[0].lease == sooner.lease
    assert len(scene.store.expired_leases(now=NOW + 60, limit=1)) == 1
    scene.store.give_back(sooner.lease.id, now=NOW + 60, expired=True)
    assert len(scene.store.expired_leases(now=NOW + 60)) == 1


def test_watched_leases(scene: Scene) -> None:
    active, importing, finished = scene.leased(), scene.leased(), scene.leased()
    scene.uploading()
    scene.importing()
    scene.waiting()
    scene.store.begin_foreign_import(importing.lease.id, now=NOW)
    scene.store.complete_import(finished.lease.pooled_id or "", [], now=NOW)
    watched = scene.store.watched_leases()
    assert [handout.lease.id for handout in watched] == [active.lease.id, importing.lease.id]
    assert [handout.task.state for handout in watched] == [TaskState.LEASED, TaskState.IMPORTING]
    assert scene.store.watched_leases(besides={watched[0].task.id}) == watched[1:]


# --- Many at once --------------------------------------------------------------------------------


def test_a_hand_out_is_seen_at_once_by_others(
    scene: Scene, open_another: Callable[[], Store]
) -> None:
    other = open_another()
    task = scene.warm()
    assert other.warm_of(TEMPLATE, FINGERPRINT) == 1
    opened = scene.store.open_lease(wish(), now=NOW)
    assert other.lease(opened.lease.id) == opened.lease
    assert other.task(task.id) == opened.task
    assert other.open_lease(wish(), now=NOW).task is None


def test_a_hand_out_survives_the_process_that_got_it(scene: Scene, store_url: str) -> None:
    task = scene.warm()
    [lease_id] = processes.run(processes.claim, (store_url,), killed=True)
    assert scene.lease(lease_id).pooled_id == task.id
    assert scene.task(task.id).state is TaskState.LEASED
    assert scene.store.open_lease(wish(), now=NOW).task is None


def test_threads_get_different_tasks(scene: Scene) -> None:
    tasks = [scene.warm().id for _ in range(120)]

    def claim_all() -> list[str | None]:
        taken = []
        while (opened := scene.store.open_lease(wish(), now=NOW)).task:
            taken.append(opened.lease.pooled_id)
        return taken

    with ThreadPoolExecutor(8) as threads:
        futures = [threads.submit(claim_all) for _ in range(8)]
        taken = [pooled_id for future in futures for pooled_id in future.result()]
    assert Counter(taken) == Counter(tasks)


def test_waiting_threads_get_different_tasks(scene: Scene) -> None:
    leases = [scene.waiting().lease.id for _ in range(40)]
    tasks = [scene.warm().id for _ in range(25)]

    def claim(lease_id: str) -> str | None:
        handout = scene.store.claim_warm(lease_id, FINGERPRINT, now=NOW)
        return handout.task.id if handout else None

    with ThreadPoolExecutor(8) as threads:
        taken = [pooled_id for pooled_id in threads.map(claim, leases) if pooled_id]
    assert Counter(taken) == Counter(tasks)
    assert scene.store.waiting(TEMPLATE) == 15


def test_processes_get_different_tasks(scene: Scene, store_url: str) -> None:
    expected = {scene.warm().task_id for _ in range(400)}
    taken = processes.run(processes.claim_all, *[(store_url,)] * 8)
    assert Counter(chain.from_iterable(taken)) == Counter(expected)
    assert scene.store.hand_outs() == {TEMPLATE: {Outcome.HIT: 400}}
