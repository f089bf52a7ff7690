"""What this process has learned of how long imports take, and keeps in the store."""

from __future__ import annotations

import threading

from pool.clock import Clock
from pool.errors import PoolError
from pool.logs import get_logger
from pool.store import Store
from pool.tracking.poll_schedule import Pace
from pool.tracking.watched import Watched
from pool.tracking.webhook_health import safety_net_after

log = get_logger(__name__)

#: Seconds between two times of keeping what was learned.
KEEP_EVERY = 10.0


class Paces:
    """The paces of all size classes. Thread-safe."""

    def __init__(self, store: Store, *, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._guard = threading.Lock()
        self._paces: dict[str, Pace] = {}
        self._learned: set[str] = set()
        self._keep_at = 0.0

    def load(self) -> None:
        """Begin with what was kept before."""
        learned = self._store.learned_paces()
        with self._guard:
            for name, pace in learned.items():
                self._paces.setdefault(name, Pace.from_learned(pace))

    def first_poll(self, name: str, *, relaxed: bool) -> float:
        """Seconds after the POST at which an import is first asked for; ``relaxed`` when a
        webhook is expected to tell of it."""
        with self._guard:
            pace = self._pace(name)
            return safety_net_after(pace) if relaxed else pace.first

    def late_after(self, name: str) -> float:
        """Seconds after which an import is late."""
        with self._guard:
            return self._pace(name).late_after()

    def learn(self, watched: Watched, seen_at: float) -> None:
        """Remember that an import was seen to be done at ``seen_at``, by the monotonic clock."""
        if watched.foreign or watched.borrowed or (watched.relaxed and not watched.announced):
            return  # when it was done is not known well enough
        done_by = seen_at - watched.since
        with self._guard:
            pace, not_before = self._pace(watched.pace), watched.empty_at
            if watched.announced and not_before <= 0.0 and done_by > pace.first:
                not_before = pace.first  # a poll at that moment would have been in vain
            pace.learn(not_before=not_before, done_by=done_by)
            self._learned.add(watched.pace)

    def keep(self, *, at_once: bool = False) -> None:
        """Keep what was learned, now and then: a write costs more than most of it is worth."""
        now = self._clock.monotonic()
        if not self._learned or (now < self._keep_at and not at_once):
            return
        self._keep_at = now + KEEP_EVERY
        with self._guard:
            paces = {name: self._paces[name].learned() for name in self._learned}
            self._learned.clear()
        try:
            self._store.learn_paces(paces)
        except PoolError as error:
            log.info("import times not kept", why=str(error))

    def _pace(self, name: str) -> Pace:
        return self._paces.setdefault(name, Pace())
