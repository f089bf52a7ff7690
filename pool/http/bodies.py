"""What callers send: the bodies of the API's calls, checked before anything is done.

What is checked here besides types is what a caller from elsewhere must not be able to do: name a
path of this machine, have an address called that is none of the web, or set what the pool sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Final, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from pool.errors import InputError
from pool.http.problems import BodyInvalid

Body = TypeVar("Body", bound=BaseModel)

#: The largest whole number that CVAT's database takes.
LARGEST: Final = 2**31 - 1
#: Characters of a template's name, of a share's name or cloud key, of an address.
LONGEST_TEMPLATE: Final = 64
LONGEST_NAME: Final = 1024
LONGEST_ADDRESS: Final = 2048
#: Seconds that one call may wait for a task, that a lease may last, that prewarming may last.
LONGEST_TIMEOUT: Final = 3600.0
LONGEST_LEASE: Final = 30 * 86400.0
LONGEST_PREWARM: Final = 86400.0
#: Tasks that one call may have made ahead.
MOST_PREWARMED: Final = 10_000


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("has characters that cannot be printed")
    return text


def _below_the_share(name: str) -> str:
    path = PurePosixPath(_printable(name).replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError("has to be a name on the share, not absolute and without '..'")
    return name


def _on_the_web(address: str) -> str:
    try:
        parts = urlsplit(_printable(address))
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or any(character.isspace() for character in address):
        raise ValueError("has to be an http or https address")
    return address


Name = Annotated[
    str, Field(min_length=1, max_length=256, examples=["morning run"]), AfterValidator(_printable)
]
ShareName = Annotated[
    str, Field(min_length=1, max_length=LONGEST_NAME), AfterValidator(_below_the_share)
]
Address = Annotated[
    str, Field(min_length=1, max_length=LONGEST_ADDRESS), AfterValidator(_on_the_web)
]
CloudKey = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME), AfterValidator(_printable)]
TemplateName = Annotated[
    str, Field(min_length=1, max_length=LONGEST_TEMPLATE, examples=["street-scenes"])
]
Frame = Annotated[int, Field(ge=0, le=LARGEST)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class DataParams(_Body):
    """Data parameters by CVAT's names, on top of the template's. Null leaves one as it is."""

    image_quality: Annotated[int | None, Field(ge=0, le=100, examples=[70])] = None
    chunk_size: Annotated[int | None, Field(ge=1, le=LARGEST, description="In frames")] = None
    sorting_method: Literal["lexicographical", "natural", "predefined", "random"] | None = None
    use_cache: bool | None = None
    use_zip_chunks: bool | None = None
    copy_data: bool | None = None
    start_frame: Frame | None = None
    stop_frame: Frame | None = None
    frame_filter: Annotated[
        str | None, Field(pattern=r"^step ?= ?[1-9][0-9]{0,8}$", examples=["step=10"])
    ] = None
    storage_method: Literal["cache", "file_system"] | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if None not in (self.start_frame, self.stop_frame) and self.start_frame > self.stop_frame:  # type: ignore[operator]
            raise ValueError("start_frame is after stop_frame")
        return self

    @property
    def given(self) -> dict[str, Any]:
        """What the caller has set."""
        return self.model_dump(exclude_none=True)


class Cloud(_Body):
    """A cloud storage that CVAT knows, and keys in it."""

    storage_id: Annotated[int, Field(ge=1, le=LARGEST, examples=[1])]
    keys: Annotated[list[CloudKey], Field(min_length=1, examples=[["cam1/a.jpg"]])]


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
        list[ShareName] | None,
        Field(min_length=1, description="Names on the server's share", examples=[["cam1/a.jpg"]]),
    ] = None
    urls: Annotated[
        list[Address] | None,
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
        Field(ge=0, le=LONGEST_TIMEOUT, description="Seconds to wait for a task at most"),
    ] = None
    ttl: Annotated[
        float | None,
        Field(
            ge=1,
            le=LONGEST_LEASE,
            description="Seconds that the lease lasts; by default the template's lease_ttl",
        ),
    ] = None


class Prewarm(_Body):
    """More warm tasks than usual are wanted for a while; 0 ends that."""

    count: Annotated[int, Field(ge=0, le=MOST_PREWARMED, examples=[50])]
    seconds: Annotated[float, Field(gt=0, le=LONGEST_PREWARM)] = 900.0


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
        told["assignee"] = _decimal("assignee", told["assignee"])
    if "params" in told:
        told["params"] = parse(DataParams, told["params"].encode())
    try:
        return RequestFields.model_validate(told)
    except ValidationError as error:
        raise BodyInvalid(error) from None


def _decimal(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 10):
        raise InputError(f"{name}: a whole number was expected")
    return int(text)
