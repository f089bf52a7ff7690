"""The programs of the manual's page on message brokers, with a real Redis and a real daemon."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from support.pools import serving, write_config
from support.waiting import PATIENCE

from pool import TaskPool
from pool.daemon import Daemon
from pool.model import RequestState
from pool.simulator import SimulatorServer

redis = pytest.importorskip("redis")

PAGE: Final = Path(__file__).parents[2] / "pool" / "docs" / "brokers.md"
#: Kills a program in the call of a method, before (0) or after it has an effect (1).
KILLED_IN: Final = """
import os, signal
import redis
call = redis.Redis.{method}
def killed(*arguments, **options):
    {after} and call(*arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)
redis.Redis.{method} = killed
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A Redis of the tests' own, on a socket; a socket's path may have no more than 107 bytes."""
    program = shutil.which("redis-server")
    if program is None:
        if os.environ.get("POOL_REQUIRE_REDIS") == "1":
            pytest.fail("there is no redis-server, and POOL_REQUIRE_REDIS=1 says there must be")
        pytest.skip("there is no redis-server")
    folder = tempfile.mkdtemp(prefix="redis-")
    command = [program, "--port", "0", "--unixsocket", f"{folder}/socket", "--dir", folder]
    with subprocess.Popen(
        [*command, "--save", "", "--appendonly", "no"], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        try:
            assert any("eady to accept connections" in line for line in server.stdout)
            yield f"unix://{folder}/socket"
        finally:
            server.terminate()
            server.stdout.read()
    shutil.rmtree(folder)


@pytest.fixture
def broker(address: str) -> Iterator[Any]:
    """An empty Redis."""
    with redis.Redis.from_url(address, socket_timeout=None) as client:
        client.flushall()
        yield client


@pytest.fixture
def daemon(tmp_path: Path, simulator: SimulatorServer) -> Iterator[Daemon]:
    config = write_config(tmp_path, simulator)
    config.write_text(config.read_text().replace("templates.scenes", "templates.street-scenes"))
    with serving(config, simulator) as daemon:
        yield daemon


def program(kind: str) -> str:
    """A program of the page, as it stands there."""
    (text,) = re.findall(rf"^```python {kind}\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    return str(text)


@contextmanager
def running(
    kind: str, address: str, url: str, before: str = ""
) -> Iterator[subprocess.Popen[bytes]]:
    """One of the programs in a process of its own, to the end of the block."""
    environ = {"REDIS_URL": address, "POOL_SERVER": url, "CLAIM_AFTER_MS": "100"}
    with subprocess.Popen(
        [sys.executable, "-c", before + program(kind)], env={**os.environ, **environ}
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def killed(process: subprocess.Popen[bytes]) -> bool:
    """Whether a program comes to be killed."""
    return process.wait(PATIENCE) == -signal.SIGKILL


def messages(broker: Any, stream: str, count: int) -> list[dict[bytes, bytes]]:
    """So many messages of a stream, in order, as they come."""
    found: list[dict[bytes, bytes]] = []
    last = b"0"
    while len(found) < count:
        read = broker.xread({stream: last}, block=int(PATIENCE * 1000))
        assert read, f"{len(found)} of {count} messages are in {stream}"
        last = read[0][1][-1][0]
        found += [fields for _, fields in read[0][1]]
    return found


def sent(pool: TaskPool) -> Sequence[str]:
    """The files of all requests that there are."""
    return sorted(each.files[0] for each in pool.process.store.requests(limit=1000).requests)


def test_nothing_is_lost_and_nothing_twice(
    broker: Any, address: str, daemon: Daemon, image: bytes
) -> None:
    pool = TaskPool.over(daemon.process)
    names = [f"{number}.jpg" for number in range(6)]
    for name in names:
        broker.xadd("images", {"name": name, "data": image})
    with running(
        "feed", address, daemon.url, KILLED_IN.format(method="xack", after=False)
    ) as first:
        assert killed(first)
    assert broker.xpending("images", "cvat-pool")["pending"] == len(names)
    assert sent(pool) == names[:1], "it was submitted and never acknowledged"
    with running("publish", address, daemon.url), running("feed", address, daemon.url):
        published = messages(broker, "jobs", len(names))
    assert sent(pool) == names
    assert sorted(each[b"name"].decode() for each in published) == names
    for each in published:
        request = pool.request(each[b"request"].decode())
        assert (each[b"state"], request.state) == (b"ready", RequestState.READY)
        assert json.loads(each[b"jobs"]) == [job.id for job in request.jobs()] != []


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_publisher_goes_on_where_it_was_killed(
    broker: Any, address: str, daemon: Daemon, image: bytes, after: bool
) -> None:
    pool = TaskPool.over(daemon.process)
    requests = [pool.submit("street-scenes", [("a.jpg", image)]) for _ in range(3)]
    for request in requests:
        assert request.jobs(timeout=PATIENCE)
    with running(
        "publish", address, daemon.url, KILLED_IN.format(method="xadd", after=after)
    ) as one:
        assert killed(one)
    assert broker.xlen("jobs") == after
    with running("publish", address, daemon.url):
        published = messages(broker, "jobs", len(requests))
    assert sorted(each[b"request"].decode() for each in published) == sorted(
        request.id for request in requests
    )


def test_what_cannot_be_used_is_put_aside_and_what_failed_is_published(
    broker: Any, address: str, daemon: Daemon, image: bytes
) -> None:
    broker.xadd("images", {"name": "..", "data": image})
    broker.xadd("images", {"name": "a.jpg", "data": b"no image"})
    with running("publish", address, daemon.url), running("feed", address, daemon.url):
        (refused,) = messages(broker, "images:refused", 1)
        (failed,) = messages(broker, "jobs", 1)
    assert refused[b"why"] != b""
    assert (failed[b"state"], failed[b"name"], failed[b"jobs"]) == (b"failed", b"a.jpg", b"[]")
    assert b"cannot identify image file" in failed[b"error"]


def test_a_daemon_that_is_away_loses_nothing(
    broker: Any, address: str, tmp_path: Path, simulator: SimulatorServer, image: bytes
) -> None:
    config = write_config(tmp_path, simulator)
    config.write_text(config.read_text().replace("templates.scenes", "templates.street-scenes"))
    with serving(config, simulator) as daemon:
        gone = daemon.url
    broker.xadd("images", {"name": "a.jpg", "data": image})
    with running("feed", address, gone) as process:
        assert process.wait(PATIENCE * 3) != 0, "it ends, to be started again"
    assert broker.xpending("images", "cvat-pool")["pending"] == 1
    with (
        serving(config, simulator) as daemon,
        running("publish", address, daemon.url),
        running("feed", address, daemon.url),
    ):
        (message,) = messages(broker, "jobs", 1)
    assert message[b"state"] == b"ready"
