"""Forgets finished rows after a while, so that the store does not grow for ever."""

from __future__ import annotations

from dataclasses import dataclass

from pool.clock import Clock
from pool.logs import get_logger
from pool.store.base import Store

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


@dataclass(frozen=True, kw_only=True, slots=True)
class PruneReport:
    """How many rows were forgotten, and whether there were more."""

    pruned: int = 0
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
        pruned = 0
        for _ in range(MOST_BATCHES):
            limit = BATCH_BUSY if self._store.in_flight() else BATCH
            some = self._store.prune(before=before, limit=limit)
            pruned += some
            if not some:
                break
        if pruned:
            log.info("finished rows forgotten", rows=pruned)
        return PruneReport(pruned=pruned, more=bool(some))
