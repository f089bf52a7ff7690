"""From CVAT's JSON to the pool's records; fields that are not needed may be missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

from pool.config.urls import without_secrets
from pool.cvat.records import (
    AccessToken,
    ImportState,
    ImportStatus,
    ServerInfo,
    TaskInfo,
    User,
)
from pool.errors import CvatError
from pool.model import Job

Record = TypeVar("Record")

_TRACEBACK = "Traceback (most recent call last)"
#: Jobs that hold no annotation work of the task's own frames.
_NOT_ANNOTATION = frozenset({"ground_truth"})


def server_info(said: Any) -> ServerInfo:
    return _read(lambda: ServerInfo(name=str(said["name"]), version=str(said["version"])))


def user(said: Any) -> User:
    return _read(lambda: User(id=int(said["id"]), username=str(said["username"])))


def access_token(said: Any) -> AccessToken:
    return _read(
        lambda: AccessToken(
            name=str(said.get("name", "")),
            read_only=bool(said["read_only"]),
            expiry_date=said.get("expiry_date"),
        )
    )


def task_info(said: Any, answered: float | None = None) -> TaskInfo:
    """One task; ``size`` is left out of CVAT's answer while a task has no data row.

    ``answered`` is when the answer was made, by the server's clock.
    """
    return _read(
        lambda: TaskInfo(
            id=int(said["id"]),
            name=str(said["name"]),
            size=int(said.get("size") or 0),
            has_data=said.get("data") is not None,
            jobs=int((said.get("jobs") or {}).get("count") or 0),
            project_id=said.get("project_id"),
            organization_id=said.get("organization_id", said.get("organization")),
            age=_age(said.get("created_date"), answered),
        )
    )


def _age(created: object, answered: float | None) -> float | None:
    if not isinstance(created, str) or answered is None:
        return None
    moment = datetime.fromisoformat(created)
    return answered - (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def job(said: Any, url: Callable[[int, int], str]) -> tuple[int, Job] | None:
    """A job with its task's id; None when it is not for annotation (ground truth).

    The replicas of a consensus job are jobs like others. ``url`` makes the page for people
    from a task's and a job's id.
    """

    def read() -> tuple[int, Job]:
        task_id, job_id = int(said["task_id"]), int(said["id"])
        assignee = said.get("assignee")
        return task_id, Job(
            id=job_id,
            url=url(task_id, job_id),
            start_frame=int(said["start_frame"]),
            stop_frame=int(said["stop_frame"]),
            assignee=assignee.get("username") if isinstance(assignee, Mapping) else None,
        )

    return None if _read(lambda: said.get("type")) in _NOT_ANNOTATION else _read(read)


def import_state(said: Any) -> ImportState:
    """The state of an import; of a traceback, the last line is its message, without
    secrets of URLs.

    Before 2.70, CVAT gives the whole traceback in the first moments after a failure.
    """
    return _read(
        lambda: ImportState(
            status=ImportStatus(said["status"]),
            message=without_secrets(_message(str(said.get("message") or ""))),
        )
    )


def _message(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if _TRACEBACK in text else text.strip()


def thing_id(said: Any) -> int:
    return _read(lambda: int(said["id"]))


def _read(read: Callable[[], Record]) -> Record:
    try:
        return read()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise CvatError(f"the answer is not what CVAT is known to send ({what})") from None
