"""What one daemon at a time does to a store: the services of a term of maintenance."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from pool.errors import StoreError
from pool.events.sinks import Sinks
from pool.http.schemas import Request
from pool.logs import get_logger
from pool.maintenance.carriers import Carriers
from pool.maintenance.cleanup import Cleanup
from pool.maintenance.deletion import Deletion
from pool.maintenance.lease_expiry import LeaseExpiry
from pool.maintenance.reconcile import Reconcile
from pool.maintenance.refill import Refill
from pool.maintenance.retirement import Retirement
from pool.maintenance.scheduler import Scheduler
from pool.maintenance.server_probe import ServerProbe
from pool.maintenance.stream_expiry import StreamExpiry
from pool.maintenance.term import Term
from pool.model import ConfigRecord, Event, RequestRecord
from pool.observability.observation import Observation
from pool.process import Process
from pool.taskpool import TaskPool
from pool.tracking.webhook_setup import WebhookSetup

log = get_logger(__name__)

#: Returns the seconds that are left for stopping.
TimeLeft = Callable[[], float]


class Maintenance:
    """The services of one term of maintenance. Nothing runs before :meth:`start`."""

    def __init__(self, process: Process, term: Term, observation: Observation) -> None:
        self._process = process
        self.term = term
        self._observation = observation
        #: The configuration that was saved in the store. None at first: another daemon may have
        #: saved its own meanwhile.
        self._kept: ConfigRecord | None = None
        #: Whether anything was committed since the services were woken last.
        self._changed = False
        self._unsubscribe: Callable[[], None] = lambda: None
        store, templates, clock = process.store, process.templates, process.clock
        settings, cvat = process.settings, process.cvat()
        self.scheduler = Scheduler(
            clock=clock, before=lambda: process.clock_jumps.run_once(term.number)
        )
        self.refill = Refill(
            store,
            cvat,
            templates,
            process.breaker,
            process.storages,
            owner=process.owner,
            clock=clock,
            on_room=partial(self.scheduler.wake, "refill"),
        )
        reconcile = Reconcile(
            store,
            cvat,
            templates,
            term,
            http_timeout=settings.cvat.timeout,
            verify_every=settings.daemon.verify_every,
            clock=clock,
        )
        retirement = Retirement(store, templates, clock=clock)
        lease_expiry = LeaseExpiry(store, cvat, templates, clock=clock)
        stream_expiry = StreamExpiry(store, templates, clock=clock)
        deletion = Deletion(store, cvat, term, owner=process.owner, clock=clock)
        cleanup = Cleanup(store, process.spool, keep=settings.store.keep_finished, clock=clock)
        carriers = Carriers(
            store,
            cvat,
            process.storages,
            settings.cvat,
            templates,
            term,
            verify_every=settings.daemon.verify_every,
            clock=clock,
        )
        probe = ServerProbe(
            cvat, WebhookSetup(store, cvat, settings, clock=clock), process.breaker, templates
        )
        self.sinks = Sinks(settings.events, store, process.feed, self._describe, clock=clock)
        #: Guards whether events are counted and delivered.
        self._guard = threading.Lock()
        self._ended = False
        self._stop_counting: Callable[[], None] | None = None
        add = self.scheduler.add
        add("reconcile", lambda: observation.metrics.reconciled(reconcile.run_once()))
        add("carriers", carriers.run_once)
        add("retirement", retirement.run_once)
        add("lease_expiry", lease_expiry.run_once)
        add("stream_expiry", stream_expiry.run_once)
        add("refill", self.refill.run_once, every=settings.daemon.tick)
        add("leases", process.tracker.watch_leases)
        add("delete", deletion.run_once)
        add("finalize", process.finalize.run_once)
        add("cleanup", cleanup.run_once)
        add("probe", probe.run_once)
        add("history", observation.history.run_once)
        add("observe", self._observe)

    def start(self, config: ConfigRecord) -> None:
        """Start the services; ``config`` is the configuration in force."""
        process = self._process
        self._unsubscribe = process.feed.on(self._hear)
        self.keep_configuration(config)
        # What was held before this term may work now.
        process.breaker.try_now()
        try:
            # Before the first service causes events that are counted.
            self._observe()
        except StoreError as error:
            log.warning("event delivery not started", why=str(error))
        self.scheduler.start()
        # Not before: a daemon is ready while it takes over.
        self._observation.begin_maintenance(self.term, self.scheduler, self.sinks)
        log.info(
            f"maintenance begun: this daemon keeps the pools filled, in term {self.term.number}"
        )

    def _hear(self, _: Sequence[Event]) -> None:
        self._changed = True

    def wake_services(self) -> None:
        """Refill as soon as any process has taken a task, or when it is quiet again."""
        changed = self._changed
        # Only what was seen: the feed's thread may set it meanwhile.
        if changed:
            self._changed = False
        # Not by kinds of events: a hold that ends, a prewarm and a caller that waits make none.
        if changed or self.refill.stepped_back:
            self.scheduler.wake("refill")

    def keep_configuration(self, config: ConfigRecord) -> None:
        """Save the configuration in force, for processes that have none, if it has changed."""
        try:
            if config != self._kept:
                self._process.store.keep_configuration(config)
                self._kept = config
        except StoreError as error:
            # The next time tries again.
            log.warning("configuration state not saved", why=str(error))

    def follow_configuration(self) -> None:
        """Wake the services that depend on the configuration; end holds, since what was held may
        work now."""
        self._process.breaker.try_now()
        for service in ("refill", "retirement", "probe"):
            self.scheduler.wake(service)

    def begin_no_more(self) -> None:
        """Begin no more creates."""
        self._unsubscribe()
        self.refill.stop(0.0)

    def end(self, left: TimeLeft) -> None:
        """Wait for running work, within the time that is ``left``, and stop the services."""
        self.begin_no_more()
        self._observation.end_maintenance(self.term)
        # A running create ends soon, and half-made tasks are worth avoiding.
        self.refill.drain(left())
        self.scheduler.stop(left())
        with self._guard:
            self._ended = True
            if self._stop_counting is not None:
                self._stop_counting()
            self.sinks.stop(left())

    def _observe(self) -> None:
        """Start counting events and delivering them to sinks, unless that has started.

        :raises StoreError: the store cannot be used; the next run tries again.
        """
        with self._guard:
            if self._ended:
                return
            if self._stop_counting is None:
                self._stop_counting = self._process.feed.on(self._observation.metrics.take)
            self.sinks.start()

    def _describe(self, record: RequestRecord) -> Mapping[str, Any]:
        """Return a request as sinks receive it: as ``GET /v1/requests/{id}`` answers it."""
        store = self._process.store
        jobs = store.jobs_of(record.pooled_id, request_id=record.id) if record.pooled_id else ()
        task_url = TaskPool.over(self._process).task_url
        return Request.of(record, task_url, jobs=jobs).model_dump(mode="json")
