"""Forgets finished rows after a while, so that the store does not grow for ever."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pool.clock import Clock
from pool.logs import get_logger
from pool.store import Store

log = get_logger(__name__)

#: Rows of each kind in one transaction, and while requests are being served: a hand-out waits
#: for no more than that.
BATCH = 200
BATCH_BUSY = 20
#: Transactions in one run.
MOST_BATCHES = 200
#: Rows are kept for as many seconds at least, whatever the settings: the sizing looks at the
#: demand of the last quarter of an hour.
LEAST = 3600.0
#: Seconds for which events are kept; and at the longest, where a sink has still to be told of them.
EVENTS_FOR = 86400.0
UNTOLD_FOR = 7 * 86400.0
#: Events that are kept at the most.
MOST_EVENTS = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class PruneReport:
    """How many rows were forgotten, and events, and whether there were more."""

    pruned: int = 0
    events: int = 0
    more: bool = False


class Prune:
    """Deletes finished rows that are older than ``keep`` seconds."""

    def __init__(self, store: Store, *, keep: float, clock: Clock) -> None:
        self._store = store
        self._keep = max(keep, LEAST)
        self._clock = clock

    def run_once(self) -> PruneReport:
        """Forget what is old, in small transactions."""
        before = self._clock.now() - self._keep
        undelivered = self._undelivered_since()
        if undelivered is not None:
            # A sink is told of a request with all that belongs to it.
            before = min(before, undelivered)
        pruned, more = self._in_batches(lambda limit: self._store.prune(before=before, limit=limit))
        events, more_events = self._in_batches(self._prune_events)
        if pruned or events:
            log.info("finished rows forgotten", rows=pruned, events=events)
        return PruneReport(pruned=pruned, events=events, more=more or more_events)

    def _prune_events(self, limit: int) -> int:
        now = self._clock.now()
        return self._store.prune_events(
            told_before=now - EVENTS_FOR, before=now - UNTOLD_FOR, keep=MOST_EVENTS, limit=limit
        )

    def _undelivered_since(self) -> float | None:
        """When the oldest event was that a sink has still to be told of."""
        sinks = self._store.sinks().values()
        return self._store.event_at(min(sink.cursor for sink in sinks)) if sinks else None

    def _in_batches(self, prune: Callable[[int], int]) -> tuple[int, bool]:
        """How many rows were forgotten, and whether there were more."""
        pruned = some = 0
        for _ in range(MOST_BATCHES):
            some = prune(BATCH_BUSY if self._store.in_flight() else BATCH)
            pruned += some
            if not some:
                break
        return pruned, bool(some)
