"""A server that goes away under a running daemon, with real connections and real processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.api import in_thread
from support.commands import cvat_pool, environment
from support.stepped import QUEUED, READY, entries
from support.waiting import PATIENCE, wait_until

from pool import TaskPool
from pool.config.loader import load
from pool.daemon import Daemon
from pool.simulator import SimulatorServer, SimulatorSettings, Timings

CALLER = """
import os, sys
from pool import TaskPool
request = TaskPool.from_config(sys.argv[1]).submit("scenes", [sys.argv[2]], idempotency_key="k")
print(request.id, request.state.value, flush=True)
os._exit(9)
"""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatorServer]:
    """One of our own, for others would miss it."""
    with SimulatorServer(SimulatorSettings(timings=Timings.zero())) as server:
        monkeypatch.setenv("CVAT_ACCESS_TOKEN", server.access_token)
        yield server


@pytest.fixture
def config(server: SimulatorServer, tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(
        f"""[cvat]
url = "{server.url}"
timeout = "5s"

[daemon]
port = 0

[templates.scenes]
labels = [{{ name = "car" }}]
pool = {{ min_size = 2, max_wait = "0.2s" }}
import = {{ timeout = "20s" }}
"""
    )
    return path


@pytest.fixture
def pool(config: Path) -> Iterator[TaskPool]:
    with TaskPool.from_config(config) as pool:
        yield pool


def fill(daemon: Daemon, pool: TaskPool) -> None:
    """Wait until the pool is full."""
    wait_until(daemon.process.store, lambda: pool.status().templates[0].warm >= 2)


def test_requests_outlive_the_server_their_callers_and_the_daemon(
    server: SimulatorServer, config: Path, pool: TaskPool, image_path: Path
) -> None:
    with in_thread(Daemon(load(config))) as daemon:
        fill(daemon, pool)
        server.actions.down()
        mine = [pool.submit("scenes", [("a.jpg", image_path.read_bytes())]) for _ in range(3)]
        assert {request.state for request in mine} == {QUEUED}
        assert pool.acquire("scenes").outcome.value == "hit", "all the while"
        called = subprocess.run(
            [sys.executable, "-c", CALLER, config, image_path],
            env=environment({"CVAT_ACCESS_TOKEN": server.access_token}),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert called.returncode == 9, called.stderr
        theirs, state = called.stdout.split()
        assert state == "queued"
        assert pool.status().templates[0].queued == 4

    assert {pool.request(theirs).state, *(request.state for request in mine)} == {QUEUED}
    server.actions.up()
    with in_thread(Daemon(load(config))) as daemon:
        everyone = [*mine, pool.request(theirs)]
        for request in everyone:
            (job,) = request.jobs(timeout=PATIENCE)
            assert (job.start_frame, job.stop_frame) == (0, 0)
        again = pool.submit("scenes", [image_path], idempotency_key="k")
        assert (again.id, again.state) == (theirs, READY)
        assert len({request.task_id for request in everyone}) == 4
        fill(daemon, pool)
    assert entries(pool.process) == []
    assert pool.status().hold_reason == ""


def test_the_command_waits_with_a_daemon_and_says_why_without_one(
    server: SimulatorServer, config: Path, pool: TaskPool, image_path: Path
) -> None:
    with in_thread(Daemon(load(config))) as daemon:
        fill(daemon, pool)
        server.actions.down()
        waiting = cvat_pool(
            *("get", "scenes", image_path, "-c", config, "--timeout", "1s"),
            cwd=config.parent,
            CVAT_ACCESS_TOKEN=server.access_token,
        )
        assert waiting.returncode == 3, waiting.stderr
    failed = cvat_pool(
        *("get", "scenes", image_path, "-c", config, "--timeout", "1s"),
        cwd=config.parent,
        CVAT_ACCESS_TOKEN=server.access_token,
    )
    assert (failed.returncode, failed.stdout) == (1, "")
    (line,) = failed.stderr.splitlines()
    assert line.startswith("cvat-pool: CVAT cannot be reached: ")
