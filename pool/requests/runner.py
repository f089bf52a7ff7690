"""Takes a request's data to CVAT: one POST, and the settling of an answer that was lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from pool.backoff import backoff
from pool.clock import Clock
from pool.config.settings import Template
from pool.cvat import CvatClient, cut_off, left_untouched, refused_for_data_there
from pool.cvat.records import ImportStatus, Progress, Upload
from pool.errors import (
    CvatError,
    CvatNotFound,
    CvatRejected,
    CvatUnreachable,
    PoolError,
)
from pool.logs import get_logger
from pool.model import Handout, RequestRecord, RequestState, new_id
from pool.requests.backoff import SERVER, is_away
from pool.requests.breaker import Blame, Breaker
from pool.requests.create import outcome_unknown
from pool.requests.placement import HandOut
from pool.requests.queue import Queue
from pool.requests.source import kind_of
from pool.store import Opened, Store
from pool.tracking.tracker import Tracker

log = get_logger(__name__)

#: A request gets this many tasks at most: a task can be gone or burnt through no fault of its
#: data, but not time and again.
MOST_TASKS = 3
#: Seconds between looks at a task whose answer was lost, until the lost POST must have ended.
SETTLE_LOOKS = (0.2, 0.5, 1.0, 2.0)
#: Seconds to wait at most before data whose upload was cut off is sent to a second task, doubled
#: for each further one, and at most at all.
CUT_OFF_PAUSE = 1.0
LONGEST_CUT_OFF_PAUSE = 64.0


class Aftermath(Enum):
    """How things stand after an upload."""

    #: CVAT has the data, even if its answer was lost.
    ACCEPTED = auto()
    #: Nothing reached the task; it can be given back.
    UNTOUCHED = auto()
    #: The task is no use, but the data may be fine: another task may take it.
    TASK_LOST = auto()
    #: As TASK_LOST, and CVAT could not even be asked what has become of the data.
    UNSETTLED = auto()
    #: CVAT does not want this data.
    REFUSED = auto()


@dataclass(frozen=True, slots=True)
class Attempt:
    """What one upload came to; ``error`` is why it failed, None when it did not."""

    aftermath: Aftermath
    error: PoolError | None = None


class Intake:
    """Serves requests that have a task: uploads, and hands them to the tracker."""

    def __init__(
        self,
        store: Store,
        cvat: Callable[[], CvatClient],
        hand_out: HandOut,
        tracker: Tracker,
        queue: Queue,
        breaker: Breaker,
        *,
        on_send: Callable[[RequestRecord], None] = lambda _: None,
        clock: Clock,
    ) -> None:
        """``on_send`` is called with a request as its data is about to be sent; it must not
        wait."""
        self._store = store
        self._cvat = cvat
        self._hand_out = hand_out
        self._tracker = tracker
        self._queue = queue
        self._on_send = on_send
        self._breaker = breaker
        self._clock = clock

    # --- A caller who waits for the end -----------------------------------------------------------

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
        taken, with the same data, for which ``progress`` begins again. When CVAT cannot be
        reached and there is a daemon, the request is ``QUEUED`` afterwards, for it to serve.

        :raises InputError: the data cannot be read; the request has failed, and the task, which
            nothing has reached, is warm again.
        :raises CvatError: CVAT did not take the data; the request has failed.
        :raises QueueFull: CVAT cannot be reached, and too many requests wait for it already.
        """
        for tasks_left in reversed(range(MOST_TASKS)):
            try:
                attempt = self.attempt(template, handout, upload, progress=progress)
            except BaseException as error:
                self._fail(request, PoolError(f"the upload was interrupted ({error!r})"))
                raise
            why = attempt.error
            if why is None or attempt.aftermath is Aftermath.ACCEPTED:
                self._breaker.upload_worked(template.name, request.id)
                return self.track(template, request, handout, upload)
            blame = None
            if is_away(why) and not cut_off(why) and self._queue.served:
                blame = self._breaker.upload_failed(template.name, request.id, why)
            match attempt.aftermath:
                case Aftermath.UNTOUCHED:
                    return self._queue_or_give_back(request, upload, why)
                case Aftermath.UNSETTLED if self._queue.served:
                    self._throw_away(request, why)
                    return self._queue_or_give_back(request, upload, why)
                case Aftermath.TASK_LOST | Aftermath.UNSETTLED if tasks_left:
                    if cut_off(why):
                        self.back_off(MOST_TASKS - 1 - tasks_left)
                    another = self._another_task(template, request, upload, why)
                    if isinstance(another, RequestRecord):
                        return another
                    handout = another
                case Aftermath.TASK_LOST if blame is Blame.OTHERS:
                    # No upload works, so the daemon tries on.
                    self._throw_away(request, why)
                    return self._queue_or_give_back(request, upload, why)
                case _:
                    self._fail(request, why)
                    raise why
        raise AssertionError("the last task either takes the data or raises")

    def queue_up(self, opened: Opened, upload: Upload) -> RequestRecord:
        """Have a request wait for the daemon without trying CVAT, which is known to be away.

        :raises CvatUnreachable: there is no daemon any more; the request has failed.
        :raises QueueFull: there is no room for it; likewise.
        """
        if opened.request is None:
            raise PoolError("the store kept no request")
        if opened.replayed:
            return opened.request
        holds = self._store.holds()
        hold = holds.get(SERVER) or holds.get(opened.request.template)
        away = CvatUnreachable(hold.reason if hold else "")
        return self._queue_or_give_back(opened.request, upload, away)

    def put_aside(
        self, request: RequestRecord, upload: Upload, error: BaseException
    ) -> RequestRecord | None:
        """Have a request wait for the daemon that nothing was done for because CVAT is away; None
        when it is not, or when there is no daemon: then nothing has changed.

        :raises QueueFull: there is no room for it; the request has failed. So it has after
            whatever else stands in the way.
        """
        if not isinstance(error, PoolError) or not is_away(error):
            return None
        try:
            queued = self._queue.put_aside(request, upload)
            # What becomes of it is the daemon's to remember.
            self._breaker.forget(request.id)
            return queued
        except PoolError as problem:
            self._give_back(request, problem)
            raise problem from error

    def _queue_or_give_back(
        self, request: RequestRecord, upload: Upload, error: PoolError
    ) -> RequestRecord:
        current = self._store.request(request.id) or request
        queued = self.put_aside(current, upload, error)
        if queued is None:
            self._give_back(current, error)
            raise error
        return queued

    def _another_task(
        self, template: Template, request: RequestRecord, upload: Upload, error: PoolError
    ) -> Handout | RequestRecord:
        """Another task for the request; or the request itself, which waits for CVAT now."""
        lease = self._store.lease(self._throw_away(request, error))
        if lease is None:
            raise error
        try:
            return self._hand_out.reopen(template, lease)
        except PoolError as reason:
            if is_away(reason):
                return self._queue_or_give_back(request, upload, reason)
            self._fail(request, reason)
            raise

    # --- Steps ------------------------------------------------------------------------------------

    def attempt(
        self,
        template: Template,
        handout: Handout,
        upload: Upload,
        *,
        progress: Progress | None = None,
    ) -> Attempt:
        """Upload once into the task of a hand-out, and find out what came of it. Changes no row."""
        if handout.request is not None:
            self._on_send(handout.request)
        try:
            self._upload(template, handout, upload, progress)
        except PoolError as error:
            return Attempt(self._after_failure(handout, error), error)
        return Attempt(Aftermath.ACCEPTED)

    def track(
        self, template: Template, request: RequestRecord, handout: Handout, upload: Upload
    ) -> RequestRecord:
        """CVAT has the data: follow its import."""
        now = self._clock.now()
        self._store.begin_import(
            request.id,
            under=handout.lease.id,
            deadline=now + template.importing.timeout,
            now=now,
        )
        importing = self._store.request(request.id)
        if importing is None:
            raise PoolError(f"request {request.id} is gone from the store")
        if importing.state is RequestState.IMPORTING:
            self._tracker.watch(importing, kind=kind_of(upload))
        return importing

    def back_off(self, earlier: int) -> None:
        """Pause before data whose upload was cut off is sent again, after so many times before."""
        self._clock.sleep(
            backoff(earlier + 1, base=CUT_OFF_PAUSE, cap=LONGEST_CUT_OFF_PAUSE, least=0.0)
        )

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

    # --- When it did not work -----------------------------------------------------------------

    def _after_failure(self, handout: Handout, error: PoolError) -> Aftermath:
        if isinstance(error, CvatNotFound) or cut_off(error):
            return Aftermath.TASK_LOST
        if isinstance(error, CvatRejected) and refused_for_data_there(error.detail):
            # Somebody else's data is in it; theirs is left alone when the task is thrown away.
            return Aftermath.TASK_LOST
        if isinstance(error, CvatError) and outcome_unknown(error):
            return self._settle(handout)
        return Aftermath.UNTOUCHED if left_untouched(error) else Aftermath.REFUSED

    def _settle(self, handout: Handout) -> Aftermath:
        """Whether data whose POST got no answer is being imported (CVAT.md, fact 10).

        Sending again would make the server fail on the file that is there already. So look:
        jobs, then the request, whose id is known; if there is neither, the task is no use.
        """
        task_id = handout.task.task_id
        if task_id is None:
            return Aftermath.TASK_LOST
        answered = False
        for pause in SETTLE_LOOKS:
            self._clock.sleep(pause)
            try:
                if self._cvat().jobs([task_id]):
                    return Aftermath.ACCEPTED
                state = self._cvat().import_state(task_id)
            except CvatError as error:
                log.info("lost answer not settled yet", task_id=task_id, why=str(error))
                continue
            answered = True
            if state.status in (
                ImportStatus.QUEUED,
                ImportStatus.STARTED,
                ImportStatus.FINISHED,
                ImportStatus.FAILED,
            ):
                return Aftermath.ACCEPTED
            if state.status is ImportStatus.TASK_GONE:
                return Aftermath.TASK_LOST
        return Aftermath.TASK_LOST if answered else Aftermath.UNSETTLED

    def _throw_away(self, request: RequestRecord, error: PoolError) -> str:
        """The request's task is no use any more. Answers the lease with which it waits now."""
        log.warning("task thrown away", request_id=request.id, why=str(error))
        lease_id = new_id(self._clock.now())
        self._store.requeue_request(
            request.id, lease_id=lease_id, reason=str(error), now=self._clock.now()
        )
        return lease_id

    def _give_back(self, request: RequestRecord, error: PoolError) -> None:
        self._breaker.forget(request.id)
        self._store.return_request(
            request.id, code=error.code, message=error.detail, now=self._clock.now()
        )

    def _fail(self, request: RequestRecord, error: PoolError) -> None:
        self._breaker.forget(request.id)
        self._store.fail_request(
            request.id, code=error.code, message=error.detail, now=self._clock.now()
        )
