"""Images to send: made here, so that nothing has to be fetched."""

from __future__ import annotations

import io
import random

#: Bytes of one sample image, about, and its width and height in pixels.
IMAGE_SIZE = 100_000
DIMENSIONS = (1280, 720)


def sample_image(
    seed: int,
    *,
    size: int = IMAGE_SIZE,
    dimensions: tuple[int, int] = DIMENSIONS,
    format: str = "JPEG",
) -> bytes:
    """A picture of about ``size`` bytes, if the ``format`` can do that, another for each seed."""
    from PIL import Image

    rng = random.Random(seed)
    coarse = Image.frombytes("RGB", (160, 90), rng.randbytes(160 * 90 * 3))
    picture = coarse.resize(dimensions)
    for quality in range(95, 4, -5):
        stream = io.BytesIO()
        picture.save(stream, format, quality=quality)
        if stream.tell() <= size * 1.1:
            break
    return stream.getvalue()


def sample_images(count: int, *, seed: int = 0) -> list[bytes]:
    """``count`` different images of about :data:`IMAGE_SIZE` bytes each."""
    return [sample_image(seed * 1000 + number) for number in range(count)]


def corrupt_image() -> bytes:
    """A PNG with half of its pixels missing, which CVAT refuses to import."""
    from PIL import Image

    stream = io.BytesIO()
    Image.frombytes("RGB", (64, 64), random.Random(0).randbytes(64 * 64 * 3)).save(stream, "PNG")
    return stream.getvalue()[: len(stream.getvalue()) // 2]


def sample_labels(count: int) -> list[str]:
    """``count`` names of labels."""
    first = ["car", "person"][:count]
    return first + [f"label {number}" for number in range(len(first) + 1, count + 1)]
