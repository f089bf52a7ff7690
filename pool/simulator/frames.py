"""Pictures out of a task or a job: single frames, chunks of them, the preview."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .cache import Cached
from .call import Call
from .jobs import job_of
from .pictures import Pictures, related
from .records import Data, Job, Task
from .replies import Refusal, Reply, crash, invalid
from .tasks import task_of


async def get_task_data(call: Call) -> Reply:
    return await _serve(call, task_of(call), None)


async def get_job_data(call: Call) -> Reply:
    job = job_of(call)
    return await _serve(call, job.task, job)


async def _serve(call: Call, task: Task, job: Job | None) -> Reply:
    """``type=frame``, ``chunk`` or ``context_image``; ``quality`` is ``compressed`` if not said.

    Hidden frames are served like others.
    """
    data = task.data
    if data is None or not task.is_initialized:
        raise invalid("Data is not uploaded for the task yet")
    kind, original = call.query.get("type"), call.query.get("quality") == "original"
    text = call.query.get("number", call.query.get("index", ""))
    if kind not in ("frame", "chunk", "context_image"):
        raise Refusal(400, html="Data type not specified or not supported")
    if not text.isdigit():
        raise Refusal(400, html="Number should be a non-negative number")
    if data.is_audio:
        noun = kind.replace("_", " ").capitalize()
        raise Refusal(400, f"{noun} requests are not available for this data")
    number = int(text)
    own = range(job.start_frame, job.stop_frame + 1) if job else range(data.size)
    if kind == "chunk":
        frames = _chunk(number, own, data, is_index="number" not in call.query)
        return await _read(call, data, lambda pictures: pictures.chunk(frames, original=original))
    if number not in own:
        raise Refusal(404, html=f"Frame {number} is not available")
    if kind == "context_image":
        paths = () if data.is_video else data.frames[number].related
        if not paths:
            raise Refusal(404, html="")
        return await _read(call, data, lambda _: related(paths))
    return await _read(call, data, lambda pictures: pictures.frame(number, original=original))


def _chunk(number: int, own: range, data: Data, *, is_index: bool) -> range:
    """The frames of a chunk: by index counted from the job's first, by number from the task's."""
    size = data.chunk_size or 1
    if is_index:
        found = own[number * size : (number + 1) * size]
    else:
        first, last = own[0] // size, own[-1] // size
        if not first <= number <= last:
            raise Refusal(
                400,
                f"Invalid chunk number '{number}'. "
                f"The chunk number should be in the [{first}, {last}] range",
            )
        start = max(own[0], number * size)
        found = range(start, min(own[-1] + 1, (number + 1) * size))
    if not found:
        raise Refusal(404, html="Chunk is not available")
    return found


async def _read(call: Call, data: Data, make: Callable[[Pictures], Cached]) -> Reply:
    """Answer from the cache, or from the file as it is now."""
    pictures = Pictures(data, call.state.now())
    try:
        found = await asyncio.to_thread(make, pictures)
    except OSError:
        raise crash() from None
    finally:
        if pictures.reads:
            await asyncio.sleep(call.timings.first_read_wait / 1000.0)
    return Reply(content=found.content, media_type=found.media_type)


async def get_task_preview(call: Call) -> Reply:
    return await _preview(call, task_of(call), 0)


async def get_job_preview(call: Call) -> Reply:
    job = job_of(call)
    return await _preview(call, job.task, job.start_frame)


async def _preview(call: Call, task: Task, number: int) -> Reply:
    """The first frame, hidden or not."""
    data = task.data
    if data is None or not task.is_initialized:
        raise Refusal(404, html="Task image preview not found")
    return await _read(call, data, lambda pictures: pictures.preview(number))
