"""CVAT's data parameters, of a template, of a request and over HTTP: the one definition.

Names, bounds and refusals are those of CVAT 2.73: ``DataSerializer`` and
``ValidationParamsSerializer`` (cvat/apps/engine/serializers.py), ``_validate_job_file_mapping`` and
``_validate_validation_params`` (task.py), recordings data_params and share_paths. What CVAT would
find out during the import only is refused here as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain
from typing import Annotated, Any, Final, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from pool.config.names import LONGEST_PATH, check_server_path, check_text
from pool.config.values import LARGEST, Reader, Unfit, nearest, shown, unknown_key
from pool.errors import InputError

#: What is sent where neither a template nor a caller says otherwise. ``chunk_size`` "auto" bounds
#: what the server encodes before the jobs exist (:mod:`pool.cvat.chunking`).
DEFAULTS: Final[Mapping[str, Any]] = {"image_quality": 70, "chunk_size": "auto"}
#: Where the data is, by CVAT's names, and how it is said here.
SOURCES: Final = {
    "client_files": "files",
    "server_files": "share or cloud",
    "remote_files": "urls",
    "cloud_storage_id": "cloud",
}


def _wrong(words: str) -> PydanticCustomError:
    return PydanticCustomError("data_params", "{words}", {"words": words})


def _is(what: str) -> WrapValidator:
    """Have a value that does not fit be answered with what was expected."""

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError as error:
            for each in error.errors(include_url=False):
                if each["type"] == "data_params":
                    raise _wrong(each["msg"]) from None
            raise PydanticCustomError("expected", "expected {what}", {"what": what}) from None

    return WrapValidator(check)


def _checked(check: Callable[[str], str]) -> AfterValidator:
    def take(value: str) -> str:
        try:
            return check(value)
        except InputError as error:
            raise _wrong(error.detail) from None

    return AfterValidator(take)


def _frame_name(name: str) -> str:
    check_text(name, "the name of a frame")
    if name != name.strip():
        raise InputError(f"{name!r}: CVAT cuts the spaces off, and then finds no such file")
    return name


def _choice(*options: str) -> WrapValidator:
    what = " or ".join(f'"{option}"' for option in options)
    if len(options) > 2:
        what = "one of " + ", ".join(f'"{option}"' for option in options)

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            near = nearest(value, options) if isinstance(value, str) else None
            hint = f'; did you mean "{near}"?' if near else ""
            context = {"what": what, "hint": hint}
            raise PydanticCustomError("expected", "expected {what}{hint}", context) from None

    return WrapValidator(check)


SortingMethod = Literal["lexicographical", "natural", "predefined", "random"]
StorageMethod = Literal["cache", "file_system"]
Mode = Literal["gt", "gt_pool"]
Selection = Literal["random_uniform", "random_per_job", "manual"]

_Flag = Annotated[bool | None, _is("true or false")]
_Frame = Annotated[int | None, Field(ge=0, le=LARGEST), _is("a whole number of at least 0")]
_Count = Annotated[int | None, Field(ge=1, le=LARGEST), _is("a whole number of at least 1")]
_Share = Annotated[float | None, Field(ge=0, le=1), _is("a number from 0 to 1")]
_FrameName = Annotated[str, Field(min_length=1, max_length=LONGEST_PATH), _checked(_frame_name)]
_ServerPath = Annotated[str, _checked(lambda path: check_server_path(path, what="a path"))]
# Lists and tuples alike; what is in them is as strict as everything else.
_Names = Annotated[
    tuple[_FrameName, ...], Field(strict=False, min_length=1), _is("a list of file names")
]


class _Params(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, given: Any) -> Any:
        if isinstance(given, Mapping):
            for key in given:
                if key not in cls.model_fields:
                    raise _wrong(explain_unknown(str(key), cls))
        return given

    @property
    def given(self) -> dict[str, Any]:
        """What is set, by CVAT's names."""
        return self.model_dump(exclude_none=True)


class ValidationParams(_Params):
    """Frames to check annotators by: a ground truth job, or honeypots in all jobs."""

    mode: Annotated[Mode, _choice(*get_args(Mode))]
    frame_selection_method: Annotated[Selection | None, _choice(*get_args(Selection))] = None
    random_seed: _Frame = None
    frames: _Names | None = None
    frame_count: _Count = None
    frame_share: _Share = None
    frames_per_job_count: _Count = None
    frames_per_job_share: _Share = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        method = self.frame_selection_method
        if method is None:
            raise _wrong(f"frame_selection_method is missing: {' or '.join(get_args(Selection))}")
        if self.mode == "gt_pool" and method not in ("manual", "random_uniform"):
            raise _wrong('frame_selection_method is "manual" or "random_uniform" with "gt_pool"')
        if self.mode == "gt_pool" or method == "random_per_job":
            self._one_of("frames_per_job_count", "frames_per_job_share")
        if method == "random_uniform":
            self._one_of("frame_count", "frame_share")
        if (method == "manual") != (self.frames is not None):
            raise _wrong('frames go with frame_selection_method "manual", and it with them')
        if self.frames is not None and len(set(self.frames)) < len(self.frames):
            raise _wrong("frames: a frame is named twice")
        return self

    def _one_of(self, *names: str) -> None:
        if sum(getattr(self, name) is not None for name in names) != 1:
            raise _wrong(f"give one of {' and '.join(names)}")


class DataParams(_Params):
    """Data parameters by CVAT's names, on top of the template's. Null leaves one as it is."""

    image_quality: Annotated[
        int | None, Field(ge=1, le=100, examples=[70]), _is("a whole number from 1 to 100")
    ] = None
    chunk_size: Annotated[
        Annotated[int, Field(ge=1, le=LARGEST)] | Literal["auto", "server"] | None,
        Field(description="In frames"),
        _is(f'"auto", "server" or a whole number from 1 to {LARGEST}'),
    ] = None
    sorting_method: Annotated[SortingMethod | None, _choice(*get_args(SortingMethod))] = None
    use_cache: _Flag = None
    use_zip_chunks: _Flag = None
    copy_data: _Flag = None
    start_frame: _Frame = None
    stop_frame: _Frame = None
    frame_filter: Annotated[
        str | None,
        Field(pattern=r"^step ?= ?[1-9][0-9]{0,8}$", examples=["step=10"]),
        _is('"step=N", such as "step=10"'),
    ] = None
    frame_step: Annotated[
        int | None,
        Field(ge=1, le=999_999_999, description="What cvat-sdk calls frame_filter: a number"),
        _is("a whole number from 1 to 999999999"),
    ] = None
    storage_method: Annotated[StorageMethod | None, _choice(*get_args(StorageMethod))] = None
    job_file_mapping: Annotated[
        tuple[_Names, ...] | None,
        Field(
            strict=False,
            min_length=1,
            description="One job for each list of names",
            examples=[[["a.jpg", "b.jpg"], ["c.jpg"]]],
        ),
        _is('a list of jobs, each a list of file names, such as [["a.jpg", "b.jpg"], ["c.jpg"]]'),
    ] = None
    upload_file_order: Annotated[
        _Names | None, Field(description='All files in order, for "predefined"')
    ] = None
    server_files_exclude: Annotated[
        tuple[_ServerPath, ...] | None,
        Field(strict=False, description="What to leave out of folders; theirs end with a slash"),
        _is("a list of paths"),
    ] = None
    filename_pattern: Annotated[
        str | None,
        Field(min_length=1, max_length=LONGEST_PATH, description="Of names in a manifest"),
        _is('a pattern of file names, such as "cam1/*.jpg"'),
    ] = None
    validation_params: ValidationParams | None = None

    @property
    def given(self) -> dict[str, Any]:
        """What is set, by CVAT's names."""
        given = super().given
        if "frame_step" in given:
            given["frame_filter"] = f"step={given.pop('frame_step')}"
        return given

    @model_validator(mode="after")
    def _together(self) -> Self:
        first, last = self.start_frame, self.stop_frame
        if first is not None and last is not None and first > last:
            raise _wrong(f"start_frame, {first}, is after stop_frame, {last}")
        if self.frame_step is not None and self.frame_filter is not None:
            raise _wrong("give one of frame_step and frame_filter")
        if self.filename_pattern is not None and self.server_files_exclude:
            raise _wrong("give one of filename_pattern and server_files_exclude")
        if self.job_file_mapping is not None:
            self._check_mapping(self.job_file_mapping)
        return self

    def _check_mapping(self, mapping: tuple[tuple[str, ...], ...]) -> None:
        seen: set[str] = set()
        for name in chain.from_iterable(mapping):
            if name in seen:
                raise _wrong(f"job_file_mapping: {name!r} is named twice")
            seen.add(name)
        others = {
            "start_frame": self.start_frame,
            "stop_frame": self.stop_frame,
            "frame_filter": self.frame_filter or self.frame_step,
            "filename_pattern": self.filename_pattern,
            "server_files_exclude": self.server_files_exclude,
            "sorting_method": self.sorting_method not in (None, "lexicographical"),
        }
        for name, value in others.items():
            if value:
                raise _wrong(f"job_file_mapping and {name} exclude each other in CVAT")


def explain_unknown(key: str, kind: type[_Params] = DataParams) -> str:
    """What is said about a key that is no parameter."""
    if key in SOURCES and kind is DataParams:
        return f"{key} is no data parameter here: where the data is, is given by {SOURCES[key]}"
    return f"{key}: {unknown_key(key, kind.model_fields)}"


def read_params(given: Mapping[str, Any] | DataParams | None) -> DataParams:
    """The parameters of a request.

    :raises InputError: CVAT has no such parameter, or would refuse its value.
    """
    if isinstance(given, DataParams):
        return given
    if given is not None and not isinstance(given, Mapping):
        raise InputError("params takes a mapping of CVAT's data parameters")
    try:
        return DataParams.model_validate(dict(given or {}))
    except ValidationError as error:
        raise InputError("params: " + "; ".join(problems_in(error))) from None


def merged(
    template: DataParams, own: Mapping[str, Any], *, segment_size: int | None = None
) -> DataParams:
    """A request's parameters over those of its template, and the defaults for the rest.

    ``segment_size`` is that of the template's tasks; None leaves it out of account.

    :raises InputError: they do not go together.
    """
    params = read_params({**DEFAULTS, **template.given, **own})
    sorting, validation = params.sorting_method, params.validation_params
    if params.upload_file_order is not None and sorting != "predefined":
        raise InputError('params: upload_file_order goes with sorting_method "predefined" only')
    if validation is not None and validation.mode == "gt_pool" and sorting != "random":
        raise InputError(
            'params: validation_params of mode "gt_pool" go with sorting_method "random" only'
        )
    if segment_size is None:
        return params
    if params.job_file_mapping is not None and segment_size:
        raise InputError(
            "params: job_file_mapping and segment_size exclude each other in CVAT, and the "
            f"template has segment_size = {segment_size}"
        )
    if validation is not None and validation.frame_selection_method == "random_per_job":
        per_job = validation.frames_per_job_count or 0
        if validation.mode == "gt" and per_job and segment_size <= per_job:
            raise InputError(
                f"params: validation_params with {per_job} frames of each job need a template with "
                "a segment_size above that"
            )
    return params


def problems_in(error: ValidationError) -> list[str]:
    """What is wrong, a line a problem: where it is, what was expected, and what was found."""
    return [
        ": ".join(filter(None, (".".join(map(str, each["loc"])), _words(each))))
        for each in error.errors(include_url=False)
    ]


def _words(problem: Any) -> str:
    message = str(problem["msg"])
    if problem["type"] == "expected":
        return f"{message}, found {shown(problem['input'])}"
    return message if problem["type"] == "data_params" else message[:1].lower() + message[1:]


def _reader(name: str) -> Reader:
    def read(value: object) -> Any:
        try:
            return getattr(DataParams.model_validate({name: value}), name)
        except ValidationError as error:
            said = "; ".join(problems_in(error))
            raise Unfit(said.removeprefix(f"{name}: ").removeprefix(f"{name}.")) from None

    return read


#: A reader for each key of a template's table ``data``.
READERS: Final[Mapping[str, Reader]] = {name: _reader(name) for name in DataParams.model_fields}
