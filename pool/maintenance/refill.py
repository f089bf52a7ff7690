"""Keep the pools filled: on every hand-out, and by the clock as a safety net."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial

from pool.clock import Clock
from pool.config.settings import Template
from pool.cvat import CvatClient
from pool.errors import PoolError, StoreError
from pool.logs import get_logger
from pool.maintenance.placeholders import make_carrier
from pool.maintenance.retirement import retire_replaced
from pool.maintenance.sizing import Target, current_target
from pool.model import PooledTask, new_id
from pool.requests.breaker import Breaker, Circuit
from pool.requests.concurrency import places_of
from pool.requests.grouping import tasks_for
from pool.requests.placement import create_on_server, warm_tasks
from pool.requests.slot_storage import SlotStorages
from pool.store import CreateLimit, Store

log = get_logger(__name__)

#: Seconds after the last sign of the foreground for which refilling goes on waiting: callers
#: who come one after the other leave gaps that are shorter than one create.
QUIET = 0.25
#: Creates of all templates together at the most.
WORKERS = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Situation:
    """What decides whether one more task of a template is created now.

    ``warm`` is what can be handed out, of an older template too where it says so; ``capacity``
    is what will be there of the template as it is now; both count the slots of a template that
    has some. ``waiting`` are callers that wait and requests that are queued. ``probing``: one
    create is to find out whether the template's are possible again.
    """

    warm: int
    capacity: int
    waiting: int
    foreground: bool
    paused: bool
    held: bool
    probing: bool = False
    slots: bool = False


def creates_wanted(situation: Situation, target: Target, *, concurrency: int) -> int:
    """How many creates may run at once for this template now; 0 to leave it alone.

    Foreground first: every create costs the requests in flight some of the server, so while
    there are any, a pool above its reorder point waits, and one at it or below makes one at a
    time, which keeps up with the demand as long as a create takes less than a request. Requests
    into slots take no time at all, and none of the server's.
    """
    if situation.paused or situation.held:
        return 0
    if situation.capacity >= target.size + situation.waiting:
        return 0
    if situation.probing:
        return 1
    if not situation.foreground:
        return concurrency
    if situation.warm <= target.reorder_point or situation.waiting > situation.warm:
        return concurrency if situation.slots else 1
    return 0


class Refill:
    """Creates warm tasks where the pools are below their targets."""

    def __init__(
        self,
        store: Store,
        cvat: CvatClient,
        templates: Mapping[str, Template],
        breaker: Breaker,
        storages: SlotStorages,
        *,
        owner: str,
        clock: Clock,
        on_room: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._cvat = cvat
        self._templates = templates
        self._breaker = breaker
        self._storages = storages
        self._owner = owner
        self._clock = clock
        #: Creates that run, and of which template each is.
        self._running: dict[Future[None], str] = {}
        self._guard = threading.Lock()
        self._stopping = threading.Event()
        #: Whether the last round left creates for a quieter moment.
        self.stepped_back = False
        #: The templates that are full, or were and have not run low since, and their min_size then.
        self._full: dict[str, int] = {}
        self._on_room = on_room
        self._workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="refill")

    def run_once(self) -> int:
        """Start the creates that are needed now, without waiting for them; return how many."""
        rounds = [self._fill(template) for template in self._templates.values()]
        for gone in self._full.keys() - self._templates.keys():
            self._full.pop(gone, None)
        self.stepped_back = any(stepped_back for _, stepped_back in rounds)
        return sum(started for started, _ in rounds)

    def drain(self, timeout: float | None = None) -> bool:
        """Wait for the creates that run; False when some still did after ``timeout`` seconds."""
        with self._guard:
            pending = set(self._running)
        return not wait(pending, timeout).not_done

    def stop(self, timeout: float | None = None) -> bool:
        """Start no more creates and wait for those that run."""
        self._stopping.set()
        finished = self.drain(timeout)
        self._workers.shutdown(wait=False, cancel_futures=True)
        return finished

    def _fill(self, template: Template) -> tuple[int, bool]:
        """Return how many creates were started, and whether others wait for a quieter moment."""
        if self._under_way(template) >= template.pool.create_concurrency:
            # The first that ends has this called again.
            return 0, False
        target = current_target(self._store, template, now=self._clock.now())
        retire_replaced(self._store, template, target, now=self._clock.now())
        started = 0
        while not self._stopping.is_set():
            # Counted before: a create that ended since has written down how, so a hold is seen.
            under_way = self._under_way(template)
            situation = self._situation(template, target)
            at_once = creates_wanted(
                situation, target, concurrency=template.pool.create_concurrency
            )
            if at_once == 0:
                self._note_level(template, situation.warm, target.size)
                return started, situation.foreground and situation.capacity < target.size
            if under_way >= at_once:
                return started, False
            if not self._start(template, target, situation, at_once):
                return started, False
            started += 1
        return started, False

    def _start(
        self, template: Template, target: Target, situation: Situation, at_once: int
    ) -> bool:
        """Start a create; False where there is no room for it, or another call tries whether the
        template's creates are possible again."""
        tries = situation.probing and self._breaker.creates_alone(template.name)
        if tries and not self._breaker.begin_trial(template.name):
            return False
        started = False
        try:
            pooled = self._store.begin_create(
                new_id(self._clock.now()),
                template.name,
                template.fingerprint,
                origin=template.origin,
                slots=template.slots.per_task if template.slots else 0,
                # The room is checked again in the statement that takes it: another process
                # may have filled it since.
                limit=CreateLimit(capacity=target.size + situation.waiting, concurrency=at_once),
                owner=self._owner,
                now=self._clock.now(),
            )
            if pooled is None:
                return False
            try:
                with self._guard:
                    future = self._workers.submit(self._create, template, pooled.id, tries)
                    self._running[future] = template.name
            except RuntimeError:  # stopped since
                self._give_up(pooled.id)
                return False
            started = True
        finally:
            if tries and not started:
                self._breaker.end_trial(template.name)
        future.add_done_callback(partial(self._done, pooled.id, tries))
        return True

    def _note_level(self, template: Template, warm: int, size: int) -> None:
        """Log once that a pool is full: at first, and again when it had run low, or was resized."""
        least = template.pool.min_size
        if 2 * warm <= size or self._full.get(template.name, least) != least:
            self._full.pop(template.name, None)
        if warm >= size > 0 and template.name not in self._full:
            self._full[template.name] = least
            log.info(f"{template.name}: {warm} of {size} warm")

    def _under_way(self, template: Template) -> int:
        with self._guard:
            # One that is done is no longer in the way, even before its callback has run.
            return sum(
                name == template.name and not future.done()
                for future, name in self._running.items()
            )

    def _situation(self, template: Template, target: Target) -> Situation:
        now = self._clock.now()
        creates = self._breaker.creates(template.name, slots=template.slots is not None)
        capacity = self._store.capacity_of(template.name, template.fingerprint)
        # Where the clock was set back, what was last is yet to come.
        quiet = abs(now - self._store.last_activity()) >= QUIET
        waiting = self._store.waiting(template.name)
        queued = self._store.queued().get(template.name, 0)
        if template.slots is None:
            places = places_of(self._store, template.importing)
            waiting += tasks_for(queued, template.importing, places=places)
        else:
            # Some of them may go the ordinary way, and leave what was made for them.
            waiting = min(waiting + queued, max(0, template.pool.max_size - target.size))
            missing = self._store.carriers_missing(template.name, template.fingerprint, now=now)
            if missing and capacity < template.pool.max_size:
                # A stream needs a whole carrier, however many slots are left of others.
                waiting = max(waiting, capacity + 1)
        return Situation(
            warm=warm_tasks(self._store, template),
            capacity=capacity,
            waiting=waiting,
            foreground=self._store.in_flight() > 0 or not quiet,
            paused=template.name in self._store.paused(),
            # The dispatcher finds out whether the server is back.
            held=creates is Circuit.OPEN or self._breaker.server() is not Circuit.CLOSED,
            probing=creates is Circuit.HALF_OPEN,
            slots=template.slots is not None,
        )

    def _create(self, template: Template, pooled_id: str, tries: bool) -> None:
        try:
            self._create_one(template, pooled_id)
        finally:
            if tries:
                self._breaker.end_trial(template.name)

    def _create_one(self, template: Template, pooled_id: str) -> None:
        pooled = self._store.task(pooled_id)
        if pooled is None:
            return
        began = self._clock.monotonic()
        try:
            finish = self._make(template, pooled)
        except PoolError as error:
            self._breaker.create_failed(template, error)
            return
        took = self._clock.monotonic() - began
        finish(took=took, now=self._clock.now())
        self._breaker.create_worked(template.name, slots=template.slots is not None)
        log.debug(
            "task is warm", template=template.name, seconds=round(took, 3), slots=pooled.slots
        )
        self._replace_older(template, max(1, pooled.slots))

    def _make(self, template: Template, pooled: PooledTask) -> Callable[..., bool]:
        """Make a task or a carrier on the server; return what makes its row, or its slots, warm."""
        store, cvat, clock = self._store, self._cvat, self._clock
        if template.slots is not None:
            jobs = make_carrier(store, cvat, self._storages, template, pooled, clock=clock)
            return partial(store.finish_carrier, pooled.id, jobs)
        prepared = create_on_server(store, cvat, template, pooled, clock=clock)
        return partial(store.finish_create, pooled.id, prepared=prepared)

    def _replace_older(self, made_by: Template, replaced: int) -> None:
        template = self._templates.get(made_by.name)
        # The template may have changed while the task was being made, which then is an older one.
        if template is not None and template.fingerprint == made_by.fingerprint:
            now = self._clock.now()
            target = current_target(self._store, template, now=now)
            retire_replaced(self._store, template, target, now=now, replaced=replaced)

    def _give_up(self, pooled_id: str) -> None:
        """Settle a create that a stop has prevented: its row would count as under way."""
        try:
            self._store.fail_create(pooled_id, reason="not begun", now=self._clock.now())
        except StoreError as error:
            log.warning("create not given up", why=str(error))

    def _done(self, pooled_id: str, tries: bool, future: Future[None]) -> None:
        with self._guard:
            template = self._running.pop(future)
        if future.cancelled():
            if tries:
                self._breaker.end_trial(template)
            self._give_up(pooled_id)
        elif (error := future.exception()) is not None:
            log.error("create crashed", template=template, why=repr(error))
        if not self._stopping.is_set():
            self._on_room()
