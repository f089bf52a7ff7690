"""One who asks for tasks of a template that is all right, while CVAT fails for another."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from support.pictures import picture

from faults.actors import TERM
from pool import TaskPool
from pool.client import RemotePool
from pool.config.loader import load
from pool.cvat import connect
from pool.errors import PoolUnreachable

#: Seconds within which a template is served, whatever becomes of another's calls.
SOON = 5.0
#: Seconds that the daemons get beforehand to recover from the weather before, and between looks.
RECOVERY = 20.0
LOOK = 0.2
REQUESTS = 6


class Bystander:
    """Calls the daemon and, as a library, CVAT. It is never killed."""

    def __init__(self, config: Any, daemon: str, server: str, token: str) -> None:
        self._config, self._daemon = config, daemon
        self._server, self._token = server, token
        self._number = 0

    @contextmanager
    def ready(self) -> Iterator[Sequence[Any] | None]:
        """The pools to ask, once a daemon serves; None when none does in time."""
        settings = load(self._config)
        # Past the proxy: what it does to a connection is other weather.
        straight = replace(settings.cvat, url=self._server)
        cvat = connect(straight, {"CVAT_ACCESS_TOKEN": self._token})
        try:
            remote = RemotePool(self._daemon, patience=2.0)
            with remote, TaskPool(settings, cvat=cvat) as own:
                yield (remote, own) if self._is_served(remote) else None
        finally:
            cvat.close()

    def poison(self, pools: Sequence[Any]) -> None:
        """Two requests that cannot be served as long as the spell lasts."""
        for pool in pools:
            self._submit(pool, "poisoned")

    def times(self, pools: Sequence[Any]) -> list[float]:
        """How many seconds it took from each request to its job ids."""
        took = []
        for number in range(REQUESTS):
            began = time.monotonic()
            self._submit(pools[number % 2], "scenes").jobs(timeout=4 * SOON)
            took.append(time.monotonic() - began)
        return took

    def _submit(self, pool: Any, template: str) -> Any:
        self._number += 1
        file = f"bystander_{self._number}.png"
        return pool.submit(template, [(file, picture(file))])

    def _is_served(self, remote: RemotePool) -> bool:
        """Whether a daemon serves, and does so for a term: another could take over from it."""
        end, began, before = time.monotonic() + RECOVERY, time.monotonic(), ""
        while time.monotonic() < end:
            maintainer = _maintainer(remote)
            if not maintainer or maintainer != before:
                began, before = time.monotonic(), maintainer
            elif time.monotonic() - began > TERM:
                return True
            time.sleep(LOOK)
        return False


def _maintainer(remote: RemotePool) -> str:
    """Return the daemon that serves, with nothing held; "" where there is none."""
    with suppress(PoolUnreachable):
        status = remote.status()
        if not any(row.held_since for row in status.templates):
            return status.maintainer or ""
    return ""
