"""``chunk_size``: what "auto", "server" and a number come to."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pool.config.data_params import DataParams
from pool.config.source import LocalFile, Upload
from pool.cvat.chunking import MOST_PIXELS, auto_chunk_size, chunk_size_for, server_chunk_size
from pool.cvat.upload import data_fields


@cache
def image(width: int = 1920, height: int = 1080, kind: str = "JPEG") -> bytes:
    content = io.BytesIO()
    # Without compression a large image of one colour is made in no time.
    Image.new("1" if kind == "TIFF" else "L", (width, height)).save(content, kind)
    return content.getvalue()


def local(content: bytes, count: int = 36, name: str = "{}.jpg") -> list[LocalFile]:
    return [LocalFile(name.format(number), content, len(content)) for number in range(count)]


@pytest.mark.parametrize(
    ("width", "height", "server", "auto"),
    [
        (100, 100, 72, 72),
        (640, 480, 72, 27),
        (1280, 720, 72, 9),
        (1920, 1080, 36, 4),
        (2560, 1440, 20, 2),
        (3840, 2160, 9, 2),
        (20_000, 20_000, 2, 2),
    ],
)
def test_the_first_chunk_has_a_bounded_number_of_pixels(
    width: int, height: int, server: int, auto: int
) -> None:
    pixels = width * height
    assert server_chunk_size(pixels) == server
    assert auto_chunk_size(pixels) == auto
    assert auto * pixels <= MOST_PIXELS or auto == 2


@pytest.mark.parametrize(
    ("files", "size"),
    [
        (lambda: [], None),
        (lambda: local(image(), 1), None),
        (lambda: local(image(), 2), None),
        (lambda: local(image(), 4), None),
        (lambda: local(image(), 5), 4),
        (lambda: local(image(1280, 720)), 9),
        (lambda: local(image(kind="PNG"), name="{}.PNG"), 4),
        (lambda: local(image(kind="TIFF"), name="cam/{}.tif"), 4),
        (lambda: local(image(kind="WEBP"), name="{}.webp"), 4),
        # The largest of the images that are looked at counts.
        (lambda: [*local(image(640, 480), 35), *local(image(3840, 2160), 1, "last{}.jpg")], 2),
        # Far beyond what Pillow would decode without a warning, or at all.
        (lambda: local(image(20_000, 20_000, "TIFF"), 3, "{}.tif"), 2),
        # What is no image by its name, or by its content, is the server's business.
        (lambda: [*local(image()), *local(b"%PDF", 1, "{}.pdf")], None),
        (lambda: local(image(), name="{}.mp4"), None),
        (lambda: local(image(), name="{}"), None),
        (lambda: local(b"no image"), None),
        (lambda: local(image(), name="{}.png"), None),
    ],
)
def test_the_chunk_size_for_files(files: Callable[[], list[LocalFile]], size: int | None) -> None:
    assert chunk_size_for(files()) == size


def test_images_are_read_from_wherever_they_are(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(image())
    stream = io.BytesIO(b"before" + image())
    stream.seek(6)
    reading, writing = os.pipe()
    assert chunk_size_for([LocalFile(f"{n}.jpg", path, 1) for n in range(36)]) == 4
    assert chunk_size_for([LocalFile(f"{n}.jpg", stream, 1) for n in range(36)]) == 4
    assert stream.tell() == 6
    with os.fdopen(writing, "wb") as end:
        end.write(b"the image")
    with os.fdopen(reading, "rb") as pipe:
        assert chunk_size_for([LocalFile(f"{n}.jpg", pipe, 1) for n in range(36)]) is None
        assert pipe.read() == b"the image"
    gone = [LocalFile(f"{n}.jpg", tmp_path / "gone.jpg", 1) for n in range(36)]
    assert chunk_size_for(gone) is None


def test_one_image_is_not_looked_at() -> None:
    class Untouchable(io.BytesIO):
        def read(self, *_: Any) -> bytes:
            raise AssertionError("read")

    assert chunk_size_for([LocalFile("a.jpg", Untouchable(image()), 9)]) is None


@pytest.mark.parametrize(
    ("setting", "extra", "sent"),
    [
        ("auto", {}, 4),
        ("server", {}, None),
        (7, {}, 7),
        ("auto", {"chunk_size": 5}, 5),
        (7, {"chunk_size": "auto"}, 4),
        (7, {"chunk_size": "server"}, None),
    ],
)
def test_what_is_sent(setting: Any, extra: dict[str, Any], sent: int | None) -> None:
    data = Upload(files=tuple(local(image())), extra=extra)
    assert data_fields(data, DataParams(chunk_size=setting))["chunk_size"] == sent


@pytest.mark.parametrize(
    "data", [Upload(share=("a.jpg",) * 9), Upload(urls=("http://x/a.jpg",)), Upload(cloud=(1, ()))]
)
def test_what_the_server_gets_by_itself_is_its_own_choice(data: Upload) -> None:
    assert data_fields(data, DataParams())["chunk_size"] is None
