"""The data of a task: one request with everything, or a start, pieces and a finish."""

from __future__ import annotations

import asyncio
import html
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from .call import Actor, Call
from .data_params import LONGEST_NAME, DataParams, read_params, unfold
from .fields import Fields
from .jobs import job_of
from .records import CloudStorage, Data, Json, Task, request_id
from .render import data_meta_json
from .replies import Refusal, Reply, crash, detail, invalid
from .tasks import locked_task, task_of
from .tus import create_upload, is_too_long
from .versions import EARLY_IMPORT, EARLY_IMPORT_MENDED

#: More files and fields than any request has that CVAT itself would survive.
MOST_FILES = 100_000
MEGABYTE = 1_000_000
#: Bytes of headers that Django reads before a part of a form.
LONGEST_HEAD = 1024
#: Characters that Django leaves of a longer file name.
LONGEST_CUT = 255


async def post_data(call: Call) -> Reply:
    """``POST /api/tasks/{id}/data``: which of its five meanings, the headers say."""
    # The body first: the web server in front of CVAT passes a request on when it has all of it.
    body = await _receive(call)
    async with locked_task(call) as task:
        if task.is_initialized:
            raise invalid("Adding more data is not supported")
        headers = call.request.headers.keys()
        if "upload-finish" in headers:
            return await _finish(call, task, read_params(body, call.settings))
        if "upload-start" in headers:
            await call.spend(call.timings.upload_start)
            data_row(call, task)
            return Reply(status=202)
        if "upload-length" in headers:
            await call.spend(call.timings.upload_tus)
            return create_upload(call, data_row(call, task))
        params = read_params(body, call.settings)
        if "upload-multiple" in headers:
            await call.spend(call.timings.upload_multiple + _upload_cost(call, params))
            _check_rows(task.data, params)
            await _keep_files(data_row(call, task), params.client_files)
            return Reply(status=200)
        return await _finish(call, task, params)


async def _receive(call: Call) -> Mapping[str, Any]:
    content_type = call.header("content-type") or ""
    if content_type.startswith(("multipart/form-data", "application/x-www-form-urlencoded")):
        try:
            form = await call.request.form(max_files=MOST_FILES, max_fields=MOST_FILES)
        except HTTPException as error:
            raise _bad_form(error.detail) from None
        if any(_head_of(file) > LONGEST_HEAD for file in form.values()):
            raise _bad_form("Request max total header size exceeded.")
        return unfold(form)
    return await call.json_object()


def _bad_form(reason: str) -> Refusal:
    return detail(400, f"Multipart form parse error - {reason}")


def _head_of(file: UploadFile | str) -> int:
    """Bytes of the headers before a file in a form."""
    if isinstance(file, str):
        return 0
    return sum(len(name) + len(value) + len(": \r\n") for name, value in file.headers.raw)


def data_row(call: Actor, task: Task) -> Data:
    """The task's data, made now if there is none yet: what ``Upload-Start`` is good for."""
    if task.data is None:
        before = call.simulator.events.snapshot(task)
        number = next(call.state.ids.data)
        task.data = Data(id=number, folder=call.simulator.folder / "data" / str(number))
        task.data.raw.mkdir(parents=True)
        task.updated = call.state.now()
        call.simulator.events.task_updated(task, before, call)
    return task.data


async def _finish(call: Call, task: Task, params: DataParams) -> Reply:
    """Take the last files and the parameters, and hand the task to an import worker."""
    await call.spend(call.timings.data_post + _upload_cost(call, params))
    if params.cloud_storage_id not in (None, *call.state.cloud_storages):
        raise invalid("CloudStorage matching query does not exist.")
    before = call.simulator.events.snapshot(task)
    _check_rows(task.data, params)
    unprepared = task.data is None
    data = data_row(call, task)
    await _keep_files(data, params.client_files)
    _apply_order(data, params)
    _save_params(call, data, params)
    identity = request_id(task.id)
    existing = call.state.request_of(identity)
    if existing is not None and existing.status in ("queued", "started"):
        return Reply({"rq_id": identity}, status=409)
    task.updated = call.state.now()
    call.simulator.events.task_updated(task, before, call)
    request = call.simulator.imports.put(call, task, params, call.received_at)
    settings = call.settings
    request.is_early = (
        unprepared and settings.since(EARLY_IMPORT) and not settings.since(EARLY_IMPORT_MENDED)
    )
    return Reply({"rq_id": identity}, status=202)


def _upload_cost(call: Call, params: DataParams) -> float:
    size = sum(file.size or 0 for file in params.client_files)
    return call.timings.upload_per_megabyte * size / MEGABYTE


def _check_rows(data: Data | None, params: DataParams) -> None:
    """Refuse what the database or the disk refuses, only then: names twice, and long ones."""
    names = [stored_name(file) for file in params.client_files]
    for kept, new in (
        (list(data.client_files) if data else [], [name for name in names if name]),
        (data.server_files if data else [], params.server_files),
        (data.remote_files if data else [], params.remote_files),
    ):
        if len({*kept, *new}) < len(kept) + len(new):
            raise crash()
    nameless = not all(file.filename for file in params.client_files)
    too_long = any(len(url) > LONGEST_NAME for url in params.remote_files)
    if nameless or too_long or any(map(is_too_long, names)):
        raise crash()


def stored_name(file: UploadFile) -> str:
    """What Django makes of an uploaded file's name; blank for a file that it leaves out."""
    name = html.unescape(file.filename or "").replace("\\", "/").rsplit("/", 1)[-1]
    name = "".join(filter(str.isprintable, name))
    if name in (".", ".."):
        return ""
    if len(name) > LONGEST_CUT:
        extension = PurePosixPath(name).suffix[:LONGEST_CUT]
        name = name[: LONGEST_CUT - len(extension)] + extension
    return name


async def _keep_files(data: Data, files: tuple[UploadFile, ...]) -> None:
    for file in files:
        if name := stored_name(file):
            data.client_files[name] = None
            await _write(data.raw / name, file)
            await file.close()


async def _write(path: Path, file: UploadFile) -> None:
    if (file.size or 0) <= MEGABYTE:
        path.write_bytes(await file.read())
        return

    def copy() -> None:
        with path.open("wb") as target:
            shutil.copyfileobj(file.file, target, MEGABYTE)

    await asyncio.to_thread(copy)


def _apply_order(data: Data, params: DataParams) -> None:
    """Put the uploaded files into the order that ``predefined`` sorting asks for."""
    order = params.upload_file_order
    if params.sorting_method != "predefined" or not order or not data.client_files:
        return
    wrong = [f"{name} (extra)" for name in data.client_files if name not in order]
    wrong += [f"{name} (missing)" for name in order if name not in data.client_files]
    if wrong:
        shown, rest = ", ".join(wrong[:5]), len(wrong) - 5
        more = f" (and {rest} more). " if rest > 0 else ""
        raise invalid(
            "Uploaded files do not match the 'upload_file_order' field contents. "
            "Please check the uploaded data and the list of uploaded files. "
            f"Mismatching files: {shown}{more}"
        )
    data.client_files = dict.fromkeys(order)


def _save_params(call: Call, data: Data, params: DataParams) -> None:
    if params.image_quality is not None:
        data.image_quality = params.image_quality
    if params.chunk_size is not None:
        data.chunk_size = params.chunk_size
    data.start_frame = params.start_frame or 0
    data.stop_frame = params.stop_frame or 0
    data.frame_filter = params.frame_filter
    data.sorting_method = params.sorting_method
    data.server_files += params.server_files
    data.remote_files += params.remote_files
    if params.server_files and not params.copy_data:
        data.storage = "share"
    if params.cloud_storage_id is not None:
        data.cloud_storage = call.state.cloud_storages[params.cloud_storage_id]
        data.storage = "cloud_storage"


def _data_of(task: Task) -> Data:
    if task.data is None or not task.is_initialized:
        raise invalid("Data is not uploaded for the task yet")
    return task.data


async def get_meta(call: Call) -> Reply:
    return Reply(data_meta_json(_data_of(task_of(call))))


async def patch_meta(call: Call) -> Reply:
    """Mark frames as deleted, name a cloud storage, or both; the latter drops what is cached."""
    task = task_of(call)
    data = _data_of(task)
    given = await call.json_object()
    frames, storage = _deleted(given), data.cloud_storage
    await call.spend(call.timings.data_meta)
    if "cloud_storage_id" in given:
        storage = await _reachable(call, given)
        dropped = len(data.frames)
        await call.spend(call.timings.drop + call.timings.drop_per_frame * dropped)
    if frames is not None:
        unknown = sorted(frames - set(range(data.size)))
        if unknown:
            named = ", ".join(map(str, unknown))
            what = f"Unknown frames {named} requested for removal"
            raise Refusal(400, {"deleted_frames": [what]})
        data.deleted_frames = sorted(frames)
    task.updated = call.state.now()
    if "cloud_storage_id" in given:
        data.cloud_storage = storage
        data.cache.drop()
    return Reply(data_meta_json(data))


async def _reachable(call: Call, given: Json) -> CloudStorage:
    """The cloud storage that is named. Refuses one that does not exist or whose content is gone."""
    fields = Fields(given)
    storage_id = fields.integer("cloud_storage_id", null=True)
    fields.check()
    if storage_id is None:
        raise _no_storage("The specified cloud storage None does not exist.")
    storage = call.state.cloud_storages.get(storage_id)
    if storage is None:
        raise invalid("CloudStorage matching query does not exist.")
    if not await asyncio.to_thread(storage.bucket.exists):
        raise _no_storage(f"The specified cloud storage '{storage.display_name}' is not available.")
    return storage


def _no_storage(message: str) -> Refusal:
    return Refusal(400, {"cloud_storage_id": [message]})


async def get_job_meta(call: Call) -> Reply:
    job = job_of(call)
    return Reply(data_meta_json(_data_of(job.task), job))


async def patch_job_meta(call: Call) -> Reply:
    """Mark frames of a job as deleted. CVAT reads the task's list, puts the job's frames in their
    place, and writes it, without a lock: what another call has written meanwhile is lost."""
    job = job_of(call)
    data = _data_of(job.task)
    frames = _deleted(await call.json_object())
    own = set(range(job.start_frame, job.stop_frame + 1))
    others = set(data.deleted_frames) - own
    await call.spend(call.timings.data_meta)
    if frames is not None:
        foreign = sorted(frames - own)
        if foreign:
            raise invalid(f"Frames {', '.join(map(str, foreign))} do not belong to the job")
        data.deleted_frames = sorted(others | frames)
    job.task.updated = call.state.now()
    return Reply(data_meta_json(data, job))


def _deleted(given: Json) -> set[int] | None:
    """The frames that a body marks as deleted."""
    fields = Fields(given)
    if "deleted_frames" not in fields:
        return None
    frames = fields.items("deleted_frames")
    if not all(type(frame) is int for frame in frames):
        raise Refusal(400, {"deleted_frames": ["A valid integer is required."]})
    return set(frames)


async def get_layout(call: Call) -> Reply:
    data = task_of(call).data
    layout = data.validation if data else None
    body: Json = {
        "mode": layout.mode if layout else None,
        "frames_per_job_count": layout.per_job if layout else None,
    }
    if layout is not None:
        body |= {"validation_frames": layout.frames, "disabled_frames": []}
        if layout.mode == "gt_pool":
            body |= {
                "honeypot_count": len(layout.honeypots),
                "honeypot_frames": list(layout.honeypots),
                "honeypot_real_frames": list(layout.honeypots.values()),
            }
    return Reply(body)
