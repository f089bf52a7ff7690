"""A bounded number of threads that work off jobs of several kinds, each kind in its turn."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from typing import Final

from pool.logs import get_logger

log = get_logger(__name__)

#: Jobs of one kind that run at the same time at most, as a share of all: the others never have to
#: wait for a kind whose jobs are slow.
SHARE: Final = 0.75

Job = Callable[[], None]


class Crew:
    """At most ``size`` threads, started as they are needed.

    They are daemon threads: a process that has to end does not wait for what they do.
    """

    def __init__(self, size: int, *, name: str) -> None:
        self._size = size
        self._share = max(1, int(size * SHARE))
        self._name = name
        self._condition = threading.Condition()
        self._waiting: dict[str, deque[Job]] = {}
        self._running: Counter[str] = Counter()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._stopping = False

    def put(self, kind: str, job: Job) -> None:
        """Have a job done as soon as it is its turn; one that raises is logged. Once the crew is
        stopped, nothing is begun any more."""
        with self._condition:
            if self._stopping:
                return
            self._waiting.setdefault(kind, deque()).append(job)
            # Those that are idle may have been called for jobs that were put before.
            if self._idle < self._jobs() and len(self._threads) < self._size:
                self._begin_thread()
            self._condition.notify()

    def room(self, kind: str) -> int:
        """How many jobs of a kind would begin at once if they were put now."""
        with self._condition:
            free = self._size - self._running.total() - self._jobs()
            mine = self._share - self._running[kind] - len(self._waiting.get(kind, ()))
            return 0 if self._stopping else max(0, min(free, mine))

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until nothing runs or waits; False when something still did after ``timeout``
        seconds."""
        with self._condition:
            return self._condition.wait_for(
                lambda: not (self._running.total() or self._waiting), timeout
            )

    def stop(self, timeout: float | None = None) -> bool:
        """Begin nothing more, and wait for what runs; False as for :meth:`drain`."""
        with self._condition:
            self._stopping = True
            self._waiting.clear()
            self._condition.notify_all()
        return self.drain(timeout)

    def _jobs(self) -> int:
        return sum(map(len, self._waiting.values()))

    def _begin_thread(self) -> None:
        name = f"{self._name}-{len(self._threads)}"
        thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._threads.append(thread)
        self._idle += 1
        thread.start()

    def _run(self) -> None:
        while (taken := self._take()) is not None:
            kind, job = taken
            try:
                job()
            except Exception:
                log.exception("job failed", crew=self._name, kind=kind)
            finally:
                with self._condition:
                    self._running -= Counter([kind])
                    self._idle += 1
                    self._condition.notify_all()

    def _take(self) -> tuple[str, Job] | None:
        with self._condition:
            while True:
                if self._stopping:
                    return None
                kind = self._next_kind()
                if kind is not None:
                    break
                self._condition.wait()
            jobs = self._waiting.pop(kind)
            job = jobs.popleft()
            if jobs:
                # Behind the others: kinds take turns.
                self._waiting[kind] = jobs
            self._running[kind] += 1
            self._idle -= 1
            return kind, job

    def _next_kind(self) -> str | None:
        return next((kind for kind in self._waiting if self._running[kind] < self._share), None)
