"""Delete on the server what the pool has no use for: retired and burnt tasks.

Each is looked at once more before: meanwhile it may have got data or another name.
"""

from __future__ import annotations

from dataclasses import dataclass

from pool.clock import Clock
from pool.cvat import CvatClient
from pool.cvat.records import ImportStatus, TaskInfo
from pool.errors import CvatError, CvatForbidden
from pool.logs import get_logger
from pool.maintenance.reconcile_rules import Action, Sight, judge_doomed
from pool.maintenance.term import Term
from pool.model import PooledTask
from pool.requests.breaker import server_is_open
from pool.store import Store

log = get_logger(__name__)

#: Tasks in one round, and in a round while requests are being served.
BATCH = 20
BATCH_BUSY = 1
#: Seconds after which a deletion that did not end is tried again.
RETRY_AFTER = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class DeletionReport:
    """How many tasks were deleted, were left to their users, and could not be deleted."""

    deleted: int = 0
    disowned: int = 0
    failed: int = 0


class Deletion:
    """Deletes ``RETIRED`` and ``FAILED`` tasks, a few at a time, while its term lasts."""

    def __init__(
        self, store: Store, cvat: CvatClient, term: Term, *, owner: str, clock: Clock
    ) -> None:
        self._store = store
        self._cvat = cvat
        self._term = term
        self._owner = owner
        self._clock = clock

    def run_once(self) -> DeletionReport:
        """Delete up to a batch. A task that cannot be deleted is passed over for a while.

        :raises TermLost: the rest is left to the process that maintains the store now.
        """
        if server_is_open(self._store, now=self._clock.now()):
            return DeletionReport()
        batch = BATCH_BUSY if self._store.in_flight() else BATCH
        doomed = self._store.begin_delete(
            owner=self._owner, limit=batch, retry_after=RETRY_AFTER, now=self._clock.now()
        )
        if not doomed:
            return DeletionReport()
        try:
            listed = self._cvat.tasks([task.task_id for task in doomed if task.task_id is not None])
        except CvatError as error:
            log.warning("nothing deleted", tasks=len(doomed), why=str(error))
            return DeletionReport(failed=len(doomed))
        deleted = disowned = failed = 0
        for task in doomed:
            try:
                action = self._end(task, listed)
            except CvatError as error:
                log.warning("delete failed", task_id=task.task_id, why=str(error))
                action = None
            deleted += action in (Action.DELETE, Action.LEAVE)
            disowned += action is Action.DISOWN
            failed += action is None
        return DeletionReport(deleted=deleted, disowned=disowned, failed=failed)

    def _end(self, task: PooledTask, listed: dict[int, TaskInfo]) -> Action | None:
        if task.task_id is None:
            self._store.finish_delete(task.id, now=self._clock.now())
            return Action.LEAVE
        sight = look_closer(self._cvat, task.task_id, listed)
        served = self._served(task, task.task_id)
        importing = ImportStatus.UNKNOWN
        if sight.info is not None and sight.info.has_data and not served:
            # Frames and jobs appear at the end of an import only.
            importing = self._cvat.import_state(task.task_id).status
        carrier = self._store.carrier(task.id) if task.slots else None
        title = carrier.title if carrier else ""
        action = judge_doomed(task, sight, served=served, importing=importing, title=title)
        if action is None:
            log.warning("delete failed", task_id=task.task_id, why="hidden from the credentials")
        elif action is Action.DISOWN:
            self._store.disown(
                task.id, reason=f"{task.reason}; used or renamed since", now=self._clock.now()
            )
            log.warning("task left to its users", task_id=task.task_id, name=task.name)
        else:
            if action is Action.DELETE:
                self._term.check(deleting=task.id)
                self._cvat.delete_task(task.task_id)
            self._store.finish_delete(task.id, now=self._clock.now())
            log.info(
                "task deleted",
                task_id=task.task_id,
                template=task.template,
                term=self._term.number,
                why=task.reason,
            )
        return action

    def _served(self, task: PooledTask, task_id: int) -> bool:
        """Whether the pool itself sent data to the task."""
        owner, importing = self._store.task_on_server(task_id) or (None, None)
        return owner is not None and owner.id == task.id and importing is not None


def look_closer(cvat: CvatClient, task_id: int, listed: dict[int, TaskInfo]) -> Sight:
    """Return what the server shows of one task, after a listing of several: only a listing of our
    organization says where a task is, and only a call for the task itself whether it is gone."""
    if task_id in listed:
        return Sight(info=listed[task_id])
    try:
        return Sight(info=cvat.task(task_id), elsewhere=True)
    except CvatForbidden:
        return Sight(hidden=True)


def delete_all(deletion: Deletion) -> DeletionReport:
    """Delete all that can be deleted now; return the sum."""
    total = DeletionReport()
    while (report := deletion.run_once()) != DeletionReport():
        total = DeletionReport(
            deleted=total.deleted + report.deleted,
            disowned=total.disowned + report.disowned,
            failed=total.failed + report.failed,
        )
    return total
