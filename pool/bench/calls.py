"""Counts the calls that this side makes to CVAT, by operation; works with any server."""

from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

#: How a process is told to log its calls, for :func:`logged_calls`.
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


class CallCounter:
    """Calls since they were last taken, by operation. Thread-safe."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._calls: Calls = {}

    def on_call(self, operation: str, seconds: float, _result: str) -> None:
        """What a :class:`~pool.cvat.CvatClient` reports to."""
        with self._guard:
            self._calls.setdefault(operation, []).append(seconds)

    def take(self) -> Calls:
        """The calls since the last take."""
        with self._guard:
            taken, self._calls = self._calls, {}
            return taken

    def last_seconds(self, operation: str) -> float | None:
        """How long the last call of an operation took, if it was not taken yet."""
        with self._guard:
            return next(reversed(self._calls.get(operation, [])), None)


def total(calls: Calls) -> int:
    """How many calls these are."""
    return sum(map(len, calls.values()))


def polls(calls: Calls) -> int:
    """How many of the calls asked whether the jobs are there."""
    return sum(len(calls.get(operation, ())) for operation in POLLS)


def logged_calls(log: Path) -> Calls:
    """The calls that a process tells of which logs them, as JSON."""
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
    """What the pool's own client would call this call."""
    path = urlsplit(url).path.rstrip("/")
    path = path[path.find("/api/") :]
    path = re.sub(r"/\d+(?=/|$)|(?<=/requests)/[^/]+$", "/{id}", path)
    # A resumable upload's own address, below the task's.
    path = re.sub(r"(/data)/.+$", r"\1", path)
    if path.endswith("/data"):
        return "upload"
    return _OPERATIONS.get((method.upper(), path), f"{method.upper()} {path}")
