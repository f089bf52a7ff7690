"""The parts of one upload, several at a time: the first that fails stops the others."""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Callable, Sequence

from pool.clock import Clock
from pool.cvat.records import Progress
from pool.errors import PoolError


class Stopped(PoolError):
    """Another part of the same upload has failed."""


class Stop:
    """How the parts of an upload hear that it has failed."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._condition = threading.Condition()
        self._is_set = False
        #: Whether there are other parts at work that could set it.
        self.alone = True

    @property
    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        with self._condition:
            self._is_set = True
            self._condition.notify_all()

    def check(self) -> None:
        """Raises Stopped once it is set."""
        if self._is_set:
            raise Stopped

    def sleep(self, seconds: float) -> None:
        """Return after ``seconds``. Raises Stopped at once when it is set meanwhile."""
        if self.alone:
            self._clock.sleep(seconds)
            return
        with self._condition:
            if not self._is_set:
                self._clock.wait(self._condition, seconds)
        self.check()


def run_parts(parts: Sequence[Callable[[], None]], at_once: int, stop: Stop) -> list[BaseException]:
    """Run all parts, at most ``at_once`` of them at the same time; returns what was raised.

    The first error is the first in the list, and none but Stopped follow from it. When there is
    one, the parts that had not begun were not run, and no other is running any more.
    """
    waiting = deque(parts)
    raised: list[BaseException] = []

    def work() -> None:
        while not stop.is_set:
            try:
                part = waiting.popleft()
            except IndexError:
                return
            try:
                part()
            except BaseException as error:
                raised.append(error)
                stop.set()

    count = min(at_once, len(parts))
    stop.alone = count <= 1
    if stop.alone:
        work()
        return raised
    threads = [
        threading.Thread(
            target=contextvars.copy_context().run, args=(work,), name="upload", daemon=True
        )
        for _ in range(count)
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException:
        # Ctrl-C: the threads end with the next piece that they send, and nobody waits for that.
        stop.set()
        raise
    return raised


class Meter:
    """Adds up the progress of parts that are sent at the same time.

    What it reports never goes back, and it reports from one thread at a time.
    """

    def __init__(self, progress: Progress | None, total: int, stop: Stop) -> None:
        self._progress = progress
        self._total = total
        self._stop = stop
        self._guard = threading.Lock()
        self._sent = 0
        self._shown = 0

    def part(self) -> PartMeter:
        """A meter for one part."""
        return PartMeter(self)

    def add(self, size: int) -> None:
        """``size`` more bytes are sent; fewer, if it is negative. Raises Stopped."""
        self._stop.check()
        with self._guard:
            self._sent += size
            if self._progress is None or self._sent <= self._shown:
                return
            self._shown = min(self._sent, self._total)
            self._progress(self._shown, self._total)


class PartMeter:
    """Counts the bytes of one part: those that have arrived, and those on their way."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._under_way = 0

    def show(self, sent: int) -> None:
        """``sent`` bytes of the current request are on their way."""
        change, self._under_way = sent - self._under_way, sent
        self._meter.add(change)

    def advance(self, size: int) -> None:
        """``size`` more bytes have arrived, with which the current request is over."""
        change, self._under_way = size - self._under_way, 0
        self._meter.add(change)

    def restart(self) -> None:
        """The current request has failed: what was on its way counts no more."""
        self.advance(0)
