"""How a daemon ends: in order and in time, at once, or killed; each a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import urllib3
from support.commands import Running, cvat_pool, running
from support.waiting import PATIENCE, poll_until, wait_until

from pool.daemon import ECHO
from pool.maintenance.term import TERM
from pool.model import TaskState
from pool.simulator import SimulatorServer, SimulatorSettings, Timings
from pool.simulator.faults import Hang, Latency
from pool.store import Store, open_store
from pool.store.checking import check_store

#: Seconds for a process to notice a signal and to end on a busy machine: half of those that it
#: would take if it waited for a call that hangs.
SLACK = 30.0


@pytest.fixture
def server() -> Iterator[SimulatorServer]:
    """A server of its own, since these tests make it hang."""
    with SimulatorServer(SimulatorSettings(timings=Timings.zero())) as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path, server: SimulatorServer) -> Path:
    configure(tmp_path, server)
    return tmp_path


@pytest.fixture
def rows(folder: Path) -> Iterator[Store]:
    store = open_store(f"sqlite:///{folder / 'pool.db'}")
    yield store
    store.close()


def configure(folder: Path, server: SimulatorServer, *, stop_timeout: str = "1m") -> None:
    (folder / "config.toml").write_text(
        f'[cvat]\nurl = "{server.url}"\ntimeout = "60s"\n'
        f'[daemon]\nport = 0\nstop_timeout = "{stop_timeout}"\n'
        "[templates.scenes]\nlabels = []\npool = { min_size = 2 }\n"
    )


def at_rest(pid: int) -> bool:
    """Whether all threads of a process are stopped, or it has ended."""
    try:
        threads = [each.read_text() for each in Path(f"/proc/{pid}/task").glob("*/stat")]
    except OSError:  # one has ended meanwhile
        return False
    return {each.rpartition(")")[2].split()[0] for each in threads} <= {"T", "Z", "X"}


def wait_for_creating(rows: Store) -> None:
    wait_until(rows, lambda: rows.tasks(states=[TaskState.CREATING]))


def end(daemon: Running) -> tuple[int, float]:
    """Its exit code, and how many seconds it took to end after the signal."""
    began = time.monotonic()
    daemon.process.send_signal(signal.SIGTERM)
    return daemon.process.wait(PATIENCE), time.monotonic() - began


def states(rows: Store) -> set[TaskState]:
    return {task.state for task in rows.tasks()}


def test_sigterm_finishes_what_is_quick(folder: Path, server: SimulatorServer, rows: Store) -> None:
    server.faults.add(Latency("tasks:create", seconds=0.5))
    with running("run", cwd=folder, CVAT_ACCESS_TOKEN=server.access_token) as daemon:
        wait_for_creating(rows)
        code, took = end(daemon)
    assert code == 0
    assert took < SLACK
    # A create that the stop came before has failed.
    assert states(rows) - {TaskState.FAILED} == {TaskState.WARM}
    assert rows.maintainer(now=time.time()) is None


def test_sigterm_leaves_in_time_what_is_not(
    folder: Path, server: SimulatorServer, rows: Store
) -> None:
    """The call that hangs would do so for a minute; its task stands in the store, by its name."""
    configure(folder, server, stop_timeout="500ms")
    server.faults.add(Hang("tasks:create"))
    with running("run", cwd=folder, CVAT_ACCESS_TOKEN=server.access_token) as daemon:
        wait_for_creating(rows)
        code, took = end(daemon)
    assert code == 0
    assert took < 0.5 + SLACK
    assert "daemon stopped" in daemon.lines[-1]
    # A create that the stop came before has failed; that which hangs is still to be settled.
    assert TaskState.CREATING in states(rows)
    assert rows.maintainer(now=time.time()) is None, "another daemon can begin at once"


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_stops_at_once(
    folder: Path, server: SimulatorServer, rows: Store, first: signal.Signals
) -> None:
    configure(folder, server, stop_timeout="1m")
    server.faults.add(Hang("tasks:create"))
    with running("run", cwd=folder, CVAT_ACCESS_TOKEN=server.access_token) as daemon:
        wait_for_creating(rows)
        daemon.process.send_signal(first)
        daemon.wait_for("stopping")
        began = time.monotonic()
        code = None
        while code is None:
            daemon.process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                code = daemon.process.wait(0.1)
    assert code == 128 + signal.SIGTERM
    assert time.monotonic() - began < ECHO + SLACK
    # A create that the stop came before has failed; that which hangs is still to be settled.
    assert TaskState.CREATING in states(rows)


def test_a_signal_that_comes_twice_at_once_is_one(
    folder: Path, server: SimulatorServer, rows: Store
) -> None:
    """As timeout(1) sends it, to the process and to its group."""
    server.faults.add(Latency("tasks:create", seconds=0.5))
    with running("run", cwd=folder, CVAT_ACCESS_TOKEN=server.access_token) as daemon:
        wait_for_creating(rows)
        # Another one: of two that are the same the process may get one.
        daemon.process.send_signal(signal.SIGINT)
        code, _ = end(daemon)
    assert code == 0
    assert "daemon stopped" in daemon.lines[-1]
    # A create that the stop came before has failed.
    assert states(rows) - {TaskState.FAILED} == {TaskState.WARM}


def test_an_address_that_another_daemon_has_is_an_error_at_the_start(
    folder: Path, server: SimulatorServer
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = folder / "config.toml"
        config.write_text(config.read_text().replace("port = 0", f"port = {port}"))
        ended = cvat_pool("run", cwd=folder, CVAT_ACCESS_TOKEN=server.access_token)
    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert f"127.0.0.1:{port}: address already in use (see daemon.port)" in last


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_another_daemon_takes_over_when_the_maintaining_one_is_killed_or_stopped(
    folder: Path, server: SimulatorServer, rows: Store, number: signal.Signals
) -> None:
    """One that was stopped goes on serving when it is back, and maintains nothing."""
    token = server.access_token
    with (
        running("run", cwd=folder, CVAT_ACCESS_TOKEN=token) as first,
        running("run", cwd=folder, CVAT_ACCESS_TOKEN=token) as second,
    ):
        first_url = first.wait_for("listening: url=").rpartition("url=")[2]
        second.wait_for("listening: url=")
        wait_until(rows, lambda: rows.present_term(now=time.time()))
        before = rows.present_term(now=time.time())
        assert before is not None
        ours, other = first, second
        if f":{second.process.pid}:" in before.owner:
            ours, other = second, first
        # Not within a write of its own: what is stopped in one keeps SQLite's lock.
        with rows.connections.writing():
            os.kill(ours.process.pid, number)
            poll_until(lambda: at_rest(ours.process.pid))
        other.wait_for("unclean stop")
        other.wait_for("maintenance begun")
        after = rows.present_term(now=time.time())
        assert after is not None and f":{other.process.pid}:" in after.owner
        with rows.connections.reading() as db:
            (ended,) = db.rows("SELECT until FROM terms WHERE term = :term", term=before.term)[0]
        # As of when it was renewed last.
        assert after.since - (ended - TERM) < 10.0
        if number is signal.SIGSTOP:
            os.kill(ours.process.pid, signal.SIGCONT)
            ours.wait_for("goes on serving")
            if ours is first:
                with urllib3.PoolManager() as http:
                    assert http.request("GET", f"{first_url}/healthz").status == 200
            assert ours.stop() == 0
        assert other.stop() == 0
    assert check_store(rows.connections).problems == ()
