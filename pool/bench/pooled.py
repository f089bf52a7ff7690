"""The pool's own way to job ids: alone, while it refills, many at once, and with webhooks.

The pool belongs to this bench alone; a daemon of its own fills it. Between requests it is paused,
so that a request finds the server quiet unless its flow is about refilling.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from pool.bench import processes
from pool.bench.measure import CallCounter, Calls, Sample, logged_calls
from pool.config.loader import load
from pool.cvat import connect
from pool.errors import PoolError
from pool.handles import Request
from pool.model import Outcome, TemplateStatus
from pool.taskpool import TaskPool

#: Names of the templates, which make the same tasks: one is filled once and then rests, of
#: another there is always something to refill; the last is in a project with a webhook.
RESTING = "bench"
REFILLING = "bench-refill"
HOOKED = "bench-webhooks"

#: Requests in flight at once.
AT_ONCE = 20
#: Tasks that the refilling pool lacks when a request comes, and those that it has.
LACKING = 50
STOCK = 20
#: A request comes up to so many seconds after a create has begun.
MOMENT = 0.2
#: Seconds until a request has its jobs, or something that the daemon is to do has been done.
PATIENCE = 120.0
#: Seconds between two looks at the store.
LOOK = 0.01


class Supply:
    """A pool whose calls are counted, and which refills on request only."""

    def __init__(self, pool: TaskPool, daemon: processes.Process, counter: CallCounter) -> None:
        self.pool = pool
        self.daemon = daemon
        self.counter = counter

    def level(self, template: str) -> TemplateStatus:
        """Return how many tasks of a template are in which state."""
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
                raise PoolError(f"the bench waited {PATIENCE:g} s for {what}")
            time.sleep(LOOK)


@contextmanager
def open_supply(
    config: Path, environment: Mapping[str, str], *, log_options: Sequence[str] = ()
) -> Iterator[Supply]:
    """Start a daemon, with its log beside the configuration, and open the pool that it fills."""
    settings, counter = load(config), CallCounter()
    with (
        processes.daemon(config, environment, config.parent, log_options=log_options) as daemon,
        connect(settings.cvat, environment, on_call=counter.on_call) as cvat,
        TaskPool(settings, cvat=cvat) as pool,
    ):
        yield Supply(pool, daemon, counter)


# --- The flows -----------------------------------------------------------------------------------


class Hits:
    """One request at a time, of a pool that rests."""

    def __init__(
        self,
        supply: Supply,
        pictures: Sequence[bytes],
        *,
        mark: str,
        template: str = RESTING,
    ) -> None:
        self.template = template
        self.counter = supply.counter
        self._supply = supply
        self._pictures = pictures
        self._mark = mark

    def prepare(self) -> None:
        """Have a warm task, and a server with nothing else to do."""
        self._supply.ensure_warm(self.template, 1)

    def run(self, number: int) -> list[Sample]:
        """One request, from its data to its job ids."""
        return [self._ask(number)]

    def settle(self) -> None:
        """Wait until what is done after the job ids are out is done, too."""
        self._supply.wait_for_names()

    def _ask(self, number: int) -> Sample:
        files = [
            (f"frame{number:03d}_{index:03d}.jpg", picture)
            for index, picture in enumerate(self._pictures)
        ]
        name = f"{self._mark} {self.template} {number}"
        began, started = time.time(), time.perf_counter()
        request = self._supply.pool.submit(self.template, files, name=name)
        request.jobs(timeout=PATIENCE)
        ours_ms = (time.perf_counter() - started) * 1000
        return self._sample(request, began, ours_ms)

    def _sample(self, request: Request, began: float, ours_ms: float) -> Sample:
        record = request.record
        claimed, uploaded = record.handed_out_at or began, record.uploaded_at or began
        finished, ended = record.finished_at or began, began + ours_ms / 1000
        return Sample(
            task_id=record.task_id or 0,
            ours_ms=ours_ms,
            began=began,
            ended=ended,
            post_ms=(uploaded - claimed) * 1000,
            hit=record.outcome is Outcome.HIT,
            steps_ms={
                "claim": (claimed - began) * 1000,
                "post": (uploaded - claimed) * 1000,
                "import_and_polls": (finished - uploaded) * 1000,
                "hand_over": (ended - finished) * 1000,
            },
        )


class RefillingHits(Hits):
    """One request at a time, each at some moment of a refill of :data:`LACKING` tasks."""

    def __init__(
        self,
        supply: Supply,
        pictures: Sequence[bytes],
        *,
        mark: str,
        rng: random.Random,
    ) -> None:
        super().__init__(supply, pictures, mark=mark, template=REFILLING)
        self._rng = rng
        self._before = 0
        #: Tasks that the daemon made while requests were being served, or just before.
        self.refilled = 0

    def prepare(self) -> None:
        """Take tasks out until the pool lacks enough, and have the daemon begin to refill."""
        supply, template = self._supply, self.template
        supply.ensure_warm(template, STOCK, up_to=STOCK)
        while supply.level(template).warm > STOCK:
            supply.pool.acquire(template)
        self._before = supply.made(template)
        supply.pool.resume(template)
        supply.wait_for(lambda: supply.level(template).creating > 0, "a refill to begin")
        time.sleep(self._rng.uniform(0.0, MOMENT))

    def settle(self) -> None:
        self._supply.rest(self.template)
        # The request took one.
        self.refilled += self._supply.made(self.template) - self._before + 1
        super().settle()


class ConcurrentHits(Hits):
    """:data:`AT_ONCE` requests in flight at once."""

    def prepare(self) -> None:
        self._supply.ensure_warm(self.template, AT_ONCE)

    def run(self, number: int) -> list[Sample]:
        together = threading.Barrier(AT_ONCE)

        def ask(one: int) -> Sample:
            together.wait(PATIENCE)
            return self._ask(number * AT_ONCE + one)

        with ThreadPoolExecutor(AT_ONCE) as callers:
            return list(callers.map(ask, range(AT_ONCE)))


class HookedHits(Hits):
    """One request at a time, whose end a webhook announces. The calls that the daemon makes
    meanwhile count, too."""

    def __init__(self, supply: Supply, pictures: Sequence[bytes], *, mark: str) -> None:
        super().__init__(supply, pictures, mark=mark, template=HOOKED)
        self._before: Calls = {}

    def run(self, number: int) -> list[Sample]:
        self._before = logged_calls(self._supply.daemon.log)
        return super().run(number)

    def settle(self) -> None:
        super().settle()
        now = logged_calls(self._supply.daemon.log)
        for operation, each in now.items():
            for seconds in each[len(self._before.get(operation, [])) :]:
                self.counter.on_call(operation, seconds, "ok")


def install_webhook(config: Path, url: str, environment: Mapping[str, str]) -> str:
    """Install the webhook as a user does; return why it does not work, "" when it does.

    :raises PoolError: it was not installed.
    """
    said, complaint = processes.command(
        "webhook", "install", "--config", config, "--url", url, "--json", environment=environment
    )
    try:
        (report,) = json.loads(said)
    except ValueError:
        raise PoolError(f"the webhook was not installed: {complaint}") from None
    if report["reachable"]:
        return ""
    return str(report["error"] or report["delivery"] or "the webhook was not tried")
