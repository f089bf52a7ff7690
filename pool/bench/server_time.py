"""The server's own time for each import: a simulator's record, or an approximation."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import Any

from pool.bench.measure import OwnTime, wait_for
from pool.clock import parse_time
from pool.cvat.upload import request_id
from pool.errors import PoolError

#: Seconds for an answer of a simulator.
TIMEOUT = 30.0
#: From when until when, in seconds since the epoch.
Span = tuple[float, float]


def busy_share(spans: Iterable[Span], since: float, until: float) -> float:
    """Return the share of a time in which at least one of some spans was."""
    busy, end = 0.0, since
    for began, ended in sorted(spans):
        busy += max(0.0, min(ended, until) - max(began, end))
        end = max(end, ended)
    return busy / (until - since)


class SimulatorTimes:
    """A simulator's record of each import; it forgets none.

    ``how`` says how the times are measured, for the report; ``exact``, whether they are the
    server's own record.
    """

    how = "the simulator's record, from the arrival of the data to the commit of the jobs"
    exact = True

    def __init__(self, url: str) -> None:
        self._url = url

    def of(self, task_id: int, _post_ms: float = 0.0) -> OwnTime | None:
        """Return the time of a task's import; None when there is no record of it."""
        times = _stats(self._url)["tasks"].get(str(task_id), {})
        if times.get("received_to_committed_ms") is None:
            return None
        return OwnTime(
            own_ms=times["received_to_committed_ms"],
            received_at=times["received_at"],
            committed_at=times["committed_at"],
        )

    def spans(self, task_ids: Collection[int]) -> list[Span]:
        """Return when a worker was busy with the imports of these tasks."""
        times = _stats(self._url)["tasks"]
        found = (times[str(task_id)] for task_id in task_ids if str(task_id) in times)
        return [
            (each["started_at"], each["finished_at"])
            for each in found
            if each["started_at"] and each["finished_at"]
        ]


class DatedTimes:
    """The POST as timed here, plus the dates of the import's request.

    CVAT creates it near the end of the POST, and finishes it a few milliseconds after the commit.
    So the time includes one way through the network, and needs no common clock. ``client`` is a
    plain client of the SDK.
    """

    how = (
        "approximated: the data's POST as timed here, plus the import request's own dates "
        "from created to finished"
    )
    exact = False

    def __init__(self, client: Any) -> None:
        self._client = client

    def of(self, task_id: int, post_ms: float) -> OwnTime | None:
        """Return the time of a task's import, whose jobs were just seen: CVAT forgets a successful
        request after 500 s. None when it is gone, or does not end."""
        with suppress(PoolError):
            request = wait_for(lambda: self._ended(task_id), "an import to say its dates")
            if "finished_date" in request:
                took = parse_time(request["finished_date"]) - parse_time(request["created_date"])
                return OwnTime(own_ms=post_ms + took.total_seconds() * 1000)
        return None

    def spans(self, task_ids: Collection[int]) -> list[Span]:
        """As :meth:`SimulatorTimes.spans`, of the last 500 s."""
        found = map(self._ended, task_ids)
        return [
            (
                parse_time(each["started_date"]).timestamp(),
                parse_time(each["finished_date"]).timestamp(),
            )
            for each in found
            if each and each.get("started_date")
        ]

    def _ended(self, task_id: int) -> Any:
        """Return CVAT's answer, or None while the import has jobs but is about to say so."""
        _, answer = self._client.api_client.requests_api.retrieve(
            request_id(task_id), _parse_response=False, _check_status=False
        )
        # Read in any case, which frees the connection.
        data = answer.data
        if answer.status != 200:
            return {"gone": True}
        request = json.loads(data)
        return request if request.get("finished_date") else None


ServerTimes = SimulatorTimes | DatedTimes


def is_simulator(url: str) -> bool:
    """Return whether a simulator answers there; a real server has no such page."""
    try:
        return "tasks" in _stats(url)
    except (OSError, ValueError, TypeError):
        return False


def _stats(url: str) -> Any:
    with urllib.request.urlopen(f"{url.rstrip('/')}/simulator/stats", timeout=TIMEOUT) as answer:
        return json.load(answer)
