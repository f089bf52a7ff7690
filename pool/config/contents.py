"""What a task has to show for its data to be a request's: the names of the frames."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from pool.config.source import Upload, kind_of_names, names_of
from pool.model import ImportRecord

#: A cloud of points in KITTI's format, and as what its frame is named.
KITTI, POINTS = ".bin", ".pcd"
MANIFEST = ".jsonl"


@dataclass(frozen=True, slots=True)
class Contents:
    """The names that frames may have. A name can be that of a folder on the server; then all that
    is in it may be there."""

    names: frozenset[str]

    def cover(self, frames: Sequence[str]) -> bool:
        """Return whether a task with these frames has this data, or a part of it."""
        return bool(frames) and all(self._has(frame) for frame in frames)

    def _has(self, frame: str) -> bool:
        if frame in self.names:
            return True
        return any(str(folder) in self.names for folder in PurePosixPath(frame).parents)


def contents_of(upload: Upload, *, decompress: bool = True) -> Contents | None:
    """Return what the frames of an upload are called; None where that cannot be known from here.

    Of a zip or tar from here the members are read; an archive of another format, or on the server,
    does not tell. The members of a compressed tar take as long to list as it takes to decompress:
    without ``decompress`` they count as unknown.
    """
    if len(upload.files) == 1 and kind_of_names([upload.files[0].name]) == "archive":
        source = upload.files[0].source
        if isinstance(source, bytes | Path):
            return _members(source, "r:*" if decompress else "r:")
    return contents_named(names_of(upload))


def contents_named(names: Iterable[str]) -> Contents | None:
    """Return what the frames of files are called that have these names in CVAT, as
    :func:`contents_of`."""
    media = [name.rstrip("/") for name in names if not name.endswith(MANIFEST)]
    if not media or kind_of_names(media) == "archive":
        return None
    return _contents(media)


def contents_of_import(importing: ImportRecord) -> Contents | None:
    """Return what the frames of an import in doubt may be called; None where that is unknown."""
    if importing.frames is not None:
        return Contents(frozenset(importing.frames))
    return contents_named(name for member in importing.members for name in member.names)


def _contents(names: Iterable[str]) -> Contents:
    known = set(names)
    known |= {name.removesuffix(KITTI) + POINTS for name in known if name.endswith(KITTI)}
    return Contents(frozenset(known))


def _members(archive: bytes | Path, tar_mode: Literal["r:*", "r:"]) -> Contents | None:
    try:
        with archive.open("rb") if isinstance(archive, Path) else io.BytesIO(archive) as stream:
            if zipfile.is_zipfile(stream):
                with zipfile.ZipFile(stream) as zipped:
                    return _contents(each.filename for each in zipped.infolist())
            stream.seek(0)
            with tarfile.open(fileobj=stream, mode=tar_mode) as tarred:
                return _contents(each.name for each in tarred if each.isfile())
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, tarfile.TarError):
        return None
