"""The bodies and answers of the API, as pydantic models; OpenAPI is made of them.

Times are RFC 3339 in UTC, durations are in seconds. File names are checked in
:mod:`pool.config.source`, as for callers in Python.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from starlette.responses import Response

from pool import model
from pool.config.arguments import (
    LARGEST,
    LONGEST_LEASE,
    LONGEST_NAME,
    LONGEST_PREWARM,
    LONGEST_STREAM,
    LONGEST_USER,
    LONGEST_WAIT,
    SHORTEST_LEASE,
    SHORTEST_PREWARM,
    check_assignee,
    check_priority,
    check_stream,
    check_task_name,
    check_whole,
)
from pool.config.data_params import DataParams
from pool.errors import InputError, PoolError
from pool.handles import error_of
from pool.model import (
    Assignee,
    Hidden,
    LeaseRecord,
    LeaseState,
    Outcome,
    Placed,
    Priority,
    RequestRecord,
    RequestState,
)
from pool.status import TEMPLATE_EXAMPLE, StreamStatus, TemplateStatus, Time, described

AnyBody = TypeVar("AnyBody", bound=BaseModel)
#: Returns the address of a task's page, by CVAT's id of the task.
TaskUrl = Callable[[int], str]

#: Characters of a template's name.
LONGEST_TEMPLATE: Final = 64
#: Tasks that one prewarm may ask for.
MOST_PREWARMED: Final = 10_000

# --- Bodies ---------------------------------------------------------------------------------------


class BodyInvalid(InputError):
    """The input cannot be used."""

    def __init__(self, findings: ValidationError) -> None:
        self.findings = findings
        super().__init__()


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


def _task_name(name: str) -> str:
    try:
        check_task_name(name)
    except InputError as error:
        raise ValueError(error.detail) from None
    return name


Name = Annotated[
    str,
    Field(min_length=1, max_length=LONGEST_NAME, examples=["morning run"]),
    AfterValidator(_task_name),
]


def _stream_name(name: str) -> str:
    try:
        check_stream(name)
    except InputError as error:
        raise ValueError(error.detail) from None
    return name


StreamName = Annotated[
    str,
    Field(min_length=1, max_length=LONGEST_STREAM, examples=["camera 7"]),
    AfterValidator(_stream_name),
]
Path = Annotated[str, Field(min_length=1)]


def _user(user: object) -> Assignee | None:
    try:
        return check_assignee(user)
    except InputError as error:
        raise ValueError(error.detail) from None


User = Annotated[
    Assignee | None,
    PlainValidator(_user),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": LARGEST},
                {"type": "string", "minLength": 1, "maxLength": LONGEST_USER},
                {"type": "null"},
            ],
            "description": "The user to assign the jobs to, by id or by name",
            "examples": ["ann"],
        }
    ),
]
TemplateName = Annotated[
    str, Field(min_length=1, max_length=LONGEST_TEMPLATE, examples=["street-scenes"])
]


class LeaseBody(_Body):
    """A call for a lease."""

    template: TemplateName
    name: Annotated[
        Name | None,
        Field(description="What it is called in lists; and its task, once that has data"),
    ] = None
    timeout: Annotated[
        float | None,
        Field(ge=0, le=LONGEST_WAIT, description="The longest wait for a task, in seconds"),
    ] = None
    ttl: Annotated[
        float | None,
        Field(
            ge=SHORTEST_LEASE,
            le=LONGEST_LEASE,
            description="Seconds until the lease expires; by default the template's lease_ttl",
        ),
    ] = None


class PrewarmBody(_Body):
    """A call for more warm tasks for a while; a count of 0 ends it."""

    count: Annotated[int, Field(ge=0, le=MOST_PREWARMED, examples=[50])]
    seconds: Annotated[float, Field(ge=SHORTEST_PREWARM, le=LONGEST_PREWARM)] = 900.0


def _with(name: str, kind: str) -> dict[str, Any]:
    """Return the schema of objects that have a member, which is not null."""
    return {"required": [name], "properties": {name: {"type": kind}}}


_FOR_A_TASK: Final[dict[str, Any]] = {
    "anyOf": [_with("template", "string"), _with("lease_id", "string")]
}


class RequestFields(_Body):
    """The fields of a request beside its data."""

    model_config = ConfigDict(json_schema_extra=_FOR_A_TASK)

    template: Annotated[TemplateName | None, Field(description="Optional with lease_id")] = None
    lease_id: Annotated[
        str | None,
        Field(min_length=1, max_length=64, description="Import into the task of this lease"),
    ] = None
    name: Annotated[Name | None, Field(description="The final name of the task")] = None
    assignee: User = None
    stream: Annotated[
        StreamName | None,
        Field(description="Into the task of this stream, after what it has, as one job"),
    ] = None
    priority: Annotated[
        Priority | None,
        Field(description="Which requests go first; by default the template's"),
    ] = None
    params: DataParams | None = None
    job_size: Annotated[
        int | None,
        Field(
            ge=1,
            le=LARGEST,
            description="How many of the files each job has, in the order of the files",
        ),
    ] = None

    @model_validator(mode="after")
    def _for_a_task(self) -> Self:
        if self.template is None and self.lease_id is None:
            raise ValueError("the template is missing")
        if self.stream is not None and self.lease_id is not None:
            raise ValueError("a lease has its task already: give a stream or a lease_id")
        return self

    @property
    def sources(self) -> dict[str, Any]:
        """The sources of the data, unless it is in the form."""
        return {}

    @classmethod
    def from_form(cls, fields: Mapping[str, str]) -> Self:
        """Parse the text fields of a form. Numbers are decimal, ``params`` is JSON.

        :raises InputError: a field is invalid.
        """
        values: dict[str, Any] = dict(fields)
        if "priority" in values:
            values["priority"] = check_priority(values["priority"])
        if "job_size" in values:
            values["job_size"] = check_whole("job_size", _number(values["job_size"]), least=1)
        if "params" in values:
            values["params"] = parse(DataParams, values["params"].encode())
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise BodyInvalid(error) from None


class Cloud(_Body):
    """A cloud storage of CVAT, and keys in it."""

    storage_id: Annotated[int, Field(ge=1, le=LARGEST, examples=[1])]
    keys: Annotated[list[Path], Field(min_length=1, examples=[["cam1/a.jpg"]])]


def _number(text: str) -> int | str:
    """Return the number that a field of a form is, or the field where it is none."""
    decimal = text.isascii() and text.removeprefix("-").isdecimal() and len(text) <= 10
    return int(text) if decimal else text


class RequestBody(RequestFields):
    """A request whose data CVAT fetches: from its share, from the web, or from a cloud storage."""

    model_config = ConfigDict(
        json_schema_extra={
            **_FOR_A_TASK,
            "oneOf": [_with("share", "array"), _with("urls", "array"), _with("cloud", "object")],
        }
    )

    share: Annotated[
        list[Path] | None,
        Field(min_length=1, description="Paths on the server's share", examples=[["cam1/a.jpg"]]),
    ] = None
    urls: Annotated[
        list[Path] | None,
        Field(
            min_length=1,
            description="Fetched by CVAT, never by the pool",
            examples=[["https://example.org/a.jpg"]],
        ),
    ] = None
    cloud: Cloud | None = None

    @model_validator(mode="after")
    def _from_one_source(self) -> Self:
        if sum(source is not None for source in (self.share, self.urls, self.cloud)) != 1:
            raise ValueError("give one of share, urls and cloud")
        return self

    @property
    def sources(self) -> dict[str, Any]:
        cloud = (self.cloud.storage_id, self.cloud.keys) if self.cloud else None
        return {"share": self.share, "urls": self.urls, "cloud": cloud}


def parse(kind: type[AnyBody], content: bytes) -> AnyBody:
    """Parse a body of JSON.

    :raises BodyInvalid: it is not JSON, or not valid.
    """
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise BodyInvalid(error) from None


# --- Answers --------------------------------------------------------------------------------------


Tenant = Annotated[
    str, Field(description="The name of the token that it came with; empty: the operator")
]


class _Answer(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, from_attributes=True, use_attribute_docstrings=True
    )

    @classmethod
    def _from(cls, record: object, **own: object) -> Self:
        """Return an answer with its ``own`` fields; the others are the attributes of a record."""
        same = {name: getattr(record, name) for name in cls.model_fields if name not in own}
        return cls.model_validate({**same, **own})

    def response(self, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
        """Return the HTTP response. Returned as a model, FastAPI would validate it again."""
        return Response(self.model_dump_json(), status, headers, media_type="application/json")


class Job(_Answer):
    """One annotation job. Frames are numbered inside the task; ``stop_frame`` is included."""

    id: Annotated[int, Field(examples=[77])]
    """CVAT's id of the job."""
    url: Annotated[str, Field(examples=["http://localhost:8080/tasks/42/jobs/77"])]
    """Its page, where it is annotated."""
    start_frame: int
    stop_frame: int
    assignee: str | None
    """The name of the user."""


class Error(_Answer):
    """Why something failed, as in the problem document of the error."""

    code: Annotated[str, Field(examples=["import-failed"])]
    title: Annotated[str, Field(examples=["CVAT could not import the data"])]
    detail: str
    status: Annotated[int, Field(examples=[422])]

    @classmethod
    def of(cls, error: PoolError) -> Self:
        return cls(code=error.code, title=error.title, detail=error.detail, status=error.status)


class RequestWarning(_Answer):
    """Something that a request asked for and did not get."""

    code: Annotated[str, Field(examples=["not-assigned"])]
    """One of unknown-assignee, not-named, not-assigned, not-hidden and not-shown."""
    text: str
    """What is missing, and why, in one line."""


class Lease(_Answer):
    """A task that was handed out to one caller."""

    model_config = described(
        id="01kdw8zp6vxb1tqf0v3e8z5n7c",
        template="street-scenes",
        tenant="",
        state="active",
        name="morning run",
        task_id=42,
        task_name="[cvat-pool 3f9a1c2e] street-scenes: empty, waiting for data 01kdw8v5q2m7",
        url="http://localhost:8080/tasks/42",
        outcome="hit",
        owner="host 4711 01kdw8tz",
        created_at="2026-01-01T12:00:00.123Z",
        expires_at="2026-01-01T13:00:00.123Z",
        jobs=None,
        error=None,
    )

    id: str
    template: str
    tenant: Tenant
    state: LeaseState
    name: str | None
    """What its caller calls it."""
    task_id: int | None
    """CVAT's id of the task."""
    task_name: str | None
    """The name that the task had on the server when it was handed out."""
    url: str | None
    """The page of the task."""
    outcome: Outcome | None
    """Found warm (hit), waited for (wait), or created for the caller (cold)."""
    owner: str
    """The process that it was asked of: its host, its number and a random part."""
    created_at: Time
    """When it was asked for."""
    expires_at: Time | None
    """The pool takes the task back then, if it has no data."""
    jobs: list[Job] | None
    """Its jobs, once they exist. Not in a list of leases."""
    error: Error | None
    """Why there will be no jobs."""

    @classmethod
    def of(
        cls,
        record: LeaseRecord,
        task_url: TaskUrl,
        *,
        jobs: Sequence[model.Job] = (),
        error: PoolError | None = None,
    ) -> Self:
        """Return a lease, with what is known of its jobs."""
        return cls._from(
            record,
            task_name=record.task_name or None,
            url=None if record.task_id is None else task_url(record.task_id),
            jobs=jobs or None,
            error=None if error is None else Error.of(error),
        )


class LeasePage(_Answer):
    """Leases that wait for a task or have one, newest first, without their jobs."""

    items: list[Lease]
    next_cursor: str | None
    """The cursor of the next page; null on the last one."""


_REQUEST: Final[Mapping[str, Any]] = {
    "id": "01kdw8zp70b3k9c2n4wq6m8s1d",
    "template": "street-scenes",
    "tenant": "",
    "state": "ready",
    "task_id": 42,
    "task_deleted": False,
    "url": "http://localhost:8080/tasks/42",
    "outcome": "hit",
    "placed": "task",
    "no_slot": None,
    "stream": None,
    "name": "morning run",
    "assignee": None,
    "priority": "normal",
    "files": ["a.jpg", "b.jpg"],
    "frames": [
        {"file": "a.jpg", "name": "a.jpg", "number": 0},
        {"file": "b.jpg", "name": "b.jpg", "number": 1},
    ],
    "size": 204800,
    "lease_id": "01kdw8zp6vxb1tqf0v3e8z5n7c",
    "created_at": "2026-01-01T12:00:00.123Z",
    "handed_out_at": "2026-01-01T12:00:00.123Z",
    "uploaded_at": "2026-01-01T12:00:00.178Z",
    "finished_at": "2026-01-01T12:00:00.331Z",
    "shown_at": None,
    "jobs": [
        {
            "id": 77,
            "url": "http://localhost:8080/tasks/42/jobs/77",
            "start_frame": 0,
            "stop_frame": 1,
            "assignee": None,
        }
    ],
    "hidden": None,
    "error": None,
    "data_away": None,
    "warnings": [],
}


class Frame(_Answer):
    """A file in its task."""

    file: Annotated[str, Field(examples=["cam1/0001.jpg"])]
    """What its caller calls it."""
    name: Annotated[str, Field(examples=["cam1_0001.jpg"])]
    """Its name in CVAT, which exported annotations have."""
    number: Annotated[int | None, Field(examples=[0])]
    """The number of its frame in the task; null where CVAT alone decides on the frames, as of a
    video or an archive."""


class Request(_Answer):
    """Data that was given to the pool, and the jobs that CVAT makes of it."""

    model_config = described(**_REQUEST)

    id: str
    template: str
    tenant: Tenant
    state: RequestState
    task_id: int | None
    """CVAT's id of its task."""
    task_deleted: bool
    """Whether the pool has deleted that task, as one whose import failed, or found it deleted."""
    url: str | None
    """The page of its task, as long as that is not deleted."""
    outcome: Outcome | None
    """How its task was found."""
    placed: Placed | None
    """What its data went into: a job that was there before (slot), a task that requests share
    (group), or a task of its own."""
    no_slot: str | None
    """Why it did not go into a slot, where its template has them."""
    stream: str | None
    """The stream whose task it went into."""
    name: str | None
    """What its caller calls it: the final name of its task, unless that is shared and called after
    the first request in it."""
    assignee: Assignee | None
    """The user to assign the jobs to, by id or by name."""
    priority: Priority
    """Which of the requests that wait go first."""
    files: list[str]
    """The names of the files in the task."""
    frames: list[Frame] | None
    """What became of each file, in the order in which they were sent; final once it is ready. Not
    in a list of requests."""
    size: int
    """Bytes that were sent to the pool."""
    lease_id: str
    created_at: Time
    handed_out_at: Time | None
    uploaded_at: Time | None
    """When CVAT accepted the data."""
    finished_at: Time | None
    shown_at: Time | None
    """When people could open what is in its slot; the job exists before."""
    jobs: list[Job] | None
    """Its jobs, once it is ready."""
    hidden: Hidden | None
    """Whether its frames are hidden in CVAT (done) or will be (pending); null where that
    was not asked for. Their bytes stay in CVAT until its task is deleted; those in a slot are
    gone by then."""
    error: Error | None
    """Why it failed."""
    data_away: str | None
    """Where its data is and since when that was not heard of, while it waits for it; null where it
    does not."""
    warnings: list[RequestWarning]
    """What it asked for and did not get; more may come for a while after it is ready."""

    @classmethod
    def of(
        cls,
        record: RequestRecord,
        task_url: TaskUrl,
        *,
        jobs: Sequence[model.Job] = (),
        listed: bool = False,
    ) -> Self:
        """Return a request, with its jobs where they are known; ``listed`` is one of many."""
        failed = record.state is RequestState.FAILED
        there = record.task_id is not None and not record.task_deleted
        return cls._from(
            record,
            url=task_url(record.task_id or 0) if there else None,
            frames=None if listed else record.frames,
            no_slot=record.no_slot or None,
            data_away=record.data_away or None,
            jobs=jobs or None,
            error=Error.of(error_of(record)) if failed else None,
        )


class RequestPage(_Answer):
    """Requests, newest first, without their frames."""

    model_config = described(items=[{**_REQUEST, "frames": None}], next_cursor="1042")

    items: list[Request]
    next_cursor: str | None
    """The cursor of the next page; null on the last one."""


class Event(_Answer):
    """One change of the state of a request, or of its lease; see `GET /v1/events`."""

    id: Annotated[int, Field(examples=[17])]
    """Grows from each event to the next."""
    kind: Annotated[model.EventKind, Field(examples=["request.ready"])]
    at: Time
    template: str
    tenant: Tenant
    task_id: int | None
    """CVAT's id of the task."""
    lease_id: str | None
    request_id: str | None
    state: str
    """The new state of what the kind names."""
    outcome: Outcome | None
    code: str
    """Why the request failed, or what it has to do without."""
    seconds: float | None
    """What a hand-out took, or a request from its creation to its end."""
    server_seconds: float | None
    """CVAT's part of that."""
    held_seconds: float | None
    """What passed of that while CVAT or the template was held, as in an outage."""

    @classmethod
    def of(cls, event: model.Event) -> Self:
        return cls._from(event)


class EventList(_Answer):
    """The events of a request that are still kept, the oldest first."""

    items: list[Event]


class StreamList(_Answer):
    """The streams that are open."""

    items: list[StreamStatus]


@dataclass(frozen=True, kw_only=True)
class DrainedTemplate(TemplateStatus):
    """A template that was just drained."""

    __pydantic_config__: ClassVar[ConfigDict] = described(
        **{**TEMPLATE_EXAMPLE, "warm": 0, "deleting": 4, "retired": 4}
    )

    retired: int
    """The number of warm tasks taken out of the pool."""


class Token(_Answer):
    """What a token is for."""

    name: Annotated[str, Field(examples=["robot"])]
    """Its name, which is the tenant of what it makes; empty: the operator's, or none is needed."""
    role: model.Role
    """What it may do: only see (read), give data to the pool and see what is its own (submit), or
    everything (operate)."""
    templates: Annotated[list[str], Field(examples=[["street-scenes"]])]
    """The templates that it is bound to; empty: all of them."""


class Finding(_Answer):
    """One mistake in a body."""

    where: Annotated[str, Field(examples=["params.chunk_size"])]
    """The path of the member."""
    what: Annotated[str, Field(examples=["expected a whole number of at least 1"])]


class Problem(_Answer):
    """An error (RFC 9457)."""

    type: Annotated[str, Field(examples=["urn:cvat-task-pool:error:unknown-template"])]
    """The kind of error."""
    title: Annotated[str, Field(examples=["There is no such template in the configuration"])]
    status: Annotated[int, Field(examples=[404])]
    detail: Annotated[str, Field(examples=["'streets'; there is street-scenes"])] = ""
    errors: Annotated[list[Finding], Field(description="All mistakes in the body")] = []
    request: Annotated[Request | None, Field(description="The request that failed")] = None
