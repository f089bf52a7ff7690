"""Recovers what a call of this process abandoned, and what processes that are gone left behind.

A call that raises (the store could not be written, or a person pressed Control-C) leaves a request
or a lease in the middle. As long as the process lives no other one takes that over, and no thread
of its own works on it. So it is remembered here, and recovered with the next heartbeat.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from pool.clock import Clock
from pool.config.source import frames_of_import
from pool.errors import OwnerGone
from pool.logs import get_logger
from pool.model import Placed, RequestRecord, RequestState
from pool.store import MadeFor, Store, Unserved
from pool.tracking.tracker import Tracker

log = get_logger(__name__)

#: Seconds for which an import is given time to show up after its process died in the upload.
ORPHAN_PATIENCE: Final = 60.0
#: The sort of data of an import that was taken over, whose times are learned apart.
ADOPTED: Final = "adopted"


class Recovery:
    """Recovers requests and leases of one process, and takes over those of others. Thread-safe."""

    def __init__(
        self,
        store: Store,
        tracker: Tracker,
        *,
        owner: str,
        judged_at: Callable[[], float],
        spools: Callable[[], Sequence[str]],
        clock: Clock,
    ) -> None:
        """``judged_at`` returns the time as of which other processes may be judged; see
        :meth:`pool.maintenance.heartbeat.Heartbeat.judged_at`. ``spools`` returns the ids of the
        spools that this process can read."""
        self._store = store
        self._tracker = tracker
        self._owner = owner
        self._judged_at = judged_at
        self._spools = spools
        self._clock = clock
        self._guard = threading.Lock()
        self._requests: set[str] = set()
        self._leases: set[str] = set()
        #: Requests of other processes for which callers of this one wait.
        self._awaited: set[str] = set()

    @contextmanager
    def guarding(self, *, request: str = "", lease: str = "") -> Iterator[None]:
        """Recover a request if the block raises, or give up a lease that waits for a task."""
        try:
            yield
        except BaseException:
            with self._guard:
                if request:
                    self._requests.add(request)
                if lease:
                    self._leases.add(lease)
            raise

    def await_request(self, request: RequestRecord) -> RequestRecord:
        """Have a request, for which a caller waits, taken over once its process is gone: without a
        daemon no other process would. Return it as it is then."""
        if request.state.finished or request.owner == self._owner:
            return request
        with self._guard:
            self._awaited.add(request.id)
        self._adopt_awaited()
        return self._store.request(request.id) or request

    def _adopt_awaited(self) -> None:
        with self._guard:
            awaited = sorted(self._awaited)
        if awaited:
            self.adopt()
        for request_id in awaited:
            record = self._store.request(request_id)
            if record is None or record.state.finished or record.owner == self._owner:
                with self._guard:
                    self._awaited.discard(request_id)

    def run_once(self) -> None:
        """Recover what was abandoned and has not ended, and take over what callers wait for. Costs
        nothing when no call has raised.

        :raises StoreError: the store cannot be used; the rest is left for the next run.
        """
        with self._guard:
            requests, leases = sorted(self._requests), sorted(self._leases)
        for request_id in requests:
            record = self._store.request(request_id)
            # One that waits in the spool is the dispatcher's.
            if record is not None and record.owner == self._owner and not record.state.finished:
                self._take_up(record)
            with self._guard:
                self._requests.discard(request_id)
        self._adopt_awaited()
        for lease_id in leases:
            if self._store.abandon_lease(lease_id, now=self._clock.now()):
                log.info("lease given up", lease_id=lease_id)
            with self._guard:
                self._leases.discard(lease_id)

    def adopt(self) -> int:
        """Take over the unfinished requests of processes that are gone; return how many.

        Those whose data is in the spool, and not at CVAT yet, are left to the dispatcher."""
        adopted = self._store.adopt_requests(self._owner, now=self._judged_at())
        # They are this process's from now on: what the store fails at is left for the next run.
        with self._guard:
            self._requests.update(request.id for request in adopted)
        for request in adopted:
            self._take_up(request)
            with self._guard:
                self._requests.discard(request.id)
        return len(adopted)

    def hand_over(self) -> int:
        """Leave the imports that this process tracks to others, as one does that cannot reach the
        server; return how many."""
        handed_over = self._store.hand_over_imports(self._owner)
        for pooled_id in handed_over:
            self._tracker.forget(pooled_id)
        return len(handed_over)

    def inherit(self, lease_id: str) -> bool:
        """Take over a lease that waits, if its process is gone; return whether it was."""
        return self._store.inherit_lease(lease_id, owner=self._owner, now=self._judged_at())

    def unserved(self, *, each: int) -> Sequence[Unserved]:
        """Return spooled requests that this process may serve, since it can read their data: its
        own, those without an owner, and those of processes that are gone; at most ``each`` of each
        template."""
        return self._store.unserved(
            spools=self._spools(), owner=self._owner, now=self._judged_at(), each=each
        )

    def made_by_others(self) -> Sequence[MadeFor]:
        """Return for which spooled requests other processes make tasks."""
        return self._store.made_by_others(owner=self._owner, now=self._judged_at())

    def _take_up(self, request: RequestRecord) -> None:
        """Go on with a request of this process that no thread works on any more."""
        log.info("request taken over", request_id=request.id, state=request.state.value)
        if request.import_id is None:
            gone = OwnerGone("send the data again")
            self._store.fail_request(
                request.id, code=gone.code, message=gone.detail, now=self._clock.now()
            )
            return
        if request.placed is Placed.SLOT:
            # Whether all of its data is in the slot is not known: that is filled no more.
            gone = OwnerGone("send the data again")
            self._store.fail_request(
                request.id, code=gone.code, message=gone.detail, now=self._clock.now()
            )
            return
        if request.state is RequestState.UPLOADING:
            # Its last POST may have arrived. If not, CVAT knows no import, and that is found
            # out like any other lost import; jobs may come from another's data.
            importing = self._store.import_record(request.import_id)
            frames = frames_of_import(importing) if importing else None
            self._tracker.begin(
                request.import_id,
                timeout=ORPHAN_PATIENCE,
                # Where the names are unknown, none is the request's: it fails rather than get
                # the jobs of other data.
                frames=frames or (),
                kind=ADOPTED,
            )
        else:
            self._tracker.watch(request.import_id, kind=ADOPTED)
