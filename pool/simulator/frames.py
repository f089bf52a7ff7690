"""Pictures out of a task: single frames, chunks of them, the preview."""

from __future__ import annotations

import asyncio
import contextlib
import io
import zipfile

from PIL import Image

from .call import Call
from .jobs import job_of
from .projects import project_of
from .records import Data, Frame, Task
from .replies import Refusal, Reply, invalid
from .tasks import task_of

PREVIEW_SIZE = 256


async def get_task_data(call: Call) -> Reply:
    task = task_of(call)
    return await _serve(call, task, 0, None)


async def get_job_data(call: Call) -> Reply:
    job = job_of(call)
    return await _serve(call, job.task, job.start_frame, job.stop_frame)


async def _serve(call: Call, task: Task, start: int, stop: int | None) -> Reply:
    """``type=frame`` or ``type=chunk``; ``quality`` is ``compressed`` unless given."""
    data = task.data
    if data is None or not task.is_initialized:
        raise invalid("Data is not uploaded for the task yet")
    kind, original = call.query.get("type"), call.query.get("quality") == "original"
    number = call.query.get("number", call.query.get("index", ""))
    if kind not in ("frame", "chunk"):
        raise Refusal(400, html="Data type not specified or not supported")
    if not number.isdigit():
        raise Refusal(400, html="Number should be a non-negative number")
    last = data.size - 1 if stop is None else stop
    if kind == "frame":
        if not start <= int(number) <= last:
            raise Refusal(404, html=f"Frame {number} is not available")
        frame = _frame(data, int(number))
        content, media_type = await asyncio.to_thread(picture, frame, data, original)
        return Reply(content=content, media_type=media_type)
    size = data.chunk_size or 1
    first = start + int(number) * size
    if first > last:
        raise Refusal(404, html="Chunk is not available")
    frames = [_frame(data, index) for index in range(first, min(first + size, last + 1))]
    content = await asyncio.to_thread(_chunk, frames, data, original)
    return Reply(content=content, media_type="application/zip")


def _frame(data: Data, index: int) -> Frame:
    """A video has one entry for all its frames."""
    return data.frames[index] if index < len(data.frames) else data.frames[0]


def picture(frame: Frame, data: Data, original: bool) -> tuple[bytes, str]:
    """A frame's bytes and media type. Nothing decodes videos here: their frames are grey."""
    if original and frame.path is not None:
        with Image.open(frame.path) as image:
            media_type = Image.MIME.get(image.format or "", "application/octet-stream")
        return frame.path.read_bytes(), media_type
    target = io.BytesIO()
    _open(frame).save(target, "JPEG", quality=data.image_quality or 70)
    return target.getvalue(), "image/jpeg"


def _open(frame: Frame) -> Image.Image:
    """The picture; grey for a frame of a video and for a file that ends before its picture does.

    CVAT shows the latter as far as it goes. Pillow can do that only for the whole process, and
    this process is not ours alone.
    """
    if frame.path is not None:
        with contextlib.suppress(OSError), Image.open(frame.path) as image:
            return image.convert("RGB")
    return Image.new("RGB", (frame.width, frame.height), "grey")


def _chunk(frames: list[Frame], data: Data, original: bool) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for index, frame in enumerate(frames):
            content, media_type = picture(frame, data, original)
            archive.writestr(f"{index:06d}.{media_type.partition('/')[2]}", content)
    return target.getvalue()


async def get_task_preview(call: Call) -> Reply:
    return await _preview(task_of(call))


async def get_job_preview(call: Call) -> Reply:
    return await _preview(job_of(call).task)


async def get_project_preview(call: Call) -> Reply:
    tasks = [task for task in call.state.tasks_of(project_of(call)) if task.is_initialized]
    if not tasks:
        raise Refusal(404, html="Project image preview not found")
    return await _preview(tasks[0])


async def _preview(task: Task) -> Reply:
    data = task.data
    if data is None or not task.is_initialized:
        raise Refusal(404, html="Task image preview not found")

    def render() -> bytes:
        image = _open(data.frames[0])
        image.thumbnail((PREVIEW_SIZE, PREVIEW_SIZE))
        target = io.BytesIO()
        image.save(target, "JPEG")
        return target.getvalue()

    return Reply(content=await asyncio.to_thread(render), media_type="image/jpeg")
