"""Making one pooled task on the server, for the pool or for a caller who waits for it."""

from __future__ import annotations

from pool.clock import Clock
from pool.config.settings import Template
from pool.cvat import CvatClient
from pool.errors import CvatAmbiguous, CvatBusy, CvatError
from pool.logs import get_logger
from pool.model import PooledTask
from pool.store import Store

log = get_logger(__name__)


def outcome_unknown(error: CvatError) -> bool:
    """Whether the server may have done what was asked although it did not say so.

    A lost answer, and a 5xx, which a proxy may send while the server behind it goes on.
    """
    if isinstance(error, CvatAmbiguous):
        return True
    return isinstance(error, CvatBusy) and (error.http_status or 0) >= 500


def create_on_server(
    store: Store, cvat: CvatClient, template: Template, pooled: PooledTask, *, clock: Clock
) -> bool:
    """Create the task of a ``CREATING`` row and prepare its upload; tells whether it is prepared.

    The row is still ``CREATING`` afterwards, with CVAT's id. When the server has certainly made
    nothing, the row is ``FAILED``. After a 5xx the task is looked up by its name at once. When the
    answer was lost the create may still happen: the row stays, to be settled by its name later.

    :raises pool.errors.CvatError: the task was not created, or that is unknown.
    """
    try:
        task_id = cvat.create_task(template.create_fields, pooled.name)
    except CvatError as error:
        made = None
        if outcome_unknown(error):
            if isinstance(error, CvatAmbiguous):
                raise
            made = _task_named(cvat, pooled.name, error)
        if made is None:
            store.fail_create(pooled.id, reason=str(error), now=clock.now())
            raise
        task_id = made
    store.record_created(pooled.id, task_id=task_id, now=clock.now())
    try:
        cvat.prepare_upload(task_id)
    except CvatError as error:
        # The upload does without it, only a little slower.
        log.info("upload not prepared", task_id=task_id, template=template.name, why=str(error))
        return False
    return True


def _task_named(cvat: CvatClient, name: str, error: CvatError) -> int | None:
    """The task that a create has made although its answer was a 5xx; None when it made none.

    :raises pool.errors.CvatError: ``error``, when the server cannot be asked.
    """
    try:
        found = cvat.find_tasks(name)
    except CvatError:
        raise error from None
    return found[0].id if found else None
