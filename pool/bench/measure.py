"""What a bench measures: requests, the calls that they make, and their statistics.

Times are milliseconds. *Ours* is what a caller waits, from the request to its job ids; *the
server's own* is from the arrival of the data until the transaction that holds the jobs commits,
which no client can undercut.
"""

from __future__ import annotations

import json
import re
import statistics
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

#: The options with which a process logs its calls, for :func:`logged_calls`.
LOGGING = ("--log-level", "debug", "--log-json")
#: The operations that ask whether the jobs are there.
POLLS = ("jobs", "import_state")
#: What the pool's own client calls the calls of the plain SDK, by method and path.
_OPERATIONS = {
    ("POST", "/api/tasks"): "create_task",
    ("GET", "/api/tasks/{id}"): "task",
    ("POST", "/api/tasks/{id}/data"): "upload",
    ("GET", "/api/jobs"): "jobs",
    ("GET", "/api/requests/{id}"): "import_state",
}

#: Seconds of each call, by operation.
Calls = dict[str, list[float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One request. ``began`` and ``ended`` are seconds since the epoch, of this machine.

    ``post_ms`` is the duration of the call with the last of the data; ``steps_ms`` are the steps
    that can be timed on this side.
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
        """Add what one run measured."""
        self.samples.extend(samples)
        for operation, seconds in calls.items():
            self.calls.setdefault(operation, []).extend(seconds)


# --- Statistics ----------------------------------------------------------------------------------


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
    """Return the value below which ``share`` of the values lie, interpolated between neighbours.

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
    """Return the spread of some values; None of none."""
    if not values:
        return None
    return Spread(
        median=statistics.median(values),
        p90=quantile(values, 0.9),
        least=min(values),
        most=max(values),
    )


def ratios(samples: Sequence[Sample], own: Mapping[int, OwnTime]) -> Ratios | None:
    """Compare each request with the server's own time for that very request.

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
    """Return the median milliseconds of each step of a request.

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


def interleave(counts: Mapping[str, int]) -> Iterator[tuple[int, list[str]]]:
    """Yield the order in which to run flows, of which each is run so often: rounds of one of each.

    A flow with fewer runs than the others is spread evenly, so that a drift of the machine
    meets all alike.
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


# --- Calls ---------------------------------------------------------------------------------------


class CallCounter:
    """Calls since they were last taken, by operation. Thread-safe."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._calls: Calls = {}

    def on_call(self, operation: str, seconds: float, _result: str) -> None:
        """Count a call; for a :class:`~pool.cvat.CvatClient` to report to."""
        with self._guard:
            self._calls.setdefault(operation, []).append(seconds)

    def take(self) -> Calls:
        """Return the calls since the last take."""
        with self._guard:
            taken, self._calls = self._calls, {}
            return taken

    def last_seconds(self, operation: str) -> float | None:
        """Return how long the last call of an operation took, if it was not taken yet."""
        with self._guard:
            return next(reversed(self._calls.get(operation, [])), None)


def logged_calls(log: Path) -> Calls:
    """Return the calls in the log of a process that logs them, as JSON."""
    calls: Calls = {}
    for line in log.read_text().splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue  # the last line may be half written
        if isinstance(event, dict) and event.get("event") == "cvat call":
            calls.setdefault(str(event["operation"]), []).append(event["ms"] / 1000)
    return calls


def count_calls(client: Any, counter: CallCounter) -> None:
    """Have all calls of a plain SDK client counted, uploads included."""
    rest = client.api_client.rest_client
    send = rest.request

    def counted(method: str, url: str, *arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return send(method, url, *arguments, **options)
        finally:
            counter.on_call(operation_of(method, url), time.perf_counter() - began, "")

    rest.request = counted


def operation_of(method: str, url: str) -> str:
    """Return what the pool's own client would call this call."""
    path = urlsplit(url).path.rstrip("/")
    path = path[path.find("/api/") :]
    path = re.sub(r"/\d+(?=/|$)|(?<=/requests)/[^/]+$", "/{id}", path)
    # A resumable upload's own address, below the task's.
    path = re.sub(r"(/data)/.+$", r"\1", path)
    if path.endswith("/data"):
        return "upload"
    return _OPERATIONS.get((method.upper(), path), f"{method.upper()} {path}")
