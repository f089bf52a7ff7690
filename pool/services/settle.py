"""Settles creates of which nobody knows whether they happened, by the unique name that was sent.

A process may die, or an answer be lost, between the intent that stands in the store and the
server's answer. The name of the row tells what became of it (CVAT.md, fact 10).
"""

from __future__ import annotations

from dataclasses import dataclass

from pool.clock import Clock
from pool.cvat import CvatClient
from pool.errors import CvatError
from pool.logs import get_logger
from pool.model import PooledTask, TaskState
from pool.store.base import Store

log = get_logger(__name__)

#: Seconds beyond the HTTP time-out after which a lost POST cannot commit any more.
GRACE = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SettleReport:
    """How many creates had happened, and how many had not."""

    found: int = 0
    missing: int = 0


class Settle:
    """Ends ``CREATING`` rows that nobody works on any more."""

    def __init__(
        self, store: Store, cvat: CvatClient, *, http_timeout: float, clock: Clock
    ) -> None:
        self._store = store
        self._cvat = cvat
        self._after = 2 * http_timeout + GRACE
        self._clock = clock

    def run_once(self) -> SettleReport:
        """Look up all creates that have been under way for too long."""
        now = self._clock.now()
        stuck = [
            task
            for task in self._store.tasks(states=(TaskState.CREATING,))
            if task.changed_at < now - self._after
        ]
        found = 0
        for position, task in enumerate(stuck):
            try:
                found += self._settle(task)
            except CvatError as error:
                log.warning("create not settled", name=task.name, why=str(error))
                return SettleReport(found=found, missing=position - found)
        return SettleReport(found=found, missing=len(stuck) - found)

    def _settle(self, task: PooledTask) -> bool:
        matches = self._cvat.find_tasks(task.name)
        now = self._clock.now()
        if not matches:
            self._store.fail_create(task.id, reason="the create never happened", now=now)
            return False
        self._store.record_created(task.id, task_id=matches[0].id, now=now)
        if matches[0].empty:
            self._store.finish_create(task.id, prepared=matches[0].has_data, now=now)
        else:
            self._store.fail_create(task.id, reason="somebody put data into it", now=now)
        log.info("create settled", name=task.name, task_id=matches[0].id)
        return True
