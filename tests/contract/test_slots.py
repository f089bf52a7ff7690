"""Slots on a share, by the client, against the simulator and a real CVAT alike.

As recorded (slots, slots_drop): jobs that exist before their files are filled.
"""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

import pytest
from PIL import Image

from contract.uploads import UNKNOWN_ID, data_meta, send
from pool.config.data_params import DataParams
from pool.config.source import build_upload
from pool.cvat import CvatClient
from pool.cvat.failures import Answer
from pool.errors import CvatBusy, CvatNotFound, CvatRejected
from pool.model import Job, new_id

if TYPE_CHECKING:
    from contract.conftest import Maker, Server

WaitForJobs = Callable[[int], tuple[Job, ...]]
Color = tuple[int, int, int]

GREY: Color = (128, 128, 128)
RED: Color = (254, 0, 0)
BLUE: Color = (0, 0, 254)
QUALITIES: tuple[Literal["compressed", "original"], ...] = ("compressed", "original")


def jpeg(color: Color, size: tuple[int, int] = (64, 48)) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size, color).save(content, "JPEG")
    return content.getvalue()


def color_of(picture: bytes) -> Color:
    """The nearest of the colors that the tests use."""
    with Image.open(io.BytesIO(picture)) as image:
        pixel = image.convert("RGB").resize((1, 1)).getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return min(
        (GREY, RED, BLUE),
        key=lambda color: sum(abs(a - b) for a, b in zip(color, pixel, strict=True)),
    )


class Carrier:
    """A task that was imported over placeholders, a job each, all of them hidden."""

    def __init__(self, client: CvatClient, folder: Path, task_id: int) -> None:
        self.client = client
        self.folder = folder
        self.task_id = task_id
        self.jobs: tuple[Job, ...] = ()

    def write(self, number: int, color: Color) -> None:
        (self.folder / f"{number}.jpg").write_bytes(jpeg(color))

    def color(self, number: int, quality: Literal["compressed", "original"]) -> Color:
        return color_of(self.client.frame(self.task_id, number, quality))

    def colors(self, number: int) -> tuple[Color, ...]:
        """As compressed and as original."""
        return tuple(self.color(number, quality) for quality in QUALITIES)

    def preview(self, number: int) -> Color:
        """Of the job, in the list of jobs."""
        return color_of(self._get(f"/api/jobs/{self.jobs[number].id}/preview").data)

    def exported(self) -> dict[int, Color]:
        """The pictures in an export of the task, by slot."""
        query = {"format": "CVAT for images 1.1", "save_images": "true"}
        path = f"/api/tasks/{self.task_id}/dataset"
        transport = self.client._transport
        rq_id = transport.call("export", "POST", f"{path}/export", query=query).json()["rq_id"]
        while True:
            request = self._get(f"/api/requests/{rq_id}").json()
            assert request["status"] != "failed", request["message"]
            if request["status"] == "finished":
                break
        content = self._get(f"{path}/download?rq_id={quote(rq_id, safe='')}").data
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return {
                int(Path(name).stem): color_of(archive.read(name))
                for name in archive.namelist()
                if name.endswith(".jpg")
            }

    def _get(self, path: str) -> Answer:
        return self.client._transport.call("look", "GET", path)


@pytest.fixture
def folder(server: Server) -> Iterator[Path]:
    """A folder of its own on the server's share."""
    if server.share is None or server.cloud_storage is None:
        pytest.skip("CVAT_SHARE and CVAT_CLOUD_STORAGE are not set")
    folder = server.share / f"contract-{new_id()}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def carrier(
    client: CvatClient, folder: Path, make_task: Maker, wait_for_jobs: WaitForJobs
) -> Carrier:
    carrier = Carrier(client, folder, make_task("carrier"))
    for number in range(4):
        carrier.write(number, GREY)
    keys = [f"{folder.name}/{number}.jpg" for number in range(4)]
    data = build_upload(share=keys, params={"job_file_mapping": [[key] for key in keys]})
    params = DataParams(use_cache=True, copy_data=False, chunk_size=1)
    send(client, carrier.task_id, data, params=params)
    carrier.jobs = wait_for_jobs(carrier.task_id)
    assert client.show_frames(carrier.task_id, range(4), cloud_storage_id=None) == {0, 1, 2, 3}
    return carrier


def test_a_carrier_has_a_job_for_each_slot(carrier: Carrier) -> None:
    assert [(job.start_frame, job.stop_frame) for job in carrier.jobs] == [
        (number, number) for number in range(4)
    ]
    meta = data_meta(carrier.client, carrier.task_id)
    assert (meta["storage"], meta["chunk_size"], meta["size"]) == ("share", 1, 4)
    assert carrier.client.hidden_frames(carrier.task_id) == {0, 1, 2, 3}


def test_the_story_of_a_carrier(carrier: Carrier, server: Server) -> None:
    """Looked at and exported while it was empty, half-filled and exported, filled and exported."""
    client, task_id, storage = carrier.client, carrier.task_id, server.cloud_storage
    assert carrier.colors(1) == (GREY, GREY)
    assert carrier.preview(2) == GREY
    assert carrier.exported() == {}
    carrier.write(1, RED)
    carrier.write(2, BLUE)
    assert client.show_frames(task_id, [0, 3], cloud_storage_id=storage) == {0, 3}
    assert client.hidden_frames(task_id) == {0, 3}
    grey, red, blue = (GREY, GREY), (RED, RED), (BLUE, BLUE)
    assert [carrier.colors(number) for number in range(4)] == [grey, red, blue, grey]
    assert carrier.preview(2) == BLUE
    assert carrier.exported() == {1: RED, 2: BLUE}
    carrier.write(0, BLUE)
    carrier.write(3, RED)
    assert client.show_frames(task_id, [], cloud_storage_id=storage) == set()
    assert [carrier.colors(number) for number in range(4)] == [blue, red, blue, red]
    assert carrier.exported() == {0: BLUE, 1: RED, 2: BLUE, 3: RED}


def test_what_was_read_too_early_stays_until_it_is_dropped(
    carrier: Carrier, server: Server
) -> None:
    """Each quality apart; the import has read the first frame as annotators see it."""
    client, task_id = carrier.client, carrier.task_id
    assert carrier.color(1, "compressed") == GREY
    assert carrier.color(2, "original") == GREY
    for number in range(4):
        carrier.write(number, RED)
    too_early = [(GREY, RED), (GREY, RED), (RED, GREY), (RED, RED)]
    assert [carrier.colors(number) for number in range(4)] == too_early
    assert client.show_frames(task_id, [3], cloud_storage_id=None) == {3}
    assert [carrier.colors(number) for number in range(4)] == too_early
    assert client.show_frames(task_id, [3], cloud_storage_id=server.cloud_storage) == {3}
    assert [carrier.colors(number) for number in range(4)] == [(RED, RED)] * 4


def test_a_file_that_is_gone(carrier: Carrier) -> None:
    """The server fails, except for what it has read before."""
    assert carrier.color(1, "original") == GREY
    (carrier.folder / "1.jpg").unlink()
    (carrier.folder / "2.jpg").write_bytes(b"no picture")
    assert carrier.color(1, "original") == GREY
    for number in (1, 2):
        with pytest.raises(CvatBusy, match="500"):
            carrier.client.frame(carrier.task_id, number, "compressed")


def test_a_picture_of_another_size(carrier: Carrier) -> None:
    """Shown as it is, while the server goes on to say that it has the placeholder's size."""
    (carrier.folder / "3.jpg").write_bytes(jpeg(RED, (128, 96)))
    with Image.open(io.BytesIO(carrier.client.frame(carrier.task_id, 3, "compressed"))) as image:
        assert image.size == (128, 96)
    frame = data_meta(carrier.client, carrier.task_id)["frames"][3]
    assert (frame["width"], frame["height"]) == (64, 48)


def test_a_refused_call_shows_nothing(carrier: Carrier, server: Server) -> None:
    client, task_id = carrier.client, carrier.task_id
    with pytest.raises(CvatRejected, match="CloudStorage matching query does not exist"):
        client.show_frames(task_id, [0], cloud_storage_id=UNKNOWN_ID)
    with pytest.raises(CvatRejected, match="Unknown frames 99 requested for removal"):
        client.show_frames(task_id, [99], cloud_storage_id=server.cloud_storage)
    assert client.hidden_frames(task_id) == {0, 1, 2, 3}
    with pytest.raises(CvatNotFound):
        client.show_frames(UNKNOWN_ID, [], cloud_storage_id=None)
    with pytest.raises(CvatNotFound):
        client.frame(UNKNOWN_ID, 0, "compressed")


def test_annotations_of_a_slot(carrier: Carrier) -> None:
    """Also on a frame that is hidden."""
    client, job = carrier.client, carrier.jobs[2]
    labels = client._transport.call(
        "labels", "GET", "/api/labels", query={"task_id": carrier.task_id}
    ).json()
    assert not client.annotated(job.id)
    box = {
        "type": "rectangle",
        "frame": job.start_frame,
        "label_id": labels["results"][0]["id"],
        "points": [5, 5, 20, 20],
        "occluded": False,
    }
    path = f"/api/jobs/{job.id}/annotations"
    body = {"version": 0, "tags": [], "shapes": [box], "tracks": []}
    client._transport.call("annotate", "PUT", path, data=body)
    assert client.annotated(job.id)
    assert not client.annotated(carrier.jobs[1].id)
    with pytest.raises(CvatNotFound):
        client.annotated(UNKNOWN_ID)
