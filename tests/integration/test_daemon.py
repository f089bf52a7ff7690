"""The daemon: fills, notices the hand-outs of others, stops in order, hands over."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from queue import SimpleQueue

import pytest
from support.api import Answer, Api, in_thread
from support.commands import cvat_pool, running
from support.waiting import PATIENCE, wait_until

from pool import Outcome, RemotePool, TaskPool
from pool.clock import SystemClock
from pool.daemon import Daemon
from pool.errors import ConfigError, PoolClosed
from pool.http.server import HttpServer
from pool.maintenance.scheduler import INTERVALS
from pool.model import Hold, TermRecord
from pool.observability.metrics import Metrics
from pool.requests.breaker import SERVER
from pool.simulator import SimulatorServer
from pool.simulator.faults import Error
from pool.store import Store, open_store
from pool.store.checking import check_store


@pytest.fixture
def daemon(pool: TaskPool) -> Iterator[Daemon]:
    """A daemon on a thread of this process, with an engine of its own."""
    with in_thread(Daemon(pool.settings)) as daemon:
        yield daemon


def wait_for_warm(daemon: Daemon, pool: TaskPool, count: int) -> None:
    wait_until(daemon.process.store, lambda: pool.status().templates[0].warm == count)


def test_the_pool_fills_and_is_refilled_after_hand_outs_of_others(
    daemon: Daemon, pool: TaskPool
) -> None:
    wait_for_warm(daemon, pool, 2)
    leases = [pool.acquire("scenes") for _ in range(2)]
    assert [lease.outcome for lease in leases] == [Outcome.HIT, Outcome.HIT]
    wait_for_warm(daemon, pool, 2)


def test_a_call_that_comes_before_the_services_begin(
    pool: TaskPool, image: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is heard as soon as the daemon listens, and wakes what serves it."""
    answers: list[Answer] = []
    listen = HttpServer.start

    def call_at_once(server: HttpServer) -> None:
        listen(server)
        with Api(server.url) as api:
            answers.append(api.submit([("a.jpg", image)]))

    monkeypatch.setattr(HttpServer, "start", call_at_once)
    daemon = Daemon(pool.settings)
    daemon.run(on_ready=daemon.stop)
    assert [answer.status for answer in answers] == [202]


def test_a_daemon_that_cannot_start_closes_its_store(
    pool: TaskPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CVAT_ACCESS_TOKEN")
    daemon = Daemon(pool.settings)
    with pytest.raises(ConfigError, match="CVAT_ACCESS_TOKEN"):
        daemon.run()
    with pytest.raises(PoolClosed):
        daemon.process.store.levels()


def test_a_caller_waits_for_the_daemon_rather_than_create(daemon: Daemon, pool: TaskPool) -> None:
    wait_for_warm(daemon, pool, 2)
    outcomes = [pool.acquire("scenes", timeout=PATIENCE).outcome for _ in range(6)]
    assert Outcome.COLD not in outcomes


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> SimpleQueue[str]:
    """The calls to CVAT of a daemon that begins after this and deletes often, in their order."""
    calls: SimpleQueue[str] = SimpleQueue()
    monkeypatch.setattr(Metrics, "call", lambda _, operation, *__: calls.put(operation))
    monkeypatch.setitem(INTERVALS, "delete", 0.05)
    return calls


@pytest.mark.parametrize("busy", [True, False], ids=["busy", "idle"])
def test_deleting_steps_back_while_requests_are_served(
    calls: SimpleQueue[str],
    daemon: Daemon,
    pool: TaskPool,
    simulator: SimulatorServer,
    image: bytes,
    busy: bool,
) -> None:
    """One task a round then, each of which begins with a look at what is there."""
    pool.prewarm("scenes", 8)
    wait_for_warm(daemon, pool, 8)
    if busy:
        simulator.hold_imports()
    try:
        request = pool.submit("scenes", [("a.png", image)])
        if not busy:
            request.jobs(timeout=PATIENCE)
        left = pool.drain("scenes")
        assert left >= 7
        made: list[str] = []
        while made.count("delete_task") < left:
            made.append(calls.get(timeout=PATIENCE))
    finally:
        simulator.release_imports()
    request.jobs(timeout=PATIENCE)
    rounds = " ".join(made).split(" tasks ")
    assert (max(each.count("delete_task") for each in rounds) > 1) is not busy


def test_a_second_daemon_serves_beside_the_first_and_takes_over(
    daemon: Daemon, pool: TaskPool, image: bytes
) -> None:
    wait_for_warm(daemon, pool, 2)
    first = pool.status().maintainer
    second = Daemon(pool.settings)
    with in_thread(second):
        assert second.maintenance is None
        status = pool.status()
        assert status.maintainer == first
        known = {each.owner: each.url for each in status.daemons}
        assert known == {each.process.owner: each.url for each in (daemon, second)}
        with RemotePool(second.url) as there, RemotePool(daemon.url) as here:
            accepted = there.submit("scenes", [("a.png", image)])
            # It is any daemon's, also after the one that has accepted it.
            assert here.request(accepted.id).jobs(timeout=PATIENCE)
            assert second.observation.health.run_once().ready
            assert len(there.status().daemons) == 2
            daemon.stop()
            wait_until(pool.store, lambda: pool.status().maintainer == second.process.owner)
            taken = there.acquire("scenes", timeout=PATIENCE)
            assert taken.task_id
    assert [term.owner for term in terms(pool.store)] == [first, second.process.owner]
    assert check_store(pool.store.connections).problems == ()


def terms(store: Store) -> list[TermRecord]:
    with store.connections.reading() as db:
        rows = db.rows("SELECT term, owner, since, until FROM terms ORDER BY term")
    return [TermRecord(term=row[0], owner=row[1], since=row[2], until=row[3]) for row in rows]


def test_sigterm_stops_in_order(
    config_path: Path, simulator: SimulatorServer, image_path: Path
) -> None:
    folder = config_path.parent
    token = simulator.access_token
    with running("run", cwd=folder, CVAT_ACCESS_TOKEN=token) as daemon:
        daemon.wait_for("maintenance begun")
        got = cvat_pool("get", "scenes", image_path, cwd=folder, CVAT_ACCESS_TOKEN=token)
        assert got.returncode == 0
        assert daemon.stop() == 0
        assert "daemon stopped" in daemon.lines[-1]
        assert token not in "\n".join(daemon.lines)
    status = json.loads(cvat_pool("status", "--json", cwd=folder).stdout)
    assert status["maintainer"] is None
    assert status["templates"][0]["creating"] == 0


def test_a_daemon_without_a_server_waits_for_it(
    config_path: Path, simulator: SimulatorServer
) -> None:
    config_path.write_text(config_path.read_text().replace(simulator.url, "http://127.0.0.1:9"))
    folder = config_path.parent
    with running("run", cwd=folder, CVAT_ACCESS_TOKEN=simulator.access_token) as daemon:
        daemon.wait_for("CVAT cannot be reached: http://127.0.0.1:9: ")
        status = json.loads(cvat_pool("status", "--json", cwd=folder).stdout)
        assert "cannot be reached" in status["hold_reason"]
        assert daemon.stop() == 0


def test_a_changed_configuration_is_taken_over_without_a_restart(
    config_path: Path, simulator: SimulatorServer
) -> None:
    doubtful = '[templates.{}]\nlabels = [{{ name = "car", color = "{}" }}]\n'
    before = config_path.read_text() + doubtful.format("odd", "red")
    config_path.write_text(before)
    with running("run", cwd=config_path.parent, CVAT_ACCESS_TOKEN=simulator.access_token) as daemon:
        assert "templates.odd.labels[0].color" in daemon.wait_for("probable mistake")
        daemon.wait_for("maintenance begun")
        config_path.write_text("[templates.scenes")
        # It may be read once before it is written, when it has no template yet.
        assert "('" not in daemon.wait_for("config.toml:1")
        config_path.write_text(before + doubtful.format("more", "blue"))
        daemon.wait_for("templates.more.labels[0].color")
        assert "more" in daemon.wait_for("configuration reloaded")
        daemon.process.send_signal(signal.SIGHUP)
        assert daemon.stop() == 0


def test_fills_holds_and_standing_by_are_logged_once_and_in_words(
    config_path: Path, simulator: SimulatorServer
) -> None:
    folder, token = config_path.parent, simulator.access_token
    quick = {
        "pool.requests.breaker.TRANSIENT_BASE": 0.1,
        "pool.requests.breaker.TRANSIENT_CAP": 1.0,
    }
    with running("run", cwd=folder, constants=quick, CVAT_ACCESS_TOKEN=token) as daemon:
        daemon.wait_for("INFO    scenes: 2 of 2 warm")
        with running("run", cwd=folder, CVAT_ACCESS_TOKEN=token) as other:
            other.wait_for(f"maintained by process {daemon.process.pid} on ")
            assert other.stop() == 0
            assert len([line for line in other.lines if "maintained by" in line]) == 1
        with (
            closing(open_store(f"sqlite:///{folder / 'pool.db'}")) as store,
            # No task is made, which is certain, so that none is waited for.
            simulator.fault(Error(where="*", status=429)),
        ):
            assert cvat_pool("drain", "scenes", cwd=folder).returncode == 0
            assert cvat_pool("resume", "scenes", cwd=folder).returncode == 0
            wait_until(
                store, lambda: SERVER in (held := store.holds()) and held[SERVER].attempts > 2
            )
            assert len([line for line in daemon.lines if "of 2 warm" in line]) == 1
        daemon.wait_for("CVAT works again after ")
        daemon.wait_for("scenes: 2 of 2 warm", times=2)
        assert daemon.stop() == 0
    held = [line for line in daemon.lines if "; next try in " in line]
    assert len(held) == 1 and "CVAT is overloaded or failing: HTTP 429" in held[0]
    assert not [line for line in daemon.lines if "None" in line or "('" in line]


def test_a_hold_of_another_process_is_logged_and_its_end(
    config_path: Path, simulator: SimulatorServer
) -> None:
    folder, token = config_path.parent, simulator.access_token
    quick = {"pool.maintenance.term.RENEWAL": 0.05}
    with running("run", cwd=folder, constants=quick, CVAT_ACCESS_TOKEN=token) as daemon:
        daemon.wait_for("scenes: 2 of 2 warm")
        with closing(open_store(f"sqlite:///{folder / 'pool.db'}")) as store:
            now = SystemClock().now()
            store.hold(
                Hold(
                    template="scenes",
                    code="cvat-rejected",
                    reason="CVAT rejected the call: no such label.",
                    since=now,
                    retry_at=now + 1000.0,
                )
            )
        line = daemon.wait_for("scenes: CVAT rejected the call: no such label; next try in ")
        assert " WARNING " in line
        assert cvat_pool("resume", "scenes", cwd=folder).returncode == 0
        daemon.wait_for("scenes: is no longer held, after ")
        assert daemon.stop() == 0
    assert len([line for line in daemon.lines if "no such label" in line]) == 1


def test_the_log_is_json_when_asked_for(config_path: Path, simulator: SimulatorServer) -> None:
    with running(
        "--log-json", "run", cwd=config_path.parent, CVAT_ACCESS_TOKEN=simulator.access_token
    ) as daemon:
        event = json.loads(daemon.wait_for("maintenance begun"))
        assert event["level"] == "info"
        daemon.stop()
