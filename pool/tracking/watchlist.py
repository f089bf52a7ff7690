"""The tasks that one process watches until their jobs exist."""

from __future__ import annotations

import threading

from pool.tracking.watched import Watched, due_together


class Watchlist:
    """Watched tasks by our ids. Thread-safe; what is in it belongs to the thread that polls."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._watched: dict[str, Watched] = {}

    def __len__(self) -> int:
        return len(self._watched)

    def __contains__(self, pooled_id: str) -> bool:
        return pooled_id in self._watched

    def add(self, watched: Watched) -> None:
        """Watch a task, unless it is watched already. One that is watched for its lease is watched
        for its request from now on, when it gets one."""
        with self._guard:
            known = self._watched.get(watched.pooled_id)
            if known is None or (known.foreign and not watched.foreign):
                self._watched[watched.pooled_id] = watched

    def discard(self, pooled_id: str) -> None:
        """Watch a task no longer."""
        with self._guard:
            self._watched.pop(pooled_id, None)

    def on_server(self, task_id: int) -> Watched | None:
        """The watched task that has CVAT's id ``task_id``."""
        with self._guard:
            return next((each for each in self._watched.values() if each.task_id == task_id), None)

    def relaxed(self) -> list[Watched]:
        """Those that are left to a webhook."""
        with self._guard:
            return [watched for watched in self._watched.values() if watched.relaxed]

    def due(self, now: float) -> list[Watched]:
        """What one poll asks for now."""
        with self._guard:
            return due_together(self._watched.values(), now)

    def next_due(self) -> float | None:
        """When the next poll is due; None when nothing is watched."""
        with self._guard:
            return min((watched.due for watched in self._watched.values()), default=None)

    def postpone(self, until: float) -> None:
        """Poll for nothing before ``until``."""
        with self._guard:
            for watched in self._watched.values():
                watched.due = max(watched.due, until)
