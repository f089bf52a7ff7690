"""Tells one sink of what happens: in order, at least once, and until it is told that it has come.

What an answer means:

=================================  ==============================================================
the receiver answers               the delivery
=================================  ==============================================================
2xx                                is done
400, 413, 415 or 422               is tried again, and given up alone after ten minutes: this body
                                   is not wanted, and those behind it may be
410                                is kept, as are all others, and nothing more is sent to this
                                   sink until the daemon is started again
anything else, or nothing at all   is tried again; when nothing was accepted for a day, whatever
                                   is older than a day is given up, and counted
=================================  ==============================================================

A redirect is not followed: it is an answer like any other that is not 2xx.
"""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from itertools import takewhile
from typing import Any, Final, Protocol

from pool.backoff import backoff
from pool.clock import Clock
from pool.config.settings import SinkSettings
from pool.config.units import LONGEST_RETRY_AFTER
from pool.events.posting import Reply
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
#: It is written down that events are not for a sink when they have become so many, or after so
#: many seconds.
PASSED: Final = 500
PASSED_FOR: Final = 60.0

REFUSALS: Final = frozenset({400, 413, 415, 422})
GONE: Final = 410

#: Makes the document of a request, with its jobs.
Describe = Callable[[RequestRecord], Mapping[str, Any]]


class Verdict(Enum):
    """What an answer means for the delivery."""

    DELIVERED = auto()
    REFUSED = auto()
    AGAIN = auto()
    GONE = auto()


class Post(Protocol):
    """Where deliveries go; see :class:`pool.events.posting.Posting`."""

    def send(self, body: bytes, *, delivery: str, kind: str) -> Reply: ...

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class SinkReport:
    """What a run did. ``wait`` is how many seconds to wait for before the next one; None: until
    something happens."""

    delivered: int = 0
    given_up: int = 0
    wait: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SinkState:
    """How a sink is doing. ``backlog`` is how many events there are that it was not told of, for
    it or not; ``lag`` is the age of the delivery that is being tried, in seconds."""

    name: str
    backlog: int
    lag: float
    delivered: int
    given_up: int
    failed_tries: int
    gone: bool


def judge(reply: Reply) -> Verdict:
    """What an answer means for the delivery."""
    if reply.status is None:
        return Verdict.AGAIN
    if 200 <= reply.status < 300:
        return Verdict.DELIVERED
    if reply.status == GONE:
        return Verdict.GONE
    return Verdict.REFUSED if reply.status in REFUSALS else Verdict.AGAIN


def pause_after(failures: int, asked: float | None, rng: random.Random) -> float:
    """Seconds until the next try after so many failures in a row: exponential, with full jitter,
    and no less than the receiver ``asked`` for, up to an hour."""
    pause = backoff(failures, base=RETRY_BASE, cap=RETRY_CAP, rng=rng)
    return max(pause, min(asked or 0.0, LONGEST_RETRY_AFTER))


def hopeless(event: Event, failing_for: float, now: float) -> bool:
    """Whether a delivery is given up: nothing was accepted for a day, and it is as old itself. So
    a receiver that comes back after a week gets what happened on the last day, and one that was
    away when the daemon came back gets all that happened meanwhile."""
    return failing_for >= PATIENCE and now - event.at >= PATIENCE


class Sink:
    """One sink. Not thread-safe, but for :meth:`state`."""

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
        self._cursor = self._kept = record.cursor
        self._kept_at = clock.monotonic()
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
        self.stopped = False

    # --- A run ----------------------------------------------------------------------------------

    def run_once(self) -> SinkReport:
        """Deliver what there is, the oldest first, until nothing is left or one fails.

        :raises StoreError: the store cannot be used; nothing is lost.
        """
        before = (self._delivered, self._given_up)
        wait = None
        while not (self._gone or self.stopped):
            wait = self._not_before - self._clock.monotonic()
            event = self._next() if wait <= 0 else None
            if event is None:
                break
            if self._is_hopeless(event):
                self._give_up_old()
            else:
                self._deliver(event)
        return SinkReport(
            delivered=self._delivered - before[0],
            given_up=self._given_up - before[1],
            wait=wait if wait is not None and wait > 0 else None,
        )

    def _next(self) -> Event | None:
        """The oldest event that the sink has still to be told of."""
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
                self._keep()
                return None

    def _wants(self, event: Event) -> bool:
        return not self._templates or event.template in self._templates

    def _notice_loss(self) -> None:
        first = self._store.events_after(self._cursor, limit=1)
        lost = first[0].id - self._cursor - 1 if first else 0
        if lost > 0:
            log.warning("events forgotten before a sink was told", sink=self.name, events=lost)

    def _keep(self) -> None:
        """Write down now and then that events are not for this sink, so that they can be
        forgotten, and are not read again."""
        now = self._clock.monotonic()
        passed = self._cursor - self._kept
        if passed >= PASSED or (passed and now - self._kept_at >= PASSED_FOR):
            self._store.pass_events(self.name, up_to=self._cursor)
            self._kept, self._kept_at = self._cursor, now

    # --- One delivery ---------------------------------------------------------------------------

    def _deliver(self, event: Event) -> None:
        delivery = f"{self._store.pool_id}-{event.id}"
        reply = self._post.send(self._body(delivery, event), delivery=delivery, kind=event.kind)
        match judge(reply):
            case Verdict.DELIVERED:
                self._pass(event, delivered=1)
                self._failures, self._failing_since = 0, None
                log.debug("delivered", sink=self.name, kind=event.kind, delivery_id=delivery)
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

    def _body(self, delivery: str, event: Event) -> bytes:
        record = self._store.request(event.request_id) if event.request_id else None
        document = event_document(event)
        del document["id"]
        request = self._describe(record) if record is not None else None
        return json.dumps(
            {"delivery_id": delivery, **document, "request": request},
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
        tell = log.warning if self._failures in (1, 10) else log.info
        tell(
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
        return hopeless(event, failing_for, self._clock.now())

    def _give_up_old(self) -> None:
        self._give_up(list(takewhile(self._is_hopeless, self._waiting)))

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
        self._cursor = self._kept = event.id
        self._kept_at = self._clock.monotonic()
        self._trying = self._refused_since = None
        while self._waiting and self._waiting[0].id <= event.id:
            self._waiting.popleft()

    # --- Looking --------------------------------------------------------------------------------

    def state(self, *, newest: int) -> SinkState:
        """How it is doing, when ``newest`` is the newest event."""
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
