"""The pool with webhooks: in a project of its own, which can have one, with a daemon of its own.

CVAT has webhooks for projects and organizations only, and an organization's would serve the
other flows as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pool.bench import processes
from pool.bench.calls import LOGGING, Calls, logged_calls
from pool.bench.configuration import sized, write_configuration
from pool.bench.measure import Sample
from pool.bench.pool_flows import Hits
from pool.bench.supply import Supply, open_supply
from pool.config.settings import CvatSettings, Template
from pool.errors import PoolError

HOOKED = "bench-webhooks"


class HookedHits(Hits):
    """One request at a time, whose end CVAT tells the daemon. The calls that the daemon makes on
    the occasion count, too."""

    def __init__(self, supply: Supply, pictures: Sequence[bytes], *, mark: str) -> None:
        super().__init__(supply, pictures, mark=mark, template=HOOKED)
        self._before: Calls = {}

    def run(self, number: int) -> list[Sample]:
        self._before = logged_calls(self._supply.daemon.log)
        return super().run(number)

    def settle(self) -> None:
        super().settle()
        now = logged_calls(self._supply.daemon.log)
        for operation, each in now.items():
            for seconds in each[len(self._before.get(operation, [])) :]:
                self.counter.on_call(operation, seconds, "ok")


@contextmanager
def open_hooked(
    folder: Path,
    server: CvatSettings,
    template: Template,
    environment: dict[str, str],
    client: Any,
    pictures: Sequence[bytes],
    *,
    tasks: int,
    mark: str,
) -> Iterator[HookedHits | str]:
    """The flow, ready to run, or why there can be none. ``client`` is a plain SDK client, and
    ``folder`` a new one; the project is called ``mark``, by which it is found and deleted.

    :raises PoolError: the daemon does not come up, or the server does not create tasks.
    """
    labels = [dict(label) for label in template.labels]
    project = client.projects.create(spec={"name": mark, "labels": labels})
    there = replace(template, labels=(), project=project.id)
    config = write_configuration(folder, server, [sized(there, name=HOOKED, tasks=tasks)])
    with open_supply(config, environment, log_options=LOGGING) as supply:
        reason = _install(config, supply.daemon.listening_at(), environment)
        if reason:
            yield reason
            return
        supply.fill(HOOKED, count=tasks)
        yield HookedHits(supply, pictures, mark=mark)


def _install(config: Path, url: str, environment: dict[str, str]) -> str:
    """Install the webhook as anybody would; gives why it is of no use, "" when it works."""
    said, complaint = processes.command(
        "webhook", "install", "--config", config, "--url", url, "--json", environment=environment
    )
    try:
        (report,) = json.loads(said)
    except ValueError:
        raise PoolError(f"the webhook was not installed: {complaint}") from None
    if report["reachable"]:
        return ""
    return str(report["error"] or report["delivery"] or "the webhook was not tried")
