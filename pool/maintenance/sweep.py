"""Drops what the spool has no use for any more: the data of requests that are at their end, or that
there never were, because a process died in between."""

from __future__ import annotations

from dataclasses import dataclass

from pool.logs import get_logger
from pool.requests.spool import Spool
from pool.store import Store

log = get_logger(__name__)

#: Seconds for which an entry is left alone that nobody has written to: its request may be about
#: to be written down.
GRACE = 600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepReport:
    """How many entries were dropped."""

    dropped: int = 0


class Sweep:
    """Sweeps one spool. Who finds a request's end drops its data at once; this is for the rest."""

    def __init__(self, store: Store, spool: Spool) -> None:
        self._store = store
        self._spool = spool

    def run_once(self) -> SweepReport:
        """Drop the entries that no unfinished request belongs to."""
        dropped = self._spool.sweep(self._is_needed, older_than=GRACE)
        if dropped:
            log.info("spool swept", entries=dropped)
        return SweepReport(dropped=dropped)

    def _is_needed(self, request_id: str) -> bool:
        request = self._store.request(request_id)
        return request is not None and not request.state.finished
