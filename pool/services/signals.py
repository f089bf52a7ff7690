"""How threads of one process tell each other that something happened, and how tests wait for it."""

from __future__ import annotations

import threading

from pool.clock import Clock


class Signal:
    """A counter that threads can wait on: no announcement is lost between two waits."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._condition = threading.Condition()
        self._count = 0

    @property
    def count(self) -> int:
        """How many announcements there have been."""
        return self._count

    def announce(self) -> None:
        """Wake everybody who waits."""
        with self._condition:
            self._count += 1
            self._condition.notify_all()

    def wait(self, seen: int, seconds: float | None) -> int:
        """Return as soon as there are more than ``seen`` announcements, or after ``seconds``;
        the answer is the number now."""
        deadline = None if seconds is None else self._clock.monotonic() + seconds
        with self._condition:
            while self._count <= seen:
                remaining = None if deadline is None else deadline - self._clock.monotonic()
                if remaining is not None and remaining <= 0:
                    break
                self._clock.wait(self._condition, remaining)
            return self._count
