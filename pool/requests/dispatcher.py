"""Decides which accepted request is served next, and gives it to a worker.

These are the requests whose data is in the spool: those that callers hand to the daemon, and those
that were left there because CVAT was away or because a process died. One that waits holds no
thread: it is a row, and :meth:`Dispatcher.run_once` looks at the rows whenever a task has become
warm, another request was queued, or time has passed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from pool.clock import Clock
from pool.config.settings import Template
from pool.config.source import Upload
from pool.errors import (
    PoolError,
    Stopping,
    StoreError,
    UnknownTemplate,
)
from pool.logs import get_logger
from pool.model import Handout, RequestState
from pool.requests.breaker import SERVER, Breaker, Circuit
from pool.requests.concurrency import Concurrency
from pool.requests.grouping import (
    QUIET,
    checked_key,
    key_of,
    load_formats,
)
from pool.requests.groups import Groups
from pool.requests.in_flight import InFlight
from pool.requests.order import Turns
from pool.requests.placement import Placement
from pool.requests.recovery import Recovery
from pool.requests.round import QueueKey, Round, queue_key
from pool.requests.runner import RETRY_AFTER_INTERNAL_ERROR, Joined, Runner, WorkItem
from pool.requests.sending import LONGEST_CUT_OFF_PAUSE, Sender
from pool.requests.slots import Filler, way_of
from pool.requests.spool import Spool
from pool.requests.worker_pool import WORKERS, Job, WorkerPool
from pool.store import NewRequest, Opened, Store, Unserved
from pool.tracking.tracker import Tracker

log = get_logger(__name__)

#: Requests of one template that are looked at in one round: all that could begin, and more.
EACH: Final = 4 * WORKERS
#: Seconds between two rounds while a request waits, whatever else happens or does not.
LOOK: Final = 1.0
#: Seconds between two times of forgetting requests that another process has ended.
FORGET_EVERY: Final = 60.0
#: Requests that are looked up for that in one round.
FORGOTTEN: Final = 500

#: Seconds for which a request whose template no process has any more waits for one that has it: a
#: daemon may be about to start again, with a configuration that the others do not have yet.
GONE_AFTER: Final = 60.0
GONE: Final = "its template was taken out of the configuration while it waited"


@dataclass(frozen=True, kw_only=True, slots=True)
class DispatchReport:
    """How many requests were given to workers, and whether the server is being asked if it is
    back."""

    started: int = 0
    asked: bool = False


class Dispatcher:
    """Has the accepted requests of one store served, beside others that do the same.

    Thread-safe. What all have to know of a request is in its row: that it is taken, since when it
    waits for a task, that one is made for it. Of two that begin the same, one does. What this one
    alone remembers between two rounds is forgotten with the process.
    """

    def __init__(
        self,
        store: Store,
        templates: Mapping[str, Template],
        placement: Placement,
        recovery: Recovery,
        runner: Runner,
        sender: Sender,
        spool: Spool,
        filler: Filler,
        breaker: Breaker,
        tracker: Tracker,
        concurrency: Concurrency,
        *,
        owner: str,
        clock: Clock,
        workers: int = WORKERS,
    ) -> None:
        self._store = store
        self._templates = templates
        self._placement = placement
        self._recovery = recovery
        self._runner = runner
        self._sender = sender
        self._spool = spool
        self._filler = filler
        self._breaker = breaker
        self._concurrency = concurrency
        self._owner = owner
        self._clock = clock
        self._threads = WorkerPool(workers)
        self._turns = Turns()
        #: The templates of which the store knows that this process serves them.
        self._served: frozenset[str] | None = None
        #: Since when no process has the templates of requests that wait.
        self._gone_since: dict[str, float] = {}
        #: The seconds for which requests are left alone that were found in the last look.
        self._paused: list[float] = []
        self._in_flight = InFlight(clock)
        self._groups = Groups(
            store,
            tracker,
            runner,
            sender,
            spool,
            self._in_flight,
            again=lambda: self._again(),
            clock=clock,
        )
        self._due_at: float | None = None
        self._forget_at = 0.0
        #: Those of which it is still to be seen.
        self._remembered: list[str] = []
        self._again: Callable[[], None] = lambda: None
        if any(each.slots or each.importing.grouping == "auto" for each in templates.values()):
            load_formats()

    # --- Accepting --------------------------------------------------------------------------------

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

        Return once the request is durable, without waiting for anything: with the task that it
        goes into, or without one while it is ``QUEUED``. With a known ``idempotency_key`` the
        answer is that of the first call (``replayed``). With ``lease_id`` the data goes into that
        lease's task. After :meth:`stop` the request waits for the next daemon. When this raises, or
        replays, the data of ``new`` is dropped, unless it may be accepted even so: then it is swept
        should there be no request.

        :raises QueueFull: too many requests wait already.
        :raises PoolEmpty: there is no task, and the template says not to wait for one.
        :raises LeaseEnded: the lease is not active, or has a request already.
        :raises IdempotencyConflict: the key was used with other content.
        """
        key, by_slot, opened, in_doubt = None, False, None, False
        try:
            if lease_id is not None:
                self._filler.check_lease(lease_id, upload)
            else:
                way = way_of(template, new, upload)
                template, new, by_slot = way.template, way.new, way.by_slot
                key = None if by_slot else checked_key(template, upload, self._clock)
            request = replace(new, spooled=True, spool=self._spool.id, group_key=key)
            with self._in_flight.accepting(request.id):
                if lease_id is not None:
                    opened = self._placement.attach(
                        lease_id, request, idempotency_key=idempotency_key, payload=payload
                    )
                else:
                    opened = self._placement.accept(
                        template,
                        request,
                        idempotency_key=idempotency_key,
                        payload=payload,
                        claim=not self._threads.stopped
                        and (key is None or not template.importing.group_delay),
                        # On an idle server it goes at once. Else others may come with it, and a
                        # round sends them together.
                        places=None if key is None else 1,
                    )
        except StoreError as error:
            in_doubt = error.in_doubt
            raise
        finally:
            if opened is None or opened.replayed:
                self._in_flight.let_go(new.id)
                if not in_doubt:
                    self._spool.drop(new.id)
        if not opened.replayed:
            try:
                self._begin_accepted(template, opened, upload)
            except PoolError as error:
                # It is durable all the same, and found in the next round.
                log.warning("request not begun", request_id=new.id, why=str(error))
                self._in_flight.let_go(new.id)
        return opened

    def create(self, template: Template, lease_id: str, *, waited: float) -> Future[Handout]:
        """Have a worker create a task for a lease that waits, as
        :meth:`~pool.requests.placement.Placement.create` does. After :meth:`stop` the answer is
        :class:`pool.errors.Stopping`."""
        created = Future[Handout]()

        def run() -> None:
            try:
                created.set_result(self._placement.create(template, lease_id, waited=waited))
            except Exception as error:
                created.set_exception(error)

        def call_off() -> None:
            created.set_exception(Stopping())

        self._threads.put(Job(template=template.name, run=run, call_off=call_off, serves=False))
        return created

    def _begin_accepted(self, template: Template, opened: Opened, upload: Upload) -> None:
        request = opened.request
        assert request is not None
        if opened.task is not None:
            handout = Handout(lease=opened.lease, task=opened.task, request=request)
            self._serve(
                WorkItem(template=template, request=request, handout=handout, upload=upload)
            )
            return
        self._in_flight.let_go(request.id)
        # In a burst the round that is due soon is enough for all.
        if self._due_at is None or self._due_at > self._clock.monotonic() + QUIET:
            self._again()

    # --- Rounds -----------------------------------------------------------------------------------

    def on_room(self, again: Callable[[], None]) -> None:
        """Have ``again`` called when there may be something for :meth:`run_once` to do."""
        self._again = again
        self._threads.on_room(again)

    @property
    def waits(self) -> bool:
        """Whether a request waited at the end of the last round."""
        return self._due_at is not None

    def is_due(self) -> bool:
        """Whether a round is due because time has passed."""
        return self._due_at is not None and self._clock.monotonic() >= self._due_at

    @property
    def due_at(self) -> float | None:
        """When the next round is due, by the monotonic clock; None when nothing waits."""
        return self._due_at

    def run_once(self) -> DispatchReport:
        """Begin those that can be served now, in their order (:mod:`pool.requests.order`), and
        return without waiting for them. While the server is held, none is begun, and the server
        asked whether it is back."""
        self._forget_ended()
        self._say_what_is_served()
        this_round = self._round()
        found = self._unserved()
        abandoned = [each for each in found if each.state is RequestState.UPLOADING]
        for each in abandoned:
            self._runner.take_over(each, owner=self._owner)
        if abandoned:
            found = self._unserved()
        self._fail_if_gone([each for each in found if each.template not in self._templates])
        known = [each for each in found if each.template in self._templates]
        waiting: dict[QueueKey, list[Unserved]] = {}
        for each in known:
            waiting.setdefault(queue_key(each), []).append(each)
            self._fail_if_never_made(each)
        server, started, asked = self._breaker.server(), 0, False
        if server is Circuit.CLOSED:
            started = this_round.begin(waiting)
        elif server is Circuit.HALF_OPEN and self._breaker.begin_trial(SERVER):
            asked = self._threads.put_beside(self._breaker.ask_in_trial)
            if not asked:
                self._breaker.end_trial(SERVER)
        moments = this_round.end_patience(waiting)
        if waits := len(known) > started or server is not Circuit.CLOSED:
            moments.append(this_round.gathered_at)
        self._set_due(known, moments, waits=waits)
        return DispatchReport(started=started, asked=asked)

    def drain(self, timeout: float | None = None) -> bool:
        """Wait for the requests that are being served; False when some still were after
        ``timeout`` seconds."""
        return self._threads.drain(timeout)

    def stop(self, timeout: float | None = None) -> bool:
        """Begin nothing more and wait for what is under way; False as for :meth:`drain`. Requests
        that no worker has begun wait for the next daemon."""
        self._again = lambda: None
        return self._threads.stop(timeout)

    def _round(self) -> Round:
        return Round(
            store=self._store,
            templates=self._templates,
            placement=self._placement,
            groups=self._groups,
            breaker=self._breaker,
            filler=self._filler,
            concurrency=self._concurrency,
            in_flight=self._in_flight,
            threads=self._threads,
            spool=self._spool,
            turns=self._turns,
            owner=self._owner,
            clock=self._clock,
            serve=self._serve,
            fail=self._fail,
            again=lambda: self._again(),
            others=self._recovery.made_by_others(),
        )

    def _unserved(self) -> list[Unserved]:
        imports = [each.importing for each in self._templates.values()]
        groups = [each.group_requests for each in imports if each.grouping == "auto"]
        # While none can begin, none has to be read for a group. Those that are being worked on are
        # found as well, and are the oldest.
        most = max(groups, default=0) if self._breaker.server() is Circuit.CLOSED else 0
        most += EACH + self._in_flight.taken
        now, free = self._clock.now(), self._in_flight.free(self._recovery.unserved(each=most))
        ends = [each.paused_until or now for each in free]
        # One that is longer is of before the clock was set back.
        paused = [now < end <= now + LONGEST_CUT_OFF_PAUSE for end in ends]
        self._paused = [end - now for end, waits in zip(ends, paused, strict=True) if waits]
        return [each for each, waits in zip(free, paused, strict=True) if not waits]

    def _forget_ended(self) -> None:
        """Forget requests that were cancelled while they waited, by whatever process; of many, some
        in each round."""
        now = self._clock.monotonic()
        if not self._remembered and now >= self._forget_at:
            self._forget_at, self._served = now + FORGET_EVERY, None
            self._remembered = [*self._in_flight.remembered()]
        some, self._remembered = self._remembered[:FORGOTTEN], self._remembered[FORGOTTEN:]
        for request_id in self._store.requests_at_end(some) if some else ():
            self._in_flight.forget_patience(request_id)

    def _say_what_is_served(self) -> None:
        """Have other processes leave requests of these templates alone that they do not have."""
        templates = frozenset(self._templates)
        if templates != self._served and self._store.serve_templates(self._owner, templates):
            self._served = templates

    def _set_due(self, known: Sequence[Unserved], ends: Sequence[float], *, waits: bool) -> None:
        """Set when the next round is due: at one of the ``ends`` at the latest."""
        now = self._clock.monotonic()
        names = {SERVER, *(each.template for each in known)}
        # Those that are not looked at yet can only be served when others are.
        moments: list[float | None] = [*ends, *self._in_flight.pauses()]
        moments += [now + seconds for seconds in self._paused]
        moments += [since + GONE_AFTER for since in self._gone_since.values()]
        if waits:
            moments += [now + LOOK, self._breaker.tries_at(names, now=now)]
        self._due_at = min((each for each in moments if each is not None), default=None)

    # --- What becomes of those that wait ----------------------------------------------------------

    def _join(self, template: Template, first: Unserved, taken: list[str]) -> Joined:
        """Return what shares the task that was made for a request: those of its group that wait
        now. They are added to ``taken``."""
        key = self._in_flight.created(first.id)
        if key is None:
            return Joined()
        waiting = [each for each in self._unserved() if queue_key(each) == queue_key(first)]
        alike = [
            each for each in waiting if each.state is RequestState.QUEUED and key_of(each) == key
        ]
        # It has waited longest, so that it is the first of the first group.
        group = self._groups.divide(template, [first, *alike])[0]
        with self._in_flight.taking(*(each.id for each in group[1:]), some=True) as others:
            group = [first, *(each for each in group[1:] if each.id in others)]
            members, upload = self._groups.seal(template, self._groups.fetch(group))
            shared = [member.request_id for member in members]
            if first.id not in shared or len(shared) == 1:
                members, shared = [], []
            self._in_flight.let_go(*(each for each in others if each not in shared))
            taken += (each for each in shared if each != first.id)
        self._in_flight.forget_patience(*taken)
        return Joined(members=members, upload=upload)

    def _fail_if_never_made(self, each: Unserved) -> None:
        """Fail a request where CVAT makes no task of its template, and of others it does, and that
        was tried often enough for it."""
        template = self._templates[each.template]
        error = self._breaker.fault_of_create(template, since=each.created_at)
        if error is not None and not self._placement.has_warm(template):
            self._fail(each, error)

    def _fail_if_gone(self, requests: Sequence[Unserved]) -> None:
        """Fail requests of templates that this process does not have, unless another one does."""
        now = self._clock.monotonic()
        others = self._store.served_templates(now=self._clock.now()) if requests else ()
        gone = {each.template for each in requests} - {*others}
        self._gone_since = {name: self._gone_since.get(name, now) for name in gone}
        for each in requests:
            if now - self._gone_since.get(each.template, now) >= GONE_AFTER:
                self._fail(each, UnknownTemplate(GONE))

    def _fail(self, each: Unserved, error: PoolError) -> None:
        """Fail a request that waits; not one that another process has begun since it was read."""
        with self._in_flight.taking(each.id) as taken:
            request = None
            if taken:
                now = self._clock.now()
                request = self._store.take_spooled(each.id, owner=self._owner, now=now)
            if request is not None and request.state is RequestState.QUEUED:
                self._sender.fail(request, error, untouched=False)
        self._in_flight.let_go(*taken)

    # --- What is in flight ------------------------------------------------------------------------

    def _serve(self, item: WorkItem, first: Unserved | None = None) -> None:
        """Have a worker serve requests, which wait for nothing any more; ``first`` is that for
        which a task is made."""
        self._in_flight.forget_patience(item.request.id, *item.others)

        def call_off() -> None:
            if item.trial:
                self._breaker.end_trial(item.template.name)
            self._runner.put_back(item)
            self._in_flight.created(item.request.id)

        self._threads.put(
            Job(
                template=item.template.name,
                run=partial(self._run, item, first),
                call_off=call_off,
            )
        )

    def _run(self, item: WorkItem, first: Unserved | None) -> None:
        pause = RETRY_AFTER_INTERNAL_ERROR
        taken = [item.request.id, *item.others]
        if first is not None:
            item = replace(item, join=partial(self._join, item.template, first, taken))
        try:
            pause = self._runner.serve(item)
        finally:
            if item.trial:
                self._breaker.end_trial(item.template.name)
            self._in_flight.created(item.request.id)
            self._in_flight.let_go(*taken, paused_until=self._clock.monotonic() + pause)
