"""The simulator's faults behind the calls: imports and webhooks."""

from __future__ import annotations

from typing import Any

import pytest
from support.served import receiver
from support.simulated import LABELS, upload

from pool.cvat import CvatClient, ImportStatus
from pool.simulator import SimulatorServer
from pool.simulator.faults import (
    DeadWorker,
    DoubledWebhook,
    FailedImport,
    Fault,
    ForgedWebhook,
    ForgottenRequest,
    HungImport,
    Latency,
    LateWebhook,
    LostWebhook,
    ReversedWebhooks,
    SlowImport,
)


@pytest.mark.parametrize(
    ("at", "status"), [("queued", ImportStatus.QUEUED), ("started", ImportStatus.STARTED)]
)
def test_import_hangs(
    server: SimulatorServer, client: CvatClient, at: Any, status: ImportStatus
) -> None:
    hung, other = client.create_task(LABELS, f"hung {at}"), client.create_task(LABELS, "other")
    with server.fault(HungImport(f"hung {at}", at=at)) as fault:
        upload(client, hung)
        fault.wait()
        upload(client, other)
        server.wait_for(lambda state: bool(state.tasks[other].job_ids))
        assert client.import_state(hung).status is status
        assert client.jobs([hung]) == {}
    server.wait_idle()
    assert hung in client.jobs([hung])


def test_hung_imports_take_all_workers_and_their_tasks_can_go(
    server: SimulatorServer, client: CvatClient
) -> None:
    tasks = [client.create_task(LABELS, f"stuck {number}") for number in range(3)]
    with server.fault(HungImport("stuck [01]", at="started")) as fault:
        for task_id in tasks:
            upload(client, task_id)
        fault.wait(2)
        assert client.import_state(tasks[2]).status is ImportStatus.QUEUED
        assert client.delete_task(tasks[0])
    server.wait_idle()
    assert client.import_state(tasks[0]).status is ImportStatus.TASK_GONE
    assert client.jobs(tasks).keys() == {tasks[1], tasks[2]}


def test_import_fails(server: SimulatorServer, client: CvatClient) -> None:
    tasks = [client.create_task(LABELS, f"failing {number}") for number in range(2)]
    with server.fault(FailedImport("failing *", message="disk on fire\n", times=1)):
        for task_id in tasks:
            upload(client, task_id)
            server.wait_idle()
    states = [client.import_state(task_id) for task_id in tasks]
    assert [state.status for state in states] == [ImportStatus.FAILED, ImportStatus.FINISHED]
    assert "disk on fire" in states[0].message


@pytest.mark.parametrize("at", ["before", "after"])
@pytest.mark.parametrize("request_is", ["failed", "gone"])
def test_worker_dies(server: SimulatorServer, client: CvatClient, at: Any, request_is: Any) -> None:
    task_id = client.create_task(LABELS, "dying")
    with server.fault(DeadWorker("dying", at=at, request=request_is)):
        upload(client, task_id)
        server.wait_idle()
    state = client.import_state(task_id)
    assert bool(client.jobs([task_id])) is (at == "after")
    if request_is == "failed":
        assert state.status is ImportStatus.FAILED
        assert "Work-horse terminated unexpectedly" in state.message
    else:
        assert state.status is ImportStatus.UNKNOWN


def test_import_is_slow(client: CvatClient, server: SimulatorServer) -> None:
    tasks = [client.create_task(LABELS, name) for name in ("slow", "quick")]
    with server.fault(SlowImport("slow", factor=3.0, seconds=0.1)):
        for task_id in tasks:
            upload(client, task_id)
        server.wait_idle()
    slow, quick = (server.stats.import_milliseconds()[task_id] for task_id in tasks)
    assert slow >= 100.0 > quick


def test_request_is_forgotten(server: SimulatorServer, client: CvatClient) -> None:
    server.hold_imports()
    task_id = client.create_task(LABELS, "forgotten")
    upload(client, task_id)
    with server.fault(ForgottenRequest()) as forgotten:
        assert client.import_state(task_id).status is ImportStatus.UNKNOWN
        server.release_imports()
        server.wait_idle()
        assert client.import_state(task_id).status is ImportStatus.FINISHED
        assert forgotten.fired == 1


# --- Webhooks ----------------------------------------------------------------------------------


@pytest.fixture
def deliver(server: SimulatorServer, client: CvatClient, http: Any) -> Any:
    """Make a task of three jobs under some faults; returns what a receiver of webhooks got."""

    def run(*faults: Fault) -> list[tuple[str, int, bool]]:
        project = http.request("POST", f"{server.url}/api/projects", json={"name": "p"}).json()
        with receiver() as (url, got):
            hook = {
                "target_url": url, "type": "project", "project_id": project["id"],
                "secret": "a secret", "events": ["create:job", "create:task"],
            }  # fmt: skip
            made = http.request("POST", f"{server.url}/api/webhooks", json=hook)
            assert made.status == 201
            with server.fault(*faults):
                task_id = client.create_task({"project_id": project["id"]}, "hooked")
                upload(client, task_id)
                server.wait_for(lambda state: bool(state.tasks[task_id].job_ids))
                upload(client, client.create_task({"project_id": project["id"]}, "hooked too"))
                server.wait_for(lambda _: server.simulator.imports.waiting == 0)
            server.wait_idle()
            http.request("DELETE", f"{server.url}/api/webhooks/{made.json()['id']}")
        return [
            (
                each.json["event"],
                each.json[each.json["event"].partition(":")[2]]["id"],
                each.signed_with("a secret"),
            )
            for each in got
        ]

    return run


def test_webhooks_go_wrong(deliver: Any) -> None:
    def events(*faults: Fault) -> str:
        return " ".join(event.partition(":")[2][0] for event, _, _ in deliver(*faults))

    usual = "t j t j"
    assert events(Latency("about")) == usual
    assert events(LostWebhook("create:job")) == "t t"
    assert events(LostWebhook("create:job", times=1)) == "t t j"
    assert events(DoubledWebhook("create:job", copies=3)) == "t j j j t j j j"
    assert events(ReversedWebhooks("create:*")) == "j t j t"
    assert events(ReversedWebhooks("create:*", count=99)) == "j t j t"
    assert events(LateWebhook("create:task", seconds=0.5, times=1)) == "j t j t"
    assert events(DoubledWebhook("create:task"), LostWebhook("create:task")) == "j j"


def test_webhooks_are_forged(deliver: Any) -> None:
    signed = {event: genuine for event, _, genuine in deliver(ForgedWebhook("create:job"))}
    assert signed == {"create:task": True, "create:job": False}
