"""The spool: a folder with the data of requests that wait to be sent to CVAT.

An entry is a folder that is called as its request is, with the files in it as ``0000``, ``0001``
and so on. The manifest has the names that the callers gave them. It is written last and appears by
a rename, so an entry is complete or is none, wherever a process was killed. All processes on one
machine that work on one store share a spool.

Where the spool is one that all machines can reach (:mod:`pool.requests.shared_spool`), the folder
is a cache of it: an entry is received in it, and read from it where it is there.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
import threading
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pool.config.source import LocalFile, Upload
from pool.errors import InputError, StoreError, TooLarge
from pool.logs import get_logger
from pool.model import SpoolRecord
from pool.permissions import create_folder, create_folders, narrow
from pool.requests.incoming import MANIFEST, UNFINISHED, VERSION, Incoming
from pool.requests.shared_spool import Pieces, SharedSpool
from pool.requests.spool_files import (
    Unneeded,
    changed_at,
    create,
    id_in,
    make_id,
    part_name,
    size_of,
    size_on_disk,
    sync_all,
)
from pool.requests.spool_room import FolderRoom, Room, SharedRoom

log = get_logger(__name__)

#: Entries that are looked up in the store at a time.
AT_ONCE: Final = 200
#: Entries that are fetched from a shared spool at the same time.
FETCHES: Final = 16
#: Bytes of a manifest at most: those of some 100,000 files.
MOST_MANIFEST: Final = 64 * 2**20
#: The file with the id of a folder, beside those of the pools.
ID: Final = "spool.id"
_ENTRY: Final = re.compile(r"[0-9A-Za-z_-]{1,64}")


class Spool:
    """The entries of one pool, at most ``limit`` bytes of them.

    The folder is made when it is first needed, with the permissions of
    :mod:`pool.permissions`; a folder around it that exists already is left as it is.
    The limit holds exactly for what one process writes; of what others write at the same
    moment it sees what has reached their files, in a folder of many entries seconds later.
    With a ``shared`` spool the limit is that of its entries, of which what other processes write
    shows seconds later. All methods are thread-safe. They raise StoreError when the disk or the
    bucket fails.

    Each spool has an id. That of a shared one is its address, that of a folder stands in a file in
    the folder around it. Each is registered (``register``) before data is put into it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        limit: int,
        shared: SharedSpool | None = None,
        register: Callable[[SpoolRecord], None] = lambda _: None,
    ) -> None:
        self.folder = folder
        self.limit = limit
        self.shared = shared
        self._register = register
        self._folder_id: str | None = None
        #: Those that were registered.
        self._known: set[str] = set()
        #: Held by the thread that fetches an entry: by the first letters of its digest.
        self._fetching = [threading.Lock() for _ in range(FETCHES)]
        self.room: Room = (
            FolderRoom(str(folder), limit, entries=self._entries, measure=self._measure)
            if shared is None
            else SharedRoom(shared, limit)
        )
        self._old_here, self._old_there = Unneeded(), Unneeded()
        #: Whether the folder was there, and private, when it was first needed.
        self._ready = False
        #: Whether the folder itself is certainly on the disk.
        self._rooted = False

    # --- Which it is ----------------------------------------------------------------------------

    @property
    def place(self) -> str:
        """Where its entries are: an address, or a folder."""
        return self.shared.address if self.shared is not None else str(self.folder)

    @property
    def id(self) -> str:
        """The id of the spool into which data is put; empty where it is a folder that is not
        there yet."""
        return self.shared.address if self.shared is not None else self._id_of_folder() or ""

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of all spools whose entries can be read: with a shared one also that of the
        folder, which may have been the spool before."""
        shared = () if self.shared is None else (self.shared.address,)
        folder = self._id_of_folder()
        return shared if folder is None else (*shared, folder)

    @property
    def troubles(self) -> dict[str, str]:
        """The :attr:`ids`, each with why it cannot be used; empty: it can."""
        shared = self.shared
        return {
            each: shared.trouble if shared is not None and each == shared.address else ""
            for each in self.ids
        }

    def open(self) -> None:
        """Make the folder, and register the spool."""
        with self.disk():
            self._make_ready()

    def register(self) -> None:
        """Register the spools that are there, unless they are."""
        for spool_id in self.ids:
            if spool_id in self._known:
                continue
            shared = self.shared is not None and spool_id == self.shared.address
            self._register(
                SpoolRecord(
                    id=spool_id,
                    place=spool_id if shared else str(self.folder.parent),
                    host="" if shared else socket.gethostname(),
                    shared=shared,
                )
            )
            self._known.add(spool_id)

    def _id_of_folder(self) -> str | None:
        if self._folder_id is None:
            with self.disk():
                self._folder_id = id_in(self.folder.parent / ID)
        return self._folder_id

    # --- Into the spool -------------------------------------------------------------------------

    def receive(self, request_id: str) -> Incoming:
        """Begin an entry; it is none until :meth:`Incoming.finish`.

        :raises SpoolFull: there is no room at all.
        """
        path = self._path(request_id)
        self.room.begin(request_id)
        try:
            self._make(path)
        except BaseException:
            self.room.end(request_id)
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
        """Return what was kept for a request; None when there is no complete entry. One that is
        not in the folder is fetched from the shared spool."""
        upload = self._load(request_id)
        if upload is not None or self.shared is None:
            return upload
        with self._fetching[zlib.crc32(request_id.encode()) % FETCHES]:
            upload = self._load(request_id)
            if upload is None and self._fetch(self.shared, request_id):
                upload = self._load(request_id)
        return upload

    def elsewhere(self, request_ids: Iterable[str]) -> frozenset[str]:
        """Return those whose entries are to be fetched from the shared spool."""
        if self.shared is None:
            return frozenset()
        return frozenset(each for each in request_ids if not self._is_complete(each))

    def _load(self, request_id: str) -> Upload | None:
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
        if any(size_of(Path(str(file.source))) != file.size for file in files):
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

    def _fetch(self, shared: SharedSpool, request_id: str) -> bool:
        """Bring an entry into the folder; return whether there is a whole one."""
        path = self._path(request_id)
        self._drop_here(request_id)
        self._make(path)
        try:
            pieces = Pieces(shared.fetch(request_id))
            line = pieces.line(MOST_MANIFEST)
            for number, file in enumerate(json.loads(line)["files"]):
                with self.disk(), create(path / part_name(number)) as stream:
                    for block in pieces.blocks(file["size"]):
                        stream.write(block)
                if size_of(path / part_name(number)) != file["size"]:
                    raise ValueError(f"{file['name']} is cut off")  # noqa: TRY301
            if not pieces.at_end:
                raise ValueError("it is longer than its manifest says")  # noqa: TRY301
            with self.disk():
                with create(path / UNFINISHED) as stream:
                    stream.write(line)
                (path / UNFINISHED).rename(path / MANIFEST)
        except FileNotFoundError:
            self._drop_here(request_id)
            return False
        except (ValueError, KeyError, TypeError) as error:
            log.error("data damaged", request_id=request_id, place=self.place, why=str(error))
            self._drop_here(request_id)
            return False
        except BaseException:
            self._drop_here(request_id)
            raise
        return True

    def publish(self, request_id: str, manifest: bytes, files: Sequence[Path], size: int) -> None:
        """Put a complete entry into the shared spool, if that is where it belongs."""
        if self.shared is not None:
            self.shared.put(request_id, manifest, files, size)
            self.room.note(request_id, size + len(manifest))

    def sync(self, request_id: str) -> None:
        """Bring an entry to the disk that was finished without that; in a shared spool it is
        durable already."""
        if self.shared is not None:
            return
        path = self._path(request_id)
        with self.disk():
            sync_all([*sorted(path.iterdir()), path, *self.roots()])

    # --- Out of the spool -----------------------------------------------------------------------

    def drop(self, *request_ids: str) -> None:
        """Delete entries, complete or not. Dropping what is not there does nothing. What cannot be
        deleted from a shared spool now is swept later."""
        for request_id in request_ids:
            self._drop_here(request_id)
        if self.shared is not None and request_ids:
            self.shared.delete(request_ids)
            self.room.forget(request_ids)

    def discard(self, request_id: str) -> None:
        """Delete an entry that was not completed."""
        self._drop_here(request_id)

    def _drop_here(self, request_id: str) -> None:
        path = self._path(request_id)
        # First of all it becomes none, should this not come to its end.
        with self.disk():
            (path / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)
        if self.shared is None:
            self.room.forget([request_id])

    def sweep(
        self,
        needed: Callable[[Sequence[str]], Collection[str]],
        *,
        older_than: float,
        now: float,
    ) -> int:
        """Drop the entries of the folder that are not among the ``needed`` of some requests, and
        that were seen so, and unchanged, for ``older_than`` seconds; return how many. ``now`` is by
        the monotonic clock. One that cannot be dropped is passed over."""
        found = {
            each: changed_at(self._path(each)) for each in self._unneeded(self._entries(), needed)
        }
        old = self._old_here.old(found, older_than=older_than, now=now)
        return sum(self._dropped(each) for each in old)

    def sweep_shared(
        self,
        needed: Callable[[Sequence[str]], Collection[str]],
        *,
        older_than: float,
        now: float,
    ) -> int:
        """Do the same with a shared spool, for all who use it."""
        if self.shared is None:
            return 0
        entries = self.shared.entries()
        found = {each: entries[each][1] for each in self._unneeded([*entries], needed)}
        old = self._old_there.old(found, older_than=older_than, now=now)
        for first in range(0, len(old), AT_ONCE):
            self.shared.sweep(old[first : first + AT_ONCE])
        return len(old)

    def _unneeded(
        self, entries: Sequence[str], needed: Callable[[Sequence[str]], Collection[str]]
    ) -> Iterator[str]:
        for first in range(0, len(entries), AT_ONCE):
            some = [
                each for each in entries[first : first + AT_ONCE] if each not in self.room.growing
            ]
            kept = needed(some)
            yield from (each for each in some if each not in kept)

    def _dropped(self, request_id: str) -> bool:
        try:
            self._drop_here(request_id)
        except StoreError as error:
            log.warning("data not dropped", request_id=request_id, why=str(error))
            return False
        return not self._path(request_id).exists()

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

    def _measure(self, request_id: str) -> tuple[bool, int]:
        """Whether an entry is complete, and its bytes on the disk."""
        # In this order: of one that is completed in between, not all may be counted.
        return self._is_complete(request_id), size_on_disk(self._path(request_id))

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
            self._make_ready()
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

    def _make_ready(self) -> None:
        if self._ready:
            return
        create_folders(self.folder)
        narrow(self.folder)
        if self.shared is None and self._id_of_folder() is None:
            self._folder_id = make_id(self.folder.parent / ID)
        self.register()
        self._ready = True

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
