"""A pool of a bench's own, and the daemon that fills it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from pool.bench import processes
from pool.bench.calls import CallCounter
from pool.bench.processes import Process
from pool.errors import PoolError
from pool.model import TemplateStatus
from pool.taskpool import TaskPool

#: Seconds until something that the daemon is to do has been done.
PATIENCE = 120.0
#: Seconds between two looks at the store.
LOOK = 0.01


class Supply:
    """A pool whose calls are counted, and which refills only when it is told to."""

    def __init__(self, pool: TaskPool, daemon: Process, counter: CallCounter) -> None:
        self.pool = pool
        self.daemon = daemon
        self.counter = counter

    def level(self, template: str) -> TemplateStatus:
        """How many tasks of a template are in which state."""
        return next(row for row in self.pool.status().templates if row.name == template)

    def made(self, template: str) -> int:
        """How many tasks are there or on their way."""
        row = self.level(template)
        return row.warm + row.creating

    def ensure_warm(self, template: str, count: int, *, up_to: int | None = None) -> None:
        """Fill a resting pool when it has fewer than ``count`` warm tasks: until it is full, or
        has ``up_to``.

        :raises PoolError: the server does not create any.
        """
        row = self.level(template)
        if row.warm < count:
            self.pool.resume(template)
            self.fill(template, count=row.target if up_to is None else up_to)

    def fill(self, template: str, *, count: int) -> None:
        """Wait until a pool has ``count`` warm tasks, and have it rest.

        :raises PoolError: the server does not create any.
        """

        def filled() -> bool:
            row = self.level(template)
            if reason := row.hold_reason or self.pool.status().hold_reason:
                raise PoolError(reason)
            return row.warm >= count

        self.wait_for(filled, f"{count} warm tasks")
        self.rest(template)

    def rest(self, template: str) -> None:
        """Refill no more, and wait for the creates under way."""
        self.pool.pause(template)
        self.wait_for(lambda: self.level(template).creating == 0, "creates to end")

    def wait_for_names(self) -> None:
        """Wait until what is done after the job ids are out is done, too."""
        self.wait_for(
            lambda: not self.pool.store.due_steps(now=float("inf"), limit=1),
            "tasks to be named",
        )

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Look until a condition holds.

        :raises PoolError: it does not within :data:`PATIENCE` seconds, or the daemon has ended.
        """
        deadline = time.monotonic() + PATIENCE
        while not condition():
            self.daemon.check()
            if time.monotonic() > deadline:
                raise PoolError(f"the bench waited {PATIENCE:g} s in vain for {what}")
            time.sleep(LOOK)


@contextmanager
def open_supply(
    config: Path, environment: Mapping[str, str], *, log_options: Sequence[str] = ()
) -> Iterator[Supply]:
    """Start a daemon, with its log beside the configuration, and open the pool that it fills."""
    folder = config.parent
    with (
        processes.daemon(config, environment, folder, log_options=log_options) as daemon,
        _open_pool(config, environment) as (pool, counter),
    ):
        yield Supply(pool, daemon, counter)


@contextmanager
def _open_pool(
    config: Path, environment: Mapping[str, str]
) -> Iterator[tuple[TaskPool, CallCounter]]:
    from pool.config.loader import load
    from pool.cvat import connect

    settings, counter = load(config), CallCounter()
    cvat = connect(settings.cvat, environment, on_call=counter.on_call)
    try:
        with TaskPool(settings, cvat=cvat) as pool:
            yield pool, counter
    finally:
        cvat.close()
