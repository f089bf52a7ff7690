"""The spool: a folder with the data of requests that wait to be sent to CVAT.

An entry is a folder that is called as its request is, with the files in it as ``0000``, ``0001``
and so on. The manifest has the names that the callers gave them. It is written last and appears by
a rename, so an entry is complete or is none, wherever a process was killed. All processes on one
machine that work on one store share a spool.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self, Unpack

from pool.config.data_params import read_params
from pool.config.names import check_file_name
from pool.config.settings import Template
from pool.config.source import Data, LocalFile, Upload, build_upload, fit, upload_of
from pool.cvat.multipart import OpenFile
from pool.errors import InputError, SpoolFull, StoreError, TooLarge
from pool.logs import get_logger
from pool.permissions import create_file, create_folder, create_folders, narrow

log = get_logger(__name__)

#: Bytes copied at a time, and room that an entry under construction is given at a time.
BLOCK: Final = 2**20
#: Bytes that are gathered before they are written to a file.
BUFFER: Final = 2**16
#: Files that are brought to the disk at the same time, and those for which threads cost more than
#: they save: of most requests there are four.
SYNCS: Final = 16
FEW: Final = 8
#: Entries that are looked up in the store at a time, and those that are counted for a request that
#: is to be kept, in half a millisecond.
AT_ONCE: Final = 200
COUNTED: Final = 10
#: Entries from which on the folder is not listed each time, and for how many times as long as that
#: took it is not.
MANY: Final = 1_000
LISTING_SHARE: Final = 200.0
MANIFEST: Final = "manifest.json"
UNFINISHED: Final = "manifest.tmp"
VERSION: Final = 1
_ENTRY: Final = re.compile(r"[0-9A-Za-z_-]{1,64}")


class Spool:
    """The entries of one pool, at most ``limit`` bytes of them.

    The folder is made when it is first needed, with the permissions of
    :mod:`pool.permissions`; a folder around it that exists already is left as it is.
    The limit holds exactly for what one process writes; of what others write at the same
    moment it sees what has reached their files, in a folder of many entries seconds later.
    All methods are thread-safe. They raise StoreError when the disk fails.
    """

    def __init__(self, folder: Path, *, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self._guard = threading.Lock()
        #: Bytes of entries that are complete, which do not change any more, and their sum.
        self._complete: dict[str, int] = {}
        self._completed = 0
        #: Bytes of entries that other processes were writing at the last look.
        self._partial: dict[str, int] = {}
        #: Entries whose bytes are to be counted, the latest last.
        self._uncounted: dict[str, None] = {}
        #: Bytes that entries under construction in this process have, or have room for.
        self._growing: dict[str, int] = {}
        #: From when on the folder is to be listed again.
        self._list_at = -math.inf
        #: Whether the folder was there, and private, when it was first needed.
        self._ready = False
        #: Whether the folder itself is certainly on the disk.
        self._rooted = False

    # --- Into the spool -------------------------------------------------------------------------

    def receive(self, request_id: str) -> Incoming:
        """Begin an entry; it is none until :meth:`Incoming.finish`.

        :raises SpoolFull: there is no room at all.
        """
        path = self._path(request_id)
        with self._guard:
            if not self._has_room(1):
                raise self._full()
            self._growing[request_id] = 0
        try:
            self._make(path)
        except BaseException:
            self.stop_growing(request_id)
            raise
        return Incoming(self, request_id, path)

    def keep(self, request_id: str, upload: Upload) -> None:
        """Copy an upload, with all that its files hold. It is on the disk when this returns; when
        it raises, nothing is. An entry that is complete already is left as it is.

        :raises SpoolFull: it has no room beside what waits already.
        :raises TooLarge: it would not even have room alone.
        :raises InputError: the files cannot be read (any more).
        """
        if self._is_complete(request_id):
            return
        if upload.size > self.limit:
            raise TooLarge(f"{upload.size} bytes, and store.spool_limit is {self.limit}")
        with self.receive(request_id) as incoming:
            incoming.copy(upload)

    def load(self, request_id: str) -> Upload | None:
        """Return what was kept for a request; None when there is no complete entry."""
        path = self._path(request_id)
        try:
            manifest = json.loads((path / MANIFEST).read_text("ascii"))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._broken(error) from error
        except ValueError:
            return None  # the power went before it was on the disk
        if manifest["version"] != VERSION:
            raise StoreError(f"{path} was kept by another version of cvat-task-pool")
        files = tuple(
            LocalFile(file["name"], path / part_name(number), file["size"], given=file["given"])
            for number, file in enumerate(manifest["files"])
        )
        if any(_size_of(Path(str(file.source))) != file.size for file in files):
            return None
        cloud = manifest["cloud"]
        return Upload(
            files=files,
            share=tuple(manifest["share"]),
            urls=tuple(manifest["urls"]),
            cloud=(cloud[0], tuple(cloud[1])) if cloud else None,
            job_sizes=tuple(manifest["job_sizes"]),
            extra=manifest["extra"],
        )

    def sync(self, request_id: str) -> None:
        """Bring an entry to the disk that was finished without that."""
        path = self._path(request_id)
        with self.disk():
            sync_all([*sorted(path.iterdir()), path, *self.roots()])

    # --- Out of the spool -----------------------------------------------------------------------

    def drop(self, request_id: str) -> None:
        """Delete an entry, complete or not. Dropping what is not there does nothing."""
        path = self._path(request_id)
        # First of all it becomes none, should this not come to its end.
        with self.disk():
            (path / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)
        with self._guard:
            self._forget(request_id)

    def sweep(
        self, needed: Callable[[Sequence[str]], Collection[str]], *, older_than: float
    ) -> int:
        """Drop the entries that were not written to for ``older_than`` seconds and that are not
        among the ``needed`` of some requests; return how many. One that cannot be dropped is passed
        over."""
        before = time.time() - older_than
        swept = 0
        entries = self._entries()
        for first in range(0, len(entries), AT_ONCE):
            some = [each for each in entries[first : first + AT_ONCE] if each not in self._growing]
            kept = needed(some)
            swept += sum(
                _changed_at(self._path(each)) < before and self._dropped(each)
                for each in some
                if each not in kept
            )
        return swept

    def _dropped(self, request_id: str) -> bool:
        try:
            self.drop(request_id)
        except StoreError as error:
            log.warning("data not dropped", request_id=request_id, why=str(error))
            return False
        return not self._path(request_id).exists()

    # --- Room -----------------------------------------------------------------------------------

    @property
    def used(self) -> int:
        """Bytes of all entries, with the room that those under construction here were given."""
        with self._guard:
            return self._used()

    def grow(self, request_id: str, size: int) -> None:
        """Reserve room for ``size`` bytes more for an entry under construction.

        :raises SpoolFull: there is not as much.
        """
        with self._guard:
            if not self._has_room(size):
                raise self._full()
            self._growing[request_id] += size

    def stop_growing(self, request_id: str) -> None:
        """Count an entry, complete or given up, by what it has on the disk from now on."""
        with self._guard:
            if self._growing.pop(request_id, None) is not None:
                self._uncounted[request_id] = None

    def _has_room(self, size: int) -> bool:
        # An estimate does while it leaves half of the room.
        if self._used(COUNTED) + size <= self.limit // 2:
            return True
        return self._used() + size <= self.limit

    def _used(self, most: int | None = None) -> int:
        """Return the bytes of all entries. With ``most``, no more entries than these are counted
        now, and those that are left as the mean of the others."""
        self._list()
        while self._uncounted and (most is None or most > 0):
            self._count(self._uncounted.popitem()[0])
            most = None if most is None else most - 1
        total = self._completed + sum(self._partial.values()) + sum(self._growing.values())
        if self._uncounted:
            total += len(self._uncounted) * self._completed // max(1, len(self._complete))
        return total

    def _list(self) -> None:
        """See which entries there are. A folder of many is listed only so often that it takes a
        small share of the time: what other processes have done shows a little later there."""
        began = time.monotonic()
        if began < self._list_at and len(self._complete) + len(self._uncounted) >= MANY:
            return
        there = set(self._entries()) - self._growing.keys()
        for gone in [each for each in self._complete if each not in there]:
            self._forget(gone)
        self._partial.clear()
        self._uncounted = dict.fromkeys(there - self._complete.keys())
        self._list_at = time.monotonic() + LISTING_SHARE * (time.monotonic() - began)

    def _count(self, request_id: str) -> None:
        # In this order: of one that is completed in between, not all may be counted.
        complete = self._is_complete(request_id)
        size = _size_on_disk(self._path(request_id))
        if complete:
            self._complete[request_id] = size
            self._completed += size
        else:
            self._partial[request_id] = size

    def _forget(self, request_id: str) -> None:
        self._completed -= self._complete.pop(request_id, 0)
        self._partial.pop(request_id, None)
        self._uncounted.pop(request_id, None)

    def _full(self) -> SpoolFull:
        return SpoolFull(f"{self.folder} has the {self.limit} bytes that store.spool_limit allows")

    # --- The folder -----------------------------------------------------------------------------

    def roots(self) -> list[Path]:
        """The folders whose own entries have to reach the disk with that of a new entry."""
        if self._rooted:
            return [self.folder]
        self._rooted = True
        return [self.folder, self.folder.parent, self.folder.parent.parent]

    def _path(self, request_id: str) -> Path:
        if not _ENTRY.fullmatch(request_id):
            raise InputError(f"{request_id[:80]!r} is not the id of a request")
        return self.folder / request_id

    def _is_complete(self, request_id: str) -> bool:
        return (self._path(request_id) / MANIFEST).exists()

    def _entries(self) -> list[str]:
        try:
            with os.scandir(self.folder) as entries:
                return [each.name for each in entries if _ENTRY.fullmatch(each.name)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._broken(error) from error

    def _make(self, path: Path) -> None:
        with self.disk():
            if not self._ready:
                create_folders(self.folder)
                narrow(self.folder)
                self._ready = True
            try:
                create_folder(path)
            except FileNotFoundError:
                create_folders(self.folder)
                create_folder(path)
            except FileExistsError:
                if (path / MANIFEST).exists():
                    raise
                # What a process left that died while it wrote.
                shutil.rmtree(path)
                create_folder(path)

    @contextmanager
    def disk(self) -> Iterator[None]:
        """Turn errors of the disk into a StoreError."""
        try:
            yield
        except OSError as error:
            raise self._broken(error) from error

    def _broken(self, error: OSError) -> StoreError:
        words = f"the spool {self.folder}: {error.strerror or error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            words += "; make room, or give store.spool another place"
        return StoreError(words)


class Incoming:
    """An entry under construction: its parts are written one after the other.

    For one thread at a time. Leaving it as a context manager without :meth:`finish` discards it.
    """

    def __init__(self, spool: Spool, request_id: str, path: Path) -> None:
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
        """Complete the entry; return what :meth:`Spool.load` would. With ``sync`` it is on the disk
        as well; without, a power cut may take it, until :meth:`Spool.sync`.

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
            self._spool.drop(self.request_id)
        finally:
            # Where it could not be deleted now, it can be swept later.
            self._spool.stop_growing(self.request_id)

    def take(self, size: int) -> None:
        """Reserve room for ``size`` bytes more."""
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
                # The order does not matter: until all of it is on the disk the caller has no
                # answer, and an entry that a power cut left incomplete is found to be so.
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


# --- Files ---------------------------------------------------------------------------------------


def check_folder(folder: Path) -> None:
    """Check that a spool in this folder can be made and written.

    :raises StoreError: it cannot.
    """
    place = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    try:
        # Permissions do not say: the disk may be full, or mounted read-only.
        with tempfile.TemporaryDirectory(prefix=".check-", dir=place):
            pass
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise StoreError(f"the spool {folder}: cannot write to {place}: {why}") from None


def part_name(number: int) -> str:
    return f"{number:04}"


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


def _create(path: Path) -> BinaryIO:
    return os.fdopen(create_file(path), "wb", BUFFER)


def sync_all(paths: Sequence[Path]) -> None:
    """Bring files and folders to the disk. All at once: what a file system writes for one it mostly
    writes for all."""
    if len(paths) <= FEW:
        for path in paths:
            _sync(path)
        return
    with ThreadPoolExecutor(min(SYNCS, len(paths)), thread_name_prefix="sync") as threads:
        for _ in threads.map(_sync, paths):
            pass


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _size_on_disk(path: Path) -> int:
    """Bytes in a folder; others may be writing to it, or deleting it."""
    try:
        with os.scandir(path) as files:
            return sum(_size_of(Path(file.path)) or 0 for file in files)
    except OSError:
        return 0


def _changed_at(path: Path) -> float:
    """When a folder, or a file in it, was last written to."""
    try:
        with os.scandir(path) as files:
            return max([path.stat().st_mtime, *(file.stat().st_mtime for file in files)])
    except OSError:
        return 0.0
