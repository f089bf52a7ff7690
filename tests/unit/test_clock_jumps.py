"""Which clock was set, and which daemon sees to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from conformance.store_scene import Scene
from support.clock import ManualClock

from pool.clock import StoreClock
from pool.errors import TermLost
from pool.maintenance.clock_jumps import TOLERANCE, ClockJumps, jump_between
from pool.maintenance.heartbeat import PERIOD, TERM
from pool.store import Store, open_store

HOUR = 3600.0


@pytest.mark.parametrize(
    ("before", "after", "jump"),
    [
        ((1000.0, 0.0), (1001.0, 1.0), 0.0),
        ((1000.0, 0.0), (4600.0, 3600.0), 0.0),  # nobody looked for an hour
        ((1000.0, 0.0), (1001.0 + TOLERANCE, 1.0), 0.0),  # a correction
        ((1000.0, 7.0), (4601.0, 8.0), 3600.0),
        ((9000.0, 7.0), (1801.0, 8.0), -7200.0),
        ((1000.0, 0.0), (8200.0, 3600.0), 3600.0),
    ],
)
def test_a_clock_that_was_set_is_told_from_time_that_has_passed(
    before: tuple[float, float], after: tuple[float, float], jump: float
) -> None:
    assert jump_between(before, after) == pytest.approx(jump)


@pytest.fixture
def database(clock: ManualClock) -> ManualClock:
    """What the store has for its own clock; ``off`` is how far it was set."""
    return clock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store(
    database: ManualClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Store]:
    """A store with a clock of its own, which several machines share."""
    store = open_store(f"sqlite:///{tmp_path / 'pool.db'}")
    monkeypatch.setattr(store, "time", database.now)
    yield store
    store.close()


class Machine:
    """A daemon on a machine that goes by the store's time, and that may sleep: its monotonic clock
    stands still then."""

    def __init__(self, store: Store, database: ManualClock, name: str) -> None:
        self._store = store
        self._database = database
        self.name = name
        self.slept = 0.0
        self.clock = StoreClock(store.time, cast(Any, self))
        self.jumps = ClockJumps(store, name, clock=self.clock)
        self.beat()

    def now(self) -> float:
        return 0.0

    def monotonic(self) -> float:
        return self._database.monotonic() - self.slept

    def beat(self) -> None:
        """What a process does at each heartbeat."""
        self._store.renew_owner(self.name, until=self.clock.now() + TERM)
        self.clock.compare()
        self.jumps.look()

    def begin_term(self) -> int:
        begun = self._store.begin_term(self.name, seconds=6.0, clock=self.clock.now)
        assert begun is not None
        return begun.term


@pytest.fixture
def two(store: Store, database: ManualClock) -> tuple[Machine, Machine]:
    return Machine(store, database, "one"), Machine(store, database, "other")


@pytest.fixture
def lease_id(store: Store, database: ManualClock) -> str:
    """A lease that has half an hour to go."""
    return Scene(store).leased(ttl=HOUR / 2, now=database.now()).lease.id


def left(store: Store, lease_id: str, database: ManualClock) -> float:
    lease = store.lease(lease_id)
    assert lease is not None and lease.expires_at is not None
    return lease.expires_at - database.now()


def beat(database: ManualClock, *machines: Machine, times: int = 1) -> None:
    for _ in range(times):
        database.advance(PERIOD)
        for each in machines:
            each.beat()


@pytest.mark.parametrize("hours", [6, -6])
def test_the_clock_of_the_store_was_set(
    two: tuple[Machine, Machine], store: Store, database: ManualClock, lease_id: str, hours: int
) -> None:
    one, other = two
    term = one.begin_term()
    database.off += hours * HOUR
    beat(database, one, other)
    if hours > 0:
        with pytest.raises(TermLost):
            one.jumps.run_once(term)
        term = one.begin_term()
    assert one.jumps.run_once(term) == pytest.approx(hours * HOUR)
    assert left(store, lease_id, database) == pytest.approx(HOUR / 2 - PERIOD)
    # The other one leaves it at that.
    store.renew_term(term, "one", seconds=6.0, clock=one.clock.now)
    beat(database, one, other)
    assert store.end_term(term, "one", now=one.clock.now())
    assert other.jumps.run_once(other.begin_term()) == 0.0


@pytest.mark.parametrize("hours", [6, -6])
def test_a_new_maintainer_has_looked_before_it_became_that(
    two: tuple[Machine, Machine], store: Store, database: ManualClock, lease_id: str, hours: int
) -> None:
    """The one before it has died before it could see to it."""
    one, other = two
    one.begin_term()
    database.off += hours * HOUR
    beat(database, other, times=3)
    assert other.jumps.run_once(other.begin_term()) == pytest.approx(hours * HOUR)
    assert left(store, lease_id, database) == pytest.approx(HOUR / 2 - 3 * PERIOD)


def test_a_machine_that_slept_moves_nothing(
    two: tuple[Machine, Machine], store: Store, database: ManualClock, lease_id: str
) -> None:
    """Another process has lived through that time."""
    one, other = two
    one.begin_term()
    for _ in range(10):
        one.slept += PERIOD
        beat(database, other)
    one.beat()
    term = one.begin_term()
    assert one.jumps.run_once(term) == 0.0
    assert left(store, lease_id, database) == pytest.approx(HOUR / 2 - 10 * PERIOD)


def test_a_machine_that_slept_while_another_took_over(
    two: tuple[Machine, Machine], store: Store, database: ManualClock, lease_id: str
) -> None:
    one, other = two
    term = one.begin_term()
    one.slept += 20.0
    database.advance(20.0)
    other.begin_term()
    # Its services run before it has compared its time; what they do not know, they do not move.
    assert one.jumps.run_once(term) == 0.0
    one.clock.compare()
    with pytest.raises(TermLost):
        one.jumps.run_once(term)
    one.jumps.look()
    assert one.jumps.run_once(term) == 0.0
    assert left(store, lease_id, database) == pytest.approx(HOUR / 2 - 20.0)


def test_the_clock_of_a_host_disturbs_nobody(
    two: tuple[Machine, Machine], database: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = two
    monkeypatch.setattr(one, "now", lambda: 40 * HOUR)
    beat(database, one, other)
    assert one.clock.now() == pytest.approx(other.clock.now())
    assert one.jumps.run_once(one.begin_term()) == 0.0
