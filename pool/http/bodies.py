"""What callers send: the bodies of the API's calls, checked before anything is done.

Names of files are checked where those of callers here are, in :mod:`pool.requests.source`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from pool.config.arguments import (
    LONGEST_LEASE,
    LONGEST_NAME,
    LONGEST_PREWARM,
    LONGEST_WAIT,
    SHORTEST_LEASE,
    SHORTEST_PREWARM,
    check_assignee,
    check_task_name,
)
from pool.config.data_params import DataParams
from pool.config.values import LARGEST
from pool.errors import InputError
from pool.http.problems import BodyInvalid

Body = TypeVar("Body", bound=BaseModel)

#: Characters of a template's name.
LONGEST_TEMPLATE: Final = 64
#: Tasks that one call may have made ahead.
MOST_PREWARMED: Final = 10_000


def _name(name: str) -> str:
    try:
        check_task_name(name)
    except InputError as error:
        raise ValueError(error.detail) from None
    return name


Name = Annotated[
    str,
    Field(min_length=1, max_length=LONGEST_NAME, examples=["morning run"]),
    AfterValidator(_name),
]
Path = Annotated[str, Field(min_length=1)]
TemplateName = Annotated[
    str, Field(min_length=1, max_length=LONGEST_TEMPLATE, examples=["street-scenes"])
]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class Cloud(_Body):
    """A cloud storage that CVAT knows, and keys in it."""

    storage_id: Annotated[int, Field(ge=1, le=LARGEST, examples=[1])]
    keys: Annotated[list[Path], Field(min_length=1, examples=[["cam1/a.jpg"]])]


def _with(name: str, kind: str) -> dict[str, Any]:
    """A schema of objects in which a member is there, and not null."""
    return {"required": [name], "properties": {name: {"type": kind}}}


class RequestFields(_Body):
    """What is told with the data of a request, wherever the data is."""

    model_config = ConfigDict(
        json_schema_extra={"anyOf": [_with("template", "string"), _with("lease_id", "string")]}
    )

    template: Annotated[
        TemplateName | None, Field(description="May be left out where lease_id is given")
    ] = None
    lease_id: Annotated[
        str | None,
        Field(min_length=1, max_length=64, description="The data goes into this lease's task"),
    ] = None
    name: Annotated[Name | None, Field(description="What the task is called in the end")] = None
    assignee: Annotated[
        int | None, Field(ge=1, le=LARGEST, description="The id of the user that gets the jobs")
    ] = None
    params: DataParams | None = None

    @model_validator(mode="after")
    def _for_a_task(self) -> Self:
        if self.template is None and self.lease_id is None:
            raise ValueError("the template is missing")
        return self


class RequestWish(RequestFields):
    """Data that CVAT fetches itself: from its share, from the web, or from a cloud storage."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [_with("template", "string"), _with("lease_id", "string")],
            "oneOf": [_with("share", "array"), _with("urls", "array"), _with("cloud", "object")],
        }
    )

    share: Annotated[
        list[Path] | None,
        Field(min_length=1, description="Names on the server's share", examples=[["cam1/a.jpg"]]),
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


class LeaseWish(_Body):
    """A task is wanted."""

    template: TemplateName
    timeout: Annotated[
        float | None,
        Field(ge=0, le=LONGEST_WAIT, description="Seconds to wait for a task at most"),
    ] = None
    ttl: Annotated[
        float | None,
        Field(
            ge=SHORTEST_LEASE,
            le=LONGEST_LEASE,
            description="Seconds that the lease lasts; by default the template's lease_ttl",
        ),
    ] = None


class Prewarm(_Body):
    """More warm tasks than usual are wanted for a while; 0 ends that."""

    count: Annotated[int, Field(ge=0, le=MOST_PREWARMED, examples=[50])]
    seconds: Annotated[float, Field(ge=SHORTEST_PREWARM, le=LONGEST_PREWARM)] = 900.0


def parse(kind: type[Body], content: bytes) -> Body:
    """A body from JSON.

    :raises BodyInvalid: it is not JSON, or not such a body.
    """
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise BodyInvalid(error) from None


def request_fields(form: Mapping[str, str]) -> RequestFields:
    """What the text fields of a form tell. Numbers are decimal, ``params`` is JSON.

    :raises InputError: a field cannot be read.
    """
    told: dict[str, Any] = dict(form)
    if "assignee" in told:
        told["assignee"] = _assignee(told["assignee"])
    if "params" in told:
        told["params"] = parse(DataParams, told["params"].encode())
    try:
        return RequestFields.model_validate(told)
    except ValidationError as error:
        raise BodyInvalid(error) from None


def _assignee(text: str) -> int | None:
    decimal = text.isascii() and text.removeprefix("-").isdecimal() and len(text) <= 10
    return check_assignee(int(text) if decimal else text)
