"""What the spool does with files: that they reach the disk, and how large and old they are."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

from pool.errors import StoreError
from pool.permissions import create_file

#: Bytes that are gathered before they are written to a file.
BUFFER: Final = 2**16
#: Files that are brought to the disk at the same time, and those for which threads cost more than
#: they save: of most requests there are four.
SYNCS: Final = 16
FEW: Final = 8


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


def create(path: Path) -> BinaryIO:
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


def size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def size_on_disk(path: Path) -> int:
    """Bytes in a folder; others may be writing to it, or deleting it."""
    try:
        with os.scandir(path) as files:
            return sum(size_of(Path(file.path)) or 0 for file in files)
    except OSError:
        return 0


def changed_at(path: Path) -> float:
    """When a folder, or a file in it, was last written to."""
    try:
        with os.scandir(path) as files:
            return max([path.stat().st_mtime, *(file.stat().st_mtime for file in files)])
    except OSError:
        return 0.0


class Unneeded:
    """Entries that no request needs, and since when each was seen so, and unchanged. By the
    monotonic clock: that of the machine which writes may be wrong, and so may this one's."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, float]] = {}

    def old(self, found: Mapping[str, float], *, older_than: float, now: float) -> list[str]:
        """Return those that were seen unchanged for ``older_than`` seconds. ``found`` are all that
        no request needs now, with when each was written to, by whatever clock."""
        seen = {each: self._seen.get(each) for each in found}
        self._seen = {
            each: last if last is not None and last[0] == found[each] else (found[each], now)
            for each, last in seen.items()
        }
        return [each for each, (_, since) in self._seen.items() if now >= since + older_than]


def id_in(path: Path) -> str | None:
    """Return the id that a file holds; None where it is not there."""
    try:
        return path.read_text("ascii").strip() or None
    except FileNotFoundError:
        return None


def make_id(path: Path) -> str:
    """Return the id that a file holds; one that is not there is made, by one process alone."""
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(create_file(part), "w") as stream:
        stream.write(f"{secrets.token_hex(8)}\n")
        stream.flush()
        os.fsync(stream.fileno())
    try:
        with suppress(FileExistsError):
            # Unlike a rename, this leaves one that another process has made meanwhile.
            os.link(part, path)
            _sync(path.parent)
    finally:
        part.unlink()
    made = id_in(path)
    if made is None:
        raise StoreError(f"{path} is empty; delete it if nothing waits beside it")
    return made
