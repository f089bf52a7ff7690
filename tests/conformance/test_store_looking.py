from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from conformance import store_processes as processes
from conformance.store_scene import FINGERPRINT, JOBS, NOW, TEMPLATE, Scene, data, wish
from pool.errors import InputError, PoolClosed
from pool.model import LeaseState, Outcome, Priority, RequestRecord, RequestState, TaskState, new_id
from pool.store import DEMAND_BUCKET, Asked, Store


def test_an_empty_store(store: Store) -> None:
    assert len(store.pool_id) == 8
    assert store.levels() == {}
    assert (store.warm_of("a", "b"), store.capacity_of("a", "b")) == (0, 0)
    assert (store.in_flight(), store.waiting("a")) == (0, 0)
    assert (store.task("x"), store.lease("x"), store.request("x")) == (None, None, None)
    assert (store.tasks(), store.leases(), store.jobs_of("x")) == ([], [], [])
    assert (store.requests().requests, store.requests().next_cursor) == ((), None)
    assert (store.demand("a", since=0), store.hand_outs()) == ([], {})


def test_levels_are_of_live_tasks(scene: Scene) -> None:
    scene.creating()
    scene.warm()
    scene.warm(template="other")
    scene.importing(now=NOW - 9)
    ready = scene.importing(now=NOW - 9)
    scene.store.complete_import(ready.lease.pooled_id or "", JOBS, now=NOW)
    scene.store.finish_delete(scene.retired().id, now=NOW)
    levels = scene.store.levels()
    assert set(levels) == {TEMPLATE, "other"}
    assert levels[TEMPLATE].counts == {
        TaskState.CREATING: 1,
        TaskState.WARM: 1,
        TaskState.IMPORTING: 1,
        TaskState.RETIRED: 1,
    }
    assert levels[TEMPLATE].capacity == 2
    assert scene.store.warm_of(TEMPLATE, FINGERPRINT) == 1
    assert scene.store.warm_of(TEMPLATE, "old") == 0


def test_tasks_by_state_and_template(scene: Scene) -> None:
    warm, other = scene.warm(), scene.warm(template="other")
    ready = scene.importing()
    scene.store.complete_import(ready.lease.pooled_id or "", JOBS, now=NOW)
    retired = scene.retired()

    def ids(**wanted: object) -> list[str]:
        return [task.id for task in scene.store.tasks(**wanted)]  # type: ignore[arg-type]

    # The oldest warm task went to the import.
    assert scene.task(warm.id).state is TaskState.READY
    left = ids(template=TEMPLATE, states=[TaskState.WARM])
    assert ids() == [other.id, *left, retired.id]
    assert ids(template="other") == [other.id]
    assert ids(states=[TaskState.RETIRED, TaskState.WARM]) == [other.id, *left, retired.id]
    assert ids(states=[TaskState.READY, TaskState.RETIRED]) == [warm.id, retired.id]
    assert ids(template="other", warm_before=NOW) == []
    assert ids(template="other", warm_before=NOW + 1) == [other.id]


def test_requests_that_wait_by_template_and_priority(scene: Scene) -> None:
    for template, priority in (
        (TEMPLATE, Priority.BULK),
        (TEMPLATE, Priority.BULK),
        (TEMPLATE, Priority.INTERACTIVE),
        ("other", Priority.NORMAL),
    ):
        request = replace(data(), priority=priority)
        scene.store.open_lease(wish(template=template), request=request, now=NOW)
    assert scene.store.queued_by_priority() == {
        TEMPLATE: {Priority.BULK: 2, Priority.INTERACTIVE: 1},
        "other": {Priority.NORMAL: 1},
    }


def test_who_has_waited_the_longest(scene: Scene) -> None:
    assert scene.store.oldest_waiting() == {}
    first = scene.queued(now=NOW - 5).request
    scene.queued(now=NOW - 3)
    scene.waiting(now=NOW - 4)
    other = scene.store.open_lease(wish(template="other"), now=NOW - 2)
    assert scene.store.oldest_waiting() == {TEMPLATE: NOW - 5, "other": NOW - 2}
    assert first is not None
    scene.store.cancel_request(first.id, now=NOW)
    assert scene.store.oldest_waiting() == {TEMPLATE: NOW - 4, "other": NOW - 2}
    scene.store.abandon_lease(other.lease.id, now=NOW)
    assert scene.store.oldest_waiting() == {TEMPLATE: NOW - 4}


def test_sizes_of_the_latest_imports(scene: Scene) -> None:
    assert scene.store.group_sizes(since=0, limit=9) == {}
    for number in range(3):
        opened = scene.importing()
        pooled_id = opened.lease.pooled_id or ""
        if number == 1:
            scene.store.fail_import(pooled_id, code="c", message="m", now=NOW + number)
        else:
            scene.store.complete_import(pooled_id, JOBS, now=NOW + number)
    assert scene.store.group_sizes(since=NOW, limit=9) == {TEMPLATE: [1, 1]}
    assert scene.store.group_sizes(since=NOW + 1, limit=9) == {TEMPLATE: [1]}
    assert scene.store.group_sizes(since=NOW, limit=2) == {TEMPLATE: [1]}


def test_the_newest_leases_first(scene: Scene) -> None:
    leases = [scene.leased().lease.id for _ in range(3)]
    waiting = scene.waiting().lease.id
    scene.store.give_back(leases[1], now=NOW)

    def ids(*states: LeaseState, limit: int = 100) -> list[str]:
        return [lease.id for lease in scene.store.leases(states, limit=limit)]

    assert ids() == [waiting, *reversed(leases)]
    assert ids(limit=2) == [waiting, leases[2]]
    assert ids(LeaseState.RELEASED, LeaseState.WAITING) == [waiting, leases[1]]
    assert ids(LeaseState.ACTIVE, limit=1) == [leases[2]]


def test_a_page_of_requests_at_a_time(scene: Scene) -> None:
    asked = [scene.queued(now=NOW - at).request for at in range(7)]
    ids = [request.id for request in reversed(asked) if request]
    first = scene.store.requests(limit=3)
    assert [request.id for request in first.requests] == ids[:3]
    # What comes in between two pages is on neither.
    scene.queued()
    second = scene.store.requests(limit=3, cursor=first.next_cursor)
    assert [request.id for request in second.requests] == ids[3:6]
    last = scene.store.requests(limit=3, cursor=second.next_cursor)
    assert [request.id for request in last.requests] == ids[6:]
    assert last.next_cursor is None
    exact = scene.store.requests(limit=8)
    assert (len(exact.requests), exact.next_cursor) == (8, None)


def test_requests_by_state_and_template(scene: Scene) -> None:
    mine = [scene.queued().request for _ in range(3)]
    scene.store.open_lease(wish(template="other"), request=data(), now=NOW)
    assert mine[1] is not None
    scene.store.cancel_request(mine[1].id, now=NOW)

    def ids(**wanted: object) -> list[str]:
        page = scene.store.requests(limit=1, **wanted)  # type: ignore[arg-type]
        found = list(page.requests)
        while page.next_cursor:
            page = scene.store.requests(limit=1, cursor=page.next_cursor, **wanted)  # type: ignore[arg-type]
            found += page.requests
        return [request.id for request in found]

    assert len(ids()) == 4
    assert len(ids(states=[RequestState.QUEUED])) == 3
    assert ids(template=TEMPLATE) == [request.id for request in reversed(mine) if request]
    assert ids(template=TEMPLATE, states=[RequestState.CANCELLED]) == [mine[1].id]
    assert ids(states=[RequestState.READY]) == []
    assert ids(states=[RequestState.CANCELLED, RequestState.QUEUED]) == ids()


def test_requests_by_text(scene: Scene) -> None:
    def asked(files: Sequence[str] = ("a.jpg",), **fields: Any) -> str:
        request = replace(data(*files), **fields)
        scene.store.open_lease(wish(), request=request, now=NOW)
        return request.id

    def ids(text: str, **wanted: Any) -> list[str]:
        return [each.id for each in scene.store.requests(text=text, **wanted).requests]

    tour = asked(name="Morning Tour 7", stream="Kamera Süd")
    files = asked(["cam1_0001.jpg", "50%.png"], given=("CAM1/0001.jpg", "50%.png"), name=None)
    road = asked(["x.jpg"], name="ÜBER-Land 100 % [a_b]")
    assert ids("tour 7") == ids("MORNING") == [tour]
    assert ids("kamera sÜD") == [tour]
    assert ids("cam1/0001") == ids("CAM1_0001") == [files]
    assert ids("über-land") == ids("a_b") == ids("100 %") == [road]
    assert ids("%") == [road, files]
    assert ids("_b]") == [road]
    assert ids("a%b") == ids("!") == ids("tour\n") == []
    assert ids(tour[-9:].upper()) == [tour]
    assert ids("monday") == []
    assert ids("o", states=[RequestState.READY]) == ids("o", template="other") == []


def test_a_search_goes_on_where_a_page_of_it_ended(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pool.store.requests.SEARCHED", 3)
    sought = {0, 5, 6}
    asked = [replace(data(), name="sought" if number in sought else "other") for number in range(8)]
    for request in asked:
        scene.store.open_lease(wish(), request=request, now=NOW)
    scene.store.cancel_request(asked[6].id, now=NOW)
    states = [RequestState.QUEUED, RequestState.CANCELLED]
    for wanted in ({}, {"states": states}):
        page = scene.store.requests(text="sought", limit=9, **wanted)  # type: ignore[arg-type]
        pages = [[each.id for each in page.requests]]
        while page.next_cursor:
            page = scene.store.requests(
                text="sought",
                limit=9,
                cursor=page.next_cursor,
                **wanted,  # type: ignore[arg-type]
            )
            pages.append([each.id for each in page.requests])
        assert pages == [[asked[6].id, asked[5].id], [], [asked[0].id]]


def test_requests_since_then(scene: Scene) -> None:
    # The clock was set back after the second.
    times = [NOW, NOW + 50, NOW + 20, NOW + 30]
    ids = [scene.queued(now=now).request.id for now in times]  # type: ignore[union-attr]

    def since(seconds: float, **wanted: Any) -> list[int]:
        page = scene.store.requests(since=NOW + seconds, **wanted)
        return [ids.index(each.id) for each in page.requests]

    assert since(-9) == [3, 2, 1, 0]
    assert since(20) == [3, 2, 1]
    assert since(21) == since(21, template=TEMPLATE, text="monday") == [3, 1]
    assert since(51) == []
    assert since(20, limit=1, cursor=scene.store.requests(limit=1).next_cursor) == [2]


def test_whether_the_task_of_a_request_is_deleted(scene: Scene) -> None:
    def burnt() -> RequestRecord:
        opened = scene.importing()
        scene.store.fail_import(opened.lease.pooled_id or "", code="c", message="m", now=NOW)
        return scene.request(opened.request)

    failed, deleted, disowned = burnt(), burnt(), burnt()
    scene.store.begin_delete(owner="x", limit=9, retry_after=9, now=NOW)
    assert scene.store.finish_delete(deleted.pooled_id or "", now=NOW)
    # It stays on the server.
    assert scene.store.disown(disowned.pooled_id or "", reason="renamed", now=NOW)
    found = {each.id: each.task_deleted for each in scene.store.requests().requests}
    assert found == {failed.id: False, deleted.id: True, disowned.id: False}
    assert scene.request(deleted).task_deleted


def test_jobs_of_a_page_of_requests(scene: Scene) -> None:
    opened = [scene.importing() for _ in range(3)]
    jobs = {}
    for number, each in enumerate(opened[:2]):
        assert each.request is not None
        made = [replace(job, id=job.id + 10 * number) for job in JOBS]
        scene.store.complete_import(each.lease.pooled_id or "", made, now=NOW)
        jobs[each.request.id] = made
    page = scene.store.requests(limit=9).requests
    assert scene.store.jobs_of_requests(page) == jobs
    assert scene.store.jobs_of_requests(page[:2]) == {page[1].id: jobs[page[1].id]}
    assert scene.store.jobs_of_requests([]) == {}


def test_the_events_of_a_request(scene: Scene) -> None:
    opened, other = scene.importing(now=NOW - 5), scene.queued()
    assert opened.request and other.request
    scene.store.complete_import(opened.lease.pooled_id or "", JOBS, now=NOW)
    scene.store.cancel_request(other.request.id, now=NOW)

    def kinds(request_id: str) -> list[str]:
        return [event.kind for event in scene.store.request_events(request_id)]

    seen = kinds(opened.request.id)
    assert [kind for kind in seen if kind.startswith("request")] == [
        "request.uploading",
        "request.importing",
        "request.ready",
    ]
    assert "lease.handed_out" in seen
    assert kinds(other.request.id) == ["request.queued", "request.cancelled"]
    assert kinds("x") == []
    every = scene.store.events_after(0, limit=99)
    mine = [event for event in every if event.request_id == opened.request.id]
    assert scene.store.request_events(opened.request.id) == mine


def test_the_leases_that_wait_or_hold_a_task(scene: Scene) -> None:
    scene.store.renew_owner("here", until=NOW + 9)
    held = [scene.leased().lease.id for _ in range(3)]
    named = scene.store.open_lease(replace(wish(), name="night tour"), now=NOW)
    other = scene.store.open_lease(wish(template="other"), now=NOW).lease.id
    # Of a request, given back, and used.
    scene.queued()
    scene.store.give_back(held[1], now=NOW)
    scene.store.begin_foreign_import(held[2], now=NOW)
    assert named.lease.name == "night tour"

    def ids(**wanted: Any) -> list[str]:
        found, cursor = [], None
        while True:
            page = scene.store.open_leases(limit=1, cursor=cursor, **wanted)
            found += [lease.id for lease in page.leases]
            if (cursor := page.next_cursor) is None:
                return found

    # What was given back went to the one that waited.
    assert ids() == [other, named.lease.id, held[0]]
    assert ids(template="other") == [other]
    found = {lease.id: lease for lease in scene.store.open_leases(limit=9).leases}
    assert [found[each].name for each in ids()] == [None, "night tour", None]
    assert found[named.lease.id].task_id is not None
    assert found[other].state is LeaseState.WAITING
    with pytest.raises(InputError, match="not a cursor"):
        scene.store.open_leases(cursor="x")


@pytest.mark.parametrize("cursor", ["", "x", "-1", "1 OR 1", "9" * 40])
def test_a_cursor_that_no_page_gave(store: Store, cursor: str) -> None:
    with pytest.raises(InputError, match="not a cursor"):
        store.requests(cursor=cursor)


def test_a_page_of_nothing(store: Store) -> None:
    with pytest.raises(InputError, match="at least 1"):
        store.requests(limit=0)


#: What is read, or taken, no more than so many at a time.
LIMITED: dict[str, Callable[[Store, int], Sequence[object]]] = {
    "leases": lambda store, limit: store.leases(limit=limit),
    "expired_leases": lambda store, limit: store.expired_leases(now=NOW + 99, limit=limit),
    "asked": lambda store, limit: store.asked(TEMPLATE, since=0, until=NOW + 99, limit=limit).times,
    "due_steps": lambda store, limit: store.due_steps(now=NOW + 99, limit=limit),
    "begin_delete": lambda store, limit: store.begin_delete(
        owner="x", limit=limit, retry_after=9, now=NOW
    ),
    "events_after": lambda store, limit: store.events_after(0, limit=limit),
    "ended_requests": lambda store, limit: store.ended_requests(since=0, limit=limit),
}


@pytest.mark.parametrize("limit", [-1, 0, 1, 2])
@pytest.mark.parametrize("call", LIMITED)
def test_no_more_than_the_limit(scene: Scene, call: str, limit: int) -> None:
    for _ in range(3):
        scene.store.complete_import(scene.importing().lease.pooled_id or "", JOBS, now=NOW)
        scene.retired()
    for _ in range(3):
        scene.leased()
    assert len(LIMITED[call](scene.store, limit)) == max(0, limit)


# --- Demand --------------------------------------------------------------------------------------


def test_demand_is_counted_by_bucket_and_outcome(scene: Scene) -> None:
    start = NOW // DEMAND_BUCKET * DEMAND_BUCKET
    scene.leased(now=start)
    scene.leased(now=start + DEMAND_BUCKET - 0.001)
    waiting = scene.waiting(now=start)
    assert scene.store.demand(TEMPLATE, since=0)[0].total == 2, "waiting is no hand-out yet"
    scene.warm()
    scene.store.claim_warm(waiting.lease.id, FINGERPRINT, now=start + 3 * DEMAND_BUCKET)
    first, second = scene.store.demand(TEMPLATE, since=start)
    assert (first.start, first.hits, first.waits, first.colds) == (start, 2, 0, 0)
    assert (second.start, second.waits, second.total) == (start + 3 * DEMAND_BUCKET, 1, 1)
    assert scene.store.demand(TEMPLATE, since=start + 1) == [second]
    assert scene.store.demand("other", since=0) == []
    assert scene.store.hand_outs() == {TEMPLATE: {Outcome.HIT: 2, Outcome.WAIT: 1}}


# --- Change --------------------------------------------------------------------------------------


def test_the_change_token_tells_of_everybodys_changes(
    scene: Scene, open_another: Callable[[], Store], store_url: str
) -> None:
    store, other = scene.store, open_another()
    scene.warm()
    tokens = [store.change_token()]
    assert store.change_token() == tokens[0], "nothing has changed"
    store.levels()
    assert store.change_token() == tokens[0]

    with ThreadPoolExecutor(1) as thread:
        thread.submit(scene.creating).result()
    tokens.append(store.change_token())
    other.pause(TEMPLATE, now=NOW)
    tokens.append(store.change_token())
    processes.run(processes.claim_all, (store_url,))
    tokens.append(store.change_token())
    scene.waiting()
    tokens.append(store.change_token())
    assert len(set(map(repr, tokens))) == 5


def test_commits_of_this_process_are_announced_once_they_are_durable(
    scene: Scene, open_another: Callable[[], Store]
) -> None:
    store, seen = scene.store, list[bool]()
    store.on_commit(lambda: seen.append(TEMPLATE in open_another().paused()))
    store.pause(TEMPLATE, now=NOW)
    assert seen == [True]
    store.pause(TEMPLATE, now=NOW)
    store.levels()
    assert seen == [True], "nothing has changed"
    with ThreadPoolExecutor(1) as thread:
        thread.submit(store.resume, TEMPLATE).result()
    assert seen == [True, False]


# --- Opening and closing -------------------------------------------------------------------------


def test_the_pool_id_is_kept(store: Store, open_another: Callable[[], Store]) -> None:
    assert open_another().pool_id == store.pool_id
    store.close()
    assert open_another().pool_id == store.pool_id


def test_everything_is_there_after_opening_again(
    scene: Scene, open_another: Callable[[], Store]
) -> None:
    opened = scene.uploading()
    scene.store.close()
    again = Scene(open_another())
    assert again.task(opened.lease.pooled_id) == opened.task
    assert again.lease(opened.lease.id) == opened.lease
    assert again.request(opened.request) == opened.request


@pytest.mark.parametrize("how_many", [4, 8])
def test_processes_that_start_at_once_on_a_fresh_path(store_url: str, how_many: int) -> None:
    pool_ids = processes.run(processes.pool_id, *[(store_url,)] * how_many)
    assert len(set(pool_ids)) == 1


def test_threads_that_start_at_once_on_a_fresh_path(open_another: Callable[[], Store]) -> None:
    with ThreadPoolExecutor(8) as threads:
        stores = [future.result() for future in [threads.submit(open_another) for _ in range(8)]]
    assert len({store.pool_id for store in stores}) == 1


def test_a_closed_store_says_so(store: Store) -> None:
    store.check_writable()
    store.close()
    store.close()
    for use in (store.levels, store.change_token, store.check_writable, store.in_flight):
        with pytest.raises(PoolClosed):
            use()
    with pytest.raises(PoolClosed):
        store.open_lease(wish(), now=NOW)


def test_closing_while_threads_work(scene: Scene) -> None:
    for _ in range(50):
        scene.warm()

    def claim_until_closed() -> list[str]:
        taken = []
        try:
            while True:
                opened = scene.store.open_lease(wish(), now=NOW)
                taken.append(opened.lease.id)
                if len(taken) == 10:
                    scene.store.close()
        except PoolClosed:
            return taken

    with ThreadPoolExecutor(4) as threads:
        futures = [threads.submit(claim_until_closed) for _ in range(4)]
        taken = [lease_id for future in futures for lease_id in future.result()]
    assert len(taken) == len(set(taken)) >= 10


def test_what_was_asked_for_counts_once_whatever_it_used_up(scene: Scene) -> None:
    def asked(template: str = TEMPLATE, since: float = NOW, limit: int = 9) -> Asked:
        return scene.store.asked(template, since=since, until=NOW + 100, limit=limit)

    scene.warm(template="other")
    scene.store.open_lease(wish(template="other"), now=NOW)
    sent_twice = scene.uploading(now=NOW + 1)
    assert sent_twice.request is not None
    again = scene.requeue(sent_twice.request.id, now=NOW + 50)
    assert asked().times == array("d")
    scene.warm(now=NOW + 60)
    scene.store.claim_warm(again, FINGERPRINT, now=NOW + 60)
    scene.leased(now=NOW + 20)
    refused = scene.waiting(now=NOW + 30)
    scene.store.abandon_lease(refused.lease.id, now=NOW + 40)
    scene.waiting(now=NOW + 41)
    scene.leased(now=NOW - 1)
    scene.leased(now=NOW + 101)
    assert asked().times == array("d", [NOW + 1, NOW + 20, NOW + 30])
    assert asked().outcomes == {Outcome.WAIT: 1, Outcome.HIT: 1, None: 1}
    assert asked(limit=2).times == array("d", [NOW + 20, NOW + 30])
    assert asked("other").outcomes == {Outcome.HIT: 1}
    assert asked("nothing").outcomes == {}


def test_how_long_the_creates_of_a_pool_took(scene: Scene) -> None:
    def warm_after(seconds: float, *, now: float = NOW, template: str = TEMPLATE) -> None:
        task = scene.creating(template=template, now=now)
        scene.store.record_created(task.id, task_id=next(scene.task_ids), now=now)
        assert scene.store.finish_create(task.id, prepared=True, now=now + seconds)

    for seconds in (3.0, 1.0, 2.0):
        warm_after(seconds)
    warm_after(9.0, now=NOW - 1)
    warm_after(9.0, template="other")
    scene.creating()
    cold = scene.store.begin_create(
        new_id(), TEMPLATE, FINGERPRINT, limit=None, owner="here", now=NOW
    )
    assert cold is not None
    scene.store.record_created(cold.id, task_id=next(scene.task_ids), now=NOW)
    assert scene.store.finish_create(cold.id, prepared=True, now=NOW + 5)
    assert list(scene.store.create_times(TEMPLATE, since=NOW)) == [1.0, 2.0, 3.0]
