"""An entry of the spool under construction: see :mod:`pool.requests.spool`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Self

from pool.config.data_params import DataParams, read_params
from pool.config.names import DistinctNames, check_file_name
from pool.config.source import LocalFile, Upload, build_upload, fit, upload_of
from pool.errors import InputError, SpoolFull
from pool.permissions import create_file

if TYPE_CHECKING:
    from pool.config.settings import Template
    from pool.requests.spool import Spool

#: Bytes copied at a time, and room that an entry under construction is given at a time.
BLOCK: Final = 2**20
#: Bytes that are gathered before they are written to a file.
BUFFER: Final = 2**16
#: Files that are brought to the disk at the same time.
SYNCS: Final = 16
MANIFEST: Final = "manifest.json"
UNFINISHED: Final = "manifest.tmp"
VERSION: Final = 1


class Incoming:
    """An entry under construction: its parts are written one after the other.

    For one thread at a time. Leaving it as a context manager without :meth:`finish` discards it.
    """

    def __init__(self, spool: Spool, request_id: str, path: Path) -> None:
        self._spool = spool
        self.request_id = request_id
        self._path = path
        self._parts: list[Part] = []
        self._names = DistinctNames()
        #: Bytes that were given to the parts, and for how many there is room.
        self.size = 0
        self._room = 0
        self._ended = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.discard()

    def add(self, name: str) -> Part:
        """The next file, which its caller calls ``name``; the one before is closed.

        :raises InputError: CVAT could not take such a name, or has it already.
        """
        if self._parts:
            self._parts[-1].close()
        there = check_file_name(name)
        self._names.add(there, name)
        return self._part(there)

    def _part(self, name: str) -> Part:
        """The next file, by its name in CVAT."""
        with self._spool.disk():
            part = Part(self, name, self._path / part_name(len(self._parts)))
        self._parts.append(part)
        return part

    def finish(
        self,
        *,
        share: Sequence[str] | None = None,
        urls: Sequence[str] | None = None,
        cloud: tuple[int, Sequence[str]] | None = None,
        params: Mapping[str, Any] | DataParams | None = None,
        template: Template | None = None,
        sync: bool,
    ) -> Upload:
        """The entry is complete; answers what :meth:`Spool.load` would. With ``sync`` it is on the
        disk as well; without, a power cut may take it, until :meth:`Spool.sync`.

        :raises InputError: there is no data, or of two kinds, or what cannot be used, by itself
            or with the ``template``.
        """
        if not self._parts:
            upload = build_upload(share=share, urls=urls, cloud=cloud, params=params)
        elif (share, urls, cloud) == (None, None, None):
            upload = upload_of([_file_of(part) for part in self._parts], read_params(params))
        else:
            raise InputError("give one of files, share, urls and cloud, not several of them")
        if template is not None:
            fit(upload, template)
        self._complete(upload, sync=sync)
        return upload

    def copy(self, upload: Upload) -> None:
        """Take all of an upload from elsewhere; the entry is complete, and on the disk."""
        for file in upload.files:
            part = self._part(file.name)
            for block in _blocks_of(file):
                part.write(block)
            part.close()
        self._complete(upload, sync=True)

    def discard(self) -> None:
        """Give it up, and delete what there is. Does nothing once it is finished."""
        if self._ended:
            return
        self._ended = True
        for part in self._parts[-1:]:
            part.abandon()
        try:
            self._spool.drop(self.request_id)
        finally:
            # Where it could not be deleted now, it can be swept later.
            self._spool.stop_growing(self.request_id)

    def take(self, size: int) -> None:
        """See to room for ``size`` bytes more."""
        if self.size + size > self._room:
            self._grow(self.size + size - self._room)
        self.size += size

    def _grow(self, needed: int) -> None:
        try:
            # More than is needed, so that small pieces do not ask each time.
            self._spool.grow(self.request_id, more := max(needed, BLOCK))
        except SpoolFull:
            if needed >= BLOCK:
                raise
            self._spool.grow(self.request_id, more := needed)
        self._room += more

    def _complete(self, upload: Upload, *, sync: bool) -> None:
        for part in self._parts:
            part.close()
        manifest = _manifest(upload, self._parts)
        self.take(len(manifest))
        unfinished, finished = self._path / UNFINISHED, self._path / MANIFEST
        with self._spool.disk():
            with _create(unfinished) as stream:
                stream.write(manifest)
            unfinished.rename(finished)
            if sync:
                # The order does not matter: until the last of it is on the disk nobody was told
                # of the entry, and one that a power cut left incomplete is found to be so.
                parts = (part.path for part in self._parts)
                sync_all([*parts, finished, self._path, *self._spool.roots()])
        self._ended = True
        self._spool.stop_growing(self.request_id)


class Part:
    """One file of an entry under construction."""

    def __init__(self, incoming: Incoming, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        self.size = 0
        self._incoming = incoming
        self._stream = _create(path)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Add to the file; small pieces are gathered.

        :raises SpoolFull: there is no room for it.
        """
        size = len(data)
        self._incoming.take(size)
        with self._incoming._spool.disk():
            self._stream.write(data)
        self.size += size
        return size

    def close(self) -> None:
        """No more comes. Closing twice does nothing."""
        with self._incoming._spool.disk():
            self._stream.close()

    def abandon(self) -> None:
        """No more comes, and nobody needs what came."""
        with suppress(OSError):
            self._stream.close()


def _file_of(part: Part) -> LocalFile:
    if not part.size:
        raise InputError(f"{part.name}: is empty")
    return LocalFile(part.name, part.path, part.size)


def part_name(number: int) -> str:
    return f"{number:04}"


def _manifest(upload: Upload, parts: Iterable[Part]) -> bytes:
    told = {
        "version": VERSION,
        "files": [{"name": part.name, "size": part.size} for part in parts],
        "share": upload.share,
        "urls": upload.urls,
        "cloud": upload.cloud,
        "extra": upload.extra,
    }
    try:
        return json.dumps(told).encode("ascii")
    except (TypeError, ValueError) as error:
        raise InputError(f"the parameters cannot be kept: {error}") from None


def _blocks_of(file: LocalFile) -> Iterator[bytes]:
    """The bytes of a file that is to be kept; of an open one, from where it stood when the upload
    was made."""
    if isinstance(file.source, bytes):
        yield file.source
        return
    try:
        if isinstance(file.source, Path):
            with file.source.open("rb") as stream:
                while block := stream.read(BLOCK):
                    yield block
        else:
            yield from _blocks_of_stream(file.source, file)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{file.name} cannot be read: {reason}") from None


def _blocks_of_stream(stream: BinaryIO, file: LocalFile) -> Iterator[bytes]:
    if file.start is not None:
        stream.seek(file.start)
    left = file.size
    while left:
        block = stream.read(min(BLOCK, left))
        if not block:
            raise InputError(f"{file.name} became shorter while it was being kept")
        left -= len(block)
        yield block


# --- Files ---------------------------------------------------------------------------------------


def _create(path: Path) -> BinaryIO:
    return os.fdopen(create_file(path), "wb", BUFFER)


def sync_all(paths: Sequence[Path]) -> None:
    """Have files and folders on the disk. All at once: what a file system writes for one it mostly
    writes for all, and one after the other each would wait for a turn of its own."""
    with ThreadPoolExecutor(min(SYNCS, len(paths)), thread_name_prefix="sync") as threads:
        for _ in threads.map(_sync, paths):
            pass


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
