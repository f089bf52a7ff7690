"""A clock for tests: time passes when the test says so, and sleeping passes it."""

from __future__ import annotations

import threading

from pool.clock import SystemClock

START = 1_800_000_000.0


class ManualClock:
    """Wall time and monotonic time that move together, by hand.

    ``off`` is how many seconds the wall clock was set by, ``slept`` the sleeps and waits so far.
    """

    def __init__(self) -> None:
        self._elapsed = 0.0
        self.off = 0.0
        self.slept: list[float] = []

    def now(self) -> float:
        return START + self._elapsed + self.off

    def monotonic(self) -> float:
        return self._elapsed

    def advance(self, seconds: float) -> None:
        self._elapsed += seconds

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self._elapsed += seconds

    def wait(self, condition: threading.Condition, seconds: float | None) -> bool:
        """Nobody else runs while a test holds this clock, so a timed wait just passes."""
        assert seconds is not None, "a wait without an end would never return"
        self.sleep(seconds)
        return False


class SkippingClock(SystemClock):
    """The machine's own time, some of which a test skips: for daemons, whose threads really wait.
    They notice within a fraction of a second."""

    def __init__(self) -> None:
        self._skipped = 0.0

    def now(self) -> float:
        return super().now() + self._skipped

    def monotonic(self) -> float:
        return super().monotonic() + self._skipped

    def skip(self, seconds: float) -> None:
        self._skipped += seconds
