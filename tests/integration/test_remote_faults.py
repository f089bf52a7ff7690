"""The remote client on bad lines: what it asks for is done once, and not lost."""

from __future__ import annotations

import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from support.pools import (
    REMOTE,
    hand_outs,
    level,
    opened,
    serving,
    tasks_with,
    wait_for,
    write_config,
)
from support.proxy import CuttingProxy
from support.waiting import PATIENCE, wait_until

from pool import LeaseEnded, PoolUnreachable, RemotePool, RequestState
from pool.daemon import Daemon
from pool.model import Event, new_id
from pool.simulator import SimulatorServer

LARGE = 8 * 2**20


@pytest.fixture(scope="module")
def daemon(
    tmp_path_factory: pytest.TempPathFactory, simulator: SimulatorServer
) -> Iterator[Daemon]:
    with serving(write_config(tmp_path_factory.mktemp("faults"), simulator), simulator) as daemon:
        yield daemon


@pytest.fixture
def line(daemon: Daemon) -> Iterator[CuttingProxy]:
    """The line between caller and daemon."""
    with CuttingProxy(daemon.url) as proxy:
        yield proxy


@pytest.fixture(params=REMOTE)
def caller(request: pytest.FixtureRequest, daemon: Daemon, line: CuttingProxy) -> Iterator[Any]:
    with opened(request.param, daemon, url=line.url) as pool:
        wait_for(daemon, lambda: level(pool).warm >= 3)
        yield pool


Cutting = Callable[[CuttingProxy], None]


def before_the_call(line: CuttingProxy) -> None:
    # The line is open already, and nothing more gets through on it.
    line.reset_all()
    line.cut("up", 0, times=2)


def in_the_call(line: CuttingProxy) -> None:
    line.reset_all()
    line.cut("up", 100, times=2)


def before_the_answer(line: CuttingProxy) -> None:
    line.reset_all()
    line.cut("down", 0, sent=100, times=2)


def in_the_answer(line: CuttingProxy) -> None:
    line.reset_all()
    line.cut("down", 100, sent=100, reset=False)


CUTS = [before_the_call, in_the_call, before_the_answer, in_the_answer]


@pytest.mark.parametrize("cut", CUTS)
def test_a_lease_is_handed_out_once(caller: Any, line: CuttingProxy, cut: Cutting) -> None:
    before = hand_outs(caller)
    cut(line)
    lease = caller.acquire("scenes")
    assert line.cuts >= 1
    assert hand_outs(caller) == before + 1
    assert caller.lease(lease.id) == lease


@pytest.mark.parametrize("cut", CUTS)
def test_data_is_taken_once(
    caller: Any, line: CuttingProxy, simulator: SimulatorServer, image: bytes, cut: Cutting
) -> None:
    before, name = hand_outs(caller), f"{new_id()}.jpg"
    cut(line)
    request = caller.submit("scenes", [(name, image)])
    assert request.jobs(timeout=20)
    assert line.cuts >= 1
    assert hand_outs(caller) == before + 1
    assert tasks_with(simulator, name) == [request.task_id]


@pytest.mark.parametrize("cut", CUTS)
def test_data_goes_into_a_lease_once(
    caller: Any, line: CuttingProxy, image: bytes, cut: Cutting
) -> None:
    lease = caller.acquire("scenes")
    cut(line)
    request = lease.upload([("a.jpg", image)])
    assert request.jobs(timeout=20) == lease.jobs(timeout=20)
    assert line.cuts >= 1


@pytest.mark.parametrize("cut", CUTS)
def test_a_lease_is_given_back(caller: Any, line: CuttingProxy, cut: Cutting) -> None:
    lease = caller.acquire("scenes")
    cut(line)
    lease.release()
    assert line.cuts >= 1
    with pytest.raises(LeaseEnded):
        lease.release()


def test_a_large_upload_that_is_cut_begins_again(
    caller: Any, daemon: Daemon, line: CuttingProxy, image: bytes
) -> None:
    shown: list[int] = []
    content = image + bytes(LARGE)
    line.reset_all()
    line.cut("up", LARGE // 2)
    request = caller.submit(
        "scenes", [("a.jpg", content)], progress=lambda sent, _: shown.append(sent)
    )
    assert (line.cuts, shown[-1]) == (1, len(content))
    assert shown != sorted(shown), "it began again"
    assert request.jobs(timeout=20)
    assert request.record.size == len(content)
    # What was cut off leaves nothing behind, nor does what CVAT has.
    wait_until(daemon.process.store, lambda: daemon.process.spool.room.used == 0)


def test_a_line_that_is_down_for_a_while(caller: Any, line: CuttingProxy) -> None:
    line.stop()
    timer = threading.Timer(0.5, line.start)
    timer.start()
    assert caller.status().templates
    timer.join()


def test_a_line_that_stays_down(daemon: Daemon) -> None:
    with CuttingProxy(daemon.url) as line, RemotePool(line.url, patience=0.5) as pool:
        assert pool.status().templates
        line.stop()
        with pytest.raises(PoolUnreachable, match=line.url):
            pool.acquire("scenes")


def test_a_subscription_misses_nothing(daemon: Daemon, line: CuttingProxy, image: bytes) -> None:
    heard: list[Event] = []
    both = threading.Event()

    def callback(event: Event) -> None:
        heard.append(event)
        if len(heard) == 2:
            both.set()

    with RemotePool(line.url) as listener, RemotePool(daemon.url) as caller:
        listener.subscribe(callback, ["request.ready"])
        requests = [caller.submit("scenes", [("a.jpg", image)])]
        requests[0].jobs(timeout=20)
        line.stop()
        requests.append(caller.submit("scenes", [("b.jpg", image)]))
        requests[1].jobs(timeout=20)
        line.start()
        assert both.wait(PATIENCE)
    assert [event.request_id for event in heard] == [request.id for request in requests]


# --- A daemon that is restarted -------------------------------------------------------------------


@pytest.mark.parametrize("kind", REMOTE)
def test_a_wait_for_jobs_does_not_notice_that_the_daemon_is_restarted(
    tmp_path: Path, simulator: SimulatorServer, image: bytes, kind: str
) -> None:
    path = write_config(tmp_path, simulator)
    found: list[Any] = []
    with ExitStack() as stack:
        simulator.hold_imports()
        stack.callback(simulator.release_imports)
        with serving(path, simulator) as first:
            port = int(first.url.rpartition(":")[2])
            caller = stack.enter_context(opened(kind, first))
            request = caller.submit("scenes", [("a.jpg", image)])
            wait_until(first.process.store, lambda: request.state is RequestState.IMPORTING)
            waiting = threading.Thread(target=lambda: found.append(request.jobs(timeout=30)))
            waiting.start()
        write_config(tmp_path, simulator, port=port)
        with serving(path, simulator):
            simulator.release_imports()
            waiting.join(PATIENCE)
            assert found == [request.jobs(timeout=0)]
            assert len(found[0]) == 1


# --- Processes ------------------------------------------------------------------------------------

FORK = """
import os, sys, warnings
warnings.simplefilter("ignore")  # Python 3.12 warns of a fork beside threads
from pool import RemotePool

pool = RemotePool(sys.argv[1])
first = pool.acquire("scenes")
child = os.fork()
second = pool.acquire("scenes")
print(first.id, second.id, flush=True)
if child:
    _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status))
# Neither process closes the pool, and both end all the same.
"""


def test_a_forked_process_has_a_loop_of_its_own(daemon: Daemon) -> None:
    script = [sys.executable, "-c", FORK, daemon.url]
    ended = subprocess.run(script, capture_output=True, text=True, timeout=PATIENCE, check=True)
    leases = [line.split() for line in ended.stdout.splitlines()]
    assert len({first for first, _ in leases}) == 1
    assert len({second for _, second in leases}) == 2
    assert ended.stderr == ""


# --- Memory ---------------------------------------------------------------------------------------


class Swallow(BaseHTTPRequestHandler):
    """Reads a body in pieces, and refuses it."""

    protocol_version = "HTTP/1.1"
    lengths: ClassVar[list[int]] = []

    def do_POST(self) -> None:
        left = int(self.headers["Content-Length"])
        self.lengths.append(left)
        while left:
            left -= len(self.rfile.read(min(left, 2**16)))
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.mark.parametrize("kind", REMOTE)
def test_an_upload_is_not_held_in_memory(daemon: Daemon, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "large.bin"
    with path.open("wb") as stream:
        stream.truncate(64 * 2**20)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Swallow)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        with opened(kind, daemon, url=url) as pool:
            tracemalloc.start()
            with pytest.raises(PoolUnreachable, match="404"):
                pool.submit("scenes", path)
            _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        server.shutdown()
        server.server_close()
        thread.join(PATIENCE)
    assert Swallow.lengths.pop() > 64 * 2**20
    assert peak < 8 * 2**20
