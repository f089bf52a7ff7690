"""Webhooks from end to end: the simulator delivers to a daemon, other processes are served."""

from __future__ import annotations

import glob
import json

import pytest
import urllib3
from support.hooked import Counted, serve, state
from support.waiting import wait_until

from pool import ImportFailed, Outcome, TaskPool
from pool.config.source import build_upload
from pool.cvat.failures import OTHER_DATA
from pool.daemon import Daemon
from pool.requests import sending
from pool.simulator import SimulatorServer
from pool.simulator.faults import Cut, Error
from pool.status import WebhookState
from pool.tracking.webhook_setup import WebhookReport


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The safety net comes so late that it is only ever needed when a webhook is lost."""
    monkeypatch.setattr("pool.tracking.poll_schedule.SAFETY_FLOOR", 10.0)


# --- What it is for -----------------------------------------------------------------------------


@pytest.mark.usefixtures("patient")
def test_jobs_are_announced_to_another_process_without_a_poll(
    hooks: WebhookReport, caller: Counted, simulator: SimulatorServer, image: bytes
) -> None:
    for _ in range(10):
        (job_id,) = serve(caller, image)
        assert job_id in simulator.state.jobs
    assert caller.calls["jobs"] == 0
    assert state(caller) is WebhookState.ALIVE


@pytest.mark.usefixtures("patient")
def test_several_images_and_jobs(
    hooks: WebhookReport, caller: Counted, simulator: SimulatorServer, image: bytes
) -> None:
    assert len(serve(caller, image, "a.jpg", "b.jpg", "c.jpg")) == 1
    assert caller.calls["jobs"] == 0


@pytest.mark.usefixtures("patient")
def test_a_failed_import_is_announced(hooks: WebhookReport, caller: Counted) -> None:
    request = caller.pool.submit("hooked", [("a.jpg", b"this is no image")])
    with pytest.raises(ImportFailed, match="cannot identify image file"):
        request.jobs(timeout=20)
    assert caller.calls["jobs"] == caller.calls["import_state"] == 0


def test_a_task_gets_its_name_from_whoever_heard(
    hooks: WebhookReport, caller: Counted, simulator: SimulatorServer, image: bytes
) -> None:
    request = caller.pool.submit("hooked", [("a.jpg", image)], name="drive 7")
    request.jobs(timeout=20)
    assert request.task_id is not None
    simulator.wait_for(lambda known: known.tasks[request.task_id or 0].name == "drive 7")


def test_a_request_into_a_lease_that_the_daemon_watches_gets_its_name(
    hooks: WebhookReport,
    hooked_daemon: Daemon,
    caller: Counted,
    simulator: SimulatorServer,
    image: bytes,
) -> None:
    lease = caller.pool.acquire("hooked")
    (handout,) = caller.pool.store.watched_leases()
    hooked_daemon.process.tracker.watch_lease(handout)
    assert lease.upload([("a.jpg", image)], name="drive 8").jobs(timeout=20)
    simulator.wait_for(lambda known: known.tasks[lease.task_id].name == "drive 8")


def test_the_daemons_own_imports_are_announced(
    hooks: WebhookReport, hooked_daemon: Daemon, caller: Counted, image: bytes
) -> None:
    with TaskPool(hooked_daemon.settings, store=caller.pool.store) as inside:
        request = inside.submit("hooked", [("a.jpg", image)])
        assert request.jobs(timeout=20)
        assert request.outcome in (Outcome.HIT, Outcome.WAIT)


def test_lost_deliveries_bring_polling_back(
    hooks: WebhookReport,
    hooked_daemon: Daemon,
    caller: Counted,
    simulator: SimulatorServer,
    image: bytes,
) -> None:
    hook = simulator.state.webhooks[hooks.webhook_id or 0]
    simulator.call(lambda: setattr(hook, "is_active", False))
    for _ in range(2):
        assert state(caller) is WebhookState.ALIVE
        serve(caller, image)
    wait_until(caller.pool.store, lambda: state(caller) is WebhookState.SILENT)
    assert caller.calls["jobs"] >= 2
    row = next(row for row in caller.pool.status().templates if row.name == "hooked")
    assert row.hooks_silent_since is not None
    simulator.call(lambda: setattr(hook, "is_active", True))
    serve(caller, image)
    wait_until(hooked_daemon.process.store, lambda: state(caller) is WebhookState.ALIVE)


def test_a_forged_delivery_has_no_effect(
    hooks: WebhookReport,
    hooked_daemon: Daemon,
    caller: Counted,
    simulator: SimulatorServer,
    image: bytes,
) -> None:
    simulator.hold_imports()
    try:
        request = caller.pool.submit("hooked", [("a.jpg", image)])
        operation = {"task_id": request.task_id}
        failed = {"status": "failed", "message": "x", "operation": operation}
        body = {"event": "completed:request[create:task]", "webhook_id": 1, "request": failed}
        with urllib3.PoolManager() as http:
            for signature in ("sha256=" + "0" * 64, ""):
                answer = http.request(
                    "POST",
                    f"{hooked_daemon.url}/webhooks/cvat",
                    body=json.dumps(body),
                    headers={"X-Signature-256": signature},
                )
                assert answer.status == 401
    finally:
        simulator.release_imports()
    assert request.jobs(timeout=20)


# --- Data that may not have arrived ---------------------------------------------------------------


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("arrived", [True, False])
def test_an_announced_import_in_doubt_is_not_taken_for_the_requests(
    hooks: WebhookReport,
    caller: Counted,
    simulator: SimulatorServer,
    image: bytes,
    arrived: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The answer to the caller's upload was lost, and an import is under way: the daemon, which is
    told of its jobs, compares the frames with what the caller has sent."""
    monkeypatch.setattr(sending, "SETTLE_LOOKS", (0.0, 0.1))
    lease = caller.pool.acquire("hooked")
    # The daemon prepares another task meanwhile, which is such a call too.
    only = glob.escape(simulator.state.tasks[lease.task_id].name)
    simulator.hold_imports()
    try:
        if not arrived:
            caller.pool.process.cvat().upload(
                lease.task_id,
                build_upload([("theirs.jpg", image)]),
                caller.pool.settings.templates["hooked"].data,
                single_request_limit=10**6,
                prepared=True,
            )
        lost = (
            Cut("data:post", at="after", times=1, task=only)
            if arrived
            else Error("data:post", status=502, times=1, task=only)
        )
        with simulator.fault(lost):
            request = lease.upload([("ours.jpg", image)])
    finally:
        simulator.release_imports()
    if arrived:
        assert request.jobs(timeout=20)
    else:
        with pytest.raises(ImportFailed, match=OTHER_DATA):
            request.jobs(timeout=20)
