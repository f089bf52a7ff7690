"""Pictures of one colour, which says whose they are."""

from __future__ import annotations

import hashlib
import io

from PIL import Image

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
