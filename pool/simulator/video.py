"""Videos and sound, read by PyAV where that is installed (the extra ``video``).

Without it they fail their import as a damaged file does.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from .media import ImportFailed


@dataclass(frozen=True, slots=True)
class Track:
    """The video track of a file: what its first frame measures, and how many there are."""

    width: int
    height: int
    frames: int


@contextmanager
def _opened(path: Path, shown_as: str) -> Iterator[Any]:
    """The container of a file. Raises :class:`ImportFailed` for what cannot be read of it."""
    try:
        import av
    except ImportError:
        raise _damaged(shown_as) from None
    try:
        with path.open("rb") as file, av.open(file) as container:
            yield container
    except av.error.InvalidDataError:
        raise _damaged(shown_as) from None
    except (OSError, IndexError, ValueError) as error:
        raise ImportFailed(f"{type(error).__name__}: {error}\n") from None


def _damaged(shown_as: str) -> ImportFailed:
    return ImportFailed(
        "av.error.InvalidDataError: [Errno 1094995529] "
        f"Invalid data found when processing input: '{shown_as}'\n"
    )


def read_video(path: Path, shown_as: str) -> Track:
    """Measure and count the frames. A file that is turned on its side is measured upright."""
    with _opened(path, shown_as) as container:
        frames = container.decode(container.streams.video[0])
        first = next(frames, None)
        if first is None:
            raise _damaged(shown_as)
        size = first.width, first.height
        if first.rotation % 180:
            size = size[::-1]
        return Track(*size, frames=1 + sum(1 for _ in frames))


def read_audio(path: Path, shown_as: str) -> int:
    """The length of a sound in milliseconds, which CVAT calls frames."""
    with _opened(path, shown_as) as container:
        stream = container.streams.audio[0]
        milliseconds: int = round(stream.duration * stream.time_base * 1000)
        return milliseconds


def read_frame(path: Path, number: int) -> Image.Image:
    """One frame, upright; its sides are even, as its encoding in chunks makes them."""
    with _opened(path, path.name) as container:
        frames = container.decode(container.streams.video[0])
        frame = next(itertools.islice(frames, number, None))
        even = frame.reformat(width=_even(frame.width), height=_even(frame.height))
        picture: Image.Image = even.to_image()
        return picture.rotate(frame.rotation, expand=True)


def _even(side: int) -> int:
    return side + side % 2
