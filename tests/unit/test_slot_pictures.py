"""Which pictures go into a slot, their bytes, and the placeholder that is there before."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.pictures import picture

from pool.config.settings import SLOT_FORMATS, SlotSettings
from pool.config.source import Upload, build_upload
from pool.errors import InputError
from pool.requests.slot_pictures import LARGEST, contents, placeholder, why_not

FORMATS = sorted(SLOT_FORMATS)
ORIENTATION = 0x0112


def slot(size: str = "64x48", **settings: Any) -> SlotSettings:
    return SlotSettings(
        size=size, storage="file:///mnt/share", server="share:", cache_storage=3, **settings
    )


def image(
    width: int = 64, height: int = 48, *, format: str = "jpg", turned: int | None = None
) -> bytes:
    made = Image.effect_noise((width, height), 90).convert("RGB")
    stream = io.BytesIO()
    exif = Image.Exif()
    if turned is not None:
        exif[ORIENTATION] = turned
    made.save(stream, SLOT_FORMATS[format], exif=exif)
    return stream.getvalue()


def several(format: str) -> bytes:
    first, second = (Image.new("RGB", (64, 48), colour) for colour in ("red", "blue"))
    stream = io.BytesIO()
    first.save(stream, SLOT_FORMATS[format], save_all=True, append_images=[second])
    return stream.getvalue()


def late_exif() -> bytes:
    """A PNG whose EXIF stands behind its pixels."""
    content = image(48, 64, format="png", turned=6)
    start = content.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4])
    chunk, rest = content[start:end], content[:start] + content[end:]
    return rest[:-12] + chunk + rest[-12:]


@pytest.mark.parametrize("format", FORMATS)
def test_a_picture_of_the_size_and_format_goes_into_a_slot(format: str) -> None:
    settings = slot(format=format)
    assert why_not(settings, build_upload([("a.jpg", image(format=format))])) == ""
    assert why_not(settings, build_upload([("a.jpg", placeholder(settings))])) == ""
    if format != "bmp":
        turned = build_upload([("a.jpg", image(48, 64, format=format, turned=6))])
        assert why_not(settings, turned) == ""
        as_it_is = build_upload([("a.jpg", image(64, 48, format=format, turned=8))])
        assert why_not(settings, as_it_is) == "a.jpg is 48x64, and the slot takes 64x48"


def test_exif_behind_the_pixels_counts() -> None:
    assert why_not(slot(format="png"), build_upload([("a.png", late_exif())])) == ""


def test_a_slot_of_several_frames_takes_fewer() -> None:
    settings = slot(frames=3)
    files = [(f"{number}.jpg", image()) for number in range(4)]
    assert why_not(settings, build_upload(files[:1])) == ""
    assert why_not(settings, build_upload(files[:3])) == ""
    assert why_not(settings, build_upload(files[:3], job_size=3)) == ""
    assert why_not(settings, build_upload(files)) == "it has 4 files, and a slot has 3 frames"
    why = why_not(settings, build_upload(files[:3], job_size=1))
    assert why == "it asks for 3 jobs, and a slot is one"


@pytest.mark.parametrize(
    ("upload", "why"),
    [
        (build_upload(share=["a.jpg"]), "by share, and a slot takes files"),
        (build_upload(urls=["http://example.com/a.jpg"]), "by urls, and"),
        (build_upload(cloud=(1, ["a.jpg"])), "by cloud, and"),
        (
            build_upload(
                [("a.jpg", image())], params={"image_quality": 50, "frame_filter": "step=2"}
            ),
            "data parameters of its own: frame_filter, image_quality",
        ),
        (build_upload([("a.jpg", image(65, 48))]), "a.jpg is 65x48, and the slot takes 64x48"),
        (build_upload([("a.jpg", image(48, 64))]), "a.jpg is 48x64, and the slot takes 64x48"),
        (build_upload([("a.jpg", image(format="png"))]), "a.jpg is PNG, and the slot takes JPEG"),
        (build_upload([("a.mp4", b"\0\0\0\x20ftypisom" + bytes(99))]), "a.mp4 is no picture"),
        (build_upload([("a.zip", b"PK\3\4" + bytes(99))]), "a.zip is no picture"),
        (build_upload([("\x1b[2J.jpg", b"x")]), r"'\x1b[2J.jpg' is no picture"),
    ],
)
def test_what_goes_the_ordinary_way(upload: Upload, why: str) -> None:
    found = why_not(slot(), upload)
    assert why in found
    assert "\n" not in found


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("left", [0.98, 0.6, 0.3])
def test_a_picture_that_is_cut_off_goes_the_ordinary_way(format: str, left: float) -> None:
    content = image(format=format)
    upload = build_upload([("a.jpg", content[: int(len(content) * left)])])
    why = why_not(slot(format=format), upload)
    assert why in ("a.jpg is cut off or broken", "a.jpg is no picture")


@pytest.mark.parametrize("format", ["png", "webp", "tiff"])
def test_a_file_of_several_pictures_goes_the_ordinary_way(format: str) -> None:
    why = why_not(slot(format=format), build_upload([(f"a.{format}", several(format))]))
    assert why == f"a.{format} has several pictures, and a frame is one"


def test_a_picture_with_something_behind_its_end_is_read_whole() -> None:
    settings = slot()
    assert why_not(settings, build_upload([("a.jpg", image() + b"\0" * 40)])) == ""
    assert why_not(settings, build_upload([("a.jpg", image() + b"made by a camera")])) == ""


def test_files_are_not_read_that_no_slot_can_hold(tmp_path: Path) -> None:
    upload = build_upload([("a.jpg", image())])
    (file,) = upload.files
    large = replace(file, source=tmp_path / "missing.jpg", size=LARGEST + 1)
    why = why_not(slot(), replace(upload, files=(large,)))
    assert why.startswith("its files have 268435457 bytes")


def test_an_open_file_is_read_from_where_it_stood_and_left_there() -> None:
    """Before it stands a picture of another size, which is not the one that was given."""
    before, given = image(32, 32), image()
    stream = io.BytesIO(before + given)
    stream.seek(len(before))
    upload = build_upload([("a.jpg", stream)])
    assert why_not(slot(), upload) == ""
    assert stream.tell() == len(before)
    assert contents(upload) == [given]
    assert stream.tell() == len(before)


def test_the_bytes_of_an_upload_are_those_that_were_given(tmp_path: Path) -> None:
    path = tmp_path / "b.jpg"
    path.write_bytes(image())
    upload = build_upload([("z.jpg", picture(1)), path])
    assert contents(upload) == [picture(1), path.read_bytes()]
    path.write_bytes(image() * 2)
    with pytest.raises(InputError, match=r"b\.jpg: has changed"):
        contents(upload)
    path.unlink()
    with pytest.raises(InputError, match=r"b\.jpg: cannot be read"):
        contents(upload)


# --- The placeholder ------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("size", ["1x1", "16x16", "16x900", "900x16", "1920x1080"])
def test_a_placeholder_has_the_size_and_format(size: str, format: str) -> None:
    settings = slot(size, format=format)
    content = placeholder(settings)
    with Image.open(io.BytesIO(content)) as shown:
        assert (shown.format, shown.size) == (SLOT_FORMATS[format], settings.dimensions)
        shown.load()
    assert placeholder(slot(size, format=format)) == content


@pytest.mark.parametrize("size", ["320x240", "1920x1080", "600x1200"])
def test_its_message_leaves_the_middle_to_cvat(size: str) -> None:
    content = placeholder(slot(size, format="png"))
    with Image.open(io.BytesIO(content)) as shown:
        grey = shown.convert("L")
        width, height = grey.size
        written = [
            low != high
            for top in range(height)
            for low, high in [grey.crop((0, top, width, top + 1)).getextrema()]
        ]
        edges = [grey.crop((left, 0, left + 2, height)).getextrema() for left in (0, width - 2)]
    third = height // 3
    assert any(written[:third]) and any(written[-third:])
    assert not any(written[third:-third])
    assert all(low == high for low, high in edges)
