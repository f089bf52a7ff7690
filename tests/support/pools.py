"""A daemon on the simulator for the callers of a test module, and the three kinds of caller."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from pool import AsyncRemotePool, RemotePool, TaskPool
from pool.config.loader import load
from pool.daemon import Daemon
from pool.simulator import SimulatorServer
from support.api import in_thread
from support.blocking import Blocking, EventLoop
from support.waiting import wait_until

HERE = "TaskPool"
REMOTE = ("RemotePool", "AsyncRemotePool")


def write_config(
    folder: Path,
    simulator: SimulatorServer,
    *,
    port: int = 0,
    store: str = "sqlite:///pool.db",
) -> Path:
    """Two templates: one whose pool is kept full, and one that may not create on demand."""
    path = folder / "config.toml"
    path.write_text(
        f"""[cvat]
url = "{simulator.url}"

[store]
url = "{store}"
spool = "pool.db.spool"

[daemon]
port = {port}

[defaults]
min_size = 3
max_wait = "5s"
timeout = "20s"

[templates.scenes]
labels = [{{ name = "car" }}]

[templates.strict]
labels = []
pool = {{ min_size = 0, on_empty = "fail" }}
"""
    )
    return path


@contextmanager
def serving(path: Path, simulator: SimulatorServer) -> Iterator[Daemon]:
    """A daemon on a thread of this process. Of the template "strict" nothing is ever warm."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("CVAT_ACCESS_TOKEN", simulator.access_token)
        with in_thread(Daemon(load(path))) as daemon:
            # Else it would be filled as soon as somebody has asked for it.
            daemon.process.store.pause("strict", now=daemon.process.clock.now())
            yield daemon


@contextmanager
def opened(kind: str, daemon: Daemon, *, url: str | None = None, **options: Any) -> Iterator[Any]:
    """A caller's pool beside a daemon, used in the same way whatever its kind; ``url`` leads to
    the daemon by another way."""
    if kind == HERE:
        with TaskPool(daemon.settings, cvat=daemon.process.cvat()) as pool:
            yield pool
    elif kind == "RemotePool":
        with RemotePool(url or daemon.url, **options) as remote:
            yield remote
    else:
        with EventLoop() as loop:
            blocking = Blocking(loop, AsyncRemotePool(url or daemon.url, **options))
            yield blocking
            blocking.close()


def level(caller: Any, name: str = "scenes") -> Any:
    """A template's status."""
    return next(each for each in caller.status().templates if each.name == name)


def listed(
    caller: Any, states: Sequence[str] = (), *, count: int | None = None, **which: Any
) -> list[Any]:
    """The requests of a list, the first ``count`` if that is given."""
    found = caller.requests(states, **which)
    return caller.first(found, count) if isinstance(caller, Blocking) else [*islice(found, count)]


def hand_outs(caller: Any) -> int:
    """How many tasks were handed out so far."""
    now = level(caller)
    return int(now.hits + now.waits + now.colds)


def tasks_with(simulator: SimulatorServer, name: str) -> list[int]:
    """The tasks on the server that have a frame of a name."""
    return [
        task.id
        for task in list(simulator.state.tasks.values())
        if task.data is not None and any(frame.name == name for frame in task.data.frames)
    ]


def wait_for(daemon: Daemon, condition: Callable[[], bool]) -> None:
    """Until a condition holds that the daemon's work makes true."""
    wait_until(daemon.process.store, condition)
