"""The daemon: keeps the pools of one store filled, until it is told to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType

from pool.clock import Clock
from pool.cvat import CvatClient
from pool.engine import Engine
from pool.errors import PoolError, StoreError
from pool.logs import get_logger
from pool.services.deletion import Deletion
from pool.services.finish import Finish
from pool.services.recycle import Recycle
from pool.services.refill import Refill
from pool.services.scheduler import Scheduler
from pool.services.settle import Settle
from pool.settings import Settings
from pool.store.base import Store

log = get_logger(__name__)

#: Seconds for which one daemon maintains the store after it last said so, and between two times
#: of saying so. A daemon that cannot say so stops maintaining before its term ends.
TERM = 10.0
RENEWAL = 3.0
#: Seconds between two looks for hand-outs of other processes.
LOOK = 0.2
#: Seconds between two runs of the slower services.
ADOPT_EVERY = 2.0
LEASES_EVERY = 5.0
DELETE_EVERY = 5.0
RECYCLE_EVERY = 15.0
SETTLE_EVERY = 20.0
FINISH_EVERY = 20.0


class Daemon:
    """Maintains a store: refills, tracks, recycles, deletes.

    Of several daemons on one store one maintains it, and the others stand by to take over.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        store: Store | None = None,
        cvat: CvatClient | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.settings = settings
        self.engine = Engine(settings, store=store, cvat=cvat, clock=clock)
        self._stop = threading.Event()
        self._maintaining = False
        self._scheduler: Scheduler | None = None
        self._refill: Refill | None = None

    # --- Running ------------------------------------------------------------------------------

    def run(self, *, on_ready: Callable[[], None] | None = None) -> None:
        """Run until :meth:`stop`; ``on_ready`` is called once, when maintenance has begun.

        :raises StoreError: the store cannot be used.
        :raises ConfigError: no credentials were found.
        """
        self.engine.cvat()
        self.engine.start()
        log.info(
            "daemon started",
            server=self.settings.cvat.url,
            store=self.settings.store.url,
            templates=len(self.settings.templates),
        )
        try:
            self._loop(on_ready)
        finally:
            self._end_maintenance()
            self.engine.close()
            log.info("daemon stopped")

    def stop(self) -> None:
        """Have :meth:`run` return in an orderly way; safe to call from a signal handler."""
        self._stop.set()

    def install_signals(self) -> None:
        """SIGTERM and SIGINT stop in an orderly way; a second one stops at once."""

        def handle(number: int, _frame: FrameType | None) -> None:
            if self._stop.is_set():
                raise SystemExit(128 + number)
            self.stop()

        signal.signal(signal.SIGTERM, handle)
        signal.signal(signal.SIGINT, handle)

    def _loop(self, on_ready: Callable[[], None] | None) -> None:
        clock = self.engine.clock
        renewal = clock.monotonic()
        term_ends = 0.0
        token: object = None
        while not self._stop.is_set():
            now = clock.monotonic()
            if now >= renewal:
                renewal = now + RENEWAL
                if self._renew_term():
                    term_ends = now + TERM
                    if self._begin_maintenance() and on_ready is not None:
                        on_ready()
                        on_ready = None
                elif self._maintaining and now >= term_ends - RENEWAL:
                    log.warning("maintenance lost; standing by")
                    self._end_maintenance()
            if self._maintaining:
                token = self._notice_hand_outs(token)
            seen = self.engine.handed_out.count
            self.engine.handed_out.wait(seen, LOOK)

    def _renew_term(self) -> bool:
        now = self.engine.clock.now()
        try:
            return self.engine.store.acquire_maintenance(
                self.engine.owner, until=now + TERM, now=now
            )
        except StoreError as error:
            log.error("term not renewed", why=str(error))
            return False

    def _notice_hand_outs(self, before: object) -> object:
        """Refill as soon as anybody, in whatever process, has taken a task, or when it is quiet
        again."""
        try:
            token = self.engine.store.change_token()
        except StoreError as error:
            log.error("store not readable", why=str(error))
            return before
        waits = self._refill is not None and self._refill.stepped_back
        if (token != before or waits) and self._scheduler is not None:
            self._scheduler.wake("refill")
        return token

    # --- Maintenance ----------------------------------------------------------------------------

    def _begin_maintenance(self) -> bool:
        """Start the services; False when they run already."""
        if self._maintaining:
            return False
        engine, settings = self.engine, self.settings
        store, cvat, clock = engine.store, engine.cvat(), engine.clock
        refill = Refill(
            store, cvat, settings.templates, owner=engine.owner, clock=clock, warm=engine.warm
        )
        recycle = Recycle(store, cvat, settings.templates, clock=clock)
        deletion = Deletion(store, cvat, owner=engine.owner, clock=clock)
        settle = Settle(store, cvat, http_timeout=settings.cvat.timeout, clock=clock)
        finish = Finish(store, cvat, clock=clock)
        scheduler = Scheduler(clock=clock)
        scheduler.add("recycle", recycle.run_once, every=RECYCLE_EVERY)
        scheduler.add("refill", refill.run_once, every=settings.daemon.tick)
        scheduler.add("adopt", engine.tracker.adopt, every=ADOPT_EVERY)
        scheduler.add("leases", self._watch_leases, every=LEASES_EVERY)
        scheduler.add("delete", deletion.run_once, every=DELETE_EVERY)
        scheduler.add("settle", settle.run_once, every=SETTLE_EVERY)
        scheduler.add("finish", finish.run_once, every=FINISH_EVERY)
        refill.on_room(lambda: scheduler.wake("refill"))
        scheduler.start()
        self._scheduler, self._refill = scheduler, refill
        self._maintaining = True
        log.info("maintenance begun", owner=engine.owner)
        return True

    def _end_maintenance(self) -> None:
        if not self._maintaining:
            return
        self._maintaining = False
        if self._refill is not None:
            # A create that runs is quick to end, and half-made tasks are worth avoiding.
            self._refill.stop(self.settings.daemon.stop_timeout)
        if self._scheduler is not None:
            self._scheduler.stop()
        try:
            self.engine.store.release_maintenance(self.engine.owner)
        except PoolError as error:
            log.warning("maintenance not released", why=str(error))

    def _watch_leases(self) -> None:
        """Follow tasks into which their callers upload by themselves."""
        for handout in self.engine.store.watched_leases():
            self.engine.tracker.watch_lease(handout)
