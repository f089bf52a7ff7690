"""Time as a dependency, so that tests of ageing, back-off and schedules need not wait; and times
as text."""

from __future__ import annotations

import threading
import time
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
