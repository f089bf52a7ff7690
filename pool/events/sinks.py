"""Deliver events to the sinks of the configuration: in order, and each at least once.

Each sink has a thread of its own, so that one that does not answer delays no other, and a place of
its own among the events in the store, so that it goes on where it was after a restart. No address
is called but those that the configuration names. What an answer means stands in
:mod:`pool.events.delivery`.
"""

from __future__ import annotations

import json
import os
import random
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import takewhile
from typing import Any, Final
from urllib.parse import urlsplit

from pool.backoff import backoff
from pool.clock import Clock, Wakeup
from pool.config.settings import EventSettings, SinkSettings
from pool.config.units import LONGEST_RETRY_AFTER
from pool.errors import PoolError, StoreError
from pool.events.delivery import Endpoint, Reply, Verdict
from pool.events.feed import Feed
from pool.logs import get_logger
from pool.model import Event, RequestRecord, SinkRecord, event_document
from pool.store import Store

log = get_logger(__name__)

#: Seconds until the next try after a failed one, doubled for each further one up to the cap.
RETRY_BASE: Final = 1.0
RETRY_CAP: Final = 300.0
#: Seconds after which a delivery is given up that the receiver refuses, and one that it cannot
#: take.
REFUSED_FOR: Final = 600.0
PATIENCE: Final = 86400.0
#: Events that are read at once.
BATCH: Final = 100
#: The cursor is persisted past events that are not for a sink, so that they can be pruned, when
#: they have become so many, or after so many seconds.
PASSED: Final = 500
PASSED_FOR: Final = 60.0
#: Seconds until the next run after one that the store or a fault of ours has broken off.
RETRY: Final = 5.0
#: Seconds after which a sink runs though it has heard of nothing.
IDLE: Final = 60.0

#: Makes the document of a request, with its jobs.
Describe = Callable[[RequestRecord], Mapping[str, Any]]
#: Makes one delivery; see :meth:`pool.events.delivery.Endpoint.post`.
Post = Callable[..., Reply]


@dataclass(frozen=True, kw_only=True, slots=True)
class SinkState:
    """How a sink is doing. ``backlog`` is how many events are behind its cursor, for it or not;
    ``lag`` is the age of the delivery that is being tried, in seconds."""

    name: str
    backlog: int
    lag: float
    delivered: int
    given_up: int
    failed_tries: int
    gone: bool


def sink_names(sinks: Sequence[SinkSettings]) -> tuple[str, ...]:
    """Return a name for each sink, which stays the same as long as its address does. It shows the
    host and nothing else of the address, which may be a secret."""
    names, seen = [], Counter[str]()
    for sink in sinks:
        host = urlsplit(sink.url).netloc.lower()
        name = f"{host}-{sha256(sink.url.encode()).hexdigest()[:8]}"
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return tuple(names)


def pause_after(failures: int, asked: float | None, rng: random.Random) -> float:
    """Return the seconds until the next try after so many failures in a row: no less than the
    receiver ``asked`` for, up to an hour."""
    pause = backoff(failures, base=RETRY_BASE, cap=RETRY_CAP, rng=rng)
    return max(pause, min(asked or 0.0, LONGEST_RETRY_AFTER))


def is_hopeless(event: Event, failing_for: float, now: float) -> bool:
    """Return whether a delivery is given up: nothing was accepted for a day, and it is as old
    itself. So a receiver that comes back after a week gets the events of the last day, and one
    that was away when the daemon came back gets all that happened meanwhile."""
    return failing_for >= PATIENCE and now - event.at >= PATIENCE


class Sinks:
    """Delivers to all sinks, from :meth:`start` to :meth:`stop`, and again."""

    def __init__(
        self,
        settings: EventSettings,
        store: Store,
        feed: Feed,
        describe: Describe,
        *,
        clock: Clock,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._settings = settings.sinks
        self._store = store
        self._feed = feed
        self._describe = describe
        self._clock = clock
        self._environ = environ
        self._sinks: tuple[Sink, ...] = ()
        self._endpoints: tuple[Endpoint, ...] = ()
        self._threads: tuple[threading.Thread, ...] = ()
        self._unsubscribe: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Go on where each sink was; a new one begins now. Starting twice does nothing.

        :raises StoreError: the store cannot be used; nothing was started.
        """
        if self._sinks:
            return
        names = sink_names(self._settings)
        records = self._store.open_sinks(names)
        if not names:
            return
        endpoints = tuple(
            Endpoint(each, clock=self._clock, environ=self._environ) for each in self._settings
        )
        sinks = tuple(
            Sink(
                self._store,
                settings,
                records[name],
                self._describe,
                endpoint.post,
                clock=self._clock,
            )
            for settings, name, endpoint in zip(self._settings, names, endpoints, strict=True)
        )
        # The last step that can fail: starting is tried again.
        self._unsubscribe = self._feed.on(self._notify)
        self._sinks, self._endpoints = sinks, endpoints
        self._threads = tuple(
            threading.Thread(target=sink.run, name="sink", daemon=True) for sink in sinks
        )
        for thread in self._threads:
            thread.start()

    def stop(self, timeout: float | None = None) -> None:
        """End within ``timeout`` seconds. What is being sent may be sent again by the next
        daemon."""
        self._unsubscribe()
        for sink in self._sinks:
            sink.stop()
        deadline = None if timeout is None else self._clock.monotonic() + timeout
        for thread in self._threads:
            thread.join(None if deadline is None else max(0.0, deadline - self._clock.monotonic()))
        for endpoint in self._endpoints:
            endpoint.close()
        self._sinks, self._endpoints, self._threads = (), (), ()

    def states(self) -> Sequence[SinkState]:
        """Return how each is doing."""
        if not self._sinks:
            return ()
        newest = self._store.last_event_id()
        return [sink.state(newest=newest) for sink in self._sinks]

    def _notify(self, events: Sequence[Event]) -> None:
        if events:
            for sink in self._sinks:
                sink.notify()


class Sink:
    """One sink. Its thread runs :meth:`run`; any may call :meth:`notify`, :meth:`stop` and
    :meth:`state`."""

    def __init__(
        self,
        store: Store,
        settings: SinkSettings,
        record: SinkRecord,
        describe: Describe,
        post: Post,
        *,
        clock: Clock,
        rng: random.Random | None = None,
    ) -> None:
        self.name = record.name
        self._store = store
        self._kinds = tuple(settings.kinds)
        self._templates = frozenset(settings.templates)
        self._describe = describe
        self._post = post
        self._clock = clock
        self._rng = rng or random.Random()
        self._news = Wakeup(clock)
        self._stopped = False
        #: All events up to here are done with; the store knows it up to ``_persisted``.
        self._cursor = self._persisted = record.cursor
        self._persisted_at = clock.monotonic()
        #: By the clock that does not jump; None while nothing fails.
        self._failing_since: float | None = None
        if record.failing_since is not None:
            failing_for = max(0.0, clock.now() - record.failing_since)
            self._failing_since = clock.monotonic() - failing_for
        self._delivered, self._given_up = record.delivered, record.given_up
        self._waiting: deque[Event] = deque()
        self._trying: Event | None = None
        self._failures = 0
        self._failed_tries = 0
        self._refused_since: float | None = None
        self._not_before = 0.0
        self._gone = False

    # --- The thread -----------------------------------------------------------------------------

    def run(self) -> None:
        """Deliver until :meth:`stop`."""
        while not self._stopped:
            try:
                pause = self.run_once()
            except StoreError as error:
                pause = RETRY
                log.info("events not delivered", sink=self.name, why=str(error))
            except PoolError:
                return  # the store is closed
            except Exception:
                pause = RETRY
                log.exception("sink failed", sink=self.name)
            self._news.wait(pause)

    def notify(self) -> None:
        """There are new events."""
        self._news.set()

    def stop(self) -> None:
        """Deliver nothing more once the delivery under way has ended."""
        self._stopped = True
        self._news.set()

    # --- A run ----------------------------------------------------------------------------------

    def run_once(self) -> float:
        """Deliver what there is, the oldest first, until nothing is left or one fails; return the
        seconds until the next run is due.

        :raises StoreError: the store cannot be used; nothing is lost.
        """
        while not (self._gone or self._stopped):
            pause = self._not_before - self._clock.monotonic()
            if pause > 0:
                return pause
            event = self._next()
            if event is None:
                break
            if self._is_hopeless(event):
                self._give_up(list(takewhile(self._is_hopeless, self._waiting)))
            else:
                self._deliver(event)
        return IDLE

    def _next(self) -> Event | None:
        """Return the oldest event that is still to be delivered."""
        while True:
            while self._waiting:
                event = self._waiting[0]
                if self._wants(event):
                    self._trying = event
                    return event
                self._waiting.popleft()
                self._cursor = event.id
            self._trying = None
            newest = self._store.last_event_id()
            self._notice_loss()
            self._waiting.extend(
                self._store.events_after(self._cursor, limit=BATCH, kinds=self._kinds)
            )
            if not self._waiting:
                self._cursor = max(self._cursor, newest)
                self._persist()
                return None

    def _wants(self, event: Event) -> bool:
        return not self._templates or event.template in self._templates

    def _notice_loss(self) -> None:
        first = self._store.events_after(self._cursor, limit=1)
        lost = first[0].id - self._cursor - 1 if first else 0
        if lost > 0:
            log.warning("events pruned before their delivery", sink=self.name, events=lost)

    def _persist(self) -> None:
        """Persist the cursor past events that are not for this sink, now and then."""
        now = self._clock.monotonic()
        passed = self._cursor - self._persisted
        if passed >= PASSED or (passed and now - self._persisted_at >= PASSED_FOR):
            self._store.pass_events(self.name, up_to=self._cursor)
            self._persisted, self._persisted_at = self._cursor, now

    # --- One delivery ---------------------------------------------------------------------------

    def _deliver(self, event: Event) -> None:
        delivery_id = f"{self._store.pool_id}-{event.id}"
        reply = self._post(self._body(delivery_id, event), delivery_id=delivery_id, kind=event.kind)
        match reply.verdict:
            case Verdict.DELIVERED:
                self._pass(event, delivered=1)
                self._failures, self._failing_since = 0, None
                log.debug("delivered", sink=self.name, kind=event.kind, delivery_id=delivery_id)
            case Verdict.GONE:
                self._gone = True
                self._failed_tries += 1
                log.error("sink is gone: nothing more is sent to it", sink=self.name)
            case Verdict.REFUSED:
                self._fail(event, reply)
                now = self._clock.monotonic()
                if self._refused_since is None:
                    self._refused_since = now
                elif now - self._refused_since >= REFUSED_FOR:
                    self._give_up([event])
            case Verdict.AGAIN:
                self._refused_since = None
                self._fail(event, reply)

    def _body(self, delivery_id: str, event: Event) -> bytes:
        record = self._store.request(event.request_id) if event.request_id else None
        document = event_document(event)
        del document["id"]
        request = self._describe(record) if record is not None else None
        return json.dumps(
            {"delivery_id": delivery_id, **document, "request": request},
            ensure_ascii=False,
            separators=(",", ":"),
        ).encode("utf-8", "replace")

    def _fail(self, event: Event, reply: Reply) -> None:
        now = self._clock.monotonic()
        self._failures += 1
        self._failed_tries += 1
        if self._failing_since is None:
            self._failing_since = now
            self._store.fail_sink(self.name, now=self._clock.now())
        pause = pause_after(self._failures, reply.retry_after, self._rng)
        self._not_before = now + pause
        # Once at first, and then only when a person may have to do something.
        write = log.warning if self._failures in (1, 10) else log.info
        write(
            "not delivered",
            sink=self.name,
            kind=event.kind,
            request_id=event.request_id,
            why=reply.problem,
            tries=self._failures,
            retry_in=round(pause, 1),
        )

    def _is_hopeless(self, event: Event) -> bool:
        # Not before it was tried once since the start: the receiver may be back.
        if not self._failures or self._failing_since is None:
            return False
        failing_for = self._clock.monotonic() - self._failing_since
        return is_hopeless(event, failing_for, self._clock.now())

    def _give_up(self, events: Sequence[Event]) -> None:
        wanted = [event for event in events if self._wants(event)]
        self._pass(events[-1], given_up=len(wanted))
        log.error(
            "deliveries given up",
            sink=self.name,
            deliveries=len(wanted),
            request_id=wanted[0].request_id,
        )

    def _pass(self, event: Event, *, delivered: int = 0, given_up: int = 0) -> None:
        self._store.pass_events(self.name, up_to=event.id, delivered=delivered, given_up=given_up)
        self._delivered += delivered
        self._given_up += given_up
        self._cursor = self._persisted = event.id
        self._persisted_at = self._clock.monotonic()
        self._trying = self._refused_since = None
        while self._waiting and self._waiting[0].id <= event.id:
            self._waiting.popleft()

    # --- Looking --------------------------------------------------------------------------------

    def state(self, *, newest: int) -> SinkState:
        """Return how it is doing, when ``newest`` is the newest event."""
        trying = self._trying
        return SinkState(
            name=self.name,
            backlog=max(0, newest - self._cursor),
            lag=max(0.0, self._clock.now() - trying.at) if trying else 0.0,
            delivered=self._delivered,
            given_up=self._given_up,
            failed_tries=self._failed_tries,
            gone=self._gone,
        )
