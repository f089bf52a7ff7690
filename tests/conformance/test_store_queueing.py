from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest

from conformance import store_processes as processes
from conformance.store_scene import JOBS, NOW, Scene, data, everything, wish
from pool.errors import IdempotencyConflict, QueueFull
from pool.model import (
    SPOOL_AWAY,
    LeaseState,
    Outcome,
    Priority,
    RequestRecord,
    RequestState,
    SpoolRecord,
    TaskState,
)
from pool.store import UNOWNED, NewMember, Opened

WAITING = (None, LeaseState.WAITING, RequestState.QUEUED)


def spooled(
    scene: Scene,
    *,
    template: str = "streets",
    key: str | None = None,
    priority: Priority = Priority.NORMAL,
    tenant: str = "",
) -> RequestRecord:
    """A request that waits in the spool."""
    request = replace(data(), spooled=True, priority=priority, tenant=tenant)
    opened = scene.store.open_lease(
        wish(template=template, key=key), request=request, claim=False, now=NOW
    )
    assert opened.request is not None
    return opened.request


def uploading(scene: Scene, *, owner: str = "here") -> Opened:
    """A spooled request that a worker serves."""
    scene.warm()
    opened = scene.store.open_lease(
        wish(owner=owner), request=replace(data(), spooled=True), now=NOW
    )
    assert opened.request is not None
    assert opened.request.state is RequestState.UPLOADING
    return opened


def queue(
    scene: Scene, request: RequestRecord | None, *, expected: str = "", most: int | None = None
) -> RequestRecord | None:
    assert request is not None
    return scene.store.queue_request(
        request.id, expected_lease_id=expected or request.lease_id, most=most, now=NOW + 1
    )


def unserved(scene: Scene, *, owner: str = "daemon", now: float = NOW) -> list[str]:
    return [each.id for each in scene.store.unserved(spools=[""], owner=owner, now=now, each=99)]


# --- Accepting -----------------------------------------------------------------------------------


def test_a_spooled_request_that_waits_has_no_owner(scene: Scene) -> None:
    request = spooled(scene)
    assert (request.state, request.owner, request.spooled) == (
        RequestState.QUEUED,
        UNOWNED,
        True,
    )
    assert scene.lease(request.lease_id).owner == UNOWNED
    assert scene.request(request) == request


def test_one_that_gets_a_task_at_once_is_its_owners(scene: Scene) -> None:
    opened = uploading(scene, owner="daemon")
    assert opened.request is not None
    assert (opened.request.owner, opened.lease.owner) == ("daemon", "daemon")


def test_no_task_is_taken_unless_one_is_asked_for(scene: Scene) -> None:
    task = scene.warm()
    spooled(scene)
    assert scene.task(task.id).state is TaskState.WARM
    assert scene.store.hand_outs() == {}


def test_a_bound_on_what_waits(scene: Scene) -> None:
    scene.queued()  # its caller has the data
    for _ in range(2):
        spooled(scene)
    before = everything(scene.store)
    request = replace(data(), spooled=True)
    with pytest.raises(QueueFull, match=r"2 requests wait, as many as daemon\.max_queued allows"):
        scene.store.open_lease(wish(key="k"), request=request, most_queued=2, now=NOW)
    assert everything(scene.store) == before
    scene.warm()
    opened = scene.store.open_lease(wish(key="k"), request=request, most_queued=2, now=NOW)
    assert not opened.replayed
    assert opened.task is not None, "it does not wait"
    again = scene.store.open_lease(wish(key="k"), request=data(), most_queued=0, now=NOW)
    assert again.replayed, "and is known even when nothing may wait"
    assert scene.store.open_lease(wish(), request=data(), most_queued=0, now=NOW).request


# --- Putting aside -------------------------------------------------------------------------------


def test_an_untouched_task_is_given_back(scene: Scene) -> None:
    opened = scene.uploading()
    task_id = opened.lease.pooled_id
    queued = queue(scene, opened.request)
    assert queued is not None
    assert queued == scene.request(opened.request)
    assert (queued.state, queued.owner, queued.spooled) == (RequestState.QUEUED, UNOWNED, True)
    assert (queued.import_id, queued.pooled_id, queued.task_id) == (None, None, None)
    assert (queued.outcome, queued.handed_out_at, queued.imports_used) == (None, None, 0)
    assert scene.task(task_id).state is TaskState.WARM
    assert scene.task(task_id).lease_id is None
    assert scene.lease(opened.lease.id).state is LeaseState.RELEASED
    fresh = scene.lease(queued.lease_id)
    assert (fresh.state, fresh.owner, fresh.template) == (LeaseState.WAITING, UNOWNED, "streets")


def test_what_waits_anyway_waits_in_the_spool(scene: Scene) -> None:
    opened = scene.queued(key="k")
    queued = queue(scene, opened.request)
    assert queued is not None
    assert (queued.lease_id, queued.spooled, queued.owner) == (opened.lease.id, True, UNOWNED)
    assert len(scene.store.leases()) == 1
    assert scene.states(opened) == WAITING
    assert scene.queued(key="k").request == queued, "its key is known, and to other processes"


def test_putting_aside_has_the_bound_too(scene: Scene) -> None:
    spooled(scene)
    waiting, opened = scene.queued(), scene.uploading()
    before = everything(scene.store)
    for request in (waiting.request, opened.request):
        with pytest.raises(QueueFull):
            queue(scene, request, most=1)
    assert everything(scene.store) == before
    assert queue(scene, opened.request, most=2) is not None


def test_what_cannot_be_put_aside(scene: Scene) -> None:
    importing, cancelled, moved = scene.importing(), scene.queued(), scene.uploading()
    assert cancelled.request is not None
    scene.store.cancel_request(cancelled.request.id, now=NOW)
    before = everything(scene.store)
    assert queue(scene, importing.request) is None
    assert queue(scene, cancelled.request) is None
    assert queue(scene, moved.request, expected="another lease") is None
    unknown = scene.store.queue_request("x", expected_lease_id="y", most=None, now=NOW)
    assert unknown is None
    assert everything(scene.store) == before


# --- Taking --------------------------------------------------------------------------------------


def test_what_has_no_live_owner(scene: Scene) -> None:
    store = scene.store
    for owner in ("daemon", "alive"):
        store.renew_owner(owner, until=NOW + 99)
    scene.queued(owner="gone")
    first, mine, theirs = spooled(scene), uploading(scene, owner="daemon"), uploading(scene)
    uploading(scene, owner="alive")
    scene.importing(owner="gone")
    last = spooled(scene, template="other")
    wanted = [first, mine.request, theirs.request, last]
    assert unserved(scene) == [request.id for request in wanted if request]
    taken = store.take_spooled(first.id, owner="alive", now=NOW)
    assert taken == replace(first, owner="alive")
    assert scene.lease(first.lease_id).owner == "alive"
    assert first.id not in unserved(scene)
    assert first.id in unserved(scene, now=NOW + 100), "it died"
    described = store.unserved(spools=[""], owner="daemon", now=NOW, each=99)[-1]
    assert (described.template, described.state) == ("other", RequestState.QUEUED)
    assert described.lease_id == last.lease_id


def test_a_template_with_many_does_not_hide_the_others(scene: Scene) -> None:
    many = [spooled(scene) for _ in range(5)]
    other = spooled(scene, template="other")
    found = scene.store.unserved(spools=[""], owner="daemon", now=NOW, each=2)
    assert [each.id for each in found] == [many[0].id, many[1].id, other.id]
    assert scene.store.unserved(spools=[""], owner="daemon", now=NOW, each=0) == []


def test_a_priority_with_many_does_not_hide_the_others(scene: Scene) -> None:
    bulk = [spooled(scene, priority=Priority.BULK) for _ in range(3)]
    urgent = [spooled(scene, priority=Priority.INTERACTIVE) for _ in range(3)]
    found = scene.store.unserved(spools=[""], owner="daemon", now=NOW, each=2)
    assert [(each.id, each.priority) for each in found] == [
        *((each.id, Priority.BULK) for each in bulk[:2]),
        *((each.id, Priority.INTERACTIVE) for each in urgent[:2]),
    ]


def test_a_tenant_with_many_does_not_hide_the_others(scene: Scene) -> None:
    many = [spooled(scene, tenant="robot") for _ in range(5)]
    others = [spooled(scene, tenant="ann"), spooled(scene)]
    found = scene.store.unserved(spools=[""], owner="daemon", now=NOW, each=2)
    assert [(each.id, each.tenant) for each in found] == [
        (many[0].id, "robot"),
        (many[1].id, "robot"),
        (others[0].id, "ann"),
        (others[1].id, ""),
    ]


def test_a_request_keeps_its_tenant(scene: Scene) -> None:
    request = spooled(scene, tenant="robot")
    assert scene.request(request).tenant == "robot"
    scene.warm()
    handout = scene.store.claim_queued(
        [NewMember(request_id=request.id)], "f00d", owner="daemon", now=NOW
    )
    assert handout is not None and handout.request is not None
    assert handout.request.tenant == "robot"
    scene.requeue(request.id, now=NOW)
    (again,) = scene.store.unserved(spools=[""], owner="daemon", now=NOW, each=9)
    assert (again.id, again.tenant) == (request.id, "robot")


def test_those_that_wait_are_counted_over_all_tenants(scene: Scene) -> None:
    for tenant in ("", "ann", "robot"):
        spooled(scene, tenant=tenant)
    last = spooled(scene, tenant="robot")
    assert (scene.store.queued(), scene.store.queue_length()) == ({"streets": 4}, 4)
    assert scene.store.queued_by_priority() == {"streets": {Priority.NORMAL: 4}}
    scene.store.cancel_request(last.id, now=NOW)
    assert (scene.store.queued(), scene.store.queue_length()) == ({"streets": 3}, 3)
    with pytest.raises(QueueFull):
        scene.store.open_lease(
            wish(), request=replace(data(), spooled=True), most_queued=3, now=NOW
        )


def test_many_templates_are_read_at_once(scene: Scene) -> None:
    wanted = [spooled(scene, template=f"t{number}") for number in range(150)]
    found = scene.store.unserved(spools=[""], owner="daemon", now=NOW, each=1)
    assert [each.id for each in found] == [each.id for each in wanted]


def test_one_that_is_to_go_alone(scene: Scene) -> None:
    request = replace(data(), spooled=True, group_key="alike", frame_numbers=(0,))
    opened = scene.store.open_lease(wish(), request=request, claim=False, now=NOW)
    assert opened.request is not None
    (before,) = scene.store.unserved(spools=[""], owner="daemon", now=NOW, each=9)
    assert (before.group_key, before.frame_numbers) == ("alike", (0,))
    scene.store.send_alone(opened.request.id)
    (after,) = scene.store.unserved(spools=[""], owner="daemon", now=NOW, each=9)
    assert after.group_key is None


def test_what_cannot_be_taken(scene: Scene) -> None:
    store = scene.store
    store.renew_owner("alive", until=NOW + 99)
    unspooled, importing = scene.queued(owner="gone"), uploading(scene)
    assert importing.request is not None
    assert store.begin_import(scene.import_id(importing.request.id), deadline=NOW, now=NOW)
    served, cancelled = uploading(scene, owner="alive"), spooled(scene)
    store.cancel_request(cancelled.id, now=NOW)
    before = everything(store)
    for request in (unspooled.request, importing.request, served.request, cancelled):
        assert request is not None
        assert store.take_spooled(request.id, owner="daemon", now=NOW) is None
        assert (
            store.claim_queued([NewMember(request_id=request.id)], "f00d", owner="daemon", now=NOW)
            is None
        )
    assert store.take_spooled("unknown", owner="daemon", now=NOW) is None
    assert (
        store.claim_queued([NewMember(request_id="unknown")], "f00d", owner="daemon", now=NOW)
        is None
    )
    assert everything(store) == before
    assert store.adopt_requests("daemon", now=NOW) == [
        replace(scene.request(each.request), owner="daemon") for each in (unspooled, importing)
    ]


def test_claiming_for_a_queued_request(scene: Scene) -> None:
    request = spooled(scene)
    assert (
        scene.store.claim_queued(
            [NewMember(request_id=request.id)], "f00d", owner="daemon", now=NOW
        )
        is None
    )
    assert scene.request(request) == request
    task = scene.warm()
    assert (
        scene.store.claim_queued(
            [NewMember(request_id=request.id)], "other", owner="daemon", now=NOW
        )
        is None
    )
    handout = scene.store.claim_queued(
        [NewMember(request_id=request.id)], "f00d", owner="daemon", now=NOW + 5
    )
    assert handout is not None
    assert handout.request == scene.request(request)
    assert handout.request.state is RequestState.UPLOADING
    assert (handout.request.owner, handout.lease.owner) == ("daemon", "daemon")
    assert (handout.task.id, handout.lease.outcome) == (task.id, Outcome.WAIT)
    scene.warm()
    assert (
        scene.store.claim_queued(
            [NewMember(request_id=request.id)], "f00d", owner="daemon", now=NOW
        )
        is None
    )


def test_how_long_a_request_waits_for_a_task_alone(scene: Scene) -> None:
    """From the start, until something else holds it up: for all processes, since it is in the
    row."""

    def patient() -> list[str]:
        found = scene.store.unserved(spools=[""], owner="daemon", now=NOW, each=9)
        return [each.id for each in found if each.patient]

    first, second, other = spooled(scene), spooled(scene), spooled(scene, template="other")
    aside, served = scene.queued(), uploading(scene)
    assert queue(scene, aside.request) and queue(scene, served.request)
    assert patient() == [first.id, second.id, other.id]
    assert scene.store.take_spooled(first.id, owner="daemon", now=NOW)
    assert queue(scene, first), "its task could not be made"
    assert patient() == [second.id, other.id]
    assert scene.store.wait_for_more("streets") == 1
    assert patient() == [other.id]
    assert scene.store.wait_for_more("streets") == 0


def test_when_uploads_of_a_request_have_failed(scene: Scene) -> None:
    opened, store = uploading(scene), scene.store
    assert opened.request is not None
    request_id = opened.request.id

    def fail(seconds: float, *, counts: bool = True) -> list[float]:
        failures = store.upload_failed(request_id, counts=counts, now=NOW + seconds)
        return [at - NOW for at in failures]

    assert fail(1, counts=False) == []
    assert fail(2) == [2]
    assert fail(3, counts=False) == [2]
    assert fail(4) == [2, 4]
    store.pause_request(request_id, until=NOW + 9)
    scene.requeue(request_id, now=NOW)
    (waiting,) = store.unserved(spools=[""], owner="daemon", now=NOW, each=9)
    assert (waiting.failed_at, waiting.paused_until) == (NOW + 4, NOW + 9)
    assert fail(3) == [3], "the clock was set back"
    assert [len(fail(number)) for number in (10, 11)] == [2, 3]
    assert [len(fail(number)) for number in range(20, 60)][-1] == 20
    scene.warm()
    assert store.claim_queued([NewMember(request_id=request_id)], "f00d", owner="here", now=NOW)
    scene.begin_import(opened, now=NOW)
    assert fail(99) == [99], "CVAT has accepted it since"


def test_which_templates_live_processes_serve(scene: Scene) -> None:
    store = scene.store
    assert not store.serve_templates("a", ["streets"])
    for owner, seconds in (("a", 9), ("b", 5)):
        store.renew_owner(owner, until=NOW + seconds)
    assert store.serve_templates("a", ["streets"]) and store.serve_templates("b", ["x", "Ä"])
    store.renew_owner("a", until=NOW + 9)
    assert set(store.served_templates(now=NOW)) == {"streets", "x", "Ä"}
    assert set(store.served_templates(now=NOW + 6)) == {"streets"}


def test_for_whom_other_processes_make_tasks(scene: Scene) -> None:
    store = scene.store
    for owner in ("a", "b"):
        store.renew_owner(owner, until=NOW + 9)
    requests = [
        spooled(scene, tenant="robot", priority=Priority.BULK),
        spooled(scene),
        spooled(scene, template="other"),
    ]
    for owner, request in zip(("a", "b", "gone"), requests, strict=True):
        assert store.take_spooled(request.id, owner=owner, now=NOW)
    scene.queued(owner="a")  # its caller has the data
    made_by_a, made_by_b = (
        ("streets", None, Priority.BULK, "robot"),
        ("streets", None, Priority.NORMAL, ""),
    )
    assert store.made_by_others(owner="a", now=NOW) == [made_by_b]
    assert sorted(store.made_by_others(owner="c", now=NOW)) == sorted([made_by_a, made_by_b])
    assert store.made_by_others(owner="c", now=NOW + 10) == []


def test_a_request_is_taken_only_while_no_more_tasks_are_made_by_others(scene: Scene) -> None:
    store = scene.store
    store.renew_owner("alive", until=NOW + 9)
    first, second, other = spooled(scene), spooled(scene), spooled(scene, template="other")
    assert store.take_spooled(first.id, owner="alive", made_by_others=0, now=NOW)

    def take(request: RequestRecord, made: int) -> RequestRecord | None:
        return store.take_spooled(request.id, owner="daemon", made_by_others=made, now=NOW)

    before = everything(store)
    assert take(second, 0) is None
    assert everything(store) == before
    assert take(other, 0) is not None
    assert take(second, 1) is not None
    assert take(second, 1) is not None, "its own do not count"


def test_a_task_made_for_a_request_that_was_taken(scene: Scene) -> None:
    request = spooled(scene)
    assert scene.store.take_spooled(request.id, owner="daemon", now=NOW)
    task = scene.creating()
    scene.store.record_created(task.id, task_id=77, now=NOW)
    handout = scene.store.finish_cold(task.id, request.lease_id, prepared=True, now=NOW)
    assert handout is not None and handout.request is not None
    assert (handout.request.owner, handout.request.outcome) == ("daemon", Outcome.COLD)


def test_one_process_only_takes_a_request(scene: Scene, store_url: str) -> None:
    for owner in "abcd":
        scene.store.renew_owner(owner, until=NOW + 9)
    waiting = [spooled(scene).id for _ in range(40)]
    calls = [(store_url, owner, waiting) for owner in "abcd"]
    taken = chain.from_iterable(processes.run(processes.take_spooled, *calls))
    assert sorted(taken) == sorted(waiting)


def test_one_process_only_claims_for_a_request(scene: Scene, store_url: str) -> None:
    for owner in "abcd":
        scene.store.renew_owner(owner, until=NOW + 9)
    waiting = [spooled(scene).id for _ in range(20)]
    tasks = [scene.warm().task_id for _ in range(30)]
    calls = [(store_url, owner, waiting) for owner in "abcd"]
    claimed = list(chain.from_iterable(processes.run(processes.claim_queued, *calls)))
    assert sorted(request for request, _ in claimed) == sorted(waiting)
    assert len({task for _, task in claimed} & set(tasks)) == 20


# --- What happens to them ------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["uploading", "importing"])
def test_one_that_needs_another_task_has_no_owner(scene: Scene, state: str) -> None:
    opened = uploading(scene)
    request = opened.request
    assert request is not None
    if state == "importing":
        scene.begin_import(opened, now=NOW)
    fresh = scene.requeue(request.id, now=NOW)
    queued = scene.request(request)
    assert (queued.owner, queued.imports_used) == (UNOWNED, 1)
    assert scene.lease(fresh).owner == UNOWNED
    assert unserved(scene) == [request.id]


def test_its_key_stays_its_own(scene: Scene) -> None:
    """Its caller knows that it is accepted."""
    queued, untouched = spooled(scene, key="q"), spooled(scene, key="u")
    scene.store.fail_request(queued.id, code="pool-empty", message="", now=NOW)
    scene.warm()
    scene.store.claim_queued([NewMember(request_id=untouched.id)], "f00d", owner="daemon", now=NOW)
    scene.store.fail_request(untouched.id, untouched=True, code="data-gone", message="", now=NOW)
    for key, request in (("q", queued), ("u", untouched)):
        assert scene.queued(key=key).request == scene.request(request)


def test_the_key_of_a_returned_request_is_free(scene: Scene) -> None:
    scene.warm()
    opened = scene.store.open_lease(wish(key="k"), request=data(), now=NOW)
    assert opened.request is not None
    assert scene.store.fail_request(
        opened.request.id, untouched=True, code="x", message="", now=NOW
    )
    assert not scene.store.open_lease(wish(key="k"), request=data(), now=NOW).replayed


def test_cancelling_one(scene: Scene) -> None:
    request = spooled(scene)
    assert scene.store.cancel_request(request.id, now=NOW)
    assert scene.lease(request.lease_id).state is LeaseState.ABANDONED
    assert (unserved(scene), scene.store.queue_length()) == ([], 0)


@pytest.mark.parametrize("call", ["begin_import", "fail_request", "untouched", "requeue"])
def test_a_worker_that_lost_a_request_changes_nothing(scene: Scene, call: str) -> None:
    opened = uploading(scene)
    request, store = opened.request, scene.store
    assert request is not None
    lost = scene.import_id(request.id), opened.lease.id
    scene.requeue(request.id, now=NOW)
    scene.warm()
    assert store.claim_queued([NewMember(request_id=request.id)], "f00d", owner="heir", now=NOW)
    before = everything(store)
    calls: dict[str, Callable[[str, str | None], Any]] = {
        "begin_import": lambda import_id, _: store.begin_import(import_id, deadline=NOW, now=NOW),
        "fail_request": lambda _, lease_id: store.fail_request(
            request.id, expected_lease_id=lease_id, code="x", message="", now=NOW
        ),
        "untouched": lambda _, lease_id: store.fail_request(
            request.id, expected_lease_id=lease_id, untouched=True, code="x", message="", now=NOW
        ),
        "requeue": lambda import_id, _: store.requeue_import(import_id, reason="", now=NOW),
    }
    assert not calls[call](*lost)
    assert everything(store) == before
    assert calls[call](scene.import_id(request.id), scene.request(request).lease_id)


# --- Counting ------------------------------------------------------------------------------------


def test_counting_what_is_queued(scene: Scene) -> None:
    assert (scene.store.queued(), scene.store.queue_length()) == ({}, 0)
    scene.queued()
    spooled(scene)
    spooled(scene, template="other")
    scene.waiting()
    served = uploading(scene)
    assert scene.store.queued() == {"streets": 2, "other": 1}
    assert scene.store.queue_length() == 2
    assert served.lease.pooled_id is not None
    assert scene.store.complete_import(served.lease.pooled_id, JOBS, verified=True, now=NOW)
    assert scene.store.queue_length() == 2


def test_a_key_is_bound_to_what_was_asked_while_it_waits(scene: Scene) -> None:
    spooled(scene, key="k")
    with pytest.raises(IdempotencyConflict):
        scene.store.open_lease(wish(key="k", payload="q"), request=data(), now=NOW)


# --- Spools --------------------------------------------------------------------------------------


def on_spool(scene: Scene, spool: str, **more: Any) -> RequestRecord:
    """A request whose data waits in a spool."""
    request = replace(data(), spooled=True, spool=spool, **more)
    opened = scene.store.open_lease(wish(), request=request, claim=False, now=NOW)
    assert opened.request is not None
    return opened.request


def test_only_what_is_in_ones_own_spools_is_there_to_be_taken(scene: Scene) -> None:
    here, there, both = on_spool(scene, "here"), on_spool(scene, "there"), on_spool(scene, "both")
    assert here.spool == "here"

    def found(*spools: str) -> list[str]:
        waiting = scene.store.unserved(spools=spools, owner="daemon", now=NOW, each=9)
        return [each.id for each in waiting]

    assert found("here", "both") == [here.id, both.id]
    assert found("both", "there", "there") == [there.id, both.id]
    assert found() == found("elsewhere") == []


def test_an_upload_that_was_left_is_ended_by_any_and_waits_for_its_spool(scene: Scene) -> None:
    """What keeps a place among the imports does not do that for as long as a machine is away."""
    scene.warm()
    request = replace(data(), spooled=True, spool="there")
    scene.store.open_lease(wish(owner="gone"), request=request, now=NOW)
    (left,) = scene.store.unserved(spools=["here"], owner="daemon", now=NOW + 99, each=9)
    assert (left.id, left.state) == (request.id, RequestState.UPLOADING)
    taken = scene.store.take_spooled(left.id, owner="daemon", now=NOW + 99)
    assert taken is not None
    assert scene.store.requeue_import(taken.import_id or "", reason="", now=NOW + 99)
    assert scene.store.unserved(spools=["here"], owner="daemon", now=NOW + 99, each=9) == []
    (waits,) = scene.store.unserved(spools=["there"], owner="other", now=NOW + 99, each=9)
    assert (waits.id, waits.state) == (request.id, RequestState.QUEUED)


def test_a_request_stays_on_its_spool_when_it_is_queued_again(scene: Scene) -> None:
    request = on_spool(scene, "here")
    for spool in ("there", ""):
        again = scene.store.queue_request(
            request.id, expected_lease_id=request.lease_id, most=None, spool=spool, now=NOW
        )
        assert again is not None and again.spool == "here"


def test_one_that_is_spooled_late_is_on_the_spool_that_is_named(scene: Scene) -> None:
    waiting, sending = scene.queued(), scene.uploading()
    for request in (waiting.request, sending.request):
        assert request is not None
        queued = scene.store.queue_request(
            request.id, expected_lease_id=request.lease_id, most=None, spool="here", now=NOW
        )
        assert queued is not None
        assert (queued.spooled, queued.spool) == (True, "here")


def test_a_spool_is_heard_of_while_a_process_renews_its_claim(scene: Scene) -> None:
    store = scene.store
    store.keep_spool(SpoolRecord(id="s", place="/spool", host="a"), now=NOW)
    store.renew_owner("daemon", until=NOW + 13, spools={"s": "", "unknown": ""}, now=NOW + 3)
    (spool,) = store.spools().values()
    assert (spool.id, spool.place, spool.host, spool.shared) == ("s", "/spool", "a", False)
    assert (spool.since, spool.seen_at, spool.trouble) == (NOW, NOW + 3, "")
    assert not spool.is_away(NOW + 3 + SPOOL_AWAY)
    assert spool.is_away(NOW + 4 + SPOOL_AWAY)
    # It is back, from another place.
    store.keep_spool(SpoolRecord(id="s", place="/mnt", host="b", shared=True), now=NOW + 99)
    spool = store.spools()["s"]
    assert (spool.place, spool.host, spool.shared) == ("/mnt", "b", True)
    assert (spool.since, spool.seen_at) == (NOW + 99, NOW + 99)


def test_why_a_spool_cannot_be_used_is_known_for_a_while(scene: Scene) -> None:
    store = scene.store
    store.keep_spool(SpoolRecord(id="s", place="s3://b", host="", shared=True), now=NOW)
    for owner, trouble in (("one", "timed out"), ("another", "")):
        store.renew_owner(owner, until=NOW + 10, spools={"s": trouble}, now=NOW)
    assert store.spools()["s"].trouble_now(NOW + 1) == "timed out"
    assert store.spools()["s"].trouble_now(NOW + 1 + SPOOL_AWAY) == ""


def test_a_spool_is_forgotten_when_none_reads_it_and_nothing_waits_there(scene: Scene) -> None:
    store = scene.store
    for spool in ("empty", "full", "read"):
        store.keep_spool(SpoolRecord(id=spool, place="/spool", host="a"), now=NOW)
    waiting = on_spool(scene, "full")
    store.renew_owner("daemon", until=NOW + 99, spools={"read": ""}, now=NOW + 50)
    store.prune(before=NOW + 50, limit=9)
    assert set(store.spools()) == {"full", "read"}
    assert store.cancel_request(waiting.id, now=NOW + 50)
    store.prune(before=NOW + 50, limit=9)
    assert set(store.spools()) == {"read"}


def test_those_that_wait_are_counted_by_spool(scene: Scene) -> None:
    for spool in ("here", "here", "there"):
        on_spool(scene, spool)
    assert scene.store.waiting_by_spool() == {"here": {"streets": 2}, "there": {"streets": 1}}


def test_those_on_a_spool_that_was_away_have_not_waited_for_a_task(scene: Scene) -> None:
    store = scene.store
    store.keep_spool(SpoolRecord(id="s", place="/spool", host="a"), now=NOW)
    for spool in ("s", "other"):
        on_spool(scene, spool)

    def patient() -> list[bool]:
        found = store.unserved(spools=["s", "other"], owner="daemon", now=NOW, each=9)
        return [each.patient for each in found]

    store.renew_owner("daemon", until=NOW + 13, spools={"s": ""}, now=NOW + SPOOL_AWAY)
    assert patient() == [True, True]
    store.keep_spool(SpoolRecord(id="s", place="/spool", host="a"), now=NOW + 99)
    assert patient() == [False, True]
