"""End leases whose time is up, by what CVAT says of their tasks: an untouched task or slot goes
back to warm, an import is followed, and what a caller has made their own is left to them."""

from __future__ import annotations

from typing import Final

from pool.clock import Clock
from pool.config.settings import Templates
from pool.cvat import CvatClient
from pool.cvat.records import ImportStatus, TaskInfo
from pool.errors import CvatError, CvatUnreachable, ImportFailed
from pool.logs import get_logger
from pool.model import Handout
from pool.requests.breaker import server_is_open
from pool.store import Store

log = get_logger(__name__)

#: Expired leases that are looked at in one run; failures to reach CVAT in a row that end it; and
#: seconds until one that failed is looked at again.
BATCH: Final = 100
MOST_AWAY: Final = 3
RETRY_AFTER: Final = 60.0
#: Why a slot is filled no more, as its row has it.
ANNOTATED: Final = "annotated before it was filled"


class LeaseExpiry:
    """Ends expired leases."""

    def __init__(
        self, store: Store, cvat: CvatClient, templates: Templates, *, clock: Clock
    ) -> None:
        self._store = store
        self._cvat = cvat
        self._templates = templates
        self._clock = clock
        #: When a lease that failed is looked at again, by the monotonic clock.
        self._retry_at: dict[str, float] = {}

    def run_once(self) -> int:
        """End what has expired; return how many tasks were given back. What CVAT does not answer
        for stays as it is."""
        now = self._clock.now()
        expired = self._due()
        if not expired or server_is_open(self._store, now=now):
            return 0
        ids = [handout.task.task_id for handout in expired if handout.task.task_id is not None]
        try:
            on_server = self._cvat.tasks(ids)
        except CvatError as error:
            log.warning("expired leases not looked at", why=str(error))
            return 0
        given_back = away = 0
        for handout in expired:
            try:
                given_back += self._end(handout, on_server.get(handout.task.task_id or 0))
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
        return given_back

    def _due(self) -> list[Handout]:
        now = self._clock.monotonic()
        self._retry_at = {lease_id: at for lease_id, at in self._retry_at.items() if at > now}
        limit = BATCH + len(self._retry_at)
        expired = self._store.expired_leases(now=self._clock.now(), limit=limit)
        return [each for each in expired if each.lease.id not in self._retry_at]

    def _end(self, handout: Handout, info: TaskInfo | None) -> bool:
        """End one lease, give its task back, or follow the import that is in it; return whether the
        task was given back."""
        now = self._clock.now()
        lease, task = handout.lease, handout.task
        if info is None or task.task_id is None:
            self._store.end_lease(lease.id, reason="deleted on the server", now=now)
            return False
        if (slot := self._store.slot(task.id)) is not None:
            if self._cvat.annotated(slot.job_id):
                self._store.end_lease(lease.id, reason=ANNOTATED, now=now)
                return False
            return self._store.give_back(lease.id, now=now, expired=True)
        jobs = self._cvat.jobs([task.task_id]).get(task.task_id)
        if jobs:
            template = self._templates.get(task.template)
            divided = template is not None and template.divided
            self._store.complete_import(task.id, jobs, divided=divided, now=now)
            return False
        state = self._cvat.import_state(task.task_id)
        if state.status is ImportStatus.FAILED:
            self._store.fail_import(
                task.id,
                lease_id=lease.id,
                code=ImportFailed.code,
                message=state.message,
                now=now,
            )
            return False
        if state.status in (ImportStatus.QUEUED, ImportStatus.STARTED, ImportStatus.FINISHED):
            self._store.begin_foreign_import(lease.id, now=now)
            return False
        if not info.empty or info.name != task.name:
            self._store.end_lease(lease.id, reason="used or renamed by its caller", now=now)
            return False
        return self._store.give_back(lease.id, now=now, expired=True)
