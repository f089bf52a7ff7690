"""``chunk_size = "auto"``: how many frames CVAT keeps together, and so encodes at first.

Before the jobs of an import exist, CVAT encodes the whole first chunk, for the task's preview.
By default that is 36 frames of 1080p, which take four times as long as all the rest of the
import. Smaller chunks end the import sooner; annotators then fetch more of them, and each has a
cost of its own ("cvat-pool docs uploads" has the figures).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import PurePosixPath
from typing import IO, Final

from pool.config.source import LocalFile

#: Pixels of the first chunk, which the server encodes for the preview: four frames of 1080p.
MOST_PIXELS: Final = 4 * 1920 * 1080
#: Frames in the smallest chunk, here as on the server.
FEWEST: Final = 2
#: Images whose size is read; the largest counts.
_SAMPLES: Final = 3
#: Suffixes of files that are one frame each. For all others the server's own choice is left.
_IMAGES: Final = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm"})


def server_chunk_size(pixels: int) -> int:
    """Return CVAT's own choice for images of so many pixels (``cvat/apps/engine/task.py``)."""
    return max(2, min(72, 36 * 1920 * 1080 // pixels))


def auto_chunk_size(pixels: int) -> int:
    """Return how many frames of so many pixels make a first chunk of at most ``MOST_PIXELS``.

    Never more than CVAT would take, and never fewer than two: a chunk for each frame would double
    the requests of annotators and save little.
    """
    return min(server_chunk_size(pixels), max(FEWEST, MOST_PIXELS // pixels))


def chunk_size_for(files: Sequence[LocalFile]) -> int | None:
    """Return the chunk size for a set of images; None leaves it to the server.

    None for one or two images, which are one small chunk, for files that are no images, and for
    images whose size cannot be read from the header.
    """
    if len(files) <= FEWEST or not all(_is_image(file.name) for file in files):
        return None
    step = (len(files) - 1) / (_SAMPLES - 1)
    samples = [files[round(step * number)] for number in range(_SAMPLES)]
    pixels = max(map(_pixels, samples))
    if not pixels:
        return None
    size = auto_chunk_size(pixels)
    return size if size < len(files) else None


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in _IMAGES


def _pixels(file: LocalFile) -> int:
    """Return width times height, from the header alone; 0 when it cannot be read."""
    with suppress(OSError, ValueError), file.open() as stream:
        return _read_pixels(stream, file.name)
    return 0


def _read_pixels(stream: IO[bytes], name: str) -> int:
    from PIL import Image

    Image.preinit()
    suffix = PurePosixPath(name).suffix.lower()
    if suffix not in Image.EXTENSION:
        Image.init()
    factory, _ = Image.OPEN.get(Image.EXTENSION.get(suffix, ""), (None, None))
    if factory is None:
        return 0
    # Not Image.open, which warns of large images, and refuses larger ones, though nothing is
    # decoded here.
    try:
        with factory(stream, name) as image:
            return image.width * image.height
    except Exception:  # plugins raise anything for a file of another kind
        return 0
