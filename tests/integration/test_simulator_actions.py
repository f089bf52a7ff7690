"""What happens to a simulated server once: people, power cuts, clocks; and its door for faults."""

from __future__ import annotations

import email.utils
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3
from support.clock import ManualClock
from support.commands import cvat_pool, running
from support.simulated import LABELS, upload

from pool.config.settings import CvatSettings
from pool.cvat import (
    CvatClient,
    ImportStatus,
    PasswordCredentials,
)
from pool.errors import (
    CvatBusy,
    CvatForbidden,
    CvatNotFound,
    CvatRefusedCredentials,
    CvatUnreachable,
)
from pool.simulator import SimulatorServer, SimulatorSettings, Timings
from pool.simulator.actions import ActionFailed
from pool.simulator.faults import Error, Hang, HungImport


@pytest.fixture
def server(server: SimulatorServer) -> Iterator[SimulatorServer]:
    yield server
    server.actions.restore_tokens()
    server.actions.forget_requests()
    server.call(lambda: server.simulator.set_clock(0.0))


@pytest.fixture
def http() -> Iterator[urllib3.PoolManager]:
    with urllib3.PoolManager(retries=False) as pool:
        yield pool


def wait_until_up(server: SimulatorServer) -> None:
    door = server.simulator.door
    assert door is not None
    server.wait_for(lambda _: server.stats.actions["down"] == 1 and not door.is_shut)


# --- Tasks -------------------------------------------------------------------------------------


def test_tasks_change_behind_our_back(server: SimulatorServer, client: CvatClient) -> None:
    ids = [client.create_task(LABELS, f"pool {number}") for number in range(4)]
    actions = server.actions
    assert actions.delete_task(ids[0]) == ids[0]
    assert actions.fill_task(ids[1], frames=3) == ids[1]
    assert actions.rename_task(ids[2], name="mine now") == ids[2]
    assert actions.move_task(ids[3]) == ids[3]
    found = client.tasks(ids)
    assert found.keys() == set(ids[1:])
    assert (found[ids[1]].size, found[ids[1]].jobs) == (3, 1)
    assert client.import_state(ids[1]).status is ImportStatus.FINISHED
    assert found[ids[2]].name == "mine now"
    assert found[ids[3]].project_id is not None
    with pytest.raises(CvatNotFound):
        client.rename_task(ids[0], "too late")
    with pytest.raises(ActionFailed, match="not empty"):
        actions.fill_task(ids[1])
    assert server.stats.actions["fill_task"] == 2


def test_a_marked_task_is_drawn(server: SimulatorServer, client: CvatClient) -> None:
    others = [client.create_task(LABELS, "not ours") for _ in range(3)]
    marked = [client.create_task(LABELS, f"task {number} [m]") for number in range(3)]
    hit = [server.actions.delete_task(mark="[m]") for _ in range(2)]
    hit.append(server.actions.fill_task(mark="[m]"))
    assert sorted(hit) == marked
    assert client.tasks(others).keys() == set(others)
    with pytest.raises(ActionFailed):
        server.actions.fill_task(mark="[m]")


def test_a_task_is_deleted_after_its_import(server: SimulatorServer, client: CvatClient) -> None:
    server.hold_imports("started")
    task_id = client.create_task(LABELS, "busy")
    upload(client, task_id)
    server.wait_for(lambda state: state.tasks[task_id].lock.locked())
    server.actions.delete_task(task_id)
    assert client.tasks([task_id])
    server.release_imports()
    server.wait_for(lambda state: task_id not in state.tasks)
    assert client.import_state(task_id).status is ImportStatus.TASK_GONE
    assert all(job.task.id != task_id for job in server.state.jobs.values())


def test_a_task_that_waits_for_its_import_is_not_filled(
    server: SimulatorServer, client: CvatClient
) -> None:
    server.hold_imports("queued")
    task_id = client.create_task(LABELS, "busy")
    upload(client, task_id)
    with pytest.raises(ActionFailed, match="not empty"):
        server.actions.fill_task(task_id)
    server.release_imports()
    server.wait_idle()
    assert client.tasks([task_id])[task_id].jobs == 1


# --- Queues and the machine --------------------------------------------------------------------


def test_requests_are_forgotten_while_imports_go_on(
    server: SimulatorServer, client: CvatClient
) -> None:
    server.hold_imports("started")
    task_id = client.create_task(LABELS, "forgotten")
    upload(client, task_id)
    server.wait_for(lambda state: state.tasks[task_id].lock.locked())
    assert server.actions.forget_requests() == 1
    assert client.import_state(task_id).status is ImportStatus.UNKNOWN
    server.release_imports()
    server.wait_idle()
    assert client.jobs([task_id])


def test_queues_are_lost(server: SimulatorServer, client: CvatClient) -> None:
    done, started, held, queued = (client.create_task(LABELS, name) for name in "dshq")
    upload(client, done)
    server.wait_idle()
    with server.fault(HungImport("h"), HungImport("s", at="started")) as hung:
        for task_id in (held, started):
            upload(client, task_id)
        hung.wait()
        server.wait_for(lambda state: state.requests[_key(started)].status == "started")
        server.hold_imports()
        upload(client, queued)
        assert server.actions.lose_queues() == 3
    server.release_imports()
    server.wait_idle()
    assert client.jobs([done, started, held, queued]).keys() == {done}
    for task_id in (done, started, held, queued):
        assert client.import_state(task_id).status is ImportStatus.UNKNOWN
    assert all(task.has_data for task in client.tasks([started, held, queued]).values())
    # The workers work again.
    again = client.create_task(LABELS, "again")
    upload(client, again)
    server.wait_idle()
    assert client.jobs([again])


def _key(task_id: int) -> str:
    return f"action=create&target=task&target_id={task_id}"


def test_server_goes_down_and_comes_back(server: SimulatorServer, client: CvatClient) -> None:
    started, queued, lost = (client.create_task(LABELS, name) for name in ("s", "q", "l"))
    with server.fault(HungImport("s", at="started")) as hung:
        upload(client, started)
        hung.wait()
        server.hold_imports()
        upload(client, queued)
        server.actions.down()
    for _ in range(2):
        with pytest.raises(CvatUnreachable, match="refused"):
            client.whoami()
    with pytest.raises(ActionFailed, match="down already"):
        server.actions.down()
    server.release_imports()
    server.actions.up()
    server.actions.up()
    server.wait_idle()
    # What was under way failed, what was queued was kept.
    assert client.jobs([started, queued]).keys() == {queued}
    state = client.import_state(started)
    assert (state.status, "AbandonedJobError" in state.message) == (ImportStatus.FAILED, True)
    server.hold_imports()
    upload(client, lost)
    server.actions.down()
    server.release_imports()
    server.actions.up(queues=False)
    assert client.import_state(lost).status is ImportStatus.UNKNOWN
    assert client.jobs([lost]) == {}
    assert client.tasks([lost]).keys() == {lost}


def test_calls_under_way_are_lost_with_the_server(
    server: SimulatorServer, client: CvatClient
) -> None:
    errors: list[Exception] = []

    def create() -> None:
        try:
            client.create_task(LABELS, "under way")
        # Ambiguous, unless the line was cut before all of the call was sent.
        except CvatUnreachable as error:
            errors.append(error)

    with server.fault(Hang("tasks:create")) as hang:
        caller = threading.Thread(target=create)
        caller.start()
        hang.wait()
        server.actions.down(seconds=0.05)
        caller.join(10)
    assert len(errors) == 1
    wait_until_up(server)
    assert client.find_tasks("under way") == []


def test_server_can_be_stopped_while_it_is_down() -> None:
    with SimulatorServer(SimulatorSettings(timings=Timings.zero())) as server:
        server.actions.down()
        started = time.perf_counter()
        server.stop()
        assert time.perf_counter() - started < 5.0


def test_idle_connections_are_reset(server: SimulatorServer, client: CvatClient) -> None:
    server.actions.cut_connections()
    client.warm_up(3)
    assert server.actions.cut_connections() == 3
    assert client.whoami().username == "bot"


# --- Credentials and time ----------------------------------------------------------------------


def test_tokens(server: SimulatorServer, client: CvatClient) -> None:
    assert server.actions.revoke_tokens(server.access_token) == 1
    with pytest.raises(CvatRefusedCredentials):
        client.whoami()
    assert server.actions.restore_tokens() == 1
    assert server.actions.restrict_tokens() == 1
    assert client.access_token().read_only  # type: ignore[union-attr]
    with pytest.raises(CvatForbidden):
        client.create_task(LABELS, "refused")
    server.actions.restore_tokens()
    client.create_task(LABELS, "allowed")


def test_sessions_end(server: SimulatorServer, clock: ManualClock) -> None:
    credentials = PasswordCredentials(server.username, server.password)
    with CvatClient(CvatSettings(url=server.url), credentials, clock=clock) as client:
        client.whoami()
        clock.advance(3600.0)
        assert server.actions.end_sessions() == 1
        assert client.whoami().username == "bot"
    assert server.stats.calls["login"] == 2


@pytest.mark.parametrize("seconds", [7200.0, -7200.0])
def test_clock_jumps(
    server: SimulatorServer, client: CvatClient, http: urllib3.PoolManager, seconds: float
) -> None:
    server.actions.jump_clock(seconds)
    task_id = client.create_task(LABELS, "of another time")
    answer = http.request(
        "GET",
        f"{server.url}/api/tasks/{task_id}",
        headers={"Authorization": f"Bearer {server.access_token}"},
    )
    date = email.utils.parsedate_to_datetime(answer.headers["date"])
    assert date.timestamp() - time.time() == pytest.approx(seconds, abs=60)
    created = answer.json()["created_date"]
    assert created[:13] == f"{date:%Y-%m-%dT%H}"


def test_clock_jumps_over_the_time_of_a_request(
    server: SimulatorServer, client: CvatClient
) -> None:
    task_id = client.create_task(LABELS, "old news")
    upload(client, task_id)
    server.wait_idle()
    server.actions.jump_clock(501.0)
    assert client.import_state(task_id).status is ImportStatus.UNKNOWN


# --- The simulator's own door ------------------------------------------------------------------


def test_faults_over_http(
    server: SimulatorServer, client: CvatClient, http: urllib3.PoolManager
) -> None:
    def ask(method: str, path: str, body: Any = None) -> tuple[int, Any]:
        answer = http.request(
            method, server.url + path, body=None if body is None else json.dumps(body)
        )
        return answer.status, answer.json() if answer.data else None

    error = {"kind": "error", "where": "users:self", "status": 500, "times": 1}
    status, said = ask("PUT", "/simulator/faults", {"faults": [error]})
    assert status == 200
    assert said["faults"][0].items() >= {**error, "fired": 0}.items()
    with pytest.raises(CvatBusy):
        client.whoami()
    client.whoami()
    assert ask("GET", "/simulator/faults")[1]["faults"][0]["fired"] == 1
    assert ask("GET", "/simulator/stats")[1]["faults"] == {"error users:self": 1}

    status, added = ask("POST", "/simulator/faults", {"kind": "cut", "where": "about"})
    assert status == 201
    assert ask("DELETE", f"/simulator/faults/{added['id']}")[0] == 204
    assert ask("DELETE", f"/simulator/faults/{added['id']}")[0] == 404
    for wrong, words in (
        ({"kind": "eror"}, "did you mean 'error'?"),
        ({"kind": "error", "stauts": 500}, "did you mean 'status'?"),
        ({"kind": "error", "status": "500"}, "expected int"),
        ({"kind": "cut", "at": "sometimes"}, "arriving or before"),
        ({"kind": "cut", "where": "tasks:craete"}, "did you mean 'tasks:create'?"),
        ([], "a fault is a table"),
    ):
        status, said = ask("PUT", "/simulator/faults", {"faults": [wrong]})
        assert (status, words in said["detail"]) == (400, True), said
    assert len(ask("GET", "/simulator/faults")[1]["faults"]) == 1
    assert ask("DELETE", "/simulator/faults")[0] == 204
    assert ask("GET", "/simulator/faults")[1] == {"faults": []}


def test_actions_over_http(
    server: SimulatorServer, client: CvatClient, http: urllib3.PoolManager
) -> None:
    def act(name: str, body: str = "") -> tuple[int, Any]:
        answer = http.request("POST", f"{server.url}/simulator/actions/{name}", body=body)
        return answer.status, answer.json()

    task_id = client.create_task(LABELS, "over http")
    assert act("fill_task", json.dumps({"task_id": task_id})) == (200, {"result": task_id})
    assert act("delete_task", json.dumps({"mark": "over"})) == (200, {"result": task_id})
    assert act("delete_task", json.dumps({"mark": "over"}))[0] == 409
    assert act("jump_clock", "{}") == (400, {"detail": "seconds: is needed"})
    assert act("jump_clock", "no json")[0] == 400
    assert act("explode")[0] == 404
    assert act("down")[0] == 400
    assert act("down", json.dumps({"seconds": 0.05}))[0] == 200
    wait_until_up(server)
    assert client.whoami().username == "bot"


def test_faults_out_of_a_file(tmp_path: Path, http: urllib3.PoolManager) -> None:
    file = tmp_path / "faults.toml"
    file.write_text('[[faults]]\nkind = "error"\nwhere = "about"\nstatus = 502\n')
    with running("simulator", "--port", "0", "--faults", file, cwd=tmp_path) as simulator:
        url = simulator.wait_for("CVAT_URL").removeprefix("export CVAT_URL=")
        assert http.request("GET", f"{url}/api/server/about").status == 502
        assert simulator.stop() == 0
    file.write_text('[[faults]]\nkind = "errr"\n')
    for wrong, words in ((file, "did you mean 'error'"), (tmp_path / "no.toml", "cannot read")):
        result = cvat_pool("simulator", "--faults", wrong, cwd=tmp_path)
        assert (result.returncode, words in result.stderr) == (2, True), result.stderr


def test_faults_of_the_settings() -> None:
    settings = SimulatorSettings(timings=Timings.zero(), faults=(Error("about", status=502),))
    with SimulatorServer(settings) as server, urllib3.PoolManager(retries=False) as http:
        assert http.request("GET", f"{server.url}/api/server/about").status == 502
        server.faults.clear()
        assert http.request("GET", f"{server.url}/api/server/about").status == 200
