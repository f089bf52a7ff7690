"""One upload for several requests: its members, and what happens to all of them at once."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import Any

import pytest

from conformance import store_processes as processes
from conformance.store_scene import NOW, TEMPLATE, Scene, data, everything, wish
from pool.model import (
    FinalKind,
    Handout,
    ImportMember,
    ImportRecord,
    ImportState,
    Job,
    LeaseState,
    Outcome,
    Priority,
    RequestRecord,
    RequestState,
    TaskState,
)
from pool.store import UNOWNED, NewMember

#: The frames of three requests with two files, one and two: the last job begins with the second.
JOBS = tuple(
    Job(id=number, url="u", start_frame=first, stop_frame=last)
    for number, (first, last) in enumerate([(0, 0), (1, 1), (2, 2), (3, 4)], start=1)
)
FILES = (("a.jpg", "b.jpg"), ("a.jpg",), ("b.jpg", "a.jpg"))


def spooled(
    scene: Scene,
    *files: str,
    assignee: int | None = None,
    group_key: str | None = "k",
    priority: Priority = Priority.NORMAL,
) -> RequestRecord:
    # As CVAT sorts them.
    numbers = tuple(map(sorted(files).index, files)) if files else (0,)
    wanted = replace(
        data(*files),
        spooled=True,
        assignee=assignee,
        frame_numbers=numbers,
        group_key=group_key,
        priority=priority,
    )
    opened = scene.store.open_lease(wish(), request=wanted, claim=False, now=NOW)
    assert opened.request is not None
    return opened.request


def members_of(requests: list[RequestRecord]) -> list[NewMember]:
    """Members by names that tell the files of one from those of another."""
    return [
        NewMember(
            request_id=request.id,
            names=tuple(f"{place}/{name}" for name in request.files),
        )
        for place, request in enumerate(requests)
    ]


def claim(scene: Scene, requests: list[RequestRecord], *, owner: str = "here") -> Handout | None:
    return scene.store.claim_queued(members_of(requests), "f00d", owner=owner, now=NOW + 1)


def group(scene: Scene, *, owner: str = "here") -> tuple[ImportRecord, list[RequestRecord]]:
    """Three requests that are being uploaded into one task, the last one that was made first."""
    requests = [spooled(scene, *files) for files in FILES][::-1]
    scene.warm()
    handout = claim(scene, requests, owner=owner)
    assert handout is not None and handout.request is not None
    return record(scene, handout.request.import_id), requests


def importing(scene: Scene, *, owner: str = "here") -> tuple[ImportRecord, list[RequestRecord]]:
    sent, requests = group(scene, owner=owner)
    assert scene.store.begin_import(sent.id, deadline=NOW + 600, now=NOW + 2)
    return record(scene, sent.id), requests


def record(scene: Scene, import_id: str | None) -> ImportRecord:
    found = scene.store.import_record(import_id or "none")
    assert found is not None
    return found


def now_of(scene: Scene, requests: list[RequestRecord]) -> list[RequestRecord]:
    return [scene.request(request) for request in requests]


# --- Members -------------------------------------------------------------------------------------


def test_one_task_for_several_requests(scene: Scene) -> None:
    sent, requests = group(scene)
    lease = scene.lease(requests[0].lease_id)
    assert (sent.state, sent.owner, sent.lease_id) == (ImportState.UPLOADING, "here", lease.id)
    assert (sent.pooled_id, sent.task_id) == (lease.pooled_id, lease.task_id)
    assert (sent.outcome, sent.handed_out_at, sent.size) == (Outcome.WAIT, NOW + 1, 3 * 99)
    assert scene.task(sent.pooled_id).state is TaskState.LEASED
    for now in now_of(scene, requests):
        assert (now.state, now.import_id) == (RequestState.UPLOADING, sent.id)
        assert (now.lease_id, now.task_id, now.owner) == (lease.id, sent.task_id, "here")
    waited = [scene.lease(request.lease_id).state for request in requests]
    assert waited == [LeaseState.ACTIVE, LeaseState.ABANDONED, LeaseState.ABANDONED]
    assert scene.store.in_flight() == 3


def test_a_request_alone_is_an_import_of_one(scene: Scene) -> None:
    opened = scene.uploading()
    request = scene.request(opened.request)
    sent = record(scene, request.import_id)
    assert sent.members == (
        ImportMember(request_id=request.id, files=request.files, names=request.files),
    )
    assert (sent.lease_id, sent.outcome, sent.size) == (opened.lease.id, Outcome.HIT, request.size)
    queued = scene.queued()
    assert scene.request(queued.request).import_id is None
    assert scene.store.import_record("unknown") is None


def test_members_are_written_down_with_the_hand_out_and_stay(scene: Scene) -> None:
    sent, requests = group(scene)
    members = tuple(
        ImportMember(
            request_id=request.id,
            files=request.files,
            names=tuple(f"{place}/{name}" for name in request.files),
        )
        for place, request in enumerate(requests)
    )
    assert sent.members == members
    scene.store.begin_import(sent.id, deadline=NOW, now=NOW)
    assert record(scene, sent.id).members == members
    scene.store.requeue_import(sent.id, reason="lost", now=NOW)
    assert record(scene, sent.id).members == members, "also of one that failed"
    scene.warm()
    handout = claim(scene, requests[1:])
    assert handout is not None and handout.request is not None
    assert record(scene, handout.request.import_id).request_ids == tuple(
        request.id for request in requests[1:]
    )
    assert record(scene, sent.id).members == members


def test_each_member_knows_its_files_in_the_group(scene: Scene) -> None:
    sent, requests = group(scene)
    own = [
        [(frame.file, frame.name, frame.number) for frame in request.frames]
        for request in now_of(scene, requests)
    ]
    assert own == [
        [("b.jpg", "0/b.jpg", 1), ("a.jpg", "0/a.jpg", 0)],
        [("a.jpg", "1/a.jpg", 2)],
        [("a.jpg", "2/a.jpg", 3), ("b.jpg", "2/b.jpg", 4)],
    ]
    assert scene.request(requests[1]).files == ("1/a.jpg",)
    # Alone, the names and numbers are those of a task of its own again.
    scene.store.requeue_import(sent.id, reason="lost", now=NOW)
    scene.warm()
    alone = NewMember(request_id=requests[2].id)
    assert scene.store.claim_queued([alone], "f00d", owner="here", now=NOW + 2)
    request = scene.request(requests[2])
    assert [frame.number for frame in request.frames] == [0, 1]
    assert request.files == ("a.jpg", "b.jpg")
    assert record(scene, request.import_id).members[0].names == ("a.jpg", "b.jpg")


def test_what_the_caller_calls_its_files(scene: Scene) -> None:
    wanted = replace(
        data("1_a.jpg", "2_a.jpg"), given=("1/a.jpg", "2/a.jpg"), frame_numbers=(None, 0)
    )
    opened = scene.store.open_lease(wish(), request=wanted, claim=False, now=NOW)
    scene.warm()
    assert scene.store.claim_warm(opened.lease.id, "f00d", now=NOW)
    assert opened.request is not None
    request = scene.request(opened.request)
    assert [(frame.file, frame.name, frame.number) for frame in request.frames] == [
        ("1/a.jpg", "1_a.jpg", None),
        ("2/a.jpg", "2_a.jpg", 0),
    ]
    (member,) = record(scene, request.import_id).members
    assert (member.files, member.names) == (("1/a.jpg", "2/a.jpg"), ("1_a.jpg", "2_a.jpg"))
    scene.store.number_frames(request.id, None)
    assert [frame.number for frame in scene.request(request).frames] == [None, None]


@pytest.mark.parametrize(
    "why", ["cancelled", "taken", "not spooled", "unknown", "twice", "no task"]
)
def test_all_of_them_or_none(scene: Scene, why: str) -> None:
    requests = [spooled(scene) for _ in range(3)]
    if why != "no task":
        scene.warm()
    match why:
        case "cancelled":
            scene.store.cancel_request(requests[2].id, now=NOW)
        case "taken":
            scene.store.renew_owner("another", until=NOW + 99)
            scene.store.take_spooled(requests[2].id, owner="another", now=NOW)
        case "not spooled":
            opened = scene.store.open_lease(wish(), request=data(), claim=False, now=NOW)
            assert opened.request is not None
            requests[2] = opened.request
        case "unknown":
            requests[2] = replace(requests[2], id="unknown")
        case "twice":
            scene.warm()
            assert claim(scene, requests[2:]) is not None
    before = everything(scene.store)
    assert claim(scene, requests) is None
    assert everything(scene.store) == before


# --- Ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("noticed", [True, False])
def test_an_import_completes_all_its_members_once(scene: Scene, noticed: bool) -> None:
    sent, requests = importing(scene) if noticed else group(scene)
    before = scene.store.last_event_id()
    assert scene.store.complete_import(sent.pooled_id, JOBS, verified=True, now=NOW + 9)
    assert not scene.store.complete_import(sent.pooled_id, JOBS, now=NOW + 10)
    assert not scene.store.begin_import(sent.id, deadline=NOW, now=NOW + 10)
    ended = record(scene, sent.id)
    assert (ended.state, ended.finished_at) == (ImportState.READY, NOW + 9)
    for now in now_of(scene, requests):
        assert (now.state, now.finished_at) == (RequestState.READY, NOW + 9)
        assert now.uploaded_at == ended.uploaded_at is not None
    # Files of the third request, the second and the first, in this order.
    assert [
        [job.id for job in scene.store.jobs_of(sent.pooled_id, request_id=request.id)]
        for request in requests
    ] == [[1, 2], [3], [4]]
    assert scene.store.jobs_of(sent.pooled_id) == list(JOBS)
    assert scene.store.hand_outs() == {TEMPLATE: {Outcome.WAIT: 3}}
    events = scene.store.events_after(before, limit=99)
    ready = [each.request_id for each in events if each.kind == "request.ready"]
    assert sorted(map(str, ready)) == sorted(request.id for request in requests)
    asked = scene.store.asked(TEMPLATE, since=NOW, until=NOW + 99, limit=99)
    assert asked.outcomes == {Outcome.WAIT: 1}, "of the tasks that were asked for it is one"
    demand = scene.store.demand(TEMPLATE, since=0)
    assert [(each.waits, each.total) for each in demand] == [(1, 1)]


def test_a_lease_is_handed_out_once_for_all_members(scene: Scene) -> None:
    sent, _ = importing(scene)
    scene.store.complete_import(sent.pooled_id, JOBS, now=NOW + 9)
    kinds = [each.kind for each in scene.store.events_after(0, limit=99)]
    assert kinds.count("lease.handed_out") == kinds.count("lease.used") == 1


def test_each_member_has_its_jobs_assigned(scene: Scene) -> None:
    wanted_by = zip(FILES, [7, None, 9], strict=True)
    requests = [spooled(scene, *files, assignee=user) for files, user in wanted_by]
    scene.warm()
    handout = claim(scene, requests)
    assert handout is not None
    scene.store.complete_import(handout.task.id, JOBS, verified=True, now=NOW)
    steps = scene.store.steps_of(handout.task.id)
    wanted = [(step.kind, step.request.id if step.request else None) for step in steps]
    assert wanted[0] == (FinalKind.NAME, requests[0].id), "the first one names the task"
    assert sorted(wanted[1:]) == sorted(
        (FinalKind.ASSIGN, request.id) for request in (requests[0], requests[2])
    )
    assert scene.store.end_step(steps[1], now=NOW)
    assert not scene.store.end_step(steps[1], now=NOW)
    assert scene.store.steps_of(handout.task.id) == [steps[0], steps[2]]


@pytest.mark.parametrize("call", ["fail_import", "fail_request", "untouched"])
def test_members_fail_together(scene: Scene, call: str) -> None:
    sent, requests = group(scene)
    failure: dict[str, Any] = {"code": "cut", "message": "why", "now": NOW + 5}
    before = scene.store.last_event_id()
    if call == "fail_import":
        assert scene.store.fail_import(sent.pooled_id, **failure)
        assert not scene.store.fail_import(sent.pooled_id, **failure)
    else:
        how = {"expected_lease_id": sent.lease_id, "untouched": call == "untouched", **failure}
        assert scene.store.fail_request(requests[1].id, **how)
        assert not scene.store.fail_request(requests[2].id, **how)
    for now in now_of(scene, requests):
        assert (now.state, now.error_code, now.error) == (RequestState.FAILED, "cut", "why")
        assert (now.finished_at, now.import_id) == (NOW + 5, sent.id)
    untouched = call == "untouched"
    state = ImportState.RETURNED if untouched else ImportState.FAILED
    assert record(scene, sent.id).state is state
    task, lease = scene.task(sent.pooled_id).state, scene.lease(sent.lease_id).state
    assert (task, lease) == (
        (TaskState.WARM, LeaseState.RELEASED) if untouched else (TaskState.FAILED, LeaseState.USED)
    )
    kinds = [each.kind for each in scene.store.events_after(before, limit=99)]
    assert kinds.count("request.failed") == 3
    assert scene.store.hand_outs() == {}


@pytest.mark.parametrize("state", ["uploading", "importing"])
def test_members_get_another_task_together(scene: Scene, state: str) -> None:
    sent, requests = group(scene) if state == "uploading" else importing(scene)
    queued = scene.store.requeue_import(sent.id, reason="it is gone", now=NOW + 5)
    assert queued == now_of(scene, requests), "in order"
    for now in queued:
        assert (now.state, now.owner, now.imports_used) == (RequestState.QUEUED, UNOWNED, 1)
        assert (now.import_id, now.task_id, now.uploaded_at) == (None, None, None)
        assert scene.lease(now.lease_id).state is LeaseState.WAITING
    assert len({now.lease_id for now in queued}) == 3
    assert scene.task(sent.pooled_id).reason == "it is gone"
    assert record(scene, sent.id).state is ImportState.FAILED
    assert scene.store.requeue_import(sent.id, reason="", now=NOW + 6) == []
    assert now_of(scene, requests) == queued
    # What CVAT had the data of was served, and is not counted again.
    scene.warm()
    handout = claim(scene, requests)
    assert handout is not None and handout.request is not None
    scene.store.begin_import(handout.request.import_id or "", deadline=NOW, now=NOW + 7)
    assert scene.store.hand_outs() == {TEMPLATE: {Outcome.WAIT: 3}}
    assert record(scene, handout.request.import_id).imports_used == 1


def test_members_wait_together_where_nothing_was_sent(scene: Scene) -> None:
    sent, requests = group(scene)
    queued = scene.store.queue_request(
        requests[1].id, expected_lease_id=sent.lease_id, most=3, now=NOW + 5
    )
    assert queued == scene.request(requests[1])
    for now in now_of(scene, requests):
        assert (now.state, now.owner, now.imports_used) == (RequestState.QUEUED, UNOWNED, 0)
    assert scene.task(sent.pooled_id).state is TaskState.WARM
    assert record(scene, sent.id).state is ImportState.RETURNED
    assert scene.store.queue_length() == 3


# --- In parts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("untouched", [False, True])
def test_members_of_a_failed_import_go_on_in_parts(scene: Scene, untouched: bool) -> None:
    sent, requests = group(scene) if untouched else importing(scene)
    first, *others = (request.id for request in requests)
    assert scene.store.split_import(
        sent.id, [[first], others], untouched=untouched, reason="bad", now=NOW + 5
    )
    now = now_of(scene, requests)
    for each in now:
        assert (each.state, each.owner, each.import_id) == (RequestState.QUEUED, UNOWNED, None)
        assert each.imports_used == 0, "it need not be the cause"
        assert scene.lease(each.lease_id).state is LeaseState.WAITING
    keys = [each.group_key for each in now]
    assert len({*keys, "k"}) == 3 and keys[1] == keys[2] and None not in keys
    unserved = scene.store.unserved(spools=[""], owner="here", now=NOW, each=9)
    assert {each.id: each.group_key for each in unserved} == {
        each.id: each.group_key for each in now
    }
    task = scene.task(sent.pooled_id)
    if untouched:
        assert (record(scene, sent.id).state, task.state) == (ImportState.RETURNED, TaskState.WARM)
    else:
        assert (record(scene, sent.id).state, task.state) == (ImportState.FAILED, TaskState.FAILED)
        assert task.reason == "bad"
    again = scene.store.split_import(sent.id, [[first], others], reason="", now=NOW + 6)
    assert not again and now_of(scene, requests) == now


def test_members_of_a_failed_import_go_on_alone(scene: Scene) -> None:
    sent, requests = importing(scene)
    parts = [[request.id] for request in requests]
    assert scene.store.split_import(sent.id, parts, alone=True, reason="", now=NOW + 5)
    assert {each.group_key for each in now_of(scene, requests)} == {None}


def test_an_import_that_has_ended_is_not_split(scene: Scene) -> None:
    sent, requests = importing(scene)
    scene.store.complete_import(sent.pooled_id, JOBS, now=NOW + 9)
    assert not scene.store.split_import(
        sent.id, [[request.id] for request in requests], reason="", now=NOW + 9
    )
    assert {now.state for now in now_of(scene, requests)} == {RequestState.READY}


def test_members_are_known_in_the_order_of_their_frames(scene: Scene) -> None:
    sent, requests = group(scene)
    assert scene.store.members_of(sent.id) == now_of(scene, requests)
    scene.store.requeue_import(sent.id, reason="", now=NOW)
    assert scene.store.members_of(sent.id) == [], "they are members of it no more"


def test_a_task_is_made_for_several(scene: Scene) -> None:
    requests = [spooled(scene, *files) for files in FILES]
    pooled_id = scene.creating().id
    assert scene.store.record_created(pooled_id, task_id=5, now=NOW)
    members = members_of(requests)
    first = requests[0].lease_id
    gone = NewMember(request_id="unknown")

    def made_for(*members: NewMember) -> Handout | None:
        return scene.store.finish_cold(
            pooled_id, first, members=members, prepared=True, owner="here", now=NOW + 1
        )

    assert made_for(*members, gone) is None
    assert {now.state for now in now_of(scene, requests)} == {RequestState.QUEUED}
    assert {now.owner for now in now_of(scene, requests)} == {UNOWNED}
    assert scene.task(pooled_id).state is TaskState.CREATING
    handout = made_for(*members)
    assert handout is not None and handout.request is not None
    sent = record(scene, handout.request.import_id)
    assert sent.outcome is Outcome.COLD
    assert sent.request_ids == tuple(request.id for request in requests)
    assert scene.store.begin_import(sent.id, deadline=NOW, now=NOW)
    assert scene.store.hand_outs() == {TEMPLATE: {Outcome.COLD: 3}}
    assert [each.total for each in scene.store.demand(TEMPLATE, since=0)] == [1]


# --- Places --------------------------------------------------------------------------------------


def in_place(
    scene: Scene, *requests: RequestRecord, places: int, bulk_places: int | None = None
) -> Handout | None:
    return scene.store.claim_queued(
        members_of(list(requests)),
        "f00d",
        places=places,
        bulk_places=bulk_places,
        owner="here",
        now=NOW + 1,
    )


def test_imports_that_may_be_shared_take_places_until_they_end(scene: Scene) -> None:
    requests = [spooled(scene, "a.jpg") for _ in range(5)]
    for _ in range(4):
        scene.warm()
    first = in_place(scene, *requests[:2], places=1)
    assert first is not None and first.request is not None
    assert scene.store.grouped_imports() == 1, "however many share it"
    assert in_place(scene, requests[2], places=1) is None
    assert scene.request(requests[2]).owner == UNOWNED
    second = in_place(scene, requests[2], places=2)
    assert second is not None
    assert scene.store.begin_import(first.request.import_id or "", deadline=NOW, now=NOW)
    assert in_place(scene, requests[3], places=2) is None, "until its jobs are there"
    assert scene.store.fail_import(first.task.id, code="c", message="", now=NOW)
    assert in_place(scene, requests[3], places=2) is not None
    assert scene.store.complete_import(second.task.id, JOBS, verified=True, now=NOW)
    assert in_place(scene, requests[4], places=2) is not None


def test_bulk_takes_no_more_than_its_own_places(scene: Scene) -> None:
    bulk = [spooled(scene, "a.jpg", priority=Priority.BULK) for _ in range(3)]
    normal = spooled(scene, "a.jpg")
    for _ in range(4):
        scene.warm()
    first = in_place(scene, bulk[0], places=3, bulk_places=1)
    assert first is not None and first.request is not None
    assert in_place(scene, bulk[1], places=3, bulk_places=1) is None
    assert in_place(scene, bulk[1], places=3, bulk_places=2) is not None
    assert in_place(scene, normal, places=3, bulk_places=1) is not None
    assert scene.store.grouped_imports() == 3
    assert scene.store.grouped_imports(Priority.BULK) == 2
    assert scene.store.begin_import(first.request.import_id or "", deadline=NOW, now=NOW)
    assert scene.store.fail_import(first.task.id, code="c", message="", now=NOW)
    assert in_place(scene, bulk[2], places=3, bulk_places=1) is None
    assert in_place(scene, bulk[2], places=3, bulk_places=2) is not None


def test_a_request_that_goes_alone_takes_no_place(scene: Scene) -> None:
    alone, other = spooled(scene, "a.mp4", group_key=None), spooled(scene, "a.jpg")
    scene.warm()
    scene.warm()
    assert in_place(scene, alone, places=1) is not None
    assert scene.store.grouped_imports() == 0
    assert in_place(scene, other, places=1) is not None
    unserved = spooled(scene, "b.mp4", group_key=None)
    seen = scene.store.unserved(spools=[""], owner="here", now=NOW, each=9)[-1]
    assert (seen.id, seen.group_key, seen.files) == (unserved.id, None, ())


def test_who_comes_first_takes_a_place_at_once(scene: Scene) -> None:
    for _ in range(2):
        scene.warm()
    wanted = [replace(data("a.jpg"), spooled=True, group_key="k") for _ in range(2)]
    first, second = (
        scene.store.open_lease(wish(), request=each, places=1, now=NOW) for each in wanted
    )
    assert first.task is not None and first.request is not None
    assert first.request.group_key == "k"
    assert second.task is None and second.request is not None
    assert (second.request.state, second.lease.state) == (RequestState.QUEUED, LeaseState.WAITING)
    waits = scene.store.unserved(spools=[""], owner="here", now=NOW, each=9)[-1]
    assert (waits.id, waits.files, waits.size) == (second.request.id, ("a.jpg",), 99)


def test_places_are_never_given_twice(scene: Scene, store_url: str) -> None:
    requests = [spooled(scene, "a.jpg").id for _ in range(8)]
    for _ in range(8):
        scene.warm()
    calls = [(store_url, f"owner{number}", requests[number::4], 3) for number in range(4)]
    claimed = list(chain.from_iterable(processes.run(processes.claim_queued, *calls)))
    assert len(claimed) == scene.store.grouped_imports() == 3


# --- Owners --------------------------------------------------------------------------------------


def test_an_import_of_an_owner_that_is_gone_is_adopted_with_all_its_members(scene: Scene) -> None:
    sent, requests = importing(scene, owner="gone")
    scene.store.renew_owner("heir", until=NOW + 99)
    adopted = scene.store.adopt_requests("heir", now=NOW)
    assert sorted(each.id for each in adopted) == sorted(each.id for each in requests)
    assert record(scene, sent.id).owner == "heir"
    assert {now.owner for now in now_of(scene, requests)} == {"heir"}
    assert scene.lease(sent.lease_id).owner == "heir"
    assert scene.store.adopt_requests("another", now=NOW) == []


def test_what_the_server_works_on_is_handed_over_by_one_that_lives(scene: Scene) -> None:
    sent, requests = importing(scene, owner="lives")
    uploading, _ = group(scene, owner="lives")
    for owner in ("lives", "heir"):
        scene.store.renew_owner(owner, until=NOW + 99)
    assert scene.store.adopt_requests("heir", now=NOW) == []
    assert scene.store.hand_over_imports("heir") == []
    assert scene.store.hand_over_imports("lives") == [sent.pooled_id]
    assert scene.store.hand_over_imports("lives") == []
    assert len(scene.store.adopt_requests("heir", now=NOW)) == len(requests)
    assert (record(scene, sent.id).owner, record(scene, uploading.id).owner) == ("heir", "lives")


def test_an_upload_of_an_owner_that_is_gone_is_taken_as_a_whole(scene: Scene) -> None:
    sent, requests = group(scene, owner="gone")
    for owner in ("heir", "another"):
        scene.store.renew_owner(owner, until=NOW + 99)
    assert scene.store.adopt_requests("heir", now=NOW) == [], "it can be sent again"
    free = {each.id for each in scene.store.unserved(spools=[""], owner="heir", now=NOW, each=9)}
    assert free == {request.id for request in requests}
    taken = scene.store.take_spooled(requests[2].id, owner="heir", now=NOW)
    assert taken is not None and taken.owner == "heir"
    assert record(scene, sent.id).owner == "heir"
    assert scene.store.unserved(spools=[""], owner="another", now=NOW, each=9) == []
    for request in requests:
        assert scene.store.take_spooled(request.id, owner="another", now=NOW) is None
    # The heir is gone, too, while the first owner is back.
    scene.store.forget_owner("heir")
    scene.store.renew_owner("gone", until=NOW + 99)
    assert len(scene.store.unserved(spools=[""], owner="another", now=NOW, each=9)) == 3


def test_one_process_only_adopts_an_import(scene: Scene, store_url: str) -> None:
    for owner in "abcd":
        scene.store.renew_owner(owner, until=NOW + 9)
    orphans = [request.id for _ in range(5) for request in importing(scene, owner="gone")[1]]
    calls = [(store_url, owner) for owner in "abcd"]
    adopted = chain.from_iterable(processes.run(processes.adopt, *calls))
    assert sorted(adopted) == sorted(orphans)


def test_the_server_names_a_task_and_its_import(scene: Scene) -> None:
    sent, _ = importing(scene)
    assert scene.store.task_on_server(sent.task_id) == (scene.task(sent.pooled_id), sent)


def test_another_requests_upload_is_one_that_it_is_no_member_of(scene: Scene) -> None:
    _, requests = importing(scene)
    outsider = scene.queued().request
    assert outsider is not None
    assert scene.store.others_uploaded(outsider.id, since=NOW)
    assert not any(scene.store.others_uploaded(each.id, since=NOW) for each in requests)


# --- What is forgotten ---------------------------------------------------------------------------


def test_a_task_and_its_import_are_kept_as_long_as_a_member_is(scene: Scene) -> None:
    sent, requests = importing(scene)
    scene.store.complete_import(sent.pooled_id, JOBS, now=NOW + 9)
    for step in scene.store.steps_of(sent.pooled_id):
        scene.store.end_step(step, now=NOW + 9)
    for left in (2, 1):
        scene.store.prune(before=NOW + 1000, limit=1)
        kept = [each for each in requests if scene.store.request(each.id)]
        assert len(kept) == left
        assert record(scene, sent.id).members == sent.members
        assert [scene.request(each).task_id for each in kept] == [sent.task_id] * left
        assert scene.store.jobs_of(sent.pooled_id) == list(JOBS)
    while scene.store.prune(before=NOW + 1000, limit=100):
        pass
    assert scene.store.import_record(sent.id) is None
    assert everything(scene.store) == ([], [], ())


def test_an_import_outlives_the_requests_that_went_on_to_another(scene: Scene) -> None:
    sent, requests = importing(scene)
    scene.store.requeue_import(sent.id, reason="lost", now=NOW + 900)
    for request in requests:
        scene.store.cancel_request(request.id, now=NOW + 2)
    scene.store.prune(before=NOW + 500, limit=100)
    assert [scene.store.request(request.id) for request in requests] == [None] * 3
    assert record(scene, sent.id).members == sent.members
    assert not record(scene, sent.id).spooled, "no member can be sent again"
    assert scene.task(sent.pooled_id).state is TaskState.FAILED


def test_how_many_imports_the_server_takes_is_kept_for_all_processes(scene: Scene) -> None:
    store = scene.store
    assert store.import_concurrency() is None
    assert not store.adapt_import_concurrency(2, 3)
    assert store.import_concurrency() is None
    assert store.adapt_import_concurrency(None, 3)
    assert not store.adapt_import_concurrency(2, 4), "another process has changed it"
    assert store.adapt_import_concurrency(3, 4)
    assert store.import_concurrency() == 4
