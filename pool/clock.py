"""Time as a dependency, so that tests of ageing, back-off and schedules need not wait; and times
as text."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Tells the time, and waits for it to pass."""

    def now(self) -> float:
        """Seconds since the Unix epoch, UTC; what goes into the store."""

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back; for durations inside one process."""

    def sleep(self, seconds: float) -> None:
        """Return after ``seconds``."""

    def wait(self, condition: threading.Condition, seconds: float | None) -> bool:
        """Wait on a held condition; False when ``seconds`` passed without a notification."""


class SystemClock:
    """The machine's own time."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def wait(self, condition: threading.Condition, seconds: float | None) -> bool:
        return condition.wait(seconds)


class StoreClock:
    """The time of a store that machines share, as this one knows it: what one machine writes is
    compared with the time of another. Where the store has no time of its own, all its processes
    are on one machine, and that machine's clock is taken.

    Between two comparisons the monotonic clock counts, so that it makes no difference when the
    machine's clock is wrong, or is set.
    """

    def __init__(
        self, time_of_store: Callable[[], float | None], clock: Clock | None = None
    ) -> None:
        """``time_of_store`` returns seconds since the Unix epoch, or None.

        :raises pool.errors.StoreError: the store cannot be asked.
        """
        self._time_of_store = time_of_store
        self._clock = clock or SystemClock()
        #: What is added to the monotonic clock; None where the machine's clock is taken.
        self._ahead: float | None = None
        self.compare()

    def now(self) -> float:
        ahead = self._ahead
        return self._clock.now() if ahead is None else self._clock.monotonic() + ahead

    def compare(self) -> float:
        """Ask the store for its time, and go by it; return by how many seconds this clock was
        wrong, 0 where that is less than the asking took.

        :raises pool.errors.StoreError: the store cannot be asked; nothing has changed.
        """
        before = self._clock.monotonic()
        theirs = self._time_of_store()
        after = self._clock.monotonic()
        if theirs is None:
            return 0.0
        wrong = theirs - (self.now() - (after - before) / 2)
        if self._ahead is not None and abs(wrong) <= (after - before) / 2:
            return 0.0
        self._ahead = theirs - (before + after) / 2
        return wrong

    def monotonic(self) -> float:
        return self._clock.monotonic()

    def sleep(self, seconds: float) -> None:
        self._clock.sleep(seconds)

    def wait(self, condition: threading.Condition, seconds: float | None) -> bool:
        return self._clock.wait(condition, seconds)


class Wakeup:
    """An auto-reset event: one thread waits for it, by the clock's time, and any may set it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._condition = threading.Condition()
        self._is_set = False

    def set(self) -> None:
        """End the wait that is under way, or else the next one."""
        with self._condition:
            self._is_set = True
            self._condition.notify()

    def wait(self, seconds: float | None = None) -> None:
        """Return once it is set, or after ``seconds``, and reset it."""
        with self._condition:
            if not self._is_set:
                self._clock.wait(self._condition, seconds)
            self._is_set = False


def rfc3339(seconds: float) -> str:
    """Return a time as JSON shows it, to the millisecond: ``2026-01-01T12:00:00.123Z``."""
    moment = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return moment.replace("+00:00", "Z")


def parse_time(text: str) -> datetime:
    """Return the time in a text such as RFC 3339 has it; one without a zone is UTC.

    :raises ValueError: it is no such text.
    """
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
