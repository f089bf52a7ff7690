"""``cvat-pool get FOLDER --job-size N``: the images of folders, in as few tasks as will do.

Each task has an idempotency key made from its files, so that the same command, run again, goes on
where it was.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pool.config.arguments import check_whole
from pool.config.source import IMAGE, build_upload, check_paths
from pool.errors import ImportFailed, ImportTimedOut, InputError, PoolError, TaskGone
from pool.model import RequestState

if TYPE_CHECKING:
    from pool.handles import Request

#: Jobs of one task at most: CVAT takes 10 ms to make each, and two to three times that to delete
#: it; of several thousand the proxy in front of it does not await the end (recording groups).
MOST_JOBS: Final = 300
#: Files of one task at most, as many as a daemon takes unless its ``max_files`` is another; and
#: their bytes, all of which are sent again when the connection breaks.
MOST_FILES: Final = 10_000
MOST_BYTES: Final = 2 * 2**30
#: Tasks that are uploaded or imported at the same time: CVAT has two workers for imports.
IN_FLIGHT: Final = 2
#: Tries of one task whose request has failed in an earlier run.
MOST_TRIES: Final = 20

#: A file, with what it is called: the name of its folder and its path in there.
Named = tuple[str, Path]


def files_of(paths: Sequence[Path]) -> list[Named]:
    """Return files, and in place of each folder the images in it and below, sorted by their paths.

    Left out are hidden files and folders, ``__MACOSX``, and what is no image by its name.

    :raises InputError: a folder cannot be read, or has no images; a file is given twice.
    """
    found: list[Named] = []
    for path in paths:
        if not path.is_dir():
            found.append((path.name, path))
            continue
        images = sorted(_images_in(path))
        if not images:
            raise InputError(f"{path}: has no images")
        # What "." is called only the file system knows.
        called = path.resolve().name
        found += [(f"{called}/{image}".lstrip("/"), path / image) for image in images]
    check_paths(path for _, path in found)
    return found


def _images_in(folder: Path) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: {error.strerror or error}") from error

    for root, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if name[0] != "." and name != "__MACOSX"]
        below = Path(root).relative_to(folder)
        for name in files:
            if name[0] != "." and Path(name).suffix.lower() in IMAGE:
                yield (below / name).as_posix()


def divided(files: Sequence[Named], job_size: int) -> list[list[Named]]:
    """Return the files of each task: whole jobs, as many as the limits allow.

    :raises InputError: some of the files cannot be used.
    """
    check_whole("job_size", job_size, least=1)
    jobs_each = max(1, min(MOST_JOBS, MOST_FILES // job_size))
    tasks: list[list[Named]] = []
    room = jobs = 0
    for first in range(0, len(files), job_size):
        job = list(files[first : first + job_size])
        size = sum(map(_size, job))
        if not jobs or size > room:
            tasks.append([])
            room, jobs = MOST_BYTES, jobs_each
        tasks[-1] += job
        room, jobs = room - size, jobs - 1
    for task in tasks:
        # All are checked before anything is done.
        build_upload(task, job_size=job_size)
    return tasks


def _size(file: Named) -> int:
    _, path = file
    try:
        return path.stat().st_size
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error


def key_of(template: str, job_size: int, files: Sequence[Named]) -> str:
    """Return the idempotency key of a task: a digest of its template, the size of its jobs, and the
    names and bytes of its files.

    :raises InputError: a file cannot be read.
    """
    digest = hashlib.sha256(f"{template}\0{job_size}\0".encode())
    for name, path in files:
        try:
            with path.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").digest()
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from error
        digest.update(f"{name}\0".encode() + content)
    return digest.hexdigest()


def upload_all(
    tasks: Sequence[Sequence[Named]],
    keys: Callable[[Sequence[Named]], str],
    submit: Callable[[int, Sequence[Named], str], Request],
    finish: Callable[[Request], None],
) -> None:
    """Bring the files of each task into one, in order, :data:`IN_FLIGHT` at a time. One that CVAT
    does not import does not stop the others.

    ``submit`` is called with the number of a task, its files and its key; ``finish`` with each
    request, in order, to wait for its jobs.

    :raises PoolError: some were not imported; or what ``submit`` and ``finish`` raise.
    """
    in_flight: deque[tuple[str, Request]] = deque()
    failed: list[tuple[str, PoolError]] = []

    def wait() -> None:
        first, request = in_flight.popleft()
        try:
            finish(request)
        except (ImportFailed, ImportTimedOut, TaskGone) as error:
            failed.append((first, error))

    for number, files in enumerate(tasks, 1):
        if len(in_flight) == IN_FLIGHT:
            wait()
        first, _ = files[0]
        in_flight.append((first, _submitted(partial(submit, number, files), keys(files))))
    while in_flight:
        wait()
    if failed:
        first, error = failed[0]
        raise type(error)(
            f"{len(failed)} of {len(tasks)} tasks, the first with {first}: {error.detail}; the "
            "same command tries these again, and no others"
        )


def _submitted(submit: Callable[[str], Request], key: str) -> Request:
    """Submit a task under its key; under further ones where the request has failed in an earlier
    run."""
    for tries in range(1, MOST_TRIES + 1):
        request = submit(key if tries == 1 else f"{key}-{tries}")
        if request.record.state not in (RequestState.FAILED, RequestState.CANCELLED):
            break
    return request
