"""Runs the services at their intervals, on APScheduler. This module alone knows when."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from apscheduler.events import (
    EVENT_JOB_ERROR,
    EVENT_JOB_EXECUTED,
    EVENT_JOB_MAX_INSTANCES,
    EVENT_JOB_MISSED,
    EVENT_JOB_SUBMITTED,
    JobEvent,
)
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.interval import IntervalTrigger

from pool.clock import Clock
from pool.logs import get_logger

log = get_logger(__name__)


@dataclass(slots=True)
class ServiceRecord:
    """How a service has been doing. ``last_success`` is seconds since the epoch."""

    runs: int = 0
    errors: int = 0
    missed: int = 0
    blocked: int = 0
    last_success: float | None = None
    last_error: str = ""


@dataclass(slots=True)
class _Service:
    name: str
    run_once: Callable[[], object]
    every: float
    began: float = 0.0
    record: ServiceRecord = field(default_factory=ServiceRecord)
    wanted: bool = False
    running: bool = False


class Scheduler:
    """Runs each service by itself every so often, and at once when it is woken.

    A wake-up while the service runs is not lost: it runs once more. (APScheduler alone would
    skip the run silently, since ``max_instances`` is 1.)
    """

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._guard = threading.Lock()
        self._services: dict[str, _Service] = {}
        self._scheduler = BackgroundScheduler(
            executors={"default": ThreadPoolExecutor(4)},
            job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1},
            timezone=UTC,
        )
        self._scheduler.add_listener(
            self._listen,
            EVENT_JOB_SUBMITTED
            | EVENT_JOB_EXECUTED
            | EVENT_JOB_ERROR
            | EVENT_JOB_MISSED
            | EVENT_JOB_MAX_INSTANCES,
        )

    def add(self, name: str, run_once: Callable[[], object], *, every: float) -> None:
        """Run ``run_once`` every ``every`` seconds, a tenth of it earlier or later; the first
        time at once."""
        service = _Service(name, run_once, every)
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
        """Run a service as soon as possible, and again if it is running right now."""
        service = self._services[name]
        with self._guard:
            service.wanted = True
            if service.running:
                return  # it looks at ``wanted`` when it ends
        self._run_now(name)

    def _run_now(self, name: str) -> None:
        try:
            self._scheduler.modify_job(name, next_run_time=datetime.now(UTC))
        except JobLookupError:
            log.debug("woken after the stop", service=name)

    def stop(self) -> None:
        """End; runs that are under way finish first."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=True)

    @property
    def records(self) -> Mapping[str, ServiceRecord]:
        """How each service has been doing."""
        return {name: service.record for name, service in self._services.items()}

    def _run(self, service: _Service) -> None:
        while True:
            with self._guard:
                service.wanted = False
            service.run_once()
            with self._guard:
                if not service.wanted:
                    return

    def _listen(self, event: JobEvent) -> None:
        service = self._services.get(event.job_id)
        if service is None:
            return
        record = service.record
        if event.code == EVENT_JOB_SUBMITTED:
            service.running = True
            service.began = self._clock.monotonic()
        elif event.code == EVENT_JOB_EXECUTED:
            record.runs += 1
            record.last_success = self._clock.now()
            self._ended(service)
        elif event.code == EVENT_JOB_ERROR:
            record.errors += 1
            error: Any = getattr(event, "exception", None)
            record.last_error = str(error)
            log.error("service failed", service=event.job_id, why=repr(error))
            self._ended(service)
        elif event.code == EVENT_JOB_MISSED:
            record.missed += 1
        elif event.code == EVENT_JOB_MAX_INSTANCES:
            self._blocked(service)

    def _blocked(self, service: _Service) -> None:
        """A run was due while one was under way. Two wake-ups at the same moment do that, and
        it is harmless; a run that takes longer than its interval is worth a warning."""
        took = self._clock.monotonic() - service.began
        if took > service.every:
            service.record.blocked += 1
            log.warning("service still busy", service=service.name, seconds=round(took))

    def _ended(self, service: _Service) -> None:
        """APScheduler counts the run as ended now, so a wake-up since its last look counts."""
        with self._guard:
            service.running = False
            wanted = service.wanted
        if wanted:
            self._run_now(service.name)
