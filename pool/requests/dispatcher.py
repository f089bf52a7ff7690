"""Decides which accepted request is served next, and gives it to a worker.

These are the requests whose data is in the spool: those that callers hand to the daemon, and those
that were left there because CVAT was away or because a process died. One that waits holds no
thread: it is a row, and :meth:`Dispatcher.run_once` looks at the rows whenever a task has become
warm, another request was queued, or time has passed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from pool.clock import Clock
from pool.config.settings import Template
from pool.config.source import Upload
from pool.errors import (
    PoolEmpty,
    PoolError,
    Stopping,
    StoreError,
    UnknownTemplate,
)
from pool.logs import get_logger
from pool.model import Handout, Priority, RequestState
from pool.requests.breaker import SERVER, Breaker, Circuit
from pool.requests.concurrency import Concurrency, places_of
from pool.requests.grouping import (
    QUIET,
    GroupKey,
    bulk_places,
    checked_key,
    key_of,
    load_formats,
)
from pool.requests.groups import Groups
from pool.requests.in_flight import InFlight
from pool.requests.order import Turns
from pool.requests.placement import Placement
from pool.requests.recovery import Recovery
from pool.requests.runner import RETRY_AFTER_INTERNAL_ERROR, Joined, Runner, WorkItem
from pool.requests.sending import LONGEST_CUT_OFF_PAUSE, Sender
from pool.requests.slots import NONE_FOR_STREAM, NONE_WARM, Filler, way_of
from pool.requests.spool import Spool
from pool.requests.worker_pool import WORKERS, Job, WorkerPool
from pool.store import UNOWNED, MadeFor, NewMember, NewRequest, Opened, Store, Unserved
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
#: Seconds by which the clocks of two machines may differ. A request that was accepted later than
#: that was accepted before the clock was set back.
SKEW: Final = 1.0

#: Seconds for which a request whose template no process has any more waits for one that has it: a
#: daemon may be about to start again, with a configuration that the others do not have yet.
GONE_AFTER: Final = 60.0
GONE: Final = "its template was taken out of the configuration while it waited"
TOO_LONG: Final = "no task became warm within the template's max_wait; see 'cvat-pool status'"


@dataclass(frozen=True, kw_only=True, slots=True)
class DispatchReport:
    """How many requests were given to workers, and whether the server is being asked if it is
    back."""

    started: int = 0
    asked: bool = False


@dataclass(kw_only=True, slots=True)
class _Queue:
    """What waits of one template, in one round, in the order in which it is served. ``most`` is how
    many more may be begun, and ``places`` and ``bulk_places`` are those that are free for imports
    that requests may share. ``made_for`` counts the tasks that are being made, by what they are
    for. ``dry``: no warm task is left."""

    template: Template
    groups: list[list[Unserved]]
    most: int
    places: int = 0
    bulk_places: int = 0
    made_for: Counter[GroupKey] = field(default_factory=Counter)
    trial: bool = False
    dry: bool = False

    @property
    def grouping(self) -> bool:
        return self.template.importing.grouping == "auto"

    def shares(self, group: Sequence[Unserved]) -> bool:
        """Whether requests may share an import, for which they need a place."""
        return self.grouping and group[0].group_key is not None


#: What requests have in common that wait in one queue: a template, a tenant, and that they go into
#: no slot, or into those of a stream.
QueueKey = tuple[str, str, bool, str | None]


def _queue_key(each: Unserved) -> QueueKey:
    return each.template, each.tenant, each.no_slot, None if each.no_slot else each.stream


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
        #: For how long requests of each template wait for a warm task, in this round.
        self._patience: dict[str, float] = {}
        #: The templates of which the store knows that this process serves them.
        self._served: frozenset[str] | None = None
        #: Since when no process has the templates of requests that wait.
        self._gone_since: dict[str, float] = {}
        #: The seconds for which requests are left alone that were found in the last look.
        self._paused: list[float] = []
        #: For which requests other processes made tasks at the last look.
        self._others: Sequence[MadeFor] = ()
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
        #: When the first group has waited for others as long as its template says.
        self._gathered_at = math.inf
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
        self._gathered_at = math.inf
        self._patience.clear()
        self._others = self._recovery.made_by_others()
        found = self._unserved()
        abandoned = [each for each in found if each.state is RequestState.UPLOADING]
        for each in abandoned:
            self._runner.take_over(each, owner=self._owner)
        if abandoned:
            found = self._unserved()
        waiting: dict[QueueKey, list[Unserved]] = {}
        for each in found:
            if each.template in self._templates:
                waiting.setdefault(_queue_key(each), []).append(each)
        self._fail_if_gone([each for each in found if each.template not in self._templates])
        known = [each for each in found if each.template in self._templates]
        for each in known:
            self._fail_if_never_made(each)
        server, started, asked = self._breaker.server(), 0, False
        if server is Circuit.CLOSED:
            started = self._begin_in_turn(waiting)
        elif server is Circuit.HALF_OPEN and self._breaker.begin_trial(SERVER):
            asked = self._threads.put_beside(self._breaker.ask_in_trial)
            if not asked:
                self._breaker.end_trial(SERVER)
        ends: list[float] = []
        for requests in waiting.values():
            ends += self._end_patience(self._template_of(requests[0]), requests)
        self._set_due(known, ends, waits=len(known) > started or server is not Circuit.CLOSED)
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
        now = self._clock.monotonic()
        names = {SERVER, *(each.template for each in known)}
        # Those that are not looked at yet can only be served when others are.
        moments: list[float | None] = [*ends, *self._in_flight.pauses()]
        moments += [now + seconds for seconds in self._paused]
        moments += [since + GONE_AFTER for since in self._gone_since.values()]
        if waits:
            moments += [self._gathered_at, now + LOOK, self._breaker.tries_at(names, now=now)]
        self._due_at = min((each for each in moments if each is not None), default=None)

    # --- Which is next ----------------------------------------------------------------------------

    def _template_of(self, each: Unserved) -> Template:
        """Return what a request is served by: its template, or that without slots."""
        template = self._templates[each.template]
        return template.ordinary if each.no_slot else template

    def _begin_in_turn(self, waiting: Mapping[QueueKey, list[Unserved]]) -> int:
        """Begin as many requests as possible, by template; return how many."""
        now, started = self._clock.now(), 0
        queues = {key: self._queue_of(requests) for key, requests in waiting.items()}
        groups = [queue.groups for queue in queues.values() if queue.most > 0]
        for group in self._turns.order(groups, now=now):
            queue = queues[_queue_key(group[0])]
            if begun := self._begin(queue, group):
                self._turns.served(group, now=now)
                for each in queues.values():
                    each.most -= each.template.name == queue.template.name
                started += begun
                if queue.shares(group):
                    # A place is for requests of any template.
                    for each in queues.values():
                        each.places -= 1
                        each.bulk_places -= group[0].priority is Priority.BULK
        return started

    def _queue_of(self, requests: list[Unserved]) -> _Queue:
        """Return what waits of a template, as the groups in which it is sent."""
        template = self._template_of(requests[0])
        name = template.name
        queue = _Queue(template=template, groups=[], most=self._threads.room(name))
        circuit = self._breaker.uploads(name)
        if template.slots is not None:
            # A slot is filled without CVAT.
            circuit = Circuit.CLOSED
        if circuit is Circuit.OPEN:
            queue.most = 0
        if not queue.most:
            return queue
        if queue.grouping:
            queue.places, queue.bulk_places = self._groups.free_places(template, self._others)
            queue.made_for.update(self._in_flight.creating(name))
            queue.made_for.update(
                (key, priority, tenant)
                for made, key, priority, tenant in self._others
                if made == name and key is not None
            )
        if circuit is Circuit.HALF_OPEN:
            # One is enough to see whether CVAT takes data again, the one first that failed longest
            # ago, or never: maybe only the last one fails.
            queue.trial = True
            queue.groups = [[min(requests, key=lambda each: each.failed_at or 0.0)]]
            if any(job.serves for job in self._threads.jobs(name)):
                queue.most = 0
            return queue
        if template.slots is not None and requests[0].stream is not None:
            # None overtakes another, whatever its priority.
            requests = sorted(requests, key=lambda each: (each.created_at, each.id))
        else:
            requests = sorted(requests, key=lambda each: each.priority.level)
        queue.groups = (
            self._groups.divide(template, requests) if queue.grouping else [[e] for e in requests]
        )
        return queue

    def _begin(self, queue: _Queue, group: Sequence[Unserved]) -> int:
        """Begin requests that go together, if that is possible; return how many."""
        if queue.most <= 0:
            return 0
        if not queue.trial:
            return self._begin_group(queue, group)
        return self._try(queue.template, partial(self._begin_group, queue, group))

    def _try(self, template: Template, begin: Callable[[], int]) -> int:
        """Begin what tries a hold, unless another call does, in whatever process; return how many
        requests were begun. The trial ends with their work."""
        if not self._breaker.begin_trial(template.name):
            return 0
        begun = 0
        try:
            begun = begin()
        finally:
            if not begun:
                self._breaker.end_trial(template.name)
        return begun

    def _begin_group(self, queue: _Queue, group: Sequence[Unserved]) -> int:
        template, first = queue.template, group[0]
        shared = queue.shares(group)
        if shared and (
            (first.priority is Priority.BULK and queue.bulk_places <= 0)
            or self._gathers(template, group, free=queue.places)
        ):
            # No pool is empty because of that.
            self._in_flight.renew_patience(group, now=self._clock.now())
            return 0
        if not queue.dry:
            free = queue.places if shared else None
            served = self._take_warm(template, group, trial=queue.trial, free=free)
            if served:
                return served
            if self._placement.has_warm(template) and self._was_begun(group):
                # The others of it are looked at anew, and other groups at once.
                self._again()
                return 0
            queue.dry = True
        key = key_of(first) if shared and not queue.trial else None
        if key is not None and queue.made_for[key] > 0:
            # It goes with the task that is being made.
            queue.made_for[key] -= 1
            return 0
        return int(self._take_cold(template, first, key, trial=queue.trial))

    def _take_warm(
        self, template: Template, group: Sequence[Unserved], *, trial: bool, free: int | None
    ) -> int:
        """Have requests served with one warm task, if there is one for them; return how many.
        ``free``: so many places are free for them; while none is, they are the only ones to go
        ahead of one. None where they need no place."""
        first, ahead = group[0], free is not None and free <= 0
        places = of_bulk = None
        if free is not None:
            most = places_of(self._store, template.importing)
            places, of_bulk = most + ahead, bulk_places(most)
        members, upload = [NewMember(request_id=first.id)], None
        if len(group) > 1:
            if not self._placement.has_warm(template) or not self._is_here(template, group):
                return 0
            members, upload = self._groups.seal(template, group)
        ids = [member.request_id for member in members]
        with self._in_flight.taking(*ids) as taken:
            handout = None
            if taken:
                fingerprint, reusable_origin = self._placement.wanted(template, first)
                handout = self._store.claim_queued(
                    members,
                    fingerprint,
                    reusable_origin=reusable_origin,
                    places=places,
                    bulk_places=of_bulk,
                    owner=self._owner,
                    now=self._clock.now(),
                )
        if handout is None or handout.request is None:
            self._in_flight.let_go(*taken)
            return 0
        if free is not None and free <= 1:
            self._concurrency.watch(template.importing, handout.task.task_id, ahead=ahead)
        self._serve(
            WorkItem(
                template=template,
                request=handout.request,
                others=tuple(ids[1:]),
                handout=handout,
                upload=upload,
                trial=trial,
            )
        )
        return len(ids)

    def _is_here(self, template: Template, group: Sequence[Unserved]) -> bool:
        """Whether the data of requests is on this machine. What is not is fetched by a worker,
        since a bucket may take its time, and the next round finds it."""
        away = self._spool.elsewhere(each.id for each in group)
        if not away:
            return True
        with self._in_flight.taking(*away) as taken:
            let_go = partial(self._in_flight.let_go, *taken)
            missing = [each for each in group if each.id in taken]
            if missing:
                fetch = partial(self._fetch, missing)
                job = Job(template=template.name, run=fetch, call_off=let_go, serves=False)
                self._threads.put(job)
        return False

    def _fetch(self, requests: Sequence[Unserved]) -> None:
        try:
            self._groups.fetch(requests)
        finally:
            self._in_flight.let_go(*(each.id for each in requests))

    def _was_begun(self, group: Sequence[Unserved]) -> bool:
        """Whether another process has begun one of these since they were read, or it has ended."""
        records = (self._store.request(each.id) for each in group)
        return any(
            record is None
            or record.state is not RequestState.QUEUED
            or record.owner not in (UNOWNED, self._owner)
            for record in records
        )

    def _gathers(self, template: Template, group: Sequence[Unserved], *, free: int) -> bool:
        """Whether a group waits: for others, or for a place, of which so many are ``free``."""
        wait = self._groups.seconds_to_wait(template, group, free=free)
        if wait > 0.0:
            self._gathered_at = min(self._gathered_at, self._clock.monotonic() + wait)
        return wait > 0.0

    def _patience_left(self, template: Template, each: Unserved) -> float:
        """Return for how many more seconds a request waits for a warm task alone; 0 where that is
        over, or it waits for something else."""
        now = self._clock.now()
        if not each.patient or template.pool.on_empty == "fail" or each.created_at > now + SKEW:
            return 0.0
        if template.name not in self._patience:
            self._patience[template.name] = self._placement.patience(template, None)
        since = min(now, self._in_flight.waits_since(each))
        return max(0.0, since + self._patience[template.name] - now)

    def _take_cold(self, template: Template, each: Unserved, key: GroupKey, *, trial: bool) -> bool:
        """Have a request served with a task made on the spot, if it has waited as long as it
        should and not too many are being made already. Those of its group, which have ``key``,
        share that task."""
        if template.pool.on_empty != "create":
            return False
        if self._patience_left(template, each) > 0.0:
            return False
        if template.slots is not None:
            self._leave_slots(template, each)
            return False
        circuit = self._breaker.creates(template.name)
        if circuit is Circuit.OPEN:
            return False
        at_once = template.pool.create_concurrency if circuit is Circuit.CLOSED else 1
        others = sum(made == template.name for made, *_ in self._others)
        if len(self._in_flight.creating(template.name)) + others >= at_once:
            return False
        if circuit is Circuit.HALF_OPEN and not trial:
            create = partial(self._create, template, each, key, others, trial=True)
            return bool(self._try(template, create))
        return self._create(template, each, key, others, trial=trial)

    def _create(
        self, template: Template, each: Unserved, key: GroupKey, others: int, *, trial: bool
    ) -> bool:
        with self._in_flight.taking(each.id) as taken:
            request = None
            if taken:
                now = self._clock.now()
                request = self._store.take_spooled(
                    each.id, owner=self._owner, made_by_others=others, now=now
                )
        if request is None or request.state is not RequestState.QUEUED:
            self._in_flight.let_go(*taken)
            return False
        self._in_flight.create(each.id, template.name, key)
        self._serve(WorkItem(template=template, request=request, trial=trial), first=each)
        return True

    def _leave_slots(self, template: Template, each: Unserved) -> None:
        """Have a request that has waited long enough for a slot go the ordinary way, in the next
        round."""
        if not self._is_here(template, [each]):
            return
        upload = self._groups.load(each)
        if upload is not None:
            why = NONE_WARM if each.stream is None else NONE_FOR_STREAM
            self._filler.leave_slots(template, each.id, upload, why, shares=True)
            self._again()

    def _join(self, template: Template, first: Unserved, taken: list[str]) -> Joined:
        """Return what shares the task that was made for a request: those of its group that wait
        now. They are added to ``taken``."""
        key = self._in_flight.created(first.id)
        if key is None:
            return Joined()
        waiting = [each for each in self._unserved() if _queue_key(each) == _queue_key(first)]
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

    def _end_patience(self, template: Template, requests: Sequence[Unserved]) -> list[float]:
        """Fail requests that have waited for too long, where their template says so; return when
        that of the others ends, by the monotonic clock."""
        patient = [each for each in requests if each.patient]
        if patient and self._breaker.waits_for_cvat(template.name):
            # No pool is empty because of that.
            self._store.wait_for_more(template.name)
            return []
        now, ends = self._clock.monotonic(), []
        for each in patient:
            if (left := self._patience_left(template, each)) > 0.0:
                ends.append(now + left)
            elif template.pool.on_empty == "wait":
                self._in_flight.forget_patience(each.id)
                self._fail(each, PoolEmpty(TOO_LONG))
        return ends

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

    def _serve(self, item: WorkItem, *, first: Unserved | None = None) -> None:
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
