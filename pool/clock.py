"""Time as a dependency, so that tests of ageing, back-off and schedules need not wait."""

from __future__ import annotations

import threading
import time
from typing import Protocol


class Clock(Protocol):
    """Tells the time and waits for it to pass."""

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
