"""Unmodified cvat-sdk and cvat-cli against the simulator."""

from __future__ import annotations

import gc
import io
import json
import logging
import os
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cvat_sdk import Client, Config, make_client, models
from cvat_sdk.api_client import exceptions
from cvat_sdk.core import uploading
from cvat_sdk.core.exceptions import BackgroundRequestException
from cvat_sdk.core.proxies.tasks import ResourceType, Task
from PIL import Image
from support.served import files_at, receiver

from pool.simulator import (
    CloudStorageSettings,
    OrganizationSettings,
    SimulatorServer,
    SimulatorSettings,
    Timings,
    UserSettings,
)

LABELS = [
    models.PatchedLabelRequest(name="car", type="rectangle"),
    models.PatchedLabelRequest(name="person"),
]


def image(path: Path, size: tuple[int, int] = (64, 48), padding: int = 0) -> Path:
    """Write a JPEG; what follows its end makes it as large as wanted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "teal").save(path, "JPEG")
    with path.open("ab") as file:
        file.write(bytes(padding))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[SimulatorServer]:
    image(folder / "share" / "day" / "2.jpg")
    image(folder / "share" / "day" / "10.jpg")
    settings = SimulatorSettings(
        timings=Timings.zero(),
        users=(
            UserSettings(username="bot", is_superuser=True, groups=("admin",)),
            UserSettings(username="ann", password="ann-has-one"),
        ),
        organizations=(OrganizationSettings(slug="lab"),),
        share=folder / "share",
        cloud_storages=(
            CloudStorageSettings(
                display_name="bucket",
                objects={"x/1.jpg": image(folder / "cloud.jpg").read_bytes(), "x/notes.txt": b"-"},
            ),
        ),
    )
    with SimulatorServer(settings) as server:
        yield server


@pytest.fixture
def client(server: SimulatorServer) -> Iterator[Client]:
    with connect(server, server.access_token) as client:
        yield client


def connect(server: SimulatorServer, token: str | None = None) -> Client:
    logger = logging.getLogger("cvat-sdk-under-test")
    # The SDK warns of every server that is not of its own version.
    logger.setLevel(logging.ERROR)
    client = Client(server.url, logger=logger, config=Config(status_check_period=0.005))
    if token is not None:
        client.api_client.configuration.access_token = token
    return client


def create(client: Client, name: str, **spec: Any) -> Task:
    if "project_id" not in spec:
        spec.setdefault("labels", LABELS)
    return client.tasks.create(models.TaskWriteRequest(name=name, **spec))


def test_create_from_data(client: Client, folder: Path) -> None:
    files = [image(folder / f"f{number}.jpg") for number in (10, 9, 1)]
    task = client.tasks.create_from_data(
        models.TaskWriteRequest(name="from data", labels=LABELS, segment_size=2),
        files,
        data_params={"image_quality": 55, "sorting_method": "natural", "chunk_size": 3},
    )
    assert (task.size, task.mode, task.dimension, task.image_quality) == (3, "annotation", "2d", 55)
    assert task.data_chunk_size == 3
    assert [(job.start_frame, job.stop_frame) for job in reversed(task.get_jobs())] == [
        (0, 1),
        (2, 2),
    ]
    assert [frame.name for frame in task.get_frames_info()] == ["f1.jpg", "f9.jpg", "f10.jpg"]
    assert [label.name for label in task.get_labels()] == ["car", "person"]


def test_predefined_order_survives_the_sdks_reordering(client: Client, folder: Path) -> None:
    files = [image(folder / name) for name in ("c.jpg", "a.jpg", "b.jpg")]
    task = create(client, "predefined")
    task.upload_data(files, params={"sorting_method": "predefined"})
    assert [frame.name for frame in task.get_frames_info()] == ["c.jpg", "a.jpg", "b.jpg"]


def test_large_files_go_in_pieces(
    client: Client, server: SimulatorServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults = uploading.DataUploader.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, "max_request_size", 50_000)
    monkeypatch.setattr(uploading, "TUS_CHUNK_SIZE", 40_000)
    pieces = server.stats.calls["tus:patch"]
    large = image(folder / "large.jpg", padding=150_000)
    task = create(client, "large")
    task.upload_data([large, image(folder / "small.jpg")])
    assert task.size == 2
    assert server.stats.calls["tus:patch"] - pieces == 4
    assert task.get_frame(0, quality="original").read() == large.read_bytes()


def test_failed_import_is_raised(client: Client, folder: Path) -> None:
    broken = folder / "broken.jpg"
    broken.write_bytes(b"no picture")
    task = create(client, "failing")
    with pytest.raises(BackgroundRequestException, match="cannot identify image file"):
        task.upload_data([broken])
    task.fetch()
    assert (task.size, task.jobs.count) == (0, 0)


def test_share_remote_and_cloud_files(
    client: Client, folder: Path, server: SimulatorServer
) -> None:
    shared = create(client, "share")
    shared.upload_data(
        ["day"], resource_type=ResourceType.SHARE, params={"sorting_method": "natural"}
    )
    assert [f.name for f in shared.get_frames_info()] == ["day/2.jpg", "day/10.jpg"]
    cloud = create(client, "cloud")
    cloud.upload_data(["x/1.jpg"], resource_type=ResourceType.SHARE, params={"cloud_storage_id": 1})
    assert (cloud.size, cloud.data_cloud_storage_id) == (1, 1)
    remote = create(client, "remote")
    with files_at(folder) as url:
        image(folder / "remote.jpg")
        remote.upload_data([f"{url}/remote.jpg"], resource_type=ResourceType.REMOTE)
    assert [f.name for f in remote.get_frames_info()] == ["remote.jpg"]


def test_archive(client: Client, folder: Path) -> None:
    archive = folder / "images.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for name in ("in/2.jpg", "in/1.jpg"):
            target.write(image(folder / name), name)
        target.writestr("readme.txt", "no image")
    task = create(client, "archive")
    task.upload_data([archive])
    assert [frame.name for frame in task.get_frames_info()] == ["in/1.jpg", "in/2.jpg"]


def test_frames_and_preview(client: Client, folder: Path) -> None:
    task = create(client, "frames")
    task.upload_data([image(folder / "one.jpg", (300, 200))])
    with warnings.catch_warnings():
        # The SDK leaves the frame's temporary file to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        task.download_frames([0], outdir=folder / "frames")
        gc.collect()
    with Image.open(folder / "frames" / "frame_000000.jpg") as frame:
        assert frame.size == (300, 200)
    with Image.open(task.get_preview()) as preview:
        assert max(preview.size) == 256
    task.remove_frames_by_ids([0])
    assert task.get_meta().deleted_frames == [0]
    job = task.get_jobs()[0]
    _, chunk = client.api_client.jobs_api.retrieve_data(
        job.id, type="chunk", number=0, _parse_response=False
    )
    with zipfile.ZipFile(io.BytesIO(chunk.data)) as archive:
        assert archive.namelist() == ["000000.jpeg"]


def test_project_with_labels(client: Client) -> None:
    project = client.projects.create(models.ProjectWriteRequest(name="p", labels=LABELS))
    assert [label.name for label in project.get_labels()] == ["car", "person"]
    task = create(client, "in it", project_id=project.id)
    assert [label.name for label in task.get_labels()] == ["car", "person"]
    assert [found.id for found in project.get_tasks()] == [task.id]
    project.fetch()
    assert project.tasks.count == 1
    project.update(models.PatchedProjectWriteRequest(name="renamed"))
    assert project.name == "renamed"
    project.remove()
    with pytest.raises(exceptions.NotFoundException):
        task.fetch()


def test_lists_are_whole_and_tasks_can_be_changed(client: Client) -> None:
    made = [create(client, f"many {number}").id for number in range(12)]
    listed = {task.id for task in client.tasks.list()}
    assert listed >= set(made)
    task = client.tasks.retrieve(made[0])
    task.update(models.PatchedTaskWriteRequest(name="other", assignee_id=2, subset="val"))
    assert (task.name, task.assignee.username, task.subset) == ("other", "bot", "val")
    client.tasks.remove_by_ids([*made, 999_999])
    assert not {task.id for task in client.tasks.list()} & set(made)


def test_jobs_can_be_assigned(client: Client, folder: Path) -> None:
    task = create(client, "assigning")
    task.upload_data([image(folder / "job.jpg")])
    (job,) = task.get_jobs()
    job.update(models.PatchedJobWriteRequest(assignee=3, state="in progress"))
    assert (job.assignee.username, str(job.state)) == ("ann", "in progress")
    assert [user.username for user in client.users.list()] == ["ann", "bot"]


def test_organization_is_a_world_of_its_own(client: Client, folder: Path) -> None:
    personal = create(client, "personal")
    with client.organization_context("lab"):
        shared = create(client, "shared")
        shared.upload_data([image(folder / "lab.jpg")])
        assert shared.organization_id == 1
        assert [task.id for task in client.tasks.list()] == [shared.id]
        assert {job.task_id for job in client.jobs.list()} == {shared.id}
    with client.organization_context(""):
        ids = {task.id for task in client.tasks.list()}
        assert personal.id in ids
        assert shared.id not in ids
    with (
        client.organization_context("nobody"),
        pytest.raises(exceptions.NotFoundException, match="nobody organization does not exist"),
    ):
        client.tasks.list()


def test_password_login_makes_a_session(server: SimulatorServer) -> None:
    with connect(server) as client:
        client.login((server.username, server.password))
        task = create(client, "by password")
        client.api_client.configuration.api_key.clear()
        with pytest.raises(exceptions.ForbiddenException, match="CSRF token missing"):
            task.remove()


def test_wrong_credentials_are_refused(server: SimulatorServer) -> None:
    with connect(server, "wrong") as client:
        with pytest.raises(exceptions.UnauthorizedException):
            client.tasks.list()
        client.api_client.configuration.access_token = None
        with pytest.raises(exceptions.ApiException, match="Unable to log in"):
            client.login(("bot", "wrong"))


def test_readonly_token_reads_only(server: SimulatorServer) -> None:
    with connect(server, server.readonly_token) as client:
        assert client.users.retrieve_current_user().username == "bot"
        with pytest.raises(exceptions.ForbiddenException):
            create(client, "forbidden")


def test_others_do_not_see_personal_tasks(server: SimulatorServer, client: Client) -> None:
    task = create(client, "mine")
    with connect(server) as other:
        other.login(("ann", "ann-has-one"))
        assert task.id not in {found.id for found in other.tasks.list()}
        with pytest.raises(exceptions.ForbiddenException):
            other.tasks.retrieve(task.id)


def test_webhooks_are_signed(client: Client, server: SimulatorServer, folder: Path) -> None:
    project = client.projects.create(models.ProjectWriteRequest(name="hooked", labels=LABELS))
    with receiver() as (url, got):
        webhook, _ = client.api_client.webhooks_api.create(
            models.WebhookWriteRequest(
                target_url=url,
                type="project",
                project_id=project.id,
                content_type="application/json",
                secret="a secret",
                events=["create:job", "completed:request[create:task]"],
            )
        )
        task = create(client, "hooked", project_id=project.id, segment_size=1)
        task.upload_data([image(folder / "h1.jpg"), image(folder / "h2.jpg")])
        server.wait_idle()
        deliveries, _ = client.api_client.webhooks_api.list_deliveries(webhook.id)
        client.api_client.webhooks_api.create_deliveries_redelivery(
            str(deliveries.results[0].id), webhook.id
        )
        server.wait_idle()
        client.api_client.webhooks_api.destroy(webhook.id)
    assert [delivery.json["event"] for delivery in got] == [
        "create:job",
        "create:job",
        "completed:request[create:task]",
        "completed:request[create:task]",
    ]
    jobs = {delivery.json["job"]["id"] for delivery in got[:2]}
    assert jobs == {job.id for job in task.get_jobs()}
    assert all(delivery.signed_with("a secret") for delivery in got)


def test_make_client_connects(server: SimulatorServer) -> None:
    with make_client(server.url, access_token=server.access_token) as client:
        assert client.get_server_version().release == (2, 73, 0)


def cli(server: SimulatorServer, *arguments: str) -> str:
    """Run cvat-cli in a process of its own and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "cvat_cli", "--server-host", server.url, *arguments],
        env=os.environ | {"CVAT_ACCESS_TOKEN": server.access_token},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_command_line_client(server: SimulatorServer, client: Client, folder: Path) -> None:
    labels = json.dumps([{"name": "car", "attributes": []}])
    first, second = image(folder / "cli-1.jpg"), image(folder / "cli-2.jpg")
    made = cli(
        server, "task", "create", "by cli", "--labels", labels, "--completion_verification_period",
        "0.01", "local", str(first), str(second),
    )  # fmt: skip
    task_id = int(made.split()[-1])
    assert client.tasks.retrieve(task_id).size == 2
    assert str(task_id) in cli(server, "task", "ls").split()
    cli(server, "task", "delete", str(task_id))
    with pytest.raises(exceptions.NotFoundException):
        client.tasks.retrieve(task_id)


def test_server_starts_and_stops_quickly() -> None:
    started = time.perf_counter()
    server = SimulatorServer(SimulatorSettings(timings=Timings.zero())).start()
    kept = server.simulator.folder
    assert kept.exists()
    server.stop()
    server.stop()
    assert not kept.exists()
    assert time.perf_counter() - started < 5.0
