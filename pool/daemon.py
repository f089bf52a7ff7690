"""The daemon: keeps the pools of one store filled, until it is told to stop."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

from starlette.types import ASGIApp

from pool.check import before_start
from pool.clock import Clock, SystemClock, Wakeup
from pool.config.loader import load
from pool.config.settings import Settings
from pool.cvat import CvatClient
from pool.errors import CannotListen, PoolError, StoreError
from pool.http.app import create_app
from pool.http.ending import Ending
from pool.http.middleware import tokens_in
from pool.http.schemas import Request
from pool.http.server import HttpServer
from pool.logs import get_logger
from pool.maintenance.cleanup import Cleanup
from pool.maintenance.clock_jumps import Timekeeping
from pool.maintenance.deletion import Deletion
from pool.maintenance.lease_expiry import LeaseExpiry
from pool.maintenance.reconcile import DOUBT, Reconcile
from pool.maintenance.refill import Refill
from pool.maintenance.reload import Reload
from pool.maintenance.retirement import Retirement
from pool.maintenance.scheduler import Scheduler
from pool.maintenance.server_probe import ServerProbe
from pool.model import ConfigRecord, Event, Job, RequestRecord
from pool.observability.health import ServerContact
from pool.observability.metrics import Metrics
from pool.observability.observation import Observation
from pool.process import Engine
from pool.requests.dispatcher import Dispatcher
from pool.store import Store
from pool.taskpool import TaskPool
from pool.tracking.webhook_receiver import WebhookReceiver
from pool.tracking.webhook_setup import WebhookSetup

log = get_logger(__name__)

#: Seconds that are left of the time for stopping.
TimeLeft = Callable[[], float]

#: Seconds for which one daemon maintains the store after it last said so, and between two times
#: of saying so. A daemon that cannot say so stops maintaining before its term ends.
TERM = 6.0
RENEWAL = 2.0
#: Seconds between two looks at what time alone makes due.
TICK = 0.2
#: Seconds between two runs of the slower services.
ADOPT_EVERY = 2.0
RELOAD_EVERY = 1.0
LEASES_EVERY = 5.0
DELETE_EVERY = 5.0
RETIREMENT_EVERY = 15.0
LEASE_EXPIRY_EVERY = 15.0
RECONCILE_EVERY = 10.0
FINALIZE_EVERY = 10.0
CLEANUP_EVERY = 600.0
DISPATCH_EVERY = 2.0
PROBE_EVERY = 600.0


class Daemon:
    """Maintains a store: refills, tracks, recycles, deletes; and listens for webhooks.

    Of several daemons on one store one maintains it and listens, and the others stand by to take
    over. ``api_token`` is what callers from other machines have to show.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        store: Store | None = None,
        cvat: CvatClient | None = None,
        clock: Clock | None = None,
        api_token: str | None = None,
    ) -> None:
        for result in before_start(settings, {**os.environ, "POOL_API_TOKEN": api_token or ""}):
            if result.error is not None:
                raise result.error
        self._tokens = tokens_in(api_token)
        self.settings = settings
        clock = clock or SystemClock()
        metrics, contact = Metrics(), ServerContact(clock=clock)

        def hear(operation: str, seconds: float, result: str) -> None:
            metrics.call(operation, seconds, result)
            contact.call(operation, seconds, result)

        self.engine = Engine(settings, store=store, cvat=cvat, clock=clock, on_call=hear)
        self.observation = Observation(
            self.engine, describe=self._describe, metrics=metrics, contact=contact
        )
        self._reload = Reload(settings, self.engine.templates, load, clock=clock)
        self._kept: ConfigRecord | None = None
        self._stop = threading.Event()
        #: Ends a pause of :meth:`_loop`, and whether anything was committed since the last one.
        self._news = Wakeup(clock)
        self._changed = False
        self._maintaining = False
        self._stood_by = False
        self.deliveries: WebhookReceiver | None = None
        self._http = HttpServer(self._app, settings.daemon)
        self._ending = Ending()
        self._scheduler: Scheduler | None = None
        self._refill: Refill | None = None
        self._hear_no_more: Callable[[], None] = lambda: None
        self._dispatch: Dispatcher | None = None

    # --- Running ------------------------------------------------------------------------------

    def run(self, *, on_ready: Callable[[], None] | None = None) -> None:
        """Run until :meth:`stop`; ``on_ready`` is called once, when maintenance has begun.

        :raises StoreError: the store cannot be used.
        :raises ConfigError: no credentials were found.
        :raises CannotListen: another program has the address.
        """
        self.engine.cvat()
        self.engine.start()
        log.info(
            "daemon started",
            server=self.settings.cvat.url,
            store=self.settings.store.url,
            templates=len(self.settings.templates),
        )
        for warning in self.settings.warnings:
            log.warning("doubtful configuration", what=warning)
        try:
            self._loop(on_ready)
        finally:
            left = self._time_to_stop()
            # Long polls answer with the present state, and no new upload begins.
            self._ending.tell()
            log.info("stopping", within=round(left(), 1))
            self._end_maintenance(left)
            self.engine.close(left())
            log.info("daemon stopped")

    @property
    def url(self) -> str:
        """Where it listens; "" while it stands by."""
        return self._http.url

    def stop(self) -> None:
        """Have :meth:`run` return in an orderly way; safe to call from a signal handler."""
        self._stop.set()

    def install_signals(self) -> None:
        """SIGTERM and SIGINT stop in an orderly way; a second one stops at once. SIGHUP reads
        the configuration again."""

        def handle(number: int, _frame: FrameType | None) -> None:
            if self._stop.is_set():
                # Not by an exception: leaving would wait for calls that hang. Whatever is half
                # done then is settled by the next daemon, as after a power cut.
                os._exit(128 + number)
            self.stop()

        signal.signal(signal.SIGTERM, handle)
        signal.signal(signal.SIGINT, handle)
        signal.signal(signal.SIGHUP, lambda *_: self._reload.force())

    def _loop(self, on_ready: Callable[[], None] | None) -> None:
        clock = self.engine.clock
        renewal = clock.monotonic()
        term_ends = 0.0
        while not self._stop.is_set():
            now = clock.monotonic()
            if now >= renewal:
                renewal = now + RENEWAL
                if self._renew_term():
                    term_ends = now + TERM
                    self._listen()
                    if self._begin_maintenance() and on_ready is not None:
                        on_ready()
                        on_ready = None
                elif self._maintaining and now >= term_ends - RENEWAL:
                    log.warning("maintenance lost; standing by")
                    self._end_maintenance(self._time_to_stop())
                else:
                    self._stood_by = True
            if self._maintaining:
                self._wake_services()
            self._news.wait(TICK)

    def _renew_term(self) -> bool:
        now, store = self.engine.clock.now(), self.engine.store
        try:
            broken_off = None if self._maintaining else store.broken_off_maintenance(now=now)
            if not store.acquire_maintenance(self.engine.owner, until=now + TERM, now=now):
                return False
            if broken_off is not None:
                # Nobody knows what happened last, so look before anything is handed out.
                doubted = store.doubt_warm(until=now + DOUBT)
                log.warning("unclean stop", owner=broken_off, tasks_to_verify=doubted)
            return True
        except StoreError as error:
            log.error("term not renewed", why=str(error))
            return False

    def _app(self) -> ASGIApp:
        engine = self.engine
        deliveries = WebhookReceiver(
            engine.store,
            engine.tracker,
            engine.templates,
            engine.cvat().job_url,
            clock=engine.clock,
        )
        deliveries.start()
        self.deliveries = deliveries
        self._ending = Ending()
        return create_app(
            engine,
            self._dispatcher(),
            deliveries,
            observation=self.observation,
            ending=self._ending,
            tokens=self._tokens,
        )

    def _describe(self, record: RequestRecord, jobs: Sequence[Job]) -> Mapping[str, Any]:
        """Return what sinks are sent of a request: what ``GET /v1/requests/{id}`` answers."""
        task_url = TaskPool.over(self.engine).task_url
        return Request.of(record, task_url, jobs=jobs).model_dump(mode="json")

    def _listen(self) -> None:
        """Listen at the daemon's address, unless it does already."""
        if self._http.listening:
            return
        try:
            self._http.start()
        except CannotListen as error:
            if not (self._maintaining or self._stood_by):
                self.engine.store.release_maintenance(self.engine.owner)
                raise
            # Nobody looks on, and pools are kept filled without it too; try again.
            log.error("not listening", why=str(error))
        else:
            log.info("listening", url=self._http.url)

    def _listen_no_more(self, left: TimeLeft) -> None:
        self._ending.tell()
        self._http.stop(left(), late=self._ending.cut_off)
        if self.deliveries is not None:
            self.deliveries.stop(left())
            self.deliveries = None

    def _hear(self, events: Sequence[Event]) -> None:
        self._changed = True
        if events:
            self._news.set()

    def _wake_services(self) -> None:
        """Refill as soon as any process has taken a task, or when it is quiet again; and serve
        what was queued."""
        changed, self._changed = self._changed, False
        if self._scheduler is None:
            return
        if changed or (self._refill is not None and self._refill.stepped_back):
            self._scheduler.wake("refill")
        if changed or (self._dispatch is not None and self._dispatch.is_due()):
            self._scheduler.wake("dispatch")

    # --- Maintenance ----------------------------------------------------------------------------

    def _begin_maintenance(self) -> bool:
        """Start the services; False when they run already."""
        if self._maintaining:
            return False
        engine, settings = self.engine, self.settings
        self._hear_no_more = engine.feed.on(self._hear)
        # It may have stood by for long, and another daemon has kept its own configuration.
        self._kept = None
        self._reload_configuration()
        store, cvat, clock = engine.store, engine.cvat(), engine.clock
        # Whatever was held before this term may be mended.
        engine.breaker.try_now()
        refill = Refill(
            store,
            cvat,
            engine.templates,
            engine.breaker,
            owner=engine.owner,
            clock=clock,
            warm=engine.warm,
        )
        retirement = Retirement(store, engine.templates, clock=clock)
        lease_expiry = LeaseExpiry(store, cvat, clock=clock)
        deletion = Deletion(store, cvat, owner=engine.owner, clock=clock)
        reconcile = Reconcile(
            store,
            cvat,
            engine.templates,
            http_timeout=settings.cvat.timeout,
            verify_every=settings.daemon.verify_every,
            clock=clock,
            warm=engine.warm,
        )
        cleanup = Cleanup(store, engine.spool, keep=settings.store.keep_finished, clock=clock)
        dispatch = self._dispatcher()
        setup = WebhookSetup(store, cvat, settings, clock=clock)
        probe = ServerProbe(cvat, setup, engine.breaker, engine.templates)
        timekeeping = Timekeeping(store, clock=clock)
        scheduler = Scheduler(clock=clock, before=timekeeping.run_once)
        count = self.observation.metrics.reconciled
        scheduler.add("reconcile", lambda: count(reconcile.run_once()), every=RECONCILE_EVERY)
        scheduler.add("retirement", retirement.run_once, every=RETIREMENT_EVERY)
        scheduler.add("lease_expiry", lease_expiry.run_once, every=LEASE_EXPIRY_EVERY)
        scheduler.add("refill", refill.run_once, every=settings.daemon.tick)
        scheduler.add("reload", self._reload_configuration, every=RELOAD_EVERY)
        scheduler.add("adopt", engine.recovery.adopt, every=ADOPT_EVERY)
        scheduler.add("leases", self._watch_leases, every=LEASES_EVERY)
        scheduler.add("delete", deletion.run_once, every=DELETE_EVERY)
        scheduler.add("finalize", engine.finalize.run_once, every=FINALIZE_EVERY)
        scheduler.add("cleanup", cleanup.run_once, every=CLEANUP_EVERY)
        scheduler.add("dispatch", dispatch.run_once, every=DISPATCH_EVERY)
        scheduler.add("probe", probe.run_once, every=PROBE_EVERY)
        refill.on_room(lambda: scheduler.wake("refill"))
        dispatch.on_room(lambda: scheduler.wake("dispatch"))
        self.observation.begin(scheduler)
        scheduler.start()
        self._scheduler, self._refill = scheduler, refill
        self._maintaining = True
        log.info("maintenance begun", owner=engine.owner)
        return True

    def _dispatcher(self) -> Dispatcher:
        """What serves requests, from the first that comes over HTTP to the end of the term."""
        if self._dispatch is None:
            engine = self.engine
            self._dispatch = Dispatcher(
                engine.store,
                engine.templates,
                engine.placement,
                engine.runner,
                engine.spool,
                engine.breaker,
                owner=engine.owner,
                warm=engine.warm,
                clock=engine.clock,
            )
        return self._dispatch

    def _time_to_stop(self) -> TimeLeft:
        """The time that all steps of a stop share, counted from now."""
        clock = self.engine.clock
        end = clock.monotonic() + self.settings.daemon.stop_timeout
        return lambda: max(0.0, end - clock.monotonic())

    def _end_maintenance(self, left: TimeLeft) -> None:
        if not self._maintaining:
            return
        self._maintaining = False
        self._hear_no_more()
        refill, dispatch, scheduler = self._refill, self._dispatch, self._scheduler
        self._dispatch = None
        # First nothing is begun any more, so that all that is under way has the whole time to end.
        if refill is not None:
            refill.stop(0.0)
        if dispatch is not None:
            dispatch.stop(0.0)
        # Before the term is given up: whoever takes over listens at the same address.
        self._listen_no_more(left)
        if refill is not None:
            # A create that runs is quick to end, and half-made tasks are worth avoiding.
            refill.drain(left())
        if dispatch is not None:
            dispatch.drain(left())
        if scheduler is not None:
            scheduler.stop(left())
        self.observation.end(left())
        try:
            self.engine.store.release_maintenance(self.engine.owner)
        except PoolError as error:
            log.warning("maintenance not released", why=str(error))

    def _reload_configuration(self) -> None:
        """Put a changed configuration, or access token, in force, and have the services look at it
        at once; what was held may be possible now."""
        report = self._reload.run_once()
        if report.credentials:
            self.engine.renew_credentials()
        if (report.read or report.credentials) and self._scheduler is not None:
            self.engine.breaker.try_now()
            for service in ("refill", "retirement", "dispatch", "probe"):
                self._scheduler.wake(service)
        record = self._reload.record
        try:
            if record != self._kept:
                self.engine.store.keep_configuration(record)
                self._kept = record
        except StoreError as error:
            # The next run tries again.
            log.warning("state of the configuration not kept", why=str(error))

    def _watch_leases(self) -> None:
        """Follow tasks into which their callers upload by themselves."""
        for handout in self.engine.store.watched_leases():
            self.engine.tracker.watch_lease(handout)


def leave() -> None:
    """End the process, whose work is done, without waiting for threads whose calls hang.

    What such a call was about stands in the store, and is settled by the next daemon.
    """
    if threading.active_count() > 1:
        # Threads of executors are waited for at the end of a process even where they are daemons.
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
