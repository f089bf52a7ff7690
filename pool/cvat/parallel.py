"""The parts of one upload, several at a time: the first that fails stops the others."""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Callable, Sequence

from pool.clock import Clock
from pool.config.source import Progress
from pool.errors import PoolError


class Stopped(PoolError):
    """Another part of the same upload has failed."""


class Parts:
    """Runs the parts of one upload, and adds up their progress.

    ``progress`` is called from one thread at a time, with (bytes sent, ``total``), and never goes
    back.
    """

    def __init__(self, clock: Clock, progress: Progress | None, total: int) -> None:
        self._clock = clock
        self._progress = progress
        self._total = total
        self._changed = threading.Condition()
        self._stopped = False
        self._sent = 0
        self._shown = 0

    def run(self, parts: Sequence[Callable[[], None]], at_once: int) -> list[BaseException]:
        """Run all parts, at most ``at_once`` of them at the same time; return what was raised.

        The first error is the first in the list, and only Stopped follows from it. When there is
        one, the parts that had not begun were not run, and no other is running any more.
        """
        waiting = deque(parts)
        raised: list[BaseException] = []

        def work() -> None:
            while not self._stopped:
                try:
                    part = waiting.popleft()
                except IndexError:
                    return
                try:
                    part()
                except BaseException as error:
                    raised.append(error)
                    self._stop()

        count = min(at_once, len(parts))
        if count <= 1:
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
            # Ctrl-C: the threads end with the next piece that they send, and are not waited for.
            self._stop()
            raise
        return raised

    def sleep(self, seconds: float) -> None:
        """Return after ``seconds``.

        :raises Stopped: another part has failed meanwhile.
        """
        with self._changed:
            if not self._stopped:
                self._clock.wait(self._changed, seconds)
        self._check()

    def meter(self) -> Callable[[int], None]:
        """Return what counts the bytes of one part: it is called with how many are sent, which are
        fewer than before after a failure, and raises Stopped when another part has failed."""
        before = 0

        def show(sent: int) -> None:
            nonlocal before
            change, before = sent - before, sent
            self._check()
            with self._changed:
                self._sent += change
                if self._progress is not None and self._sent > self._shown:
                    self._shown = min(self._sent, self._total)
                    self._progress(self._shown, self._total)

        return show

    def _stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _check(self) -> None:
        if self._stopped:
            raise Stopped
