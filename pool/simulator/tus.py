"""Uploads in pieces, by the TUS protocol 1.0.0 (https://tus.io), without its extensions."""

from __future__ import annotations

import asyncio
import base64
import os.path
import sys
import uuid
from email.header import Header

from .call import Call
from .records import Data, Upload
from .replies import Refusal, Reply, crash, dump
from .tasks import task_of
from .versions import TUS_COMPLETE_IS_404, TUS_WITHOUT_ORIGIN

HEADERS = {
    "tus-resumable": "1.0.0",
    "tus-version": "1.0.0",
    "tus-extension": "",
    "tus-max-size": str(25 * 1024**3),
    "cache-control": "no-store",
    "access-control-allow-origin": "*",
    "access-control-allow-methods": "PATCH,HEAD,GET,POST,OPTIONS",
    "access-control-expose-headers": "Tus-Resumable,upload-length,upload-metadata,Location,"
    "Upload-Offset",
    "access-control-allow-headers": "Tus-Resumable,upload-length,upload-metadata,Location,"
    "Upload-Offset,content-type",
}
MEGABYTE = 1_000_000
#: Bytes of a file's name that a file system takes.
LONGEST_ON_DISK = 255


def _refusal(status: int) -> Refusal:
    return Refusal(status, headers=HEADERS)


def create_upload(call: Call, data: Data) -> Reply:
    """Begin an upload; ``Upload-Metadata`` names the file, ``Upload-Length`` says its bytes."""
    name = _file_name(call)
    length = call.header("upload-length") or ""
    if not name or not length.isdigit():
        raise Refusal(400, "Metadata is expected to contain 'filename' key", headers=HEADERS)
    if int(length) > int(HEADERS["tus-max-size"]):
        raise _refusal(413)
    target = (data.raw / name.split("\0")[0]).resolve()
    if "\0" in name or not target.is_relative_to(data.raw.resolve()):
        message = dump(f"File name {name} is not allowed")
        return Reply(status=400, content=message, media_type="text/plain")
    if any(is_too_long(part) for part in target.parts):
        raise crash()
    if target.exists():
        raise Refusal(409, "File with same name already exists", headers=HEADERS)
    identity = f"{call.user.id}_{uuid.uuid4()}"
    upload = Upload(
        data=data, user=call.user, name=name, size=int(length), path=data.folder / identity
    )
    upload.path.touch()
    data.client_files.setdefault(os.path.normpath(name))
    call.simulator.uploads[identity] = upload
    base_url = call.base_url
    if not call.settings.since(TUS_WITHOUT_ORIGIN) and call.header("x-forwarded-host") is None:
        base_url = call.header("origin") or ""
        if not base_url:
            raise crash()
    location = f"{base_url}/api/tasks/{call.number()}/data/{identity}"
    headers = {**HEADERS, "location": location, "upload-filename": _as_header(name)}
    return Reply(status=201, headers=headers)


def is_too_long(name: str) -> bool:
    """Whether the disk refuses a file of this name."""
    return len(name.encode()) > LONGEST_ON_DISK


def _as_header(text: str) -> str:
    """A text as Django has it in a header."""
    try:
        text.encode("latin-1")
    except UnicodeEncodeError:
        return Header(text, "utf-8", maxlinelen=sys.maxsize).encode()
    return text.strip()


def _file_name(call: Call) -> str:
    for pair in (call.header("upload-metadata") or "").split(","):
        key, _, value = pair.strip().partition(" ")
        if key == "filename":
            try:
                return base64.b64decode(value, validate=True).decode()
            except ValueError:
                return ""
    return ""


def _upload_of(call: Call) -> Upload:
    """The upload of the path. Raises 404 for one that is complete: it is a file now."""
    task = task_of(call)
    upload = call.simulator.uploads.get(call.text("file_id"))
    if upload is None or task.data is not upload.data:
        raise _refusal(404) if call.settings.since(TUS_COMPLETE_IS_404) else crash()
    if upload.user is not call.user:
        raise _refusal(403)
    return upload


async def head_upload(call: Call) -> Reply:
    upload = _upload_of(call)
    return Reply(
        headers={
            **HEADERS,
            "upload-offset": str(upload.offset),
            "upload-length": str(upload.size),
        }
    )


async def patch_upload(call: Call) -> Reply:
    """Append a piece. The offset says where it belongs; 409 if the file is not that far."""
    upload = _upload_of(call)
    offset = call.header("upload-offset") or ""
    if not offset.isdigit() or int(offset) != upload.offset:
        raise _refusal(409)
    received = await _append(call, upload)
    await call.spend(call.timings.upload_per_megabyte * received / MEGABYTE)
    if upload.offset >= upload.size:
        target = upload.data.raw / upload.name
        if not target.parent.exists():
            # CVAT renames the file into a folder that nothing has made.
            raise crash()
        upload.path.rename(target)
        del call.simulator.uploads[call.text("file_id")]
    return Reply(status=204, headers={**HEADERS, "upload-offset": str(upload.offset)})


async def _append(call: Call, upload: Upload) -> int:
    """Write the body behind the bytes so far; all of it counts, or nothing. Returns its length.

    What a cut connection has left in the file is not taken back: it lies behind the offset, and
    the client may be writing there again.
    """
    received = 0
    file = await asyncio.to_thread(upload.path.open, "r+b")
    try:
        file.seek(upload.offset)
        async for piece in call.request.stream():
            received += len(piece)
            if upload.offset + received > upload.size:
                raise _refusal(413)
            file.write(piece)
    finally:
        file.close()
    upload.offset += received
    return received
