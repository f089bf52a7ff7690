"""Slots: made with their carrier, handed out like tasks, filled once, shown, and ended."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from conformance.store_scene import FINGERPRINT, NOW, SETTINGS, TEMPLATE, data, make_carrier, wish
from pool.model import (
    FinalKind,
    Job,
    LeaseState,
    Levels,
    Outcome,
    Placed,
    RequestState,
    Slot,
    SlotLevels,
    TaskState,
    new_id,
)
from pool.store import LOOKS, CreateLimit, Store
from pool.store.checking import check_store


def fill_next(store: Store) -> tuple[str, Slot]:
    """Hand a slot out to a request, fill it, and return both."""
    opened = store.open_lease(wish(), request=replace(data(), assignee=None), now=NOW)
    assert opened.task is not None and opened.request is not None
    assert store.fill_slot(opened.task.id, ["pool/0000.jpg"], now=NOW)
    slot = store.slot(opened.task.id)
    assert slot is not None
    return opened.request.id, slot


def test_a_carrier_counts_as_its_slots_while_it_is_created_and_after(store: Store) -> None:
    limit = CreateLimit(capacity=10, concurrency=9)
    wanted = {"slots": 8, "limit": limit, "owner": "me", "now": NOW}
    assert store.begin_create("c1", TEMPLATE, FINGERPRINT, **wanted)  # type: ignore[arg-type]
    assert store.capacity_of(TEMPLATE, FINGERPRINT) == 8
    assert store.begin_create("c2", TEMPLATE, FINGERPRINT, **wanted)  # type: ignore[arg-type]
    assert not store.begin_create("c3", TEMPLATE, FINGERPRINT, **wanted)  # type: ignore[arg-type]
    make = make_carrier(store, 3)
    assert store.warm_of(TEMPLATE, FINGERPRINT) == 3
    assert store.capacity_of(TEMPLATE, FINGERPRINT) == 19
    carrier = store.carrier(make)
    assert carrier is not None and carrier.settings == SETTINGS and carrier.task_id == 70


def test_a_carrier_takes_its_share_of_time_for_each_slot(store: Store) -> None:
    """What tuning goes by; its slots were not created one by one."""
    carrier_id = new_id(NOW)
    limit = CreateLimit(capacity=1000, concurrency=9)
    store.begin_create(carrier_id, TEMPLATE, FINGERPRINT, slots=4, limit=limit, owner="me", now=NOW)
    store.record_created(carrier_id, task_id=70, now=NOW)
    store.begin_carrier(carrier_id, SETTINGS, now=NOW)
    jobs = [Job(id=500 + n, url="u", start_frame=n, stop_frame=n) for n in range(4)]
    assert store.finish_carrier(carrier_id, jobs, took=2.0, now=NOW + 2.0)
    assert list(store.create_times(TEMPLATE, since=0.0)) == [0.5]
    assert store.lead_times() == {TEMPLATE: 2.0}


def test_levels_are_those_of_carriers_with_slots_to_give(store: Store) -> None:
    assert store.slot_levels() == {}
    full, half = make_carrier(store, 1), make_carrier(store, 3, task_id=71, first_job=600)
    fill_next(store)
    _, slot = fill_next(store)
    assert slot.carrier_id == half != full
    retired = store.slots_of(half)[1]
    assert store.retire(retired.id, reason="test", now=NOW)
    assert store.slot_levels() == {TEMPLATE: SlotLevels(carriers=1, filled=1, retired=1)}
    assert store.end_slot(retired.id, now=NOW)
    assert store.slot_levels() == {TEMPLATE: SlotLevels(carriers=1, filled=1, retired=1)}
    limit = CreateLimit(capacity=1000, concurrency=9)
    store.begin_create("c1", TEMPLATE, FINGERPRINT, slots=8, limit=limit, owner="me", now=NOW)
    assert store.levels()[TEMPLATE][TaskState.CREATING] == 8


def test_a_slot_is_filled_once_and_its_request_is_ready_at_once(store: Store) -> None:
    make_carrier(store, 2)
    request_id, slot = fill_next(store)
    request = store.request(request_id)
    assert request is not None
    assert (request.state, request.placed) == (RequestState.READY, Placed.SLOT)
    assert (request.task_id, request.outcome) == (70, Outcome.HIT)
    assert (
        [job.id for job in store.jobs_of(slot.id, request_id=request_id)] == [slot.job_id] == [500]
    )
    assert (slot.state, slot.request_id, slot.filled) == (TaskState.READY, request_id, 1)
    assert not store.fill_slot(slot.id, ["pool/0000.jpg"], now=NOW)
    lease = store.lease(request.lease_id)
    assert lease is not None and lease.state is LeaseState.USED
    assert store.hand_outs()[TEMPLATE] == {Outcome.HIT: 1}


def test_of_many_callers_each_gets_another_slot_oldest_carrier_first(store: Store) -> None:
    first = make_carrier(store, 10)
    make_carrier(store, 10, task_id=71, first_job=600)
    with ThreadPoolExecutor(8) as threads:
        filled = [slot for _, slot in threads.map(lambda _: fill_next(store), range(10))]
    assert {slot.carrier_id for slot in filled} == {first}
    assert len({slot.id for slot in filled}) == 10


def test_a_lease_that_waits_gets_a_slot_as_soon_as_there_is_a_carrier(store: Store) -> None:
    store.renew_owner("here", until=NOW + 60)
    waiting = store.open_lease(wish(), now=NOW)
    assert waiting.task is None
    carrier_id = make_carrier(store, 2)
    lease = store.lease(waiting.lease.id)
    assert lease is not None and lease.outcome is Outcome.WAIT
    slot = store.task(lease.pooled_id or "")
    assert slot is not None and slot.carrier_id == carrier_id
    assert store.give_back(lease.id, now=NOW)
    assert store.warm_of(TEMPLATE, FINGERPRINT) == 2


def test_a_leased_slot_is_not_tracked_as_a_task_that_its_caller_fills(store: Store) -> None:
    make_carrier(store, 2)
    lease = store.open_lease(wish(ttl=60.0), now=NOW)
    assert lease.task is not None
    assert store.watched_leases() == []
    assert [each.task.id for each in store.expired_leases(now=NOW + 61)] == [lease.task.id]


def test_an_upload_that_fails_leaves_its_slot_retired_and_its_request_queued(store: Store) -> None:
    make_carrier(store, 2)
    opened = store.open_lease(wish(), request=data(), now=NOW)
    assert opened.request is not None and opened.task is not None
    assert store.requeue_import(opened.request.import_id or "", reason="disk full", now=NOW)
    again = store.request(opened.request.id)
    assert again is not None and again.state is RequestState.QUEUED
    assert [task.id for task in store.retired_slots(limit=9)] == [opened.task.id]
    assert not store.fill_slot(opened.task.id, ["pool/0000.jpg"], now=NOW)
    assert store.end_slot(opened.task.id, now=NOW)
    assert not store.retired_slots(limit=9)


def test_one_process_at_a_time_writes_a_carrier(store: Store) -> None:
    carrier_id = make_carrier(store, 3)
    assert store.carriers_due(limit=9, now=NOW) == []
    request_id, slot = fill_next(store)
    assert store.carriers_due(limit=9, now=NOW) == [carrier_id]
    assert store.write_carrier(carrier_id, owner="me", until=NOW + 30, now=NOW)
    assert not store.write_carrier(carrier_id, owner="other", until=NOW + 40, now=NOW + 10)
    assert store.carriers_due(limit=9, now=NOW) == []
    assert store.write_carrier(carrier_id, owner="other", until=NOW + 70, now=NOW + 31)
    assert not store.wrote_carrier(carrier_id, owner="me", shown=[slot.id], now=NOW + 32)
    assert store.wrote_carrier(carrier_id, owner="other", shown=[slot.id], now=NOW + 33)
    request = store.request(request_id)
    assert request is not None and request.shown_at == NOW + 33
    assert [
        event.request_id
        for event in store.events_after(0, limit=99)
        if event.kind == "request.shown"
    ]


def test_a_shown_slot_is_looked_at_again_after_each_of_the_looks(store: Store) -> None:
    carrier_id = make_carrier(store, 1)
    _, slot = fill_next(store)
    write = {"owner": "me", "until": NOW + 1e6}
    store.write_carrier(carrier_id, now=NOW, **write)  # type: ignore[arg-type]
    store.wrote_carrier(carrier_id, owner="me", shown=[slot.id], now=NOW)
    for seconds in LOOKS:
        assert store.next_look() == NOW + seconds
        store.write_carrier(carrier_id, now=NOW, **write)  # type: ignore[arg-type]
        store.wrote_carrier(carrier_id, owner="me", looked=[slot.id], now=NOW + seconds)
    assert store.next_look() is None


def test_a_slot_is_shown_again_once_and_looked_at_as_before(store: Store) -> None:
    carrier_id = make_carrier(store, 2)
    request_id, slot = fill_next(store)

    def write(now: float, **done: list[str]) -> None:
        assert store.write_carrier(carrier_id, owner="me", until=now + 9, now=now)
        assert store.wrote_carrier(carrier_id, owner="me", now=now, **done)  # type: ignore[arg-type]

    assert not store.show_again(slot.id, now=NOW)
    write(NOW, shown=[slot.id])
    write(NOW + LOOKS[0], looked=[slot.id])
    again = NOW + LOOKS[1]
    assert store.show_again(slot.id, now=again)
    assert store.next_look() == again
    write(again, shown=[slot.id])
    assert not store.show_again(slot.id, now=again)
    for seconds in LOOKS:
        assert store.next_look() == again + seconds
        write(again + seconds, looked=[slot.id])
        assert not store.show_again(slot.id, now=again + seconds)
    assert store.next_look() is None
    request = store.request(request_id)
    assert request is not None and request.shown_at == NOW
    shown = [each for each in store.events_after(0, limit=99) if each.kind == "request.shown"]
    assert len(shown) == 1


@pytest.mark.parametrize("slots", [1, 2])
def test_what_is_left_once_a_slot_is_shown(store: Store, slots: int) -> None:
    """A task with one slot is its request's own, and is called after it; others are not."""
    carrier_id = make_carrier(store, slots)
    opened = store.open_lease(wish(), request=replace(data(), assignee=7), now=NOW)
    assert opened.task is not None
    assert store.fill_slot(opened.task.id, ["a.jpg"], now=NOW)
    assert store.steps_of(opened.task.id) == []
    store.write_carrier(carrier_id, owner="me", until=NOW + 9, now=NOW)
    store.wrote_carrier(carrier_id, owner="me", shown=[opened.task.id], now=NOW)
    steps = store.steps_of(opened.task.id)
    assert {step.kind for step in steps} == (
        {FinalKind.ASSIGN, FinalKind.NAME} if slots == 1 else {FinalKind.ASSIGN}
    )
    for step in steps:
        store.end_step(step, name="night" if step.kind is FinalKind.NAME else None, now=NOW)
    named = [store.task(each) for each in (opened.task.id, carrier_id)]
    assert [each is not None and each.name == "night" for each in named] == [slots == 1] * 2


def test_a_carrier_goes_only_when_none_of_its_slots_is_in_use(store: Store) -> None:
    unused, used = make_carrier(store, 2), make_carrier(store, 2, task_id=71, first_job=600)
    store.retire_excess(TEMPLATE, keep=2, reason="too many", now=NOW)
    assert not store.retire_carrier(used, reason="too many", now=NOW)
    assert store.retire_carrier(unused, reason="too many", now=NOW)
    doomed = store.begin_delete(owner="me", limit=9, retry_after=60, now=NOW)
    assert [task.id for task in doomed] == [unused]
    _, slot = fill_next(store)
    assert slot.carrier_id == used
    store.drain(TEMPLATE, reason="drained", now=NOW)
    assert not store.retire_carrier(used, reason="drained", now=NOW)


def test_a_carrier_whose_task_is_gone_hands_out_nothing_more(store: Store) -> None:
    carrier_id = make_carrier(store, 3)
    _, slot = fill_next(store)
    lease = store.open_lease(wish(), now=NOW).lease
    carrier = store.saw_carrier(carrier_id, gone=True, now=NOW + 5)
    assert carrier is not None and carrier.gone_since == NOW + 5
    assert store.warm_of(TEMPLATE, FINGERPRINT) == 0
    ended = store.lease(lease.id)
    assert ended is not None and ended.state is LeaseState.EXPIRED
    carrier = store.saw_carrier(carrier_id, gone=True, now=NOW + 9)
    assert carrier is not None and carrier.gone_since == NOW + 5
    assert store.forget_carrier(carrier_id, now=NOW)
    assert store.carrier(carrier_id) is None and store.slot(slot.id) is None


def test_pruning_keeps_carriers_and_slots_for_as_long_as_their_files(store: Store) -> None:
    carrier_id = make_carrier(store, 1)
    request_id, slot = fill_next(store)
    store.write_carrier(carrier_id, owner="me", until=NOW + 9, now=NOW)
    store.wrote_carrier(carrier_id, owner="me", shown=[slot.id], now=NOW)
    for step in store.steps_of(slot.id):
        store.end_step(step, now=NOW)
    for _ in range(3):
        store.prune(before=NOW + 1e6, limit=100)
    assert store.request(request_id) is None
    assert store.slot(slot.id) is not None and store.task(carrier_id) is not None
    store.forget_carrier(carrier_id, now=NOW)
    for _ in range(3):
        store.prune(before=NOW + 1e6, limit=100)
    assert store.task(slot.id) is None and store.task(carrier_id) is None


@pytest.mark.parametrize("count", [1, 5])
def test_a_stream_takes_whole_carriers_in_order(store: Store, count: int) -> None:
    first = make_carrier(store, count)
    make_carrier(store, count, task_id=71, first_job=600)
    jobs = []
    for _ in range(count + 1):
        stream = store.use_stream(TEMPLATE, "camera 7", FINGERPRINT, now=NOW)
        assert stream is not None
        opened = store.open_lease(wish(fingerprint=stream.fingerprint), request=data(), now=NOW)
        assert opened.task is not None
        store.fill_slot(opened.task.id, ["pool/0000.jpg"], now=NOW)
        slot = store.slot(opened.task.id)
        assert slot is not None
        jobs.append(slot.job_id)
    assert jobs == [*range(500, 500 + count), 600]
    assert stream is not None and stream.title == "camera 7 (2)"
    assert store.levels().get(TEMPLATE, Levels())[TaskState.WARM] == 0
    carrier = store.carrier(first)
    assert carrier is not None and carrier.title == "camera 7"
    (step,) = store.steps_of(first)
    assert (step.kind, step.title, step.request) == (FinalKind.NAME, "camera 7", None)
    assert store.warm_of(TEMPLATE, FINGERPRINT) == 0
    assert store.open_lease(wish(), now=NOW).task is None
    store.retire_excess(TEMPLATE, keep=0, reason="too many", now=NOW)
    assert not store.retired_slots(limit=9)
    assert store.close_stream(stream.id, reason="closed", now=NOW)
    assert len(store.retired_slots(limit=9)) == count - 1
    assert store.streams() == [] and store.stream(TEMPLATE, "camera 7") is None
    assert not store.close_stream(stream.id, reason="closed", now=NOW)


def test_a_stream_in_use_costs_no_commit(store: Store) -> None:
    make_carrier(store, 2)
    stream = store.use_stream(TEMPLATE, "camera 7", FINGERPRINT, now=NOW)
    commits: list[float] = []
    stop = store.on_commit(lambda: commits.append(NOW))
    assert store.use_stream(TEMPLATE, "camera 7", FINGERPRINT, now=NOW + 0.9) == stream
    assert store.use_stream(TEMPLATE, "camera 8", FINGERPRINT, now=NOW) is None
    assert not commits
    used = store.use_stream(TEMPLATE, "camera 7", FINGERPRINT, now=NOW + 1.0)
    stop()
    assert used is not None and len(commits) == 1
    assert [each.stream.last_at for each in store.streams()] == [NOW + 1.0]


def test_no_request_of_a_stream_overtakes_an_older_one_that_waits(store: Store) -> None:
    def ask(stream: str, now: float) -> str:
        request = replace(data(), stream=stream)
        store.open_lease(wish(fingerprint="none"), request=request, now=now)
        return request.id

    first, second, other = ask("camera 7", NOW), ask("camera 7", NOW + 1), ask("camera 8", NOW)
    for task_id in (70, 71):
        make_carrier(store, 2, task_id=task_id, first_job=10 * task_id)

    def use(stream: str, request_id: str) -> bool:
        used = store.use_stream(TEMPLATE, stream, FINGERPRINT, request_id=request_id, now=NOW)
        return used is not None

    assert not use("camera 7", second)
    assert not use("camera 7", "one that is not recorded yet")
    assert use("camera 7", first)
    assert use("camera 8", other)
    assert store.cancel_request(first, now=NOW)
    assert use("camera 7", second)
    assert store.leave_slots(second, why="none", fingerprint="g", group_key=None)
    assert use("camera 7", "one that is not recorded yet")


def test_how_many_carriers_the_streams_miss_that_wait(store: Store) -> None:
    def missing() -> int:
        return store.carriers_missing(TEMPLATE, FINGERPRINT, now=NOW)

    for name in ("a", "a", "b"):
        request = replace(data(), stream=name)
        store.open_lease(wish(fingerprint="none"), request=request, now=NOW)
    assert missing() == 2
    make_carrier(store, 2)
    assert missing() == 1
    limit = CreateLimit(capacity=99, concurrency=9)
    store.begin_create("c", TEMPLATE, FINGERPRINT, slots=2, limit=limit, owner="me", now=NOW)
    assert missing() == 0
    assert store.begin_create("d", TEMPLATE, "older", slots=2, limit=limit, owner="me", now=NOW)
    make_carrier(store, 2, task_id=71, first_job=600)
    fill_next(store)
    assert missing() == 0
    store.fail_create("c", reason="", now=NOW)
    assert missing() == 1
    (waiting,) = {each.id for each in store.requests(limit=9).requests if each.stream == "b"}
    assert store.use_stream(TEMPLATE, "b", FINGERPRINT, request_id=waiting, now=NOW)
    assert missing() == 1, "the other one has none, and this one has what it needs"


def test_the_open_streams_are_listed_with_their_tasks(store: Store) -> None:
    make_carrier(store, 2)
    make_carrier(store, 2, task_id=71, first_job=600)
    for name in ("b", "a"):
        stream = store.use_stream(TEMPLATE, name, FINGERPRINT, now=NOW)
        assert stream is not None
        opened = store.open_lease(wish(fingerprint=stream.fingerprint), request=data(), now=NOW)
        assert opened.task is not None
        if name == "b":
            store.fill_slot(opened.task.id, ["pool/0000.jpg"], now=NOW)
    found = store.streams(template=TEMPLATE)
    assert [(each.stream.name, each.task_id) for each in found] == [("a", 71), ("b", 70)]
    assert [(each.filled, each.slots) for each in found] == [(0, 2), (1, 2)]
    assert store.streams() == found and store.streams(template="other") == []
    assert store.stream(TEMPLATE, "a") == found[0].stream
    assert store.stream("other", "a") is store.stream(TEMPLATE, "c") is None


def test_a_stream_leaves_a_carrier_of_its_template_as_it_was(store: Store) -> None:
    make_carrier(store, 3)
    stream = store.use_stream(TEMPLATE, "camera 7", FINGERPRINT, now=NOW)
    assert stream is not None
    assert store.use_stream(TEMPLATE, "camera 7", "new", now=NOW) is None
    assert len(store.retired_slots(limit=9)) == 3
    store.begin_create(
        "c",
        TEMPLATE,
        "new",
        slots=1,
        limit=CreateLimit(capacity=99, concurrency=9),
        owner="me",
        now=NOW,
    )
    store.record_created("c", task_id=71, now=NOW)
    store.begin_carrier("c", SETTINGS, now=NOW)
    store.finish_carrier("c", [Job(id=9, url="u", start_frame=0, stop_frame=0)], now=NOW)
    again = store.use_stream(TEMPLATE, "camera 7", "new", now=NOW)
    assert again is not None and (again.id, again.title) == (stream.id, "camera 7 (2)")


def test_a_slot_that_is_given_back_after_its_stream_has_closed_is_retired(store: Store) -> None:
    make_carrier(store, 2)
    closed = store.use_stream(TEMPLATE, "camera 7", FINGERPRINT, now=NOW)
    make_carrier(store, 2, task_id=71, first_job=600)
    store.use_stream(TEMPLATE, "camera 8", FINGERPRINT, now=NOW)
    assert closed is not None
    lease = store.open_lease(wish(fingerprint=closed.fingerprint), now=NOW).lease
    store.close_stream(closed.id, reason="closed", now=NOW)
    assert len(store.retired_slots(limit=9)) == 1
    store.give_back(lease.id, now=NOW)
    assert store.retire_of_closed_streams(reason="closed", now=NOW) == 1
    assert store.retire_of_closed_streams(reason="closed", now=NOW) == 0
    assert len(store.retired_slots(limit=9)) == 2


def test_a_stream_takes_no_carrier_of_which_a_slot_was_handed_out(store: Store) -> None:
    make_carrier(store, 3)
    fill_next(store)
    assert store.use_stream(TEMPLATE, "camera 7", FINGERPRINT, now=NOW) is None
    assert store.streams() == []


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("", ""),
        ("UPDATE slots SET job_id = 500", "several slots stand for the job of CVAT: 500"),
        (
            "UPDATE slots SET request_id = (SELECT MAX(request_id) FROM slots)",
            "several slots have the data of the request",
        ),
        (
            "UPDATE requests SET state = 'importing'",
            "the slot is filled, and its request is not ready",
        ),
    ],
)
def test_slots_that_contradict_each_other(store: Store, damage: str, problem: str) -> None:
    make_carrier(store, 2)
    fill_next(store)
    if damage:
        with store.connections.writing() as db:
            db.changed(damage)
    problems = check_store(store.connections).problems
    if damage:
        assert any(problem in each for each in problems), problems
    else:
        assert problems == ()
