"""The daemon: serves callers until it is stopped, and maintains the store if no other does."""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from types import FrameType

from starlette.types import ASGIApp

from pool.check import before_start, spool_words
from pool.clock import Clock, Wakeup
from pool.config.settings import Settings
from pool.config.tokens import OPERATORS, Tokens, tokens_in
from pool.cvat import CvatClient
from pool.errors import StoreError, StoreOutdated
from pool.http.app import create_app
from pool.http.server import HttpServer
from pool.http.shutdown import Shutdown
from pool.logs import get_logger
from pool.maintenance import term as terms
from pool.maintenance.cleanup import Sweep
from pool.maintenance.reconcile import DOUBT
from pool.maintenance.reload import Reload
from pool.maintenance.scheduler import Scheduler
from pool.maintenance.term import Term
from pool.model import Event
from pool.observability.observation import Observation
from pool.observability.status import owner_in_words
from pool.process import Process
from pool.requests.dispatcher import DispatchReport
from pool.store import Store
from pool.tracking.webhook_receiver import WebhookReceiver
from pool.upkeep import Maintenance, TimeLeft

log = get_logger(__name__)

#: Seconds between two checks for work that becomes due by time alone; and between two for news, so
#: that a burst of hand-outs does not make a round of refilling for each.
TICK = 0.2
GAP = 0.02
#: Seconds between two rounds of dispatching at least that are due by time alone.
LEAST_GAP = 0.005
#: Seconds in which another signal to stop is the first one again: timeout(1), and wrappers that
#: pass on a Ctrl-C of the terminal, send it both to the process and to its group.
ECHO = 0.5
#: Seconds for giving up the term once the time to stop has passed.
LAST = 2.0


class Daemon:
    """Listens for callers and webhooks, serves requests and tracks imports, from its start to its
    end; and in its terms maintains the store (:class:`pool.upkeep.Maintenance`).

    Any number of daemons may be at work on one store, each at an address of its own. Callers from
    other machines need the ``api_token``.
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
        for result in before_start(settings, {**os.environ, OPERATORS: api_token or ""}):
            if result.error is not None:
                raise result.error
        self.settings = settings
        self._tokens = Tokens(settings.tokens, operators=tokens_in(api_token))
        self.process = Process(
            settings,
            store=store,
            cvat=cvat,
            clock=clock,
            on_call=lambda *call: self.observation.called(*call),
        )
        self._reload = Reload(
            settings, self.process.templates, self._tokens, clock=self.process.clock
        )
        self.observation = Observation(self.process, configuration=lambda: self._reload.record)
        self._http = HttpServer(self._app, settings.daemon)
        self._shutdown = Shutdown()
        self._receiver: WebhookReceiver | None = None
        #: The services that every daemon has, from :meth:`serve` on.
        self.scheduler = Scheduler(clock=self.process.clock)
        self.dispatcher = self.process.dispatcher()
        #: The services of the present term; None while another daemon maintains the store.
        self.maintenance: Maintenance | None = None
        #: Guards which maintenance that is.
        self._guard = threading.Lock()
        self._renewing = threading.Lock()
        #: The daemon that maintains the store in place of this one, once that was logged.
        self._maintained_by: str | None = None
        self._stop = threading.Event()
        #: What a newer version has made of the store, once it has.
        self._outdated: StoreOutdated | None = None
        #: Set when no more term is begun, and when the present one is renewed no more.
        self._leaving = threading.Event()
        self._left = threading.Event()
        self._term_thread: threading.Thread | None = None
        #: Ends a pause of :meth:`_loop`.
        self._news = Wakeup(self.process.clock)
        #: Whether a request was queued, and anything committed, since the dispatcher was woken.
        self._changed = self._queued = False
        self._unsubscribe: Callable[[], None] = lambda: None
        #: When the round was due that was woken last because of that.
        self._woken_for: float | None = None

    def run(self, *, on_ready: Callable[[], None] | None = None) -> None:
        """Run until :meth:`stop`, then close; ``on_ready`` is called once, when it can serve.

        :raises StoreError: the store cannot be used.
        :raises StoreOutdated: a newer version has changed the store meanwhile.
        :raises ConfigError: no credentials were found.
        :raises CannotListen: another program has the address.
        """
        try:
            self.process.cvat()
            self.process.spool.open()
            self.process.start()
            log.info(
                "daemon started",
                server=self.settings.cvat.url,
                store=self.settings.store.place,
                spool=spool_words(self.settings.store),
                templates=len(self.settings.templates),
            )
            for warning in self.settings.warnings:
                log.warning(f"probable mistake in the configuration: {warning}")
            self.serve()
            self.renew()
            self._term_thread = threading.Thread(target=self._keep_term, name="term", daemon=True)
            self._term_thread.start()
            if on_ready is not None:
                on_ready()
            self._loop()
        finally:
            self.close()
        if self._outdated is not None:
            raise self._outdated

    def close(self) -> None:
        """End the services and close the store, within ``daemon.stop_timeout``; :meth:`run` does
        this at its end. Closing twice does nothing."""
        left = self._time_to_stop()
        # Long polls answer with the present state, and no new upload begins.
        self._shutdown.begin()
        log.info(f"stopping, within {left():.0f} s")
        # Beside what callers wait for: another daemon maintains the store meanwhile.
        leaving = threading.Thread(target=self._leave, args=(left,), name="leave", daemon=True)
        leaving.start()
        self._unsubscribe()
        # First begin nothing new, so that running work has the whole time to end.
        self.dispatcher.stop(0.0)
        self._http.stop(left(), on_late=self._shutdown.cut_off)
        if self._receiver is not None:
            self._receiver.stop(left())
            self._receiver = None
        self.dispatcher.drain(left())
        self.scheduler.stop(left())
        leaving.join(left() + LAST)
        if self._term_thread is not None:
            self._term_thread.join(left())
        self.process.close(left())
        log.info("daemon stopped")

    @property
    def url(self) -> str:
        """The address at which it listens; "" before it does."""
        return self._http.url

    def stop(self) -> None:
        """Make :meth:`run` stop gracefully; safe to call from a signal handler."""
        self._stop.set()

    def install_signals(self) -> None:
        """Stop gracefully on SIGTERM and SIGINT, and at once on another one, unless it is an
        :data:`ECHO`. Reload the configuration on SIGHUP."""
        clock, first = self.process.clock, math.inf

        def handle(number: int, _frame: FrameType | None) -> None:
            nonlocal first
            first = min(first, clock.monotonic())
            if clock.monotonic() >= first + ECHO:
                # Not by an exception: that would wait for hanging calls. The next daemon recovers
                # what is unfinished, as after a power cut.
                os._exit(128 + number)
            self.stop()

        signal.signal(signal.SIGTERM, handle)
        signal.signal(signal.SIGINT, handle)
        signal.signal(signal.SIGHUP, lambda *_: self._reload.force())

    # --- Serving --------------------------------------------------------------------------------

    def serve(self) -> None:
        """Begin what every daemon does: listen, dispatch, track, follow the configuration.

        :raises StoreError: the store cannot be used.
        :raises CannotListen: another program has the address.
        """
        process = self.process
        self.dispatcher.on_room(partial(self.scheduler.wake, "dispatch"))
        # All are added before any starts: callers are served already, and wake them.
        self.scheduler.add("reload", self._follow_configuration)
        self.scheduler.add("adopt", self._adopt)
        self.scheduler.add("dispatch", self._dispatch)
        self.scheduler.add("showing", process.showing.run_once)
        self.scheduler.add("contact", self.observation.keep_contact)
        sweep = Sweep(process.store, process.spool, clock=process.clock)
        self.scheduler.add("sweep", sweep.run_once)
        self.observation.scheduler = self.scheduler
        self._unsubscribe = process.feed.on(self._hear)
        self.listen()
        process.heartbeat.announce(self._http.url)
        self.scheduler.start()

    def listen(self) -> None:
        """Listen at the daemon's address.

        :raises CannotListen: another program has it.
        """
        self._http.start()
        log.info("listening", url=self._http.url)

    def _app(self) -> ASGIApp:
        """Return the app for :class:`~pool.http.server.HttpServer`."""
        process = self.process
        self._receiver = WebhookReceiver(
            process.store,
            process.tracker,
            process.templates,
            process.cvat().job_url,
            clock=process.clock,
        )
        self._receiver.start()
        return create_app(
            process,
            self.dispatcher,
            self._receiver,
            observation=self.observation,
            shutdown=self._shutdown,
            tokens=self._tokens,
        )

    def _follow_configuration(self) -> None:
        """Apply a changed configuration or access token, and wake the services that depend on
        it."""
        report = self._reload.run_once()
        if report.credentials:
            self.process.renew_credentials()
        maintenance = self.maintenance
        if report.read or report.credentials:
            self.scheduler.wake("dispatch")
            if maintenance is not None:
                maintenance.follow_configuration()
        if maintenance is not None:
            maintenance.keep_configuration(self._reload.record)

    # --- Waking the services --------------------------------------------------------------------

    def _loop(self) -> None:
        while not self._stop.is_set():
            if self._has_lapsed():
                # Not here: what it waits for would keep requests waiting.
                threading.Thread(target=self._end_lapsed, name="lapsed", daemon=True).start()
            if self.maintenance is not None:
                self.maintenance.wake_services()
            self.wake_dispatcher()
            left = GAP
            while left > 0.0 and not self._stop.is_set():
                pause = max(LEAST_GAP, self._seconds_until_due(left))
                self._stop.wait(pause)
                left -= pause
                self._dispatch_if_due()
            self._news.wait(self._seconds_until_due(TICK))

    def _hear(self, events: Sequence[Event]) -> None:
        self._queued |= any(event.kind == "request.queued" for event in events)
        self._changed = True
        if events:
            self._news.set()

    def wake_dispatcher(self) -> None:
        """Serve what was queued, and what waits once anything has changed."""
        changed, queued = self._changed, self._queued
        # Only what was seen: the feed's thread may set the other meanwhile.
        if changed:
            self._changed = False
        if queued:
            self._queued = False
        # Hand-outs are frequent, and mostly no request waits.
        if queued or (changed and self.dispatcher.waits):
            self.scheduler.wake("dispatch")
        else:
            self._dispatch_if_due()

    def _dispatch_if_due(self) -> None:
        """Have a round of dispatching that is due by time alone, once for each time."""
        due_at = self.dispatcher.due_at
        if due_at != self._woken_for and self.dispatcher.is_due():
            self._woken_for = due_at
            self.scheduler.wake("dispatch")

    def _seconds_until_due(self, most: float) -> float:
        """Return the seconds until a round of dispatching is due by time alone, at most ``most``;
        one that it was woken for runs, and says itself when the next is due."""
        due_at = self.dispatcher.due_at
        if due_at is None or due_at == self._woken_for:
            return most
        return min(most, max(0.0, due_at - self.process.clock.monotonic()))

    def _adopt(self) -> int:
        """Take over what processes that are gone have left behind; hand over what is tracked here
        while CVAT answers others alone."""
        process = self.process
        return process.recovery.hand_over() if process.breaker.cut_off else process.recovery.adopt()

    def _dispatch(self) -> DispatchReport:
        report = self.dispatcher.run_once()
        if self._seconds_until_due(TICK) < TICK:
            # Sooner than the next look at it.
            self._news.set()
        return report

    # --- Terms of maintenance -------------------------------------------------------------------

    def _keep_term(self) -> None:
        """Renew the term, or try to begin one, until the daemon has left. On a thread of its own:
        a store that hangs keeps the services from nothing."""
        while not self._left.wait(terms.RENEWAL):
            try:
                self.renew()
            except Exception:
                log.exception("term not renewed")

    def renew(self) -> None:
        """Renew the term of maintenance, or begin one; begin or end the services with it."""
        with self._renewing:
            self._renew()

    def _renew(self) -> None:
        process = self.process
        present = self.maintenance
        try:
            cut_off = process.breaker.cut_off
            if present is not None and cut_off:
                self._end(present, "CVAT does not answer it")
                present.term.end()
            elif present is None or not present.term.renew():
                begun = None
                if not self._leaving.is_set() and not cut_off:
                    begun = Term.begin(process.store, process.owner, clock=process.clock)
                if begun is None:
                    self._end(present, "another daemon maintains the store")
                    self._note_maintainer()
                else:
                    self._begin(begun)
            process.breaker.note_holds()
        except StoreOutdated as error:
            # It can write nothing more.
            self._outdated = error
            self.stop()
        except StoreError as error:
            log.error("term not renewed", why=str(error))
        self._end_lapsed()

    def _begin(self, term: Term) -> None:
        """Begin the services of a term. Those of the one before go on, if no other process has
        maintained the store since, and they have not been ended."""
        present = self.maintenance
        if present is not None:
            if present.term.continues_as(term):
                return
            self._end(present, "its term is over")
        self._judge_unclean_stop(term)
        maintenance = Maintenance(self.process, term, self.observation)
        maintenance.start(self._reload.record)
        self._maintained_by = None
        with self._guard:
            self.maintenance = maintenance

    def _judge_unclean_stop(self, term: Term) -> None:
        """Have warm tasks verified before they are handed out, where the process that maintained
        the store before has not ended in order, and this one was not there to see it: a power cut
        may have taken CVAT, too. Else hand-outs have gone on by the rows, and go on."""
        owner, at = term.broken_off, term.broken_off_at
        if owner is None or at is None or owner == self.process.owner:
            return
        words = f"unclean stop of {owner_in_words(owner)}"
        if self.process.heartbeat.since < at:
            log.warning(f"{words}: this daemon maintains the pool in its place")
            return
        until = self.process.clock.now() + DOUBT
        doubted = self.process.store.quarantine_warm(until=until)
        log.warning(
            f"{words}: its warm tasks are verified before they are handed out", tasks=doubted
        )

    def _end_lapsed(self) -> None:
        """End the services of a term that was not renewed, before it ends in the store."""
        if self._has_lapsed():
            self._end(self.maintenance, "its term was not renewed in time")

    def _has_lapsed(self) -> bool:
        present = self.maintenance
        return present is not None and not present.term.lasts

    def _end(self, maintenance: Maintenance | None, why: str) -> None:
        """End services whose term is over, and wait for none: what hangs changes nothing that the
        store, or :meth:`Term.check`, does not allow."""
        with self._guard:
            if maintenance is None or maintenance is not self.maintenance:
                return
            self.maintenance = None
        log.warning(f"maintenance ended, and this daemon goes on serving: {why}")
        maintenance.end(lambda: 0.0)

    def _leave(self, left: TimeLeft) -> None:
        """Begin no more terms, and end the present one when its work has ended, within the time
        that is ``left``. It is renewed meanwhile."""
        self._leaving.set()
        # A renewal that is under way may still begin one.
        if self._renewing.acquire(timeout=left()):
            self._renewing.release()
        maintenance = self.maintenance
        try:
            self.process.heartbeat.withdraw()
            if maintenance is not None:
                maintenance.end(left)
                with self._guard:
                    self.maintenance = None
                maintenance.term.end()
        except StoreError as error:
            log.warning("maintenance not given up", why=str(error))
        self._left.set()

    def _note_maintainer(self) -> None:
        """Log once which daemon maintains the store in place of this one."""
        maintainer = self.process.store.maintainer(now=self.process.clock.now())
        if maintainer is not None and maintainer != self._maintained_by:
            log.info(f"the pool is maintained by {owner_in_words(maintainer)}; this daemon serves")
            self._maintained_by = maintainer

    def _time_to_stop(self) -> TimeLeft:
        """Return the time left of ``daemon.stop_timeout``, which all steps of a stop share."""
        clock = self.process.clock
        end = clock.monotonic() + self.settings.daemon.stop_timeout
        return lambda: max(0.0, end - clock.monotonic())


def leave() -> None:
    """Exit the process without waiting for threads whose calls hang.

    The store has what such a call was for; the next daemon recovers it.
    """
    if threading.active_count() > 1:
        # At exit, Python waits for threads of executors even if they are daemon threads.
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
