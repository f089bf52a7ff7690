"""Uploads whose answer is lost, into tasks that may have others' data."""

from __future__ import annotations

import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import pytest
from support.clock import ManualClock
from support.scripted import ScriptedCvat
from support.stepped import Stepped, beside, caller
from support.waiting import PATIENCE

from pool import TaskPool
from pool.config.source import build_upload
from pool.cvat.failures import OTHER_DATA
from pool.errors import ImportFailed
from pool.maintenance.heartbeat import TERM
from pool.model import RequestState
from pool.requests import sending
from pool.simulator import SimulatorServer
from pool.simulator.faults import Cut, Error, Fault

THEIRS = ["other-0.jpg"]


@pytest.fixture
def pool(config_path: Path, log_in: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[TaskPool]:
    """Without a pause before a task is created, nor before it is looked what came of an upload."""
    monkeypatch.setattr(sending, "SETTLE_LOOKS", (0.0, 0.1))
    config_path.write_text(config_path.read_text().replace('max_wait = "5s"', 'max_wait = "0s"'))
    with TaskPool.from_config(config_path) as pool:
        yield pool


def zipped(image: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("day/a.jpg", image)
    return stream.getvalue()


def tarred(image: bytes, mode: Literal["w", "w:gz"] = "w:gz") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        member = tarfile.TarInfo("day/a.jpg")
        member.size = len(image)
        archive.addfile(member, io.BytesIO(image))
    return stream.getvalue()


@pytest.fixture(params=["images", "zip", "tar", "file on the share", "folder on the share"])
def data(request: pytest.FixtureRequest, image: bytes) -> tuple[dict[str, Any], list[str]]:
    """What is uploaded, and what its frames are called."""
    share = ["cam1/a.jpg", "cam1/b.jpg"]
    match request.param:
        case "images":
            return {"files": [("a b.jpg", image), ("b.jpg", image)]}, ["a b.jpg", "b.jpg"]
        case "zip":
            return {"files": [("a.zip", zipped(image))]}, ["day/a.jpg"]
        case "tar":
            return {"files": [("a.tar.gz", tarred(image))]}, ["day/a.jpg"]
        case "file on the share":
            return {"share": share[:1]}, share[:1]
        case _:
            return {"share": ["cam1/"]}, share


def frames(simulator: SimulatorServer, task_id: int | None) -> list[str]:
    data = simulator.state.tasks[task_id or 0].data
    return [frame.name for frame in data.frames] if data else []


@pytest.mark.parametrize(
    "fault",
    [
        Error("data:post", status=502, times=1),
        Cut("data:post", times=1),
        Cut("data:post", at="after", times=1),
    ],
    ids=str,
)
def test_data_of_others_is_not_taken_for_the_requests(
    pool: TaskPool, simulator: SimulatorServer, data: tuple[dict[str, Any], list[str]], fault: Fault
) -> None:
    """People filled the task before, and the answer to our upload was lost."""
    given, names = data
    lease = pool.acquire("scenes")
    simulator.actions.fill_task(lease.task_id)
    with simulator.fault(fault):
        request = lease.upload(**given)
    assert len(request.jobs(timeout=20)) == 1
    assert request.task_id != lease.task_id
    assert frames(simulator, request.task_id) == names
    # Theirs is left alone.
    with beside(pool) as daemon:
        daemon.run("delete")
    assert frames(simulator, lease.task_id) == THEIRS


@pytest.mark.parametrize("slow", [False, True], ids=["jobs are there", "import is under way"])
def test_what_arrived_is_not_sent_again(
    pool: TaskPool,
    simulator: SimulatorServer,
    data: tuple[dict[str, Any], list[str]],
    slow: bool,
) -> None:
    given, names = data
    lease = pool.acquire("scenes")
    with ExitStack() as stack:
        if slow:
            simulator.hold_imports()
            stack.callback(simulator.release_imports)
        stack.enter_context(simulator.fault(Cut("data:post", at="after", times=1)))
        request = lease.upload(**given)
    assert len(request.jobs(timeout=20)) == 1
    assert request.task_id == lease.task_id
    assert frames(simulator, request.task_id) == names


def test_an_import_of_others_that_is_under_way_is_not_taken_for_the_requests(
    pool: TaskPool, simulator: SimulatorServer, image: bytes
) -> None:
    """No frames tell anything yet; when they do, a caller whose data is not kept hears of it."""
    lease = pool.acquire("scenes")
    other = pool.process.cvat()
    template = pool.settings.templates["scenes"]
    simulator.hold_imports()
    try:
        other.upload(
            lease.task_id,
            build_upload([("theirs.jpg", image)]),
            template.data,
            single_request_limit=10**6,
            prepared=True,
        )
        with simulator.fault(Error("data:post", status=502, times=1)):
            request = lease.upload([("ours.jpg", image)])
    finally:
        simulator.release_imports()
    with pytest.raises(ImportFailed, match=OTHER_DATA):
        request.jobs(timeout=20)
    assert request.state is RequestState.FAILED


@pytest.mark.parametrize(
    ("name", "content", "found", "end"),
    [
        ("ours.jpg", b"image", "theirs.jpg", RequestState.FAILED),
        ("ours.jpg", b"image", "ours.jpg", RequestState.READY),
        ("a.zip", zipped(b"image"), "theirs.jpg", RequestState.FAILED),
        ("a.zip", zipped(b"image"), "day/a.jpg", RequestState.READY),
        ("a.tar", tarred(b"image", "w"), "theirs.jpg", RequestState.FAILED),
        ("a.tar", tarred(b"image", "w"), "day/a.jpg", RequestState.READY),
        # Its members are not listed before it is sent, so that nothing counts as its own.
        ("a.tar.gz", tarred(b"image"), "theirs.jpg", RequestState.FAILED),
    ],
)
def test_what_a_dead_process_may_have_sent_is_known_by_its_frames(
    daemon: Stepped,
    cvat: ScriptedCvat,
    clock: ManualClock,
    name: str,
    content: bytes,
    found: str,
    end: RequestState,
) -> None:
    """It stops in its upload, and there are jobs in its task."""
    sending_it, go_on = threading.Event(), threading.Event()

    def hang(operation: str) -> None:
        if operation == "upload":
            sending_it.set()
            assert go_on.wait(PATIENCE)

    cvat.before = hang
    with caller(daemon.process.settings, daemon.store, cvat, clock) as dying:
        thread = threading.Thread(target=dying.submit, args=("scenes", [(name, content)]))
        thread.start()
        assert sending_it.wait(PATIENCE)
        try:
            [request] = daemon.store.requests().requests
            task_id = request.task_id or 0
            cvat.make_ready(task_id)
            cvat.frames_there[task_id] = (found,)
            daemon.advance(TERM + 1.0)
            assert daemon.run("adopt") == 1
            daemon.track()
            assert daemon.read(request.id).state is end
        finally:
            go_on.set()
            thread.join(PATIENCE)
