"""The server's own time for each import: a simulator's record, or an approximation."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from pool.bench.measure import OwnTime, Sample, wait_for
from pool.clock import parse_time
from pool.cvat.upload import request_id
from pool.errors import PoolError

#: Seconds for an answer of a simulator.
TIMEOUT = 30.0


class SimulatorTimes:
    """A simulator's record of each import; it forgets none."""

    #: How the times are measured, for the report, and whether they are the server's own record.
    how = "the simulator's record, from the arrival of the data to the commit of the jobs"
    exact = True

    def __init__(self, url: str) -> None:
        self._url = url

    def note(self, _sample: Sample) -> None:
        """Do nothing."""

    def of(self, task_ids: Iterable[int]) -> dict[int, OwnTime]:
        """Return the times of those of the tasks for which they are known."""
        tasks = _stats(self._url)["tasks"]
        found = {task_id: tasks.get(str(task_id), {}) for task_id in task_ids}
        return {
            task_id: OwnTime(
                own_ms=times["received_to_committed_ms"],
                received_at=times["received_at"],
                committed_at=times["committed_at"],
            )
            for task_id, times in found.items()
            if times.get("received_to_committed_ms") is not None
        }


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
        self._own: dict[int, OwnTime] = {}

    def note(self, sample: Sample) -> None:
        """Read the dates of an import, right after its jobs were seen: CVAT forgets a successful
        request after 500 s. One that is gone, or does not end, is left out."""
        with suppress(PoolError):
            said = wait_for(lambda: self._ended(sample.task_id), "an import to say its dates")
            if "finished_date" in said:
                took = parse_time(said["finished_date"]) - parse_time(said["created_date"])
                imported = took.total_seconds() * 1000
                self._own[sample.task_id] = OwnTime(own_ms=sample.post_ms + imported)

    def of(self, task_ids: Iterable[int]) -> dict[int, OwnTime]:
        """Return the times of those of the tasks for which they are known."""
        return {task_id: self._own[task_id] for task_id in task_ids if task_id in self._own}

    def _ended(self, task_id: int) -> Any:
        """Return CVAT's answer, or None while the import has jobs but is about to say so."""
        _, answer = self._client.api_client.requests_api.retrieve(
            request_id(task_id), _parse_response=False, _check_status=False
        )
        # Read in any case, which frees the connection.
        data = answer.data
        if answer.status != 200:
            return {"gone": True}
        said = json.loads(data)
        return said if said.get("finished_date") else None


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
