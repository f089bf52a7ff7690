"""What is known of an import that is being watched, and what CVAT's word on it means."""

from __future__ import annotations

from dataclasses import dataclass

from pool.cvat.records import ImportState, ImportStatus
from pool.errors import ImportFailed, PoolError, TaskGone
from pool.model import Job

#: CVAT may forget a request while its jobs are being committed; ask this often before giving up.
UNKNOWN_LIMIT = 3


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


def judge(state: ImportState, *, unknown: int) -> PoolError | None:
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
