"""Runs a request: finds it a task, sends its data, and does what follows from how that went.

The same steps are taken inline, for a caller that waits for the answer, and by a worker of the
daemon (:mod:`pool.requests.dispatcher`), for a request that was accepted before.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pool.backoff import backoff
from pool.clock import Clock
from pool.config.contents import Contents, contents_of
from pool.config.settings import Template
from pool.config.source import Progress, Upload, kind_of
from pool.cvat import CvatClient, cut_off
from pool.cvat.failures import OTHER_DATA
from pool.cvat.records import ImportStatus
from pool.errors import (
    CvatError,
    CvatNotFound,
    CvatUnreachable,
    DataGone,
    OwnerGone,
    PoolEmpty,
    PoolError,
    QueueFull,
    StoreError,
)
from pool.logs import get_logger
from pool.model import MOST_TASKS_SPOOLED, Handout, RequestRecord, RequestState
from pool.requests.breaker import SERVER, Breaker, Circuit, with_advice
from pool.requests.lifecycle import (
    MOST_TASKS,
    Delivery,
    Fault,
    Step,
    delivery_of,
    is_away,
    is_passing,
    may_be_shared,
    next_step,
)
from pool.requests.placement import Placement
from pool.requests.recovery import Recovery
from pool.requests.spool import Spool
from pool.store import NewRequest, Opened, Store, Unserved
from pool.tracking.tracker import Tracker

log = get_logger(__name__)

#: Seconds between looks at a task whose answer was lost, until the lost POST must have ended.
SETTLE_LOOKS: Final = (0.2, 0.5, 1.0, 2.0)
#: Seconds to wait at most before data whose upload was cut off is sent to a second task, doubled
#: for each further one, and at most at all.
CUT_OFF_PAUSE: Final = 1.0
LONGEST_CUT_OFF_PAUSE: Final = 64.0
#: Seconds until a request is tried again whose data could not be read, the disk failing, say.
RETRY_AFTER_INTERNAL_ERROR: Final = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkItem:
    """One accepted request to serve. Without a ``handout`` its task is created for it. ``trial``
    says that this is to find out whether CVAT takes the template's data again."""

    template: Template
    request: RequestRecord
    handout: Handout | None = None
    upload: Upload | None = None
    trial: bool = False

    @property
    def lease_id(self) -> str:
        """The lease that the request has now; a request with another one is another worker's."""
        return self.handout.lease.id if self.handout else self.request.lease_id


@dataclass(frozen=True, slots=True)
class Sent:
    """What an upload was followed by. ``error`` is None when the step is ``DONE``, and only then;
    ``pause`` is in seconds; ``lease_id`` is the fresh lease of a request whose task was thrown
    away."""

    step: Step
    error: PoolError | None = None
    untouched: bool = False
    pause: float = 0.0
    lease_id: str = ""


@dataclass(frozen=True, slots=True)
class Settled:
    """What has become of the data of an upload. With ``contents`` an import is under way that may
    still turn out to be another's; ``others`` says that the task has data that may well be."""

    delivery: Delivery
    contents: Contents | None = None
    others: bool = False


class Runner:
    """Runs requests on the thread that calls. Thread-safe.

    ``look_up_assignee`` is called with a request that has one, as its data is about to be sent; it
    must not block.
    """

    def __init__(
        self,
        store: Store,
        cvat: Callable[[], CvatClient],
        placement: Placement,
        recovery: Recovery,
        tracker: Tracker,
        spool: Spool,
        breaker: Breaker,
        *,
        max_queued: int,
        look_up_assignee: Callable[[RequestRecord], None],
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._store = store
        self._cvat = cvat
        self._placement = placement
        self._recovery = recovery
        self._tracker = tracker
        self._spool = spool
        self._breaker = breaker
        self._max_queued = max_queued
        self._look_up_assignee = look_up_assignee
        self._clock = clock
        self._rng = rng

    # --- Inline: the caller waits for the answer ----------------------------------------------

    def submit(
        self,
        template: Template,
        new: NewRequest,
        upload: Upload,
        *,
        idempotency_key: str | None,
        payload: str,
        timeout: float | None,
        progress: Progress | None,
    ) -> RequestRecord:
        """Bring data into a task of the pool: the request is ``IMPORTING`` afterwards; or, where
        CVAT is away and there is a daemon to serve it, ``QUEUED``. With a known
        ``idempotency_key`` it is the request of the first call.

        :raises InputError: the data cannot be read. It costs no task.
        :raises PoolEmpty: no task in time, and the template says not to create one.
        :raises CvatError: CVAT did not take the data.
        :raises QueueFull: CVAT is away, and too much waits for it already.
        :raises IdempotencyConflict: the key was used with other content.
        """
        with self._recovery.of_request(new.id):
            waits = self._should_wait(template)
            opened = self._placement.open(
                template,
                request=new,
                idempotency_key=idempotency_key,
                payload=payload,
                claim=not waits,
            )
            assert opened.request is not None
            if opened.replayed:
                return opened.request
            if waits:
                holds = self._store.holds()
                hold = holds.get(SERVER) or holds.get(template.name)
                away = CvatUnreachable(hold.reason if hold else "")
                return self._queue_or_fail(new.id, upload, away)
            if opened.task is None:
                try:
                    handout = self._placement.obtain(
                        template, opened.lease.id, timeout, request_id=new.id
                    )
                except BaseException as error:
                    return self._queue_or_fail(new.id, upload, error)
            else:
                handout = _handout(opened)
            return self.run(template, handout, upload, progress)

    def upload_into(
        self,
        template: Template,
        lease_id: str,
        new: NewRequest,
        upload: Upload,
        *,
        progress: Progress | None,
    ) -> RequestRecord:
        """Bring data into the task of a lease; otherwise as :meth:`submit`.

        :raises LeaseEnded: the lease is not active, or has a request already.
        """
        with self._recovery.of_request(new.id):
            handout = _handout(self._placement.attach(lease_id, new))
            self._tracker.forget(handout.task.id)
            return self.run(template, handout, upload, progress)

    def _should_wait(self, template: Template) -> bool:
        """Whether a request would fail now in a way that passes, so that trying again is best left
        to the daemon, and there is one."""

        def has_warm() -> bool:
            return self._placement.has_warm(template)

        if not self._breaker.is_away(template.name, has_warm) or not self._placement.has_daemon():
            return False
        # An empty pool that fails at once says so even now.
        return template.pool.on_empty != "fail" or has_warm()

    def run(
        self,
        template: Template,
        handout: Handout,
        upload: Upload,
        progress: Progress | None = None,
    ) -> RequestRecord:
        """Send the data of a request that has its task; the rest of :meth:`submit`."""
        request = _request(handout)
        for tasks_left in reversed(range(MOST_TASKS)):
            sent = self._send(
                template,
                handout,
                upload,
                tasks_used=MOST_TASKS - 1 - tasks_left,
                tasks_left=tasks_left,
                accepted=False,
                progress=progress,
            )
            if sent.error is None:
                return self._now(request)
            if sent.step is Step.FAIL:
                raise sent.error
            if sent.step is Step.WAIT:
                return self._queue_or_fail(request.id, upload, sent.error)
            self._clock.sleep(sent.pause)
            try:
                handout = self._placement.obtain(
                    template, sent.lease_id, None, request_id=request.id
                )
            except PoolError as error:
                return self._queue_or_fail(request.id, upload, error)
        raise AssertionError("the last task is followed by no other")

    def _queue_or_fail(
        self, request_id: str, upload: Upload, error: BaseException
    ) -> RequestRecord:
        """Have a request wait in the spool for the daemon, if CVAT is away and there is one; its
        task, which is untouched, is warm again. Otherwise raise ``error``; the request has failed.

        :raises QueueFull: there is no room for it; the request has failed.
        """
        request = self._store.request(request_id)
        if request is None:
            raise error
        try:
            if is_away(error) and self._placement.has_daemon():
                return self._queue(request, upload)
        except PoolError as problem:
            self._fail(request, request.lease_id, problem, untouched=True)
            raise problem from error
        failure = error if isinstance(error, PoolError) else PoolError("interrupted")
        self._fail(request, request.lease_id, failure, untouched=True)
        raise error

    def _queue(self, request: RequestRecord, upload: Upload) -> RequestRecord:
        """Keep the data of a request, which is ``QUEUED`` afterwards. It is on the disk when this
        returns. A request that another process ended or took over meanwhile is answered as it is.

        :raises QueueFull: there is no room for it; the request is as it was.
        :raises InputError: its data cannot be read again; likewise.
        :raises StoreError: the disk does not do its part; likewise.
        """
        try:
            # The count that decides comes last, but a full queue should not cost a copy.
            self._check_room()
            self._spool.keep(request.id, upload)
            queued = self._store.queue_request(
                request.id,
                expected_lease_id=request.lease_id,
                most=self._max_queued,
                now=self._clock.now(),
            )
        except QueueFull as error:
            self._spool.drop(request.id)
            error.retry_after = self._breaker.retry_after()
            raise
        # From now on the daemon counts its failures.
        self._breaker.forget(request.id)
        if queued is None:
            self._spool.drop(request.id)
            log.info("request not queued: another process has it", request_id=request.id)
            return self._now(request)
        log.info(
            "request queued", request_id=request.id, template=request.template, bytes=request.size
        )
        return queued

    def _check_room(self) -> None:
        most = self._max_queued
        if self._store.queue_length() >= most:
            raise QueueFull(f"{most} requests wait, as many as daemon.max_queued allows")

    # --- A worker of the daemon: the caller was answered before -------------------------------

    def serve(self, item: WorkItem) -> float:
        """Bring an accepted request as far as possible now. Return the seconds after which it may
        be tried again, should it still wait."""
        if not self._may_send(item):
            # The circuit opened after this was dispatched.
            self.put_back(item)
            return 0.0
        try:
            upload = item.upload or self._spool.load(item.request.id)
        except StoreError as error:
            log.error("data not readable", request_id=item.request.id, why=str(error))
            self.put_back(item)
            return RETRY_AFTER_INTERNAL_ERROR
        if upload is None:
            gone = DataGone(f"{self._spool.folder} has none")
            self._fail(item.request, item.lease_id, gone, untouched=True)
            return 0.0
        # A small question first: an upload into the void would cost the task.
        if item.trial and not self._breaker.ask():
            self.put_back(item)
            return 0.0
        handout = item.handout or self._create(item)
        if handout is None:
            return 0.0
        used = item.request.imports_used
        sent = self._send(
            item.template,
            handout,
            upload,
            tasks_used=used,
            tasks_left=MOST_TASKS_SPOOLED - 1 - used,
            accepted=True,
        )
        if sent.step is Step.WAIT and sent.untouched:
            self.put_back(WorkItem(template=item.template, request=item.request, handout=handout))
        return sent.pause

    def put_back(self, item: WorkItem) -> None:
        """Let a request wait again for which nothing was done; its task is warm again."""
        self._store.queue_request(
            item.request.id,
            expected_lease_id=item.lease_id,
            most=None,
            now=self._clock.now(),
        )

    def take_over(self, each: Unserved, *, owner: str) -> bool:
        """Give another task to a request whose upload a process left in the middle: how much of
        the data the old one has is unknown. Return whether it has failed instead, having used up
        enough of them."""
        request = self._store.take_spooled(each.id, owner=owner, now=self._clock.now())
        if request is None or request.state is not RequestState.UPLOADING:
            return False
        log.info("request taken over", request_id=request.id, state=request.state.value)
        if request.imports_used + 1 >= MOST_TASKS_SPOOLED:
            return self.fail_waiting(each, OwnerGone("this has happened several times"))
        self._throw_away(request, OwnerGone())
        return False

    def fail_waiting(self, each: Unserved, error: PoolError) -> bool:
        """Fail a request that no thread works on; False when another process was quicker."""
        failed = self._store.fail_request(
            each.id,
            expected_lease_id=each.lease_id,
            code=error.code,
            message=error.detail,
            now=self._clock.now(),
        )
        if failed:
            log.warning("request failed", request_id=each.id, why=str(error))
            self._spool.drop(each.id)
            self._breaker.forget(each.id)
        return failed

    def _may_send(self, item: WorkItem) -> bool:
        if self._breaker.server() is not Circuit.CLOSED:
            return False
        return item.trial or self._breaker.uploads(item.template.name) is Circuit.CLOSED

    def _create(self, item: WorkItem) -> Handout | None:
        """Create the task; None when there is none, and the request waits again or has ended."""
        try:
            return self._placement.create(
                item.template, item.request.lease_id, waited=0.0, request_id=item.request.id
            )
        except PoolEmpty:
            # The request was cancelled meanwhile.
            current = self._store.request(item.request.id)
            if current is None or current.state is RequestState.CANCELLED:
                self._spool.drop(item.request.id)
        except CvatError as error:
            if not is_passing(error):
                # A passing failure was noted where the create was made.
                self._breaker.create_failed(item.template, error)
            if may_be_shared(error, accepted=True):
                self.put_back(item)
            else:
                # Those of the same template that wait would be refused in the same words.
                self._fail(item.request, item.lease_id, error, untouched=True)
        return None

    # --- One upload, and what follows ---------------------------------------------------------

    def _send(
        self,
        template: Template,
        handout: Handout,
        upload: Upload,
        *,
        tasks_used: int,
        tasks_left: int,
        accepted: bool,
        progress: Progress | None = None,
    ) -> Sent:
        """Upload once into the task of a hand-out, and take the step that follows, except for
        ``WAIT`` with an untouched task, which is left to the caller."""
        request = _request(handout)
        if request.assignee is not None:
            self._look_up_assignee(request)
        try:
            error = self._upload(template, handout, upload, progress)
            settled = Settled(Delivery.ACCEPTED)
            if error is not None:
                settled = self._settle(handout, upload, error)
            delivery = settled.delivery
        except BaseException as interruption:
            if not accepted:
                failure = PoolError(f"the upload was interrupted ({interruption!r})")
                self._fail(request, handout.lease.id, failure, untouched=False)
            raise
        if error is None or delivery is Delivery.ACCEPTED:
            self._track(template, request, upload, settled.contents)
            self._breaker.upload_worked(template.name, request.id)
            return Sent(Step.DONE)
        fault = None
        if may_be_shared(error, accepted=accepted) and (accepted or self._placement.has_daemon()):
            fault = self._breaker.upload_failed(template.name, request.id, error)
        if fault is Fault.OWN:
            error = with_advice(error, _doubtful(upload))
        if settled.others:
            # The deletion service reads there to leave the task alone.
            error = with_advice(error, "the task", because=OTHER_DATA)
        step = next_step(delivery, fault, tasks_left=tasks_left, accepted=accepted)
        untouched = delivery is Delivery.UNTOUCHED
        lease_id = ""
        if step is Step.FAIL:
            self._fail(request, handout.lease.id, error, untouched=untouched)
        elif not untouched:
            lease_id = self._throw_away(request, error)
        pause = 0.0
        if cut_off(error):
            pause = backoff(
                tasks_used + 1,
                base=CUT_OFF_PAUSE,
                cap=LONGEST_CUT_OFF_PAUSE,
                rng=self._rng,
                least=0.0,
            )
        elif accepted and fault is Fault.SUSPECT:
            pause = self._breaker.pause()
        return Sent(step, error, untouched=untouched, pause=pause, lease_id=lease_id)

    def _upload(
        self, template: Template, handout: Handout, upload: Upload, progress: Progress | None
    ) -> PoolError | None:
        if handout.task.task_id is None:
            return CvatNotFound("the task has no id")
        try:
            self._cvat().upload(
                handout.task.task_id,
                upload,
                template.data,
                single_request_limit=template.importing.single_request_limit,
                prepared=handout.task.prepared,
                at_once=template.importing.upload_concurrency,
                progress=progress,
            )
        except PoolError as error:
            return error
        return None

    def _settle(self, handout: Handout, upload: Upload, error: PoolError) -> Settled:
        """Find out what has become of the data of a failed upload.

        Sending again after a lost answer would make the server fail on the file that is there
        already (CVAT.md, fact 10). So look: jobs, then the import, whose id is known; if there is
        neither, the task is no use. Nor is it if its frames are not seen to be the upload's:
        people may have filled it before.
        """
        delivery = delivery_of(error)
        task_id = handout.task.task_id
        if delivery is not Delivery.UNSETTLED or task_id is None:
            return Settled(delivery)
        for pause in SETTLE_LOOKS:
            self._clock.sleep(pause)
            try:
                if self._cvat().jobs([task_id]):
                    contents = contents_of(upload)
                    if contents is None or not contents.cover(self._cvat().frame_names(task_id)):
                        return Settled(Delivery.TASK_LOST, others=True)
                    return Settled(Delivery.ACCEPTED)
                status = self._cvat().import_state(task_id).status
            except CvatError as problem:
                log.info("lost answer not settled yet", task_id=task_id, why=str(problem))
                continue
            delivery = Delivery.TASK_LOST
            if status is ImportStatus.TASK_GONE:
                break
            if status is ImportStatus.FAILED:
                # Fail in CVAT's words: bad data would fail in each further task as well.
                return Settled(Delivery.ACCEPTED)
            if status is not ImportStatus.UNKNOWN:
                contents = contents_of(upload)
                if contents is None:
                    return Settled(Delivery.TASK_LOST, others=True)
                return Settled(Delivery.ACCEPTED, contents)
        return Settled(delivery)

    def _track(
        self,
        template: Template,
        request: RequestRecord,
        upload: Upload,
        contents: Contents | None,
    ) -> None:
        """CVAT has the data: follow its import. ``contents`` as in :class:`Settled`."""
        assert request.import_id is not None
        now = self._clock.now()
        self._store.begin_import(
            request.import_id,
            deadline=now + template.importing.timeout,
            frames=contents.names if contents else None,
            now=now,
        )
        self._tracker.watch(request.import_id, kind=kind_of(upload))

    def _throw_away(self, request: RequestRecord, error: PoolError) -> str:
        """Burn the task of a request's import. Return the fresh lease with which the request waits
        now; "" when another process ended the import before."""
        assert request.import_id is not None
        log.warning("task thrown away", request_id=request.id, why=str(error))
        queued = self._store.requeue_import(
            request.import_id, reason=str(error), now=self._clock.now()
        )
        return next((each.lease_id for each in queued if each.id == request.id), "")

    def _fail(
        self, request: RequestRecord, lease_id: str, error: PoolError, *, untouched: bool
    ) -> None:
        """End a request with an error; an untouched task is warm again, its data is dropped."""
        failed = self._store.fail_request(
            request.id,
            untouched=untouched,
            expected_lease_id=lease_id,
            code=error.code,
            message=error.detail,
            now=self._clock.now(),
        )
        self._breaker.forget(request.id)
        if failed and request.spooled:
            log.warning(
                "request failed", request_id=request.id, template=request.template, why=str(error)
            )
            self._spool.drop(request.id)

    def _now(self, request: RequestRecord) -> RequestRecord:
        current = self._store.request(request.id)
        if current is None:
            raise PoolError(f"request {request.id} is gone from the store")
        return current


def _handout(opened: Opened) -> Handout:
    assert opened.task is not None
    return Handout(lease=opened.lease, task=opened.task, request=opened.request)


def _request(handout: Handout) -> RequestRecord:
    assert handout.request is not None
    return handout.request


def _doubtful(upload: Upload) -> str:
    """What of a request's data CVAT may fail on."""
    what = "its files"
    if upload.cloud is not None:
        what = f"its cloud storage {upload.cloud[0]}"
    elif upload.urls:
        what = "its addresses"
    elif upload.share:
        what = "its names on the share"
    return f"{what} and data parameters"
