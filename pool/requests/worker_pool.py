"""A thread pool that templates share, none of which may take all threads."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Final

from pool.logs import get_logger

log = get_logger(__name__)

#: Jobs that are done at the same time.
WORKERS: Final = 16
#: The share of the workers that one template gets at most: the others never have to wait for one
#: whose uploads are slow.
SHARE: Final = 0.75


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Job:
    """Work for a template. ``serves``: it is for a request. ``call_off`` is called instead of
    ``run`` when the pool stops before it is begun."""

    template: str
    run: Callable[[], None]
    call_off: Callable[[], None]
    serves: bool = True


class WorkerPool:
    """Runs jobs on threads, in round-robin order over the templates. Thread-safe."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._share = max(1, int(workers * SHARE))
        # One more, for what is done beside the jobs.
        self._threads = ThreadPoolExecutor(workers + 1, thread_name_prefix="dispatch")
        self._changed = threading.Condition()
        #: What waits for a worker, by template, and what workers do.
        self._ready: dict[str, deque[Job]] = {}
        self._running: list[Job] = []
        self._beside = False
        self._stopped = False
        self._on_room: Callable[[], None] = lambda: None

    @property
    def stopped(self) -> bool:
        """Whether nothing more is begun."""
        return self._stopped

    def on_room(self, listener: Callable[[], None]) -> None:
        """Have ``listener`` called when a worker has become free."""
        self._on_room = listener

    def jobs(self, template: str) -> list[Job]:
        """Return the jobs of a template that run or wait for a worker."""
        with self._changed:
            running = [job for job in self._running if job.template == template]
            return [*running, *self._ready.get(template, ())]

    def room(self, template: str) -> int:
        """Return how many jobs of a template would be begun at once."""
        with self._changed:
            free = self._workers - len(self._running) - sum(map(len, self._ready.values()))
            mine = self._share - len(self.jobs(template))
            return 0 if self._stopped else max(0, min(free, mine))

    def put(self, job: Job) -> None:
        """Run a job as soon as there is a worker for it."""
        with self._changed:
            if not self._stopped:
                self._ready.setdefault(job.template, deque()).append(job)
                self._start_workers()
                return
        job.call_off()

    def put_beside(self, run: Callable[[], object]) -> bool:
        """Run something on a thread that is kept for that; False while it is busy."""
        with self._changed:
            if self._beside or self._stopped:
                return False
            self._beside = True
            self._threads.submit(self._do_beside, run)
            return True

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until nothing runs or waits; False when something still does after ``timeout``
        seconds."""
        with self._changed:
            return self._changed.wait_for(
                lambda: not (self._running or self._ready or self._beside), timeout
            )

    def stop(self, timeout: float | None = None) -> bool:
        """Begin nothing more, and call off what no worker has begun; then as :meth:`drain`."""
        self._on_room = lambda: None
        with self._changed:
            self._stopped = True
            left = list(chain(*self._ready.values()))
            self._ready.clear()
        finished = self.drain(timeout)
        self._threads.shutdown(wait=False)
        for job in left:
            job.call_off()
        return finished

    def _start_workers(self) -> None:
        """Start what there are workers for. With the lock held."""
        while len(self._running) < self._workers and not self._stopped:
            busy = [job.template for job in self._running]
            name = next((name for name in self._ready if busy.count(name) < self._share), None)
            if name is None:
                return
            jobs = self._ready.pop(name)
            job = jobs.popleft()
            if jobs:
                self._ready[name] = jobs  # behind the others
            self._running.append(job)
            self._threads.submit(self._work, job)

    def _work(self, job: Job) -> None:
        try:
            job.run()
        except Exception:
            log.exception("job failed", template=job.template)
        finally:
            with self._changed:
                self._running.remove(job)
                self._start_workers()
                self._changed.notify_all()
        self._on_room()

    def _do_beside(self, run: Callable[[], object]) -> None:
        try:
            run()
        except Exception:
            log.exception("job failed")
        finally:
            with self._changed:
                self._beside = False
                self._changed.notify_all()
        self._on_room()
