"""Pictures out of a task: single frames, chunks of them, the preview."""

from __future__ import annotations

import asyncio
import contextlib
import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from .call import Call
from .jobs import job_of
from .media import ORIENTATION, is_cloud, media_type_of
from .records import Data, Task
from .replies import Refusal, Reply, invalid
from .tasks import task_of
from .video import read_frame

PREVIEW_SIZE = 256


async def get_task_data(call: Call) -> Reply:
    task = task_of(call)
    return await _serve(call, task, 0, None)


async def get_job_data(call: Call) -> Reply:
    job = job_of(call)
    return await _serve(call, job.task, job.start_frame, job.stop_frame)


async def _serve(call: Call, task: Task, start: int, stop: int | None) -> Reply:
    """``type=frame``, ``chunk`` or ``context_image``; ``quality`` is ``compressed`` if not said."""
    data = task.data
    if data is None or not task.is_initialized:
        raise invalid("Data is not uploaded for the task yet")
    kind, original = call.query.get("type"), call.query.get("quality") == "original"
    number = call.query.get("number", call.query.get("index", ""))
    if kind not in ("frame", "chunk", "context_image"):
        raise Refusal(400, html="Data type not specified or not supported")
    if not number.isdigit():
        raise Refusal(400, html="Number should be a non-negative number")
    if data.is_audio:
        noun = kind.replace("_", " ").capitalize()
        raise Refusal(400, f"{noun} requests are not available for this data")
    last = data.size - 1 if stop is None else stop
    if kind == "chunk":
        size = data.chunk_size or 1
        first = start + int(number) * size
        if first > last:
            raise Refusal(404, html="Chunk is not available")
        indexes = range(first, min(first + size, last + 1))
        content = await asyncio.to_thread(_chunk, indexes, data, original)
        return Reply(content=content, media_type="application/zip")
    if not start <= int(number) <= last:
        raise Refusal(404, html=f"Frame {number} is not available")
    if kind == "context_image":
        related = () if data.is_video else data.frames[int(number)].related
        if not related:
            raise Refusal(404, html="")
        content = await asyncio.to_thread(_related, related)
        return Reply(content=content, media_type="application/zip")
    content, media_type = await asyncio.to_thread(picture, int(number), data, original)
    return Reply(content=content, media_type=media_type)


def picture(index: int, data: Data, original: bool) -> tuple[bytes, str]:
    """A frame's bytes and media type: as they came if ``original``, but upright."""
    frame = data.frames[0 if data.is_video else index]
    if is_cloud(frame.path.name):
        return frame.path.read_bytes(), "application/octet-stream"
    if data.is_video and original:
        return _encoded(_open(data, index), "PNG"), "image/png"
    if not original:
        image = _open(data, index).convert("RGB")
        return _encoded(image, "JPEG", quality=data.image_quality or 70), "image/jpeg"
    media_type = media_type_of(frame.path.name)
    with contextlib.suppress(OSError), Image.open(frame.path) as image:
        if image.format == "TIFF" or image.getexif().get(ORIENTATION, 1) != 1:
            return _encoded(ImageOps.exif_transpose(image), image.format), media_type
    return frame.path.read_bytes(), media_type


def _encoded(image: Image.Image, kind: str | None, **options: Any) -> bytes:
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def _open(data: Data, index: int) -> Image.Image:
    """The picture, upright; grey for a file that ends before its picture does.

    CVAT shows the latter as far as it goes. Pillow can do that only for the whole process, and
    this process is not ours alone.
    """
    frame = data.frames[0 if data.is_video else index]
    if data.is_video:
        return read_frame(frame.path, data.start_frame + index * data.frame_step)
    with contextlib.suppress(OSError), Image.open(frame.path) as image:
        image.load()
        return ImageOps.exif_transpose(image)
    return Image.new("RGB", (frame.width, frame.height), "grey")


def _related(paths: Sequence[Path]) -> bytes:
    pictures = {}
    for path in paths:
        with Image.open(path) as image:
            pictures[f"{path.stem}.jpg"] = _encoded(image.convert("RGB"), "JPEG")
    return _zipped(pictures)


def _chunk(indexes: Sequence[int], data: Data, original: bool) -> bytes:
    pictures = {}
    for place, index in enumerate(indexes):
        content, media_type = picture(index, data, original)
        pictures[f"{place:06d}.{media_type.partition('/')[2]}"] = content
    return _zipped(pictures)


def _zipped(files: Mapping[str, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return target.getvalue()


async def get_task_preview(call: Call) -> Reply:
    return await _preview(task_of(call))


async def get_job_preview(call: Call) -> Reply:
    return await _preview(job_of(call).task)


async def _preview(task: Task) -> Reply:
    data = task.data
    if data is None or not task.is_initialized:
        raise Refusal(404, html="Task image preview not found")

    def render() -> bytes:
        if data.is_audio or is_cloud(data.frames[0].name):
            image = Image.new("RGB", (PREVIEW_SIZE, PREVIEW_SIZE), "grey")
        else:
            image = _open(data, 0).convert("RGB")
        image.thumbnail((PREVIEW_SIZE, PREVIEW_SIZE))
        return _encoded(image, "JPEG")

    return Reply(content=await asyncio.to_thread(render), media_type="image/jpeg")
