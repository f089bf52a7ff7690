"""Making one pooled task on the server, for the pool or for a caller who waits for it."""

from __future__ import annotations

from pool.clock import Clock
from pool.cvat import CvatClient
from pool.errors import CvatAmbiguous, CvatBusy, CvatError
from pool.logs import get_logger
from pool.model import PooledTask
from pool.settings import Template
from pool.store.base import Store

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
    nothing, the row is ``FAILED``; when that is unknown it stays, to be settled by its name.

    :raises pool.errors.CvatError: the task was not created, or that is unknown.
    """
    try:
        task_id = cvat.create_task(template.create_fields, pooled.name)
    except CvatError as error:
        if not outcome_unknown(error):
            store.fail_create(pooled.id, reason=str(error), now=clock.now())
        raise
    store.record_created(pooled.id, task_id=task_id, now=clock.now())
    try:
        cvat.prepare_upload(task_id)
    except CvatError as error:
        # The upload does without it, only a little slower.
        log.info("upload not prepared", task_id=task_id, template=template.name, why=str(error))
        return False
    return True
