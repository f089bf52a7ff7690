"""One round of dispatching: which of the requests that wait begin now, and with which tasks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from pool.clock import Clock
from pool.config.settings import Template
from pool.errors import PoolEmpty, PoolError
from pool.model import Priority, RequestState
from pool.requests.breaker import Breaker, Circuit
from pool.requests.concurrency import Concurrency, places_of
from pool.requests.grouping import GroupKey, bulk_places, key_of
from pool.requests.groups import Groups
from pool.requests.in_flight import InFlight
from pool.requests.order import Turns
from pool.requests.placement import Placement
from pool.requests.runner import WorkItem
from pool.requests.slots import NONE_FOR_STREAM, NONE_WARM, Filler
from pool.requests.spool import Spool
from pool.requests.worker_pool import Job, WorkerPool
from pool.store import UNOWNED, MadeFor, NewMember, Store, Unserved

#: Seconds by which the clocks of two machines may differ. A request that was accepted later than
#: that was accepted before the clock was set back.
SKEW: Final = 1.0
TOO_LONG: Final = "no task became warm within the template's max_wait; see 'cvat-pool status'"


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


def queue_key(each: Unserved) -> QueueKey:
    return each.template, each.tenant, each.no_slot, None if each.no_slot else each.stream


@dataclass(kw_only=True, eq=False)
class Round:
    """Begins what can be served now. ``serve`` has a worker do that, with the request for which a
    task is made, if there is one; ``fail`` ends a request that has waited too long; ``again`` asks
    for another round soon. ``others``: for which requests other processes make tasks."""

    store: Store
    templates: Mapping[str, Template]
    placement: Placement
    groups: Groups
    breaker: Breaker
    filler: Filler
    concurrency: Concurrency
    in_flight: InFlight
    threads: WorkerPool
    spool: Spool
    turns: Turns
    owner: str
    clock: Clock
    serve: Callable[[WorkItem, Unserved | None], None]
    fail: Callable[[Unserved, PoolError], None]
    again: Callable[[], None]
    others: Sequence[MadeFor]
    #: For how long requests of each template wait for a warm task.
    patience: dict[str, float] = field(default_factory=dict)
    #: When the first group has waited for others as long as its template says, by the monotonic
    #: clock.
    gathered_at: float = math.inf

    def begin(self, waiting: Mapping[QueueKey, list[Unserved]]) -> int:
        """Begin as many requests as possible, by template; return how many."""
        now, started = self.clock.now(), 0
        queues = {key: self._queue_of(requests) for key, requests in waiting.items()}
        groups = [queue.groups for queue in queues.values() if queue.most > 0]
        for group in self.turns.order(groups, now=now):
            queue = queues[queue_key(group[0])]
            if begun := self._begin(queue, group):
                self.turns.served(group, now=now)
                for each in queues.values():
                    each.most -= each.template.name == queue.template.name
                started += begun
                if queue.shares(group):
                    # A place is for requests of any template.
                    for each in queues.values():
                        each.places -= 1
                        each.bulk_places -= group[0].priority is Priority.BULK
        return started

    def end_patience(self, waiting: Mapping[QueueKey, Sequence[Unserved]]) -> list[float]:
        """Fail requests that have waited for too long, where their template says so; return when
        that of the others ends, by the monotonic clock."""
        ends: list[float] = []
        for requests in waiting.values():
            ends += self._end_patience(self._template_of(requests[0]), requests)
        return ends

    def _template_of(self, each: Unserved) -> Template:
        """Return what a request is served by: its template, or that without slots."""
        template = self.templates[each.template]
        return template.ordinary if each.no_slot else template

    def _queue_of(self, requests: list[Unserved]) -> _Queue:
        """Return what waits of a template, as the groups in which it is sent."""
        template = self._template_of(requests[0])
        name = template.name
        queue = _Queue(template=template, groups=[], most=self.threads.room(name))
        circuit = self.breaker.uploads(name)
        if template.slots is not None:
            # A slot is filled without CVAT.
            circuit = Circuit.CLOSED
        if circuit is Circuit.OPEN:
            queue.most = 0
        if not queue.most:
            return queue
        if queue.grouping:
            queue.places, queue.bulk_places = self.groups.free_places(template, self.others)
            queue.made_for.update(self.in_flight.creating(name))
            queue.made_for.update(
                (key, priority, tenant)
                for made, key, priority, tenant in self.others
                if made == name and key is not None
            )
        if circuit is Circuit.HALF_OPEN:
            # One is enough to see whether CVAT takes data again, the one first that failed longest
            # ago, or never: maybe only the last one fails.
            queue.trial = True
            queue.groups = [[min(requests, key=lambda each: each.failed_at or 0.0)]]
            if any(job.serves for job in self.threads.jobs(name)):
                queue.most = 0
            return queue
        if template.slots is not None and requests[0].stream is not None:
            # None overtakes another, whatever its priority.
            requests = sorted(requests, key=lambda each: (each.created_at, each.id))
        else:
            requests = sorted(requests, key=lambda each: each.priority.level)
        queue.groups = (
            self.groups.divide(template, requests) if queue.grouping else [[e] for e in requests]
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
        if not self.breaker.begin_trial(template.name):
            return 0
        begun = 0
        try:
            begun = begin()
        finally:
            if not begun:
                self.breaker.end_trial(template.name)
        return begun

    def _begin_group(self, queue: _Queue, group: Sequence[Unserved]) -> int:
        template, first = queue.template, group[0]
        shared = queue.shares(group)
        if shared and (
            (first.priority is Priority.BULK and queue.bulk_places <= 0)
            or self._gathers(template, group, free=queue.places)
        ):
            # No pool is empty because of that.
            self.in_flight.renew_patience(group, now=self.clock.now())
            return 0
        if not queue.dry:
            free = queue.places if shared else None
            served = self._take_warm(template, group, trial=queue.trial, free=free)
            if served:
                return served
            if self.placement.has_warm(template) and self._was_begun(group):
                # The others of it are looked at anew, and other groups at once.
                self.again()
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
            most = places_of(self.store, template.importing)
            places, of_bulk = most + ahead, bulk_places(most)
        members, upload = [NewMember(request_id=first.id)], None
        if len(group) > 1:
            if not self.placement.has_warm(template) or not self._is_here(template, group):
                return 0
            members, upload = self.groups.seal(template, group)
        ids = [member.request_id for member in members]
        with self.in_flight.taking(*ids) as taken:
            handout = None
            if taken:
                fingerprint, reusable_origin = self.placement.wanted(template, first)
                handout = self.store.claim_queued(
                    members,
                    fingerprint,
                    reusable_origin=reusable_origin,
                    places=places,
                    bulk_places=of_bulk,
                    owner=self.owner,
                    now=self.clock.now(),
                )
        if handout is None or handout.request is None:
            self.in_flight.let_go(*taken)
            return 0
        if free is not None and free <= 1:
            self.concurrency.watch(template.importing, handout.task.task_id, ahead=ahead)
        self.serve(
            WorkItem(
                template=template,
                request=handout.request,
                others=tuple(ids[1:]),
                handout=handout,
                upload=upload,
                trial=trial,
            ),
            None,
        )
        return len(ids)

    def _is_here(self, template: Template, group: Sequence[Unserved]) -> bool:
        """Whether the data of requests is on this machine. What is not is fetched by a worker,
        since a bucket may take its time, and the next round finds it."""
        away = self.spool.elsewhere(each.id for each in group)
        if not away:
            return True
        with self.in_flight.taking(*away) as taken:
            let_go = partial(self.in_flight.let_go, *taken)
            missing = [each for each in group if each.id in taken]
            if missing:
                fetch = partial(self._fetch, missing)
                job = Job(template=template.name, run=fetch, call_off=let_go, serves=False)
                self.threads.put(job)
        return False

    def _fetch(self, requests: Sequence[Unserved]) -> None:
        try:
            self.groups.fetch(requests)
        finally:
            self.in_flight.let_go(*(each.id for each in requests))

    def _was_begun(self, group: Sequence[Unserved]) -> bool:
        """Whether another process has begun one of these since they were read, or it has ended."""
        records = (self.store.request(each.id) for each in group)
        return any(
            record is None
            or record.state is not RequestState.QUEUED
            or record.owner not in (UNOWNED, self.owner)
            for record in records
        )

    def _gathers(self, template: Template, group: Sequence[Unserved], *, free: int) -> bool:
        """Whether a group waits: for others, or for a place, of which so many are ``free``."""
        wait = self.groups.seconds_to_wait(template, group, free=free)
        if wait > 0.0:
            self.gathered_at = min(self.gathered_at, self.clock.monotonic() + wait)
        return wait > 0.0

    def _end_patience(self, template: Template, requests: Sequence[Unserved]) -> list[float]:
        patient = [each for each in requests if each.patient]
        if patient and self.breaker.waits_for_cvat(template.name):
            # No pool is empty because of that.
            self.store.wait_for_more(template.name)
            return []
        now, ends = self.clock.monotonic(), []
        for each in patient:
            if (left := self._patience_left(template, each)) > 0.0:
                ends.append(now + left)
            elif template.pool.on_empty == "wait":
                self.in_flight.forget_patience(each.id)
                self.fail(each, PoolEmpty(TOO_LONG))
        return ends

    def _patience_left(self, template: Template, each: Unserved) -> float:
        """Return for how many more seconds a request waits for a warm task alone; 0 where that is
        over, or it waits for something else."""
        now = self.clock.now()
        if not each.patient or template.pool.on_empty == "fail" or each.created_at > now + SKEW:
            return 0.0
        if template.name not in self.patience:
            self.patience[template.name] = self.placement.patience(template, None)
        since = min(now, self.in_flight.waits_since(each))
        return max(0.0, since + self.patience[template.name] - now)

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
        circuit = self.breaker.creates(template.name)
        if circuit is Circuit.OPEN:
            return False
        at_once = template.pool.create_concurrency if circuit is Circuit.CLOSED else 1
        others = sum(made == template.name for made, *_ in self.others)
        if len(self.in_flight.creating(template.name)) + others >= at_once:
            return False
        if circuit is Circuit.HALF_OPEN and not trial:
            create = partial(self._create, template, each, key, others, trial=True)
            return bool(self._try(template, create))
        return self._create(template, each, key, others, trial=trial)

    def _create(
        self, template: Template, each: Unserved, key: GroupKey, others: int, *, trial: bool
    ) -> bool:
        with self.in_flight.taking(each.id) as taken:
            request = None
            if taken:
                now = self.clock.now()
                request = self.store.take_spooled(
                    each.id, owner=self.owner, made_by_others=others, now=now
                )
        if request is None or request.state is not RequestState.QUEUED:
            self.in_flight.let_go(*taken)
            return False
        self.in_flight.create(each.id, template.name, key)
        self.serve(WorkItem(template=template, request=request, trial=trial), each)
        return True

    def _leave_slots(self, template: Template, each: Unserved) -> None:
        """Have a request that has waited long enough for a slot go the ordinary way, in the next
        round."""
        if not self._is_here(template, [each]):
            return
        upload = self.groups.load(each)
        if upload is not None:
            why = NONE_WARM if each.stream is None else NONE_FOR_STREAM
            self.filler.leave_slots(template, each.id, upload, why, shares=True)
            self.again()
