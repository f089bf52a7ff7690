"""Serves the requests whose data is in the spool: those that callers hand to the daemon, and those
that were left there because CVAT was away or because a process died.

A request that waits costs no thread: it is a row, and :meth:`Dispatch.run_once` looks at the rows,
whenever a task has become warm, another request was queued, or time has passed. A request that has
its task is a job of a small crew.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from pool.clock import Clock
from pool.config.settings import Template
from pool.cvat.records import Upload
from pool.errors import PoolEmpty, PoolError, UnknownTemplate
from pool.events.notifier import Signal
from pool.logs import get_logger
from pool.model import Handout, RequestState
from pool.requests.admission import Acceptance
from pool.requests.backoff import SERVER, Circuit
from pool.requests.breaker import Breaker
from pool.requests.in_flight import Turns, by_template
from pool.requests.placement import HandOut
from pool.requests.queue import Queue
from pool.requests.runner import Intake
from pool.requests.serving import STUMBLE, Case, Serving
from pool.requests.spool import Spool
from pool.requests.worker_pool import Crew
from pool.store import NewRequest, Opened, Store, Unserved

log = get_logger(__name__)

#: Requests that are served at the same time at most.
WORKERS: Final = 16
#: Requests of one template that are looked at in one round: all that could begin, and more.
EACH: Final = 4 * WORKERS
#: Seconds between two looks while anything waits, whatever else happens or does not.
LOOK: Final = 1.0
#: Seconds between two times of forgetting requests that somebody else has ended.
FORGET_EVERY: Final = 60.0

GONE: Final = "its template was taken out of the configuration while it waited"
TOO_LONG: Final = "no task became warm within the template's max_wait; see 'cvat-pool status'"


@dataclass(frozen=True, kw_only=True, slots=True)
class DispatchReport:
    """How many requests were begun, how many have failed without that, and how many wait on.
    ``asked`` tells that the server is being asked whether it is back."""

    started: int = 0
    failed: int = 0
    waiting: int = 0
    asked: bool = False


class Dispatch:
    """Has the spooled requests of one store served, in the daemon that maintains it."""

    def __init__(
        self,
        store: Store,
        templates: Mapping[str, Template],
        hand_out: HandOut,
        intake: Intake,
        queue: Queue,
        spool: Spool,
        breaker: Breaker,
        *,
        owner: str,
        most_queued: int,
        warm: Signal,
        clock: Clock,
        rng: random.Random | None = None,
        workers: int = WORKERS,
    ) -> None:
        self._store = store
        self._templates = templates
        self._hand_out = hand_out
        self._spool = spool
        self._owner = owner
        self._clock = clock
        self._breaker = breaker
        self._acceptance = Acceptance(
            store,
            hand_out,
            queue,
            breaker,
            owner=owner,
            most_queued=most_queued,
            clock=clock,
        )
        self._serving = Serving(
            store,
            hand_out,
            intake,
            spool,
            breaker,
            warm=warm,
            clock=clock,
            rng=rng or random.Random(),
        )
        self._crew = Crew(workers, name="dispatch")
        self._turns = Turns()
        self._guard = threading.Lock()
        #: What is on the crew's list, and those of it that have not begun.
        self._cases: dict[str, Case] = {}
        self._not_begun: set[str] = set()
        self._asking = False
        self._stopped = False
        self._due_at: float | None = None
        self._forget_at = 0.0
        self._again: Callable[[], None] = lambda: None
        self._stop_listening = warm.listen(self._on_warm)

    # --- Requests that come -----------------------------------------------------------------------

    def accept(
        self,
        template: Template,
        upload: Upload,
        new: NewRequest,
        *,
        idempotency_key: str | None = None,
        payload: str = "",
        lease_id: str | None = None,
    ) -> Opened:
        """Take over a request whose data is complete in the spool, and have it served.

        The answer comes once the request is durable, without waiting for anything: with the task
        that it goes into, or without one while it is ``QUEUED``. With a known ``idempotency_key``
        it is that of the first call (``replayed``). With ``lease_id`` the data goes into that
        lease's task. After :meth:`stop` the request waits for the next daemon. When this raises, or
        replays, the data of ``new`` is dropped.

        :raises QueueFull: too many requests wait already.
        :raises PoolEmpty: there is no task, and the template says not to wait for one.
        :raises LeaseEnded: the lease is not active, or has a request already.
        :raises IdempotencyConflict: the key was used with other content.
        """
        request = replace(new, spooled=True)
        # Before there is a row: nobody is to take it for one that is not worked on.
        self._turns.take(request.id)
        opened: Opened | None = None
        try:
            if lease_id is not None:
                opened = self._acceptance.attach(
                    request, lease_id, idempotency_key=idempotency_key, payload=payload
                )
            else:
                opened = self._acceptance.open(
                    template,
                    request,
                    idempotency_key=idempotency_key,
                    payload=payload,
                    claim=not self._stopped,
                )
        finally:
            if opened is None or opened.replayed:
                self._turns.let_go(request.id)
                self._spool.drop(request.id)
        if not opened.replayed:
            try:
                self._begin_accepted(template, opened, upload)
            except PoolError as error:
                # It is durable all the same, and seen to in the next round.
                log.warning("request not begun", request_id=request.id, why=str(error))
                self._turns.let_go(request.id)
        return opened

    def _begin_accepted(self, template: Template, opened: Opened, upload: Upload) -> None:
        request = opened.request
        assert request is not None
        if opened.task is not None:
            handout = Handout(lease=opened.lease, task=opened.task, request=request)
            self._put(Case(template=template, request=request, handout=handout, upload=upload))
            return
        if template.pool.on_empty != "fail":
            patience = self._hand_out.patience(template, None)
            self._turns.wait_until(request.id, self._clock.monotonic() + patience)
        self._turns.let_go(request.id)
        self._again()

    # --- Rounds -----------------------------------------------------------------------------------

    def on_room(self, again: Callable[[], None]) -> None:
        """Have ``again`` called when there may be something for :meth:`run_once` to do."""
        self._again = again

    def is_due(self) -> bool:
        """Whether it is time for a round, should nothing else have been a reason for one."""
        return self._due_at is not None and self._clock.monotonic() >= self._due_at

    def run_once(self) -> DispatchReport:
        """Begin those that can be served now, the oldest first, and return without waiting for
        them. While the server is held, none is begun, and the server asked whether it is back."""
        self._forget_ended()
        found = self._unserved()
        left_behind = [each for each in found if each.state is RequestState.UPLOADING]
        failed = sum(self._serving.recover(each, owner=self._owner) for each in left_behind)
        if left_behind:
            found = self._unserved()
        known = [each for each in found if each.template in self._templates]
        gone = [each for each in found if each.template not in self._templates]
        failed += sum(self._serving.fail_waiting(each, UnknownTemplate(GONE)) for each in gone)
        failed += sum(self._fail_by_template(each) for each in known)
        server, started, asked = self._breaker.server(), 0, False
        if server is Circuit.CLOSED:
            started = sum(self._begin(name, each) for name, each in by_template(known))
        elif server is Circuit.HALF_OPEN:
            asked = self._ask_server()
        failed += sum(self._lose_patience(each) for each in known)
        waiting = len(known) - started
        names = {SERVER, *(each.template for each in known)}
        self._set_due(names, waiting=waiting > 0, held=server is not Circuit.CLOSED)
        return DispatchReport(started=started, failed=failed, waiting=waiting, asked=asked)

    def drain(self, timeout: float | None = None) -> bool:
        """Wait for the requests that are being served; False when some still were after
        ``timeout`` seconds."""
        return self._crew.drain(timeout)

    def stop(self, timeout: float | None = None) -> bool:
        """Begin nothing more and wait for what is under way; False as for :meth:`drain`. Those
        whose turn had not come are nobody's again."""
        self._stop_listening()
        with self._guard:
            self._stopped = True
        self._again = lambda: None
        finished = self._crew.stop(timeout)
        with self._guard:
            left = [self._cases[request_id] for request_id in self._not_begun]
        for case in left:
            self._serving.put_back(case)
        return finished

    def _unserved(self) -> list[Unserved]:
        now = self._clock.monotonic()
        found = self._store.unserved(owner=self._owner, now=self._clock.now(), each=EACH)
        return [each for each in found if self._turns.is_free(each.id, now=now)]

    def _forget_ended(self) -> None:
        """Forget requests that were cancelled while they waited, by whatever process."""
        now = self._clock.monotonic()
        if now >= self._forget_at:
            self._forget_at = now + FORGET_EVERY
            remembered = {*self._turns.waiting(), *self._breaker.failing()}
            for request_id in self._store.requests_at_end(sorted(remembered)):
                self._turns.forget(request_id)
                self._breaker.forget(request_id)

    def _set_due(self, names: Collection[str], *, waiting: bool, held: bool) -> None:
        now = self._clock.monotonic()
        moments = [self._turns.next_moment(now=now)]
        if waiting or held:
            moments += [now + LOOK, self._breaker.tries_at(names, now=now)]
        self._due_at = min((each for each in moments if each is not None), default=None)

    def _on_warm(self) -> None:
        if self._due_at is not None:
            self._again()

    # --- Whose turn it is -------------------------------------------------------------------------

    def _begin(self, name: str, requests: list[Unserved]) -> int:
        """Give as many of a template's requests their turn as possible."""
        template = self._templates[name]
        most = self._crew.room(name)
        circuit = self._breaker.uploads(name)
        if circuit is Circuit.OPEN:
            return 0
        trial = circuit is Circuit.HALF_OPEN
        if trial:
            # One is enough to see whether CVAT takes data again. Each in turn, those first that
            # have not failed yet: maybe it is only that one.
            requests = sorted(requests, key=lambda each: self._breaker.failed_at(each.id))
            most = min(most, 0 if self._is_served(name) else 1)
        started, dry = 0, False
        for each in requests:
            if started >= most:
                break
            if not dry and self._take_warm(template, each, trial=trial):
                started += 1
                continue
            dry = True
            started += self._take_cold(template, each, trial=trial)
        return started

    def _take_warm(self, template: Template, each: Unserved, *, trial: bool) -> bool:
        """Have a request served with a warm task, if there is one for it."""
        with self._turns.taking(each.id):
            handout = self._store.claim_queued(
                each.id,
                template.fingerprint,
                older_from=template.older_from,
                owner=self._owner,
                now=self._clock.now(),
            )
        if handout is None or handout.request is None:
            self._turns.let_go(each.id)
            return False
        case = Case(template=template, request=handout.request, handout=handout)
        self._put(replace(case, trial=trial))
        return True

    def _take_cold(self, template: Template, each: Unserved, *, trial: bool) -> bool:
        """Have a request served with a task made on the spot, if it has waited as long as it
        should and not too many are being made already."""
        if template.pool.on_empty != "create":
            return False
        if self._turns.is_patient(each.id, now=self._clock.monotonic()):
            return False
        circuit = self._breaker.creates(template.name)
        if circuit is Circuit.OPEN:
            return False
        at_once = template.pool.create_concurrency if circuit is Circuit.CLOSED else 1
        if self._creating(template.name) >= at_once:
            return False
        with self._turns.taking(each.id):
            request = self._store.take_spooled(each.id, owner=self._owner, now=self._clock.now())
        if request is None or request.state is not RequestState.QUEUED:
            self._turns.let_go(each.id)
            return False
        self._put(Case(template=template, request=request, trial=trial))
        return True

    def _lose_patience(self, each: Unserved) -> bool:
        """Where the template says so, a request has failed that has waited for too long."""
        if self._breaker.waits_for_cvat(each.template):
            # No pool is empty because of that.
            self._turns.forget(each.id)
            return False
        if self._templates[each.template].pool.on_empty != "wait":
            return False
        if not self._turns.has_lost_patience(each.id, now=self._clock.monotonic()):
            return False
        self._turns.forget(each.id)
        return self._serving.fail_waiting(each, PoolEmpty(TOO_LONG))

    def _fail_by_template(self, each: Unserved) -> bool:
        """Where CVAT makes no task of a template, and of others it does, a request has failed for
        which that was tried often enough."""
        template = self._templates[each.template]
        error = self._breaker.fault_of_create(template, since=each.created_at)
        if error is None or self._hand_out.has_warm(template):
            return False
        return self._serving.fail_waiting(each, error)

    def _is_served(self, name: str) -> bool:
        with self._guard:
            return any(case.template.name == name for case in self._cases.values())

    def _creating(self, name: str) -> int:
        """Tasks of a template that are being made for requests."""
        with self._guard:
            return sum(
                case.handout is None and case.template.name == name for case in self._cases.values()
            )

    # --- On the crew ------------------------------------------------------------------------------

    def _put(self, case: Case) -> None:
        with self._guard:
            if not self._stopped:
                self._cases[case.request.id] = case
                self._not_begun.add(case.request.id)
                self._crew.put(case.template.name, partial(self._serve, case))
                return
        self._serving.put_back(case)

    def _serve(self, case: Case) -> None:
        request_id = case.request.id
        with self._guard:
            self._not_begun.discard(request_id)
        pause = STUMBLE
        try:
            pause = self._serving.serve(case)
        finally:
            with self._guard:
                del self._cases[request_id]
            self._turns.forget(request_id)
            self._turns.let_go(request_id, pause_until=self._clock.monotonic() + pause)
            self._again()

    def _ask_server(self) -> bool:
        """Have the server asked whether it is back, unless it is being asked."""
        if self._asking:
            return False
        self._asking = True
        self._crew.put(SERVER, self._ask)
        return True

    def _ask(self) -> None:
        try:
            self._breaker.ask()
        finally:
            self._asking = False
        self._again()
