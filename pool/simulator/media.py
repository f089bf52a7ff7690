"""Files of media: what kind they are, in which order they come, how large their pictures are."""

from __future__ import annotations

import io
import mimetypes
import random
import re
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from PIL import Image, UnidentifiedImageError

#: Where a real server keeps what is in our folders: its error messages name these paths.
DATA_ROOT = "/home/django/data/data"
SHARE_ROOT = "/home/django/share"
#: From where a task's images are to the root, in the messages.
UP_TO_ROOT = "../../../../../../.."

#: The tag of EXIF that says how a picture is turned, and its last value that keeps the sides.
ORIENTATION, UPRIGHT = 0x0112, 4

#: Bytes of a point in a KITTI file: four floats.
KITTI_POINT = 16

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
#: What macOS leaves in archives, as far as CVAT knows it.
_IGNORED_IN_ZIPS = ("__MSOSX", "._.DS_Store", "__MACOSX", ".DS_Store")
_TYPES = mimetypes.MimeTypes()
for _type, _suffixes in {
    "application/x-7z-compressed": ".7z",
    "application/x-rar-compressed": ".rar",
    "audio/x-wav": ".wav",
    "image/jp2": ".jp2 .jpf .jpx",
    "image/jpeg": ".jfif",
    "image/heic": ".heic",
    "image/x-dds": ".dds",
    "image/x-tga": ".tga",
    "image/x-webp": ".webp",
    "image/x.kitti-velodyne": ".bin",
    "image/x.point-cloud-data": ".pcd",
    "video/3gpp": ".3gp",
    "video/mp2t": ".ts .mts .m2ts",
    "video/ogg": ".ogv",
    "video/webm": ".webm",
    "video/x-flv": ".flv",
    "video/x-matroska": ".mkv",
    "video/x-ms-wmv": ".wmv",
    "video/x-msvideo": ".avi",
}.items():
    for _suffix in _suffixes.split():
        _TYPES.add_type(_type, _suffix)


class ImportFailed(Exception):
    """The import ends here; the text is the last line of the traceback, as CVAT shows it."""


def validation_error(message: str) -> ImportFailed:
    """A failure that CVAT raises as a validation error of its REST framework."""
    return ImportFailed(
        "rest_framework.exceptions.ValidationError: "
        f"[ErrorDetail(string={message!r}, code='invalid')]\n"
    )


def media_type_of(name: str) -> str:
    """The media type that CVAT tells of a file, by its name alone."""
    return _TYPES.guess_type(name)[0] or "application/octet-stream"


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


def is_cloud(name: str) -> bool:
    """Whether a file is a point cloud, by its name."""
    return PurePosixPath(name).suffix.lower() in (".pcd", ".bin")


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
            found.sort()
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


def image_size(file: Path | io.BytesIO) -> tuple[int, int]:
    """Width and height of an image, turned as its EXIF data say; of a cloud, its points and 1.

    Raises ``OSError`` if it is none.
    """
    if isinstance(file, Path) and is_cloud(file.name):
        return _cloud_size(file)
    with Image.open(file) as image:
        # Pillow has a TIFF turned already, so its sides are swapped back: a mistake of CVAT's.
        turned = image.getexif().get(ORIENTATION, 1) > UPRIGHT
        return image.size[::-1] if turned else image.size


def _cloud_size(path: Path) -> tuple[int, int]:
    size = path.stat().st_size
    if path.suffix.lower() == ".bin":
        if size % KITTI_POINT:
            reason = f"failed to parse bin pcd point at pos {size}"
            raise validation_error(f"Could not read pcd file '{path.name}': {reason}")
        return size // KITTI_POINT, 1
    head = path.read_bytes()[:4096].decode("latin-1")
    values = dict(re.findall(r"^(WIDTH|HEIGHT)\s+(\d+)\s*$", head, re.MULTILINE))
    if len(values) < 2:
        raise validation_error(f"Could not read pcd file {path.name!r}: no WIDTH and HEIGHT")
    return int(values["WIDTH"]), int(values["HEIGHT"])


def first_image_size(name: str, path: Path, shown_as: str, in_memory: bool) -> tuple[int, int]:
    """The image that the chunk size is computed from: Pillow's own error if it is none."""
    if _leads_out(name):
        raise _unreadable(name)
    try:
        return image_size(io.BytesIO(path.read_bytes()) if in_memory else path)
    except UnidentifiedImageError as error:
        what = str(error) if in_memory else f"cannot identify image file {shown_as!r}"
        raise ImportFailed(f"PIL.UnidentifiedImageError: {what}\n") from None
    except OSError as error:
        what = (
            f"[Errno {error.errno}] {error.strerror}: {shown_as!r}" if error.errno else str(error)
        )
        raise ImportFailed(f"{type(error).__name__}: {what}\n") from None


def image_sizes(images: Iterable[tuple[str, Path]]) -> list[tuple[int, int]]:
    """The sizes of all images of a manifest: one that is none is reported by its name."""
    sizes = []
    for name, path in images:
        if _leads_out(name):
            raise _unreadable(name)
        try:
            sizes.append(image_size(path))
        except OSError:
            raise _unreadable(name) from None
    return sizes


def _leads_out(name: str) -> bool:
    """Whether a name in an archive leads out of the folder, where nothing was unpacked to."""
    return name.startswith("/") or ".." in name.split("/")


def _unreadable(name: str) -> ImportFailed:
    shown = f"{UP_TO_ROOT}{name}" if name.startswith("/") else name
    return ImportFailed(
        f"utils.dataset_manifest.errors.InvalidImageError: failed to parse image file '{shown}'\n"
    )


def chunk_size_for(width: int, height: int) -> int:
    """Frames in a chunk where the upload does not say: 36 of 1080p, between 2 and 72."""
    return max(2, min(72, 36 * 1920 * 1080 // max(1, width * height)))


def unpack(path: Path, target: Path, shown_as: str) -> list[str]:
    """Unpack an archive below ``target``, where it is taken away; return its images' names.

    Zip and tar are known; the rest (7z, rar, cpio) needs programs that are not here.
    """
    if kind_of(path.name) == "zip":
        names = _unpack_zip(path, target)
    elif tarfile.is_tarfile(path):
        with tarfile.open(path) as archive:
            archive.extractall(target, filter="data")
        found = (each.relative_to(target).as_posix() for each in target.rglob("*"))
        names = [name for name in found if kind_of(name) == "image"]
    else:
        kind = path.suffix.removeprefix(".")
        raise ImportFailed(
            f"RuntimeError: unable to extract archive:\nINFO patool: Extracting {shown_as} ...\n"
            f"ERROR patool: error extracting {shown_as}: could not find an executable program to "
            f"extract format {kind}; candidates are rar,unrar,7z,7zz,7zzs,unar\n\n"
        )
    if path.is_relative_to(target):
        path.unlink()
    return names


def _unpack_zip(path: Path, target: Path) -> list[str]:
    """Names are kept as they are, even those that lead elsewhere than where they are unpacked."""
    try:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(target)
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise ImportFailed(f"zipfile.BadZipFile: {error}\n") from None
    return [
        name
        for name in names
        if kind_of(name) == "image" and not any(part in name for part in _IGNORED_IN_ZIPS)
    ]
