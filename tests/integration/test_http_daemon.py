"""The API of a daemon that runs as a process of its own, until it is told to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from support.api import Api, waiting
from support.commands import PATIENCE, Running, running

from pool.simulator import SimulatorServer
from pool.simulator.faults import Hang

TOKEN = "a-token"


@contextmanager
def daemon(config_path: Path, simulator: SimulatorServer) -> Iterator[tuple[Running, Api]]:
    with (
        running(
            "run",
            cwd=config_path.parent,
            CVAT_ACCESS_TOKEN=simulator.access_token,
            POOL_API_TOKEN=f"{TOKEN}, another",
        ) as process,
        Api(process.url, token=TOKEN) as api,
    ):
        yield process, api


def test_from_files_to_jobs(config_path: Path, simulator: SimulatorServer, image: bytes) -> None:
    with daemon(config_path, simulator) as (process, api):
        answer = api.submit([("a.jpg", image)], wait=20, name="over HTTP")
        assert (answer.status, answer.json["state"]) == (201, "ready")
        lease = api.lease(timeout=20)
        assert lease.status == 201
        assert api.delete(lease.headers["location"]).status == 204
        assert Api(api.url).get("/v1/templates").status == 401
        assert process.stop() == 0
        assert TOKEN not in "\n".join(process.lines)


def test_nothing_that_was_accepted_is_lost(
    config_path: Path, simulator: SimulatorServer, image: bytes
) -> None:
    """A stop in the middle: callers are answered, and the next daemon brings it to its end."""
    hang = simulator.faults.add(Hang("data:post"))
    try:
        with daemon(config_path, simulator) as (process, api):
            accepted = api.submit([("a.jpg", image)], key="monday")
            assert accepted.status == 202
            place = accepted.headers["location"]
            with ThreadPoolExecutor(1) as threads:
                poll = threads.submit(api.get, place, headers=waiting(60))
                threading.Event().wait(0.2)
                process.process.send_signal(signal.SIGTERM)
                seen = poll.result(PATIENCE)
            assert seen.status == 200
            assert seen.json["state"] in ("queued", "uploading")
            hang.remove()
            assert process.process.wait(PATIENCE) == 0
    finally:
        hang.remove()
    with daemon(config_path, simulator) as (process, api):
        again = api.submit([("a.jpg", image)], key="monday", wait=20)
        assert again.json["id"] == accepted.json["id"]
        assert (again.status, again.json["state"]) == (201, "ready")
        assert process.stop() == 0
