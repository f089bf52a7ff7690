"""The spool: a folder with the data of requests that wait to be sent to CVAT.

An entry is a folder that is called as its request is, with the files in it as ``0000``, ``0001``
and so on. What the callers call them stands in the manifest, which is written last and appears by
a rename: so an entry is complete or is none, wherever a process was killed. All processes on one
machine that work on one store share a spool.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pool.config.source import LocalFile, Upload
from pool.errors import InputError, SpoolFull, StoreError, TooLarge
from pool.logs import get_logger
from pool.permissions import create_folder, create_folders, narrow
from pool.requests.incoming import MANIFEST, VERSION, Incoming, part_name, sync_all

__all__ = ["Incoming", "Spool"]

log = get_logger(__name__)

_ENTRY: Final = re.compile(r"[0-9A-Za-z_-]{1,64}")


def check_folder(folder: Path) -> None:
    """
    :raises StoreError: a spool in this folder could not be written, or not be made.
    """
    place = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    try:
        # Permissions do not tell: the disk may be full, or mounted to be read only.
        with tempfile.TemporaryDirectory(prefix=".check-", dir=place):
            pass
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise StoreError(f"the spool {folder}: cannot write to {place}: {why}") from None


class Spool:
    """The entries of one pool, at most ``limit`` bytes of them.

    The folder is made when it is first needed, with the permissions of
    :mod:`pool.permissions`; a folder around it that exists already is left as it is.
    The limit holds exactly for what one process writes; of what others write at the same
    moment it sees what has reached their files. All methods are thread-safe. They
    raise StoreError when the disk fails.
    """

    def __init__(self, folder: Path, *, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self._guard = threading.Lock()
        #: Bytes of entries that are complete, which do not change any more.
        self._complete: dict[str, int] = {}
        #: Bytes that entries under construction in this process have, or have room for.
        self._growing: dict[str, int] = {}
        #: Whether the folder was there, and private, when it was first needed.
        self._ready = False
        #: Whether the folder itself is certainly on the disk.
        self._rooted = False

    # --- Into the spool -------------------------------------------------------------------------

    def receive(self, request_id: str) -> Incoming:
        """An entry to be filled; it is none until :meth:`Incoming.finish`.

        :raises SpoolFull: there is no room at all.
        """
        path = self._path(request_id)
        with self._guard:
            if self._used() >= self.limit:
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
        """What was kept for a request; None when there is no complete entry."""
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
            LocalFile(file["name"], path / part_name(number), file["size"])
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
            extra=manifest["extra"],
        )

    def sync(self, request_id: str) -> None:
        """Have an entry that was finished without it on the disk when this returns."""
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
            self._complete.pop(request_id, None)

    def sweep(self, keep: Callable[[str], bool], *, older_than: float) -> int:
        """Drop the entries that nobody has written to for ``older_than`` seconds and for whose
        request ``keep`` does not hold; answers how many. One that cannot be dropped is passed
        over."""
        before = time.time() - older_than
        swept = 0
        for request_id in self._entries():
            if request_id in self._growing or _changed_at(self._path(request_id)) >= before:
                continue
            if not keep(request_id) and self._dropped(request_id):
                swept += 1
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
        """Give an entry under construction room for ``size`` bytes more.

        :raises SpoolFull: there is not as much.
        """
        with self._guard:
            if self._used() + size > self.limit:
                raise self._full()
            self._growing[request_id] += size

    def stop_growing(self, request_id: str) -> None:
        """An entry is complete, or was given up: what it has on the disk counts from now on."""
        with self._guard:
            self._growing.pop(request_id, None)

    def _used(self) -> int:
        there = set(self._entries())
        for gone in self._complete.keys() - there:
            del self._complete[gone]
        total = sum(self._growing.values())
        for request_id in there - self._growing.keys():
            size = self._complete.get(request_id)
            if size is None:
                # In this order: of one that is completed in between, not all may be counted.
                complete = self._is_complete(request_id)
                size = _size_on_disk(self._path(request_id))
                if complete:
                    self._complete[request_id] = size
            total += size
        return total

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
            return [each.name for each in self.folder.iterdir() if _ENTRY.fullmatch(each.name)]
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
        """Have what the disk says become a StoreError."""
        try:
            yield
        except OSError as error:
            raise self._broken(error) from error

    def _broken(self, error: OSError) -> StoreError:
        words = f"the spool {self.folder}: {error.strerror or error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            words += "; make room, or give store.spool another place"
        return StoreError(words)


# --- Sizes and times -----------------------------------------------------------------------------


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
