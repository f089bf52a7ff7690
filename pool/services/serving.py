"""Serves one request whose data is in the spool, from its task to its import or its end."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from pool.clock import Clock
from pool.cvat import CvatClient, cut_off
from pool.cvat.records import Upload
from pool.errors import (
    CvatBusy,
    CvatError,
    CvatForbidden,
    CvatNotFound,
    CvatRefusedCredentials,
    CvatRejected,
    CvatUnreachable,
    DataGone,
    OwnerGone,
    PoolEmpty,
    PoolError,
    StoreError,
)
from pool.logs import get_logger
from pool.model import Handout, RequestRecord, RequestState, new_id
from pool.services.backoff import Gate
from pool.services.gates import Gates
from pool.services.handout import HandOut
from pool.services.intake import CUT_OFF_PAUSE, Aftermath, Attempt, Intake
from pool.services.signals import Signal
from pool.services.watched import MOST_TASKS_SPOOLED
from pool.settings import Template
from pool.spool import Spool
from pool.store.base import Store
from pool.store.queue_rows import Unserved

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


class Culprit(Enum):
    """Whose fault a failure is, and so what is held."""

    SERVER = auto()
    TEMPLATE = auto()
    #: This request's, or its task's.
    OWN = auto()


def culprit_of(error: PoolError) -> Culprit:
    """Whom a failure is about. An answer that is none of CVAT's, such as a maintenance page's, is
    about the server like none at all; CVAT's word about credentials and permissions is about the
    template; any other word of CVAT's is about the request."""
    match error:
        case CvatUnreachable() | CvatBusy():
            return Culprit.SERVER
        case CvatRefusedCredentials() | CvatForbidden():
            return Culprit.TEMPLATE
        case CvatRejected() | CvatNotFound():
            return Culprit.OWN
        case CvatError():
            return Culprit.SERVER
    return Culprit.OWN


def judge(attempt: Attempt, culprit: Culprit, *, spent: int) -> Verdict:
    """What follows from an upload that was not accepted, of a request that has ``spent`` so many
    tasks before."""
    if attempt.aftermath is Aftermath.UNTOUCHED:
        return Verdict.FAIL if culprit is Culprit.OWN else Verdict.WAIT
    if attempt.aftermath is Aftermath.REFUSED and culprit is Culprit.OWN:
        return Verdict.FAIL
    return Verdict.ANOTHER_TASK if spent + 1 < MOST_TASKS_SPOOLED else Verdict.FAIL


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One request to serve. Without a ``handout`` its task is created for it. ``trial`` tells that
    this is to find out whether CVAT still refuses the template's data, and ``probing`` whether the
    server is still away."""

    template: Template
    request: RequestRecord
    handout: Handout | None = None
    upload: Upload | None = None
    trial: bool = False
    probing: bool = False


class Serving:
    """What a thread of :class:`pool.services.dispatch.Dispatch` does with a request."""

    def __init__(
        self,
        store: Store,
        cvat: Callable[[], CvatClient],
        hand_out: HandOut,
        intake: Intake,
        spool: Spool,
        gates: Gates,
        *,
        warm: Signal,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._store = store
        self._cvat = cvat
        self._hand_out = hand_out
        self._intake = intake
        self._spool = spool
        self._gates = gates
        self._warm = warm
        self._clock = clock
        self._rng = rng

    def serve(self, case: Case) -> float:
        """Bring a request as far as it can be brought now. Answers how many seconds it should be
        left alone for, should it need another turn."""
        if not self._is_worth_trying(case):
            # It got its turn after others had found that out.
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
        handout = case.handout or self._create(case)
        if handout is None or (case.probing and case.handout and not self._answers(case)):
            return 0.0
        attempt = self._intake.attempt(case.template, handout, upload)
        if attempt.aftermath is Aftermath.ACCEPTED:
            self._intake.track(case.template, case.request, handout, upload)
            self._gates.uploads_work(case.template.name, case.request.id)
            if case.probing:
                self._gates.server_answers()
            return 0.0
        return self._conclude(case, handout, attempt)

    def ask(self) -> None:
        """Find out whether the server is back without a request to find it out with."""
        try:
            self._cvat().about()
        except CvatError as error:
            if culprit_of(error) is Culprit.SERVER:
                self._gates.shut_server(error)
                return
        self._gates.server_answers()

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
            self._gates.forget(case.request.id)
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
            self._gates.forget(each.id)
        return failed

    # --- Steps ------------------------------------------------------------------------------------

    def _is_worth_trying(self, case: Case) -> bool:
        if not case.probing and self._gates.server() is not Gate.OPEN:
            return False
        return case.trial or self._gates.uploads(case.template.name) is Gate.OPEN

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
            match culprit_of(error):
                case Culprit.SERVER:
                    self._gates.shut_server(error)
                    self.put_back(case)
                case Culprit.TEMPLATE:
                    self._gates.shut_creates(case.template.name, error)
                    self.put_back(case)
                case Culprit.OWN:
                    # Those of the same template that wait would be refused in the same words.
                    self._gates.shut_creates(case.template.name, error)
                    self.fail(case, error, untouched=True)
            return None
        return handout

    def _answers(self, case: Case) -> bool:
        """Whether the server answers again. A small question comes before the data: an upload into
        the void would cost the task."""
        assert case.handout is not None
        try:
            self._cvat().tasks([case.handout.task.task_id or 0])
        except CvatError as error:
            self._hold(case, culprit_of(error), error)
            self.put_back(case)
            return False
        return True

    def _conclude(self, case: Case, handout: Handout, attempt: Attempt) -> float:
        """See to a request whose data was not accepted."""
        error = attempt.error
        assert error is not None
        culprit = culprit_of(error)
        verdict = judge(attempt, culprit, spent=case.request.tasks_spent)
        if verdict is Verdict.WAIT and not self._hold(case, culprit, error):
            verdict = Verdict.FAIL
        match verdict:
            case Verdict.WAIT:
                self.put_back(Case(template=case.template, request=case.request, handout=handout))
            case Verdict.FAIL:
                untouched = attempt.aftermath is Aftermath.UNTOUCHED
                self.fail(case, error, handout=handout, untouched=untouched)
            case Verdict.ANOTHER_TASK:
                log.warning("task thrown away", request_id=case.request.id, why=str(error))
                self._store.requeue_request(
                    case.request.id,
                    under=handout.lease.id,
                    lease_id=new_id(self._clock.now()),
                    reason=str(error),
                    now=self._clock.now(),
                )
                if attempt.aftermath is not Aftermath.TASK_LOST:
                    self._hold(case, culprit, error)
                if cut_off(error):
                    earlier = case.request.tasks_spent
                    return self._rng.uniform(0.0, CUT_OFF_PAUSE * 2.0**earlier)
        return 0.0

    def _hold(self, case: Case, culprit: Culprit, error: PoolError) -> bool:
        """Have the culprit held; False when it is the request alone."""
        if culprit is Culprit.SERVER:
            self._gates.shut_server(error)
            return True
        if case.probing:
            self._gates.server_answers()
        return culprit is Culprit.TEMPLATE and self._gates.shut_uploads(
            case.template.name, case.request.id, error
        )
