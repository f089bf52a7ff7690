"""The server's own time for each import, from its side where it says so, else approximated."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Protocol

from pool.bench.measure import OwnTime, Sample

#: Seconds for an answer to a question about the server's own times.
TIMEOUT = 30.0
#: Seconds between two looks at an import that has made its jobs and is about to say so, and
#: after how many it is left out.
LOOK = 0.02
PATIENCE = 10.0


class ServerTimes(Protocol):
    """Tells the server's own time of imports."""

    #: How it is known: one sentence for the report.
    how: str
    #: Whether it is the server's word, rather than an approximation.
    exact: bool

    def note(self, sample: Sample) -> None:
        """A request is done; what the server soon forgets is asked now."""

    def of(self, task_ids: Iterable[int]) -> dict[int, OwnTime]:
        """The server's own times of those of the tasks of which they are known."""


class SimulatorTimes:
    """A simulator keeps the moments of each import."""

    how = "the simulator's record, from the arrival of the data to the commit of the jobs"
    exact = True

    def __init__(self, url: str) -> None:
        self._url = url

    def note(self, sample: Sample) -> None:
        """Nothing to do: it does not forget."""

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
    """A CVAT server says when the import's request was created, near the end of the POST, and
    when it was finished, a few milliseconds after the commit; the POST itself is timed here.

    So it includes one way through the network, and needs no clock in common. A successful
    request is forgotten after 500 s (CVAT.md, fact 4), so each is asked right afterwards.
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
            created, finished = moment(said.get("created_date")), moment(said.get("finished_date"))
            if created is not None and finished is not None:
                imported = (finished - created) * 1000
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
        # Read in any case, so that the connection is free again.
        data = answer.data
        if answer.status != 200:
            return None
        said = json.loads(data)
        return said if isinstance(said, dict) else None


def moment(text: str | None) -> float | None:
    """Seconds since the epoch of one of CVAT's dates."""
    if text is None:
        return None
    there = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return (there if there.tzinfo else there.replace(tzinfo=UTC)).timestamp()


def is_simulator(url: str) -> bool:
    """Whether a simulator answers there; a real server knows no such page."""
    try:
        return "tasks" in simulator_stats(url)
    except (OSError, ValueError, TypeError):
        return False


def simulator_stats(url: str) -> dict[str, Any]:
    """What a simulator saw of its callers.

    :raises OSError: it cannot be reached.
    :raises ValueError: it is no simulator.
    """
    request = urllib.request.Request(f"{url.rstrip('/')}/simulator/stats")
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        said = json.load(answer)
    if not isinstance(said, dict):
        raise ValueError("no simulator")  # noqa: TRY004
    return said
