"""The pictures of slots: the placeholder that each begins with, which files fit into one, and
whether CVAT shows what was written."""

from __future__ import annotations

import io
import os
from functools import lru_cache
from typing import TYPE_CHECKING, BinaryIO, Final

from pool.config.names import shown
from pool.config.settings import SLOT_FORMATS, SlotSettings
from pool.config.source import LocalFile, Upload
from pool.errors import InputError
from pool.requests.grouping import opened_image

if TYPE_CHECKING:
    from PIL.Image import Image

#: Bytes of the files of one slot at the most, since they are held in memory.
LARGEST: Final = 256 * 2**20


def placeholder(settings: SlotSettings) -> bytes:
    """Return the picture that a slot has until it is filled: always the same bytes for one size and
    format, with one version of Pillow."""
    return _placeholder(*settings.dimensions, SLOT_FORMATS[settings.format])


@lru_cache(maxsize=16)
def _placeholder(width: int, height: int, format: str) -> bytes:
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (width, height), (58, 64, 72))
    draw = ImageDraw.Draw(image)
    # CVAT greys a hidden frame, and writes "IMAGE REMOVED" across its middle.
    for text, middle, share in (
        ("Reserved", 0.17, 0.16),
        ("Waiting for its picture", 0.78, 0.1),
        ("Reload the page once the job is announced", 0.9, 0.05),
    ):
        size = share * min(height, 0.75 * width)
        if size >= 6:
            font = ImageFont.load_default(size)
            place = (width / 2, middle * height)
            draw.text(place, text, (226, 230, 235), font, anchor="mm")
    stream = io.BytesIO()
    image.save(stream, format)
    return stream.getvalue()


def why_not(settings: SlotSettings, upload: Upload) -> str:
    """Return why the data of a request does not go into a slot; "" where it does.

    A picture is looked at by its head, and by its end where this shows that all of it is there;
    else its pixels are read, since CVAT would not find out before an annotator does.
    """
    if not upload.files:
        return f"the data is given by {upload.kind}, and a slot takes files from here"
    if upload.extra:
        return f"it has data parameters of its own: {', '.join(sorted(upload.extra))}"
    if len(upload.files) > settings.frames:
        return f"it has {len(upload.files)} files, and a slot has {_frames(settings.frames)}"
    if len(upload.job_sizes) > 1:
        return f"it asks for {len(upload.job_sizes)} jobs, and a slot is one"
    if upload.size > LARGEST:
        return f"its files have {upload.size} bytes, and a slot takes {LARGEST} at the most"
    problems = (_problem(file, settings) for file in upload.files)
    return next(filter(None, problems), "")


def _frames(count: int) -> str:
    return "1 frame" if count == 1 else f"{count} frames"


def _problem(file: LocalFile, settings: SlotSettings) -> str:
    """Return what keeps a file out of a slot, or ""."""
    name = shown(file.given or file.name)
    wanted, size = SLOT_FORMATS[settings.format], settings.dimensions
    is_picture = False
    try:
        with opened_image(file) as (image, stream):
            is_picture = True
            if image.format != wanted:
                return f"{name} is {image.format}, and the slot takes {wanted}"
            if getattr(image, "n_frames", 1) > 1:
                return f"{name} has several pictures, and a frame is one"
            if not _ends_well(image, stream):
                image.load()
            if (turned := _size_as_seen(image, stream)) != size:
                return f"{name} is {_by(turned)}, and the slot takes {_by(size)}"
    except Exception:
        # Pillow raises whatever it stumbles on in a broken file.
        return f"{name} is cut off or broken" if is_picture else f"{name} is no picture"
    return ""


def _by(size: tuple[int, int]) -> str:
    return "x".join(map(str, size))


def _ends_well(image: Image, stream: BinaryIO) -> bool:
    """Whether a file ends as one does of which all is there; False where its end does not say."""
    whole = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, whole - 16))
    end = stream.read()
    if image.format == "JPEG":
        return end.rstrip(b"\0\r\n").endswith(b"\xff\xd9")
    if image.format == "PNG":
        return end.endswith(b"\0\0\0\0IEND\xaeB`\x82")
    if image.format == "WEBP":
        stream.seek(4)
        return int.from_bytes(stream.read(4), "little") + 8 <= whole
    return False


_ORIENTATION: Final = 0x0112


def _size_as_seen(image: Image, stream: BinaryIO) -> tuple[int, int]:
    """Return width and height after the turn that EXIF asks for, as CVAT shows it."""
    from PIL import Image

    width, height = image.size
    if image.format == "PNG":
        stream.seek(0)
        # Pillow reads all the pixels to find what stands behind them, which is rare.
        late = "exif" not in image.info and b"eXIf" in stream.read()
        exif = image.getexif() if late else Image.Image.getexif(image)
    else:
        exif = image.getexif()
    return (height, width) if exif.get(_ORIENTATION) in (5, 6, 7, 8) else (width, height)


def contents(upload: Upload) -> list[bytes]:
    """Return the bytes of the files of a request that fits (:func:`why_not`), in its order.

    :raises InputError: a file cannot be read, or has changed since it was given.
    """
    return [_content(file) for file in upload.files]


def _content(file: LocalFile) -> bytes:
    name = shown(file.given or file.name)
    try:
        with file.open() as stream:
            if file.start is not None:
                stream.seek(file.start)
            # One byte more, by which it is seen that it has grown.
            data = stream.read(file.size + 1)
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: cannot be read ({error})") from error
    if len(data) != file.size:
        raise InputError(f"{name}: has changed while it was read")
    return data


# --- Comparing ------------------------------------------------------------------------------------

#: Pictures are compared in this size, by the difference of each of its pixels' three values.
_THUMBNAIL: Final = (8, 8)
#: On average, and at the most. JPEG at a quality of 10 stays below, even of noise and of 64x48; two
#: photos do not.
_MEAN_DIFFERENCE: Final = 12.0
_LARGEST_DIFFERENCE: Final = 48


def same_picture(seen: bytes, written: bytes) -> bool:
    """Return whether an image that CVAT shows may be of a file, which it turns as EXIF says, and
    compresses. True as well where that cannot be said, of more than 8 bits a value."""
    from PIL import Image, ImageChops

    try:
        with Image.open(io.BytesIO(seen)) as image:
            shown_now = _thumbnail(image)
        with Image.open(io.BytesIO(written)) as image:
            if image.mode.startswith(("I", "F")):
                return True
            file = _thumbnail(image)
    except (OSError, SyntaxError, ValueError):
        return False
    differences = ImageChops.difference(shown_now, file).tobytes()
    mean = sum(differences) / len(differences)
    return mean <= _MEAN_DIFFERENCE and max(differences) <= _LARGEST_DIFFERENCE


def _thumbnail(image: Image) -> Image:
    from PIL import Image, ImageOps

    # Much quicker for JPEG, which can be decoded to an eighth of its size.
    image.draft("RGB", (8 * _THUMBNAIL[0], 8 * _THUMBNAIL[1]))
    turned = ImageOps.exif_transpose(image)
    return turned.convert("RGB").resize(_THUMBNAIL, Image.Resampling.BOX)
