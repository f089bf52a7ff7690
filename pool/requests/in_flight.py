"""What a dispatcher remembers of requests from one round to the next."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pool.clock import Clock
from pool.requests.grouping import GroupKey
from pool.store import Unserved


class InFlight:
    """Which requests are being worked on, left alone or to wait for a warm task, and for which a
    task is being made. It is forgotten with the process. Thread-safe; times are of the monotonic
    clock, but for those of patience."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._guard = threading.Lock()
        #: Requests that this process works on, from before there is a row.
        self._taken: set[str] = set()
        #: Requests that are being accepted, and when the last one was.
        self._accepting = 0
        self._accepted_at = -math.inf
        #: Requests for which a task is being made, and for what template and group.
        self._creating: dict[str, tuple[str, GroupKey]] = {}
        #: Since when a request waits for a warm task alone, by the wall clock, where it has waited
        #: for others or for a place before.
        self._waits_since: dict[str, float] = {}
        #: Until when a request is left alone.
        self._paused_until: dict[str, float] = {}

    # --- Being worked on --------------------------------------------------------------------------

    @contextmanager
    def accepting(self, request_id: str) -> Iterator[None]:
        """Take a request that is being accepted, before there is a row, so that no round finds it
        without a worker. It stays taken."""
        with self._guard:
            self._taken.add(request_id)
            self._accepting += 1
        try:
            yield
        finally:
            with self._guard:
                self._accepting -= 1
                self._accepted_at = self._clock.monotonic()

    @contextmanager
    def taking(self, *request_ids: str, some: bool = False) -> Iterator[Sequence[str]]:
        """Take requests, and let them go again if the block raises. Return those that were taken:
        all, or none where a worker has one of them already; with ``some``, those that none has."""
        with self._guard:
            free = [each for each in request_ids if each not in self._taken]
            taken = free if some or len(free) == len(request_ids) else []
            self._taken.update(taken)
        try:
            yield taken
        except BaseException:
            self.let_go(*taken)
            raise

    def let_go(self, *request_ids: str, paused_until: float = -math.inf) -> None:
        """Work on requests no more, and leave them alone until a moment."""
        with self._guard:
            self._taken.difference_update(request_ids)
            for each in request_ids:
                # What paused it before holds on.
                until = max(paused_until, self._paused_until.get(each, -math.inf))
                self._paused_until[each] = until

    @property
    def taken(self) -> int:
        """How many requests are being worked on."""
        with self._guard:
            return len(self._taken)

    def free(self, found: Sequence[Unserved]) -> list[Unserved]:
        """Return those that are neither worked on nor left alone."""
        now = self._clock.monotonic()
        with self._guard:
            return [
                each
                for each in found
                if each.id not in self._taken and self._paused_until.get(each.id, now) <= now
            ]

    def quiet_for(self) -> float:
        """Return the seconds for which no request has come to this process; 0 while one is being
        accepted."""
        with self._guard:
            since = self._clock.monotonic() - self._accepted_at
            return 0.0 if self._accepting else max(0.0, since)

    # --- Patience ---------------------------------------------------------------------------------

    def renew_patience(self, requests: Sequence[Unserved], *, now: float) -> None:
        """Have requests wait for a warm task from now on only, that wait for a warm task at all."""
        with self._guard:
            self._waits_since.update({each.id: now for each in requests if each.patient})

    def waits_since(self, each: Unserved) -> float:
        """Return since when a request waits for a warm task alone."""
        return max(each.created_at, self._waits_since.get(each.id, each.created_at))

    def forget_patience(self, *request_ids: str) -> None:
        """Forget since when requests wait."""
        with self._guard:
            for request_id in request_ids:
                self._waits_since.pop(request_id, None)

    def remembered(self) -> set[str]:
        """Return those that are kept in mind for as long as they wait, by id."""
        with self._guard:
            return set(self._waits_since)

    def pauses(self) -> list[float]:
        """Return when every pause ends; forget those that have ended."""
        now = self._clock.monotonic()
        with self._guard:
            self._paused_until = {
                id: until for id, until in self._paused_until.items() if until > now
            }
            return list(self._paused_until.values())

    # --- Tasks that are being made ----------------------------------------------------------------

    def create(self, request_id: str, template: str, key: GroupKey) -> None:
        """Note that a task is being made for a request and those that have ``key`` too."""
        with self._guard:
            self._creating[request_id] = (template, key)

    def created(self, request_id: str) -> GroupKey:
        """Note that no task is being made for a request any more; return for whom it was."""
        with self._guard:
            return self._creating.pop(request_id, ("", None))[1]

    def creating(self, template: str | None = None) -> list[GroupKey]:
        """Return for whom tasks are being made: of a template, or of all."""
        with self._guard:
            return [
                key for made, key in self._creating.values() if template is None or made == template
            ]
