"""Tells who listens of what happens, in whichever process of the store it does.

One thread looks whether the store has changed, which costs a few microseconds, and reads the
events only then; it exists only as long as somebody listens. What happens in this process is told
at once. Callbacks of users run on a thread each, with a place of their own in the events, which
the store keeps: so one that is slow delays nobody, takes up no memory, and misses nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from pool.clock import Clock
from pool.errors import InputError, PoolClosed, PoolError, StoreError
from pool.events.notifier import Signal
from pool.logs import get_logger
from pool.model import KINDS, Event
from pool.store.base import Store

log = get_logger(__name__)

#: Seconds between two looks at the store, and after a look that failed.
LOOK = 0.05
LOOK_AGAIN = 1.0
#: Events that are read at once.
BATCH = 500

#: Called with the events since the last call; with none when something else has changed.
Watcher = Callable[[Sequence[Event]], None]
Callback = Callable[[Event], None]
Unsubscribe = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Interest:
    """Which events somebody wants to hear of; nothing given stands for all."""

    kinds: frozenset[str] = frozenset()
    template: str | None = None

    def covers(self, event: Event) -> bool:
        """Whether the event is among them."""
        return (not self.kinds or event.kind in self.kinds) and (
            self.template is None or event.template == self.template
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Watching:
    watcher: Watcher
    after: int


class Feed:
    """The events of one store, as they happen. Thread-safe."""

    def __init__(self, store: Store, *, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._guard = threading.Lock()
        self._watching: list[_Watching] = []
        self._subscriptions: set[_Subscription] = set()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._token: object = None
        self._cursor = 0
        self._hurry = Signal(clock)

    # --- Listening ------------------------------------------------------------------------------

    def subscribe(
        self,
        callback: Callback,
        *,
        kinds: Collection[str] | None = None,
        template: str | None = None,
    ) -> Unsubscribe:
        """Have ``callback`` called with each event from now on, in their order, on a thread of
        its own; the answer ends that.

        An error that it raises is logged, and it is called with the next event. After the end it
        is not called any more, though one call may still be under way.

        :raises InputError: there is no such kind.
        :raises PoolClosed: the pool is closed.
        """
        unknown = sorted(set(kinds or ()) - set(KINDS))
        if unknown:
            raise InputError(f"no event is of kind {unknown[0]!r}; there is {', '.join(KINDS)}")
        interest = Interest(frozenset(kinds or ()), template)
        subscription = _Subscription(self._store, callback, interest, clock=self._clock)
        unwatch = self.watch(subscription.notice)
        with self._guard:
            self._subscriptions.add(subscription)
        subscription.start()

        def unsubscribe() -> None:
            unwatch()
            subscription.stop()
            with self._guard:
                self._subscriptions.discard(subscription)

        return unsubscribe

    def watch(self, watcher: Watcher) -> Unsubscribe:
        """Have ``watcher`` called with what is new, on the feed's own thread, which it must not
        hold up; the answer ends that. For the parts of the pool: see :meth:`subscribe`.

        :raises PoolClosed: the pool is closed.
        """
        watching = _Watching(watcher, self._store.last_event_id())
        with self._guard:
            if self._closed:
                raise PoolClosed
            if not self._watching:
                self._cursor, self._token = watching.after, None
            self._watching.append(watching)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
                self._thread.start()
        return lambda: self._unwatch(watching)

    def _unwatch(self, watching: _Watching) -> None:
        with self._guard:
            if watching in self._watching:
                self._watching.remove(watching)
        self._hurry.announce()

    def hurry(self) -> None:
        """Something has just happened in this process: look now."""
        self._hurry.announce()

    def close(self) -> None:
        """Tell nobody any more."""
        with self._guard:
            self._closed = True
            self._watching.clear()
            thread, subscriptions = self._thread, list(self._subscriptions)
            self._subscriptions.clear()
        for subscription in subscriptions:
            subscription.stop()
        self._hurry.announce()
        if thread is not None and thread is not threading.current_thread():
            thread.join(LOOK_AGAIN)

    @property
    def cursor(self) -> int:
        """The id of the newest event that was told."""
        return self._cursor

    @property
    def running(self) -> bool:
        """Whether there is a thread, because somebody listens."""
        return self._thread is not None

    # --- The thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            seen = self._hurry.count
            with self._guard:
                if not self._watching:
                    self._thread = None
                    return
            pause = LOOK
            try:
                self.run_once()
            except PoolError as error:
                pause = LOOK_AGAIN
                log.info("events not read", why=str(error))
            self._hurry.wait(seen, pause)

    def run_once(self) -> int:
        """Look once, and tell everybody what is new; answers how many events that were.

        :raises StoreError: the store cannot be read.
        """
        token = self._store.change_token()
        if token == self._token:
            return 0
        told = 0
        while True:
            events = self._store.events_after(self._cursor, limit=BATCH)
            self._tell(events)
            told += len(events)
            if len(events) < BATCH:
                break
        # Only now: what could not be read is looked for again.
        self._token = token
        return told

    def _tell(self, events: Sequence[Event]) -> None:
        with self._guard:
            watching = list(self._watching)
        for each in watching:
            news = [event for event in events if event.id > each.after]
            try:
                each.watcher(news)
            except Exception:
                log.exception("listener failed")
        if events:
            self._cursor = events[-1].id


class _Subscription:
    """One callback, on a thread of its own."""

    def __init__(
        self, store: Store, callback: Callback, interest: Interest, *, clock: Clock
    ) -> None:
        self._store = store
        self._callback = callback
        self._interest = interest
        self._cursor = store.last_event_id()
        self._news = Signal(clock)
        self._stopped = False

    def start(self) -> None:
        threading.Thread(target=self._run, name="callback", daemon=True).start()

    def stop(self) -> None:
        self._stopped = True
        self._news.announce()

    def notice(self, events: Sequence[Event]) -> None:
        """There are new events; called on the thread of the feed."""
        if any(map(self._interest.covers, events)):
            self._news.announce()

    def _run(self) -> None:
        while not self._stopped:
            seen = self._news.count
            try:
                told = self._tell_some()
            except StoreError as error:
                log.info("events not read", why=str(error))
                self._news.wait(seen, LOOK_AGAIN)
                continue
            except PoolError:
                return  # closed
            if not told:
                self._news.wait(seen, None)

    def _tell_some(self) -> int:
        """Call back with the next few events; answers how many were read."""
        newest = self._store.last_event_id()
        events = self._store.events_after(
            self._cursor, limit=BATCH, kinds=tuple(self._interest.kinds)
        )
        for event in events:
            if self._stopped:
                break
            if self._interest.covers(event):
                self._call(event)
            self._cursor = event.id
        if not events:
            # Nothing of interest up to there, so that it is not searched again.
            self._cursor = max(self._cursor, newest)
        return len(events)

    def _call(self, event: Event) -> None:
        try:
            self._callback(event)
        except Exception:
            log.exception("callback failed", kind=event.kind, event_id=event.id)
