"""Machines that share a store go by its time, however wrong their own clocks are."""

from __future__ import annotations

import pytest
from support.clock import START, ManualClock

from pool.clock import StoreClock


class Machine(ManualClock):
    """A machine whose clock is wrong, and from which the store is ``way`` seconds off and back."""

    def __init__(self, *, off: float, way: float = 0.0) -> None:
        super().__init__()
        self.off = off
        self.way = way
        #: How far the store's clock was set.
        self.store_off = 0.0

    def time_of_store(self) -> float:
        self.advance(self.way / 2)
        theirs = START + self._elapsed + self.store_off
        self.advance(self.way / 2)
        return theirs

    @property
    def true_time(self) -> float:
        return START + self._elapsed + self.store_off


@pytest.mark.parametrize("off", [0.0, 3600.0, -3600.0, 1e9])
def test_a_wrong_clock_makes_no_difference(off: float) -> None:
    machine = Machine(off=off, way=0.25)
    clock = StoreClock(machine.time_of_store, machine)
    assert clock.now() == pytest.approx(machine.true_time, abs=1e-3)
    machine.off += 7200.0
    machine.advance(60.0)
    assert clock.now() == pytest.approx(machine.true_time, abs=1e-3), "it was set meanwhile"


def test_a_drift_and_a_store_whose_clock_is_set_are_followed() -> None:
    machine = Machine(off=5.0, way=0.25)
    clock = StoreClock(machine.time_of_store, machine)
    machine.store_off = 40.0
    assert clock.compare() == pytest.approx(40.0, abs=0.2)
    assert clock.now() == pytest.approx(machine.true_time, abs=1e-3)


def test_what_the_asking_took_is_no_difference() -> None:
    """So that the time does not go to and fro with the network's."""
    machine = Machine(off=5.0, way=0.25)
    clock = StoreClock(machine.time_of_store, machine)
    machine.way, machine.store_off = 4.0, 1.5
    before = clock.now() - clock.monotonic()
    assert clock.compare() == 0.0
    assert clock.now() - clock.monotonic() == before


def test_a_store_without_a_time_of_its_own() -> None:
    """All of its processes are on one machine, whose clock they share, also when it is set."""
    machine = Machine(off=5.0)
    clock = StoreClock(lambda: None, machine)
    assert clock.now() == machine.now()
    machine.off = -3600.0
    assert clock.compare() == 0.0
    assert clock.now() == machine.now()
