"""What ``min_size`` the demand so far would have wanted: a recommendation for people.

The hand-outs of the last days are played again, with the times at which they were asked for. Each
has one task created in its place, and these creates follow one after the other, as they do while
requests are being served. Whoever comes is served at once by a pool of more tasks than are being
replaced at that moment; so the number that are, in the order of size, tells which pool would have
served which share. Nothing is assumed of how callers come: a burst counts as the burst it was.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TypeVar

from pool.model import LeaseRecord, LeaseState, Outcome, PooledTask, TaskState
from pool.services.refill import LEAD_TIME
from pool.settings import PoolSettings, Template
from pool.store.base import Store

Number = TypeVar("Number", int, float)

#: Seconds of history that count: a week, so that every day of the week does.
HISTORY: Final = 7 * 86400.0
#: The newest hand-outs of all templates that are looked at.
MOST: Final = 1_000_000


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
    ``current`` one. All three are None when nothing was asked for: then nobody can tell.
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
    """The advice for one template, from what the store knows of the last :data:`HISTORY`
    seconds."""
    since = now - HISTORY
    leases = [
        lease
        for lease in store.leases(limit=MOST)
        if lease.template == template.name
        and since <= lease.created_at <= now
        and lease.state is not LeaseState.WAITING
    ]
    tasks = store.tasks(template=template.name, states=list(TaskState))
    creates = creates_in(task for task in tasks if task.created_at >= since)
    return advise(leases, creates, template.name, template.pool)


def creates_in(tasks: Iterable[PooledTask]) -> Creates:
    """How long the creates of these tasks took."""
    took = sorted(task.warm_at - task.created_at for task in tasks if task.warm_at is not None)
    if not took:
        return Creates(count=0, median=LEAD_TIME, slow=LEAD_TIME)
    return Creates(count=len(took), median=_quantile(took, 0.5), slow=_quantile(took, 0.9))


def advise(
    leases: Sequence[LeaseRecord], creates: Creates, template: str, settings: PoolSettings
) -> Advice:
    """The smallest size that serves as many of these leases at once as ``hit_rate`` wants."""
    asked_at = sorted(lease.created_at for lease in leases)
    served = Counter(lease.outcome for lease in leases)
    replaced = sorted(being_replaced(asked_at, creates.slow))
    size = _quantile(replaced, settings.hit_rate) + 1 if replaced else None
    return Advice(
        template=template,
        wanted=settings.hit_rate,
        demanded=Demanded(
            since=datetime.fromtimestamp(asked_at[0], UTC) if asked_at else None,
            hits=served[Outcome.HIT],
            waits=served[Outcome.WAIT],
            colds=served[Outcome.COLD],
            refused=served[None],
        ),
        creates=creates,
        current=settings.min_size,
        expected_now=_share_below(replaced, settings.min_size),
        min_size=size,
        expected=None if size is None else _share_below(replaced, size),
    )


def being_replaced(asked_at: Iterable[float], seconds: float) -> list[int]:
    """How many tasks were being replaced each time that one was asked for, when the create of
    each takes so many ``seconds`` and they are made one after the other."""
    counts = []
    ends: deque[float] = deque()
    for time in asked_at:
        while ends and ends[0] <= time:
            ends.popleft()
        counts.append(len(ends))
        ends.append((ends[-1] if ends else time) + seconds)
    return counts


def _share_below(ordered: Sequence[int], size: int) -> float | None:
    return bisect_left(ordered, size) / len(ordered) if ordered else None


def _quantile(ordered: Sequence[Number], share: float) -> Number:
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))]
