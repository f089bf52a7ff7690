"""A clock for tests in one thread: time passes while somebody waits, and things happen in it."""

from __future__ import annotations

import threading
from typing import Protocol

START = 1_800_000_000.0


class Alarm(Protocol):
    """Something that happens at its time, whoever is waiting then."""

    def due(self) -> float | None:
        """When it is due, by the monotonic clock; None for never."""

    def ring(self) -> None:
        """It is due. Afterwards it is due later, or never."""


class SteppedClock:
    """All time in a world of one thread: what others do while one waits are its alarms.

    ``off`` is how many seconds the wall clock is wrong by.
    """

    def __init__(self) -> None:
        self._elapsed = 0.0
        self.off = 0.0
        self.alarms: list[Alarm] = []

    def now(self) -> float:
        return START + self._elapsed + self.off

    def monotonic(self) -> float:
        return self._elapsed

    def sleep(self, seconds: float) -> None:
        end = self._elapsed + max(0.0, seconds)
        while (alarm := self._next(end)) is not None:
            self._elapsed = max(self._elapsed, alarm.due() or 0.0)
            alarm.ring()
        # What rang may have waited itself, and beyond our own end.
        self._elapsed = max(self._elapsed, end)

    def wait(self, condition: threading.Condition, seconds: float | None) -> bool:
        """Nobody notifies but what happens meanwhile, so the whole time passes."""
        assert seconds is not None, "a wait without an end would never return"
        self.sleep(seconds)
        return False

    def _next(self, end: float) -> Alarm | None:
        waiting = [(due, alarm) for alarm in self.alarms if (due := alarm.due()) is not None]
        first = min(waiting, key=lambda pair: pair[0], default=None)
        return first[1] if first is not None and first[0] <= end else None
