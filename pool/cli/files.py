"""The files that arguments of ``get`` stand for, and how those of ``--job-size`` are divided."""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from pool.config.arguments import check_whole
from pool.config.names import shown
from pool.config.source import IMAGE, build_upload, check_paths
from pool.errors import InputError

#: Jobs of one task at most: CVAT takes 10 ms to make each, and two to three times that to delete
#: it; of several thousand the proxy in front of it does not await the end (recording groups).
MOST_JOBS: Final = 300
#: Files of one task at most, as many as a daemon takes unless its ``max_files`` is another; and
#: their bytes, all of which are sent again when the connection breaks.
MOST_FILES: Final = 10_000
MOST_BYTES: Final = 2 * 2**30

#: The argument that stands for names on standard input.
STANDARD_INPUT: Final = "-"
#: A folder that macOS puts into archives, without an image in it.
_NO_FOLDER: Final = "__MACOSX"

#: A path; or an image in a folder, with what it is called: the folder's name and the path in there.
File = Path | tuple[str, Path]


def files_of(arguments: Sequence[str], names: BinaryIO) -> list[File]:
    """Return the files that arguments stand for, in their order.

    A folder stands for the images in it and below, a pattern (``*``, ``?``, ``[...]`` and ``**``)
    for what it matches, both sorted by their paths; :data:`STANDARD_INPUT` for the files and
    folders that ``names`` has, one a line, or ended by NUL bytes. Left out are hidden files and
    folders, and of a folder what is no image by its name. A file of that very name goes before a
    pattern.

    :raises InputError: a folder has no images or cannot be read, a pattern matches nothing, there
        are no names, or a file is given twice.
    """
    found: list[File] = []
    for argument in arguments:
        if argument == STANDARD_INPUT:
            found += _named_on(names)
        elif is_pattern(argument):
            found += _matched(argument)
        else:
            found += _file_or_folder(Path(argument))
    check_paths(map(path_of, found))
    return found


def is_pattern(argument: str) -> bool:
    """Return whether an argument is a pattern that the shell has left as it is."""
    return glob.has_magic(argument) and not os.path.lexists(argument)


def path_of(file: File) -> Path:
    """Return where a file is."""
    return file if isinstance(file, Path) else file[1]


def _file_or_folder(path: Path) -> list[File]:
    if not path.is_dir():
        return [path]
    images = sorted(_images_in(path))
    if not images:
        raise InputError(f"{path}: has no images")
    # What "." is called only the file system knows.
    called = path.resolve().name
    return [(f"{called}/{image}".lstrip("/"), path / image) for image in images]


def _images_in(folder: Path) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: {error.strerror or error}") from error

    for root, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not _hidden(name)]
        below = Path(root).relative_to(folder)
        for name in files:
            if not _hidden(name) and Path(name).suffix.lower() in IMAGE:
                yield (below / name).as_posix()


def _matched(pattern: str) -> list[File]:
    parts = Path(pattern).parts
    if parts[-1] == "**":
        parts = (*parts, "*")
    anchor = Path(pattern).anchor
    paths = [
        path
        for path in sorted(Path(anchor).glob(str(Path(*parts).relative_to(anchor))))
        if not any(_hidden(part) for part in path.parts if part not in parts)
    ]
    if "**" in parts:
        # What is below a folder is matched by itself.
        paths = [path for path in paths if not path.is_dir()]
    if not paths:
        raise InputError(f"{shown(pattern)}: matches no file")
    return [file for path in paths for file in _file_or_folder(path)]


def _hidden(name: str) -> bool:
    """Return whether a file or folder is left out that is not named itself."""
    return name.startswith(".") or name == _NO_FOLDER


def _named_on(stream: BinaryIO) -> list[File]:
    content = stream.read()
    names: Iterable[bytes] = content.split(b"\0")
    if b"\0" not in content:
        names = (line.removesuffix(b"\r") for line in content.split(b"\n"))
    paths = [Path(os.fsdecode(name)) for name in names if name]
    if not paths:
        raise InputError("there are no names on standard input")
    return [file for path in paths for file in _file_or_folder(path)]


# --- Tasks with jobs of a size --------------------------------------------------------------------


def divided(files: Sequence[File], job_size: int) -> list[list[File]]:
    """Return the files of each task: whole jobs, as many as the limits allow.

    :raises InputError: some of the files cannot be used.
    """
    check_whole("job_size", job_size, least=1)
    jobs_each = max(1, min(MOST_JOBS, MOST_FILES // job_size))
    tasks: list[list[File]] = []
    room = jobs = 0
    for first in range(0, len(files), job_size):
        job = list(files[first : first + job_size])
        size = sum(map(size_of, job))
        if not jobs or size > room:
            tasks.append([])
            room, jobs = MOST_BYTES, jobs_each
        tasks[-1] += job
        room, jobs = room - size, jobs - 1
    for task in tasks:
        # All are checked before anything is done.
        build_upload(task, job_size=job_size)
    return tasks


def size_of(file: File) -> int:
    """Return the bytes of a file.

    :raises InputError: there is none.
    """
    path = path_of(file)
    try:
        return path.stat().st_size
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error


def key_of(command: Sequence[object], files: Sequence[File]) -> str:
    """Return the idempotency key of one of several requests: a digest of what the ``command`` says
    of all of them, and of the names and bytes of its files.

    :raises InputError: a file cannot be read.
    """
    digest = hashlib.sha256(json.dumps(command).encode())
    names = build_upload(files).given
    for name, path in zip(names, map(path_of, files), strict=True):
        try:
            with path.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").digest()
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from error
        digest.update(f"{name}\0".encode() + content)
    return digest.hexdigest()
