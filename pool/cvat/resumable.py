"""Uploads too large for one request: small files in groups, large ones resumably (TUS)."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from pool.backoff import backoff
from pool.config.source import Progress
from pool.config.urls import origin
from pool.cvat.failures import Answer, left_untouched
from pool.cvat.multipart import Multipart, OpenFile
from pool.cvat.parallel import Parts
from pool.cvat.transport import BytesBody, Transport
from pool.errors import (
    CvatAmbiguous,
    CvatBusy,
    CvatError,
    CvatNotFound,
    CvatRejected,
    CvatUnreachable,
    PoolError,
)

#: Bytes of large files that wait in memory until the server has them, over all requests; about
#: as many again are being read.
MOST_IN_MEMORY: Final = 64 * 2**20
#: Failures in a row, without a byte more on the server, after which a file is given up.
MAX_FAILURES: Final = 6
#: What CVAT itself answers when it fails; a proxy before it answers 502, 503 or 504.
INTERNAL_SERVER_ERROR: Final = 500
#: Seconds to wait at most after the first failure, and after any; doubled in between.
FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 15.0


class GroupedUpload:
    """One upload of several requests: ``Upload-Multiple``, TUS, ``Upload-Finish``.

    The protocol is that of ``cvat_sdk.core.uploading``. Its ``DataUploader`` itself does not
    fit: it takes paths only, reads each group of files into memory, has no time-outs, gives the
    server no pause after a failure, takes a finished file for a lost one when the last answer
    is cut off, and follows the ``Location`` that the server makes up, which behind a proxy may
    name a host or scheme that cannot be reached from here.
    """

    def __init__(
        self,
        transport: Transport,
        task_id: int,
        files: Sequence[OpenFile],
        *,
        limit: int,
        at_once: int,
        progress: Progress | None,
    ) -> None:
        from cvat_sdk.core.uploading import MAX_REQUEST_SIZE, TUS_CHUNK_SIZE

        self._transport = transport
        self._task_id = task_id
        self._path = f"/api/tasks/{task_id}/data"
        self._files = files
        self._at_once = at_once
        self._group_size = max(1, min(limit, MAX_REQUEST_SIZE))
        self._chunk_size = max(1, min(limit, TUS_CHUNK_SIZE, MOST_IN_MEMORY // at_once))
        self._parts = Parts(transport.clock, progress, sum(file.size for file in files))
        self._touched = False

    def run(self, fields: dict[str, Any], timeout: float) -> Answer:
        """Send all files and have the import begin; return the answer to ``Upload-Finish``.

        ``timeout`` is that of the last request, in seconds.
        """
        groups, large = _split(self._files, self._group_size)
        parts = [
            *(partial(self._send_group, group, fields) for group in groups),
            *(partial(self._send_large, file) for file in large),
        ]
        raised = self._parts.run(parts, self._at_once)
        if raised:
            first = raised[0]
            if isinstance(first, PoolError):
                first.task_touched = self._touched or not all(map(left_untouched, raised))
                first.import_not_begun = True
            raise first
        try:
            return self._transport.call(
                "upload_finish",
                "POST",
                self._path,
                data=fields,
                headers={"Upload-Finish": ""},
                timeout=timeout,
                task_id=self._task_id,
            )
        except PoolError as error:
            error.task_touched = True
            raise

    # --- Groups of small files ----------------------------------------------------------------

    def _send_group(self, group: Sequence[OpenFile], fields: dict[str, Any]) -> None:
        """Send once: the server appends to a file that it has already."""
        meter = self._parts.meter()
        body = Multipart({"image_quality": fields.get("image_quality")}, group)
        size = sum(file.size for file in group)
        self._transport.call(
            "upload_group",
            "POST",
            self._path,
            body=body,
            headers={"Upload-Multiple": ""},
            # The server stores the groups of a task one after another.
            timeout=self._transport.timeout + self._at_once * size / 2**20,
            task_id=self._task_id,
            progress=lambda sent: meter(size * sent // body.length),
        )
        self._touched = True
        meter(size)

    # --- Large files --------------------------------------------------------------------------

    def _send_large(self, file: OpenFile) -> None:
        self._touched = True
        meter = self._parts.meter()
        path = self._create(file)
        position = 0
        for chunk in file.chunks(self._chunk_size):
            # A read of an open file may come short.
            position = self._send_chunk(path, file, chunk, position, meter)

    def _create(self, file: OpenFile) -> str:
        """Announce a file and return the path to send its bytes to.

        Sent again after a failure: an announcement that nothing follows is left unused.
        """
        name = base64.b64encode(file.name.encode()).decode()
        headers = {
            "Tus-Resumable": "1.0.0",
            "Upload-Length": str(file.size),
            "Upload-Metadata": f"filename {name}",
        }
        if self._transport.uses_token:
            # Before 2.56, CVAT answers 500 without it, unless a proxy sets X-Forwarded-Host. To a
            # session, an origin of another scheme than the one CVAT believes it has is a 403.
            headers["Origin"] = origin(self._transport.server)
        path, failed = f"{self._path}/", 0
        while True:
            try:
                answer = self._transport.call(
                    "tus_create", "POST", path, headers=headers, task_id=self._task_id
                )
                break
            except (CvatUnreachable, CvatBusy) as error:
                if error.http_status == INTERNAL_SERVER_ERROR:
                    # CVAT's own failure to handle this announcement: it would fail again.
                    raise
                failed = self._pause(failed, error)
        upload_id = answer.headers.get("location", "").rstrip("/").rpartition("/")[2]
        if not upload_id:
            raise CvatError("the answer to a resumable upload names no place to send the data to")
        return f"{self._path}/{upload_id}"

    def _send_chunk(
        self, path: str, file: OpenFile, chunk: bytes, start: int, meter: Callable[[int], None]
    ) -> int:
        """Send the bytes that begin at ``start``, from wherever the server has got to; return
        where the next chunk begins.

        The chunk stays in memory until the server has it, so that files that cannot be rewound
        are resumed as well.
        """
        end = start + len(chunk)
        offset, failed = start, 0
        while offset < end:
            try:
                reached = self._patch(path, memoryview(chunk)[offset - start :], offset, meter)
            except (CvatUnreachable, CvatBusy, CvatRejected) as error:
                # 409: the server is elsewhere in the file, for instance because it got a
                # chunk whose answer was lost.
                if isinstance(error, CvatRejected) and error.http_status != 409:
                    raise
                meter(offset)
                failed = self._pause(failed, error)
                reached, failed = self._offset(path, file, end, failed)
            if not start <= reached <= end:
                raise CvatError(f"{file.name}: the server is at byte {reached}, not at {offset}")
            if reached > offset:
                failed = 0
            meter(reached)
            offset = reached
        return end

    def _patch(self, path: str, data: memoryview, offset: int, meter: Callable[[int], None]) -> int:
        answer = self._transport.call(
            "tus_chunk",
            "PATCH",
            path,
            body=BytesBody(data, "application/offset+octet-stream"),
            headers={"Tus-Resumable": "1.0.0", "Upload-Offset": str(offset)},
            timeout=self._transport.timeout + len(data) / 2**20,
            repeatable=False,
            task_id=self._task_id,
            progress=lambda sent: meter(offset + sent),
        )
        return _upload_offset(answer)

    def _offset(self, path: str, file: OpenFile, end: int, failed: int) -> tuple[int, int]:
        """Return how many bytes the server has, and how often a call has ``failed`` in a row.

        It forgets a file once that is complete: it answers 404 then, and 500 before 2.55.
        """
        while True:
            try:
                answer = self._transport.call(
                    "tus_offset",
                    "HEAD",
                    path,
                    headers={"Tus-Resumable": "1.0.0"},
                    task_id=self._task_id,
                )
                return _upload_offset(answer), failed
            except CvatNotFound:
                if end == file.size:
                    return end, failed
                raise
            except (CvatUnreachable, CvatBusy) as error:
                if error.http_status == INTERNAL_SERVER_ERROR and end == file.size:
                    return end, failed
                failed = self._pause(failed, error)

    def _pause(self, failed: int, error: CvatError) -> int:
        """Wait before the next attempt: exponential back-off, full jitter. Return how often a call
        has failed in a row, ``failed`` and this time.

        :raises CvatError: ``error``, when that is often enough.
        :raises Stopped: another part fails meanwhile.
        """
        failed += 1
        if failed >= MAX_FAILURES:
            raise error
        pause = backoff(failed, base=FIRST_PAUSE, cap=LONGEST_PAUSE, least=0.0)
        if isinstance(error, CvatBusy) and error.retry_after is not None:
            pause = max(pause, min(error.retry_after, 4 * LONGEST_PAUSE))
        self._parts.sleep(pause)
        return failed


def _split(files: Sequence[OpenFile], limit: int) -> tuple[list[list[OpenFile]], list[OpenFile]]:
    """Return groups of files that fit into a request together, and files that fit into none."""
    groups: list[list[OpenFile]] = []
    large: list[OpenFile] = []
    room = 0
    for file in files:
        if file.size > limit:
            large.append(file)
            continue
        if not groups or file.size > room:
            groups.append([])
            room = limit
        groups[-1].append(file)
        room -= file.size
    return groups, large


def _upload_offset(answer: Answer) -> int:
    try:
        return int(answer.headers.get("upload-offset", ""))
    except ValueError:
        raise CvatAmbiguous("the answer to a resumable upload has no offset") from None
