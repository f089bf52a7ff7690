"""Delete finished rows after a while, so that the store does not grow without end, and what
spools have no use for: data of requests that are at their end, or that were never written down
because a process died in between. The one that maintains the store does that for rows and for a
shared spool, each daemon for its own folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pool.clock import Clock
from pool.errors import StoreError
from pool.logs import get_logger
from pool.requests.spool import Spool
from pool.store import Store

log = get_logger(__name__)

#: Rows of each kind in one transaction, and while requests are being served: a hand-out waits
#: for no more than that.
BATCH: Final = 200
BATCH_BUSY: Final = 20
#: Transactions in one run.
MOST_BATCHES: Final = 200
#: Rows are kept for as many seconds at least, whatever the settings: the sizing looks at the
#: demand of the last quarter of an hour.
LEAST: Final = 3600.0
#: Seconds for which events are kept; and at the longest, where a sink has not had them yet.
EVENTS_FOR: Final = 86400.0
UNDELIVERED_FOR: Final = 7 * 86400.0
#: Events that are kept at the most.
MOST_EVENTS = 1_000_000
#: Seconds for which an entry of a spool is left alone that is not written to: its request may be
#: about to be written down.
SPOOL_GRACE: Final = 600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class CleanupReport:
    """How many rows, events and entries of the shared spool were deleted."""

    rows: int = 0
    events: int = 0
    spooled: int = 0


class Sweep:
    """Deletes from a process's own folder the data that no request needs: that of a request which
    another process has ended, and what was left where a process died."""

    def __init__(self, store: Store, spool: Spool, *, clock: Clock) -> None:
        self._store = store
        self._spool = spool
        self._clock = clock

    def run_once(self) -> int:
        """Delete what was there unchanged for :data:`SPOOL_GRACE` seconds; return how much."""
        swept = self._spool.sweep(
            self._store.unfinished, older_than=SPOOL_GRACE, now=self._clock.monotonic()
        )
        if swept:
            log.info("data deleted that no request needs", entries=swept)
        return swept


class Cleanup:
    """Deletes finished rows that are older than ``keep`` seconds, old events, and data of a shared
    spool. The data of a request is dropped at its end already; this is for the rest."""

    def __init__(self, store: Store, spool: Spool, *, keep: float, clock: Clock) -> None:
        self._store = store
        self._spool = spool
        self._keep = max(keep, LEAST)
        self._clock = clock

    def run_once(self) -> CleanupReport:
        """Delete what is old, in small transactions."""
        before = self._clock.now() - self._keep
        sinks = self._store.sinks().values()
        undelivered = self._store.event_at(min(sink.cursor for sink in sinks)) if sinks else None
        if undelivered is not None:
            # A sink gets a request with all that belongs to it.
            before = min(before, undelivered)
        rows = self._in_batches(lambda limit: self._store.prune(before=before, limit=limit))
        events = self._in_batches(self._prune_events)
        spooled = 0
        try:
            spooled = self._spool.sweep_shared(
                self._store.unfinished, older_than=SPOOL_GRACE, now=self._clock.monotonic()
            )
        except StoreError as error:
            log.warning("shared spool not swept", why=str(error))
        if rows or events or spooled:
            log.info("finished rows deleted", rows=rows, events=events, spooled=spooled)
        return CleanupReport(rows=rows, events=events, spooled=spooled)

    def _prune_events(self, limit: int) -> int:
        now = self._clock.now()
        return self._store.prune_events(
            passed_before=now - EVENTS_FOR,
            before=now - UNDELIVERED_FOR,
            keep=MOST_EVENTS,
            limit=limit,
        )

    def _in_batches(self, prune: Callable[[int], int]) -> int:
        """Return how many rows were deleted."""
        deleted = 0
        for _ in range(MOST_BATCHES):
            some = prune(BATCH_BUSY if self._store.in_flight() else BATCH)
            deleted += some
            if not some:
                break
        return deleted
