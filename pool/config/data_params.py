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

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from pool.config.arguments import LARGEST
from pool.config.fields import ONE_OF, Flag, Whole, described, refused
from pool.config.names import LONGEST_PATH, check_server_path, check_text
from pool.config.problems import explain, unknown_key
from pool.errors import InputError

#: What is sent unless a template or a caller sets another value. ``chunk_size`` "auto" bounds what
#: the server encodes before the jobs exist (:mod:`pool.cvat.chunking`).
DEFAULTS: Final[Mapping[str, Any]] = {"image_quality": 70, "chunk_size": "auto"}
#: CVAT's names of where the data is, and the arguments that give it here.
SOURCES: Final = {
    "client_files": "files",
    "server_files": "share or cloud",
    "remote_files": "urls",
    "cloud_storage_id": "cloud",
}


def _checked(check: Callable[[str], str]) -> AfterValidator:
    def take(value: str) -> str:
        try:
            return check(value)
        except InputError as error:
            raise refused(error.detail) from None

    return AfterValidator(take)


def _frame_name(name: str) -> str:
    check_text(name, "the name of a frame")
    if name != name.strip():
        raise InputError(f"{name!r}: CVAT cuts the spaces off, and then finds no such file")
    return name


Selection = Literal["random_uniform", "random_per_job", "manual"]

_Frame = Annotated[int, Whole(0)] | None
_Count = Annotated[int, Whole(1)] | None
_Share = Annotated[float | None, Field(ge=0, le=1), described("a number from 0 to 1")]
_FrameName = Annotated[str, Field(min_length=1, max_length=LONGEST_PATH), _checked(_frame_name)]
_ServerPath = Annotated[str, _checked(lambda path: check_server_path(path, what="a path"))]
# Lists and tuples alike; what is in them is as strict as everything else.
_Names = Annotated[
    tuple[_FrameName, ...], Field(strict=False, min_length=1), described("a list of file names")
]


class _Params(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, given: Any) -> Any:
        if isinstance(given, Mapping):
            for key in given:
                if key not in cls.model_fields:
                    raise refused(explain_unknown(str(key), cls))
        return given

    @property
    def given(self) -> dict[str, Any]:
        """What is set, by CVAT's names."""
        return self.model_dump(exclude_none=True)


class ValidationParams(_Params):
    """Frames to check annotators by: a ground truth job, or honeypots in all jobs."""

    mode: Annotated[Literal["gt", "gt_pool"], ONE_OF]
    frame_selection_method: Annotated[Selection, ONE_OF] | None = None
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
            raise refused(f"frame_selection_method is missing: {' or '.join(get_args(Selection))}")
        if self.mode == "gt_pool" and method not in ("manual", "random_uniform"):
            raise refused('frame_selection_method is "manual" or "random_uniform" with "gt_pool"')
        if self.mode == "gt_pool" or method == "random_per_job":
            self._one_of("frames_per_job_count", "frames_per_job_share")
        if method == "random_uniform":
            self._one_of("frame_count", "frame_share")
        if (method == "manual") != (self.frames is not None):
            raise refused('frames go with frame_selection_method "manual", and it with them')
        if self.frames is not None and len(set(self.frames)) < len(self.frames):
            raise refused("frames: a frame is named twice")
        return self

    def _one_of(self, *names: str) -> None:
        if sum(getattr(self, name) is not None for name in names) != 1:
            raise refused(f"give one of {' and '.join(names)}")


class DataParams(_Params):
    """Data parameters by CVAT's names, on top of the template's. Null leaves one as it is."""

    image_quality: Annotated[Annotated[int, Whole(1, 100)] | None, Field(examples=[70])] = None
    chunk_size: Annotated[
        Annotated[int, Whole(1)] | Literal["auto", "server"] | None,
        Field(description="In frames"),
        described(f'"auto", "server" or a whole number from 1 to {LARGEST}'),
    ] = None
    sorting_method: (
        Annotated[Literal["lexicographical", "natural", "predefined", "random"], ONE_OF] | None
    ) = None
    use_cache: Flag | None = None
    use_zip_chunks: Flag | None = None
    copy_data: Flag | None = None
    start_frame: _Frame = None
    stop_frame: _Frame = None
    frame_filter: Annotated[
        str | None,
        Field(pattern=r"^step ?= ?[1-9][0-9]{0,8}$", examples=["step=10"]),
        described('"step=N", such as "step=10"'),
    ] = None
    frame_step: Annotated[
        Annotated[int, Whole(1, 999_999_999)] | None,
        Field(description="What cvat-sdk calls frame_filter: a number"),
    ] = None
    storage_method: Annotated[Literal["cache", "file_system"], ONE_OF] | None = None
    job_file_mapping: Annotated[
        tuple[_Names, ...] | None,
        Field(
            strict=False,
            min_length=1,
            description="One job for each list of names",
            examples=[[["a.jpg", "b.jpg"], ["c.jpg"]]],
        ),
        described(
            'a list of jobs, each a list of file names, such as [["a.jpg", "b.jpg"], ["c.jpg"]]'
        ),
    ] = None
    upload_file_order: Annotated[
        _Names | None, Field(description='All files in order, for "predefined"')
    ] = None
    server_files_exclude: Annotated[
        tuple[_ServerPath, ...] | None,
        Field(strict=False, description="What to leave out of folders; theirs end with a slash"),
        described("a list of paths"),
    ] = None
    filename_pattern: Annotated[
        str | None,
        Field(min_length=1, max_length=LONGEST_PATH, description="Of names in a manifest"),
        described('a pattern of file names, such as "cam1/*.jpg"'),
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
            raise refused(f"start_frame, {first}, is after stop_frame, {last}")
        if self.frame_step is not None and self.frame_filter is not None:
            raise refused("give one of frame_step and frame_filter")
        if self.filename_pattern is not None and self.server_files_exclude:
            raise refused("give one of filename_pattern and server_files_exclude")
        if self.job_file_mapping is not None:
            self._check_mapping(self.job_file_mapping)
        return self

    def _check_mapping(self, mapping: tuple[tuple[str, ...], ...]) -> None:
        seen: set[str] = set()
        for name in chain.from_iterable(mapping):
            if name in seen:
                raise refused(f"job_file_mapping: {name!r} is named twice")
            seen.add(name)
        for name in self.against_mapping:
            raise refused(f"job_file_mapping and {name} exclude each other in CVAT")

    @property
    def against_mapping(self) -> list[str]:
        """The parameters that are set and do not go with a mapping of files to jobs."""
        others = {
            "start_frame": self.start_frame,
            "stop_frame": self.stop_frame,
            "frame_filter": self.frame_filter or self.frame_step,
            "filename_pattern": self.filename_pattern,
            "server_files_exclude": self.server_files_exclude,
            "sorting_method": self.sorting_method not in (None, "lexicographical"),
        }
        return [name for name, value in others.items() if value]


def explain_unknown(key: str, kind: type[_Params] = DataParams) -> str:
    """Return the message for a key that is no parameter."""
    if key in SOURCES and kind is DataParams:
        return f"{key} is no data parameter here: where the data is, is given by {SOURCES[key]}"
    return f"{key}: {unknown_key(key, kind.model_fields)}"


def read_params(given: Mapping[str, Any] | DataParams | None) -> DataParams:
    """Return the parameters of a request.

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
    """Return a request's parameters over those of its template, and the defaults for the rest.

    ``segment_size`` is that of the template's tasks; None leaves it out of account.

    :raises InputError: they do not go together.
    """
    params = template
    if own or not DEFAULTS.keys() <= template.given.keys():
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
    """Return what is wrong, a line a problem: its place, what was expected, what was found."""
    return [
        ": ".join(filter(None, (".".join(map(str, each["loc"])), explain(each))))
        for each in error.errors(include_url=False)
    ]
