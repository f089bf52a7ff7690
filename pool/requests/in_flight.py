"""Which spooled requests one daemon is at work on, and which are to be left alone for a while."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from pool.store import Unserved


class Turns:
    """What is remembered of requests between two rounds, and forgotten with the process. Times are
    of the monotonic clock. Thread-safe."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._taken: set[str] = set()
        #: Until when a request waits for a warm task only. Those that are not in here have waited
        #: for long enough, or for something else.
        self._patience: dict[str, float] = {}
        #: Until when a request is left alone.
        self._paused: dict[str, float] = {}

    def take(self, request_id: str) -> None:
        """A request is being worked on."""
        with self._guard:
            self._taken.add(request_id)

    @contextmanager
    def taking(self, request_id: str) -> Iterator[None]:
        """As :meth:`take`; and nobody works on it any more if the block raises."""
        self.take(request_id)
        try:
            yield
        except BaseException:
            self.let_go(request_id)
            raise

    def let_go(self, request_id: str, *, pause_until: float = -math.inf) -> None:
        """Nobody works on a request any more, nor is to before ``pause_until``."""
        with self._guard:
            self._taken.discard(request_id)
            self._paused[request_id] = pause_until

    def is_free(self, request_id: str, *, now: float) -> bool:
        """Whether somebody may work on a request."""
        with self._guard:
            return request_id not in self._taken and self._paused.get(request_id, now) <= now

    def wait_until(self, request_id: str, until: float) -> None:
        """A request waits for a warm task, and for nothing else before ``until``."""
        with self._guard:
            self._patience[request_id] = until

    def is_patient(self, request_id: str, *, now: float) -> bool:
        """Whether a request still waits for a warm task only."""
        with self._guard:
            return self._patience.get(request_id, now) > now

    def has_lost_patience(self, request_id: str, *, now: float) -> bool:
        """Whether a request has waited for a warm task, and in vain."""
        with self._guard:
            return self._patience.get(request_id, math.inf) <= now

    def waiting(self) -> list[str]:
        """The requests that wait for a warm task, or have waited in vain."""
        with self._guard:
            return list(self._patience)

    def forget(self, request_id: str) -> None:
        """A request waits for a warm task no longer."""
        with self._guard:
            self._patience.pop(request_id, None)

    def next_moment(self, *, now: float) -> float | None:
        """When the first of them has waited for long enough; None when none waits."""
        with self._guard:
            self._paused = {id: until for id, until in self._paused.items() if until > now}
            moments = [*self._patience.values(), *self._paused.values()]
        return min((moment for moment in moments if moment > now), default=None)


def by_template(requests: Iterable[Unserved]) -> list[tuple[str, list[Unserved]]]:
    """The requests of each template, in the order in which their first ones came."""
    grouped: dict[str, list[Unserved]] = {}
    for each in requests:
        grouped.setdefault(each.template, []).append(each)
    return list(grouped.items())
