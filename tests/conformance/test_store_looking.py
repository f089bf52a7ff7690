from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from conformance import store_processes as processes
from conformance.store_scene import FINGERPRINT, JOBS, NOW, TEMPLATE, Scene, data, wish
from pool.errors import InputError, PoolClosed
from pool.model import LeaseState, Outcome, Priority, RequestState, TaskState, new_id
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
    assert len(ids(state=RequestState.QUEUED)) == 3
    assert ids(template=TEMPLATE) == [request.id for request in reversed(mine) if request]
    assert ids(template=TEMPLATE, state=RequestState.CANCELLED) == [mine[1].id]
    assert ids(state=RequestState.READY) == []


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
