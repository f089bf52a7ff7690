"""How threads of one process tell each other that something happened, and how tests wait for it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from pool.clock import Clock


class Signal:
    """A counter that threads can wait on: no announcement is lost between two waits."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._condition = threading.Condition()
        self._count = 0
        self._listeners: tuple[Callable[[], None], ...] = ()

    @property
    def count(self) -> int:
        """How many announcements there have been."""
        return self._count

    def announce(self) -> None:
        """Wake everybody who waits."""
        with self._condition:
            self._count += 1
            self._condition.notify_all()
            listeners = self._listeners
        for listener in listeners:
            listener()

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Have ``listener`` called at each announcement, on the thread that makes it, for those
        who cannot wait on a thread. It must be quick and raise nothing. The answer takes it away
        again."""
        with self._condition:
            self._listeners = (*self._listeners, listener)
        return lambda: self._forget(listener)

    def _forget(self, listener: Callable[[], None]) -> None:
        with self._condition:
            self._listeners = tuple(each for each in self._listeners if each is not listener)

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
