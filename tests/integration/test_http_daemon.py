"""The API of a daemon that runs as a process of its own, until it is told to stop."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

from support.api import Api, SlowUpload, waiting
from support.commands import Running, running
from support.waiting import PATIENCE, poll_until

from pool.bench.pictures import sample_image
from pool.simulator import SimulatorServer
from pool.simulator.faults import Hang

TOKEN = "a-token"
#: More than the daemon gathers before it writes to the spool, and what is sent of it at first.
LARGE, PIECE = sample_image(1, size=5_000) + bytes(900_000), 600_000


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
            with closing(HTTPConnection(urlsplit(api.url).netloc, timeout=PATIENCE)) as poll:
                poll.request("GET", place, headers={**api.headers, **waiting(60)})
                # A connection that came later is answered, so that the poll has begun.
                assert Api(api.url).get("/healthz").status == 200
                process.process.send_signal(signal.SIGTERM)
                seen = poll.getresponse()
                assert seen.status == 200
                assert json.loads(seen.read())["state"] in ("queued", "uploading")
            hang.remove()
            assert process.process.wait(PATIENCE) == 0
    finally:
        hang.remove()
    with daemon(config_path, simulator) as (process, api):
        again = api.submit([("a.jpg", image)], key="monday", wait=20)
        assert again.json["id"] == accepted.json["id"]
        assert (again.status, again.json["state"]) == (201, "ready")
        assert process.stop() == 0


# --- A stop while uploads are under way -----------------------------------------------------------


def set_stop_timeout(config_path: Path, value: str) -> None:
    text = config_path.read_text()
    config_path.write_text(text.replace("[daemon]\n", f'[daemon]\nstop_timeout = "{value}"\n'))


def spooled(config_path: Path) -> list[Path]:
    """The files of entries in the spool."""
    return [path for path in config_path.parent.glob("pool.db.spool/*/**/*") if path.is_file()]


def test_uploads_that_end_in_time_are_accepted_during_a_stop(
    config_path: Path, simulator: SimulatorServer
) -> None:
    set_stop_timeout(config_path, "1m")
    with daemon(config_path, simulator) as (process, api):
        with closing(SlowUpload(api, LARGE)) as upload:
            upload.send(PIECE)
            poll_until(lambda: spooled(config_path))
            process.process.send_signal(signal.SIGTERM)
            process.wait_for("stopping")
            upload.send()
            accepted = upload.answer()
        assert accepted.status == 202
        # Begun, where the dispatcher had not stopped yet.
        assert accepted.json["state"] in ("queued", "uploading")
        # Not after a minute: nothing is left to wait for.
        assert process.process.wait(PATIENCE) == 0
    with daemon(config_path, simulator) as (process, api):
        place = accepted.headers["location"]
        assert api.get(place, headers=waiting(20)).json["state"] == "ready"
        assert process.stop() == 0


def test_uploads_that_take_longer_than_a_stop_are_answered(
    config_path: Path, simulator: SimulatorServer
) -> None:
    set_stop_timeout(config_path, "2s")
    with daemon(config_path, simulator) as (process, api), closing(SlowUpload(api, LARGE)) as slow:
        slow.send(PIECE)
        poll_until(lambda: spooled(config_path))
        process.process.send_signal(signal.SIGTERM)
        process.wait_for("stopping")
        began = time.monotonic()
        refused = api.submit([("a.jpg", LARGE)])
        slow.send(1)
        late = slow.answer()
        took = time.monotonic() - began
        for answer in (refused, late):
            assert (answer.status, answer.code) == (503, "stopping")
            assert int(answer.headers["retry-after"]) >= 1
        assert took > 1.5, "it had the whole time"
        assert process.process.wait(PATIENCE) == 0
        assert spooled(config_path) == []
    assert "Traceback" not in "\n".join(process.lines)
