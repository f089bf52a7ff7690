"""What the pool needs of CVAT's answers. Fields that it does not need may be missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import wraps
from typing import Any, Final, ParamSpec, TypeVar

from pool.clock import parse_time
from pool.config.urls import without_secrets
from pool.errors import CvatError, CvatTooOld
from pool.model import Job

P = ParamSpec("P")
T = TypeVar("T")

#: The oldest CVAT that the pool works with: the first with personal access tokens.
OLDEST_RELEASE: Final = (2, 48)
#: What a CVAT before a release does not do for the pool, and what that means.
LACKING: Final = (
    ((2, 73), "its webhooks announce new jobs but not failed imports, which polling finds"),
)


_TRACEBACK: Final = "Traceback (most recent call last)"
#: Jobs that hold no annotation work of the task's own frames.
_NOT_ANNOTATION: Final = frozenset({"ground_truth"})


def reads(parse: Callable[P, T]) -> Callable[P, T]:
    """Have a function that reads JSON raise CvatError where CVAT has sent something else."""

    @wraps(parse)
    def read(*args: P.args, **options: P.kwargs) -> T:
        try:
            return parse(*args, **options)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"{type(error).__name__}: {error}"
            raise CvatError(f"the answer is not what CVAT is known to send ({what})") from None

    return read


@reads
def parse_id(payload: Any) -> int:
    return int(payload["id"])


@reads
def parse_frame_names(payload: Any) -> tuple[str, ...]:
    return tuple(str(frame["name"]) for frame in payload["frames"])


@reads
def parse_hidden_frames(payload: Any) -> frozenset[int]:
    return frozenset(int(number) for number in payload["deleted_frames"])


@reads
def parse_annotated(payload: Any) -> bool:
    """Return whether there are annotations; ``intervals`` came with audio tasks."""
    kinds = ("tags", "shapes", "tracks")
    return any(len(payload[kind]) for kind in kinds) or bool(payload.get("intervals"))


@reads
def parse_label_name(payload: Any) -> str | None:
    """Return the name of a label; None for a part of a skeleton."""
    return None if payload.get("has_parent") else str(payload["name"])


@reads
def parse_state(payload: Any) -> str:
    """Return the state of a job."""
    return str(payload["state"])


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerInfo:
    """``GET /api/server/about``."""

    name: str
    version: str

    @staticmethod
    @reads
    def parse(payload: Any) -> ServerInfo:
        return ServerInfo(name=str(payload["name"]), version=str(payload["version"]))

    @property
    def release(self) -> tuple[int, int] | None:
        """Major and minor version; None for a version of another form, as of development builds."""
        major, _, rest = self.version.partition(".")
        minor = rest.partition(".")[0]
        if not (major.isdecimal() and minor.isdecimal()):
            return None
        return int(major), int(minor)

    def check(self) -> None:
        """Check the release.

        :raises CvatTooOld: it is before :data:`OLDEST_RELEASE`.
        """
        if self.release is not None and self.release < OLDEST_RELEASE:
            oldest = ".".join(map(str, OLDEST_RELEASE))
            raise CvatTooOld(f"CVAT {self.version} is older than {oldest}")

    @property
    def lacks(self) -> tuple[str, ...]:
        """What this release cannot do for the pool, in words."""
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
    """``GET /api/users/self`` and ``GET /api/users/{id}``."""

    id: int
    username: str

    @staticmethod
    @reads
    def parse(payload: Any) -> User:
        return User(id=int(payload["id"]), username=str(payload["username"]))


@dataclass(frozen=True, kw_only=True, slots=True)
class Project:
    """``GET /api/projects``."""

    id: int
    name: str

    @staticmethod
    @reads
    def parse(payload: Any) -> Project:
        return Project(id=int(payload["id"]), name=str(payload["name"]))


@dataclass(frozen=True, kw_only=True, slots=True)
class AccessToken:
    """``GET /api/auth/access_tokens/self`` (CVAT 2.48 and later)."""

    name: str
    read_only: bool
    expiry_date: str | None

    @staticmethod
    @reads
    def parse(payload: Any) -> AccessToken:
        return AccessToken(
            name=str(payload.get("name", "")),
            read_only=bool(payload["read_only"]),
            expiry_date=payload.get("expiry_date"),
        )

    @property
    def refusal(self) -> str:
        """The message for a token that may only read."""
        return (
            f"token {self.name!r} is read-only; make one that may write, in CVAT's profile page "
            "under Security"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskInfo:
    """What shows whether a task is still as the pool left it.

    ``size`` is the number of frames: 0 for an empty task, with or without a prepared upload.
    ``jobs`` is how many jobs it has. ``age`` is for how many seconds it existed when CVAT
    answered, both times by the server's own clock, since ours may be wrong; None when the answer
    has no time.
    """

    id: int
    name: str
    size: int
    has_data: bool
    jobs: int
    project_id: int | None
    organization_id: int | None
    age: float | None = field(default=None, compare=False)

    @staticmethod
    @reads
    def parse(payload: Any, answered: float | None) -> TaskInfo:
        """``answered`` is when the answer was made, by the server's clock, in Unix seconds."""
        created = payload.get("created_date")
        age = None
        if isinstance(created, str) and answered is not None:
            age = answered - parse_time(created).timestamp()
        return TaskInfo(
            id=int(payload["id"]),
            name=str(payload["name"]),
            # Left out of the answer while a task has no data row.
            size=int(payload.get("size") or 0),
            has_data=payload.get("data") is not None,
            jobs=int((payload.get("jobs") or {}).get("count") or 0),
            project_id=payload.get("project_id"),
            organization_id=payload.get("organization_id", payload.get("organization")),
            age=age,
        )

    @property
    def empty(self) -> bool:
        """Whether the task has no frames and no jobs."""
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
    """``GET /api/requests/{id}``; ``message`` is CVAT's own when the import has failed. It was
    ``queued_for`` so many seconds until a worker began it, and ``ran_for`` so many; None where that
    is not over, or not said."""

    status: ImportStatus
    message: str = ""
    queued_for: float | None = None
    ran_for: float | None = None

    @staticmethod
    @reads
    def parse(payload: Any) -> ImportState:
        """Read the state; its message is without secrets of URLs.

        Of a traceback, the last line is the message: before 2.70, CVAT gives the whole of it in
        the first moments after a failure.
        """
        text = str(payload.get("message") or "").strip()
        message = text.splitlines()[-1].strip() if _TRACEBACK in text else text
        return ImportState(
            status=ImportStatus(payload["status"]),
            message=without_secrets(message),
            queued_for=_between(payload.get("created_date"), payload.get("started_date")),
            ran_for=_between(payload.get("started_date"), payload.get("finished_date")),
        )


def _between(begin: str | None, end: str | None) -> float | None:
    if not begin or not end:
        return None
    return max(0.0, parse_time(end).timestamp() - parse_time(begin).timestamp())


@reads
def parse_job(payload: Any, url: Callable[[int, int], str]) -> tuple[int, Job] | None:
    """Return a job with its task's id; None when it is not for annotation (ground truth).

    The replicas of a consensus job are jobs like others. ``url`` makes the page for people
    from a task's and a job's id.
    """
    if payload.get("type") in _NOT_ANNOTATION:
        return None
    task_id, job_id = int(payload["task_id"]), int(payload["id"])
    return task_id, Job(
        id=job_id,
        url=url(task_id, job_id),
        start_frame=int(payload["start_frame"]),
        stop_frame=int(payload["stop_frame"]),
        assignee=parse_assignee(payload),
    )


@reads
def parse_assignee(payload: Any) -> str | None:
    """Return the name of the user that a job is assigned to."""
    assignee = payload.get("assignee")
    return assignee.get("username") if isinstance(assignee, Mapping) else None


@reads
def parse_count(payload: Any) -> int:
    """Return how many rows a list has on all of its pages."""
    return int(payload["count"])
