"""Run the services at their intervals, on APScheduler. This module alone knows when."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent import futures
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from apscheduler.events import EVENT_JOB_MAX_INSTANCES, EVENT_JOB_MISSED, JobEvent
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.interval import IntervalTrigger

from pool.clock import Clock
from pool.errors import TermLost
from pool.logs import get_logger

log = get_logger(__name__)

#: Seconds between two runs of a service. Refill and dispatch are woken by news as well.
INTERVALS: dict[str, float] = {
    "reload": 1.0,
    "adopt": 2.0,
    "contact": 10.0,
    "dispatch": 2.0,
    "showing": 2.0,
    "delete": 5.0,
    "history": 5.0,
    "leases": 5.0,
    "finalize": 10.0,
    "observe": 10.0,
    "reconcile": 10.0,
    "carriers": 15.0,
    "lease_expiry": 15.0,
    "retirement": 15.0,
    "stream_expiry": 15.0,
    "cleanup": 600.0,
    "probe": 600.0,
    "sweep": 600.0,
}
#: Services that run at the same time at the most: all of them, so that those whose calls to CVAT
#: hang keep no other waiting. Threads are made as they are needed.
WORKERS = 24


@dataclass(slots=True)
class ServiceRecord:
    """How a service has been doing that runs every ``every`` seconds. ``last_success`` is seconds
    since the epoch; ``succeeded_at`` is the same, and ``added_at`` when it began, by the clock that
    never jumps."""

    every: float = 0.0
    added_at: float = 0.0
    succeeded_at: float | None = None
    runs: int = 0
    errors: int = 0
    missed: int = 0
    blocked: int = 0
    last_success: float | None = None


@dataclass(slots=True)
class _Service:
    name: str
    run_once: Callable[[], object]
    every: float
    record: ServiceRecord
    running: bool = False
    wanted: bool = False
    woken: bool = False
    began: float = 0.0


class Scheduler:
    """Runs each service by itself every so often, and at once when it is woken; ``before`` each
    run, what all of them rely on.

    A wake-up while the service runs is not lost: it runs once more. Whether it runs is known
    here and not asked of APScheduler, which skips a run that is due during another, and calls its
    listeners at times before it writes its own state, which then overwrites what they change.
    """

    def __init__(self, *, clock: Clock, before: Callable[[], object] | None = None) -> None:
        self._clock = clock
        self._before = before
        self._guard = threading.Lock()
        self._services: dict[str, _Service] = {}
        self._stopping = False
        self._scheduler = BackgroundScheduler(
            executors={"default": ThreadPoolExecutor(WORKERS)},
            job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1},
            timezone=UTC,
        )
        #: For those that are woken: for APScheduler that would be a new job each time, at the price
        #: of a hand-out.
        self._woken = futures.ThreadPoolExecutor(WORKERS, thread_name_prefix="woken")
        self._scheduler.add_listener(self._listen, EVENT_JOB_MISSED | EVENT_JOB_MAX_INSTANCES)

    def add(self, name: str, run_once: Callable[[], object], *, every: float | None = None) -> None:
        """Run ``run_once`` every ``every`` seconds, by default as :data:`INTERVALS` has it, a tenth
        of it earlier or later; the first time at once."""
        every = INTERVALS[name] if every is None else every
        record = ServiceRecord(every=every, added_at=self._clock.monotonic())
        service = _Service(name, run_once, every, record)
        self._services[name] = service
        self._scheduler.add_job(
            self._run,
            IntervalTrigger(seconds=every, jitter=every / 10),
            args=(service,),
            id=name,
            next_run_time=datetime.now(UTC),
        )

    def start(self) -> None:
        """Begin; returns at once."""
        self._scheduler.start()

    def wake(self, name: str) -> None:
        """Run a service as soon as possible, and again if it is running right now. All run at the
        start, so before it this does nothing."""
        if not self.running:
            return
        service = self._services[name]
        with self._guard:
            service.wanted = True
            if service.running or service.woken:
                return
            service.woken = True
        with suppress(RuntimeError):  # stopped since
            self._woken.submit(self._run, service)

    def stop(self, timeout: float | None = None) -> bool:
        """Run nothing more, and wait for runs that are under way; False when some still were
        after ``timeout`` seconds."""
        self._stopping = True
        if not self._scheduler.running:
            return True
        # This waits for as long as it takes, which a call that hangs can make long.
        end = threading.Thread(target=self._shutdown, name="scheduler end", daemon=True)
        end.start()
        end.join(timeout)
        return not end.is_alive()

    def _shutdown(self) -> None:
        self._scheduler.shutdown()
        self._woken.shutdown()

    @property
    def running(self) -> bool:
        """Whether services are run."""
        return bool(self._scheduler.running) and not self._stopping

    @property
    def records(self) -> Mapping[str, ServiceRecord]:
        """How each service has been doing."""
        return {name: service.record for name, service in self._services.items()}

    def _run(self, service: _Service) -> None:
        with self._guard:
            service.woken = False
            if service.running:
                service.wanted = True
                return
            service.running = True
        again = not self._stopping
        while again:
            with self._guard:
                service.wanted = False
                service.began = self._clock.monotonic()
            self._run_once(service)
            with self._guard:
                again = service.running = service.wanted and not self._stopping

    def _run_once(self, service: _Service) -> None:
        record = service.record
        try:
            if self._before is not None:
                self._before()
            service.run_once()
        except TermLost as error:
            # It ends with its term, which is no fault.
            log.info("service ended", service=service.name, why=str(error))
        except Exception:
            record.errors += 1
            log.exception("service failed", service=service.name)
        else:
            record.runs += 1
            record.last_success = self._clock.now()
            record.succeeded_at = self._clock.monotonic()

    def _listen(self, event: JobEvent) -> None:
        service = self._services.get(event.job_id)
        if service is None:
            return
        if event.code == EVENT_JOB_MISSED:
            service.record.missed += 1
            return
        # Due while it runs, which is harmless once, and worth a warning when the run takes
        # longer than its interval.
        took = self._clock.monotonic() - service.began
        if took > service.every:
            service.record.blocked += 1
            log.warning("service still busy", service=service.name, seconds=round(took))
