"""Which requests may share a task, and which of those that wait go together.

Pure, but for :func:`checked_key`, which reads the heads of images.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from statistics import median
from typing import TYPE_CHECKING, BinaryIO, Final

from pool.clock import Clock
from pool.config.data_params import merged
from pool.config.settings import ImportSettings, Template, against_groups
from pool.config.source import LocalFile, Upload
from pool.errors import InputError
from pool.model import Priority
from pool.store import Unserved

if TYPE_CHECKING:
    from PIL.Image import Image

#: Suffixes of files that are one frame each, and that CVAT imports beside each other.
IMAGES: Final = frozenset(
    {".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
#: Seconds of an import, and what each image in it adds, on the server that CVAT.md has measured.
IMPORT_SECONDS: Final = 0.15
IMAGE_SECONDS: Final = 0.006
#: Seconds that a group of bulk takes at most: what is interactive waits for no more than that.
LONGEST_BULK: Final = 1.0
#: Formats that CVAT imports as one frame each, whatever the file is called (recording media).
FORMATS: Final = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
#: Seconds for which the images of one request are looked at. A small JPEG takes 25 to 100 us.
LOOK_AT_MOST: Final = 0.1


def checked_key(template: Template, upload: Upload, clock: Clock) -> str | None:
    """Return the :func:`group_key` of a request whose images are seen to be in order: one that CVAT
    cannot read fails the import for all. A doubtful one goes alone, and so does a request of many
    that cannot be looked at in :data:`LOOK_AT_MOST` seconds: one picture always is, since on a busy
    machine a thread may stand still for longer than that before it has looked at any."""
    key = group_key(template, upload)
    until = clock.monotonic() + LOOK_AT_MOST
    sound = key is not None and all(
        (number == 0 or clock.monotonic() < until) and _is_sound(file)
        for number, file in enumerate(upload.files)
    )
    return key if sound else None


def load_formats() -> None:
    """Load what :func:`checked_key` needs, which takes 0.2 s, before a request waits for it."""
    from PIL import Image

    Image.init()


def _is_sound(file: LocalFile) -> bool:
    """Whether the head of a file is that of an image (:func:`opened_image`). The pixels are not
    read: that would take a hundred times as long."""
    try:
        with opened_image(file):
            return True
    except Exception:
        # Pillow raises whatever it stumbles on in a broken file, and its warning of a bomb where
        # warnings are errors.
        return False


@contextmanager
def opened_image(file: LocalFile) -> Iterator[tuple[Image, BinaryIO]]:
    """Open an image in one of the :data:`FORMATS` by its head, and what it is read from.

    :raises Exception: it is no image, or larger than Pillow takes for harmless.
    """
    from PIL import Image

    with file.open() as stream:
        if file.start:
            # Pillow takes a file from its first byte on.
            stream.seek(file.start)
            stream = io.BytesIO(stream.read(file.size))
        with Image.open(stream, formats=FORMATS) as image:
            width, height = image.size
            if not 0 < width * height <= (Image.MAX_IMAGE_PIXELS or width * height):
                raise ValueError(f"{width} by {height} pixels")
            yield image, stream


#: While imports are under way, a group is not sent before nothing has come for so many seconds, so
#: that requests that come at the same time go together; and for so many at the most.
QUIET: Final = 0.015
LONGEST_GATHERING: Final = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """How things stand with the places for imports that requests may share.

    ``free`` is how many more may be begun, negative where one is ahead already; ``busy`` how many
    are under way. ``next_free`` are the seconds until the first of these is expected to end, None
    where that is not known; ``upload`` those that it takes until CVAT has the data of a group.
    ``quiet``: for so many seconds no request has come.
    """

    free: int
    busy: int
    next_free: float | None = None
    upload: float = 0.0
    quiet: float = math.inf


#: What requests have in common that may go together; None goes alone.
GroupKey = tuple[str, Priority, str] | None


def key_of(each: Unserved) -> GroupKey:
    """Return with which requests one may share a task."""
    return None if each.group_key is None else (each.group_key, each.priority, each.tenant)


def bulk_places(places: int) -> int:
    """Return how many of the places bulk may have: one is kept for what is more urgent."""
    return max(1, places - 1)


def group_key(template: Template, upload: Upload) -> str | None:
    """Return what has to be the same for requests of a template to share a task: a digest of their
    data parameters. None for one that goes alone: where grouping is off, whose data is not images
    from here, that is larger than a group may be, or whose parameters go with no mapping."""
    settings = template.importing
    if settings.grouping == "off" or not upload.files:
        return None
    if any(PurePosixPath(name).suffix.lower() not in IMAGES for name in upload.names):
        return None
    if len(upload.files) > settings.group_files or upload.size > settings.group_bytes:
        return None
    try:
        params = merged(template.data, upload.extra)
    except InputError:
        return None
    if against_groups(template.task, params):
        return None
    own = json.dumps(upload.extra, sort_keys=True, default=str)
    return hashlib.sha256(own.encode()).hexdigest()[:16]


def predicted(files: int, *, pace: float = 1.0) -> float:
    """Return the seconds that CVAT takes to import this many images (CVAT.md, fact 3), on a server
    whose imports take ``pace`` times as long as those that were measured."""
    return pace * (IMPORT_SECONDS + IMAGE_SECONDS * files)


def pace_of(seen: Sequence[tuple[int, float]]) -> float:
    """Return how many times as long as :func:`predicted` the imports took that were ``seen``, which
    are numbers of images with seconds; 1 where none was."""
    return median([seconds / predicted(files) for files, seconds in seen] or [1.0])


def groups_of(
    waiting: Sequence[Unserved], settings: ImportSettings, *, pace: float = 1.0
) -> list[list[Unserved]]:
    """Return requests of one template, which are in the order in which they are served, as the
    groups in which they are sent. Groups are in the order of their first members, members in the
    order in which they are served: what a group has no room for begins the next one, and no later
    request passes it. A group is of one tenant, and of one priority, so that none waits for the
    import of many that are less urgent; one of bulk takes no longer than :data:`LONGEST_BULK`,
    ``pace`` as for :func:`predicted`."""
    groups: list[_Group] = []
    growing: dict[GroupKey, _Group] = {}
    for each in waiting:
        key = key_of(each)
        group = growing.get(key) if key is not None else None
        if group is None or not group.has_room(len(each.files), each.size, settings, pace):
            group = _Group()
            groups.append(group)
            if key is not None:
                growing[key] = group
        group.add(each)
    return [group.members for group in groups]


def seconds_to_wait(
    group: Sequence[Unserved], settings: ImportSettings, places: Places, *, now: float
) -> float:
    """Return the seconds after which a group is sent; infinite while it waits for an import to end.

    On an idle server it goes at once, unless ``group_delay`` has it wait for others. While no place
    is free, one group may go ahead, early enough to be at CVAT when a place is: what comes until
    then goes with it. Where the prediction is wrong the group is only smaller than it could be, and
    where there is none, nothing goes ahead.
    """
    ahead = 0.0
    if places.free <= 0:
        if places.free < 0 or places.next_free is None:
            return math.inf
        ahead = max(0.0, places.next_free - places.upload)
    oldest = now - group[0].created_at
    # Negative after the clock was set back: it is not known then how long it has waited.
    if oldest < 0.0 or is_full(group, settings):
        return ahead
    gathering = 0.0
    if settings.group_delay:
        gathering = settings.group_delay - oldest
    elif places.busy:
        gathering = min(QUIET - places.quiet, LONGEST_GATHERING - oldest)
    return max(ahead, gathering)


def tasks_for(queued: int, settings: ImportSettings, *, places: int) -> int:
    """Return how many tasks are worth having for so many queued requests: where they may share one,
    no more than can be filled at the same time, in so many ``places``, and the one that is next."""
    return queued if settings.grouping == "off" else min(queued, places + 1)


def is_full(group: Sequence[Unserved], settings: ImportSettings, *, pace: float = 1.0) -> bool:
    """Whether not even the smallest request could join a group."""
    whole = _Group()
    for each in group:
        whole.add(each)
    return not whole.has_room(1, 1, settings, pace)


@dataclass(slots=True)
class _Group:
    members: list[Unserved] = field(default_factory=list)
    files: int = 0
    size: int = 0

    def add(self, each: Unserved) -> None:
        self.members.append(each)
        self.files += len(each.files)
        self.size += each.size

    def has_room(self, files: int, size: int, settings: ImportSettings, pace: float) -> bool:
        bulk = self.members[0].priority is Priority.BULK
        return (
            len(self.members) < settings.group_requests
            and self.files + files <= settings.group_files
            and self.size + size <= settings.group_bytes
            and not (bulk and predicted(self.files + files, pace=pace) > LONGEST_BULK)
        )
