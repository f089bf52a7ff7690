"""Watches imports until their jobs exist: ours, and those of callers who upload by themselves.

One thread of a process asks for all imports that are due at about the same time in one call.
The first non-empty list of jobs is complete and is the earliest sign of readiness; the state
of the import itself is asked only when it is late, to learn of a failure.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pool.clock import Clock
from pool.cvat import CvatClient
from pool.cvat.records import ImportState, ImportStatus
from pool.errors import (
    CvatError,
    ImportFailed,
    ImportTimedOut,
    OwnerGone,
    PoolError,
    StoreError,
    TaskGone,
)
from pool.logs import get_logger
from pool.model import Handout, Job, RequestRecord, RequestState
from pool.services.pacing import LONGEST_PAUSE, Pace, pause_after, size_class
from pool.services.signals import Signal
from pool.settings import Template
from pool.store.base import Store

log = get_logger(__name__)

#: Imports that are due within this many seconds go into the same poll.
TOGETHER = 0.01
#: Seconds between two polls of a task into which its caller uploads by itself.
LEASE_PAUSE = 1.0
#: Seconds between two questions for the state of one late import.
STATE_PAUSE = 1.0
#: CVAT may forget a request while its jobs are being committed; ask this often before giving up.
UNKNOWN_LIMIT = 3
#: Seconds for which the upload of a process that died is given time to show up as an import.
ORPHAN_PATIENCE = 60.0


@dataclass(slots=True)
class Watched:
    """One task that is being watched. Times are of the monotonic clock."""

    pooled_id: str
    task_id: int
    template: str
    since: float
    due: float
    deadline: float
    pace: str
    lease_id: str | None = None
    request_id: str | None = None
    empty_at: float = 0.0
    polls: int = 0
    errors: int = 0
    state_due: float = 0.0
    unknown: int = 0

    @property
    def foreign(self) -> bool:
        """Whether the caller uploads by itself, so that nobody told us when."""
        return self.request_id is None


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """What came of a watched task: its jobs, or an error code."""

    pooled_id: str
    task_id: int
    request_id: str | None
    jobs: tuple[Job, ...] = ()
    code: str = ""
    polls: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackReport:
    """What one round did."""

    asked: int = 0
    ready: int = 0
    failed: int = 0


@dataclass(slots=True)
class _Round:
    ready: list[Watched] = field(default_factory=list)
    failed: list[Watched] = field(default_factory=list)


Verdict = PoolError | None


def judge(state: ImportState, *, unknown: int) -> Verdict:
    """What the state of a late import means, its jobs not being there: an error, or None to
    keep waiting. ``unknown`` counts the answers in a row that knew nothing of it."""
    match state.status:
        case ImportStatus.FAILED:
            return ImportFailed(state.message or "CVAT gave no reason")
        case ImportStatus.TASK_GONE:
            return TaskGone("somebody deleted it while its data was being imported")
        case ImportStatus.UNKNOWN | ImportStatus.FINISHED if unknown >= UNKNOWN_LIMIT:
            return ImportFailed(
                "CVAT has no record of the import and made no jobs; "
                "its queue may have been lost in a restart"
            )
        case _:
            return None


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
    ) -> None:
        self._store = store
        self._cvat = cvat
        self._templates = templates
        self._owner = owner
        self._clock = clock
        self._rng = rng or random.Random()
        self._guard = threading.Lock()
        self._watched: dict[str, Watched] = {}
        self._paces: dict[str, Pace] = {}
        self._round_trip = 0.0
        self._changed = Signal(clock)
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._listeners: list[Callable[[Finished], None]] = []
        #: Announced whenever a watched task is ready or has failed.
        self.finished = Signal(clock)

    # --- Who is watched ---------------------------------------------------------------------

    def listen(self, listener: Callable[[Finished], None]) -> None:
        """Have ``listener`` called, on the tracker's thread, for each task that is done."""
        self._listeners.append(listener)

    def watch(self, request: RequestRecord, *, kind: str) -> None:
        """Follow a request whose data CVAT has accepted. ``kind`` is the sort of data."""
        if request.pooled_id is None or request.task_id is None:
            return
        now, wall = self._clock.monotonic(), self._clock.now()
        since = now - max(0.0, wall - (request.uploaded_at or wall))
        pace = size_class(request.template, files=len(request.files), size=request.size, kind=kind)
        first = since + self._pace(pace).first - self._round_trip / 2
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
            )
        )

    def watch_lease(self, handout: Handout) -> None:
        """Follow a task into which its caller uploads by itself."""
        if handout.task.task_id is None or handout.task.id in self._watched:
            return
        now, wall = self._clock.monotonic(), self._clock.now()
        template = self._templates.get(handout.task.template)
        patience = (template.importing if template else Template(name="").importing).timeout
        expires = (handout.lease.expires_at or wall) - wall
        self._add(
            Watched(
                pooled_id=handout.task.id,
                task_id=handout.task.task_id,
                template=handout.task.template,
                lease_id=handout.lease.id,
                since=now,
                due=now,
                deadline=now + max(0.0, expires) + patience,
                pace=f"{handout.task.template}/lease",
                state_due=now + LEASE_PAUSE,
            )
        )

    def forget(self, pooled_id: str) -> None:
        """Follow a task no longer."""
        with self._guard:
            self._watched.pop(pooled_id, None)
        self.finished.announce()

    @property
    def watching(self) -> int:
        """How many tasks are followed."""
        return len(self._watched)

    def _add(self, watched: Watched) -> None:
        with self._guard:
            self._watched.setdefault(watched.pooled_id, watched)
        self._changed.announce()

    def _pace(self, name: str) -> Pace:
        with self._guard:
            return self._paces.setdefault(name, Pace())

    # --- The thread -------------------------------------------------------------------------

    def start(self) -> None:
        """Run rounds on a thread of its own until :meth:`stop`."""
        with self._guard:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="tracker", daemon=True)
                self._thread.start()

    def stop(self, timeout: float | None = None) -> None:
        """End the thread; what it followed stays in the store for another process."""
        self._stopping = True
        self._changed.announce()
        if self._thread is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stopping:
            seen = self._changed.count
            wait = self.seconds_until_due()
            if wait is None or wait > 0:
                self._changed.wait(seen, wait)
                continue
            try:
                self.run_once()
            except Exception:
                # Whatever it was, the imports go on: look again a little later.
                log.exception("tracker round failed")
                self._clock.sleep(LONGEST_PAUSE)

    def seconds_until_due(self) -> float | None:
        """Seconds until the next round has something to ask; None when nothing is followed."""
        with self._guard:
            if not self._watched:
                return None
            first = min(watched.due for watched in self._watched.values())
        return max(0.0, first - self._clock.monotonic())

    # --- One round ----------------------------------------------------------------------------

    def run_once(self) -> TrackReport:
        """Ask for all imports that are due, in one call, and for the state of one late one."""
        now = self._clock.monotonic()
        with self._guard:
            due = [watched for watched in self._watched.values() if watched.due <= now + TOGETHER]
        if not due:
            return TrackReport()
        asked_at = self._clock.monotonic()
        try:
            found = self._cvat().jobs([watched.task_id for watched in due])
        except CvatError as error:
            return self._poll_failed(due, error)
        answered_at = self._clock.monotonic()
        self._round_trip += 0.2 * (answered_at - asked_at - self._round_trip)
        seen_at = (asked_at + answered_at) / 2
        outcome = _Round()
        for watched in due:
            watched.polls += 1
            watched.errors = 0
            jobs = found.get(watched.task_id)
            if jobs:
                self._ready(watched, jobs, seen_at)
                outcome.ready.append(watched)
            else:
                self._not_yet(watched, seen_at, answered_at)
        late = self._latest_to_ask(due, answered_at)
        if late is not None and self._ask_state(late):
            outcome.failed.append(late)
        outcome.failed.extend(self._time_out(due, answered_at))
        return TrackReport(asked=len(due), ready=len(outcome.ready), failed=len(outcome.failed))

    def _ready(self, watched: Watched, jobs: Sequence[Job], seen_at: float) -> None:
        self._store.complete_import(watched.pooled_id, jobs, now=self._clock.now())
        if not watched.foreign:
            self._pace(watched.pace).learn(
                not_before=watched.empty_at, done_by=seen_at - watched.since
            )
        log.info(
            "jobs are ready",
            template=watched.template,
            task_id=watched.task_id,
            request_id=watched.request_id,
            jobs=len(jobs),
            seconds=round(seen_at - watched.since, 3),
            polls=watched.polls,
        )
        self._finish(
            watched,
            Finished(
                pooled_id=watched.pooled_id,
                task_id=watched.task_id,
                request_id=watched.request_id,
                jobs=tuple(jobs),
                polls=watched.polls,
            ),
        )

    def _not_yet(self, watched: Watched, seen_at: float, now: float) -> None:
        watched.empty_at = seen_at - watched.since
        if watched.foreign:
            watched.due = now + LEASE_PAUSE * self._rng.uniform(0.9, 1.1)
        else:
            watched.due = now + pause_after(now - watched.since, self._rng)

    def _poll_failed(self, due: Sequence[Watched], error: CvatError) -> TrackReport:
        now = self._clock.monotonic()
        for watched in due:
            watched.errors += 1
            ceiling = min(30.0, 0.25 * 2.0 ** min(watched.errors, 10))
            watched.due = now + self._rng.uniform(0.5, 1.0) * ceiling
        log.warning("poll failed", tasks=len(due), why=str(error))
        return TrackReport(asked=len(due), failed=len(self._time_out(due, now)))

    def _latest_to_ask(self, due: Sequence[Watched], now: float) -> Watched | None:
        """The late import whose state was not asked for longest; one a round, so that the others
        do not wait."""
        late = [
            watched
            for watched in due
            if watched.pooled_id in self._watched
            and watched.state_due <= now
            and (watched.foreign or now - watched.since > self._pace(watched.pace).late_after())
        ]
        return min(late, key=lambda watched: watched.state_due) if late else None

    def _ask_state(self, watched: Watched) -> bool:
        watched.state_due = self._clock.monotonic() + STATE_PAUSE
        try:
            state = self._cvat().import_state(watched.task_id)
        except CvatError as error:
            log.info("state not known", task_id=watched.task_id, why=str(error))
            return False
        if watched.foreign and state.status is ImportStatus.UNKNOWN:
            return False  # its caller has not uploaded anything yet
        if watched.foreign and watched.lease_id is not None:
            self._store.begin_foreign_import(watched.lease_id, now=self._clock.now())
        if state.status in (ImportStatus.UNKNOWN, ImportStatus.FINISHED):
            watched.unknown += 1
        else:
            watched.unknown = 0
        verdict = judge(state, unknown=watched.unknown)
        if verdict is None:
            return False
        self._failed(watched, verdict)
        return True

    def _time_out(self, due: Sequence[Watched], now: float) -> list[Watched]:
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
        return [watched for watched in over if not watched.foreign]

    def _failed(self, watched: Watched, error: PoolError) -> None:
        self._store.fail_import(
            watched.pooled_id, code=error.code, message=error.detail, now=self._clock.now()
        )
        log.warning(
            "import failed",
            template=watched.template,
            task_id=watched.task_id,
            request_id=watched.request_id,
            why=str(error),
        )
        self._finish(
            watched,
            Finished(
                pooled_id=watched.pooled_id,
                task_id=watched.task_id,
                request_id=watched.request_id,
                code=error.code,
                polls=watched.polls,
            ),
        )

    def _finish(self, watched: Watched, finished: Finished) -> None:
        with self._guard:
            self._watched.pop(watched.pooled_id, None)
        self.finished.announce()
        for listener in self._listeners:
            try:
                listener(finished)
            except StoreError:
                log.exception("listener failed", task_id=watched.task_id)

    # --- Taking over ----------------------------------------------------------------------------

    def adopt(self) -> int:
        """Follow the imports of processes that are gone, and fail what only they could upload."""
        adopted = 0
        for request in self._store.adopt_requests(self._owner, now=self._clock.now()):
            adopted += self._adopt(request)
        return adopted

    def _adopt(self, request: RequestRecord) -> int:
        now = self._clock.now()
        log.info("request taken over", request_id=request.id, state=request.state.value)
        if request.state is RequestState.QUEUED:
            gone = OwnerGone("send the data again")
            self._store.fail_request(request.id, code=gone.code, message=gone.detail, now=now)
            return 1
        if request.state is RequestState.UPLOADING:
            # Its last POST may have arrived. If not, CVAT knows no import, and that is found
            # out like any other lost import.
            self._store.begin_import(request.id, deadline=now + ORPHAN_PATIENCE, now=now)
        importing = self._store.request(request.id)
        if importing is not None:
            self.watch(importing, kind="adopted")
        return 1
