"""Track imports until their jobs exist: ours, and those of callers who upload by themselves.

One thread of a process asks for all imports that are due at about the same time in one call.
The first non-empty list of jobs is complete and is the earliest sign of readiness; the state
of the import itself is asked only when it is late, to learn of a failure.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from pool import model
from pool.backoff import backoff
from pool.clock import Clock, Wakeup
from pool.config.settings import Template
from pool.config.source import covers, frames_of_import
from pool.cvat import CvatClient
from pool.cvat.failures import OTHER_DATA
from pool.cvat.records import ImportState, ImportStatus
from pool.errors import (
    CvatError,
    ImportFailed,
    ImportLost,
    ImportTimedOut,
    PoolError,
    StoreError,
    TaskGone,
)
from pool.logs import get_logger
from pool.model import Handout, ImportRecord, Job, PooledTask, TaskState
from pool.store import Store
from pool.tracking.poll_schedule import (
    LEASE_PAUSE,
    LONGEST_PAUSE,
    Paces,
    Tracked,
    due_together,
    lease_pause,
    pace_class,
    pause_after,
    safety_net_pause,
    size_class,
)
from pool.tracking.splitting import divided_as_asked, parts_of
from pool.tracking.webhook_health import WebhookHealth

log = get_logger(__name__)

#: Seconds between two questions for the state of one late import.
STATE_PAUSE = 1.0
#: CVAT may forget a request while its jobs are being committed; ask this often before giving up.
UNKNOWN_LIMIT = 3
#: Seconds between two polls at the most while polls fail; and polls in a row that have to fail
#: for none to be sent in between, for imports that were not among those that were asked for.
LONGEST_BACK_OFF = 30.0
OUTAGE = 3
#: Seconds for which an import is given time to show up after CVAT was away, where it can be sent
#: again.
ORPHAN_PATIENCE = 60.0
NO_REASON = "CVAT gave no reason"
NOT_DIVIDED = "CVAT did not divide the task as job_file_mapping says"
#: Where a task stands while its import may still end.
UNDER_WAY = (TaskState.LEASED, TaskState.IMPORTING)


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """The end of a tracked import, after so many polls: its jobs exist, or an error's ``code``.
    ``requests`` counts those that it is for; none where its caller uploaded."""

    task_id: int
    code: str = ""
    polls: int = 0
    requests: int = 0


def judge(state: ImportState, *, unknown: int) -> PoolError | None:
    """Return what the state of a late import without jobs means: an error, or None to keep
    waiting. ``unknown`` counts the answers in a row that knew nothing of it."""
    match state.status:
        case ImportStatus.FAILED:
            return ImportFailed(state.message or NO_REASON)
        case ImportStatus.TASK_GONE:
            return TaskGone("the task was deleted on the server during the import")
        case ImportStatus.UNKNOWN | ImportStatus.FINISHED if unknown >= UNKNOWN_LIMIT:
            return ImportLost(
                "CVAT has no record of the import and made no jobs; "
                "its queue may have been lost in a restart"
            )
        case _:
            return None


class Tracker:
    """Follows imports to their end, and records it once: a poll, a webhook and another process may
    find it at the same time, and only the first acts on it."""

    def __init__(
        self,
        store: Store,
        cvat: Callable[[], CvatClient],
        templates: Mapping[str, Template],
        webhooks: WebhookHealth,
        *,
        owner: str,
        clock: Clock,
        rng: random.Random | None = None,
    ) -> None:
        self._store = store
        self._cvat = cvat
        self._templates = templates
        self._webhooks = webhooks
        self._owner = owner
        self._clock = clock
        self._rng = rng or random.Random()
        self._guard = threading.Lock()
        #: By our ids of the tasks. What is in an entry belongs to the thread that polls.
        self._tracked: dict[str, Tracked] = {}
        self._paces = Paces(store, clock=clock)
        self._round_trip = 0.0
        #: Polls in a row that failed.
        self._errors = 0
        self._listeners: list[Callable[[Finished], None]] = []
        self._changed = Wakeup(clock)
        self._stopping = False
        self._thread: threading.Thread | None = None

    # --- What is tracked --------------------------------------------------------------------

    def listen(self, listener: Callable[[Finished], None]) -> None:
        """Have ``listener`` called for each end that this process was the first to find, on the
        thread that found it."""
        self._listeners.append(listener)

    def begin(
        self,
        import_id: str,
        *,
        timeout: float,
        frames: Collection[str] | None = None,
        kind: str,
    ) -> None:
        """Note that CVAT has accepted the data of an import, which has ``timeout`` seconds to end,
        and track it. ``frames`` as for :meth:`~pool.store.Store.begin_import`."""
        now = self._clock.now()
        self._store.begin_import(import_id, deadline=now + timeout, frames=frames, now=now)
        tracked = self.watch(import_id, kind=kind)
        if tracked is not None and tracked.importing is not None and frames is None:
            self._paces.learn_upload(tracked.size_class, now - tracked.importing.handed_out_at)

    def watch(self, import_id: str, *, kind: str) -> Tracked | None:
        """Track an import, unless another process has ended it; return what is known of it.
        ``kind`` is the sort of data."""
        importing = self._store.import_record(import_id)
        if importing is None or importing.finished_at is not None:
            return None
        now, wall = self._clock.monotonic(), self._clock.now()
        since = now - max(0.0, wall - (importing.uploaded_at or wall))
        files = sum(len(member.names) for member in importing.members)
        name = size_class(importing.template, files=files, size=importing.size, kind=kind)
        relaxed = self._webhooks.alive(importing.template)
        with self._guard:
            ahead = sum(not each.foreign for each in self._tracked.values())
        pace = pace_class(name, ahead=ahead)
        first = since + self._paces.first_poll(pace, relaxed=relaxed) - self._round_trip / 2
        tracked = Tracked(
            pooled_id=importing.pooled_id,
            task_id=importing.task_id,
            template=importing.template,
            importing=importing,
            since=since,
            due=max(now, first),
            deadline=now + max(0.0, (importing.deadline_at or wall) - wall),
            size_class=name,
            pace_class=pace,
            relaxed=relaxed,
        )
        self._add(tracked)
        return tracked

    def watch_lease(self, handout: Handout) -> None:
        """Track a task into which its caller uploads by itself, which none does into a slot."""
        task = handout.task
        if task.task_id is None or task.carrier_id is not None or task.id in self._tracked:
            return
        now, wall = self._clock.monotonic(), self._clock.now()
        template = self._templates.get(task.template) or Template(name="")
        expires = max(0.0, (handout.lease.expires_at or wall) - wall)
        self._add(
            Tracked(
                pooled_id=task.id,
                task_id=task.task_id,
                template=task.template,
                lease_id=handout.lease.id,
                since=now,
                due=now,
                deadline=now + expires + template.importing.timeout,
                state_due=now + LEASE_PAUSE,
            )
        )

    def watch_leases(self) -> None:
        """Track all tasks into which their callers upload by themselves."""
        for handout in self._store.watched_leases(besides=self._tracked):
            self.watch_lease(handout)

    def next_end(self) -> float | None:
        """Return the seconds until the first of the imports that requests may share is expected to
        end, of those that this process tracks; None where no import like them was seen."""
        now = self._clock.monotonic()
        with self._guard:
            shared = [each for each in self._tracked.values() if each.grouped]
        ends = [
            each.since + usual
            for each in shared
            if (usual := self._paces.usual(each.pace_class)) is not None
        ]
        return max(0.0, min(ends) - now) if ends else None

    def import_times(self, template: str) -> list[tuple[int, float]]:
        """Return how many seconds imports of images took, by their number of files."""
        return self._paces.usual_of(template, kind="images")

    def upload_time(self, template: str, *, files: int, size: int) -> float:
        """Return the seconds that an upload of images is expected to take, from the hand-out of its
        task on; 0 where none was seen."""
        return self._paces.upload(size_class(template, files=files, size=size, kind="images"))

    def forget(self, pooled_id: str) -> None:
        """Track a task no longer."""
        with self._guard:
            self._tracked.pop(pooled_id, None)

    def _add(self, tracked: Tracked) -> None:
        with self._guard:
            known = self._tracked.get(tracked.pooled_id)
            # One that is tracked for its lease is tracked for its request, once it has one.
            if known is None or (known.foreign and not tracked.foreign):
                self._tracked[tracked.pooled_id] = tracked
        self._changed.set()

    # --- Webhooks -------------------------------------------------------------------------------

    # Of a task that is under way, and its import, as they stand in the store.

    def deliver(self, task: PooledTask, importing: ImportRecord, jobs: Sequence[Job]) -> None:
        """Complete an import whose jobs a webhook has delivered, all of them. The import may be
        another process's."""
        if importing.doubtful:
            # The frames are compared when a poll finds the jobs.
            self.expedite(task, importing)
        else:
            self._ready(self._announced(task, importing), jobs, self._clock.monotonic())

    def fail(self, task: PooledTask, importing: ImportRecord | None, message: str) -> None:
        """Fail an import as a webhook says, in CVAT's words."""
        self._failed(self._announced(task, importing), ImportFailed(message or NO_REASON))

    def expedite(self, task: PooledTask, importing: ImportRecord | None) -> None:
        """Ask for the jobs of a task at once."""
        tracked = self._announced(task, importing)
        tracked.hurry = True
        tracked.due = self._clock.monotonic()
        self._add(tracked)

    def _announced(self, task: PooledTask, importing: ImportRecord | None) -> Tracked:
        assert task.task_id is not None
        now = self._clock.monotonic()
        with self._guard:
            tracked = self._tracked.get(task.id)
        if tracked is None:
            tracked = Tracked(
                pooled_id=task.id,
                task_id=task.task_id,
                template=task.template,
                lease_id=task.lease_id,
                importing=importing,
                since=now,
                due=now,
                borrowed=True,
            )
        tracked.announced = True
        return tracked

    def _ended_elsewhere(self, tracked: Tracked) -> bool:
        """Whether an import was left to a webhook, and the process that receives it has written
        down its end: then no poll is needed."""
        if not tracked.relaxed or tracked.importing is None:
            return False
        try:
            importing = self._store.import_record(tracked.importing.id)
        except PoolError as error:
            log.info("import not read, so it is polled", task_id=tracked.task_id, why=str(error))
            return False
        if importing is not None and importing.finished_at is None:
            return False
        if importing is not None and importing.state is model.ImportState.READY:
            tracked.announced = True
            took = (importing.finished_at or 0.0) - (importing.uploaded_at or 0.0)
            self._paces.learn(tracked, tracked.since + took)
        self.forget(tracked.pooled_id)
        return True

    # --- The thread -------------------------------------------------------------------------

    def start(self) -> None:
        """Run rounds on a thread of its own until :meth:`stop`."""
        with self._guard:
            if self._thread is None:
                self._paces.load()
                self._thread = threading.Thread(target=self._run, name="tracker", daemon=True)
                self._thread.start()

    def stop(self, timeout: float | None = None) -> None:
        """End the thread; what it tracked stays in the store for another process."""
        self._stopping = True
        self._changed.set()
        if self._thread is not None:
            self._thread.join(timeout)
        self._paces.keep(at_once=True)

    def _run(self) -> None:
        while not self._stopping:
            try:
                wait = self.seconds_until_due()
                if wait is None or wait > 0:
                    self._paces.keep()
                    self._changed.wait(wait)
                else:
                    self.run_once()
            except Exception:
                # Whatever it was, the imports go on: look again a little later.
                log.exception("tracker round failed")
                self._clock.sleep(LONGEST_PAUSE)

    def seconds_until_due(self) -> float | None:
        """Return the seconds until the next poll is due; None when nothing is tracked."""
        with self._guard:
            first = min((each.due for each in self._tracked.values()), default=None)
        return None if first is None else max(0.0, first - self._clock.monotonic())

    # --- One round ----------------------------------------------------------------------------

    def run_once(self) -> None:
        """Ask for all imports that are due, in one call, and for the state of one late one."""
        asked_at = self._clock.monotonic()
        with self._guard:
            due = due_together(self._tracked.values(), asked_at)
        due = [tracked for tracked in due if not self._ended_elsewhere(tracked)]
        if not due:
            return
        for tracked in due:
            tracked.hurry = False
        try:
            found = self._cvat().jobs([tracked.task_id for tracked in due])
        except CvatError as error:
            self._poll_failed(due, error)
            return
        answered_at = self._clock.monotonic()
        self._errors = 0
        self._round_trip += 0.2 * (answered_at - asked_at - self._round_trip)
        seen_at = (asked_at + answered_at) / 2
        for tracked in due:
            tracked.polls += 1
            tracked.errors = 0
            jobs = found.get(tracked.task_id)
            if jobs:
                self._found(tracked, jobs, seen_at)
            else:
                self._not_yet(tracked, seen_at, answered_at)
        late = self._latest_to_ask(due, answered_at)
        if late is not None:
            self._ask_state(late)
        self._time_out(due, answered_at)

    def _found(self, tracked: Tracked, jobs: Sequence[Job], seen_at: float) -> None:
        """End an import whose jobs were found. While it is in doubt whether its data has arrived,
        the frames of the task say whether the jobs are its own."""
        importing = tracked.importing
        if importing is None or importing.doubtful:
            # CVAT may have accepted it since.
            _, importing = self._on_server(tracked.task_id)
        if importing is None or not importing.doubtful:
            self._ready(tracked, jobs, seen_at)
            return
        expected = frames_of_import(importing)
        try:
            frames = self._cvat().frame_names(tracked.task_id)
        except CvatError as error:
            log.info("frames not known", task_id=tracked.task_id, why=str(error))
            tracked.due = self._clock.monotonic() + STATE_PAUSE
            return
        if expected is not None and covers(expected, frames):
            self._ready(tracked, jobs, seen_at, verified=True)
        elif importing.uploaded_at is None:
            # The process that sends it finds out what has become of it, and tracks it.
            self.forget(tracked.pooled_id)
        else:
            self._failed(tracked, ImportLost(OTHER_DATA))

    def _on_server(self, task_id: int) -> tuple[PooledTask | None, ImportRecord | None]:
        return self._store.task_on_server(task_id) or (None, None)

    def _not_yet(self, tracked: Tracked, seen_at: float, now: float) -> None:
        tracked.empty_at = seen_at - tracked.since
        if tracked.hurry:
            tracked.due = now
        elif tracked.borrowed:
            self.forget(tracked.pooled_id)
        elif tracked.foreign:
            alive = self._webhooks.alive(tracked.template)
            tracked.due = now + lease_pause(self._rng, webhooks_alive=alive)
        elif tracked.relaxed:
            tracked.due = now + safety_net_pause(now - tracked.since)
        else:
            tracked.due = now + pause_after(now - tracked.since, self._rng)

    def _poll_failed(self, due: Sequence[Tracked], error: CvatError) -> None:
        now = self._clock.monotonic()
        self._errors += 1
        pause = backoff(self._errors, base=0.5, cap=LONGEST_BACK_OFF, rng=self._rng, least=0.5)
        again = now + pause
        for tracked in due:
            if tracked.borrowed:
                self.forget(tracked.pooled_id)
            tracked.errors += 1
            tracked.due = again
            if tracked.repeatable:
                # It is not late while CVAT does not answer, and has time to show up afterwards.
                tracked.deadline = max(tracked.deadline, again + ORPHAN_PATIENCE)
        if self._errors >= OUTAGE:
            with self._guard:
                for tracked in self._tracked.values():
                    tracked.due = max(tracked.due, again)
        # Once: those that fail after it are the same outage.
        say = log.warning if self._errors == 1 else log.debug
        say(f"poll failed, next try in {pause:.1f} s", tasks=len(due), why=str(error))
        self._time_out(due, now)

    def _latest_to_ask(self, due: Sequence[Tracked], now: float) -> Tracked | None:
        """Return the late import whose state was not asked for longest; one a round, so that the
        others do not wait."""
        late = [
            tracked
            for tracked in due
            if tracked.pooled_id in self._tracked
            and tracked.state_due <= now
            and not tracked.borrowed
            and (
                tracked.foreign or now - tracked.since > self._paces.late_after(tracked.pace_class)
            )
        ]
        return min(late, key=lambda tracked: tracked.state_due, default=None)

    def _ask_state(self, tracked: Tracked) -> None:
        tracked.state_due = self._clock.monotonic() + STATE_PAUSE
        try:
            state = self._cvat().import_state(tracked.task_id)
        except CvatError as error:
            log.info("state not known", task_id=tracked.task_id, why=str(error))
            return
        unknown = state.status is ImportStatus.UNKNOWN
        if tracked.foreign:
            task, importing = self._on_server(tracked.task_id)
            seen = task is not None and task.state is TaskState.IMPORTING and importing is None
            if unknown and not seen:
                return  # its caller has not uploaded anything yet
            if tracked.lease_id is not None:
                self._store.begin_foreign_import(tracked.lease_id, now=self._clock.now())
        over = unknown or state.status is ImportStatus.FINISHED
        tracked.unknown = tracked.unknown + 1 if over else 0
        verdict = judge(state, unknown=tracked.unknown)
        if verdict is not None:
            self._failed(tracked, verdict)

    def _time_out(self, due: Sequence[Tracked], now: float) -> None:
        for tracked in due:
            if tracked.pooled_id not in self._tracked or tracked.deadline > now:
                continue
            if tracked.foreign:
                self.forget(tracked.pooled_id)
                continue
            limit = tracked.deadline - tracked.since
            self._failed(
                tracked, ImportTimedOut(f"task {tracked.task_id} had no jobs after {limit:.0f} s")
            )

    # --- Ends -----------------------------------------------------------------------------------

    # An import that another process has ended before is only tracked no longer.

    def _ready(
        self, tracked: Tracked, jobs: Sequence[Job], seen_at: float, *, verified: bool = False
    ) -> None:
        """Complete an import whose jobs exist, seen at ``seen_at`` by the monotonic clock.
        ``verified`` says that the frames of an import in doubt are its own."""
        importing = tracked.importing
        if importing and not divided_as_asked(importing.members, jobs):
            self._failed(tracked, ImportFailed(NOT_DIVIDED))
            return
        template = self._templates.get(tracked.template)
        first = self._store.complete_import(
            tracked.pooled_id,
            jobs,
            verified=verified,
            divided=template is not None and template.divided,
            now=self._clock.now(),
        )
        self.forget(tracked.pooled_id)
        if not first:
            return
        log.info(
            "jobs are ready",
            template=tracked.template,
            task_id=tracked.task_id,
            request_id=" ".join(tracked.request_ids),
            jobs=len(jobs),
            seconds=round(seen_at - tracked.since, 3),
            polls=tracked.polls,
        )
        if tracked.relaxed and not tracked.announced:
            self._webhooks.missed(tracked.template)
        self._paces.learn(tracked, seen_at)
        self._publish(
            Finished(
                task_id=tracked.task_id,
                polls=tracked.polls,
                requests=len(tracked.request_ids),
            )
        )

    def _failed(self, tracked: Tracked, error: PoolError) -> None:
        """Fail an import. Requests whose data CVAT has lost and is in the spool get another task
        instead, and so do those of a group, in parts."""
        importing, ids = tracked.importing, " ".join(tracked.request_ids)
        if isinstance(error, ImportLost) and importing is not None and importing.repeatable:
            log.warning("import lost", request_id=ids, task_id=tracked.task_id)
            now = self._clock.now()
            if self._store.requeue_import(importing.id, reason=str(error), now=now):
                self.forget(tracked.pooled_id)
                return
        if isinstance(error, ImportFailed | ImportLost | ImportTimedOut) and self._split(
            tracked, error
        ):
            self.forget(tracked.pooled_id)
            return
        first = self._store.fail_import(
            tracked.pooled_id,
            # A lease that it was tracked for may have ended since, and the task be another's.
            lease_id=tracked.lease_id if importing is None else importing.lease_id,
            code=error.code,
            message=error.detail,
            now=self._clock.now(),
        )
        self.forget(tracked.pooled_id)
        if not first:
            return
        log.warning(
            "import failed",
            template=tracked.template,
            task_id=tracked.task_id,
            request_id=ids,
            why=str(error),
        )
        self._publish(Finished(task_id=tracked.task_id, code=error.code, polls=tracked.polls))

    def _split(self, tracked: Tracked, error: PoolError) -> bool:
        """Give the requests of a group whose import has failed other tasks, in parts; False for a
        request alone, and where the import has ended."""
        importing = tracked.importing
        if importing is None or len(importing.members) == 1:
            return False
        parts = parts_of(importing.members, error.detail)
        # As without grouping: by parts, the last of them would wait for one time-out after another.
        alone = isinstance(error, ImportTimedOut) or error.detail == NOT_DIVIDED
        if alone:
            parts = [[request_id] for request_id in importing.request_ids]
        split = self._store.split_import(
            importing.id, parts, alone=alone, reason=str(error), now=self._clock.now()
        )
        if split:
            log.warning(
                "group split",
                template=tracked.template,
                task_id=tracked.task_id,
                parts=[len(part) for part in parts],
                why=str(error),
            )
        return split

    def _publish(self, finished: Finished) -> None:
        for listener in tuple(self._listeners):
            try:
                listener(finished)
            except StoreError:
                log.exception("listener failed", task_id=finished.task_id)
