"""What is decided about webhooks: signatures, bodies, whom to rely on, where to deliver."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool import model
from pool.config.settings import DaemonSettings, Settings, TaskSettings, Template
from pool.config.urls import is_loopback
from pool.cvat.records import ImportStatus
from pool.cvat.webhooks import Delivery, Event, is_signed, parse_event, signature_of
from pool.errors import ConfigError
from pool.http.server import check_exposure
from pool.model import ImportMember, ImportRecord, Job, WebhookRecord
from pool.status import WebhookState
from pool.tracking.poll_schedule import Pace, safety_net_pause
from pool.tracking.webhook_health import project_of, scope_of, webhook_state, whole_task
from pool.tracking.webhook_setup import default_url, meaning, target_of

RECORDING = Path(__file__).parents[1] / "contract" / "recordings" / "webhooks.json"
BODIES: list[dict[str, Any]] = [
    delivery["body"] for delivery in json.loads(RECORDING.read_text())[-1]["deliveries"]
]


def job_url(task_id: int, job_id: int) -> str:
    return f"http://cvat/tasks/{task_id}/jobs/{job_id}"


def recorded(event: str) -> list[dict[str, Any]]:
    return [body for body in BODIES if body["event"] == event]


def parsed(body: Any) -> Event | None:
    return parse_event(json.dumps(body).encode(), job_url)


# --- Signatures ---------------------------------------------------------------------------------


def test_the_signature_is_cvats() -> None:
    # As `openssl dgst -sha256 -hmac secret` prints it.
    known = "b82fcb791acec57859b989b430a826488ce2e479fdf92326bd0a2e8375a42ba4"
    assert signature_of(b"payload", "secret") == f"sha256={known}"
    assert is_signed(b"payload", f"sha256={known}", "secret")


@pytest.mark.parametrize("signature", ["", "sha256=", "x" * 71, "sha1=0", "sha256=\udcff", "é"])
def test_no_other_signature_will_do(signature: str) -> None:
    assert not is_signed(b"payload", signature, "secret")


@given(st.binary(max_size=64), st.binary(max_size=64))
def test_a_signature_is_of_one_body(body: bytes, other: bytes) -> None:
    assert is_signed(other, signature_of(body, "s"), "s") == (body == other)
    assert not is_signed(body, signature_of(body, "another"), "s")


# --- Bodies -------------------------------------------------------------------------------------


def test_a_created_job_as_recorded() -> None:
    (body,) = recorded("create:job")
    assert parsed(body) == Event(
        name="create:job",
        webhook_id=5,
        task_id=879,
        job=Job(id=836, url="http://cvat/tasks/879/jobs/836", start_frame=0, stop_frame=1),
    )


def test_completed_imports_as_recorded() -> None:
    finished, failed = (parsed(body) for body in recorded("completed:request[create:task]"))
    assert finished is not None
    assert failed is not None
    outcome = finished.outcome
    assert outcome is not None
    assert (outcome.status, outcome.message) == (ImportStatus.FINISHED, "")
    assert outcome.queued_for == pytest.approx(0.015, abs=0.001)
    assert outcome.ran_for == pytest.approx(0.192, abs=0.005)
    assert (failed.task_id, failed.job) == (880, None)
    assert failed.outcome is not None
    assert failed.outcome.message.startswith("PIL.UnidentifiedImageError: cannot identify")


def test_a_ping_and_what_is_of_no_use_as_recorded() -> None:
    assert parsed(recorded("ping")[0]) == Event(name="ping", webhook_id=5)
    assert parsed(recorded("update:task")[0]) == Event(name="update:task", webhook_id=5)


def test_a_job_for_ground_truth_is_none_of_the_tasks_own() -> None:
    body = json.loads(json.dumps(recorded("create:job")[0]))
    body["job"]["type"] = "ground_truth"
    assert parsed(body) == Event(name="create:job", webhook_id=5, task_id=879)


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b"{}", b"\xff", b'{"event": "ping"}', b"[" * 100_000,
     b'{"event": "create:job", "webhook_id": 1, "job": {"id": 1}}',
     b'{"event": "completed:request[create:task]", "webhook_id": 1, "request": {"status": "?"}}'],
)  # fmt: skip
def test_what_is_no_event_of_cvats(body: bytes) -> None:
    assert parse_event(body, job_url) is None


@given(st.recursive(st.none() | st.text() | st.integers(), lambda inner: st.lists(inner)))
def test_any_content_is_survived(value: Any) -> None:
    for event in ("ping", "create:job", "completed:request[create:task]", value):
        for key in ("webhook", "job", "request"):
            parsed({"event": event, "webhook_id": 1, key: value})


# --- Whom to rely on ----------------------------------------------------------------------------

HEARD = WebhookRecord(
    scope="project:1", hook_id=1, target_url="u", installed_at=1.0, heard_at=2.0, missed=0
)


@pytest.mark.parametrize(
    ("record", "heard", "state"),
    [
        (None, True, WebhookState.NOT_INSTALLED),
        (replace(HEARD, heard_at=None), True, WebhookState.SILENT),
        (HEARD, True, WebhookState.ALIVE),
        (replace(HEARD, missed=1), True, WebhookState.ALIVE),
        (replace(HEARD, missed=2), True, WebhookState.SILENT),
        (HEARD, False, WebhookState.SILENT),
    ],
)
def test_a_webhook_is_alive_until_it_fails_twice(
    record: WebhookRecord | None, heard: bool, state: WebhookState
) -> None:
    assert webhook_state(record, heard=heard) is state


LABELLED = Template(name="labelled", labels=({"name": "car"},))
PROJECT = Template(name="project", project=12)


def test_scopes() -> None:
    both = {"labelled": LABELLED, "project": PROJECT}
    assert [scope_of(each, "", both) for each in both.values()] == [None, "project:12"]
    assert {scope_of(each, "lab", both) for each in both.values()} == {"organization"}
    assert scope_of(PROJECT, "lab", {"project": PROJECT}) == "project:12"
    assert (project_of("project:12"), project_of("organization")) == (12, None)


def test_the_safety_net_waits_longer_than_imports_usually_take() -> None:
    pace = Pace(first=0.2, seen=deque([0.2] * 9 + [9.0]))
    assert pace.safety_net == pytest.approx(0.5)
    assert Pace(first=0.01).safety_net == pytest.approx(0.3)
    assert safety_net_pause(2.0) == pytest.approx(0.2)
    assert safety_net_pause(600.0) == 10.0


def importing(*files: str) -> ImportRecord:
    return ImportRecord(
        id="i", template="t", state=model.ImportState.IMPORTING, owner="o", lease_id="l",
        pooled_id="p", task_id=1, handed_out_at=0.0,
        members=(ImportMember(request_id="r", files=files, names=files),),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("files", "frames", "certain"),
    [
        (["a.jpg"], (0, 0), True),
        (["a.JPG", "b.png"], (0, 1), True),
        (["a.jpg", "b.jpg"], (0, 0), False),  # one of several jobs
        (["a.jpg", "b.jpg"], (1, 1), False),
        (["a.mp4"], (0, 99), False),
        (["a.zip"], (0, 0), False),  # perhaps the first of many
        (["cam1/"], (0, 0), False),
        ([], (0, -1), True),
    ],
)
def test_a_job_that_is_the_whole_task(
    files: list[str], frames: tuple[int, int], certain: bool
) -> None:
    job = Job(id=1, url="u", start_frame=frames[0], stop_frame=frames[1])
    assert whole_task(LABELLED, importing(*files), job) is certain


def test_a_template_with_several_jobs_a_task() -> None:
    job = Job(id=1, url="u", start_frame=0, stop_frame=0)
    for task in (TaskSettings(segment_size=1), TaskSettings(consensus_replicas=2)):
        assert not whole_task(replace(LABELLED, task=task), importing("a.jpg"), job)
    assert not whole_task(None, importing("a.jpg"), job)


# --- Where to deliver, and where to listen ------------------------------------------------------


def test_the_address_of_the_daemon() -> None:
    assert default_url(Settings()) == "http://127.0.0.1:8765/webhooks/cvat"
    v6 = Settings(daemon=DaemonSettings(host="::1"))
    assert default_url(v6) == "http://[::1]:8765/webhooks/cvat"
    for daemon in (DaemonSettings(port=0), DaemonSettings(host="0.0.0.0")):
        with pytest.raises(ConfigError, match="--url"):
            default_url(Settings(daemon=daemon))


def test_a_bare_address_gets_the_route() -> None:
    assert target_of("https://pool.example.com/") == "https://pool.example.com/webhooks/cvat"
    assert target_of(" http://h:1/x?y=1 ") == "http://h:1/x?y=1"
    for url in ("pool:8765", "ftp://h", "http://", "http://h:99999", "http://u:p@h", "http://h#f"):
        with pytest.raises(ConfigError, match="--url"):
            target_of(url)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (204, "delivered"),
        (401, "another pool"),
        (407, "smokescreen"),
        (502, "smokescreen"),
        (504, "no answer"),
        (404, "something else"),
    ],
)
def test_a_ping_is_explained(status: int, words: str) -> None:
    assert words in meaning(Delivery(status=status, response="no\nway"), "http://h/x")


def test_a_proxy_that_refuses_a_tunnel_is_told_from_a_daemon_that_is_not_there() -> None:
    tunnel = "Tunnel connection failed: 407 Proxy Authentication Required"
    long = f"HTTPSConnectionPool: Max retries (Caused by ProxyError('x', OSError('{tunnel}')))"
    refused = meaning(Delivery(status=502, response=long), "https://h/x")
    assert "no connection" not in refused
    assert refused.endswith(f"{tunnel})")
    gone = "(Caused by NewConnectionError('[Errno 111] Connection refused'))"
    absent = meaning(Delivery(status=502, response=gone), "http://h/x")
    assert "no connection" in absent
    assert absent.endswith("Connection refused)")


def test_other_machines_need_a_token() -> None:
    for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"):
        assert is_loopback(host)
        check_exposure(DaemonSettings(host=host), guarded=False)
    for host in ("0.0.0.0", "::", "10.0.0.1", "pool.example.com"):
        check_exposure(DaemonSettings(host=host), guarded=True)
        with pytest.raises(ConfigError, match="POOL_API_TOKEN"):
            check_exposure(DaemonSettings(host=host), guarded=False)
