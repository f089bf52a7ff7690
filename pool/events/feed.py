"""Watch a store for this process, and wake all who wait for changes.

One thread compares the store's change counter, which costs a few microseconds, and reads the events
only when it has moved. Commits of this process poke it, and so do those of others where the store
hears of them (PostgreSQL); where it does not (SQLite), it finds them within :data:`LOOK` seconds.
It looks only while something waits or listens.

A wake-up is a hint and never the answer: a waiter reads its row itself. So one that comes early or
twice does no harm, and if one is lost, the waiter still checks every :data:`RECHECK` seconds.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from pool.clock import Clock, Wakeup
from pool.errors import InputError, PoolClosed, PoolError, StoreError
from pool.forks import prepare_for_forks
from pool.logs import get_logger
from pool.model import KINDS, Event
from pool.store import Listener, Store

log = get_logger(__name__)

T = TypeVar("T")

#: Seconds between two looks at the change counter, for what other processes commit: while a caller
#: waits, and while only services listen, as in an idle daemon, where each look costs 0.1 ms.
LOOK: Final = 0.02
CALM_LOOK: Final = 0.05
#: The same where the store hears of what others commit: should it miss something.
HEARING_LOOK: Final = 1.0
#: Seconds between two looks at least: commits that follow one another closely share a look.
GAP: Final = 0.002
#: Seconds after which everything that waits checks again, whatever was heard.
RECHECK: Final = 2.0
#: Seconds until the next look after one that failed.
RETRY: Final = 1.0
#: Seconds for which the thread stays when nothing waits any more, without looking: callers that
#: come one after the other need not start one each.
LINGER: Final = 1.0
#: Events that are read at once.
BATCH = 500

#: Called with new events; without any, when something else was committed.
Service = Callable[[Sequence[Event]], None]
Callback = Callable[[Event], None]
Unsubscribe = Callable[[], None]


@dataclass(slots=True, eq=False)
class _Registered:
    """A service, and the last event that it has had."""

    service: Service
    kinds: frozenset[str]
    cursor: int


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    """A thread, or a coroutine of ``loop``, that waits for a request or a lease."""

    request: str
    lease: str
    wake: Callable[[], None]
    loop: asyncio.AbstractEventLoop | None = None


class Feed:
    """The events of one store, as they are committed. Thread-safe."""

    def __init__(self, store: Store, *, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._guard = threading.Lock()
        #: Ends a pause of the thread. In C, since it is waited for fifty times a second.
        self._pokes = queue.SimpleQueue[None]()
        self._thread: threading.Thread | None = None
        self._services: tuple[_Registered, ...] = ()
        self._waiters: set[_Waiter] = set()
        self._subscriptions: set[_Subscription] = set()
        self._poked = False
        self._closed = False
        #: The last event that was passed on; None while nothing waits. It goes back when a service
        #: needs older ones.
        self._cursor: int | None = None
        self._token: object = None
        self._looked_at = self._recheck_at = 0.0
        self._stop_poking = store.on_commit(self.poke)
        prepare_for_forks(self)

    # --- Waiting --------------------------------------------------------------------------------

    def wait_for(
        self,
        check: Callable[[], T | None],
        timeout: float | None,
        *,
        request: str = "",
        lease: str = "",
    ) -> T | None:
        """Return the first answer of ``check`` that is not None; None after ``timeout`` seconds.

        ``check`` runs on the calling thread: at first, after each event of the ``request`` or
        ``lease`` of that id, and every :data:`RECHECK` seconds. What it raises is raised.

        :raises PoolClosed: the feed was closed.
        """
        if timeout is not None and timeout <= 0:
            return check()
        deadline = None if timeout is None else self._clock.monotonic() + timeout
        news = Wakeup(self._clock)
        waiter = _Waiter(request, lease, news.set)
        self._register(waiter)
        try:
            # Only now: what is committed from here on wakes this thread.
            while (answer := check()) is None:
                remaining = RECHECK if deadline is None else deadline - self._clock.monotonic()
                if remaining <= 0:
                    return None
                news.wait(min(remaining, RECHECK))
                if self._closed:
                    raise PoolClosed
            return answer
        finally:
            self._leave(waiter)

    async def wait_for_async(
        self,
        check: Callable[[], Awaitable[T | None]],
        timeout: float | None,
        *,
        request: str = "",
        lease: str = "",
        stop: asyncio.Future[None] | None = None,
    ) -> T | None:
        """As :meth:`wait_for`, on an event loop and without a thread. Return None, too, when
        ``stop`` is done."""
        loop, news = asyncio.get_running_loop(), asyncio.Event()
        deadline = None if timeout is None else loop.time() + timeout
        timer = None if deadline is None else loop.call_at(deadline, news.set)

        def stopped(_: asyncio.Future[None]) -> None:
            news.set()

        if stop is not None:
            stop.add_done_callback(stopped)
        waiter = _Waiter(request, lease, news.set, loop)
        self._register(waiter)
        try:
            while (answer := await check()) is None:
                if deadline is not None and loop.time() >= deadline:
                    return None
                if stop is not None and stop.done():
                    return None
                await news.wait()
                news.clear()
                if self._closed:
                    raise PoolClosed
            return answer
        finally:
            self._leave(waiter)
            if timer is not None:
                timer.cancel()
            if stop is not None:
                stop.remove_done_callback(stopped)

    # --- Listening ------------------------------------------------------------------------------

    def on(self, service: Service, *kinds: str) -> Unsubscribe:
        """Have ``service`` called with the events of ``kinds`` from now on, on the feed's thread,
        which it must not hold up; return what ends that.

        Without ``kinds`` it is called with all events, and with none after a commit that made none.

        :raises PoolClosed: the feed was closed.
        """
        registered = _Registered(service, frozenset(kinds), self._store.last_event_id())
        with self._guard:
            self._start()
            if self._cursor is None or registered.cursor < self._cursor:
                self._cursor, self._token = registered.cursor, None
            self._services += (registered,)
        return partial(self._dismiss, registered)

    def subscribe(
        self,
        callback: Callback,
        *,
        kinds: Collection[str] | None = None,
        template: str | None = None,
    ) -> Unsubscribe:
        """Have ``callback`` called with each event from now on, in order and on a thread of its
        own; return what ends that.

        It has a place of its own among the events in the store: a slow callback delays no other,
        takes up no memory, and misses nothing. An error that it raises is logged. After the end it
        is not called any more, though one call may still be under way.

        :raises InputError: there is no such kind.
        :raises PoolClosed: the feed was closed.
        """
        unknown = sorted(set(kinds or ()) - set(KINDS))
        if unknown:
            raise InputError(f"no event is of kind {unknown[0]!r}; there is {', '.join(KINDS)}")
        subscription = _Subscription(self._store, callback, tuple(kinds or ()), template)
        unsubscribe = self.on(subscription.notify, *subscription.kinds)
        with self._guard:
            self._subscriptions.add(subscription)
        subscription.start()

        def end() -> None:
            unsubscribe()
            subscription.stop()
            with self._guard:
                self._subscriptions.discard(subscription)

        return end

    def poke(self) -> None:
        """Look at once. The store does it after each commit of this process."""
        # Nothing that lingers is poked: its end would cost the next caller a thread.
        if self.running and not self._poked:
            self._poked = True
            self._pokes.put(None)

    def close(self) -> None:
        """Wake all who wait, and call no service or callback any more."""
        self._stop_poking()
        with self._guard:
            self._closed = True
            waiters, self._waiters = self._waiters, set()
            subscriptions, self._subscriptions = self._subscriptions, set()
            thread, self._services = self._thread, ()
        self._pokes.put(None)
        _wake(waiters)
        for subscription in subscriptions:
            subscription.stop()
        if thread is not None and thread is not threading.current_thread():
            thread.join(RETRY)

    @property
    def cursor(self) -> int:
        """The id of the newest event that was passed on; 0 while nothing waits."""
        return self._cursor or 0

    @property
    def running(self) -> bool:
        """Whether the store is looked at, because something waits."""
        return bool(self._services or self._waiters)

    def _register(self, waiter: _Waiter) -> None:
        with self._guard:
            self._start()
            self._waiters.add(waiter)

    def _leave(self, waiter: _Waiter) -> None:
        with self._guard:
            self._waiters.discard(waiter)

    def _dismiss(self, registered: _Registered) -> None:
        with self._guard:
            self._services = tuple(each for each in self._services if each is not registered)

    def before_fork(self) -> None:
        self._guard.acquire()

    def after_fork(self) -> None:
        self._guard.release()

    def _start(self) -> None:
        if self._closed:
            raise PoolClosed
        if self._thread is None or not self._thread.is_alive():
            # It is not alive in a child of a fork, either.
            self._cursor = None
            self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
            self._thread.start()
        elif not self._waiters:
            # It may linger, or be in a longer pause.
            self._pokes.put(None)

    # --- The thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        pause = 0.0
        with closing(self._store.listen(self.poke)) as others:
            while self._pause(pause):
                pause = self._look_again_in(others)

    def _look_again_in(self, others: Listener) -> float:
        """Look, and return after how many seconds to do so again, unless something is heard."""
        try:
            self._look()
        except PoolError as error:
            log.info("events not read", why=str(error))
            return RETRY
        except Exception:
            log.exception("events not read")
            return RETRY
        if others.hears:
            return HEARING_LOOK
        return LOOK if self._waiters else CALM_LOOK

    def _pause(self, seconds: float) -> bool:
        """Wait for a poke, ``seconds`` at most; False when nothing waits and the thread ends."""
        poked = self._wait(seconds)
        if poked and (gap := self._looked_at + GAP - time.monotonic()) > 0:
            time.sleep(gap)
        # Before the look: a commit that pokes from here on may be too late for it.
        self._poked = False
        with self._guard:
            if not self.running:
                self._cursor = None
            lingers = not (self.running or self._closed)
        if lingers:
            self._wait(LINGER)
        with self._guard:
            if not self.running:
                self._thread = None
            return self.running

    def _wait(self, seconds: float) -> bool:
        try:
            self._pokes.get(timeout=seconds)
        except queue.Empty:
            return False
        return True

    def _look(self) -> None:
        self._looked_at = time.monotonic()
        if self._cursor is None:
            newest = self._store.last_event_id()
            with self._guard:
                if self._cursor is None:
                    self._cursor = newest
            # What they have checked may be older than the newest event.
            _wake(tuple(self._waiters))
        recheck = self._looked_at >= self._recheck_at
        if recheck:
            self._recheck_at = self._looked_at + RECHECK
        token = self._store.change_token()
        if token == self._token and not recheck:
            return
        # From here on a service that needs older events has them read in the next look.
        self._token = token
        try:
            while self._read():
                pass
            _wake(self._ended(requests=recheck))
        except BaseException:
            self._token = None
            raise

    def _read(self) -> bool:
        """Pass on the next few events; False when there are no more."""
        cursor = self._cursor or 0
        events = self._store.events_after(cursor, limit=BATCH)
        ids = {each.request_id for each in events} | {each.lease_id for each in events}
        with self._guard:
            services = self._services
            waiters = [each for each in self._waiters if {each.request, each.lease} & ids]
            if events and self._cursor == cursor:
                self._cursor = events[-1].id
        _wake(waiters)
        for each in services:
            _pass_on(events, each)
        return len(events) == BATCH

    def _ended(self, *, requests: bool) -> set[_Waiter]:
        """Those whose lease, or request, is at its end. Each end of a request is an event, but not
        each end of a lease."""
        waiters = tuple(self._waiters)
        names = {each.lease for each in waiters} - {""}
        ended = set(self._store.leases_at_end(names)) if names else set()
        names = {each.request for each in waiters} - {""} if requests else set()
        ended |= set(self._store.requests_at_end(names)) if names else set()
        return {each for each in waiters if ended & {each.request, each.lease}}


def _wake(waiters: Iterable[_Waiter]) -> None:
    loops: defaultdict[asyncio.AbstractEventLoop, list[_Waiter]] = defaultdict(list)
    for waiter in waiters:
        if waiter.loop is None:
            waiter.wake()
        else:
            loops[waiter.loop].append(waiter)
    for loop, theirs in loops.items():
        # One call for all of a loop. An error means that it has ended, and they with it.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_wake_here, theirs)


def _wake_here(waiters: Iterable[_Waiter]) -> None:
    for waiter in waiters:
        waiter.wake()


def _pass_on(events: Sequence[Event], to: _Registered) -> None:
    news = [
        event
        for event in events
        if event.id > to.cursor and (not to.kinds or event.kind in to.kinds)
    ]
    if events:
        to.cursor = max(to.cursor, events[-1].id)
    if not news and to.kinds:
        return
    try:
        to.service(news)
    except Exception:
        log.exception("listener failed")


class _Subscription:
    """One callback, on a thread of its own."""

    def __init__(
        self, store: Store, callback: Callback, kinds: tuple[str, ...], template: str | None
    ) -> None:
        self.kinds = kinds
        self._store = store
        self._callback = callback
        self._template = template
        self._cursor = store.last_event_id()
        self._news = threading.Event()
        self._stopped = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name="callback", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()
        self._news.set()

    def notify(self, events: Sequence[Event]) -> None:
        """Called on the feed's thread."""
        if any(map(self._covers, events)):
            self._news.set()

    def _covers(self, event: Event) -> bool:
        return self._template is None or event.template == self._template

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._news.clear()
            try:
                while self._call_back():
                    pass
            except StoreError as error:
                log.info("events not read", why=str(error))
                self._stopped.wait(RETRY)
                self._news.set()
            except PoolError:
                return  # closed
            self._news.wait()

    def _call_back(self) -> bool:
        """Call back with the next few events; False when there are none."""
        newest = self._store.last_event_id()
        events = self._store.events_after(self._cursor, limit=BATCH, kinds=self.kinds)
        for event in filter(self._covers, events):
            if self._stopped.is_set():
                return False
            try:
                self._callback(event)
            except Exception:
                log.exception("callback failed", kind=event.kind, event_id=event.id)
            self._cursor = event.id
        # Past the others too, so that they are not searched again.
        self._cursor = max(self._cursor, events[-1].id if events else newest)
        return bool(events)
