from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from conformance import store_processes as processes
from conformance.store_scene import FINGERPRINT, NOW, Scene, data, everything, wish
from pool.errors import IdempotencyConflict
from pool.model import LeaseState, Outcome


@pytest.mark.parametrize("with_request", [False, True])
def test_the_same_key_has_the_same_answer(scene: Scene, with_request: bool) -> None:
    scene.warm()
    scene.warm()
    first = scene.store.open_lease(
        wish(key="k", payload="p"), request=data() if with_request else None, now=NOW
    )
    before = everything(scene.store)
    again = scene.store.open_lease(
        wish(key="k", payload="p"), request=data() if with_request else None, now=NOW + 5
    )
    assert again.replayed
    assert (again.lease, again.task, again.request) == (first.lease, first.task, first.request)
    assert everything(scene.store) == before
    if first.request is not None:
        assert scene.store.begin_import(
            scene.import_id(first.request.id), deadline=NOW + 9, now=NOW
        )
    assert sum(counted.total for counted in scene.store.demand("streets", since=0)) == 1


@pytest.mark.parametrize("with_request", [False, True])
def test_the_same_key_while_the_first_call_waits(scene: Scene, with_request: bool) -> None:
    def ask() -> tuple[str, LeaseState, bool]:
        opened = scene.store.open_lease(
            wish(key="k"), request=data() if with_request else None, now=NOW
        )
        assert (opened.request is not None) is with_request
        return opened.lease.id, opened.lease.state, opened.task is not None

    lease_id, state, has_task = ask()
    assert (state, has_task) == (LeaseState.WAITING, False)
    scene.warm()
    assert ask() == (lease_id, LeaseState.WAITING, False), "a replay claims nothing"
    assert scene.store.claim_warm(lease_id, FINGERPRINT, now=NOW) is not None
    assert ask() == (lease_id, LeaseState.ACTIVE, True)


def test_the_answer_follows_the_request(scene: Scene) -> None:
    scene.warm()
    first = scene.store.open_lease(wish(key="k"), request=data(), now=NOW)
    assert first.request is not None
    second = scene.requeue(first.request.id, now=NOW)
    again = scene.store.open_lease(wish(key="k"), request=data(), now=NOW)
    assert again.request == scene.request(first.request)
    assert (again.lease.id, again.task) == (second, None)


def test_a_task_that_was_given_back_is_not_answered_again(scene: Scene) -> None:
    scene.warm()
    first = scene.store.open_lease(wish(key="k"), now=NOW)
    scene.store.give_back(first.lease.id, now=NOW)
    other = scene.store.open_lease(wish(), now=NOW)
    again = scene.store.open_lease(wish(key="k"), now=NOW)
    assert again.replayed
    assert (again.lease.id, again.lease.state) == (first.lease.id, LeaseState.RELEASED)
    assert again.task is None, "it is another caller's"
    assert other.task is not None


@pytest.mark.parametrize("with_request", [False, True])
def test_a_key_is_bound_to_what_was_asked(scene: Scene, with_request: bool) -> None:
    def ask(payload: str = "p", template: str = "streets") -> None:
        scene.store.open_lease(
            wish(key="k", payload=payload, template=template),
            request=data() if with_request else None,
            now=NOW,
        )

    ask()
    before = everything(scene.store)
    with pytest.raises(IdempotencyConflict, match="k"):
        ask(payload="q")
    with pytest.raises(IdempotencyConflict):
        ask(template="other")
    assert everything(scene.store) == before


def test_keys_of_leases_and_of_requests_are_separate(scene: Scene) -> None:
    lease = scene.waiting(key="k")
    request = scene.queued(key="k")
    assert not request.replayed
    assert request.lease.id != lease.lease.id
    assert scene.waiting(key="k").lease.id == lease.lease.id
    assert scene.queued(key="k").lease.id == request.lease.id


def test_a_key_is_free_again_when_nothing_came_of_it(scene: Scene) -> None:
    first = scene.waiting(key="k")
    scene.store.abandon_lease(first.lease.id, now=NOW)
    second = scene.store.open_lease(wish(key="k", payload="other"), now=NOW)
    assert not second.replayed
    assert second.lease.id != first.lease.id


def test_a_key_is_kept_when_a_request_was_cancelled_or_failed(scene: Scene) -> None:
    cancelled = scene.queued(key="c")
    assert cancelled.request is not None
    scene.store.cancel_request(cancelled.request.id, now=NOW)
    scene.warm()
    failed = scene.store.open_lease(wish(key="f"), request=data(), now=NOW)
    assert failed.request is not None
    assert failed.task is not None
    scene.store.fail_request(failed.request.id, code="x", message="", now=NOW)
    assert scene.queued(key="c").request == scene.request(cancelled.request)
    again = scene.store.open_lease(wish(key="f"), request=data(), now=NOW)
    assert again.request == scene.request(failed.request)


def test_a_key_is_free_again_when_a_request_failed_before_it_had_a_task(scene: Scene) -> None:
    first = scene.queued(key="k")
    assert first.request is not None
    scene.store.fail_request(first.request.id, code="pool-empty", message="", now=NOW)
    second = scene.queued(key="k")
    assert not second.replayed


def test_threads_with_one_key_get_one_task(scene: Scene) -> None:
    for _ in range(8):
        scene.warm()
    with ThreadPoolExecutor(8) as threads:
        opened = list(
            threads.map(lambda _: scene.store.open_lease(wish(key="k"), now=NOW), range(8))
        )
    assert len({one.lease.pooled_id for one in opened}) == 1
    assert [one.replayed for one in opened].count(False) == 1
    assert scene.store.hand_outs() == {"streets": {Outcome.HIT: 1}}


def test_processes_with_one_key_get_one_task(scene: Scene, store_url: str) -> None:
    for _ in range(4):
        scene.warm()
    calls = [(store_url, "k", "p")] * 3 + [(store_url, "other", "p")]
    *same, other = processes.run(processes.open_with_key, *calls)
    assert len(set(same)) == 1
    assert other not in same
    assert processes.run(processes.open_with_key, (store_url, "k", "q")) == ["idempotency-conflict"]


# --- When the first caller is gone ----------------------------------------------------------------


def test_a_lease_is_inherited_from_who_is_gone_and_by_one_only(scene: Scene) -> None:
    store = scene.store
    waiting = scene.waiting(key="k")
    store.renew_owner("here", until=NOW + 10)
    assert not store.inherit_lease(waiting.lease.id, owner="heir", now=NOW + 10), "it is alive"
    assert not store.inherit_lease(waiting.lease.id, owner="here", now=NOW + 11), "it is its own"
    store.renew_owner("heir", until=NOW + 20)
    assert store.inherit_lease(waiting.lease.id, owner="heir", now=NOW + 11)
    assert scene.lease(waiting.lease.id).owner == "heir"
    assert not store.inherit_lease(waiting.lease.id, owner="second", now=NOW + 12)
    assert not store.inherit_lease(waiting.lease.id, owner="heir", now=NOW + 12)
    assert scene.waiting(key="k").lease.id == waiting.lease.id


def test_only_a_lease_that_waits_by_itself_is_inherited(scene: Scene) -> None:
    leased, queued, abandoned = scene.leased(), scene.queued(), scene.waiting()
    scene.store.abandon_lease(abandoned.lease.id, now=NOW)
    before = everything(scene.store)
    for lease_id in (leased.lease.id, queued.lease.id, abandoned.lease.id, "unknown"):
        assert not scene.store.inherit_lease(lease_id, owner="heir", now=NOW)
    assert everything(scene.store) == before


def test_of_many_heirs_one_inherits(scene: Scene) -> None:
    waiting = scene.waiting(key="k")
    heirs = "abcdefgh"
    for heir in heirs:
        scene.store.renew_owner(heir, until=NOW + 10)
    with ThreadPoolExecutor(8) as threads:
        won = threads.map(
            lambda heir: scene.store.inherit_lease(waiting.lease.id, owner=heir, now=NOW), heirs
        )
    assert list(won).count(True) == 1
