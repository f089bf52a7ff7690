"""Data into a task: in one multipart request, in groups and resumably, or from where CVAT is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from pool.config.data_params import DataParams, merged
from pool.cvat import failures
from pool.cvat.body import BytesBody
from pool.cvat.chunking import chunk_size_for
from pool.cvat.multipart import SMALL, Multipart, OpenFile
from pool.cvat.records import LocalFile, Progress, Upload
from pool.cvat.resumable import GroupedUpload
from pool.cvat.transport import Answer, Transport
from pool.errors import InputError

#: Bytes a second that the slowest server takes in; what time-outs of large uploads allow for.
_SLOWEST: Final = 2**20
#: Files of an upload up to which all are held open until the end; more might be too many for
#: the process.
MOST_KEPT_OPEN: Final = 64
#: Seconds at most that an upload's size adds to the time-out.
_LONGEST_PATIENCE: Final = 600.0


class Uploader:
    """Brings data to tasks."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def start(self, task_id: int) -> None:
        """``Upload-Start``: CVAT makes the data row and the folders of the task.

        Repeatable: the second time it finds them made (recording start twice).
        """
        self._transport.call(
            "prepare_upload",
            "POST",
            _data_path(task_id),
            headers={"Upload-Start": ""},
            repeatable=True,
            task_id=task_id,
        )

    def upload(
        self,
        task_id: int,
        data: Upload,
        params: DataParams,
        *,
        single_request_limit: int,
        prepared: bool,
        at_once: int = 1,
        progress: Progress | None = None,
    ) -> str:
        """Bring data to an empty task and return the id of its import.

        Files of up to ``single_request_limit`` bytes together go in exactly one request.
        Larger uploads go in requests of at most that size, up to ``at_once`` of them at the same
        time, which a lost connection does not undo for a single large file. ``prepared`` says
        that :meth:`start` was called before. All files are opened before anything is sent; an
        open file is read from where it stands, for exactly its ``size``. ``progress`` is called
        with (bytes sent, bytes in all), from one thread at a time, and never goes back.

        Raises, beside the errors of every call, InputError: the files or parameters cannot be
        used, or a file changed while it was sent. When
        :func:`pool.cvat.failures.left_untouched` holds for an error, nothing reached the task
        and it can go back to warm; after CvatAmbiguous look for the task's jobs and import;
        after anything else the task must be thrown away. The upload is never sent again into
        the same task, where it would meet its own files.
        """
        _check_one_kind(data)
        fields = _parameters(data, params)
        if not data.files:
            answer = self._transport.call(
                "upload",
                "POST",
                _data_path(task_id),
                data={key: value for key, value in fields.items() if value is not None},
                task_id=task_id,
            )
            return _request_id(answer, task_id)
        with ExitStack() as stack:
            keep = len(data.files) <= MOST_KEPT_OPEN
            files = [OpenFile(file, stack, keep=keep) for file in data.files]
            total = sum(file.size for file in files)
            patience = self._transport.timeout + min(total / _SLOWEST, _LONGEST_PATIENCE)
            if total <= single_request_limit:
                answer = self._single(task_id, fields, files, total, patience, progress)
            else:
                if not prepared:
                    self.start(task_id)
                grouped = GroupedUpload(
                    self._transport,
                    task_id,
                    _data_path(task_id),
                    limit=single_request_limit,
                    at_once=1 if _share_a_stream(data.files) else at_once,
                )
                answer = grouped.run(fields, files, patience, progress)
        return _request_id(answer, task_id)

    def _single(
        self,
        task_id: int,
        fields: dict[str, Any],
        files: Sequence[OpenFile],
        total: int,
        patience: float,
        progress: Progress | None,
    ) -> Answer:
        body = Multipart(fields, files)
        return self._transport.call(
            "upload",
            "POST",
            _data_path(task_id),
            body=_in_memory(body) if body.length <= SMALL else body,
            timeout=patience,
            task_id=task_id,
            progress=scaled(progress, total, body.length),
        )


def scaled(
    progress: Progress | None, total: int, length: int, before: int = 0
) -> Callable[[int], None] | None:
    """Progress in bytes of files, from the bytes sent of a body that is somewhat longer."""
    if progress is None:
        return None
    return lambda sent: progress(before + (total * sent // length if length else 0), total)


def _in_memory(body: Multipart) -> BytesBody:
    """A small body as one piece, read before the call, so that a changed file stops it there."""
    return BytesBody(b"".join(body.chunks()), body.content_type)


def _data_path(task_id: int) -> str:
    return f"/api/tasks/{task_id}/data"


def _request_id(answer: Answer, task_id: int) -> str:
    """The id in the answer; older servers send none, but make it from the task's all the same."""
    try:
        said = answer.json()
    except Exception as error:
        failures.mark_touched(error)
        raise
    found = said.get("rq_id") if isinstance(said, dict) else None
    return str(found) if found else f"action=create&target=task&target_id={task_id}"


def _parameters(data: Upload, params: DataParams) -> dict[str, Any]:
    """All that goes with the data, by CVAT's names; None is for the server to decide."""
    fields = merged(params, data.extra).given
    if fields["chunk_size"] == "auto":
        fields["chunk_size"] = chunk_size_for(data.files)
    elif fields["chunk_size"] == "server":
        fields["chunk_size"] = None
    if not data.share and data.cloud is None:
        # A template's, which are for requests whose data the server has.
        fields.pop("server_files_exclude", None)
        fields.pop("filename_pattern", None)
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


def _check_one_kind(data: Upload) -> None:
    given = [bool(data.files), bool(data.share), bool(data.urls), data.cloud is not None]
    if sum(given) != 1:
        what = "more than one kind of data was" if any(given) else "no data was"
        raise InputError(f"{what} given: give files, share, urls or cloud")
    if data.cloud is not None and not data.cloud[1]:
        raise InputError("no keys of the cloud storage were given")
