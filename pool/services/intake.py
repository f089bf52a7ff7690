"""Takes a request's data to CVAT: one POST, and the settling of an answer that was lost."""

from __future__ import annotations

import random
from collections.abc import Callable
from enum import Enum, auto

from pool.clock import Clock
from pool.cvat import CvatClient, cut_off, left_untouched, refused_for_data_there
from pool.cvat.records import ImportStatus, Progress, Upload
from pool.errors import (
    CvatError,
    CvatNotFound,
    CvatRejected,
    PoolError,
)
from pool.files import kind_of
from pool.logs import get_logger
from pool.model import Handout, RequestRecord, RequestState, new_id
from pool.services.create import outcome_unknown
from pool.services.handout import HandOut
from pool.services.tracker import Tracker
from pool.settings import Template
from pool.store.base import Store

log = get_logger(__name__)

#: A request gets this many tasks at most: a task can be gone or burnt through no fault of its
#: data, but not time and again.
MOST_TASKS = 3
#: Seconds between looks at a task whose answer was lost, until the lost POST must have ended.
SETTLE_LOOKS = (0.2, 0.5, 1.0, 2.0)
#: Seconds to wait at most before data whose upload was cut off is sent to a second task, doubled
#: for each further one.
CUT_OFF_PAUSE = 1.0


class Aftermath(Enum):
    """How things stand after a failed upload."""

    #: CVAT has the data after all; only its answer was lost.
    ARRIVED = auto()
    #: Nothing reached the task; it can be given back.
    UNTOUCHED = auto()
    #: The task is no use, but the data may be fine: another task may take it.
    TASK_LOST = auto()
    #: CVAT does not want this data.
    REFUSED = auto()


class Intake:
    """Serves requests that have a task: uploads, and hands them to the tracker."""

    def __init__(
        self,
        store: Store,
        cvat: Callable[[], CvatClient],
        hand_out: HandOut,
        tracker: Tracker,
        *,
        clock: Clock,
    ) -> None:
        self._store = store
        self._cvat = cvat
        self._hand_out = hand_out
        self._tracker = tracker
        self._clock = clock

    def send(
        self,
        template: Template,
        request: RequestRecord,
        handout: Handout,
        upload: Upload,
        *,
        progress: Progress | None = None,
    ) -> RequestRecord:
        """Upload into the task; afterwards the request is ``IMPORTING`` and tracked.

        A task that turns out to be gone, that has only a part of the data because the connection
        was cut, or whose state after a lost answer is no good, is thrown away and another one
        taken, with the same data, for which ``progress`` begins again.

        :raises InputError: the data cannot be read; the request has failed, and the task, which
            nothing has reached, is warm again.
        :raises CvatError: CVAT did not take the data; the request has failed.
        """
        for tasks_left in reversed(range(MOST_TASKS)):
            try:
                self._upload(template, handout, upload, progress)
            except PoolError as error:
                match self._after_failure(handout, error):
                    case Aftermath.ARRIVED:
                        pass
                    case Aftermath.TASK_LOST if tasks_left:
                        if cut_off(error):
                            self._back_off(MOST_TASKS - 1 - tasks_left)
                        handout = self._another_task(template, request, error)
                        continue
                    case Aftermath.UNTOUCHED:
                        self._give_task_back(request, error)
                        raise
                    case _:
                        self._fail(request, error)
                        raise
            except BaseException as error:
                self._fail(request, PoolError(f"the upload was interrupted ({error!r})"))
                raise
            return self._track(template, request, upload)
        raise AssertionError("the last task either takes the data or raises")

    def _upload(
        self, template: Template, handout: Handout, upload: Upload, progress: Progress | None
    ) -> None:
        if handout.task.task_id is None:
            raise CvatNotFound("the task has no id")
        self._cvat().upload(
            handout.task.task_id,
            upload,
            template.data,
            single_request_limit=template.importing.single_request_limit,
            prepared=handout.task.prepared,
            at_once=template.importing.upload_concurrency,
            progress=progress,
        )

    def _track(self, template: Template, request: RequestRecord, upload: Upload) -> RequestRecord:
        now = self._clock.now()
        self._store.begin_import(request.id, deadline=now + template.importing.timeout, now=now)
        importing = self._store.request(request.id)
        if importing is None:
            raise PoolError(f"request {request.id} is gone from the store")
        if importing.state is RequestState.IMPORTING:
            self._tracker.watch(importing, kind=kind_of(upload))
        return importing

    # --- When it did not work -----------------------------------------------------------------

    def _after_failure(self, handout: Handout, error: PoolError) -> Aftermath:
        if isinstance(error, CvatNotFound) or cut_off(error):
            return Aftermath.TASK_LOST
        if isinstance(error, CvatRejected) and refused_for_data_there(error.detail):
            # Somebody else's data is in it; theirs is left alone when the task is thrown away.
            return Aftermath.TASK_LOST
        if isinstance(error, CvatError) and outcome_unknown(error):
            return Aftermath.ARRIVED if self._has_arrived(handout) else Aftermath.TASK_LOST
        return Aftermath.UNTOUCHED if left_untouched(error) else Aftermath.REFUSED

    def _back_off(self, earlier: int) -> None:
        self._clock.sleep(random.uniform(0.0, CUT_OFF_PAUSE * 2.0**earlier))

    def _has_arrived(self, handout: Handout) -> bool:
        """Whether data whose POST got no answer is being imported (CVAT.md, fact 10).

        Sending again would make the server fail on the file that is there already. So look:
        jobs, then the request, whose id is known; if there is neither, the task is no use.
        """
        task_id = handout.task.task_id
        if task_id is None:
            return False
        for pause in SETTLE_LOOKS:
            self._clock.sleep(pause)
            try:
                if self._cvat().jobs([task_id]):
                    return True
                state = self._cvat().import_state(task_id)
            except CvatError as error:
                log.info("lost answer not settled yet", task_id=task_id, why=str(error))
                continue
            if state.status in (
                ImportStatus.QUEUED,
                ImportStatus.STARTED,
                ImportStatus.FINISHED,
                ImportStatus.FAILED,
            ):
                return True
            if state.status is ImportStatus.TASK_GONE:
                return False
        return False

    def _another_task(
        self, template: Template, request: RequestRecord, error: PoolError
    ) -> Handout:
        log.warning("task thrown away", request_id=request.id, why=str(error))
        lease_id = new_id(self._clock.now())
        self._store.requeue_request(
            request.id, lease_id=lease_id, reason=str(error), now=self._clock.now()
        )
        lease = self._store.lease(lease_id)
        if lease is None:
            raise error
        try:
            return self._hand_out.reopen(template, lease)
        except PoolError as reason:
            self._fail(request, reason)
            raise

    def _give_task_back(self, request: RequestRecord, error: PoolError) -> None:
        self._store.return_request(
            request.id, code=error.code, message=error.detail, now=self._clock.now()
        )

    def _fail(self, request: RequestRecord, error: PoolError) -> None:
        self._store.fail_request(
            request.id, code=error.code, message=error.detail, now=self._clock.now()
        )
