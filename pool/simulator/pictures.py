"""Pictures out of a task's files: frames, chunks of them, previews, and what is shown beside them.

All of it reads files or buckets, so it blocks: run it in a thread. ``OSError`` is raised for a
file that is gone or no picture.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image, ImageOps

from .cache import Cached, Key
from .media import ORIENTATION, is_cloud, media_type_of
from .records import Data, Frame
from .video import read_frame

PREVIEW_SIZE = 256
ZIP = "application/zip"


class Pictures:
    """The pictures of a task at one moment; ``now`` is the server's clock.

    ``reads`` counts what was not in the cache.
    """

    def __init__(self, data: Data, now: datetime) -> None:
        self._data = data
        self._now = now
        self.reads = 0

    def frame(self, number: int, *, original: bool) -> Cached:
        """A frame: as it came if ``original``, but upright."""
        return self._cached(
            ("frame", number, number, original), lambda: self._picture(number, original)
        )

    def chunk(self, numbers: range, *, original: bool) -> Cached:
        """Frames in a zip, read anew even where one of them is cached for itself."""

        def make() -> Cached:
            files = {}
            for place, number in enumerate(numbers):
                picture = self._picture(number, original)
                suffix = self._suffix(number) if original else ".jpeg"
                files[f"{place:06d}{suffix}"] = picture.content
            return Cached(_zipped(files), ZIP)

        return self._cached(("chunk", numbers[0], numbers[-1], original), make)

    def preview(self, number: int) -> Cached:
        """The frame as annotators see it, small."""

        def make() -> Cached:
            data = self._data
            if data.is_audio or is_cloud(data.frames[0].name):
                image = Image.new("RGB", (PREVIEW_SIZE, PREVIEW_SIZE), "grey")
            else:
                image = Image.open(io.BytesIO(self.frame(number, original=False).content))
            image.thumbnail((PREVIEW_SIZE, PREVIEW_SIZE))
            return Cached(_encoded(image, "JPEG"), "image/jpeg")

        return self._cached(("preview", number, number, False), make)

    def _cached(self, key: Key, make: Callable[[], Cached]) -> Cached:
        found = self._data.cache.get(key, self._now)
        if found is None:
            self.reads += 1
            found = make()
            self._data.cache.put(key, found, self._now)
        return found

    def _suffix(self, number: int) -> str:
        if self._data.is_video:
            return ".png"
        return PurePosixPath(self._data.frames[number].name).suffix

    def _picture(self, number: int, original: bool) -> Cached:
        data = self._data
        if data.is_video:
            image = read_frame(data.frames[0].path, data.start_frame + number * data.frame_step)
            return _png(image) if original else self._compressed(image)
        frame = data.frames[number]
        content = _content(data, frame)
        if is_cloud(frame.path.name):
            return Cached(content, "application/octet-stream")
        with Image.open(io.BytesIO(content)) as image:
            if not original:
                return self._compressed(_upright(image))
            media_type = media_type_of(frame.path.name)
            if image.format == "TIFF" or image.getexif().get(ORIENTATION, 1) != 1:
                return Cached(_encoded(_upright(image), image.format), media_type)
            return Cached(content, media_type)

    def _compressed(self, image: Image.Image) -> Cached:
        quality = self._data.image_quality or 70
        return Cached(_encoded(image.convert("RGB"), "JPEG", quality=quality), "image/jpeg")


def _content(data: Data, frame: Frame) -> bytes:
    """The bytes of a frame's file as it is now."""
    if frame.key is None:
        return frame.path.read_bytes()
    if data.cloud_storage is None:
        raise FileNotFoundError(f"the cloud storage of {frame.key} was deleted")
    return data.cloud_storage.bucket.read(frame.key)


def _upright(image: Image.Image) -> Image.Image:
    """The picture as its EXIF data turn it; grey for a file that ends before its picture does.

    CVAT shows the latter as far as it goes. Pillow can do that only for the whole process, and
    this process is not ours alone.
    """
    try:
        image.load()
    except OSError:
        return Image.new("RGB", image.size, "grey")
    return ImageOps.exif_transpose(image)


def related(paths: Sequence[Path]) -> Cached:
    """The pictures that are shown beside a frame, in a zip."""
    pictures = {}
    for path in paths:
        with Image.open(path) as image:
            pictures[f"{path.stem}.jpg"] = _encoded(image.convert("RGB"), "JPEG")
    return Cached(_zipped(pictures), ZIP)


def _png(image: Image.Image) -> Cached:
    return Cached(_encoded(image, "PNG"), "image/png")


def _encoded(image: Image.Image, kind: str | None, **options: Any) -> bytes:
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def _zipped(files: Mapping[str, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return target.getvalue()
