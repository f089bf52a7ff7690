"""The parts of one process at work on a pool, wired together: started once, stopped in order."""

from __future__ import annotations

import math
import os
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from typing import Final, TypeVar

from pool.clock import Clock, StoreClock
from pool.config.settings import Settings, Template, Templates
from pool.cvat import CvatClient, OnCall
from pool.errors import CvatForbidden, CvatRefusedCredentials, PoolClosed, PoolError
from pool.events.feed import Feed
from pool.logs import get_logger
from pool.maintenance.clock_jumps import ClockJumps
from pool.maintenance.finalize import Finalize
from pool.maintenance.heartbeat import Heartbeat, new_owner
from pool.maintenance.reload import Reload
from pool.requests.breaker import Breaker
from pool.requests.concurrency import Concurrency
from pool.requests.dispatcher import Dispatcher
from pool.requests.local_dispatcher import LocalDispatcher
from pool.requests.placement import Placement
from pool.requests.recovery import Recovery
from pool.requests.runner import Runner
from pool.requests.sending import Sender
from pool.requests.shared_spool import SharedSpool
from pool.requests.showing import Showing
from pool.requests.slot_storage import SlotStorages
from pool.requests.slots import Filler
from pool.requests.spool import Spool
from pool.store import Store, open_store
from pool.tracking.tracker import Finished, Tracker
from pool.tracking.webhook_health import WebhookHealth

log = get_logger(__name__)

T = TypeVar("T")

#: Connections that are opened ahead of need: one for an upload, one for a poll.
CONNECTIONS: Final = 2
#: Seconds by which the clock may be wrong without a word.
TOLERANCE: Final = 1.0
#: Seconds between two looks whether the configuration file has changed.
LOOK_EVERY: Final = 1.0


class Process:
    """The parts that hand out, upload and track, for the library and for the daemon alike.

    ``on_call`` is called with every call to the server, as
    :class:`pool.cvat.CvatClient` says; a ``cvat`` that is given has its own.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        store: Store | None = None,
        cvat: CvatClient | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        on_call: OnCall | None = None,
    ) -> None:
        self.settings = settings
        self.owner = new_owner()
        #: What is in force now; the daemon replaces it when the configuration changes.
        self.templates = Templates(settings.templates)
        self._reload: Reload | None = None
        self._next_look = -math.inf
        self.store: Store = store if store is not None else open_store(settings.store.url)
        self.clock: Clock = clock or StoreClock(self.store.time)
        self._own_store = store is None
        self._own_cvat = cvat is None
        self._cvat_client = cvat
        self._on_call = on_call
        self._guard = threading.Lock()
        self._started = False
        self._closed = False
        #: The version that has upgraded the store, once that was logged.
        self._newer: str | None = None
        self.clock_jumps = ClockJumps(self.store, self.owner, clock=self.clock)
        self._afterwards = ThreadPoolExecutor(1, thread_name_prefix="finalize")
        #: Wakes all who wait for what happens, here and in other processes.
        self.feed = Feed(self.store, clock=self.clock)
        self.tracker = Tracker(
            self.store,
            self.cvat,
            self.templates,
            WebhookHealth(self.store, self.templates, settings.cvat.organization, clock=self.clock),
            owner=self.owner,
            clock=self.clock,
            rng=rng,
        )
        self.heartbeat = Heartbeat(
            self.store,
            self.owner,
            spool=lambda: self.spool.id,
            spools=lambda: self.spool.troubles,
            cut_off=lambda: self.breaker.cut_off,
            clock=self.clock,
            afterwards=self._after_heartbeat,
        )
        self.recovery = Recovery(
            self.store,
            self.tracker,
            owner=self.owner,
            judged_at=self.heartbeat.judged_at,
            spools=lambda: self.spool.ids,
            clock=self.clock,
        )
        self.breaker = Breaker(
            self.store,
            self.cvat,
            owner=self.owner,
            spool=lambda: self.spool.id,
            clock=self.clock,
            rng=rng,
        )
        self.placement = Placement(
            self.store,
            self.cvat,
            self.recovery,
            self.breaker,
            owner=self.owner,
            max_queued=settings.daemon.max_queued,
            feed=self.feed,
            clock=self.clock,
        )
        address = settings.store.spool_address
        #: One folder for each pool, so that two that were given the same do not meet in it.
        self.spool = Spool(
            settings.store.spool_folder / self.store.pool_id,
            limit=settings.store.spool_limit,
            shared=None if address is None else SharedSpool(address, self.store.pool_id),
            register=lambda spool: self.store.keep_spool(spool, now=self.clock.now()),
        )
        self.storages = SlotStorages(self.store.pool_id)
        self.showing = Showing(
            self.store,
            self.cvat,
            self.storages,
            settings.cvat,
            self.templates,
            owner=self.owner,
            afterwards=partial(self._do_afterwards, self._finalize_slots),
            clock=self.clock,
            rng=rng,
        )
        self.filler = Filler(self.store, self.storages, filled=self.showing.soon, clock=self.clock)
        self.finalize = Finalize(
            self.store, self.cvat, self.showing, self.templates, clock=self.clock
        )
        self.sender = Sender(
            self.store,
            self.cvat,
            self.tracker,
            self.spool,
            self.filler,
            self.breaker,
            look_up_assignee=partial(self._do_afterwards, self.finalize.look_up),
            clock=self.clock,
            rng=rng or random.Random(),
        )
        self.concurrency = Concurrency(self.store, self.cvat, clock=self.clock)
        self.runner = Runner(
            self.store,
            self.placement,
            self.sender,
            self.recovery,
            self.tracker,
            self.spool,
            self.filler,
            self.breaker,
            max_queued=settings.daemon.max_queued,
            clock=self.clock,
        )
        self.local_dispatcher = LocalDispatcher(
            self.dispatcher, self.store, self.breaker, clock=self.clock
        )
        self.runner.on_queued(self.local_dispatcher.wake)
        self.tracker.listen(self.concurrency.ended)
        self.tracker.listen(partial(self._do_afterwards, self.concurrency.learn))
        self.tracker.listen(partial(self._do_afterwards, self._finalize))
        self.tracker.listen(lambda _: self.local_dispatcher.place_freed())

    def dispatcher(self) -> Dispatcher:
        """Return a new dispatcher of this process."""
        return Dispatcher(
            self.store,
            self.templates,
            self.placement,
            self.recovery,
            self.runner,
            self.sender,
            self.spool,
            self.filler,
            self.breaker,
            self.tracker,
            self.concurrency,
            owner=self.owner,
            clock=self.clock,
        )

    def _after_heartbeat(self) -> None:
        if isinstance(self.clock, StoreClock) and abs(wrong := self.clock.compare()) > TOLERANCE:
            log.warning("the clock was put right by the store's", seconds=round(wrong, 1))
        self.clock_jumps.look()
        newer = self.store.newer_version()
        if newer is not None and newer != self._newer:
            log.info(f"the store was upgraded by version {newer}, and this one goes on with it")
            self._newer = newer
        self.recovery.run_once()

    def cvat(self) -> CvatClient:
        """The client for the server, made when it is first needed.

        :raises ConfigError: no credentials were found.
        """
        with self._guard:
            if self._cvat_client is None:
                from pool.cvat import connect

                self._cvat_client = connect(self.settings.cvat, on_call=self._on_call)
            return self._cvat_client

    def renew_credentials(self) -> None:
        """Use the credentials that are found now, and try at once what was held because others
        were refused. Where none are found, those in use stay."""
        from pool.cvat import find_credentials

        with self._guard:
            cvat = self._cvat_client if self._own_cvat else None
        try:
            if cvat is not None:
                cvat.use(find_credentials(self.settings.cvat, os.environ))
            for template, hold in self.store.holds().items():
                if hold.code in (CvatRefusedCredentials.code, CvatForbidden.code):
                    self.store.release_hold(template, now=self.clock.now())
        except PoolError as error:
            log.error("credentials not renewed", why=str(error))
        else:
            log.info("credentials renewed")

    def follow_file(self) -> None:
        """Follow the file that the settings come from: see :meth:`follow_configuration`. The daemon
        does that by itself, in a service."""
        self._reload = Reload(self.settings, self.templates, clock=self.clock)

    def follow_configuration(self) -> Templates:
        """Put a changed file in force, and return the templates. The file is looked at no more
        often than every :data:`LOOK_EVERY` seconds.

        A process with outdated templates would ask for tasks that are no longer kept warm."""
        now = self.clock.monotonic()
        if self._reload is not None and now >= self._next_look:
            self._next_look = now + LOOK_EVERY
            if self._reload.run_once().credentials:
                self.renew_credentials()
        return self.templates

    def template(self, name: str) -> Template:
        """Return a template as the configuration is now.

        :raises UnknownTemplate: the configuration has no such template.
        """
        return self.follow_configuration().named(name)

    def start(self, *, connect: bool = False) -> None:
        """Begin to track; starting twice does nothing. With ``connect``, connections to the
        server are opened meanwhile, so that the first request does not have to.

        :raises PoolClosed: after :meth:`close`.
        """
        with self._guard:
            if self._closed:
                raise PoolClosed
            if self._started:
                return
            self._started = True
            # Before anything is owned: another process would take it over at once otherwise.
            self.spool.register()
            self.heartbeat.start()
            self.tracker.start()
        if connect:
            threading.Thread(target=self._connect, name="connect", daemon=True).start()

    def close(self, timeout: float | None = None) -> None:
        """Send what waits for others of this process, where no daemon serves it, stop tracking and
        let go of everything, within ``timeout`` seconds, by default ``daemon.stop_timeout``;
        closing twice does nothing."""
        with self._guard:
            if self._closed:
                return
            self._closed = True
        patience = self.settings.daemon.stop_timeout if timeout is None else timeout
        end = self.clock.monotonic() + patience
        self.local_dispatcher.close(patience)
        self.tracker.stop(max(0.0, end - self.clock.monotonic()))
        self.feed.close()
        # The daemon names and assigns what is left.
        self.settle(max(0.0, end - self.clock.monotonic()))
        self.showing.close()
        self._afterwards.shutdown(wait=False, cancel_futures=True)
        if self._started:
            self.heartbeat.stop()
        if self._own_cvat and self._cvat_client is not None:
            self._cvat_client.close()
        if self._own_store:
            self.store.close()

    def _connect(self) -> None:
        try:
            self.cvat().warm_up(CONNECTIONS)
        except PoolError as error:
            # Best effort: the next call reports the failure.
            log.info("no connections opened ahead", why=str(error))

    def settle(self, timeout: float) -> None:
        """Wait, ``timeout`` seconds at most, for what this process does after the job ids are out:
        slots that are to be shown, names, assignments and data that was kept."""
        end = self.clock.monotonic() + timeout
        self.showing.settle(timeout)
        wait([self._afterwards.submit(int)], max(0.0, end - self.clock.monotonic()))

    def finalize_soon(self, pooled_id: str) -> None:
        """Do on another thread what is left for a ready task, such as hiding frames."""
        self._do_afterwards(self.finalize.finalize, pooled_id)

    def _do_afterwards(self, what: Callable[[T], None], subject: T) -> None:
        """Run something on another thread; no caller waits for it."""

        def run() -> None:
            try:
                what(subject)
            except PoolError as error:
                log.info("to be done later", what=what.__name__, why=str(error))

        # Also while this closes: a caller may have its jobs, and close, before the tracker says
        # that they are there. What comes later is left to the daemon.
        with suppress(RuntimeError):
            self._afterwards.submit(run)

    def _finalize_slots(self, shown: Sequence[str]) -> None:
        """Name and assign what is shown in a carrier, and its task."""
        self.finalize.finalize(*shown)

    def _finalize(self, finished: Finished) -> None:
        """Rename, assign and drop data that was kept."""
        # The end may have been found by its lease alone: the store knows the request.
        task, importing = self.store.task_on_server(finished.task_id) or (None, None)
        ended = []
        for member in importing.members if importing else ():
            request = self.store.request(member.request_id)
            if request is None or (request.spooled and request.state.finished):
                ended.append(member.request_id)
        self.spool.drop(*ended)
        if task is not None and not finished.code:
            self.finalize.finalize(task.id)
