"""How many imports that requests may share are under way at the same time, and ``"auto"``, which
adapts that to the server.

CVAT says of each import when it was queued and when a worker began it. While more of them are under
way than there are workers, some wait; while they begin at once, there may be more workers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from pool.clock import Clock
from pool.config.settings import ImportSettings
from pool.cvat import CvatClient
from pool.cvat.records import ImportState
from pool.errors import CvatError
from pool.logs import get_logger
from pool.store import Store
from pool.tracking.tracker import Finished

log = get_logger(__name__)

#: Where it begins, and its bounds.
FIRST: Final = 2
LEAST: Final = 1
MOST: Final = 16
#: An import has waited for a worker when it began later than this multiple of what the quickest one
#: needed, and this share of what it took itself. A worker that is free takes one within 13 ms at
#: best, and nine of ten within 50 (recordings).
QUICKEST_FACTOR: Final = 2.0
WAITED_SHARE: Final = 0.15
#: What one sample adds to the tally, and where the tally has to be for a step up or down. More than
#: a quarter of the imports waits for long where there is a worker too few.
AT_ONCE: Final = 1
WAITED: Final = -3
UP: Final = 6
DOWN: Final = -6
#: The tally for a step up that was in vain before.
UP_AGAIN: Final = 40
#: Of so many imports that take the last place one is looked at.
SAMPLE_OF: Final = 2
#: Imports that are looked at, at the same time.
MOST_SAMPLES: Final = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Adaptation:
    """A number of imports at a time, what speaks for another, and the number that was too many."""

    value: int = FIRST
    tally: int = 0
    too_many: int | None = None


def adapted(now: Adaptation, *, waited: bool) -> Adaptation:
    """Return what follows from one import that took the last place, and waited for a worker or
    not."""
    tally = now.tally + (WAITED if waited else AT_ONCE)
    enough = UP_AGAIN if now.value + 1 == now.too_many else UP
    if tally >= enough:
        return replace(now, value=min(MOST, now.value + 1), tally=0)
    if tally <= DOWN:
        if now.value == LEAST:
            return replace(now, tally=0)
        return Adaptation(value=now.value - 1, too_many=now.value)
    return replace(now, tally=tally)


@dataclass(slots=True)
class _Sample:
    """An import that took the last place, or went ahead of one, and of how many places. Times are
    of the monotonic clock: when a place was free for it, and when it ended."""

    places: int
    free_at: float | None
    ended_at: float = 0.0


def places_of(store: Store, settings: ImportSettings) -> int:
    """Return how many imports that requests may share are under way at the same time by a
    template's settings. ``"auto"`` is one number for all templates and processes on a store."""
    if settings.concurrency != "auto":
        return settings.concurrency
    return store.import_concurrency() or FIRST


class Concurrency:
    """Adapts that number. Thread-safe."""

    def __init__(self, store: Store, cvat: Callable[[], CvatClient], *, clock: Clock) -> None:
        self._store = store
        self._cvat = cvat
        self._clock = clock
        self._guard = threading.Lock()
        self._adaptation = Adaptation()
        self._quickest: float | None = None
        self._seen = 0
        #: By CVAT's ids of the tasks.
        self._samples: dict[int, _Sample] = {}
        self._ended: dict[int, _Sample] = {}

    def watch(self, settings: ImportSettings, task_id: int | None, *, ahead: bool) -> None:
        """Look at an import that begins now and takes the last place, or, ``ahead``, goes before
        one is free; at some of them."""
        if settings.concurrency != "auto" or task_id is None:
            return
        places = places_of(self._store, settings)
        with self._guard:
            self._seen += 1
            if self._seen % SAMPLE_OF == 0:
                free_at = None if ahead else self._clock.monotonic()
                self._samples[task_id] = _Sample(places, free_at)
                if len(self._samples) > MOST_SAMPLES:
                    # Another process has found its end, or its group was split.
                    del self._samples[next(iter(self._samples))]

    def ended(self, finished: Finished) -> None:
        """Note the end of an import, which frees a place."""
        now = self._clock.monotonic()
        with self._guard:
            sample = self._samples.pop(finished.task_id, None)
            for each in self._samples.values():
                each.free_at = now if each.free_at is None else each.free_at
            if sample is not None and not finished.code:
                sample.ended_at = now
                self._ended[finished.task_id] = sample

    def learn(self, finished: Finished) -> None:
        """Ask CVAT for the times of an import that has ended, if it is looked at."""
        with self._guard:
            sample = self._ended.pop(finished.task_id, None)
        if sample is None:
            return
        try:
            state = self._cvat().import_state(finished.task_id)
        except CvatError as error:
            log.info("times of an import not known", task_id=finished.task_id, why=str(error))
            return
        _, importing = self._store.task_on_server(finished.task_id) or (None, None)
        if importing is None or importing.uploaded_at is None or state.queued_for is None:
            return
        took = max(0.0, (importing.finished_at or 0.0) - importing.uploaded_at)
        uploaded_at = sample.ended_at - took
        late = 0.0 if sample.free_at is None else max(0.0, sample.free_at - uploaded_at)
        self._learn(state, late, places=sample.places)

    def _learn(self, state: ImportState, late: float, *, places: int) -> None:
        """Learn from an import whose place was free so many seconds after its upload. One that
        began while there were more places, or fewer, says nothing of what is now."""
        assert state.queued_for is not None
        before = self._store.import_concurrency()
        if places != (before or FIRST):
            return
        with self._guard:
            if self._adaptation.value != (before or FIRST):
                # Another process has changed it.
                self._adaptation = Adaptation(value=before or FIRST)
            quickest = self._quickest = min(self._quickest or state.queued_for, state.queued_for)
            slack = QUICKEST_FACTOR * quickest + WAITED_SHARE * (state.ran_for or 0.0)
            waited = state.queued_for - late > slack
            after = self._adaptation = adapted(self._adaptation, waited=waited)
        if after.value != (before or FIRST) and self._store.adapt_import_concurrency(
            before, after.value
        ):
            log.info("imports at a time changed", before=before or FIRST, now=after.value)
