"""End leases whose time is up, by what CVAT says of their tasks: an untouched task goes back to
warm, an import is followed, and what a caller has made their own is left to them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

from pool.clock import Clock
from pool.cvat import CvatClient
from pool.cvat.records import ImportStatus, TaskInfo
from pool.errors import CvatError, CvatUnreachable, ImportFailed
from pool.logs import get_logger
from pool.model import Handout
from pool.requests.breaker import SERVER, Circuit, circuit
from pool.store import Store

log = get_logger(__name__)

#: Expired leases that are looked at in one run; failures to reach CVAT in a row that end it; and
#: seconds until one that failed is looked at again.
BATCH: Final = 100
MOST_AWAY: Final = 3
RETRY_AFTER: Final = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaseExpiryReport:
    """How many leases were given back, were followed into an import, and ended otherwise."""

    given_back: int = 0
    followed: int = 0
    ended: int = 0


class LeaseExpiry:
    """Ends expired leases."""

    def __init__(self, store: Store, cvat: CvatClient, *, clock: Clock) -> None:
        self._store = store
        self._cvat = cvat
        self._clock = clock
        #: When a lease that failed is looked at again, by the monotonic clock.
        self._retry_at: dict[str, float] = {}

    def run_once(self) -> LeaseExpiryReport:
        """End what has expired. What CVAT does not answer for stays as it is."""
        now = self._clock.now()
        expired = self._due()
        if not expired or circuit(self._store.holds().get(SERVER), now=now) is Circuit.OPEN:
            return LeaseExpiryReport()
        ids = [handout.task.task_id for handout in expired if handout.task.task_id is not None]
        try:
            on_server = self._cvat.tasks(ids)
        except CvatError as error:
            log.warning("expired leases not looked at", why=str(error))
            return LeaseExpiryReport()
        done: Counter[str] = Counter()
        away = 0
        for handout in expired:
            try:
                done[self._end(handout, on_server.get(handout.task.task_id or 0))] += 1
                away = 0
            except CvatError as error:
                # One that fails every time must not keep the others.
                log.warning(
                    "expired lease not looked at", lease_id=handout.lease.id, why=str(error)
                )
                self._retry_at[handout.lease.id] = self._clock.monotonic() + RETRY_AFTER
                away = away + 1 if isinstance(error, CvatUnreachable) else 0
                if away == MOST_AWAY:
                    break
        return LeaseExpiryReport(**done)

    def _due(self) -> list[Handout]:
        now = self._clock.monotonic()
        self._retry_at = {lease_id: at for lease_id, at in self._retry_at.items() if at > now}
        limit = BATCH + len(self._retry_at)
        expired = self._store.expired_leases(now=self._clock.now(), limit=limit)
        return [each for each in expired if each.lease.id not in self._retry_at]

    def _end(self, handout: Handout, info: TaskInfo | None) -> str:
        """End one lease; return the field of the report that counts it."""
        now = self._clock.now()
        lease, task = handout.lease, handout.task
        if info is None or task.task_id is None:
            self._store.end_lease(lease.id, reason="deleted on the server", now=now)
            return "ended"
        jobs = self._cvat.jobs([task.task_id]).get(task.task_id)
        if jobs:
            self._store.complete_import(task.id, jobs, now=now)
            return "followed"
        state = self._cvat.import_state(task.task_id)
        if state.status is ImportStatus.FAILED:
            self._store.fail_import(task.id, code=ImportFailed.code, message=state.message, now=now)
            return "ended"
        if state.status in (ImportStatus.QUEUED, ImportStatus.STARTED, ImportStatus.FINISHED):
            self._store.begin_foreign_import(lease.id, now=now)
            return "followed"
        if not info.empty or info.name != task.name:
            self._store.end_lease(lease.id, reason="used or renamed by its caller", now=now)
            return "ended"
        self._store.give_back(lease.id, now=now, expired=True)
        return "given_back"
