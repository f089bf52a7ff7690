"""What a data request says beside its files: one record for a form and for JSON."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import FormData, UploadFile

from .fields import EMPTY_LIST, Fields
from .media import SORTING_METHODS
from .replies import Refusal, crash
from .settings import SimulatorSettings
from .validation import Validation, read_validation
from .versions import DOWNLOAD_ERRORS

_INDEXED = re.compile(r"(?P<name>[\w.]+)(?P<indexes>(\[\d+\])+)\Z")
_STEP = re.compile(r"step\s*=\s*([1-9]\d*)")
#: The largest number that a column holds.
LARGEST = 2**31 - 1
#: Characters that a column for names holds.
LONGEST_NAME = 1024
_LISTS = ("server_files", "remote_files", "server_files_exclude", "upload_file_order")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataParams:
    """The checked parameters of one data request."""

    image_quality: int | None = None
    chunk_size: int | None = None
    start_frame: int | None = None
    stop_frame: int | None = None
    frame_filter: str = ""
    sorting_method: str = "lexicographical"
    use_zip_chunks: bool = False
    copy_data: bool = False
    cloud_storage_id: int | None = None
    filename_pattern: str | None = None
    job_file_mapping: tuple[tuple[str, ...], ...] | None = None
    validation: Validation | None = None
    server_files: tuple[str, ...] = ()
    remote_files: tuple[str, ...] = ()
    server_files_exclude: tuple[str, ...] = ()
    upload_file_order: tuple[str, ...] = ()
    #: The uploaded files of this request, as they came; names are checked where they are kept.
    client_files: tuple[UploadFile, ...] = field(default=(), repr=False)

    @property
    def frame_step(self) -> int:
        match = _STEP.search(self.frame_filter)
        return int(match[1]) if match else 1


def unfold(form: FormData) -> dict[str, Any]:
    """A multipart form as the nested value it stands for: ``a[0][1]=x`` is a list in a list.

    Lists are ordered by their indexes, which may have gaps, as Django REST framework reads them;
    ``a.b=x`` is an object in an object. A blank field is none.
    """
    plain: dict[str, Any] = {}
    indexed: dict[str, dict[tuple[int, ...], Any]] = {}
    for key, value in form.multi_items():
        match = _INDEXED.match(key)
        if match is None:
            if key in _LISTS:
                plain.setdefault(key, []).append(value)
            elif value != "":
                plain[key] = value
            continue
        indexes = tuple(int(part) for part in re.findall(r"\d+", match["indexes"]))
        indexed.setdefault(match["name"], {})[indexes] = value
    plain |= {name: _nested(values) for name, values in indexed.items()}
    prefix = "validation_params."
    inner = {key[len(prefix) :]: plain.pop(key) for key in [*plain] if key.startswith(prefix)}
    # As a text of its own, CVAT does not see it.
    plain.pop("validation_params", None)
    return plain | ({"validation_params": inner} if inner else {})


def _nested(values: Mapping[tuple[int, ...], Any]) -> list[Any]:
    groups: dict[int, dict[tuple[int, ...], Any]] = {}
    for indexes, value in values.items():
        groups.setdefault(indexes[0], {})[indexes[1:]] = value
    return [
        group[()] if () in group else _nested(group)
        for _, group in sorted(groups.items())
    ]  # fmt: skip


def read_params(values: Mapping[str, Any], settings: SimulatorSettings) -> DataParams:
    """Check the parameters. Raises 400 with all that is wrong with them."""
    fields = Fields(values)
    # Checked, and of no effect: servers read files when a person looks, whatever is said here,
    # unless their administrator allows for another way (CVAT_ALLOW_STATIC_CACHE).
    fields.choice("storage_method", ("cache", "file_system"), default="cache")
    fields.boolean("use_cache")
    params = DataParams(
        image_quality=fields.integer("image_quality", least=1, most=100),
        chunk_size=_chunk_size(fields),
        start_frame=fields.integer("start_frame", least=0, most=LARGEST),
        stop_frame=fields.integer("stop_frame", least=0, most=LARGEST),
        frame_filter=_frame_filter(fields),
        sorting_method=fields.choice("sorting_method", SORTING_METHODS, default="lexicographical")
        or "",
        use_zip_chunks=fields.boolean("use_zip_chunks"),
        copy_data=fields.boolean("copy_data"),
        cloud_storage_id=fields.integer("cloud_storage_id", null=True),
        filename_pattern=fields.text("filename_pattern", null=True),
        job_file_mapping=_mapping(fields),
        validation=_validation(fields),
        server_files=_server_files(fields),
        remote_files=_urls(fields, settings),
        server_files_exclude=_names(fields, "server_files_exclude", _path_problem),
        upload_file_order=_names(fields, "upload_file_order"),
        client_files=tuple(
            file for file in fields.items("client_files") if isinstance(file, UploadFile)
        ),
    )
    fields.check()
    start, stop = params.start_frame, params.stop_frame
    if start is not None and stop is not None and start > stop:
        message = "Stop frame must be more or equal start frame"
        raise Refusal(400, {"non_field_errors": [message]})
    _check_pattern(params)
    return params


def _check_pattern(params: DataParams) -> None:
    if not params.filename_pattern:
        return
    message = None
    if not all(name.endswith(".jsonl") for name in params.server_files):
        message = (
            "The filename_pattern can only be used with specified manifest or without server_files"
        )
    elif params.server_files_exclude:
        message = "The filename_pattern and server_files_exclude cannot be used together"
    if message:
        raise Refusal(400, {"non_field_errors": [message]})


def _chunk_size(fields: Fields) -> int | None:
    if "chunk_size" in fields and fields.values["chunk_size"] is None:
        # CVAT compares it with 0 before it asks whether it is there.
        raise crash()
    size = fields.integer("chunk_size", least=0, most=LARGEST)
    if size == 0:
        fields.wrong("chunk_size", "Chunk size must be a positive integer")
    return size


def _frame_filter(fields: Fields) -> str:
    text = fields.text("frame_filter")
    if text is not None and not _STEP.search(text):
        fields.wrong("frame_filter", "Invalid frame filter expression")
    return text or ""


def _validation(fields: Fields) -> Validation | None:
    given = fields.values.get("validation_params")
    if given is None:
        return None
    inner = Fields(given if isinstance(given, dict) else {})
    found = read_validation(inner)
    if inner.errors:
        fields.errors["validation_params"] = inner.errors
    return found


def _names(
    fields: Fields, name: str, problem: Callable[[str], str | None] = lambda _: None
) -> tuple[str, ...]:
    return tuple(fields.texts(name, longest=LONGEST_NAME, blank=False, problem=problem))


def _server_files(fields: Fields) -> tuple[str, ...]:
    """As :func:`_names`, with the errors of rows that have a field ``file``."""
    names = _names(fields, "server_files", _path_problem)
    errors = fields.errors.get("server_files")
    if isinstance(errors, dict):
        fields.errors["server_files"] = [
            {"file": errors[str(number)]} if str(number) in errors else {}
            for number in range(len(names))
        ]
    return names


def _path_problem(text: str) -> str | None:
    path = PurePosixPath(text)
    if not path.parts:
        return "path is empty"
    if path.is_absolute():
        return "path is not relative"
    if ".." in path.parts:
        return "path contains a '..' segment"
    return None if path.as_posix() == text.removesuffix("/") else "path is not in canonical form"


def _urls(fields: Fields, settings: SimulatorSettings) -> tuple[str, ...]:
    urls = tuple(str(item) for item in fields.items("remote_files"))
    for url in urls if settings.since(DOWNLOAD_ERRORS) else ():
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            fields.wrong("remote_files", f"{url!r}: remote_files entries must be http(s) URLs.")
    return urls


def _mapping(fields: Fields) -> tuple[tuple[str, ...], ...] | None:
    if "job_file_mapping" not in fields:
        return None
    entries = fields.items("job_file_mapping", null=False)
    jobs = Fields({str(number): entry for number, entry in enumerate(entries)})
    mapping = tuple(
        tuple(jobs.texts(number, longest=LONGEST_NAME, blank=False, empty=False))
        for number in jobs.values
    )
    if "job_file_mapping" in fields.errors:
        return None
    if not entries:
        fields.wrong("job_file_mapping", EMPTY_LIST)
    elif jobs.errors:
        fields.errors["job_file_mapping"] = jobs.errors
    else:
        names = Counter(itertools.chain(*mapping))
        twice = next((name for name, times in names.items() if times > 1), None)
        if twice is not None:
            fields.wrong(
                "job_file_mapping",
                f"The same file '{twice}' cannot be used multiple times in the job file mapping",
            )
    return mapping
