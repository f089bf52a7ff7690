"""Servers of other versions: on either side of each boundary, by the simulator's HTTP."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.commands import cvat_pool, running
from support.served import getting, receiver
from support.simulated import Caller, jpeg

from pool.simulator import SimulatorServer, SimulatorSettings, Timings

ServerOf = Callable[[str], Caller]


@pytest.fixture
def server_of() -> Iterator[ServerOf]:
    """A caller of a server of a version."""
    with ExitStack() as stack:

        def start(version: str) -> Caller:
            settings = SimulatorSettings(timings=Timings.zero(), version=version)
            caller = Caller(stack.enter_context(SimulatorServer(settings)))
            stack.callback(caller.http.clear)
            return caller

        yield start


def begin_upload(call: Caller, task_id: int, **headers: str) -> Any:
    """Create a TUS upload of one image."""
    return call(
        "POST",
        f"/api/tasks/{task_id}/data/",
        headers={
            **call.http.headers,
            "Upload-Length": str(len(jpeg())),
            "Upload-Metadata": f"filename {base64.b64encode(b'a.jpg').decode()}",
            **headers,
        },
    )


def finish_upload(call: Caller, location: str) -> None:
    path = location.removeprefix(call.server.url)
    headers = {**call.http.headers, "Upload-Offset": "0"}
    assert call("PATCH", path, headers=headers, body=jpeg()).status == 204


@pytest.mark.parametrize(("version", "statuses"), [("2.47.0", (401, 404)), ("2.48", (201, 200))])
def test_access_tokens(server_of: ServerOf, version: str, statuses: tuple[int, int]) -> None:
    call = server_of(version)
    created = call("POST", "/api/tasks", json={"name": "a", "labels": []}).status
    assert (created, call("GET", "/api/auth/access_tokens/self").status) == statuses


@pytest.mark.parametrize(("version", "status"), [("2.54.0", 500), ("2.55.0", 404), ("2.73.0", 404)])
def test_head_of_a_complete_upload(server_of: ServerOf, version: str, status: int) -> None:
    call = server_of(version)
    location = begin_upload(call, call.create(), Origin=call.server.url).headers["location"]
    path = location.removeprefix(call.server.url)
    assert call("HEAD", path).status == 200
    finish_upload(call, location)
    assert call("HEAD", path).status == status


@pytest.mark.parametrize(
    ("version", "headers", "status"),
    [
        ("2.55.0", {}, 500),
        ("2.55.0", {"Origin": "http://cvat.test"}, 201),
        ("2.55.0", {"X-Forwarded-Host": "cvat.test"}, 201),
        ("2.56.0", {}, 201),
    ],
)
def test_tus_needs_an_origin(
    server_of: ServerOf, version: str, headers: dict[str, str], status: int
) -> None:
    call = server_of(version)
    assert begin_upload(call, call.create(), **headers).status == status


@pytest.mark.parametrize(
    ("version", "scheme", "missing"),
    [
        (
            "2.64.0",
            "ValueError: Unsupported URL scheme: ftp. Only http and https are supported",
            "Exception: Failed to download {url}; HTTP error 404",
        ),
        (
            "2.65.0",
            "'ftp://cvat.test/a.png': remote_files entries must be http(s) URLs.",
            "rest_framework.exceptions.ValidationError: "
            "[ErrorDetail(string='Failed to download {url}; HTTP error 404', code='invalid')]",
        ),
    ],
)
def test_words_for_remote_files(
    server_of: ServerOf, version: str, scheme: str, missing: str
) -> None:
    call = server_of(version)

    def said_of(url: str) -> str:
        """What the server says of a remote file, at once or in the end."""
        task_id = call.create()
        body = {"image_quality": 70, "remote_files": [url]}
        answer = call("POST", f"/api/tasks/{task_id}/data", json=body)
        if answer.status == 400:
            return str(answer.json()["remote_files"][0])
        call.server.wait_idle()
        return str(call.request_of(task_id).json()["message"].splitlines()[-1])

    assert said_of("ftp://cvat.test/a.png") == scheme
    with getting(lambda _: (404, {}, b"")) as (url, _):
        assert said_of(f"{url}/a.png") == missing.format(url=f"{url}/a.png")


@pytest.mark.parametrize(("version", "lines"), [("2.69.0", [4, 1]), ("2.70.0", [1, 1])])
def test_failure_with_a_traceback(server_of: ServerOf, version: str, lines: list[int]) -> None:
    call = server_of(version)
    task_id = call.create()
    call("POST", f"/api/tasks/{task_id}/data", headers={**call.http.headers, "Upload-Start": ""})
    call.upload(task_id, "a.jpg", content=b"no image")
    call.server.wait_idle()
    first, second = (call.request_of(task_id).json()["message"].splitlines() for _ in range(2))
    assert [len(first), len(second)] == lines
    assert first[-1] == second[-1]
    assert first[-1].startswith("PIL.UnidentifiedImageError")


@pytest.mark.parametrize(
    ("version", "prepared", "status"),
    [
        ("2.69.0", False, "finished"),
        ("2.70.0", False, "failed"),
        ("2.70.0", True, "finished"),
        ("2.72.1", False, "failed"),
        ("2.73.0", False, "finished"),
    ],
)
def test_import_before_the_commit(
    server_of: ServerOf, version: str, prepared: bool, status: str
) -> None:
    call = server_of(version)
    task_id = call.create()
    if prepared:
        headers = {**call.http.headers, "Upload-Start": ""}
        assert call("POST", f"/api/tasks/{task_id}/data", headers=headers).status == 202
    assert call.upload(task_id, "a.jpg").status == 202
    call.server.wait_idle()
    request = call.request_of(task_id).json()
    assert request["status"] == status
    assert ("Task.DoesNotExist" in request["message"]) == (status == "failed")


@pytest.mark.parametrize(("version", "known"), [("2.72.0", False), ("2.73.0", True)])
def test_webhooks_of_imports(server_of: ServerOf, version: str, known: bool) -> None:
    call = server_of(version)
    project = call("POST", "/api/projects", json={"name": "p", "labels": [{"name": "car"}]})
    event = "completed:request[create:task]"
    with receiver() as (url, delivered):
        hook = {"target_url": url, "type": "project", "project_id": project.json()["id"]}
        both = call("POST", "/api/webhooks", json={**hook, "events": ["create:job", event]})
        if known:
            assert both.status == 201
        else:
            assert both.status == 400
            assert both.json() == {"events": [f'"{event}" is not a valid choice.']}
            alone = call("POST", "/api/webhooks", json={**hook, "events": ["create:job"]})
            assert alone.status == 201
        task_id = call.create(project_id=hook["project_id"], labels=[])
        headers = {**call.http.headers, "Upload-Start": ""}
        call("POST", f"/api/tasks/{task_id}/data", headers=headers)
        call.upload(task_id, "a.jpg")
        call.server.wait_idle()
        expected = ["create:job", event] if known else ["create:job"]
        assert [each.json["event"] for each in delivered] == expected


def test_the_command_takes_a_version(tmp_path: Path) -> None:
    """And the product refuses one that is too old, before it asks for anything."""
    arguments = ("simulator", "--port", "0", "--speed", "0", "--cvat-version")
    with running(*arguments, "2.30", cwd=tmp_path) as simulator:
        url = simulator.wait_for("CVAT_URL=").partition("=")[2]
        token = simulator.wait_for("CVAT_ACCESS_TOKEN=").partition("=")[2]
        (tmp_path / "config.toml").write_text(
            f'[cvat]\nurl = "{url}"\n[templates.scenes]\nlabels = [{{ name = "car" }}]\n'
        )
        checked = cvat_pool("check", cwd=tmp_path, CVAT_ACCESS_TOKEN=token)
    assert checked.returncode != 0
    assert "CVAT 2.30.0 is older than 2.48" in checked.stdout + checked.stderr
    refused = cvat_pool(*arguments, "newest", cwd=tmp_path)
    assert refused.returncode == 2
    assert "'newest' is no version of CVAT's" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
