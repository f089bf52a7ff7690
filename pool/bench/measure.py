"""What a bench measures, and its statistics: pure, so that they can be tested by themselves.

Times are milliseconds. *Ours* is what a caller waits, from the request to its job ids; *the
server's own* is from the arrival of the data until the transaction that holds the jobs commits,
which no client can undercut.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pool.bench.calls import Calls
from pool.tracking.poll_schedule import FIRST_POLL_UNSEEN, pause_after


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One request. ``began`` and ``ended`` are seconds since the epoch, of this machine.

    ``post_ms`` is how long the call took that brought the last of the data; ``steps_ms`` where
    the time went, as far as this side knows.
    """

    task_id: int
    ours_ms: float
    began: float
    ended: float
    post_ms: float = 0.0
    hit: bool | None = None
    steps_ms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnTime:
    """The server's own time for one task; the moments only where one clock is shared."""

    own_ms: float
    received_at: float | None = None
    committed_at: float | None = None


@dataclass(slots=True)
class FlowResult:
    """The requests of one flow, and all calls that they made; or why there are none."""

    name: str
    samples: list[Sample] = field(default_factory=list)
    calls: Calls = field(default_factory=dict)
    not_available: str = ""

    @property
    def ours(self) -> list[float]:
        """What each caller waited, in milliseconds."""
        return [sample.ours_ms for sample in self.samples]

    def add(self, samples: Sequence[Sample], calls: Calls) -> None:
        """What one run came to."""
        self.samples.extend(samples)
        for operation, seconds in calls.items():
            self.calls.setdefault(operation, []).extend(seconds)

    @property
    def misses(self) -> int:
        """How many requests found no warm task."""
        return sum(sample.hit is False for sample in self.samples)


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """A median and a 90th percentile, and the range."""

    median: float
    p90: float
    least: float
    most: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratios:
    """Ours over the server's own, request by request, and of the two medians."""

    median: float
    p90: float
    of_medians: float


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` of the values lie, interpolated between neighbours.

    :raises ValueError: there are no values.
    """
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def spread(values: Sequence[float]) -> Spread | None:
    """The spread of some values; None of none."""
    if not values:
        return None
    return Spread(
        median=statistics.median(values),
        p90=quantile(values, 0.9),
        least=min(values),
        most=max(values),
    )


def ratios(samples: Sequence[Sample], own: Mapping[int, OwnTime]) -> Ratios | None:
    """Each request against the server's own time for that very request.

    Imports vary, so a ratio of two medians hides what a caller of one request sees; both are
    given. None when the server's own time is not known of any.
    """
    pairs = [
        (sample.ours_ms, own[sample.task_id].own_ms)
        for sample in samples
        if sample.task_id in own and own[sample.task_id].own_ms > 0
    ]
    if not pairs:
        return None
    each = [ours / server for ours, server in pairs]
    return Ratios(
        median=statistics.median(each),
        p90=quantile(each, 0.9),
        of_medians=statistics.median(ours for ours, _ in pairs)
        / statistics.median(server for _, server in pairs),
    )


def steps(samples: Sequence[Sample], own: Mapping[int, OwnTime]) -> dict[str, float]:
    """The median milliseconds of each step of a request.

    Where this side and the server share a clock, also the three parts of the whole: before the
    data arrived, the server's own, and after the commit.
    """
    found: dict[str, list[float]] = {}
    for sample in samples:
        for step, milliseconds in sample.steps_ms.items():
            found.setdefault(step, []).append(milliseconds)
        there = own.get(sample.task_id)
        if there is None or there.received_at is None or there.committed_at is None:
            continue
        found.setdefault("before_server", []).append((there.received_at - sample.began) * 1000)
        found.setdefault("server", []).append(there.own_ms)
        found.setdefault("after_server", []).append((sample.ended - there.committed_at) * 1000)
    return {step: statistics.median(values) for step, values in found.items()}


def lone_polls(waited: float, *, first: float = FIRST_POLL_UNSEEN, round_trip: float) -> int:
    """How many polls a poller of its own would have made for one import, at the pace of the pool.

    Its first poll goes out after ``first`` seconds, each next one when the one before was
    answered, which takes ``round_trip``, and the pool's own pause has passed, and the last one
    after ``waited`` seconds or later. Round trips are those of a server that is not busy, for
    which such a poller asks more often; but its polls would make the server busy, and so the
    others slower.
    """
    rng = random.Random(0)
    polls, asked = 1, first
    while asked < waited:
        answered = asked + round_trip
        asked = answered + pause_after(answered, rng)
        polls += 1
    return polls


def interleave(counts: Mapping[str, int]) -> Iterator[tuple[int, list[str]]]:
    """In which order to run flows, of which each is run so often: rounds of one of each.

    A flow with fewer runs than the others is spread evenly, so that a drift of the machine
    meets all alike. Yields each round's number and its flows.
    """
    rounds = max(counts.values(), default=0)
    for number in range(rounds):
        yield (
            number,
            [
                name
                for name, count in counts.items()
                if (number + 1) * count // rounds > number * count // rounds
            ],
        )
