"""What the pool was like: levels of the last week at most, and how long requests took."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from pool.clock import Clock
from pool.model import EVERYTHING, EndedRequest, LevelRecord, LevelSample, Scope
from pool.status import Status
from pool.store import STEPS, Store

#: Seconds of a report: the fewest, the default, and the most; and the most requests in it.
SHORTEST: Final = 300
HOUR: Final = 3600
LONGEST: Final = 7 * 86400
MOST_REQUESTS: Final = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class TemplateHistory:
    """Levels and target of one template, step by step; None where they are not known. ``warm`` and
    ``creating`` are means, ``least`` is the lowest level of warm, ``target`` the last one."""

    warm: list[float | None] = field(default_factory=list)
    least: list[int | None] = field(default_factory=list)
    creating: list[float | None] = field(default_factory=list)
    target: list[int | None] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class HistoryReport:
    """Some time up to now. ``interval`` is the step of the levels, in seconds, and ``at`` when each
    step began; the newest of ``requests`` is last."""

    interval: float
    at: list[float]
    templates: dict[str, TemplateHistory]
    requests: Sequence[EndedRequest]


class History:
    """Samples the levels into the store, and reads them. Thread-safe."""

    def __init__(self, store: Store, read_status: Callable[[], Status], *, clock: Clock) -> None:
        self._store = store
        self._read_status = read_status
        self._clock = clock

    def run_once(self) -> int:
        """Take a sample; return of how many templates."""
        samples = {
            each.name: LevelSample(warm=each.warm, creating=each.creating, target=each.target)
            for each in self._read_status().templates
        }
        self._store.keep_levels(samples, now=self._clock.now())
        return len(samples)

    def report(self, seconds: float = HOUR, *, scope: Scope = EVERYTHING) -> HistoryReport:
        """Return the report of the last ``seconds``, in the smallest steps that are kept for so
        long: what a caller sees of it.

        :raises StoreError: the store cannot be read.
        """
        now = self._clock.now()
        step = next((step for step, kept_for in STEPS.items() if seconds <= kept_for), max(STEPS))
        # From the step on in which that time begins.
        since = (now - seconds) // step * step
        levels = [
            each
            for each in self._store.level_history(step, since=since, until=now)
            if scope.covers_template(each.template)
        ]
        by_template: dict[str, dict[int, LevelRecord]] = {}
        first = levels[0].at if levels else 0.0
        for each in levels:
            by_template.setdefault(each.template, {})[round((each.at - first) / step)] = each
        # Every step, so that those are seen to be missing in which no daemon ran.
        count = 1 + max((max(known) for known in by_template.values()), default=-1)
        return HistoryReport(
            interval=step,
            at=[first + step * number for number in range(count)],
            templates={
                name: _of_template(known, count) for name, known in sorted(by_template.items())
            },
            requests=self._store.ended_requests(
                since=now - seconds, limit=MOST_REQUESTS, scope=scope
            ),
        )


def _of_template(levels: dict[int, LevelRecord], count: int) -> TemplateHistory:
    history = TemplateHistory()
    for number in range(count):
        known = levels.get(number)
        history.warm.append(None if known is None else round(known.warm, 2))
        history.least.append(None if known is None else int(known.least))
        history.creating.append(None if known is None else round(known.creating, 2))
        history.target.append(None if known is None else int(known.target))
    return history
