"""What the pool wants to know of CVAT's answers, and nothing more. Unknown fields are ignored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO, Final

from pool.errors import CvatTooOld

#: Called with (bytes sent, bytes in all) while an upload runs.
Progress = Callable[[int, int], None]


#: The oldest CVAT that the pool works with: the first with personal access tokens.
OLDEST_RELEASE: Final = (2, 48)
#: What a CVAT before a release does not do for the pool, and what that means.
LACKING: Final = (
    ((2, 73), "its webhooks tell of new jobs but not of failed imports, which polling finds"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerInfo:
    """``GET /api/server/about``."""

    name: str
    version: str

    @property
    def release(self) -> tuple[int, int] | None:
        """Major and minor version; None for a version of another form, a development build's."""
        major, _, rest = self.version.partition(".")
        minor = rest.partition(".")[0]
        if not (major.isdecimal() and minor.isdecimal()):
            return None
        return int(major), int(minor)

    def check(self) -> None:
        """Raise CvatTooOld for a release before :data:`OLDEST_RELEASE`."""
        if self.release is not None and self.release < OLDEST_RELEASE:
            oldest = ".".join(map(str, OLDEST_RELEASE))
            raise CvatTooOld(f"CVAT {self.version} is older than {oldest}")

    @property
    def lacks(self) -> tuple[str, ...]:
        """What this release does not do for the pool, in words."""
        release = self.release
        if release is None or release < OLDEST_RELEASE:
            return ()
        return tuple(
            f"CVAT {self.version} is older than {since[0]}.{since[1]}: {what}"
            for since, what in LACKING
            if release < since
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class User:
    """``GET /api/users/self``."""

    id: int
    username: str


@dataclass(frozen=True, kw_only=True, slots=True)
class AccessToken:
    """``GET /api/auth/access_tokens/self`` (CVAT 2.48 and later)."""

    name: str
    read_only: bool
    expiry_date: str | None

    @property
    def refusal(self) -> str:
        """What to say of a token that may only read."""
        return (
            f"token {self.name!r} is read-only; make one that may write, in CVAT's profile page "
            "under Security"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskInfo:
    """What tells whether a task still is what the pool left on the server.

    ``size`` is the number of frames: 0 for an empty task, with or without a prepared upload.
    ``jobs`` is how many jobs it has. ``age`` is how many seconds it had existed when CVAT
    answered, by the server's own clock on both sides, so that ours may be wrong; None when the
    answer does not tell.
    """

    id: int
    name: str
    size: int
    has_data: bool
    jobs: int
    project_id: int | None
    organization_id: int | None
    age: float | None = field(default=None, compare=False)

    @property
    def empty(self) -> bool:
        """Whether no frames and no jobs are in the task."""
        return self.size == 0 and self.jobs == 0


class ImportStatus(StrEnum):
    """The state of an import by its request id, with the two ways in which it can be missing."""

    QUEUED = "queued"
    STARTED = "started"
    FINISHED = "finished"
    FAILED = "failed"
    #: 404: never started, or finished and forgotten (500 s after success).
    UNKNOWN = "unknown"
    #: 400: the task itself was deleted.
    TASK_GONE = "task_gone"


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportState:
    """``GET /api/requests/{id}``; ``message`` is CVAT's own when the import has failed."""

    status: ImportStatus
    message: str = ""


@dataclass(frozen=True, slots=True)
class LocalFile:
    """One file to upload: a path on this machine, or the bytes themselves under a name.

    ``name`` is the file's name in CVAT (:func:`pool.config.names.name_in_cvat`). ``size`` is in
    bytes.
    ``start`` is where an open file stood when it was given; None takes it from where it stands.
    """

    name: str
    source: Path | bytes | BinaryIO
    size: int
    start: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """Data for one task; exactly one of the four kinds is given.

    ``files`` come from here; ``share`` names files and folders on the server's share;
    ``urls`` the server fetches itself; ``cloud`` is a cloud storage's id and keys in it.
    """

    files: tuple[LocalFile, ...] = ()
    share: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()
    cloud: tuple[int, tuple[str, ...]] | None = None
    #: Data parameters beside those of the template, as
    #: :attr:`pool.config.data_params.DataParams.given` has them, with the names that CVAT gives.
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes to send from here."""
        return sum(file.size for file in self.files)
