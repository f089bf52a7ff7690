"""Files of media: what kind they are, in which order they come, how large their pictures are."""

from __future__ import annotations

import mimetypes
import random
import re
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from PIL import Image, UnidentifiedImageError

#: Where a real server keeps what is in our folders: its error messages name these paths.
DATA_ROOT = "/home/django/data/data"
SHARE_ROOT = "/home/django/share"

#: Kinds in CVAT's order. Of a ``unique`` one there may be a single file and nothing beside it.
KINDS = ("image", "video", "audio", "archive", "directory", "pdf", "zip")
UNIQUE = ("video", "audio", "archive", "pdf", "zip")
SORTING_METHODS = ("lexicographical", "natural", "predefined", "random")

_ARCHIVES = frozenset(
    {
        "application/x-rar-compressed", "application/x-tar", "application/x-7z-compressed",
        "application/x-cpio", "application/gzip", "application/x-bzip",
    }
)  # fmt: skip
_TYPES = mimetypes.MimeTypes()
for _suffix, _type in (
    (".mkv", "video/x-matroska"),
    (".webm", "video/webm"),
    (".webp", "image/webp"),
    (".7z", "application/x-7z-compressed"),
    (".rar", "application/x-rar-compressed"),
    (".flv", "video/x-flv"),
):
    _TYPES.add_type(_type, _suffix)


class ImportFailed(Exception):
    """The import ends here; the text is the last line of the traceback, as CVAT shows it."""


def validation_error(message: str) -> ImportFailed:
    """A failure that CVAT raises as a validation error of its REST framework."""
    return ImportFailed(
        "rest_framework.exceptions.ValidationError: "
        f"[ErrorDetail(string={message!r}, code='invalid')]\n"
    )


def kind_of(name: str) -> str:
    """The kind of a file by its name alone, as CVAT tells it; ``unknown`` if it is none."""
    mime, encoding = _TYPES.guess_type(name)
    if mime is None and encoding is None:
        return "unknown"
    if mime in _ARCHIVES or encoding in _ARCHIVES or encoding == "gzip":
        return "archive"
    if mime == "application/pdf":
        return "pdf"
    if mime == "application/zip":
        return "zip"
    family = (mime or "").partition("/")[0]
    if family == "image" and mime == "image/svg+xml":
        return "unknown"
    return family if family in ("image", "video", "audio") else "unknown"


def check_combination(counted: dict[str, list[str]]) -> str:
    """Refuse media that do not go together; return the task's mode.

    Raises :class:`ImportFailed` for nothing at all, and for anything beside a video or archive.
    """
    unique = sum(len(counted[kind]) for kind in UNIQUE)
    others = sum(len(files) for kind, files in counted.items() if kind not in UNIQUE)
    if unique > 1 or (unique == 1 and others):
        several = ", ".join(kind for kind in KINDS if kind not in UNIQUE)
        found = ", ".join(f"{len(counted[kind])} {kind}(s)" for kind in KINDS)
        raise ImportFailed(
            f"ValueError: Only one {', '.join(UNIQUE)} or many {several} "
            f"can be used simultaneously,             but {found} found.\n"
        )
    if not unique and not others:
        raise ImportFailed("ValueError: No media data found\n")
    return "interpolation" if counted["video"] or counted["audio"] else "annotation"


def in_order(names: Iterable[str], method: str, rng: random.Random) -> list[str]:
    """File names in the order of a sorting method."""
    found = list(names)
    match method:
        case "lexicographical":
            # CVAT sorts path objects, which compare part by part.
            found.sort(key=PurePosixPath)
        case "natural":
            found.sort(key=natural_key)
        case "random":
            rng.shuffle(found)
    return found


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sorts ``f9`` before ``f10``."""
    return [
        (0, int(part), "") if part.isdigit() else (1, 0, part.casefold())
        for part in re.split(r"(\d+)", name)
        if part
    ]


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of an image, from its header. Raises ``OSError`` if it is none."""
    with Image.open(path) as image:
        return image.size


def first_image_size(path: Path, shown_as: str) -> tuple[int, int]:
    """The image that the chunk size is computed from: Pillow's own error if it is none."""
    try:
        return image_size(path)
    except UnidentifiedImageError:
        raise ImportFailed(
            f"PIL.UnidentifiedImageError: cannot identify image file '{shown_as}'\n"
        ) from None
    except OSError as error:
        raise ImportFailed(f"{type(error).__name__}: {error}\n") from None


def image_sizes(paths: Sequence[tuple[str, Path]]) -> list[tuple[int, int]]:
    """The sizes of all images of a manifest: one that is none is told by its name."""
    sizes = []
    for name, path in paths:
        try:
            sizes.append(image_size(path))
        except OSError:
            raise ImportFailed(
                "utils.dataset_manifest.errors.InvalidImageError: "
                f"failed to parse image file '{name}'\n"
            ) from None
    return sizes


def chunk_size_for(width: int, height: int) -> int:
    """Frames in a chunk where the upload does not say: 36 of 1080p, between 2 and 72."""
    return max(2, min(72, 36 * 1920 * 1080 // max(1, width * height)))


def extract(path: Path, target: Path) -> list[str]:
    """Unpack the images of an archive below ``target``; return their names.

    Zip and tar are known; the rest (7z, rar, cpio) needs programs that are not here.
    """
    if zipfile.is_zipfile(path):
        return _extract_zip(path, target)
    if tarfile.is_tarfile(path):
        return _extract_tar(path, target)
    if kind_of(path.name) == "zip":
        raise ImportFailed("zipfile.BadZipFile: File is not a zip file\n")
    raise ImportFailed(
        f"patoolib.util.PatoolError: could not find an executable program to extract "
        f"'{path.name}'; the simulator knows zip and tar\n"
    )


def _extract_zip(path: Path, target: Path) -> list[str]:
    names = []
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if not entry.is_dir() and kind_of(entry.filename) == "image":
                # extract() drops what would lead out of the target, so ask where it went.
                written = Path(archive.extract(entry, target))
                names.append(written.relative_to(target).as_posix())
    return names


def _extract_tar(path: Path, target: Path) -> list[str]:
    names = []
    with tarfile.open(path) as archive:
        for entry in archive.getmembers():
            if entry.isfile() and kind_of(entry.name) == "image":
                archive.extract(entry, target, filter="data")
                names.append(entry.name)
    return names
