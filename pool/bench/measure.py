"""What one flow of a bench is, and what is measured of it: its requests and its calls.

Times are milliseconds. *Ours* is what a caller waits, from the request to its job ids; *the
server's own* is from the arrival of the data until the transaction that holds the jobs commits,
which no client can undercut.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pool.errors import PoolError

#: Seconds to wait for anything at most, however slow the server, and between two looks.
PATIENCE = 120.0
LOOK = 0.02

#: Seconds of each call, by operation.
Calls = dict[str, list[float]]
T = TypeVar("T")


def wait_for(look: Callable[[], T], what: str, *, every: float = LOOK) -> T:
    """Look ``every`` so many seconds until there is something to see, and return it.

    :raises PoolError: there was nothing for :data:`PATIENCE` seconds.
    """
    deadline = time.monotonic() + PATIENCE
    while not (found := look()):
        if time.monotonic() > deadline:
            raise PoolError(f"waited {PATIENCE:g} s for {what}")
        time.sleep(every)
    return found


def fsync_ms(path: Path, data: bytes) -> float:
    """Return how many ms it takes to write some bytes to a new file and to wait for the disk."""
    began = time.perf_counter()
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    took = time.perf_counter() - began
    path.unlink()
    return took * 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnTime:
    """The server's own time for one task; the moments only where one clock is shared."""

    own_ms: float
    received_at: float | None = None
    committed_at: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One request. ``began`` and ``ended`` are seconds since the epoch, of this machine.

    ``post_ms`` is the duration of the call with the last of the data; ``steps_ms`` are the steps
    that can be timed on this side; ``hit`` is None where there is no pool, and ``server`` where the
    server's own time is not known.
    """

    task_id: int
    ours_ms: float
    began: float
    ended: float
    post_ms: float = 0.0
    hit: bool | None = None
    steps_ms: Mapping[str, float] = field(default_factory=dict)
    server: OwnTime | None = None


# --- Calls ----------------------------------------------------------------------------------------


class CallCounter:
    """Calls since they were last taken, by operation. Thread-safe."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._calls: Calls = {}

    def on_call(self, operation: str, seconds: float, _result: str = "") -> None:
        """Count a call, as a :class:`~pool.cvat.CvatClient` reports it."""
        with self._guard:
            self._calls.setdefault(operation, []).append(seconds)

    def take(self) -> Calls:
        """Return the calls since the last take."""
        with self._guard:
            taken, self._calls = self._calls, {}
            return taken

    def last_seconds(self, operation: str) -> float:
        """Return how long the last call of an operation took; 0 if there was none since a take."""
        with self._guard:
            return self._calls.get(operation, [0.0])[-1]


def count_calls(client: Any, counter: CallCounter) -> None:
    """Count all calls of a plain SDK client, uploads included."""
    rest = client.api_client.rest_client
    send = rest.request

    def counted(method: str, url: str, *arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return send(method, url, *arguments, **options)
        finally:
            counter.on_call(operation_of(method, url), time.perf_counter() - began)

    rest.request = counted


#: What the pool's own client calls the calls of the plain SDK.
_OPERATIONS = {
    "POST /api/tasks": "create_task",
    "GET /api/tasks/{id}": "task",
    "GET /api/jobs": "jobs",
    "GET /api/requests/{id}": "import_state",
}


def operation_of(method: str, url: str) -> str:
    """Return what the pool's own client would call this call."""
    path = urlsplit(url).path.rstrip("/")
    path = path[path.find("/api/") :]
    # A resumable upload has an address of its own below the task's.
    if re.search(r"/data(/|$)", path):
        return "upload"
    path = re.sub(r"/\d+(?=/|$)|(?<=/requests)/[^/]+$", "/{id}", path)
    call = f"{method.upper()} {path}"
    return _OPERATIONS.get(call, call)


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


# --- Flows ----------------------------------------------------------------------------------------


class Flow(ABC):
    """One way to job ids; ``counter`` counts the calls that it makes."""

    def __init__(self, counter: CallCounter) -> None:
        self.counter = counter

    def prepare(self) -> None:
        """Make ready what the request finds; not measured."""
        return

    @abstractmethod
    def run(self, number: int) -> list[Sample]:
        """Make one request, or several at once."""

    def settle(self) -> None:
        """Wait for what follows after the job ids are out; not measured, but its calls count."""
        return


@dataclass(slots=True)
class FlowResult:
    """The requests of one flow, and all calls that they made."""

    samples: list[Sample] = field(default_factory=list)
    calls: Calls = field(default_factory=dict)

    def add(
        self,
        flow: Flow,
        number: int,
        own_time: Callable[[int, float], OwnTime | None],
        *,
        rest: float,
    ) -> None:
        """Run the flow once, ``rest`` seconds after it is ready to. ``own_time`` is called with
        the id of a task and the milliseconds of the call with its data."""
        flow.prepare()
        time.sleep(rest)
        flow.counter.take()
        samples = flow.run(number)
        flow.settle()
        for operation, seconds in flow.counter.take().items():
            self.calls.setdefault(operation, []).extend(seconds)
        for each in samples:
            self.samples.append(replace(each, server=own_time(each.task_id, each.post_ms)))


def interleave(counts: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """Yield flow and number of each run: rounds of one of each, of which each is run so often.

    A flow with fewer runs than the others is spread evenly, so that a drift of the machine
    affects all alike.
    """
    rounds = max(counts.values(), default=0)
    for number in range(rounds):
        for name, count in counts.items():
            if (number + 1) * count // rounds > number * count // rounds:
                yield name, number
