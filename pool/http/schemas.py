"""What the API answers: the documents, and how they are made of the store's records.

Times are RFC 3339 in UTC, durations are seconds. The documents are typed dictionaries: checked
when the code is, the source of the OpenAPI document, and as quick as plain dictionaries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from pool.errors import PoolError
from pool.handles import error_of
from pool.http.problems import title_of
from pool.model import Job as JobRecord
from pool.model import LeaseRecord, LeaseState, Outcome, RequestRecord, RequestState, WebhookState
from pool.model import Status as PoolStatus
from pool.model import TemplateStatus as PoolTemplateStatus

#: Where the page of a task is, by CVAT's id of it.
TaskUrl = Callable[[int], str]

Time = Annotated[
    str, Field(json_schema_extra={"format": "date-time"}, examples=["2026-01-01T12:00:00.123Z"])
]
Url = Annotated[str, Field(examples=["http://localhost:8080/tasks/42"])]
_closed = with_config(ConfigDict(extra="forbid"))


@_closed
class Job(TypedDict):
    """One annotation job. Frames are numbered inside the task; ``stop_frame`` is included."""

    id: Annotated[int, Field(description="CVAT's id of the job", examples=[77])]
    url: Annotated[
        str,
        Field(
            description="Its page, where it is annotated",
            examples=["http://localhost:8080/tasks/42/jobs/77"],
        ),
    ]
    start_frame: int
    stop_frame: int
    assignee: Annotated[str | None, Field(description="The user's name")]


@_closed
class Error(TypedDict):
    """Why something failed: what the problem document of the same error says."""

    code: Annotated[str, Field(examples=["import-failed"])]
    title: Annotated[str, Field(examples=["CVAT could not import the data"])]
    detail: str
    status: Annotated[int, Field(examples=[422])]


@_closed
class RequestWarning(TypedDict):
    """What a request has to do without."""

    code: Annotated[
        str,
        Field(description="unknown-assignee, not-named or not-assigned", examples=["not-assigned"]),
    ]
    text: Annotated[str, Field(description="What is missing, and why, on one line")]


@_closed
class Lease(TypedDict):
    """One task, handed out to one caller."""

    id: Annotated[str, Field(examples=["01kdw8zp6vxb1tqf0v3e8z5n7c"])]
    template: Annotated[str, Field(examples=["street-scenes"])]
    state: LeaseState
    task_id: Annotated[int | None, Field(description="CVAT's id of the task", examples=[42])]
    name: Annotated[str | None, Field(description="The name of the task on the server")]
    url: Annotated[str | None, Field(description="The page of the task")]
    outcome: Annotated[
        Outcome | None,
        Field(description="From the pool (hit), after waiting (wait), or made for you (cold)"),
    ]
    expires_at: Annotated[
        Time | None, Field(description="Until then the untouched task is yours alone")
    ]
    jobs: Annotated[list[Job] | None, Field(description="Its jobs, once they exist")]
    error: Annotated[Error | None, Field(description="Why there will be no jobs")]


@_closed
class Request(TypedDict):
    """Data on its way to job ids."""

    id: Annotated[str, Field(examples=["01kdw8zp70b3k9c2n4wq6m8s1d"])]
    template: Annotated[str, Field(examples=["street-scenes"])]
    state: RequestState
    task_id: Annotated[int | None, Field(description="CVAT's id of its task", examples=[42])]
    url: Annotated[str | None, Field(description="The page of its task")]
    outcome: Annotated[Outcome | None, Field(description="How its task was found")]
    name: Annotated[str | None, Field(description="What the task is called in the end")]
    assignee: Annotated[int | None, Field(description="The id of the user that gets the jobs")]
    files: Annotated[
        list[str], Field(description="The names inside the task", examples=[["a.jpg", "b.jpg"]])
    ]
    size: Annotated[int, Field(description="Bytes that were sent to the pool")]
    lease_id: str
    created_at: Time
    handed_out_at: Time | None
    uploaded_at: Annotated[Time | None, Field(description="When CVAT had accepted the data")]
    finished_at: Time | None
    jobs: Annotated[list[Job] | None, Field(description="Its jobs, once it is ready")]
    error: Annotated[Error | None, Field(description="Why it failed")]
    warnings: Annotated[
        list[RequestWarning],
        Field(description="What it has to do without; may grow for a while after it is ready"),
    ]


@_closed
class RequestPage(TypedDict):
    """Requests, the newest first, without their jobs."""

    items: list[Request]
    next_cursor: Annotated[str | None, Field(description="Gives the next page; null on the last")]


@_closed
class TemplateStatus(TypedDict):
    """Levels, demand and troubles of one template."""

    name: Annotated[str, Field(examples=["street-scenes"])]
    target: Annotated[int, Field(description="How many tasks are to be warm")]
    warm: int
    creating: int
    leased: int
    importing: int
    deleting: int
    waiting: Annotated[
        int, Field(description="Callers that wait for a task, and have no request queued")
    ]
    queued: Annotated[int, Field(description="Requests that wait for a task, or for CVAT")]
    rate: Annotated[float, Field(description="Hand-outs a second in the last minute")]
    peak_rate: Annotated[
        float,
        Field(
            description="Hand-outs a second in the busiest of the last 1, 5 and 15 minutes, "
            "from which the target is taken"
        ),
    ]
    lead_time: Annotated[
        float, Field(description="Seconds that a create takes, by which the target is taken")
    ]
    hits: int
    waits: int
    colds: int
    paused_since: Time | None
    held_since: Time | None
    held_until: Time | None
    hold_reason: Annotated[
        str, Field(description="Why nothing is created or sent, for it or for all; empty: not held")
    ]
    hold_code: Annotated[str, Field(description="The code of the error that it is held for")]
    hooks: Annotated[WebhookState, Field(description="What its webhook is worth")]
    hooks_silent_since: Time | None
    prewarm_size: Annotated[int, Field(description="The size that prewarming asks for; 0: none")]
    prewarm_until: Time | None


@_closed
class DrainedTemplate(TemplateStatus):
    """A template that was just drained."""

    retired: Annotated[int, Field(description="Warm tasks that were taken out of the pool")]


@_closed
class Status(TypedDict):
    """What the pool looks like now."""

    server: Annotated[str, Field(examples=["http://localhost:8080"])]
    store: Annotated[str, Field(examples=["sqlite:////var/lib/cvat-pool/pool.db"])]
    maintainer: Annotated[str | None, Field(description="The process that refills")]
    in_flight: Annotated[int, Field(description="Requests that are uploading or importing")]
    held_since: Time | None
    held_until: Time | None
    hold_reason: Annotated[str, Field(description="What is wrong with the server as a whole")]
    templates: list[TemplateStatus]
    config_loaded_at: Time | None
    config_rejected_at: Annotated[
        Time | None, Field(description="Since when the configuration file is wrong")
    ]
    config_problems: Annotated[list[str], Field(description="What is wrong with the file")]
    config_restart: Annotated[list[str], Field(description="Keys that only a restart follows")]


@_closed
class Problem(TypedDict, total=False):
    """An error (RFC 9457)."""

    type: Annotated[
        str,
        Field(
            description="Names the kind of error",
            examples=["urn:cvat-task-pool:error:unknown-template"],
        ),
    ]
    title: Annotated[str, Field(examples=["There is no such template in the configuration"])]
    status: Annotated[int, Field(examples=[404])]
    detail: Annotated[str, Field(examples=["'streets'; there is street-scenes"])]
    errors: Annotated[list[dict[str, str]], Field(description="What is wrong, and where")]
    request: Annotated[Request, Field(description="The request that failed")]


# --- Made of records ------------------------------------------------------------------------------


def time_of(seconds: float | None) -> Time | None:
    """A stored time; None stays None."""
    return None if seconds is None else _written(datetime.fromtimestamp(seconds, UTC))


def _written(time: datetime) -> Time:
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def lease_document(
    record: LeaseRecord,
    task_url: TaskUrl,
    *,
    jobs: Sequence[JobRecord] = (),
    error: Error | None = None,
) -> Lease:
    """A lease, with what is known of its jobs."""
    return {
        "id": record.id,
        "template": record.template,
        "state": record.state,
        "task_id": record.task_id,
        "name": record.task_name or None,
        "url": None if record.task_id is None else task_url(record.task_id),
        "outcome": record.outcome,
        "expires_at": time_of(record.expires_at),
        "jobs": _jobs(jobs),
        "error": error,
    }


def request_document(
    record: RequestRecord, task_url: TaskUrl, *, jobs: Sequence[JobRecord] = ()
) -> Request:
    """A request, with its jobs where they are known."""
    return {
        "id": record.id,
        "template": record.template,
        "state": record.state,
        "task_id": record.task_id,
        "url": None if record.task_id is None else task_url(record.task_id),
        "outcome": record.outcome,
        "name": record.name,
        "assignee": record.assignee,
        "files": list(record.files),
        "size": record.size,
        "lease_id": record.lease_id,
        "created_at": time_of(record.created_at) or "",
        "handed_out_at": time_of(record.handed_out_at),
        "uploaded_at": time_of(record.uploaded_at),
        "finished_at": time_of(record.finished_at),
        "jobs": _jobs(jobs),
        "error": _error_of(record),
        "warnings": [{"code": each.code, "text": each.text} for each in record.warnings],
    }


def error_document(error: PoolError) -> Error:
    """An error as it is told of inside another document."""
    return {
        "code": error.code,
        "title": title_of(error),
        "detail": error.detail,
        "status": error.status,
    }


def status_document(status: PoolStatus) -> dict[str, Any]:
    """The status as the Python API tells it: a :class:`Status`."""
    document = _plain(status)
    document["templates"] = [_plain(each) for each in status.templates]
    return document


def template_document(status: PoolTemplateStatus) -> dict[str, Any]:
    """The status of one template: a :class:`TemplateStatus`."""
    return _plain(status)


def _plain(status: PoolStatus | PoolTemplateStatus) -> dict[str, Any]:
    values = {each.name: getattr(status, each.name) for each in fields(status)}
    return {
        name: _written(value) if isinstance(value, datetime) else value
        for name, value in values.items()
    }


def _jobs(jobs: Sequence[JobRecord]) -> list[Job] | None:
    if not jobs:
        return None
    return [
        {
            "id": job.id,
            "url": job.url,
            "start_frame": job.start_frame,
            "stop_frame": job.stop_frame,
            "assignee": job.assignee,
        }
        for job in jobs
    ]


def _error_of(record: RequestRecord) -> Error | None:
    return error_document(error_of(record)) if record.state is RequestState.FAILED else None
