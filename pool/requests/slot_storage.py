"""Where the files of slots stand: a folder that CVAT has as its share, or a bucket."""

from __future__ import annotations

import errno
import os
import secrets
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Protocol

from pool.config.names import shown
from pool.config.settings import SlotSettings
from pool.errors import SlotStorageUnavailable
from pool.requests.bucket import Bucket

#: Says that a storage is in its place: the mount point of a share that is not mounted has none.
MARKER: Final = ".cvat-task-pool"
_MARKER_TEXT: Final = b"The slots of cvat-task-pool. Without this file nothing is written here.\n"

# --- Storages -------------------------------------------------------------------------------------


class SlotStorage:
    """Where the files of a pool's slots stand: a folder that CVAT has as its share, or a bucket.

    Thread-safe. Every method but :meth:`key` and :meth:`on_server` raises
    :class:`~pool.errors.SlotStorageUnavailable` where the storage cannot be used.
    """

    def __init__(self, settings: SlotSettings, pool_id: str) -> None:
        """Nothing is opened before the first call."""
        self._format = settings.format
        self._pool_id = pool_id
        scheme, _, place = settings.storage.partition("://")
        self._backend: _Backend
        if scheme == "file":
            self._backend = _Folder(Path(place))
            self._above = settings.share_path or ""
        else:
            bucket, _, self._above = place.partition("/")
            self._backend = _Objects(f"{scheme}://{bucket}", self._above)

    def key(self, folder: str, number: int) -> str:
        """Return the path of a slot's file below the storage.

        :param folder: the id of its carrier; never a name that a caller gave.
        """
        return f"{self._pool_id}/{folder}/{number:04d}.{self._format}"

    def on_server(self, key: str) -> str:
        """Return what CVAT calls a file: its path on the share, or its key in the bucket."""
        return _joined(self._above, key)

    def mark(self) -> None:
        """Write the marker, which says that files may be written here. The folder is made; the one
        above it has to exist."""
        self._backend.mark()

    def unmark(self) -> None:
        """Delete the marker, where the storage has proved to be another place than CVAT's."""
        self._backend.unmark()

    def require(self) -> None:
        """Raise SlotStorageUnavailable where the marker is missing."""
        self._backend.require()

    def write(self, key: str, data: bytes) -> None:
        """Write a file durably, or replace it; it is there whole, or as it was before."""
        self._backend.write([key], data)

    def write_all(self, keys: Sequence[str], data: bytes) -> None:
        """Write the same bytes to several files, durably."""
        self._backend.write(keys, data)

    def read(self, key: str) -> bytes:
        """Return the content of a file.

        :raises FileNotFoundError: there is no such file.
        """
        return self._backend.read(key)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete files, and folders that are empty then. Those that are missing are no error."""
        self._backend.delete(keys)


class SlotStorages:
    """The storages of one pool, by the settings of slots: one for each. Thread-safe."""

    def __init__(self, pool_id: str) -> None:
        self._pool_id = pool_id
        self._guard = threading.Lock()
        self._known: dict[SlotSettings, SlotStorage] = {}

    def of(self, slots: SlotSettings | Mapping[str, Any]) -> SlotStorage:
        """Return the storage of a template's slots, or of those of a carrier, as it keeps them."""
        settings = slots if isinstance(slots, SlotSettings) else SlotSettings(**slots)
        with self._guard:
            if settings not in self._known:
                self._known[settings] = SlotStorage(settings, self._pool_id)
            return self._known[settings]


class _Backend(Protocol):
    """One kind of storage; the methods are those of :class:`SlotStorage`."""

    def mark(self) -> None: ...

    def unmark(self) -> None: ...

    def require(self) -> None: ...

    def write(self, keys: Sequence[str], data: bytes) -> None: ...

    def read(self, key: str) -> bytes: ...

    def delete(self, keys: Sequence[str]) -> None: ...


def _joined(above: str, key: str) -> str:
    return f"{above}/{key}" if above else key


# --- A folder -------------------------------------------------------------------------------------

#: How a file is called until all of it is there; in front of it stand a dot and the file's name.
_PART: Final = ".part"
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY
#: What to do about an error of the file system.
_ADVICE: Final = {
    errno.ENOENT: "mount the share, or make the folder",
    errno.ENOTDIR: "name a folder",
    errno.ENOSPC: "make room on it",
    errno.EDQUOT: "make room within the quota",
    errno.EROFS: "mount it for writing",
    errno.EACCES: "let the pool's user write there",
    errno.EPERM: "let the pool's user write there",
    errno.ESTALE: "mount the share again",
    errno.ENOTCONN: "mount the share again",
    errno.EIO: "look after its disk or server",
}


class _Folder:
    """Files below a folder.

    Each call opens the folder once, looks for the marker in it, and goes on from that descriptor:
    what is unmounted meanwhile does not divert a file to the mount point. Files and folders have
    the permissions that the umask leaves them, since CVAT reads them as another user.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def mark(self) -> None:
        with self._reported():
            if not self._root.is_dir():
                self._root.mkdir()
                with _opened(self._root.parent) as above:
                    os.fsync(above)
            with _opened(self._root) as root:
                if not _has_marker(root):
                    _put(root, MARKER, _MARKER_TEXT)
                    os.fsync(root)

    def unmark(self) -> None:
        with self._reported(), self._marked() as root:
            os.unlink(MARKER, dir_fd=root)

    def require(self) -> None:
        with self._reported(), self._marked():
            pass

    def write(self, keys: Sequence[str], data: bytes) -> None:
        with self._reported(), self._marked() as root:
            for path, names in _by_folder(keys).items():
                with _descended(root, path, create=True) as folder:
                    _put(folder, names[0], data)
                    for name in names[1:]:
                        _put_again(folder, names[0], name, data)
                    os.fsync(folder)

    def read(self, key: str) -> bytes:
        ((path, (name,)),) = _by_folder([key]).items()
        with self._reported(missing=True), self._marked() as root:
            with _descended(root, path) as folder:
                descriptor = os.open(name, os.O_RDONLY, dir_fd=folder)
            with os.fdopen(descriptor, "rb") as file:
                return file.read()

    def delete(self, keys: Sequence[str]) -> None:
        with self._reported(), self._marked() as root:
            for path, names in _by_folder(keys).items():
                with suppress(FileNotFoundError), _descended(root, path[:-1]) as above:
                    with _opened(path[-1], above) as folder:
                        for name in names:
                            with suppress(FileNotFoundError):
                                os.unlink(name, dir_fd=folder)
                        with os.scandir(folder) as entries:
                            left = [entry.name for entry in entries]
                        # What a process that died has begun to write goes with the last file.
                        if all(name.endswith(_PART) for name in left):
                            for name in left:
                                os.unlink(name, dir_fd=folder)
                        os.fsync(folder)
                    # Not empty, or a server keeps what is still open there under a name of its own.
                    with suppress(OSError):
                        os.rmdir(path[-1], dir_fd=above)
                        os.fsync(above)

    @contextmanager
    def _marked(self) -> Iterator[int]:
        """Open the folder, in which the marker has to be."""
        with _opened(self._root) as root:
            if not _has_marker(root):
                raise SlotStorageUnavailable(
                    f"file://{self._root} has no file {MARKER}, as when its share is not mounted; "
                    'mount it, or, where the storage is new, mark it by "cvat-pool check"'
                )
            yield root

    @contextmanager
    def _reported(self, *, missing: bool = False) -> Iterator[None]:
        """Raise what the file system says as SlotStorageUnavailable; with ``missing`` a file that
        is not there is the caller's."""
        try:
            yield
        except OSError as error:
            if missing and isinstance(error, FileNotFoundError) and self._root.is_dir():
                raise
            code = error.errno or 0
            raise SlotStorageUnavailable(
                f"file://{self._root}: {(error.strerror or str(error)).lower()}; "
                f"{_ADVICE.get(code, 'check its mount and permissions')}"
            ) from error


def _by_folder(keys: Sequence[str]) -> dict[tuple[str, ...], list[str]]:
    """Return names of files by the folders they are in."""
    folders = defaultdict(list)
    for key in keys:
        *path, name = key.split("/")
        if not path or any(part in ("", ".", "..") for part in (*path, name)):
            raise ValueError(f"{shown(key)} is no key of a slot's file")
        folders[tuple(path)].append(name)
    return folders


@contextmanager
def _opened(path: str | Path, above: int | None = None) -> Iterator[int]:
    descriptor = os.open(path, _DIRECTORY, dir_fd=above)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _descended(root: int, path: Sequence[str], *, create: bool = False) -> Iterator[int]:
    """Open a folder below another. With ``create`` it is made where it is missing, durably."""
    with ExitStack() as opened:
        folder = root
        for part in path:
            try:
                below = opened.enter_context(_opened(part, folder))
            except FileNotFoundError:
                if not create:
                    raise
                with suppress(FileExistsError):
                    os.mkdir(part, dir_fd=folder)
                os.fsync(folder)
                below = opened.enter_context(_opened(part, folder))
            folder = below
        yield folder


def _has_marker(root: int) -> bool:
    try:
        os.stat(MARKER, dir_fd=root)
    except FileNotFoundError:
        return False
    return True


def _put(folder: int, name: str, data: bytes) -> None:
    """Write a file whole, or leave the one of that name; the folder is the caller's to bring to the
    disk."""
    part = f".{name}.{secrets.token_hex(4)}{_PART}"
    descriptor = os.open(part, _NEW, 0o666, dir_fd=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.rename(part, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(OSError):
            os.unlink(part, dir_fd=folder)
        raise


def _put_again(folder: int, first: str, name: str, data: bytes) -> None:
    """Write a file with the content of another that is on the disk already: as a link to it, which
    costs nothing. Files are replaced and never changed in place, so that links stay apart."""
    try:
        os.link(first, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        # There is a file, or the file system has no links, or no more to this one.
        _put(folder, name, data)


# --- A bucket -------------------------------------------------------------------------------------

#: PUTs at a time of the files of one carrier.
_PUTS: Final = 16


class _Objects:
    """Objects of a bucket, below a prefix."""

    def __init__(self, url: str, prefix: str) -> None:
        self._bucket = Bucket(
            # The request that waits goes the ordinary way soon, rather than a little more often
            # to a slot.
            url,
            timeout=5.0,
            retry_for=3.0,
            unavailable=SlotStorageUnavailable,
        )
        self._prefix = prefix

    def mark(self) -> None:
        self.write([MARKER], _MARKER_TEXT)

    def unmark(self) -> None:
        self.delete([MARKER])

    def require(self) -> None:
        try:
            with self._bucket.reported(missing=True) as client:
                import obstore

                obstore.head(client, _joined(self._prefix, MARKER))
        except FileNotFoundError:
            raise SlotStorageUnavailable(
                f"{_joined(self._bucket.url, self._prefix)} has no object {MARKER}; where the "
                'storage is new, mark it by "cvat-pool check"'
            ) from None

    def write(self, keys: Sequence[str], data: bytes) -> None:
        with self._bucket.reported() as client:
            import obstore

            def put(key: str) -> None:
                obstore.put(client, _joined(self._prefix, key), data, use_multipart=False)

            if len(keys) == 1:
                put(keys[0])
                return
            with ThreadPoolExecutor(_PUTS, thread_name_prefix="put") as threads:
                # What has not begun when one fails is cancelled.
                for _ in threads.map(put, keys):
                    pass

    def read(self, key: str) -> bytes:
        with self._bucket.reported(missing=True) as client:
            import obstore

            return bytes(obstore.get(client, _joined(self._prefix, key)).bytes())

    def delete(self, keys: Sequence[str]) -> None:
        self._bucket.delete([_joined(self._prefix, key) for key in keys])
