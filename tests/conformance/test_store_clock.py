"""What a store does when the machine's clock was set: what is to come stays as far away."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.daemons import OWNER, ends, maintains

from conformance.store_scene import (
    FINGERPRINT,
    NOW,
    TEMPLATE,
    Scene,
    data,
    everything,
    make_carrier,
    wish,
)
from pool.clock import StoreClock, SystemClock
from pool.model import Hold, Prewarm, RequestState, TaskState
from pool.store import Opened, Store
from pool.store.checking import check_store

HOUR = 3600.0
TERM = 10.0
JUMPS = [6 * HOUR, -6 * HOUR]


def move(store: Store, by: float) -> int:
    """The clock was set by so much since the last look, a second ago."""
    moved = move_in_term(store, by, maintains(store, until=NOW + by + 6.0, now=NOW + by).term)
    assert moved is not None
    # What maintains it counts as alive, too.
    return moved - 1


def move_in_term(store: Store, by: float, term: int, *, owner: str = OWNER) -> int | None:
    now = NOW + by
    return store.move_times(by, since=now - 1.0, grace=TERM, term=term, owner=owner, now=now)


def expired(store: Store, now: float) -> list[str]:
    return [handout.lease.id for handout in store.expired_leases(now=now)]


@pytest.mark.parametrize("by", JUMPS)
def test_a_lease_lasts_as_long_as_before(scene: Scene, by: float) -> None:
    opened = scene.leased(ttl=60.0, now=NOW - 20.0)
    assert move(scene.store, by) == 1
    assert expired(scene.store, NOW + by + 39.0) == []
    assert expired(scene.store, NOW + by + 41.0) == [opened.lease.id]


@pytest.mark.parametrize("by", JUMPS)
def test_a_lease_of_the_new_clock_is_left_as_it_is(scene: Scene, by: float) -> None:
    """It was handed out between the setting of the clock and the look that noticed it."""
    opened = scene.leased(ttl=60.0, now=NOW + by - 0.5)
    assert move(scene.store, by) == 0
    assert scene.lease(opened.lease.id).expires_at == NOW + by + 59.5


@pytest.mark.parametrize("by", JUMPS)
def test_an_import_has_as_much_time_as_before(scene: Scene, by: float) -> None:
    opened = scene.importing(now=NOW - 100.0)
    fresh = scene.importing(now=NOW + by)
    move(scene.store, by)
    assert scene.request(opened.request).deadline_at == NOW + by + 500.0
    assert scene.request(fresh.request).deadline_at == NOW + by + 600.0


@pytest.mark.parametrize("by", JUMPS)
def test_a_prewarm_lasts_as_long_as_before(store: Store, by: float) -> None:
    store.prewarm(Prewarm(template=TEMPLATE, size=9, since=NOW - 20.0, until=NOW + 40.0))
    fresh = Prewarm(template="other", size=9, since=NOW + by, until=NOW + by + 60.0)
    store.prewarm(fresh)
    move(store, by)
    assert store.prewarms() == {
        TEMPLATE: Prewarm(template=TEMPLATE, size=9, since=NOW + by - 20.0, until=NOW + by + 40.0),
        "other": fresh,
    }


@pytest.mark.parametrize("by", JUMPS)
def test_who_is_alive_counts_as_alive_and_who_is_dead_as_dead_after_a_term(
    scene: Scene, by: float
) -> None:
    store = scene.store
    opened: dict[str, Opened] = {owner: scene.queued(owner=owner) for owner in ("alive", "dead")}
    for owner in opened:
        store.renew_owner(owner, until=NOW + TERM)
    move(store, by)
    assert store.adopt_requests("heir", now=NOW + by) == []
    store.renew_owner("alive", until=NOW + by + 5.0 + TERM)
    adopted = store.adopt_requests("heir", now=NOW + by + TERM + 1.0)
    assert [request.id for request in adopted] == [scene.request(opened["dead"].request).id]


def test_a_hold_is_tried_again_at_once_when_the_clock_was_set_back(store: Store) -> None:
    waits = Hold(template=TEMPLATE, code="x", reason="y", since=NOW - 5, retry_at=NOW + 60)
    by_hand = Hold(template="other", code="x", reason="y", since=NOW - 5, retry_at=None)
    store.hold(waits)
    store.hold(by_hand)
    move(store, -HOUR)
    now = NOW - HOUR
    assert [(hold.since, hold.retry_at) for hold in store.holds().values()] == [
        (now, now),
        (now, None),
    ]


def test_a_hold_that_is_due_when_the_clock_was_set_forward_stays_so(store: Store) -> None:
    store.hold(Hold(template=TEMPLATE, code="x", reason="y", since=NOW - 5, retry_at=NOW + 60))
    assert move(store, HOUR) == 0
    assert store.holds()[TEMPLATE].retry_at == NOW + 60


def test_doubts_do_not_last_for_hours(scene: Scene) -> None:
    scene.warm()
    scene.store.quarantine_warm(until=NOW + 5.0)
    move(scene.store, -HOUR)
    now = NOW - HOUR
    assert scene.store.open_lease(wish(), now=now).task is None
    assert scene.store.open_lease(wish(), now=now + TERM).task is not None


def test_what_is_done_does_not_move(scene: Scene) -> None:
    scene.waiting()
    scene.warm()
    uploading = scene.uploading()
    done = scene.leased()
    assert scene.store.end_lease(done.lease.id, reason="", now=NOW)
    before = everything(scene.store)
    assert move(scene.store, 6 * HOUR) == 0
    assert everything(scene.store) == before
    assert scene.states(uploading)[2] is RequestState.UPLOADING


# --- When no process noticed it -------------------------------------------------------------------


def test_a_term_of_a_clock_that_was_set_back_ends(store: Store) -> None:
    killed = store.begin_term("killed", seconds=TERM, clock=lambda: NOW)
    now = NOW - 6 * HOUR
    assert store.begin_term("heir", seconds=TERM, clock=lambda: now)
    assert not store.begin_term("third", seconds=TERM, clock=lambda: now + 1.0)
    assert killed is not None
    assert not store.renew_term(killed.term, "killed", seconds=TERM, clock=lambda: now)
    assert check_store(store.connections).problems == (), "they do not overlap"


def test_a_deletion_that_began_in_times_to_come_is_tried_again(scene: Scene) -> None:
    task = scene.retired()

    def take(now: float) -> list[str]:
        taken = scene.store.begin_delete(owner="here", limit=9, retry_after=60.0, now=now)
        return [task.id for task in taken]

    assert take(NOW) == [task.id]
    assert take(NOW - 60.0) == [], "that is as near as its own time would be"
    assert take(NOW - HOUR) == [task.id]
    assert scene.task(task.id).state is TaskState.DELETING


class WrongClock(SystemClock):
    """The clock of a machine on which it was never put right."""

    def __init__(self, off: float) -> None:
        self._off = off

    def now(self) -> float:
        return super().now() + self._off


@pytest.mark.parametrize("off", [HOUR, -HOUR])
def test_a_term_lasts_as_long_on_every_machine(
    store: Store, open_another: Callable[[], Store], off: float
) -> None:
    """What cannot be on several machines has no time of its own: their clock is the same one."""
    other = open_another()
    wrong = SystemClock() if other.time() is None else WrongClock(off)
    here, there = StoreClock(store.time), StoreClock(other.time, wrong)
    assert other.begin_term("there", seconds=TERM, clock=there.now)
    assert not store.begin_term("here", seconds=TERM, clock=here.now)
    assert store.maintainer(now=here.now()) == "there"
    ended = here.now() + TERM + 1.0
    assert store.begin_term("here", seconds=TERM, clock=lambda: ended)


@pytest.mark.parametrize("by", JUMPS)
def test_the_grace_of_files_and_the_idleness_of_streams_are_as_long_as_before(
    store: Store, by: float
) -> None:
    """A clock that jumps by a day must not delete the files of a task that just seems to be gone,
    nor keep a filled slot from being shown."""
    carrier_id = make_carrier(store, 2)
    stream = store.use_stream(TEMPLATE, "camera 7", FINGERPRINT, now=NOW - 100.0)
    assert stream is not None
    opened = store.open_lease(wish(fingerprint=stream.fingerprint), request=data(), now=NOW - 50.0)
    assert opened.task is not None
    store.fill_slot(opened.task.id, ["a.jpg"], now=NOW - 50.0)
    store.saw_carrier(carrier_id, gone=True, now=NOW - 30.0)
    move(store, by)
    carrier = store.carrier(carrier_id)
    assert carrier is not None and carrier.gone_since == NOW + by - 30.0
    (used,) = store.streams()
    assert used.stream.last_at == NOW + by - 100.0
    assert store.carriers_due(limit=9, now=NOW + by) == [carrier_id]


def test_the_times_are_moved_by_the_one_that_maintains_the_store(scene: Scene) -> None:
    """Another may have begun to since, and have done so."""
    store, opened = scene.store, scene.leased(ttl=60.0)
    first = maintains(store, until=NOW + HOUR + 6.0, now=NOW + HOUR, owner="first")
    assert move_in_term(store, HOUR, first.term, owner="other") is None
    assert move_in_term(store, 2 * HOUR, first.term, owner="first") is None, "it is over"
    ends(store, now=NOW + HOUR)
    later = maintains(store, until=NOW + HOUR + 6.0, now=NOW + HOUR, owner="later")
    assert move_in_term(store, HOUR, first.term, owner="first") is None
    assert scene.lease(opened.lease.id).expires_at == NOW + 60.0
    assert move_in_term(store, HOUR, later.term, owner="later") is not None
    assert scene.lease(opened.lease.id).expires_at == NOW + HOUR + 60.0


def test_others_that_have_renewed(store: Store) -> None:
    store.renew_owner("here", until=NOW + 100.0)
    assert not store.others_renewed("here", after=NOW)
    store.renew_owner("there", until=NOW + 10.0)
    assert store.others_renewed("here", after=NOW)
    assert not store.others_renewed("here", after=NOW + 10.0)
