"""Recovers what a call of this process abandoned, and what processes that are gone left behind.

A call that raises (the store could not be written, or a person pressed Control-C) leaves a request
or a lease in the middle. As long as the process lives no other one takes that over, and no thread
of its own works on it. So it is remembered here, and recovered with the next heartbeat.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from pool.clock import Clock
from pool.errors import OwnerGone
from pool.logs import get_logger
from pool.model import RequestRecord, RequestState
from pool.store import Store
from pool.tracking.tracker import Tracker, expected_frames

log = get_logger(__name__)

#: Seconds for which an import is given time to show up after its process died in the upload.
ORPHAN_PATIENCE: Final = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RecoveryReport:
    """How many requests were taken up again, and how many leases wait no longer."""

    requests: int = 0
    leases: int = 0


class Recovery:
    """Recovers requests and leases of one process, and adopts those of others. Thread-safe."""

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
        """Recover a request if the block raises."""
        with self._remembering(self._requests, request_id):
            yield

    @contextmanager
    def of_lease(self, lease_id: str) -> Iterator[None]:
        """Give up a lease that waits for a task if the block raises."""
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

    def run_once(self) -> RecoveryReport:
        """Recover what was abandoned and has not ended. Costs nothing when no call has raised.

        :raises StoreError: the store cannot be used; the rest is left for the next run.
        """
        requests = sum(self._recover_request(each) for each in self._some(self._requests))
        leases = sum(self._abandon_lease(each) for each in self._some(self._leases))
        return RecoveryReport(requests=requests, leases=leases)

    def adopt(self) -> int:
        """Take over the unfinished requests of processes that are gone; return how many.

        Those whose data is in the spool, and not at CVAT yet, are left to the dispatcher."""
        adopted = self._store.adopt_requests(self._owner, now=self._clock.now())
        for request in adopted:
            self._take_up(request)
        return len(adopted)

    def _take_up(self, request: RequestRecord) -> None:
        """Go on with a request of this process that no thread works on any more."""
        now = self._clock.now()
        log.info("request taken over", request_id=request.id, state=request.state.value)
        if request.import_id is None:
            gone = OwnerGone("send the data again")
            self._store.fail_request(request.id, code=gone.code, message=gone.detail, now=now)
            return
        if request.state is RequestState.UPLOADING:
            # Its last POST may have arrived. If not, CVAT knows no import, and that is found
            # out like any other lost import; jobs may come from another's data.
            importing = self._store.import_record(request.import_id)
            contents = expected_frames(importing) if importing else None
            self._store.begin_import(
                request.import_id,
                deadline=now + ORPHAN_PATIENCE,
                frames=contents.names if contents else None,
                now=now,
            )
        self._tracker.watch(request.import_id, kind="adopted")

    def _some(self, kind: set[str]) -> list[str]:
        with self._guard:
            return sorted(kind)

    def _recover_request(self, request_id: str) -> bool:
        record = self._store.request(request_id)
        # One that waits in the spool is the dispatcher's.
        mine = record is not None and record.owner == self._owner and not record.state.finished
        if mine and record is not None:
            self._take_up(record)
        with self._guard:
            self._requests.discard(request_id)
        return mine

    def _abandon_lease(self, lease_id: str) -> bool:
        waited = self._store.abandon_lease(lease_id, now=self._clock.now())
        if waited:
            log.info("lease given up", lease_id=lease_id)
        with self._guard:
            self._leases.discard(lease_id)
        return waited
