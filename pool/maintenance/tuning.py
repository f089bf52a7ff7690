"""Recommend a ``min_size`` from the demand so far.

The hand-outs of the last days are played again, with the times at which they were asked for. Each
has one task created in its place, and these creates follow one after the other, as they do while
requests are being served. A caller is served at once by a pool of more tasks than are being
replaced at that moment; so these numbers, in the order of size, show which pool would have served
which share. Nothing is assumed of how callers come: a burst counts as the burst it was.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from pool.config.settings import PoolSettings, Template
from pool.maintenance.sizing import LEAD_TIME
from pool.model import Outcome
from pool.store import Asked, Store

#: Seconds of history that count: a week, so that every day of the week does.
HISTORY: Final = 7 * 86400.0
#: The newest hand-outs that are looked at; eight bytes each.
MOST: Final = 1_000_000
#: A create that is done but for this share of it is done: a time since the epoch is exact to a
#: quarter of a microsecond only.
_DONE: Final = 1e-5


@dataclass(frozen=True, kw_only=True, slots=True)
class Demanded:
    """What was asked for since ``since``, and how it was served; ``refused`` got no task at all.

    ``since`` is None when nothing was.
    """

    since: datetime | None
    hits: int
    waits: int
    colds: int
    refused: int

    @property
    def total(self) -> int:
        return self.hits + self.waits + self.colds + self.refused

    @property
    def hit_rate(self) -> float | None:
        """The share that was served at once; None when nothing was asked for."""
        return self.hits / self.total if self.total else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Creates:
    """How many seconds tasks took to create: the ``median``, and what nine of ten took at most.
    Where ``count`` is 0, both are what sizing assumes."""

    count: int
    median: float
    slow: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    """The ``min_size`` at which the share ``wanted`` of the hand-outs would have been hits.

    ``expected`` is the share that it would have served at once, and ``expected_now`` that of the
    ``current`` one. All three are None when nothing was asked for.
    """

    template: str
    wanted: float
    demanded: Demanded
    creates: Creates
    current: int
    expected_now: float | None
    min_size: int | None
    expected: float | None


def tune(store: Store, template: Template, *, now: float) -> Advice:
    """Return the advice for one template, from what the store knows of the last :data:`HISTORY`
    seconds."""
    since = now - HISTORY
    asked = store.asked(template.name, since=since, until=now, limit=MOST)
    creates = creates_in(store.create_times(template.name, since=since))
    return advise(asked, creates, template.name, template.pool)


def creates_in(took: Sequence[float]) -> Creates:
    """Return the creates that ``took`` so many seconds, in ascending order."""
    if not took:
        return Creates(count=0, median=LEAD_TIME, slow=LEAD_TIME)
    return Creates(
        count=len(took), median=took[_place(0.5, len(took))], slow=took[_place(0.9, len(took))]
    )


def advise(asked: Asked, creates: Creates, template: str, settings: PoolSettings) -> Advice:
    """Return the smallest size that serves the share ``hit_rate`` of these hand-outs at once."""
    replaced = being_replaced(asked.times, creates.slow)
    size = _quantile(replaced, settings.hit_rate) + 1 if replaced else None
    return Advice(
        template=template,
        wanted=settings.hit_rate,
        demanded=Demanded(
            since=datetime.fromtimestamp(asked.times[0], UTC) if asked.times else None,
            hits=asked.outcomes.get(Outcome.HIT, 0),
            waits=asked.outcomes.get(Outcome.WAIT, 0),
            colds=asked.outcomes.get(Outcome.COLD, 0),
            refused=asked.outcomes.get(None, 0),
        ),
        creates=creates,
        current=settings.min_size,
        expected_now=_share_below(replaced, settings.min_size),
        min_size=size,
        expected=None if size is None else _share_below(replaced, size),
    )


def being_replaced(asked_at: Iterable[float], seconds: float) -> Counter[int]:
    """Return how often how many tasks were being replaced when one was asked for, when each create
    takes so many ``seconds`` and they are made one after the other."""
    counts: Counter[int] = Counter()
    before, left = 0.0, 0.0
    for time in asked_at:
        # What is left to do is kept in creates, of which the first may be half done.
        left = max(0.0, left - (time - before) / seconds) if seconds > 0 else 0.0
        counts[max(0, math.ceil(left - _DONE))] += 1
        before, left = time, left + 1.0
    return counts


def _share_below(counts: Mapping[int, int], size: int) -> float | None:
    """The share of those in ``counts`` that are below ``size``."""
    if not counts:
        return None
    return sum(times for count, times in counts.items() if count < size) / sum(counts.values())


def _quantile(counts: Mapping[int, int], share: float) -> int:
    """The smallest that ``share`` of those in ``counts`` do not exceed."""
    left = _place(share, sum(counts.values()))
    for count in sorted(counts):
        left -= counts[count]
        if left < 0:
            return count
    raise ValueError("there is no quantile of nothing")


def _place(share: float, length: int) -> int:
    """Where, in ascending order, stands the smallest that ``share`` do not exceed."""
    return min(length - 1, max(0, math.ceil(share * length) - 1))
