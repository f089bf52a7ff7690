"""What comes into the spool: one entry, file by file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self, Unpack

from pool.config.data_params import read_params
from pool.config.names import check_file_name
from pool.config.settings import Template
from pool.config.source import Data, LocalFile, Upload, build_upload, fit, upload_of
from pool.cvat.multipart import OpenFile
from pool.errors import InputError, SpoolFull
from pool.requests.spool_files import create, part_name, sync_all
from pool.requests.spool_room import Room

#: Bytes copied at a time, and room that an entry under construction is given at a time.
BLOCK: Final = 2**20
MANIFEST: Final = "manifest.json"
UNFINISHED: Final = "manifest.tmp"
VERSION: Final = 1


class Receiver(Protocol):
    """What an entry under construction needs of its spool; see :class:`pool.requests.spool.Spool`,
    which is one."""

    @property
    def shared(self) -> object: ...

    @property
    def room(self) -> Room: ...

    def disk(self) -> AbstractContextManager[None]: ...

    def roots(self) -> Sequence[Path]: ...

    def publish(
        self, request_id: str, manifest: bytes, files: Sequence[Path], size: int
    ) -> None: ...

    def discard(self, request_id: str) -> None: ...


class Incoming:
    """An entry under construction: its parts are written one after the other.

    For one thread at a time. Leaving it as a context manager without :meth:`finish` discards it.
    """

    def __init__(self, spool: Receiver, request_id: str, path: Path) -> None:
        self._spool = spool
        self.request_id = request_id
        self._path = path
        self._parts: list[Part] = []
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
        """Begin the next file, which its caller calls ``name``; the one before is closed.

        :raises InputError: CVAT could not take such a name.
        """
        check_file_name(name)
        if self._parts:
            self._parts[-1].close()
        return self._part(name)

    def _part(self, name: str) -> Part:
        with self._spool.disk():
            part = Part(self, name, self._path / part_name(len(self._parts)))
        self._parts.append(part)
        return part

    def finish(
        self,
        *,
        template: Template | None = None,
        sync: bool,
        **data: Unpack[Data],
    ) -> Upload:
        """Complete the entry; return what the spool loads later. With ``sync`` it is on the disk
        as well; without, a power cut may take it, until the spool syncs it.

        :raises InputError: there is no data, or of two kinds, or what cannot be used, by itself
            or with the ``template``.
        """
        if not self._parts:
            upload = build_upload(**data)
        elif all(data.get(source) is None for source in ("share", "urls", "cloud")):
            params = read_params(data.get("params"))
            files = [_file_of(part) for part in self._parts]
            upload = upload_of(files, params, job_size=data.get("job_size"))
        else:
            raise InputError("give one of files, share, urls and cloud, not several of them")
        if template is not None:
            fit(upload, template)
        self._complete(upload, sync=sync)
        return upload

    def copy(self, upload: Upload) -> None:
        """Copy an upload from elsewhere, which completes the entry; it is on the disk then."""
        with ExitStack() as opened:
            for file in upload.files:
                part = self._part(file.name)
                for block in OpenFile(file, opened, keep=False).chunks(BLOCK):
                    part.write(block)
                part.close()
        self._complete(upload, sync=True)

    def discard(self) -> None:
        """Give the entry up, and delete what there is. Does nothing once it is finished."""
        if self._ended:
            return
        self._ended = True
        for part in self._parts[-1:]:
            part.abandon()
        try:
            self._spool.discard(self.request_id)
        finally:
            # Where it could not be deleted now, it can be swept later.
            self._spool.room.end(self.request_id)

    def take(self, size: int) -> None:
        """Reserve room for ``size`` bytes more."""
        if self.size + size > self._room:
            self._grow(self.size + size - self._room)
        self.size += size

    def _grow(self, needed: int) -> None:
        try:
            # More than is needed, so that small pieces do not ask each time.
            self._spool.room.grow(self.request_id, more := max(needed, BLOCK))
        except SpoolFull:
            if needed >= BLOCK:
                raise
            self._spool.room.grow(self.request_id, more := needed)
        self._room += more

    def _complete(self, upload: Upload, *, sync: bool) -> None:
        for part in self._parts:
            part.close()
        manifest = _manifest(upload, self._parts)
        self.take(len(manifest))
        unfinished, finished = self._path / UNFINISHED, self._path / MANIFEST
        with self._spool.disk():
            with create(unfinished) as stream:
                stream.write(manifest)
            unfinished.rename(finished)
            if sync and self._spool.shared is None:
                # The order does not matter: until all of it is on the disk the caller has no
                # answer, and an entry that a power cut left incomplete is found to be so.
                parts = (part.path for part in self._parts)
                sync_all([*parts, finished, self._path, *self._spool.roots()])
        size = sum(part.size for part in self._parts)
        self._spool.publish(self.request_id, manifest, [part.path for part in self._parts], size)
        self._ended = True
        self._spool.room.end(self.request_id)


class Part:
    """One file of an entry under construction."""

    def __init__(self, incoming: Incoming, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        self.size = 0
        self._incoming = incoming
        self._stream = create(path)

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
        """End the file. Closing twice does nothing."""
        with self._incoming._spool.disk():
            self._stream.close()

    def abandon(self) -> None:
        """End the file, whose content is not needed."""
        with suppress(OSError):
            self._stream.close()


def _file_of(part: Part) -> LocalFile:
    if not part.size:
        raise InputError(f"{part.name}: is empty")
    return LocalFile(part.name, part.path, part.size)


def _manifest(upload: Upload, parts: Sequence[Part]) -> bytes:
    manifest = {
        "version": VERSION,
        "files": [
            {"name": file.name, "given": file.given, "size": part.size}
            for file, part in zip(upload.files, parts, strict=True)
        ],
        "share": upload.share,
        "urls": upload.urls,
        "cloud": upload.cloud,
        "job_sizes": upload.job_sizes,
        "extra": upload.extra,
    }
    try:
        return json.dumps(manifest).encode("ascii")
    except (TypeError, ValueError) as error:
        raise InputError(f"the parameters cannot be kept: {error}") from None
