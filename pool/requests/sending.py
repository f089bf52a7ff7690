"""Sends the data of a request into its task once, and takes the step that follows from that."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from pool.backoff import backoff
from pool.clock import Clock
from pool.config.settings import Template
from pool.config.source import Progress, Upload, covers, frame_names, frame_numbers
from pool.cvat import CvatClient, cut_off
from pool.cvat.failures import OTHER_DATA
from pool.cvat.records import ImportStatus
from pool.errors import CvatError, CvatNotFound, InputError, PoolError, SlotStorageUnavailable
from pool.logs import get_logger
from pool.model import MOST_TASKS_SPOOLED, Handout, RequestRecord
from pool.requests.breaker import Breaker, with_advice
from pool.requests.lifecycle import (
    MOST_TASKS,
    Delivery,
    Fault,
    Step,
    delivery_of,
    may_be_shared,
    next_step,
)
from pool.requests.slots import Filler
from pool.requests.spool import Spool
from pool.store import Store, Unserved
from pool.tracking.splitting import parts_of
from pool.tracking.tracker import Tracker

log = get_logger(__name__)

#: Seconds between looks at a task whose answer was lost, until the lost POST must have ended.
SETTLE_LOOKS: Final = (0.2, 0.5, 1.0, 2.0)
#: Seconds to wait at most before data whose upload was cut off is sent to a second task, doubled
#: for each further one, and at most at all.
CUT_OFF_PAUSE: Final = 1.0
LONGEST_CUT_OFF_PAUSE: Final = 64.0


@dataclass(frozen=True, slots=True)
class Sent:
    """What an upload was followed by. ``error`` is None when the step is ``DONE``, and only then;
    ``pause`` is in seconds."""

    step: Step
    error: PoolError | None = None
    untouched: bool = False
    pause: float = 0.0


@dataclass(frozen=True, slots=True)
class Settled:
    """Where the data of a failed upload is. With ``frames`` an import is under way that may still
    turn out to be of other data; ``others`` says that the task has data that may be other data."""

    delivery: Delivery
    frames: frozenset[str] | None = None
    others: bool = False


class Sender:
    """Sends data, for callers that wait for the answer and for workers of the daemon alike.
    Thread-safe.

    ``look_up_assignee`` is called with a request that has one, as its data is about to be sent; it
    must not block.
    """

    def __init__(
        self,
        store: Store,
        cvat: Callable[[], CvatClient],
        tracker: Tracker,
        spool: Spool,
        filler: Filler,
        breaker: Breaker,
        *,
        look_up_assignee: Callable[[RequestRecord], None],
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._store = store
        self._cvat = cvat
        self._tracker = tracker
        self._spool = spool
        self._filler = filler
        self._breaker = breaker
        self._look_up_assignee = look_up_assignee
        self._clock = clock
        self._rng = rng

    def send(
        self,
        template: Template,
        handout: Handout,
        upload: Upload,
        *,
        accepted: bool,
        others: Sequence[RequestRecord] = (),
        progress: Progress | None = None,
    ) -> Sent:
        """Upload once into the task of a hand-out, or fill its slot, and take the step that
        follows, except for ``WAIT`` with an untouched task, which is left to the caller.
        ``accepted`` as for
        :func:`~pool.requests.lifecycle.next_step`; ``others`` are the requests that share the
        import with that of the hand-out."""
        request = handout.request
        assert request is not None
        if handout.task.carrier_id is not None:
            return self._fill(template, handout, request, upload, accepted=accepted)
        requests = [request, *others]
        for each in requests:
            if each.assignee is not None:
                self._look_up_assignee(each)
        if not others:
            self._number_frames(template, request, upload)
        try:
            if upload.kind == "archive" and not accepted:
                self._expect_frames(request, upload)
            error = self._upload(template, handout, upload, progress)
            settled = Settled(Delivery.ACCEPTED)
            if error is not None:
                settled = self._settle(handout, upload, error)
            delivery = settled.delivery
        except BaseException as interruption:
            if not accepted:
                failure = PoolError(f"the upload was interrupted ({interruption!r})")
                self.fail(request, failure, untouched=False)
            raise
        if error is None or delivery is Delivery.ACCEPTED:
            assert request.import_id is not None
            self._tracker.begin(
                request.import_id,
                timeout=template.importing.timeout,
                frames=settled.frames,
                kind=upload.kind,
            )
            self._breaker.upload_worked(template.name)
            return Sent(Step.DONE)
        fault = None
        if may_be_shared(error, accepted=accepted) and (accepted or self._breaker.has_daemon()):
            fault = self._breaker.upload_failed(template.name, request.id, error)
        if fault is Fault.OWN:
            error = with_advice(error, _doubtful(upload))
        if settled.others:
            # The deletion service reads there to leave the task alone.
            error = with_advice(error, "the task", because=OTHER_DATA)
        used = max(each.imports_used for each in requests) + 1
        most = MOST_TASKS_SPOOLED if accepted else MOST_TASKS
        step = next_step(
            delivery, fault, tasks_left=most - used, accepted=accepted, shared=bool(others)
        )
        untouched = delivery is Delivery.UNTOUCHED
        pause = 0.0
        if cut_off(error):
            pause = backoff(
                used, base=CUT_OFF_PAUSE, cap=LONGEST_CUT_OFF_PAUSE, rng=self._rng, least=0.0
            )
        elif accepted and fault is Fault.SUSPECT:
            pause = self._breaker.pause()
        if accepted and pause and step is not Step.FAIL:
            # Before it waits again, since any process may begin it then.
            self._store.pause_request(request.id, until=self._clock.now() + pause)
        if step is Step.FAIL:
            self.fail(request, error, untouched=untouched)
        elif step is Step.SPLIT:
            self.split(request, error, untouched=untouched)
        elif not untouched:
            self.throw_away(request, error)
        return Sent(step, error, untouched=untouched, pause=pause)

    def _fill(
        self,
        template: Template,
        handout: Handout,
        request: RequestRecord,
        upload: Upload,
        *,
        accepted: bool,
    ) -> Sent:
        """Write data into a slot. What cannot be written there goes the ordinary way, and the slot,
        which may hold a part of it, is filled no more."""
        if request.assignee is not None:
            self._look_up_assignee(request)
        try:
            why = self._filler.fill(handout, upload)
            error: PoolError | None = InputError(why) if why else None
        except SlotStorageUnavailable as unavailable:
            why, error = str(unavailable), unavailable
        except PoolError as error:
            self.fail(request, error, untouched=False)
            return Sent(Step.FAIL, error)
        except BaseException as interruption:
            if not accepted:
                failure = PoolError(f"the upload was interrupted ({interruption!r})")
                self.fail(request, failure, untouched=False)
            raise
        if error is not None:
            self.throw_away(request, error)
            self._filler.leave_slots(template, request.id, upload, why, shares=accepted)
            return Sent(Step.ANOTHER_TASK, error)
        self._spool.drop(request.id)
        return Sent(Step.DONE)

    def _number_frames(self, template: Template, request: RequestRecord, upload: Upload) -> None:
        """Keep what the frames are numbered as, where the template's sorting has changed since the
        request was accepted."""
        if upload.job_sizes:
            return
        try:
            numbers = frame_numbers(upload, template.data)
        except InputError:
            # The parameters do not go together any more: the upload says so.
            return
        if numbers != request.frame_numbers:
            self._store.number_frames(request.id, numbers)

    def _expect_frames(self, request: RequestRecord, upload: Upload) -> None:
        """Keep the names inside an archive, by which another process tells its import from that of
        other data, should this process die in the upload. An accepted request is sent again."""
        frames = frame_names(upload, decompress=False)
        if frames is not None and request.import_id is not None:
            self._store.expect_frames(request.import_id, frames)

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
                    names = frame_names(upload)
                    if names is None or not covers(names, self._cvat().frame_names(task_id)):
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
                names = frame_names(upload)
                if names is None:
                    return Settled(Delivery.TASK_LOST, others=True)
                return Settled(Delivery.ACCEPTED, names)
        return Settled(delivery)

    def throw_away(self, request: RequestRecord, error: PoolError) -> None:
        """Burn the task of a request's import; the request waits for another one, unless the import
        has ended before."""
        assert request.import_id is not None
        log.warning("task thrown away", request_id=request.id, why=str(error))
        self._store.requeue_import(request.import_id, reason=str(error), now=self._clock.now())

    def split(self, request: RequestRecord, error: PoolError, *, untouched: bool) -> bool:
        """Queue the requests that share an import with a request again, in parts; False where it
        has its import for itself, or that has ended."""
        importing = self._store.import_record(request.import_id or "")
        if importing is None or len(importing.members) == 1:
            return False
        parts = parts_of(importing.members, error.detail)
        log.warning("group split", parts=[len(part) for part in parts], why=str(error))
        now = self._clock.now()
        return self._store.split_import(
            importing.id, parts, untouched=untouched, reason=str(error), now=now
        )

    def fail(self, request: RequestRecord | Unserved, error: PoolError, *, untouched: bool) -> None:
        """End a request with an error, unless another process was quicker; an untouched task is
        warm again, its data is dropped."""
        failed = self._store.fail_request(
            request.id,
            untouched=untouched,
            expected_lease_id=request.lease_id,
            code=error.code,
            message=error.detail,
            now=self._clock.now(),
        )
        if failed and (isinstance(request, Unserved) or request.spooled):
            log.warning(
                "request failed", request_id=request.id, template=request.template, why=str(error)
            )
            self._spool.drop(request.id)


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
