"""Deletes on the server what the pool has no use for: retired and burnt tasks."""

from __future__ import annotations

from dataclasses import dataclass

from pool.clock import Clock
from pool.cvat import CvatClient
from pool.errors import CvatError
from pool.logs import get_logger
from pool.store.base import Store

log = get_logger(__name__)

#: Tasks in one round, and in a round while requests are being served.
BATCH = 20
BATCH_BUSY = 1
#: Seconds after which a deletion that did not end is tried again.
RETRY_AFTER = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class DeletionReport:
    """How many tasks were deleted, and how many could not be."""

    deleted: int = 0
    failed: int = 0


class Deletion:
    """Deletes ``RETIRED`` and ``FAILED`` tasks, a few at a time."""

    def __init__(self, store: Store, cvat: CvatClient, *, owner: str, clock: Clock) -> None:
        self._store = store
        self._cvat = cvat
        self._owner = owner
        self._clock = clock

    def run_once(self) -> DeletionReport:
        """Delete up to a batch; a task that cannot be deleted now is passed over for a while."""
        batch = BATCH_BUSY if self._store.in_flight() else BATCH
        deleted = failed = 0
        for task in self._store.begin_delete(
            owner=self._owner, limit=batch, retry_after=RETRY_AFTER, now=self._clock.now()
        ):
            try:
                if task.task_id is not None:
                    self._cvat.delete_task(task.task_id)
            except CvatError as error:
                failed += 1
                log.warning("delete failed", task_id=task.task_id, why=str(error))
                continue
            self._store.finish_delete(task.id, now=self._clock.now())
            deleted += 1
            log.info("task deleted", task_id=task.task_id, template=task.template, why=task.reason)
        return DeletionReport(deleted=deleted, failed=failed)
