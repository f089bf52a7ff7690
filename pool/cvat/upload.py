"""Send data to a task: in one multipart request, in several, or have CVAT fetch it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from pool.config.data_params import DataParams, merged
from pool.config.source import LocalFile, Progress, Upload
from pool.cvat.chunking import chunk_size_for
from pool.cvat.failures import Answer
from pool.cvat.multipart import SMALL, Multipart, OpenFile
from pool.cvat.resumable import GroupedUpload
from pool.cvat.transport import BytesBody, Transport
from pool.errors import CvatError

#: Bytes a second of the slowest server that the time-outs of large uploads allow for.
_SLOWEST: Final = 2**20
#: Files of an upload up to which all are held open until the end; more might be too many for
#: the process.
MOST_KEPT_OPEN: Final = 64
#: Seconds at most that an upload's size adds to the time-out.
_LONGEST_EXTRA: Final = 600.0


def request_id(task_id: int) -> str:
    """Return the id of the import of a task's data, which CVAT makes from the task's."""
    return f"action=create&target=task&target_id={task_id}"


def prepare_upload(transport: Transport, task_id: int) -> None:
    """Have CVAT make the data row and the folders of a task (``Upload-Start``).

    Repeatable: the second time it finds them made (recording start twice).
    """
    transport.call(
        "prepare_upload",
        "POST",
        f"/api/tasks/{task_id}/data",
        headers={"Upload-Start": ""},
        repeatable=True,
        task_id=task_id,
    )


def upload_data(
    transport: Transport,
    task_id: int,
    data: Upload,
    params: DataParams,
    *,
    single_request_limit: int,
    prepared: bool,
    at_once: int,
    progress: Progress | None,
) -> str:
    """See :meth:`pool.cvat.client.CvatClient.upload`."""
    path, fields = f"/api/tasks/{task_id}/data", data_fields(data, params)
    given = {key: value for key, value in fields.items() if value is not None}
    if not data.files:
        answer = transport.call("upload", "POST", path, data=given, task_id=task_id)
        return _request_id(answer, task_id)
    with ExitStack() as stack:
        keep = len(data.files) <= MOST_KEPT_OPEN
        files = [OpenFile(file, stack, keep=keep) for file in data.files]
        total = sum(file.size for file in files)
        timeout = transport.timeout + min(total / _SLOWEST, _LONGEST_EXTRA)
        if total <= single_request_limit:
            body = Multipart(given, files)
            small = body.length <= SMALL
            answer = transport.call(
                "upload",
                "POST",
                path,
                # A small body is read before the call, so that a changed file stops it there.
                body=BytesBody(b"".join(body.pieces()), body.content_type) if small else body,
                timeout=timeout,
                task_id=task_id,
                # The body is somewhat longer than its files.
                progress=progress and (lambda sent: progress(total * sent // body.length, total)),
            )
        else:
            if not prepared:
                prepare_upload(transport, task_id)
            at_once = 1 if _share_a_stream(data.files) else at_once
            grouped = GroupedUpload(
                transport,
                task_id,
                files,
                limit=single_request_limit,
                at_once=at_once,
                progress=progress,
            )
            answer = grouped.run(given, timeout)
    return _request_id(answer, task_id)


def _request_id(answer: Answer, task_id: int) -> str:
    """The id in the answer; older servers send none."""
    try:
        payload = answer.json()
    except CvatError as error:
        error.task_touched = True
        raise
    found = payload.get("rq_id") if isinstance(payload, dict) else None
    return str(found) if found else request_id(task_id)


def data_fields(data: Upload, params: DataParams) -> dict[str, Any]:
    """Return all that goes with the data, by CVAT's names; None leaves it to the server."""
    fields = merged(params, data.extra).given
    if fields["chunk_size"] == "auto":
        fields["chunk_size"] = chunk_size_for(data.files)
    elif fields["chunk_size"] == "server":
        fields["chunk_size"] = None
    if not data.share and data.cloud is None:
        # A template's, which are for requests whose data the server has.
        fields.pop("server_files_exclude", None)
        fields.pop("filename_pattern", None)
    if data.job_sizes:
        # The mapping is the order, also where the template has got another sorting since.
        fields |= {"job_file_mapping": data.jobs, "sorting_method": None}
    # The kind of storage follows from these on the server (TaskViewSet.upload_finished).
    if data.share:
        fields["server_files"] = list(data.share)
    elif data.urls:
        fields["remote_files"] = list(data.urls)
    elif data.cloud is not None:
        fields["cloud_storage_id"], fields["server_files"] = data.cloud[0], list(data.cloud[1])
    elif fields.get("sorting_method") == "predefined":
        fields.setdefault("upload_file_order", [file.name for file in data.files])
    return fields


def _share_a_stream(files: Sequence[LocalFile]) -> bool:
    """Whether some open file has a part in several of the files: it has one position only."""
    streams = [id(file.source) for file in files if not isinstance(file.source, bytes | Path)]
    return len(set(streams)) < len(streams)
