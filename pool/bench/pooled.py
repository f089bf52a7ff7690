"""The pool's own way to job ids: alone, while it refills, many at once, and with webhooks; and what
its daemon costs that has nothing to do.

The pool belongs to this bench alone; a daemon of its own fills it. Between requests it is paused,
so that a request finds the server quiet unless its flow is about refilling.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pool.bench import processes
from pool.bench.measure import PATIENCE, CallCounter, Flow, Sample, logged_calls, wait_for
from pool.clock import SystemClock
from pool.config.loader import load
from pool.cvat import CvatClient, connect
from pool.errors import InputError, PoolError
from pool.model import Outcome
from pool.status import TemplateStatus
from pool.taskpool import TaskPool
from pool.tracking.webhook_setup import WebhookSetup, target_of

#: Names of the templates, which make the same tasks: one is filled once and then rests, of
#: another there is always something to refill; one is in a project with a webhook, and one is for
#: the idle daemon.
RESTING = "bench"
REFILLING = "bench-refill"
HOOKED = "bench-webhooks"
IDLE = "bench-idle"

#: Requests in flight at once.
AT_ONCE = 20
#: Tasks that the refilling pool lacks when a request comes, and those that it has.
LACKING = 50
STOCK = 20
#: A request comes up to so many seconds after a create has begun.
MOMENT = 0.2
#: Seconds between two looks at the store.
LOOK = 0.01
#: Tasks of the idle daemon, and seconds from the last create until it counts as idle.
IDLE_TASKS = 100
CALM = 2.0


class Supply:
    """A pool whose calls are counted, and the daemon that fills it.

    What waits for tasks raises PoolError when the server creates none, or the daemon has ended.
    """

    def __init__(self, pool: TaskPool, cvat: CvatClient, daemon: processes.Process) -> None:
        self.pool = pool
        self.daemon = daemon
        self._cvat = cvat

    def level(self, template: str) -> TemplateStatus:
        """Return how many tasks of a template are in which state."""
        return next(row for row in self.pool.status().templates if row.name == template)

    def made(self, template: str) -> int:
        """Return how many tasks are there or on their way."""
        row = self.level(template)
        return row.warm + row.creating

    def ensure_warm(self, template: str, count: int, *, up_to: int | None = None) -> None:
        """Fill a resting pool when it has fewer than ``count`` warm tasks: until it is full, or
        has ``up_to``."""
        row = self.level(template)
        if row.warm < count:
            self.pool.resume(template)
            self.fill(template, row.target if up_to is None else up_to)

    def fill(self, template: str, count: int) -> None:
        """Wait until a pool has ``count`` warm tasks, and pause it."""
        self.wait_until_warm(template, count)
        self.rest(template)

    def wait_until_warm(self, template: str, count: int) -> None:
        """Wait until a pool has ``count`` warm tasks."""

        def warm() -> bool:
            status, row = self.pool.status(), self.level(template)
            if reason := row.hold_reason or status.hold_reason:
                raise PoolError(reason)
            return row.warm >= count

        self.wait_for(warm, f"{count} warm tasks")

    def rest(self, template: str) -> None:
        """Pause a pool, and wait for the creates under way."""
        self.pool.pause(template)
        self.wait_for(lambda: self.level(template).creating == 0, "creates to end")

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Look until a condition holds."""

        def look() -> bool:
            self.daemon.check()
            return condition()

        wait_for(look, what, every=LOOK)

    def install_webhook(self) -> str:
        """Have a webhook end the imports of :data:`HOOKED`, and of no other template, which may
        be in an organization or project of the user's.

        Return why it does not work, "" when it does.
        """
        given = self.pool.settings
        settings = replace(given, templates={HOOKED: given.templates[HOOKED]})
        setup = WebhookSetup(self.pool.store, self._cvat, settings, clock=SystemClock())
        (report,) = map(setup.ping, setup.install(target_of(self.daemon.listening_at())))
        if report.reachable:
            return ""
        return str(report.error or report.delivery or "the webhook was not tried")


@contextmanager
def open_supply(
    config: Path, environment: Mapping[str, str], counter: CallCounter | None = None
) -> Iterator[Supply]:
    """Start a daemon, with its log beside the configuration, and open the pool that it fills."""
    settings = load(config)
    on_call = counter.on_call if counter is not None else None
    with (
        processes.daemon(config, environment) as daemon,
        connect(settings.cvat, environment, on_call=on_call) as cvat,
        TaskPool(settings, cvat=cvat) as pool,
    ):
        yield Supply(pool, cvat, daemon)


def named_files(number: int, pictures: Sequence[bytes]) -> list[tuple[str, bytes]]:
    """Return the files of one request, whose names are those of no other."""
    return [(f"frame{number:03d}_{at:03d}.jpg", picture) for at, picture in enumerate(pictures)]


# --- The flows ------------------------------------------------------------------------------------


class Hits(Flow):
    """One request at a time, of a pool that rests."""

    template = RESTING

    def __init__(
        self, supply: Supply, counter: CallCounter, pictures: Sequence[bytes], mark: str
    ) -> None:
        super().__init__(counter)
        self._supply = supply
        self._pictures = pictures
        self._mark = mark

    def prepare(self) -> None:
        """Have a warm task, and a server with nothing else to do."""
        self._supply.ensure_warm(self.template, 1)

    def run(self, number: int) -> list[Sample]:
        return [self._request(number)]

    def settle(self) -> None:
        """Wait until the tasks are named."""
        store = self._supply.pool.store
        self._supply.wait_for(
            lambda: not store.due_steps(now=float("inf"), limit=1), "tasks to be named"
        )

    def _request(self, number: int) -> Sample:
        """Make one request, from its data to its job ids."""
        files = named_files(number, self._pictures)
        name = f"{self._mark} {self.template} {number}"
        began, started = time.time(), time.perf_counter()
        request = self._supply.pool.submit(self.template, files, name=name)
        request.jobs(timeout=PATIENCE)
        took = time.perf_counter() - started
        record, ended = request.record, began + took
        claimed, uploaded = record.handed_out_at or began, record.uploaded_at or began
        finished = record.finished_at or began
        steps = {
            "claim": claimed - began,
            "post": uploaded - claimed,
            "import_and_polls": finished - uploaded,
            "hand_over": ended - finished,
        }
        return Sample(
            task_id=record.task_id or 0,
            ours_ms=took * 1000,
            began=began,
            ended=ended,
            post_ms=steps["post"] * 1000,
            hit=record.outcome is Outcome.HIT,
            steps_ms={step: seconds * 1000 for step, seconds in steps.items()},
        )


class RefillingHits(Hits):
    """One request at a time, each at some moment of a refill of :data:`LACKING` tasks.

    ``refilled`` counts the tasks that the daemon made while requests were served, or just before.
    """

    template = REFILLING

    def __init__(
        self, supply: Supply, counter: CallCounter, pictures: Sequence[bytes], mark: str, seed: int
    ) -> None:
        super().__init__(supply, counter, pictures, mark)
        self._moments = random.Random(seed)
        self._before = 0
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
        time.sleep(self._moments.uniform(0.0, MOMENT))

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

        def request(one: int) -> Sample:
            together.wait(PATIENCE)
            return self._request(number * AT_ONCE + one)

        with ThreadPoolExecutor(AT_ONCE) as callers:
            return list(callers.map(request, range(AT_ONCE)))


class HookedHits(Hits):
    """One request at a time, whose end a webhook announces. The calls that the daemon makes
    meanwhile count, too."""

    template = HOOKED

    def run(self, number: int) -> list[Sample]:
        self._before = logged_calls(self._supply.daemon.log)
        return super().run(number)

    def settle(self) -> None:
        super().settle()
        for operation, each in logged_calls(self._supply.daemon.log).items():
            for seconds in each[len(self._before.get(operation, [])) :]:
                self.counter.on_call(operation, seconds)


# --- An idle daemon -------------------------------------------------------------------------------


def measure_idle(config: Path, environment: Mapping[str, str], seconds: float) -> dict[str, Any]:
    """Fill a pool of :data:`IDLE_TASKS` tasks of :data:`IDLE` and watch its daemon do nothing.

    Return its share of one core in percent, its resident memory in megabytes (10^6 bytes), and
    its calls to the server, which it logs: so they are counted on any server.
    """
    with open_supply(config, environment) as supply:
        supply.wait_until_warm(IDLE, IDLE_TASKS)
        # A caller that is idle as well is not what is measured.
        supply.pool.close()
        process, log = supply.daemon.process.pid, supply.daemon.log
        time.sleep(CALM)
        before, cpu_before, began = logged_calls(log), _cpu_seconds(process), time.monotonic()
        time.sleep(seconds)
        took = time.monotonic() - began
        counts = {
            operation: len(each) - len(before.get(operation, ()))
            for operation, each in logged_calls(log).items()
        }
        return {
            "tasks": IDLE_TASKS,
            "seconds": round(took, 1),
            "cpu_percent": round(100 * (_cpu_seconds(process) - cpu_before) / took, 2),
            "rss_mb": round(resident_bytes(process) / 1e6, 1),
            "calls_per_minute": round(sum(counts.values()) * 60 / took, 1),
            "calls": {operation: count for operation, count in counts.items() if count},
        }


def check_idle_possible() -> None:
    """
    :raises InputError: this system does not show what a process costs.
    """
    if not Path("/proc/self/stat").is_file():
        raise InputError("--idle reads /proc, which only Linux has")


def _cpu_seconds(process: int) -> float:
    """Return user and system time of a process (proc(5), fields 14 and 15 of ``stat``)."""
    # The name in parentheses may contain anything.
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(process: int) -> int:
    """Return the memory of a process that is in use, on Linux."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
