"""Types of the settings' fields: what each of them takes, and what is expected in its place.

In ``config.toml`` a duration has a unit and paths start from the folder of the file; in Python
durations are seconds and paths are taken as they are. The validation context tells the two apart:
it is the :class:`Surroundings` of the file that is read, or None.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import (
    AfterValidator,
    Field,
    GetCoreSchemaHandler,
    PlainSerializer,
    PlainValidator,
    Strict,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError, core_schema

from pool.config.arguments import LARGEST, check_assignee
from pool.config.problems import nearest
from pool.config.units import LONGEST, format_duration, format_size, parse_duration, parse_size
from pool.config.urls import split_store_url, split_url
from pool.errors import InputError
from pool.model import Assignee

#: What tells one state of a file from another, written anew or in place; None where there is none.
Stamp = tuple[int, int, int] | None


def stamp(path: Path) -> Stamp:
    """Return what tells the file as it is now from an earlier or a later state."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


@dataclass(frozen=True)
class Surroundings:
    """What a configuration is read in: its folder (None for a text without a file), the variables
    for ``${NAME}``, and the files whose content matters, as they were before they were read."""

    folder: Path | None
    environ: Mapping[str, str]
    files: dict[Path, Stamp] = field(default_factory=dict)

    def path(self, text: str) -> Path:
        """Return a path from the file, with ``${NAME}`` and ``~`` filled in."""
        for name in re.findall(r"\$\{(\w+)\}", text):
            if name not in self.environ:
                raise refused(f"the environment has no {name}")
        filled = re.sub(r"\$\{(\w+)\}", lambda match: self.environ[match[1]], text)
        try:
            return (self.folder or Path()) / Path(filled).expanduser()
        except RuntimeError:
            raise expected("a path from a home folder that exists") from None


def expected(what: str, hint: str = "") -> PydanticCustomError:
    """Return the error of a value in whose place ``what`` is expected. In a file the message says
    what was found as well (:func:`pool.config.problems.explain`)."""
    return PydanticCustomError("expected", "expected {what}{hint}", {"what": what, "hint": hint})


def refused(words: str) -> PydanticCustomError:
    """Return an error whose message does not show what was found."""
    return PydanticCustomError("refused", "{words}", {"words": words})


def described(what: str) -> WrapValidator:
    """Word every error of a type as "expected ``what``", but for those that say more."""

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError as error:
            for each in error.errors(include_url=False):
                if each["type"] == "refused":
                    raise refused(each["msg"]) from None
            raise expected(what) from None

    return WrapValidator(check)


class Whole:
    """Whole numbers from ``least`` to ``most``, both included."""

    def __init__(self, least: int, most: int = LARGEST) -> None:
        self._least, self._most = least, most

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        what = f"a whole number from {self._least} to {self._most}"
        if self._most == LARGEST:
            what = f"a whole number of at least {self._least}"
        return core_schema.custom_error_schema(
            core_schema.int_schema(ge=self._least, le=self._most, strict=True),
            custom_error_type="expected",
            custom_error_message="expected {what}",
            custom_error_context={"what": what, "hint": ""},
        )


def _one_of(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    try:
        return handler(value)
    except ValidationError as error:
        context = error.errors(include_url=False)[0].get("ctx", {})
        options = re.findall("'([^']*)'", str(context.get("expected")))
        what = " or ".join(f'"{option}"' for option in options)
        if len(options) > 2:
            what = "one of " + ", ".join(f'"{option}"' for option in options)
        near = nearest(value, options) if isinstance(value, str) and len(options) > 1 else None
        hint = f'; did you mean "{near}"?' if near else ""
        raise expected(what, hint) from None


#: Words the error of a ``Literal``; the message names the nearest option.
ONE_OF: Final = WrapValidator(_one_of)


def _one_line(value: str) -> str:
    if not value.isprintable():
        raise expected("text on one line, of characters that can be printed")
    return value


def _not_blank(value: str) -> str:
    if not value.strip():
        raise expected("text that is not blank")
    return value


ONE_LINE: Final = AfterValidator(_one_line)
NOT_BLANK: Final = AfterValidator(_not_blank)

Flag = Annotated[bool, Strict(), described("true or false")]
Id = Annotated[int, Whole(1)]
Line = Annotated[str, Field(max_length=255), ONE_LINE]


def _user(value: object) -> Assignee:
    try:
        user = check_assignee(value)
    except InputError:
        user = None
    if user is None:
        raise expected("a user's name, or id")
    return user


User = Annotated[Assignee, PlainValidator(_user)]


# --- Durations and sizes --------------------------------------------------------------------------


def _duration(value: object, info: ValidationInfo) -> float:
    """Seconds; a number without a unit will do in Python only."""
    in_python = info.context is None and not isinstance(value, bool)
    if in_python and isinstance(value, int | float) and 0 <= value <= LONGEST:
        return float(value)
    try:
        return parse_duration(value)
    except ValueError as error:
        raise expected(str(error).removeprefix("expected ")) from None


def _some_time(seconds: float) -> float:
    if not seconds:
        raise expected(f"a duration longer than {format_duration(0)}")
    return seconds


def _size(value: object) -> int:
    try:
        size = parse_size(value)
    except ValueError as error:
        raise expected(str(error).removeprefix("expected ")) from None
    if not size:
        raise expected(f"a size of more than {format_size(0)}")
    return size


#: In the JSON of a table durations are as the file has them.
#: Seconds, none included; seconds, at least some; bytes, at least one.
DurationOrZero = Annotated[
    float, PlainValidator(_duration), PlainSerializer(format_duration, when_used="json")
]
Duration = Annotated[DurationOrZero, AfterValidator(_some_time)]
Size = Annotated[int, PlainValidator(_size)]


# --- Paths ----------------------------------------------------------------------------------------


def _path(value: object, info: ValidationInfo) -> Path:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str):
        raise expected("text in quotes")
    text = _one_line(_not_blank(value))
    if len(text) > 4096:
        raise expected("one line of at most 4096 characters")
    return info.context.path(text) if info.context else Path(text)


def _noted(path: Path, info: ValidationInfo) -> Path:
    if info.context:
        info.context.files[path] = stamp(path)
    return path


def _resolved(path: Path, info: ValidationInfo) -> Path:
    return path.resolve() if info.context and info.context.folder is not None else path


#: A file whose content matters: a change of it is a change of the configuration.
WatchedFile = Annotated[Path, PlainValidator(_path), AfterValidator(_noted)]
#: A folder that is the same from wherever a process is started.
Folder = Annotated[Path, PlainValidator(_path), AfterValidator(_resolved)]

#: The schemes of buckets, as obstore knows them.
BUCKETS: Final = ("s3", "gs", "az")


def is_place(place: str) -> bool:
    """Whether it is the path of an address that holds no credentials and leads nowhere else."""
    return re.fullmatch(r"[^\s@?#%\\]+", place) is not None and ".." not in place.split("/")


def _spool(value: object, info: ValidationInfo) -> Path | str:
    """A folder, or a place in a bucket as ``s3://bucket/prefix``."""
    scheme, separator, place = value.partition("://") if isinstance(value, str) else ("", "", "")
    if not separator:
        return _resolved(_path(value, info), info)
    if scheme not in BUCKETS or not is_place(place) or not place.strip("/"):
        # It may hold a key, so that what was found is not shown.
        raise refused(
            'expected a folder, or a bucket and a place in it, such as "s3://bucket/spool" '
            '("gs://", "az://"); credentials never stand here'
        )
    return f"{scheme}://{place.strip('/')}"


#: Where data waits: a folder, or the address of a bucket.
SpoolPlace = Annotated[Path | str, PlainValidator(_spool)]


# --- Addresses and secrets ------------------------------------------------------------------------


def _server_url(value: object) -> str:
    """The address of a CVAT server, without a slash at its end."""
    what = 'an address such as "http://localhost:8080" or "https://app.cvat.ai"'
    if not isinstance(value, str):
        raise refused(f"expected {what}")
    if "@" in value:
        raise refused(
            "credentials do not belong in the address: take out what stands before the @, and "
            "set CVAT_ACCESS_TOKEN, or CVAT_USERNAME and CVAT_PASSWORD, in the environment"
        )
    parts = split_url(value)
    if parts is None:
        # It may hold a password, so what was found is not shown.
        raise refused(f"expected {what}")
    if parts.query or parts.fragment:
        raise expected("an address without ? and #")
    if parts.path.rstrip("/").endswith("/api"):
        raise expected("the address without /api")
    # Scheme and host mean the same in any case, but are compared, and cvat-sdk wants lower case.
    return parts._replace(netloc=parts.netloc.lower()).geturl().rstrip("/")


def _sink_url(value: object) -> str:
    """An address that takes a POST, kept as it is."""
    parts = split_url(value) if isinstance(value, str) else None
    if parts is None or "@" in parts.netloc or parts.fragment:
        # Such addresses often hold a secret, so what was found is not shown.
        raise refused(
            'expected an address such as "https://example.org/hook", without a user name, a '
            "password, # and spaces"
        )
    return str(value)


def _store_url(value: object, info: ValidationInfo) -> str:
    """``sqlite:///`` and the path of a file, absolute where the configuration is a file; or the
    address of a PostgreSQL database."""
    what = (
        '"sqlite:///" and the path of a file, such as "sqlite:///pool.db", or '
        '"postgresql://HOST/DATABASE"'
    )
    if not isinstance(value, str):
        raise expected(what)
    if split_store_url(value) is not None:
        return value
    scheme, _, path = value.partition(":///")
    if scheme != "sqlite" or not path:
        # The address of a database server may hold a password, so it is not shown.
        raise refused(f"expected {what}")
    if path == ":memory:":
        raise refused(f"expected {what}; hand-outs must outlive the process, so memory will not do")
    if info.context and info.context.folder is not None:
        return f"{scheme}:///{info.context.folder.resolve() / path}"
    return value


def _variable(value: object, info: ValidationInfo) -> str:
    """``${NAME}`` in the file, NAME in Python: the environment variable that holds a secret."""
    form = r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}" if info.context else "([A-Za-z_][A-Za-z0-9_]*)"
    match = re.fullmatch(form, value) if isinstance(value, str) else None
    if match is None:
        raise refused(
            "a secret never stands here: put it into an environment variable and name that, "
            'secret = "${POOL_SINK_SECRET}", or into a file and use secret_file'
        )
    return match[1]


ServerUrl = Annotated[str, PlainValidator(_server_url)]
SinkUrl = Annotated[str, PlainValidator(_sink_url)]
StoreUrl = Annotated[str, PlainValidator(_store_url), Field(validate_default=True)]
Variable = Annotated[str, PlainValidator(_variable)]
