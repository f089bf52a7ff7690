from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import Any

import pytest

from conformance import store_processes as processes
from conformance.store_scene import JOBS, NOW, Scene, data, everything
from pool.model import LeaseState, Outcome, RequestState, TaskState
from pool.store import Opened

IMPORTING = (TaskState.IMPORTING, LeaseState.USED, RequestState.IMPORTING)
UPLOADING = (TaskState.LEASED, LeaseState.ACTIVE, RequestState.UPLOADING)
READY = (TaskState.READY, LeaseState.USED, RequestState.READY)
BURNT = (TaskState.FAILED, LeaseState.USED, RequestState.FAILED)


def request_id(opened: Opened) -> str:
    assert opened.request is not None
    return opened.request.id


def pooled_id(opened: Opened) -> str:
    assert opened.lease.pooled_id is not None
    return opened.lease.pooled_id


def test_from_upload_to_jobs(scene: Scene) -> None:
    store, opened = scene.store, scene.uploading()
    assert scene.states(opened) == UPLOADING
    assert store.in_flight() == 1
    assert store.begin_import(scene.import_id(request_id(opened)), deadline=NOW + 600, now=NOW + 1)
    assert scene.states(opened) == IMPORTING
    assert scene.request(opened.request).deadline_at == NOW + 600
    assert scene.request(opened.request).uploaded_at == NOW + 1
    assert store.in_flight() == 1
    assert store.jobs_of(pooled_id(opened)) == []
    assert store.complete_import(pooled_id(opened), tuple(reversed(JOBS)), now=NOW + 2)
    assert scene.states(opened) == READY
    assert scene.request(opened.request).finished_at == NOW + 2
    assert tuple(store.jobs_of(pooled_id(opened))) == JOBS
    assert store.in_flight() == 0


def test_jobs_may_be_seen_before_the_upload_is_known_to_have_ended(scene: Scene) -> None:
    opened = scene.uploading()
    before = everything(scene.store)
    assert not scene.store.complete_import(pooled_id(opened), JOBS, now=NOW + 2)
    assert everything(scene.store) == before, "they may come from another's data"
    assert scene.store.complete_import(pooled_id(opened), JOBS, verified=True, now=NOW + 2)
    assert scene.states(opened) == READY
    assert scene.request(opened.request).uploaded_at == NOW + 2
    assert not scene.store.begin_import(
        scene.import_id(request_id(opened)), deadline=NOW, now=NOW + 3
    )


def test_the_frames_that_are_expected_of_an_upload_are_kept_until_it_is_accepted(
    scene: Scene,
) -> None:
    import_id = scene.import_id(request_id(scene.uploading()))
    frames = []
    for accepted in (False, True):
        if accepted:
            assert scene.store.begin_import(import_id, deadline=NOW, now=NOW)
        scene.store.expect_frames(import_id, ["b.jpg", "a\udcff.jpg"])
        found = scene.store.import_record(import_id)
        assert found is not None
        frames.append(found.frames)
    assert frames == [("a\udcff.jpg", "b.jpg"), None]


@pytest.mark.parametrize("frames", [None, ("b.jpg", "a/b.jpg"), ()])
def test_an_import_in_doubt_is_completed_once_its_frames_are_verified(
    scene: Scene, frames: tuple[str, ...] | None
) -> None:
    opened = scene.uploading()
    import_id = scene.import_id(request_id(opened))
    found = scene.store.import_record(import_id)
    assert found is not None
    assert found.doubtful
    assert scene.store.begin_import(import_id, deadline=NOW, frames=frames, now=NOW)
    found = scene.store.import_record(import_id)
    assert found is not None
    assert found.doubtful is (frames is not None)
    assert found.frames == (None if frames is None else tuple(sorted(frames)))
    completed = scene.store.complete_import(pooled_id(opened), JOBS, now=NOW)
    assert completed is (frames is None)
    again = scene.store.complete_import(pooled_id(opened), JOBS, verified=True, now=NOW)
    assert again is not completed
    assert scene.states(opened) == READY


def test_a_foreign_upload(scene: Scene) -> None:
    opened = scene.leased()
    assert scene.store.begin_foreign_import(opened.lease.id, now=NOW)
    assert scene.states(opened) == (TaskState.IMPORTING, LeaseState.USED, None)
    assert not scene.store.begin_foreign_import(opened.lease.id, now=NOW)
    assert scene.store.complete_import(pooled_id(opened), JOBS, now=NOW)
    assert scene.states(opened) == (TaskState.READY, LeaseState.USED, None)


def test_a_foreign_upload_that_was_over_when_it_was_noticed(scene: Scene) -> None:
    opened = scene.leased()
    assert scene.store.complete_import(pooled_id(opened), JOBS, now=NOW)
    assert scene.states(opened) == (TaskState.READY, LeaseState.USED, None)


@pytest.mark.parametrize("state", ["uploading", "importing"])
def test_a_failed_import_burns_the_task(scene: Scene, state: str) -> None:
    opened = getattr(scene, state)()
    task = pooled_id(opened)
    assert not scene.store.fail_import(task, lease_id="ended", code="c", message="", now=NOW)
    assert scene.states(opened) != BURNT
    assert scene.store.fail_import(
        pooled_id(opened), code="import-failed", message="no image \udcff", now=NOW + 4
    )
    assert scene.states(opened) == BURNT
    request = scene.request(opened.request)
    assert (request.error_code, request.error) == ("import-failed", "no image ?")
    assert request.finished_at == NOW + 4
    assert scene.task(pooled_id(opened)).reason == "import-failed: no image ?"


def test_what_is_finished_stays_so(scene: Scene) -> None:
    ready, failed, waiting = scene.importing(), scene.importing(), scene.queued()
    scene.store.complete_import(pooled_id(ready), JOBS, now=NOW)
    scene.store.fail_import(pooled_id(failed), code="x", message="", now=NOW)
    before = everything(scene.store)
    for opened in (ready, failed):
        request, task = request_id(opened), pooled_id(opened)
        assert not scene.store.begin_import(scene.import_id(request), deadline=NOW, now=NOW)
        assert not scene.store.complete_import(task, JOBS, now=NOW)
        assert not scene.store.fail_import(task, code="y", message="", now=NOW)
        assert not scene.store.fail_request(request, code="y", message="", now=NOW)
        assert not scene.requeue(request, now=NOW)
        assert not scene.store.cancel_request(request, now=NOW)
    assert not scene.store.begin_import(scene.import_id(request_id(waiting)), deadline=NOW, now=NOW)
    assert not scene.store.complete_import("unknown", (), now=NOW)
    assert everything(scene.store) == before


# --- Failing before CVAT has the data ------------------------------------------------------------


def test_failing_a_queued_request(scene: Scene) -> None:
    for untouched in (False, True):
        opened = scene.queued()
        failure: dict[str, Any] = {"code": "pool-empty", "message": "none", "now": NOW + 1}
        assert scene.store.fail_request(request_id(opened), untouched=untouched, **failure)
        assert scene.states(opened) == (None, LeaseState.ABANDONED, RequestState.FAILED)
        assert scene.request(opened.request).error_code == "pool-empty"
        assert scene.request(opened.request).finished_at == NOW + 1


def test_failing_an_upload_burns_the_task(scene: Scene) -> None:
    opened = scene.uploading()
    assert scene.store.fail_request(request_id(opened), code="cvat", message="500", now=NOW)
    assert scene.states(opened) == BURNT
    assert scene.task(pooled_id(opened)).reason == "cvat: 500"


def test_returning_an_upload_that_sent_nothing(scene: Scene) -> None:
    opened = scene.uploading()
    assert scene.store.fail_request(
        request_id(opened), untouched=True, code="input", message="x", now=NOW
    )
    assert scene.states(opened) == (TaskState.WARM, LeaseState.RELEASED, RequestState.FAILED)
    assert scene.task(pooled_id(opened)).lease_id is None


def test_an_import_does_not_fail_as_if_its_data_had_not_been_accepted(scene: Scene) -> None:
    opened = scene.importing()
    assert not scene.store.fail_request(request_id(opened), code="x", message="", now=NOW)
    assert not scene.store.fail_request(
        request_id(opened), untouched=True, code="x", message="", now=NOW
    )
    assert scene.states(opened) == IMPORTING


def test_cancelling(scene: Scene) -> None:
    queued, uploading = scene.queued(), scene.queued()
    scene.warm()
    scene.store.claim_warm(uploading.lease.id, "f00d", now=NOW)
    assert scene.store.cancel_request(request_id(queued), now=NOW + 1)
    assert scene.states(queued) == (None, LeaseState.ABANDONED, RequestState.CANCELLED)
    assert scene.request(queued.request).finished_at == NOW + 1
    assert not scene.store.cancel_request(request_id(uploading), now=NOW)
    assert scene.states(uploading) == UPLOADING


@pytest.mark.parametrize("state", ["uploading", "importing"])
def test_another_task_for_a_request(scene: Scene, state: str) -> None:
    opened = getattr(scene, state)()
    old_task = pooled_id(opened)
    old_import = scene.import_id(request_id(opened))
    lease_id = scene.requeue(request_id(opened), reason="it is gone", now=NOW + 1)
    request = scene.request(opened.request)
    assert (request.state, request.lease_id) == (RequestState.QUEUED, lease_id)
    assert (request.pooled_id, request.task_id, request.outcome) == (None, None, None)
    assert (request.handed_out_at, request.uploaded_at, request.deadline_at) == (None, None, None)
    assert scene.task(old_task).state is TaskState.FAILED
    assert scene.task(old_task).reason == "it is gone"
    assert scene.lease(opened.lease.id).state is LeaseState.USED
    fresh = scene.lease(lease_id)
    assert (fresh.state, fresh.template, fresh.owner) == (LeaseState.WAITING, "streets", "here")
    assert not scene.store.requeue_import(old_import, reason="", now=NOW + 1)

    task = scene.warm()
    handout = scene.store.claim_warm(lease_id, "f00d", now=NOW + 2)
    assert handout is not None
    assert handout.request is not None
    assert (handout.request.state, handout.request.pooled_id) == (RequestState.UPLOADING, task.id)
    assert handout.lease.expires_at == NOW + 62


# --- A lease that is given data afterwards -------------------------------------------------------


def test_attaching_a_request(scene: Scene) -> None:
    opened, files = scene.leased(), data("a.jpg", "b.jpg")
    handout = scene.store.attach_request(
        opened.lease.id, files, owner="there", idempotency_key="k", payload="digest", now=NOW + 3
    )
    assert handout is not None
    request = handout.request
    assert request is not None
    assert handout.lease == replace(opened.lease, request_id=files.id)
    assert handout.task == opened.task
    assert request == scene.store.request(files.id) == scene.store.request_by_key("k")
    assert request.payload == "digest"
    assert (request.state, request.owner) == (RequestState.UPLOADING, "there")
    assert (request.lease_id, request.pooled_id) == (opened.lease.id, pooled_id(opened))
    assert (request.task_id, request.outcome) == (opened.lease.task_id, Outcome.HIT)
    assert (request.files, request.created_at, request.handed_out_at) == (files.files, NOW + 3, NOW)
    assert scene.store.watched_leases() == []
    assert not scene.store.give_back(opened.lease.id, now=NOW)
    assert scene.store.begin_import(scene.import_id(files.id), deadline=NOW, now=NOW)
    assert scene.store.hand_outs() == {"streets": {Outcome.HIT: 1}}, "the lease was counted"


def test_leases_that_take_no_request(scene: Scene) -> None:
    has_one, waiting, ended = scene.uploading(), scene.waiting(), scene.leased()
    scene.store.give_back(ended.lease.id, now=NOW)
    before = everything(scene.store)
    for opened in (has_one, waiting, ended):
        assert scene.store.attach_request(opened.lease.id, data(), owner="x", now=NOW) is None
    assert scene.store.attach_request("unknown", data(), owner="x", now=NOW) is None
    assert everything(scene.store) == before


# --- Owners --------------------------------------------------------------------------------------


def test_requests_of_owners_that_are_gone_are_adopted(scene: Scene) -> None:
    store = scene.store
    store.renew_owner("alive", until=NOW)
    store.renew_owner("late", until=NOW - 1)
    store.renew_owner("gone", until=NOW + 99)
    store.forget_owner("gone")
    scene.uploading(owner="alive")
    gone = [
        scene.importing(owner="late"),
        scene.uploading(owner="gone"),
        scene.queued(owner="unheard of"),
    ]
    finished = scene.importing(owner="late")
    store.complete_import(pooled_id(finished), JOBS, now=NOW)
    scene.importing(owner="adopter")

    adopted = store.adopt_requests("adopter", now=NOW)
    assert sorted(request.id for request in adopted) == sorted(map(request_id, gone))
    assert {request.owner for request in adopted} == {"adopter"}
    for opened in gone:
        assert scene.request(opened.request).owner == "adopter"
        assert scene.lease(opened.lease.id).owner == "adopter"
    store.renew_owner("adopter", until=NOW + 9)
    assert store.adopt_requests("another", now=NOW) == []
    assert len(store.adopt_requests("another", now=NOW + 1)) == 1


def test_a_renewed_owner_keeps_what_it_has(scene: Scene) -> None:
    scene.store.renew_owner("here", until=NOW + 1)
    scene.store.renew_owner("here", until=NOW + 100)
    scene.uploading()
    assert scene.store.adopt_requests("adopter", now=NOW + 50) == []


def test_owners_that_could_not_renew_get_another_term(scene: Scene) -> None:
    """Those that were alive when the newest has renewed, once none has for more than a lull."""
    store, times = scene.store, {"term": 10.0, "lull": 4.0}
    assert store.spare_owners(now=NOW, **times) == 0
    ends = {"dead": NOW - 0.1, "older": NOW + 7.0, "newest": NOW + 10.0}
    for owner, until in ends.items():
        store.renew_owner(owner, until=until)
    owned = {owner: request_id(scene.importing(owner=owner)) for owner in ends}

    def adopted(now: float) -> set[str]:
        return {request.id for request in store.adopt_requests("heir", now=now)}

    assert store.spare_owners(now=NOW + 4.0, **times) == 0
    assert store.spare_owners(now=NOW + 30.0, **times) == 2
    assert store.spare_owners(now=NOW + 33.0, **times) == 0
    assert adopted(NOW + 40.0) == {owned["dead"]}
    store.renew_owner("newest", until=NOW + 43.0)
    assert adopted(NOW + 40.1) == {owned["older"]}


def test_leases_of_owners_that_are_gone_wait_no_longer(scene: Scene) -> None:
    scene.store.renew_owner("here", until=NOW)
    active = scene.leased()
    waiting, of_request = scene.waiting(key="k"), scene.queued()
    scene.store.adopt_requests("adopter", now=NOW)
    assert scene.lease(waiting.lease.id).state is LeaseState.WAITING
    scene.store.adopt_requests("adopter", now=NOW + 1)
    assert scene.lease(waiting.lease.id).state is LeaseState.ABANDONED
    assert scene.lease(of_request.lease.id).state is LeaseState.WAITING
    assert scene.lease(active.lease.id).state is LeaseState.ACTIVE, "its caller may yet use it"
    assert not scene.waiting(key="k").replayed


def test_one_process_only_adopts_a_request(scene: Scene, store_url: str) -> None:
    for owner in "abcd":
        scene.store.renew_owner(owner, until=NOW + 9)
    orphans = [request_id(scene.importing(owner="gone")) for _ in range(30)]
    calls = [(store_url, owner) for owner in "abcd"]
    adopted = chain.from_iterable(processes.run(processes.adopt, *calls))
    assert sorted(adopted) == sorted(orphans)
