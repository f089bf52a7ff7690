"""What is done after the job ids are out: the task's final name, and the assignments."""

from __future__ import annotations

from dataclasses import dataclass

from pool.clock import Clock
from pool.cvat import CvatClient
from pool.errors import CvatError, CvatNotFound, CvatRejected, CvatUnreachable
from pool.logs import get_logger
from pool.model import PooledTask, RequestRecord
from pool.services.backoff import SERVER, Gate, gate
from pool.store.base import Store

log = get_logger(__name__)

#: Seconds for which the process that served a request is left to finish its task by itself.
GRACE = 30.0
BATCH = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishReport:
    """How many tasks got their name and assignee, and how many did not yet."""

    finished: int = 0
    failed: int = 0


def final_name(task: PooledTask, request: RequestRecord | None) -> str:
    """What the task is called once its data is in: what the caller said, else what is in it."""
    if request is None:
        return f"{task.template} {task.id}"
    if request.name:
        return request.name[:256]
    if not request.files:
        return f"{task.template} {request.id}"
    more = f" and {len(request.files) - 1} more" if len(request.files) > 1 else ""
    return f"{task.template}: {request.files[0][-200:]}{more}"[:256]


class Finish:
    """Names and assigns tasks whose jobs exist."""

    def __init__(self, store: Store, cvat: CvatClient, *, clock: Clock) -> None:
        self._store = store
        self._cvat = cvat
        self._clock = clock

    def run_once(self) -> FinishReport:
        """Finish the tasks that the process which served them has left unfinished."""
        now = self._clock.now()
        if gate(self._store.holds().get(SERVER), now=now) is Gate.SHUT:
            return FinishReport()
        finished = failed = 0
        for task, request in self._store.unfinished_tasks(ready_before=now - GRACE, limit=BATCH):
            try:
                done = self._finish(task, request)
            except CvatUnreachable:
                # Nor would the others get through.
                return FinishReport(finished=finished, failed=failed + 1)
            finished += done
            failed += not done
        return FinishReport(finished=finished, failed=failed)

    def finish(self, task: PooledTask, request: RequestRecord | None) -> bool:
        """Rename and assign. A failure that will not pass is logged and not tried again."""
        try:
            return self._finish(task, request)
        except CvatUnreachable:
            return False

    def _finish(self, task: PooledTask, request: RequestRecord | None) -> bool:
        if task.task_id is None:
            return False
        name = final_name(task, request)
        try:
            if name != task.name:
                self._cvat.rename_task(task.task_id, name)
            if request is not None and request.assignee is not None:
                for job in self._store.jobs_of(task.id):
                    self._cvat.assign_job(job.id, request.assignee)
        except (CvatNotFound, CvatRejected) as error:
            log.warning("task not named or assigned", task_id=task.task_id, why=str(error))
        except CvatError as error:
            log.info("task to be named later", task_id=task.task_id, why=str(error))
            if isinstance(error, CvatUnreachable):
                raise
            return False
        return self._store.finish_task(task.id, name=name, now=self._clock.now())
