"""Serves one request whose data is in the spool, from its task to its import or its end."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum, auto

from pool.backoff import backoff
from pool.clock import Clock
from pool.config.settings import Template
from pool.cvat import cut_off
from pool.cvat.records import Upload
from pool.errors import (
    CvatError,
    CvatForbidden,
    CvatRefusedCredentials,
    DataGone,
    OwnerGone,
    PoolEmpty,
    PoolError,
    StoreError,
)
from pool.events.notifier import Signal
from pool.logs import get_logger
from pool.model import Handout, RequestRecord, RequestState, new_id
from pool.requests.backoff import Circuit, is_passing
from pool.requests.breaker import Blame, Breaker, with_advice
from pool.requests.placement import HandOut
from pool.requests.runner import CUT_OFF_PAUSE, LONGEST_CUT_OFF_PAUSE, Aftermath, Attempt, Intake
from pool.requests.spool import Spool
from pool.store import Store, Unserved
from pool.tracking.tracker import MOST_TASKS_SPOOLED

log = get_logger(__name__)

#: Seconds for which a request is left alone that could not be seen to, the disk being full, say.
STUMBLE = 30.0


class Verdict(Enum):
    """What follows from a failed attempt."""

    #: Nothing was done for the request: it waits until CVAT takes data again.
    WAIT = auto()
    #: Its task is no use any more; it needs another one.
    ANOTHER_TASK = auto()
    #: It has failed.
    FAIL = auto()


def may_be_others(error: PoolError) -> bool:
    """Whether a failure may be about more than the request and its task: it passes by itself, or
    is CVAT's word about credentials and permissions. Any other word of CVAT's is about the
    request."""
    return is_passing(error) or isinstance(error, CvatRefusedCredentials | CvatForbidden)


def judge(aftermath: Aftermath, blame: Blame | None, *, spent: int) -> Verdict:
    """What follows from an upload that was not accepted, of a request that has ``spent`` so many
    tasks before. ``blame`` is None after a word of CVAT's about the request or its task.

    Only what is the request's own ends it: an outage fails nothing, however long it lasts.
    """
    if blame is Blame.OWN:
        return Verdict.FAIL
    if blame is not None:
        return Verdict.WAIT if aftermath is Aftermath.UNTOUCHED else Verdict.ANOTHER_TASK
    if aftermath in (Aftermath.UNTOUCHED, Aftermath.REFUSED):
        return Verdict.FAIL
    return Verdict.ANOTHER_TASK if spent + 1 < MOST_TASKS_SPOOLED else Verdict.FAIL


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One request to serve. Without a ``handout`` its task is created for it. ``trial`` tells that
    this is to find out whether CVAT takes the template's data again."""

    template: Template
    request: RequestRecord
    handout: Handout | None = None
    upload: Upload | None = None
    trial: bool = False


class Serving:
    """What a thread of :class:`pool.requests.dispatcher.Dispatch` does with a request."""

    def __init__(
        self,
        store: Store,
        hand_out: HandOut,
        intake: Intake,
        spool: Spool,
        breaker: Breaker,
        *,
        warm: Signal,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._store = store
        self._hand_out = hand_out
        self._intake = intake
        self._spool = spool
        self._breaker = breaker
        self._warm = warm
        self._clock = clock
        self._rng = rng

    def serve(self, case: Case) -> float:
        """Bring a request as far as it can be brought now. Answers how many seconds it should be
        left alone for, should it need another turn."""
        if not self._is_worth_trying(case):
            # The circuit opened after this was dispatched.
            self.put_back(case)
            return 0.0
        try:
            upload = case.upload or self._spool.load(case.request.id)
        except StoreError as error:
            log.error("data not readable", request_id=case.request.id, why=str(error))
            self.put_back(case)
            return STUMBLE
        if upload is None:
            self.fail(case, DataGone(f"{self._spool.folder} has none"), untouched=True)
            return 0.0
        # A small question first: an upload into the void would cost the task.
        if case.trial and not self._breaker.ask():
            self.put_back(case)
            return 0.0
        handout = case.handout or self._create(case)
        if handout is None:
            return 0.0
        attempt = self._intake.attempt(case.template, handout, upload)
        if attempt.aftermath is Aftermath.ACCEPTED:
            self._intake.track(case.template, case.request, handout, upload)
            self._breaker.upload_worked(case.template.name, case.request.id)
            return 0.0
        return self._conclude(case, handout, upload, attempt)

    # --- Ends -------------------------------------------------------------------------------------

    def put_back(self, case: Case) -> None:
        """Nothing was done for the request: it waits, nobody's, and its task is warm again."""
        under = case.handout.lease.id if case.handout else case.request.lease_id
        queued = self._store.queue_request(
            case.request.id,
            under=under,
            lease_id=new_id(self._clock.now()),
            most=None,
            now=self._clock.now(),
        )
        if queued is not None and case.handout is not None:
            self._warm.announce()

    def fail(
        self, case: Case, error: PoolError, *, handout: Handout | None = None, untouched: bool
    ) -> None:
        """The request has failed, and its data is dropped."""
        held = handout or case.handout
        fail = self._store.return_request if untouched else self._store.fail_request
        failed = fail(
            case.request.id,
            under=held.lease.id if held else case.request.lease_id,
            code=error.code,
            message=error.detail,
            now=self._clock.now(),
        )
        if failed:
            log.warning(
                "request failed",
                request_id=case.request.id,
                template=case.template.name,
                why=str(error),
            )
            self._spool.drop(case.request.id)
            self._breaker.forget(case.request.id)
            if untouched and held is not None:
                self._warm.announce()

    # --- Requests that nobody works on ------------------------------------------------------------

    def recover(self, each: Unserved, *, owner: str) -> bool:
        """A request whose upload nobody goes on with gets another task: nobody knows how much of
        the data this one has. True when it has failed, having spent enough of them."""
        request = self._store.take_spooled(each.id, owner=owner, now=self._clock.now())
        if request is None or request.state is not RequestState.UPLOADING:
            return False
        log.info("request taken over", request_id=request.id, state=request.state.value)
        if request.tasks_spent + 1 >= MOST_TASKS_SPOOLED:
            return self.fail_waiting(each, OwnerGone("this has happened several times"))
        self._store.requeue_request(
            request.id,
            under=request.lease_id,
            lease_id=new_id(self._clock.now()),
            reason=str(OwnerGone()),
            now=self._clock.now(),
        )
        return False

    def fail_waiting(self, each: Unserved, error: PoolError) -> bool:
        """A request that nobody works on has failed, unless somebody was quicker."""
        failed = self._store.fail_request(
            each.id,
            under=each.lease_id,
            code=error.code,
            message=error.detail,
            now=self._clock.now(),
        )
        if failed:
            log.warning("request failed", request_id=each.id, why=str(error))
            self._spool.drop(each.id)
            self._breaker.forget(each.id)
        return failed

    # --- Steps ------------------------------------------------------------------------------------

    def _is_worth_trying(self, case: Case) -> bool:
        if self._breaker.server() is not Circuit.CLOSED:
            return False
        return case.trial or self._breaker.uploads(case.template.name) is Circuit.CLOSED

    def _create(self, case: Case) -> Handout | None:
        """A task made on the spot; None when there is none, and the request was seen to."""
        try:
            handout = self._hand_out.create(case.template, case.request.lease_id, waited=0.0)
        except PoolEmpty:
            # Somebody has called the request off meanwhile.
            current = self._store.request(case.request.id)
            if current is None or current.state is RequestState.CANCELLED:
                self._spool.drop(case.request.id)
            return None
        except CvatError as error:
            if not is_passing(error):
                # A passing failure was noted where the create was made.
                self._breaker.create_failed(case.template, error)
            if may_be_others(error):
                self.put_back(case)
            else:
                # Those of the same template that wait would be refused in the same words.
                self.fail(case, error, untouched=True)
            return None
        return handout

    def _conclude(self, case: Case, handout: Handout, upload: Upload, attempt: Attempt) -> float:
        """Decide about a request whose data was not accepted; answers as :meth:`serve`."""
        error, blame = attempt.error, None
        assert error is not None
        if may_be_others(error):
            blame = self._breaker.upload_failed(case.template.name, case.request.id, error)
        if blame is Blame.OWN:
            error = with_advice(error, _doubtful(upload))
        match judge(attempt.aftermath, blame, spent=case.request.tasks_spent):
            case Verdict.WAIT:
                self.put_back(Case(template=case.template, request=case.request, handout=handout))
            case Verdict.FAIL:
                untouched = attempt.aftermath is Aftermath.UNTOUCHED
                self.fail(case, error, handout=handout, untouched=untouched)
                return 0.0
            case Verdict.ANOTHER_TASK:
                log.warning("task thrown away", request_id=case.request.id, why=str(error))
                self._store.requeue_request(
                    case.request.id,
                    under=handout.lease.id,
                    lease_id=new_id(self._clock.now()),
                    reason=str(error),
                    now=self._clock.now(),
                )
        if cut_off(error):
            return backoff(
                case.request.tasks_spent + 1,
                base=CUT_OFF_PAUSE,
                cap=LONGEST_CUT_OFF_PAUSE,
                rng=self._rng,
                least=0.0,
            )
        return self._breaker.pause() if blame is Blame.SUSPECT else 0.0


def _doubtful(upload: Upload) -> str:
    """What of a request's data CVAT may stumble over."""
    what = "its files"
    if upload.cloud is not None:
        what = f"its cloud storage {upload.cloud[0]}"
    elif upload.urls:
        what = "its addresses"
    elif upload.share:
        what = "its names on the share"
    return f"{what} and data parameters"
