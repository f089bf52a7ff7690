"""What the server keeps of a task's pictures once it has read them."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

#: For so long the server looks at no file again.
KEPT = timedelta(days=1)

#: What was read: its kind (``frame``, ``chunk``, ``preview``), its first and last frame, and
#: whether in ``original`` quality.
Key = tuple[str, int, int, bool]


@dataclass(frozen=True, slots=True)
class Cached:
    content: bytes
    media_type: str


class PictureCache:
    """Frames, chunks and previews of one task, each kept apart, in files.

    What is here is answered whatever has become of the file that it was made of (recordings
    slots and slots_drop). A reading that began before :meth:`drop` can end, and be kept, after it,
    as on a real server.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()
        self._kept: dict[Key, tuple[datetime, Path, str]] = {}

    def get(self, key: Key, now: datetime) -> Cached | None:
        found = self._kept.get(key)
        if found is None:
            return None
        made, path, media_type = found
        if now - made >= KEPT:
            return None
        try:
            return Cached(path.read_bytes(), media_type)
        except FileNotFoundError:  # dropped, or its task deleted, meanwhile
            return None

    def put(self, key: Key, picture: Cached, now: datetime) -> None:
        path = self._folder / str(next(self._numbers))
        # The folder above is gone with its task, if that was deleted meanwhile.
        with contextlib.suppress(FileNotFoundError):
            self._folder.mkdir(exist_ok=True)
            path.write_bytes(picture.content)
            self._kept[key] = now, path, picture.media_type

    def drop(self) -> None:
        """Forget everything: the next look at each file reads it."""
        kept, self._kept = self._kept, {}
        for _, path, _ in kept.values():
            path.unlink(missing_ok=True)
