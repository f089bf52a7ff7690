"""What is known of an import that is being watched, and what CVAT's word on it means."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from pool.cvat.records import ImportState, ImportStatus
from pool.errors import ImportFailed, ImportLost, PoolError, TaskGone
from pool.model import Job, PooledTask, RequestRecord, TaskState

#: CVAT may forget a request while its jobs are being committed; ask this often before giving up.
UNKNOWN_LIMIT = 3
#: A request whose data is in the spool gets this many tasks at most, whoever serves it: more than
#: one whose caller waits, since a server that comes and goes should not cost it.
MOST_TASKS_SPOOLED = 5
#: Where a task stands while its import may still end.
UNDER_WAY = (TaskState.LEASED, TaskState.IMPORTING)
#: Imports that are due within this many seconds go into the same poll.
TOGETHER = 0.01


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
    #: The webhook is expected to tell of it, so that polling waits; and it has told.
    relaxed: bool = False
    announced: bool = False
    #: Announced after the poll that is under way was sent, so that another one is due.
    hurry: bool = False
    #: Its data is in the spool, so that it can have another task should CVAT lose the import.
    repeatable: bool = False
    #: Another process watches it; this one has only heard of it.
    borrowed: bool = False

    @property
    def foreign(self) -> bool:
        """Whether the caller uploads by itself, so that nobody told us when."""
        return self.request_id is None

    def unanswered(self, again: float, *, patience: float) -> None:
        """A poll has failed, and the next one is due at ``again``."""
        self.errors += 1
        self.due = again
        if self.repeatable:
            # It is not late when nobody can tell, and has time to show up once somebody can.
            self.deadline = max(self.deadline, again + patience)


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


def untold(task: PooledTask, *, lease_id: str | None, now: float) -> Watched:
    """A task of which nobody told this process when its data went in."""
    assert task.task_id is not None
    return Watched(
        pooled_id=task.id,
        task_id=task.task_id,
        template=task.template,
        lease_id=lease_id,
        since=now,
        due=now,
        deadline=math.inf,
        pace="",
    )


def borrow(task: PooledTask, request: RequestRecord | None, *, now: float) -> Watched | None:
    """A task of which this process has heard, but which it does not watch; None when nothing
    more will come of it."""
    if task.task_id is None or task.state not in UNDER_WAY:
        return None
    watched = untold(task, lease_id=task.lease_id, now=now)
    watched.request_id = request.id if request else None
    watched.borrowed = True
    return watched


def begun(found: tuple[PooledTask, RequestRecord | None] | None) -> bool:
    """Whether an import was seen in a task into which its caller uploads by itself: where CVAT
    knows of none any more, it has lost it."""
    return found is not None and found[0].state is TaskState.IMPORTING and found[1] is None


def failure(message: str) -> ImportFailed:
    """A failed import, in CVAT's words."""
    return ImportFailed(message or "CVAT gave no reason")


def due_together(everyone: Iterable[Watched], now: float) -> list[Watched]:
    """What one poll asks for: the imports that are due, and with them all that were asked for
    before, since one more id costs the server a hundredth of a millisecond and a poll of its own
    twenty. So imports that wait together are polled together, however they began."""
    everyone = list(everyone)
    due = [watched for watched in everyone if watched.due <= now + TOGETHER]
    if not due:
        return []
    also = [
        watched
        for watched in everyone
        if watched.due > now + TOGETHER
        and watched.polls
        and not (watched.errors or watched.foreign or watched.relaxed)
    ]
    return due + also


def judge(state: ImportState, *, unknown: int) -> PoolError | None:
    """What the state of a late import means, its jobs not being there: an error, or None to
    keep waiting. ``unknown`` counts the answers in a row that knew nothing of it."""
    match state.status:
        case ImportStatus.FAILED:
            return failure(state.message)
        case ImportStatus.TASK_GONE:
            return TaskGone("somebody deleted it while its data was being imported")
        case ImportStatus.UNKNOWN | ImportStatus.FINISHED if unknown >= UNKNOWN_LIMIT:
            return ImportLost(
                "CVAT has no record of the import and made no jobs; "
                "its queue may have been lost in a restart"
            )
        case _:
            return None
