"""The last hour of the pool: sampled levels, and how long requests took."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pool.clock import Clock
from pool.maintenance.scheduler import INTERVALS
from pool.model import EndedRequest
from pool.status import Status, TemplateStatus
from pool.store import Store

#: Seconds between two samples, seconds for which they are kept, and the most requests in a report.
EVERY = INTERVALS["history"]
KEPT_FOR = 3600.0
MOST_REQUESTS = 1000


@dataclass(frozen=True, slots=True)
class _Sample:
    at: float
    templates: dict[str, tuple[int, int, int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class TemplateHistory:
    """Levels and target of one template, sample by sample; None where it did not exist."""

    warm: list[int | None] = field(default_factory=list)
    creating: list[int | None] = field(default_factory=list)
    target: list[int | None] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class HourReport:
    """The last hour. ``at`` are the times of the samples; the newest of ``requests`` is last."""

    interval: float
    at: list[float]
    templates: dict[str, TemplateHistory]
    requests: Sequence[EndedRequest]


class History:
    """Samples the levels into memory, and reads the requests from the store. Thread-safe."""

    def __init__(self, store: Store, read_status: Callable[[], Status], *, clock: Clock) -> None:
        self._store = store
        self._read_status = read_status
        self._clock = clock
        self._guard = threading.Lock()
        self._samples: deque[_Sample] = deque(maxlen=int(KEPT_FOR / EVERY))

    def run_once(self) -> int:
        """Take a sample; return how many there are."""
        status = self._read_status()
        sample = _Sample(self._clock.now(), {each.name: _levels(each) for each in status.templates})
        with self._guard:
            self._samples.append(sample)
            return len(self._samples)

    def hour(self) -> HourReport:
        """Return the report of the last hour.

        :raises StoreError: the store cannot be read.
        """
        since = self._clock.now() - KEPT_FOR
        with self._guard:
            samples = [sample for sample in self._samples if sample.at >= since]
        names = sorted({name for sample in samples for name in sample.templates})
        return HourReport(
            interval=EVERY,
            at=[sample.at for sample in samples],
            templates={name: _of_template(name, samples) for name in names},
            requests=self._store.ended_requests(since=since, limit=MOST_REQUESTS),
        )


def _levels(template: TemplateStatus) -> tuple[int, int, int]:
    return template.warm, template.creating, template.target


def _of_template(name: str, samples: Sequence[_Sample]) -> TemplateHistory:
    history = TemplateHistory()
    for sample in samples:
        warm, creating, target = sample.templates.get(name, (None, None, None))
        history.warm.append(warm)
        history.creating.append(creating)
        history.target.append(target)
    return history
