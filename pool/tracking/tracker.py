"""Watches imports until their jobs exist: ours, and those of callers who upload by themselves.

One thread of a process asks for all imports that are due at about the same time in one call.
The first non-empty list of jobs is complete and is the earliest sign of readiness; the state
of the import itself is asked only when it is late, to learn of a failure.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping, Sequence

from pool.backoff import backoff
from pool.clock import Clock
from pool.config.settings import Template
from pool.cvat import CvatClient
from pool.cvat.records import ImportStatus
from pool.errors import CvatError, ImportTimedOut, OwnerGone, PoolError
from pool.events.notifier import Signal
from pool.logs import get_logger
from pool.model import Handout, Job, RequestRecord, RequestState
from pool.store import Store
from pool.tracking.endings import Endings
from pool.tracking.paces import Paces
from pool.tracking.poll_schedule import LONGEST_PAUSE, pause_after, size_class
from pool.tracking.watched import (
    MOST_TASKS_SPOOLED,
    UNDER_WAY,
    Finished,
    TrackReport,
    Watched,
    begun,
    borrow,
    failure,
    judge,
    untold,
)
from pool.tracking.watchlist import Watchlist
from pool.tracking.webhook_health import HookWatch, safety_net_pause

log = get_logger(__name__)

#: Seconds between two polls of a task into which its caller uploads by itself, and while
#: webhooks are alive.
LEASE_PAUSE = 1.0
LEASE_PAUSE_RELAXED = 5.0
#: Seconds between two looks for imports that a webhook has ended in another process.
LOOK = 0.01
#: Seconds between two questions for the state of one late import.
STATE_PAUSE = 1.0
#: Seconds between two polls at the most while polls fail; and polls in a row that have to fail
#: for none to be sent in between, for imports that were not among those that were asked for.
LONGEST_BACK_OFF = 30.0
OUTAGE = 3
#: Seconds for which an import is given time to show up: after its process died in the upload, and
#: after CVAT was away, where it can be sent again.
ORPHAN_PATIENCE = 60.0


class Tracker:
    """Follows imports and tells who waits for them."""

    def __init__(
        self,
        store: Store,
        cvat: Callable[[], CvatClient],
        templates: Mapping[str, Template],
        *,
        owner: str,
        clock: Clock,
        rng: random.Random | None = None,
        hooks: HookWatch | None = None,
    ) -> None:
        self._store = store
        self._cvat = cvat
        self._templates = templates
        self._owner = owner
        self._clock = clock
        self._rng = rng or random.Random()
        self._hooks = hooks
        self._guard = threading.Lock()
        self._watched = Watchlist()
        self._paces = Paces(store, clock=clock)
        self._round_trip = 0.0
        #: Polls in a row that failed.
        self._errors = 0
        self._seen_token: object = None
        self._changed = Signal(clock)
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._endings = Endings(store, clock=clock)
        #: Announced whenever a watched task is ready or has failed.
        self.finished = Signal(clock)

    # --- Who is watched ---------------------------------------------------------------------

    def listen(self, listener: Callable[[Finished], None]) -> Callable[[], None]:
        """Have ``listener`` called for each task that this process was the first to find done,
        on the thread that found it, until what is returned is called."""
        return self._endings.listen(listener)

    def watch(self, request: RequestRecord, *, kind: str) -> None:
        """Follow a request whose data CVAT has accepted. ``kind`` is the sort of data."""
        if request.pooled_id is None or request.task_id is None:
            return
        now, wall = self._clock.monotonic(), self._clock.now()
        since = now - max(0.0, wall - (request.uploaded_at or wall))
        pace = size_class(request.template, files=len(request.files), size=request.size, kind=kind)
        relaxed = self._hooks is not None and self._hooks.alive(request.template)
        first = since + self._paces.first_poll(pace, relaxed=relaxed) - self._round_trip / 2
        self._add(
            Watched(
                pooled_id=request.pooled_id,
                task_id=request.task_id,
                template=request.template,
                request_id=request.id,
                since=since,
                due=max(now, first),
                deadline=now + max(0.0, (request.deadline_at or wall) - wall),
                pace=pace,
                relaxed=relaxed,
                repeatable=request.spooled and request.tasks_spent + 1 < MOST_TASKS_SPOOLED,
            )
        )

    def watch_lease(self, handout: Handout) -> None:
        """Follow a task into which its caller uploads by itself."""
        if handout.task.task_id is None or handout.task.id in self._watched:
            return
        now, wall = self._clock.monotonic(), self._clock.now()
        template = self._templates.get(handout.task.template) or Template(name="")
        expires = (handout.lease.expires_at or wall) - wall
        watched = untold(handout.task, lease_id=handout.lease.id, now=now)
        watched.deadline = now + max(0.0, expires) + template.importing.timeout
        watched.state_due = now + LEASE_PAUSE
        self._add(watched)

    def forget(self, pooled_id: str) -> None:
        """Follow a task no longer."""
        self._watched.discard(pooled_id)
        self.finished.announce()

    @property
    def watching(self) -> int:
        """How many tasks are followed."""
        return len(self._watched)

    def _add(self, watched: Watched) -> None:
        self._watched.add(watched)
        self._seen_token = None
        self._changed.announce()

    # --- What webhooks tell -------------------------------------------------------------------

    def deliver(self, task_id: int, jobs: Sequence[Job]) -> bool:
        """A webhook has told of all the jobs of a task, which nobody needs to ask for any more.

        This process need not be the one that watches it. False when nobody waits for them.
        """
        watched = self._announced(task_id)
        return watched is not None and self._ready(watched, jobs, self._clock.monotonic())

    def fail(self, task_id: int, message: str) -> bool:
        """A webhook has told that an import failed, in CVAT's words. As :meth:`deliver`."""
        watched = self._announced(task_id)
        return watched is not None and self._failed(watched, failure(message))

    def expedite(self, task_id: int) -> bool:
        """A webhook has told that a task has jobs: ask for them at once. As :meth:`deliver`."""
        watched = self._announced(task_id)
        if watched is None:
            return False
        watched.hurry = True
        watched.due = self._clock.monotonic()
        self._add(watched)
        return True

    def _announced(self, task_id: int) -> Watched | None:
        watched = self._watched.on_server(task_id)
        if watched is None:
            found = self._store.task_on_server(task_id)
            watched = found and borrow(*found, now=self._clock.monotonic())
        if watched is not None:
            watched.announced = True
        return watched

    def look(self) -> None:
        """End the waits whose end another process has heard of: the one that webhooks go to."""
        if not (relaxed := self._watched.relaxed()):
            return
        try:
            token = self._store.change_token()
            if token == self._seen_token:
                return
            found = self._store.tasks(states=UNDER_WAY)
        except PoolError as error:
            log.info("store not looked at", why=str(error))
            return
        self._seen_token = token
        under_way = {task.id for task in found}
        for watched in relaxed:
            if watched.pooled_id not in under_way:
                watched.announced = True
                self._paces.learn(watched, self._clock.monotonic())
                self.forget(watched.pooled_id)

    # --- The thread -------------------------------------------------------------------------

    def start(self) -> None:
        """Run rounds on a thread of its own until :meth:`stop`."""
        with self._guard:
            if self._thread is None:
                self._paces.load()
                self._thread = threading.Thread(target=self._run, name="tracker", daemon=True)
                self._thread.start()

    def stop(self, timeout: float | None = None) -> None:
        """End the thread; what it followed stays in the store for another process."""
        self._stopping = True
        self._changed.announce()
        if self._thread is not None:
            self._thread.join(timeout)
        self._paces.keep(at_once=True)

    def _run(self) -> None:
        while not self._stopping:
            seen = self._changed.count
            wait = self.seconds_until_due()
            if wait is None or wait > 0:
                self._paces.keep()
                pause = min(wait, LOOK) if wait and self._watched.relaxed() else wait
                self._changed.wait(seen, pause)
                self.look()
                continue
            try:
                self.run_once()
            except Exception:
                # Whatever it was, the imports go on: look again a little later.
                log.exception("tracker round failed")
                self._clock.sleep(LONGEST_PAUSE)

    def seconds_until_due(self) -> float | None:
        """Seconds until the next round has something to ask; None when nothing is followed."""
        first = self._watched.next_due()
        return None if first is None else max(0.0, first - self._clock.monotonic())

    # --- One round ----------------------------------------------------------------------------

    def run_once(self) -> TrackReport:
        """Ask for all imports that are due, in one call, and for the state of one late one."""
        asked_at = self._clock.monotonic()
        due = self._watched.due(asked_at)
        if not due:
            return TrackReport()
        for watched in due:
            watched.hurry = False
        try:
            found = self._cvat().jobs([watched.task_id for watched in due])
        except CvatError as error:
            return self._poll_failed(due, error)
        answered_at = self._clock.monotonic()
        self._errors = 0
        self._round_trip += 0.2 * (answered_at - asked_at - self._round_trip)
        seen_at = (asked_at + answered_at) / 2
        ready = failed = 0
        for watched in due:
            watched.polls += 1
            watched.errors = 0
            jobs = found.get(watched.task_id)
            if jobs:
                self._ready(watched, jobs, seen_at)
                ready += 1
            else:
                self._not_yet(watched, seen_at, answered_at)
        late = self._latest_to_ask(due, answered_at)
        if late is not None:
            failed += self._ask_state(late)
        failed += self._time_out(due, answered_at)
        return TrackReport(asked=len(due), ready=ready, failed=failed)

    def _ready(self, watched: Watched, jobs: Sequence[Job], seen_at: float) -> bool:
        finished = self._endings.ready(watched, jobs, seen_at)
        if finished is not None:
            if watched.relaxed and not watched.announced and self._hooks is not None:
                self._hooks.missed(watched.template)
            self._paces.learn(watched, seen_at)
        return self._end(watched, finished)

    def _failed(self, watched: Watched, error: PoolError) -> bool:
        return self._end(watched, self._endings.failed(watched, error))

    def _end(self, watched: Watched, finished: Finished | None) -> bool:
        self.forget(watched.pooled_id)
        if finished is None:
            return False  # whoever was first does the rest
        self._endings.tell(finished)
        return True

    def _not_yet(self, watched: Watched, seen_at: float, now: float) -> None:
        watched.empty_at = seen_at - watched.since
        if watched.hurry:
            watched.due = now
        elif watched.borrowed:
            self.forget(watched.pooled_id)
        elif watched.foreign:
            alive = self._hooks is not None and self._hooks.alive(watched.template)
            pause = LEASE_PAUSE_RELAXED if alive else LEASE_PAUSE
            watched.due = now + pause * self._rng.uniform(0.9, 1.1)
        elif watched.relaxed:
            watched.due = now + safety_net_pause(now - watched.since)
        else:
            watched.due = now + pause_after(now - watched.since, self._rng)

    def _poll_failed(self, due: Sequence[Watched], error: CvatError) -> TrackReport:
        now = self._clock.monotonic()
        self._errors += 1
        again = now + backoff(
            self._errors, base=0.5, cap=LONGEST_BACK_OFF, rng=self._rng, least=0.5
        )
        for watched in due:
            if watched.borrowed:
                self.forget(watched.pooled_id)
            watched.unanswered(again, patience=ORPHAN_PATIENCE)
        if self._errors >= OUTAGE:
            self._watched.postpone(again)
        log.warning("poll failed", tasks=len(due), why=str(error))
        return TrackReport(asked=len(due), failed=self._time_out(due, now))

    def _latest_to_ask(self, due: Sequence[Watched], now: float) -> Watched | None:
        """The late import whose state was not asked for longest; one a round, so that the others
        do not wait."""
        late = [
            watched
            for watched in due
            if watched.pooled_id in self._watched
            and watched.state_due <= now
            and not watched.borrowed
            and (watched.foreign or now - watched.since > self._paces.late_after(watched.pace))
        ]
        return min(late, key=lambda watched: watched.state_due) if late else None

    def _ask_state(self, watched: Watched) -> bool:
        watched.state_due = self._clock.monotonic() + STATE_PAUSE
        try:
            state = self._cvat().import_state(watched.task_id)
        except CvatError as error:
            log.info("state not known", task_id=watched.task_id, why=str(error))
            return False
        unknown = state.status is ImportStatus.UNKNOWN
        if watched.foreign and unknown and not begun(self._store.task_on_server(watched.task_id)):
            return False  # its caller has not uploaded anything yet
        if watched.foreign and watched.lease_id is not None:
            self._store.begin_foreign_import(watched.lease_id, now=self._clock.now())
        over = unknown or state.status is ImportStatus.FINISHED
        watched.unknown = watched.unknown + 1 if over else 0
        verdict = judge(state, unknown=watched.unknown)
        if verdict is None:
            return False
        return self._failed(watched, verdict)

    def _time_out(self, due: Sequence[Watched], now: float) -> int:
        over = [
            watched
            for watched in due
            if watched.pooled_id in self._watched and watched.deadline <= now
        ]
        for watched in over:
            if watched.foreign:
                self.forget(watched.pooled_id)
                continue
            limit = watched.deadline - watched.since
            self._failed(
                watched, ImportTimedOut(f"task {watched.task_id} had no jobs after {limit:.0f} s")
            )
        return sum(not watched.foreign for watched in over)

    # --- Taking over ----------------------------------------------------------------------------

    def adopt(self) -> int:
        """Follow the imports of processes that are gone, and fail what only they could upload.
        Requests whose data is in the spool are served by :mod:`pool.requests.dispatcher`."""
        adopted = self._store.adopt_requests(self._owner, now=self._clock.now())
        for request in adopted:
            self.take_up(request)
        return len(adopted)

    def take_up(self, request: RequestRecord) -> None:
        """Go on with a request of this process's that nobody works on any more."""
        now = self._clock.now()
        log.info("request taken over", request_id=request.id, state=request.state.value)
        if request.state is RequestState.QUEUED:
            gone = OwnerGone("send the data again")
            self._store.fail_request(request.id, code=gone.code, message=gone.detail, now=now)
            return
        if request.state is RequestState.UPLOADING:
            # Its last POST may have arrived. If not, CVAT knows no import, and that is found
            # out like any other lost import.
            self._store.begin_import(request.id, deadline=now + ORPHAN_PATIENCE, now=now)
        importing = self._store.request(request.id)
        if importing is not None:
            self.watch(importing, kind="adopted")
