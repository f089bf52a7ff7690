"""Videos without a decoder: the length and the picture size out of the file's own tables.

MP4 and QuickTime files say how many samples their video track has (ISO/IEC 14496-12, the boxes
``hdlr``, ``tkhd`` and ``stsz``), AVI files have it in their main header. Other containers would
need a decoder; they fail the import like a damaged video does.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .media import ImportFailed

_NESTED = frozenset({b"moov", b"trak", b"mdia", b"minf", b"stbl"})


@dataclass(slots=True)
class Track:
    """One track of a video file, as far as it was understood."""

    is_video: bool = False
    width: int = 0
    height: int = 0
    frames: int = 0


def read_video(path: Path, shown_as: str) -> Track:
    """The video track of a file. Raises :class:`ImportFailed` for a file without one."""
    try:
        with path.open("rb") as file:
            head = file.read(12)
            file.seek(0)
            if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
                track = _read_avi(file)
            else:
                track = _read_mp4(file, path.stat().st_size)
    except (struct.error, ValueError):
        track = None
    if track is None or not (track.frames and track.width and track.height):
        raise ImportFailed(
            "av.error.InvalidDataError: [Errno 1094995529] "
            f"Invalid data found when processing input: '{shown_as}'\n"
        )
    return track


def _read_avi(file: BinaryIO) -> Track | None:
    head = file.read(4096)
    start = head.find(b"avih")
    if start < 0:
        return None
    values = struct.unpack_from("<10I", head, start + 8)
    return Track(is_video=True, frames=values[4], width=values[8], height=values[9])


def _read_mp4(file: BinaryIO, size: int) -> Track | None:
    tracks: list[Track] = []
    for kind, start, end in _boxes(file, 0, size):
        if kind == b"trak":
            tracks.append(Track())
        if tracks:
            _read_box(file, kind, start, end, tracks[-1])
    return next((track for track in tracks if track.is_video), None)


def _read_box(file: BinaryIO, kind: bytes, start: int, end: int, track: Track) -> None:
    file.seek(start)
    if kind == b"hdlr":
        track.is_video = file.read(12)[8:12] == b"vide"
    elif kind == b"tkhd":
        # Width and height end the box, as 16.16 fixed-point numbers.
        file.seek(end - 8)
        width, height = struct.unpack(">II", file.read(8))
        track.width, track.height = width >> 16, height >> 16
    elif kind in (b"stsz", b"stz2"):
        _, _, track.frames = struct.unpack(">III", file.read(12))


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """The boxes in a part of the file, each before those it holds."""
    while start + 8 <= end:
        file.seek(start)
        length, kind = struct.unpack(">I4s", file.read(8))
        header = 8
        if length == 1:
            (length,) = struct.unpack(">Q", file.read(8))
            header = 16
        elif length == 0:
            length = end - start
        if length < header:
            raise ValueError("a box shorter than its own header")
        stop = min(start + length, end)
        yield kind, start + header, stop
        if kind in _NESTED:
            yield from _boxes(file, start + header, stop)
        start += length
