"""Pictures of one colour, which says whose they are, and what a server has of them."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import urllib3
from PIL import Image

from pool.simulator import SimulatorServer

Colour = tuple[int, ...]


def colour(whose: object) -> Colour:
    """Return the colour of the pictures of one owner, which is known by its text."""
    return tuple(hashlib.sha256(str(whose).encode()).digest()[:3])


def picture(whose: object, *, size: int = 16, format: str = "PNG") -> bytes:
    """Return a picture in the colour of its owner."""
    stream = io.BytesIO()
    Image.new("RGB", (size, size), colour(whose)).save(stream, format)
    return stream.getvalue()


def corrupt_picture(whose: object) -> bytes:
    """Return a picture whose head is in order, and whose pixels are not all there."""
    return picture(whose, size=64)[:90]


def colour_of(content: bytes) -> Colour:
    """Return the colour of a picture."""
    with Image.open(io.BytesIO(content)) as image:
        pixel = image.convert("RGB").getpixel((8, 8))
    assert isinstance(pixel, tuple)
    return pixel


def seen(server: SimulatorServer, http: urllib3.PoolManager, job: Any) -> list[Colour]:
    """The colours of a job's frames."""
    colours = []
    for number in range(job["start_frame"], job["stop_frame"] + 1):
        answer = http.request(
            "GET",
            f"{server.url}/api/jobs/{job['id']}/data",
            fields={"type": "frame", "quality": "original", "number": str(number)},
        )
        assert answer.status == 200, answer.data
        colours.append(colour_of(answer.data))
    return colours
