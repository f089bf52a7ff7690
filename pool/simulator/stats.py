"""What the server saw of its callers, and its own times: what a benchmark compares itself to."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

#: Tasks whose times are kept; the oldest is dropped first.
KEPT_TASKS = 100_000


@dataclass(slots=True)
class TaskTimes:
    """Moments in the life of one import: seconds since the epoch, ``None`` for not yet."""

    received_at: float | None = None
    accepted_at: float | None = None
    started_at: float | None = None
    committed_at: float | None = None
    finished_at: float | None = None
    failed: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "received_to_committed_ms": _milliseconds(self.received_at, self.committed_at),
            "accepted_to_committed_ms": _milliseconds(self.accepted_at, self.committed_at),
            "committed_to_finished_ms": _milliseconds(self.committed_at, self.finished_at),
        }


class Stats:
    """Counters of calls for each operation, and the times of each task's import."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything counted so far; imports under way are counted from here on."""
        self.calls: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.tasks: dict[int, TaskTimes] = {}
        self.deliveries = 0
        #: How often each kind of fault hit each operation or event, and each action was done.
        self.faults: Counter[str] = Counter()
        self.actions: Counter[str] = Counter()

    def count(self, operation: str, status: int) -> None:
        self.calls[operation] += 1
        self.statuses[status] += 1

    def times(self, task_id: int) -> TaskTimes:
        """The times of a task, begun here if this is the first that is heard of it."""
        found = self.tasks.get(task_id)
        if found is None:
            if len(self.tasks) >= KEPT_TASKS:
                del self.tasks[next(iter(self.tasks))]
            found = self.tasks[task_id] = TaskTimes()
        return found

    def import_milliseconds(self) -> dict[int, float]:
        """For each committed task: from its data request's arrival to the commit of its jobs."""
        found = {}
        for task_id, times in list(self.tasks.items()):
            duration = _milliseconds(times.received_at, times.committed_at)
            if duration is not None:
                found[task_id] = duration
        return found

    def to_json(self) -> dict[str, Any]:
        return {
            "calls": dict(self.calls),
            "statuses": {str(status): count for status, count in self.statuses.items()},
            "webhook_deliveries": self.deliveries,
            "faults": dict(self.faults),
            "actions": dict(self.actions),
            "tasks": {str(task_id): times.to_json() for task_id, times in self.tasks.items()},
        }


class Clock:
    """Seconds since the epoch that never run backwards, so that differences are durations."""

    def __init__(self) -> None:
        self._offset = time.time() - time.perf_counter()

    def __call__(self) -> float:
        return time.perf_counter() + self._offset


def _milliseconds(start: float | None, end: float | None) -> float | None:
    if start is None or end is None:
        return None
    return round((end - start) * 1000.0, 3)
