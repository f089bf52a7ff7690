"""The server's own time for each import: a simulator's record, or an approximation."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterable
from typing import Any, Protocol

from pool.bench.measure import OwnTime, Sample
from pool.clock import parse_time

#: Seconds for an answer to a question about the server's own times.
TIMEOUT = 30.0
#: Seconds between two looks at an import that has made its jobs and is about to say so, and
#: after how many it is left out.
LOOK = 0.02
PATIENCE = 10.0


class ServerTimes(Protocol):
    """The server's own times of imports."""

    #: How they are measured, for the report.
    how: str
    #: Whether they are the server's own record, rather than an approximation.
    exact: bool

    def note(self, sample: Sample) -> None:
        """Read what the server soon forgets; called when a request is done."""

    def of(self, task_ids: Iterable[int]) -> dict[int, OwnTime]:
        """Return the times of those of the tasks for which they are known."""


class SimulatorTimes:
    """A simulator's record of each import."""

    how = "the simulator's record, from the arrival of the data to the commit of the jobs"
    exact = True

    def __init__(self, url: str) -> None:
        self._url = url

    def note(self, sample: Sample) -> None:
        """Do nothing: a simulator does not forget."""

    def of(self, task_ids: Iterable[int]) -> dict[int, OwnTime]:
        tasks = simulator_stats(self._url)["tasks"]
        found = {}
        for task_id in task_ids:
            times = tasks.get(str(task_id), {})
            own = times.get("received_to_committed_ms")
            if own is not None:
                found[task_id] = OwnTime(
                    own_ms=own,
                    received_at=times["received_at"],
                    committed_at=times["committed_at"],
                )
        return found


class DatedTimes:
    """The POST as timed here, plus the dates of the import's request.

    CVAT creates it near the end of the POST, and finishes it a few milliseconds after the commit.
    So the time includes one way through the network, and needs no common clock. CVAT forgets a
    successful request after 500 s, so each is read right afterwards.
    """

    how = (
        "approximated: the data's POST as timed here, plus the import request's own dates "
        "from created to finished"
    )
    exact = False

    def __init__(self, client: Any) -> None:
        self._client = client
        self._own: dict[int, OwnTime] = {}

    def note(self, sample: Sample) -> None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            said = self._request(sample.task_id)
            if said is None:
                return
            created, finished = said.get("created_date"), said.get("finished_date")
            if created and finished:
                took = parse_time(finished) - parse_time(created)
                imported = took.total_seconds() * 1000
                self._own[sample.task_id] = OwnTime(own_ms=sample.post_ms + imported)
                return
            time.sleep(LOOK)

    def of(self, task_ids: Iterable[int]) -> dict[int, OwnTime]:
        return {task_id: self._own[task_id] for task_id in task_ids if task_id in self._own}

    def _request(self, task_id: int) -> dict[str, Any] | None:
        _, answer = self._client.api_client.requests_api.retrieve(
            f"action=create&target=task&target_id={task_id}",
            _parse_response=False,
            _check_status=False,
        )
        # Read in any case, which frees the connection.
        data = answer.data
        if answer.status != 200:
            return None
        said = json.loads(data)
        return said if isinstance(said, dict) else None


def is_simulator(url: str) -> bool:
    """Return whether a simulator answers there; a real server has no such page."""
    try:
        return "tasks" in simulator_stats(url)
    except (OSError, ValueError, TypeError):
        return False


def simulator_stats(url: str) -> dict[str, Any]:
    """Return a simulator's statistics.

    :raises OSError: it cannot be reached.
    :raises ValueError: it is no simulator.
    """
    request = urllib.request.Request(f"{url.rstrip('/')}/simulator/stats")
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        said = json.load(answer)
    if not isinstance(said, dict):
        raise ValueError("no simulator")  # noqa: TRY004
    return said
