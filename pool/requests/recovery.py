"""Sees to requests and leases that a call of this process has left in the middle: because the store
could not be written, say, or because somebody pressed Control-C.

As long as the process lives nobody else takes them over, and no thread of its own works on them. So
what a call was about is remembered here when it raises, and looked at with the next sign of life.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pool.clock import Clock
from pool.logs import get_logger
from pool.store import Store
from pool.tracking.tracker import Tracker

log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class StraysReport:
    """How many requests were taken up again, and how many leases wait no longer."""

    requests: int = 0
    leases: int = 0


class Strays:
    """What calls of one process have left in the middle. Thread-safe."""

    def __init__(self, store: Store, tracker: Tracker, *, owner: str, clock: Clock) -> None:
        self._store = store
        self._tracker = tracker
        self._owner = owner
        self._clock = clock
        self._guard = threading.Lock()
        self._requests: set[str] = set()
        self._leases: set[str] = set()

    @contextmanager
    def of_request(self, request_id: str) -> Iterator[None]:
        """Look after a request if the block raises, which is all that works on it."""
        with self._remembering(self._requests, request_id):
            yield

    @contextmanager
    def of_lease(self, lease_id: str) -> Iterator[None]:
        """As :meth:`of_request`, for a lease that waits for a task."""
        with self._remembering(self._leases, lease_id):
            yield

    @contextmanager
    def _remembering(self, kind: set[str], row: str) -> Iterator[None]:
        try:
            yield
        except BaseException:
            with self._guard:
                kind.add(row)
            raise

    def run_once(self) -> StraysReport:
        """Bring on its way, or to its end, what is not at its end yet. Costs nothing when no call
        has raised.

        :raises StoreError: the store cannot be used; what is left is looked at again.
        """
        requests = sum(self._see_to_request(each) for each in self._some(self._requests))
        leases = sum(self._see_to_lease(each) for each in self._some(self._leases))
        return StraysReport(requests=requests, leases=leases)

    def _some(self, kind: set[str]) -> list[str]:
        with self._guard:
            return sorted(kind)

    def _see_to_request(self, request_id: str) -> bool:
        record = self._store.request(request_id)
        # One that waits in the spool is the daemon's.
        mine = record is not None and record.owner == self._owner and not record.state.finished
        if mine and record is not None:
            self._tracker.take_up(record)
        with self._guard:
            self._requests.discard(request_id)
        return mine

    def _see_to_lease(self, lease_id: str) -> bool:
        waited = self._store.abandon_lease(lease_id, now=self._clock.now())
        if waited:
            log.info("lease given up", lease_id=lease_id)
        with self._guard:
            self._leases.discard(lease_id)
        return waited
