"""From what a caller passes as ``files`` to what is uploaded: checked before anything is sent."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal, TypedDict

from pool.config.arguments import check_whole
from pool.config.data_params import DataParams, merged, read_params
from pool.config.names import (
    check_extensions,
    check_server_path,
    distinct_names,
    name_in_cvat,
    shown,
    telling_folders,
)
from pool.config.settings import Template
from pool.config.urls import check_url, name_in_url
from pool.errors import InputError
from pool.model import Assignee, ImportRecord

Source = str | os.PathLike[str] | bytes | BinaryIO
FileLike = str | os.PathLike[str] | tuple[str, Source] | BinaryIO
Files = FileLike | Iterable[FileLike]

#: Called with (bytes sent, bytes in all) while an upload runs.
Progress = Callable[[int, int], None]

VIDEO = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".mpg", ".mpeg", ".m4v", ".wmv"})
IMAGE = frozenset(
    {
        *(".bmp", ".dds", ".gif", ".ico", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".png"),
        *(".tga", ".tif", ".tiff", ".webp"),
    }
)
ARCHIVE = frozenset({".zip", ".tar", ".gz", ".bz2", ".xz", ".7z", ".rar", ".pdf"})

#: Bytes read at a time when content is digested.
BLOCK = 2**20

#: A cloud of points in KITTI's format, and as what its frame is named.
KITTI, POINTS = ".bin", ".pcd"
MANIFEST = ".jsonl"

#: Jobs that CVAT makes of one task at most (recording groups).
MOST_JOBS = 5000

_NAMELESS = "bytes need a name: pass (name, bytes)"


@dataclass(frozen=True, slots=True)
class LocalFile:
    """One file to upload: a path on this machine, or the bytes themselves under a name.

    ``name`` is the file's name in CVAT (:func:`pool.config.names.distinct_names`). ``size`` is in
    bytes. ``start`` is where an open file stood when it was given; None takes it from where it
    stands. ``given`` is what its caller calls it, where that is another name.
    """

    name: str
    source: Path | bytes | BinaryIO
    size: int
    start: int | None = None
    given: str | None = None

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Open the content to read it ahead of the upload: an open file is put back to where it
        stood.

        :raises OSError: it cannot be read.
        """
        if isinstance(self.source, bytes):
            yield io.BytesIO(self.source)
        elif isinstance(self.source, Path):
            with self.source.open("rb") as stream:
                yield stream
        else:
            position = self.source.tell()
            try:
                yield self.source
            finally:
                self.source.seek(position)


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """Data for one task; exactly one of the four kinds is given.

    ``files`` come from here; ``share`` names files and folders on the server's share;
    ``urls`` the server fetches itself; ``cloud`` is a cloud storage's id and keys in it.
    """

    files: tuple[LocalFile, ...] = ()
    share: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()
    cloud: tuple[int, tuple[str, ...]] | None = None
    #: The number of files of each job, in the order of the files; empty: CVAT divides them.
    job_sizes: tuple[int, ...] = ()
    #: Data parameters beside those of the template, as
    #: :attr:`pool.config.data_params.DataParams.given` has them, with the names that CVAT gives.
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes to send from here."""
        return sum(file.size for file in self.files)

    @property
    def names(self) -> tuple[str, ...]:
        """The names that the data will have inside the task, in the caller's order.

        Never whole URLs: those may have secrets, and these names are shown to all.
        """
        if self.files:
            return tuple(file.name for file in self.files)
        if self.cloud is not None:
            return self.cloud[1]
        return self.share or tuple(map(name_in_url, self.urls))

    @property
    def given(self) -> tuple[str, ...]:
        """What the caller calls the data, in the caller's order; never whole URLs."""
        if self.files:
            return tuple(file.given or file.name for file in self.files)
        return self.names

    @property
    def jobs(self) -> tuple[tuple[str, ...], ...]:
        """The names of the files of each job, where the jobs are divided here."""
        names = iter(self.names)
        return tuple(tuple(islice(names, size)) for size in self.job_sizes)

    @property
    def kind(self) -> str:
        """The sort of data, for what is learned of import times."""
        if not self.files:
            return "share" if self.share else "urls" if self.urls else "cloud"
        return kind_of(self.names)


class Data(TypedDict, total=False):
    """The keyword arguments for data that does not come from here, and for data parameters, as all
    doors take them."""

    #: Names of files and folders on the server's share.
    share: Sequence[str] | None
    #: Addresses that the server fetches by itself.
    urls: Sequence[str] | None
    #: A cloud storage's id, and keys in it.
    cloud: tuple[int, Sequence[str]] | None
    #: Data parameters by CVAT's names, on top of the template's.
    params: Mapping[str, Any] | DataParams | None
    #: The number of files of each job, in their order; by default CVAT divides them.
    job_size: int | None


def build_upload(
    files: Files | None = None,
    *,
    share: Sequence[str] | None = None,
    urls: Sequence[str] | None = None,
    cloud: tuple[int, Sequence[str]] | None = None,
    params: Mapping[str, Any] | DataParams | None = None,
    job_size: int | None = None,
) -> Upload:
    """Return the data of one request, from exactly one of the four sources.

    :raises InputError: none or several sources, a missing or unreadable file, an empty list,
        names that CVAT does not take or cannot tell apart, parameters that it would refuse, data
        that cannot be divided into jobs of ``job_size`` files.
    """
    sources = {"files": files, "share": share, "urls": urls, "cloud": cloud}
    given = [name for name, value in sources.items() if value is not None]
    if len(given) != 1:
        raise InputError(
            f"give one of files, share, urls and cloud, not {' and '.join(given) or 'none of them'}"
        )
    own = read_params(params)
    if files is not None:
        return upload_of(_local_files(files), own, job_size=job_size)
    if share is not None:
        upload = Upload(share=_paths("share", share), extra=own.given)
    elif urls is not None:
        upload = _fetched(urls, own)
    else:
        assert cloud is not None
        upload = Upload(cloud=_cloud(cloud), extra=own.given)
    return replace(upload, job_sizes=_job_sizes(upload, job_size))


def upload_of(
    files: Sequence[LocalFile], params: DataParams, *, job_size: int | None = None
) -> Upload:
    """Return files, each of which is checked and called as its caller calls it, with the names that
    they have in CVAT, and with the parameters of their request.

    :raises InputError: there are none, none is media, CVAT does not take a name,
        a parameter names another file, or they cannot be divided into jobs of ``job_size``.
    """
    if not files:
        raise InputError("the list of files is empty")
    given = [file.name for file in files]
    names = distinct_names(given, mapped=job_size is not None)
    check_extensions(names)
    extra = params.given
    # Those of an archive are the names inside it.
    if extra and kind_of(names) != "archive":
        # By the name in CVAT, or as the caller calls the file, where that is one file.
        known: dict[str, str | None] = dict(zip(given, names, strict=True))
        known |= {name: None for name, count in Counter(given).items() if count > 1}
        extra = _as_in_cvat(extra, known | {name: name for name in names})
    upload = Upload(files=tuple(map(_called, files, names)), extra=extra)
    return replace(upload, job_sizes=_job_sizes(upload, job_size))


def _job_sizes(upload: Upload, job_size: int | None) -> tuple[int, ...]:
    """Return how many files of an upload are in each job, with ``job_size`` in each but the last.

    :raises InputError: CVAT cannot divide such data so (recordings job_file_mapping, media,
        archives, share_paths and groups).
    """
    if job_size is None:
        return ()
    size, total = check_whole("job_size", job_size, least=1), len(upload.names)
    if "job_file_mapping" in upload.extra:
        raise InputError("give one of job_size and job_file_mapping")
    for name in upload.names:
        problem = _indivisible(name)
        if problem:
            raise InputError(f"job_size is a number of images: {shown(name)} is {problem}")
    if total > MOST_JOBS * size:
        raise InputError(
            f"job_size {size}: CVAT makes at most {MOST_JOBS} jobs of a task, and {total} files "
            f"would be {-(-total // size)}"
        )
    return tuple(min(size, total - first) for first in range(0, total, size))


def _indivisible(name: str) -> str:
    """Return what the data of this name is, if it is none that a job can have a number of."""
    # Only CVAT can tell whether what the server has is a folder whose name has a dot in it.
    if name.endswith("/") or not PurePosixPath(name).suffix:
        return "none; a folder has to be given as its files"
    if name != name.strip():
        return "called with spaces around it, which CVAT cuts off in a mapping"
    if name.endswith(MANIFEST):
        return "a manifest"
    kind = kind_of([name])
    return "" if kind == "images" else f"{'an' if kind == 'archive' else 'a'} {kind}"


def combined(uploads: Sequence[Upload]) -> Upload:
    """Return the images of several requests as one upload for one task: each request has a job of
    its own, or those that it was divided into. Their names in CVAT are :func:`group_names`.

    Within a request the frames are in the order that they would have in a task of its own. All
    have the data parameters of the first.
    """
    files = [
        [_called(file, name) for file, name in zip(upload.files, names, strict=True)]
        for upload, names in zip(
            uploads, group_names([upload.given for upload in uploads]), strict=True
        )
    ]
    return Upload(
        files=tuple(
            each[index]
            for upload, each in zip(uploads, files, strict=True)
            for index in _order(upload)
        ),
        job_sizes=tuple(
            chain.from_iterable(upload.job_sizes or (len(upload.files),) for upload in uploads)
        ),
        extra=uploads[0].extra,
    )


def group_names(members: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Return the names in CVAT of the files of several requests that share a task, by what their
    callers call them: those of each request, in its order."""
    names = iter(distinct_names(list(chain.from_iterable(members)), mapped=True))
    return [tuple(islice(names, len(given))) for given in members]


def _called(file: LocalFile, name: str) -> LocalFile:
    given = file.given or file.name
    return replace(file, name=name, given=None if name == given else given)


def _order(upload: Upload) -> list[int]:
    """Return the files of a request in the order of their frames, by their places."""
    places = list(range(len(upload.files)))
    if upload.job_sizes:
        return places
    return sorted(places, key=upload.names.__getitem__)


def fit(upload: Upload, template: Template) -> None:
    """Refuse data parameters that do not go with the data, or with the template.

    :raises InputError: they do not; CVAT would find that out during the import.
    """
    own, params = upload.extra, template.data
    if own:
        params = merged(params, own, segment_size=template.task.segment_size)
    if upload.job_sizes:
        against = params.against_mapping
        if template.task.segment_size:
            against = ["segment_size", *against]
        if against:
            raise InputError(
                f"job_size and {against[0]} exclude each other in CVAT, and the request or its "
                f"template {template.name!r} has {against[0]}"
            )
    from_server = upload.share or (upload.cloud[1] if upload.cloud else ())
    for name in ("server_files_exclude", "filename_pattern"):
        if name in own and not from_server:
            raise InputError(f"params: {name} is about share and cloud, not about files and urls")
    if params.filename_pattern and not all(path.endswith(".jsonl") for path in from_server):
        raise InputError("params: filename_pattern goes with the name of a manifest (.jsonl) only")
    if params.job_file_mapping is not None and kind_of(upload.names) == "video":
        raise InputError("params: CVAT has no job_file_mapping for videos")
    if params.sorting_method == "predefined":
        spaced = [file.name for file in upload.files if file.name != file.name.strip()]
        if spaced:
            raise InputError(
                f"{spaced[0]!r}: CVAT cuts the spaces off in lists of names, so that it cannot be "
                'put in its place by sorting_method = "predefined"'
            )
    order = own.get("upload_file_order")
    if order is not None and set(order) != {file.name for file in upload.files}:
        raise InputError("params: upload_file_order has to name each of the files, and no other")


def kind_of(names: Iterable[str]) -> str:
    """Return the sort of files that are called so: video, archive or images."""
    suffixes = {PurePosixPath(name).suffix.lower() for name in names}
    if suffixes & VIDEO:
        return "video"
    return "archive" if suffixes & ARCHIVE else "images"


def digest(
    upload: Upload,
    *,
    template: str,
    name: str | None = None,
    assignee: Assignee | None = None,
    stream: str | None = None,
    lease_id: str | None = None,
    contents: Iterable[bytes] | None = None,
) -> str:
    """Return a digest of a request, content included, to which its idempotency key is bound: the
    same in Python and over HTTP. ``contents`` are the SHA-256 digests of the files, if known."""
    asked: dict[str, Any] = {"template": template, "name": name, "assignee": assignee}
    if stream is not None:
        asked["stream"] = stream
    if lease_id is not None:
        asked["lease_id"] = lease_id
    summary = hashlib.sha256(
        json.dumps(
            {
                "asked": asked,
                "names": upload.urls or upload.names,
                "cloud": upload.cloud[0] if upload.cloud else None,
                "extra": upload.extra,
                **({"jobs": upload.job_sizes} if upload.job_sizes else {}),
            },
            sort_keys=True,
            default=str,
        ).encode()
    )
    for content in map(_content_digest, upload.files) if contents is None else contents:
        summary.update(content)
    return summary.hexdigest()


def _content_digest(file: LocalFile) -> bytes:
    content = hashlib.sha256()
    with file.open() as stream:
        while block := stream.read(BLOCK):
            content.update(block)
    return content.digest()


# --- Files from here -----------------------------------------------------------------------------


def _named(files: Any) -> list[tuple[str | None, Any]]:
    """Return what stands for each file, with the name that was given to it, if any."""
    if isinstance(files, (bytes, bytearray)):
        raise InputError(_NAMELESS)
    if isinstance(files, (str, os.PathLike)) or _is_pair(files) or hasattr(files, "read"):
        files = [files]
    try:
        items = list(files)
    except TypeError:
        raise InputError(f"files takes a list of files, not {type(files).__name__}") from None
    return [item if _is_pair(item) else (None, item) for item in items]


def _is_pair(item: object) -> bool:
    """Return whether this is a name and what is behind it. A tuple of two paths is a list."""
    return (
        isinstance(item, tuple)
        and len(item) == 2
        and isinstance(item[0], str)
        and not isinstance(item[1], str)
    )


def _local_files(files: Any) -> list[LocalFile]:
    """Return the files as their callers call them: a path by its last part, and by folders before
    that where it takes these to tell it from another."""
    named = _named(files)
    local = [_local_file(*each) for each in named]
    check_paths(source for name, source in named if name is None)
    alike: dict[str, list[int]] = {}
    for index, file in enumerate(local):
        alike.setdefault(file.name.rsplit("/", 1)[-1], []).append(index)
    for indices in alike.values():
        if len(indices) == 1:
            continue
        paths = [
            _path_of(local[index].source) if named[index][0] is None else local[index].name
            for index in indices
        ]
        for index, folders in zip(indices, telling_folders(paths), strict=True):
            if named[index][0] is None:
                local[index] = replace(local[index], name="/".join((*folders, local[index].name)))
    return local


def check_paths(sources: Iterable[object]) -> None:
    """Refuse a path that is given twice, which must be a mistake.

    :raises InputError: one is.
    """
    seen: set[Path] = set()
    for source in sources:
        if isinstance(source, str | os.PathLike):
            path = Path(source).absolute()
            if path in seen:
                raise InputError(f"{shown(os.fspath(source))}: is given twice")
            seen.add(path)


def _path_of(source: Path | bytes | BinaryIO) -> str:
    """Return where a file is to which its caller gave no name."""
    return Path(source if isinstance(source, Path) else getattr(source, "name", "")).as_posix()


def _local_file(name: str | None, source: Any) -> LocalFile:
    start: int | None = None
    if isinstance(source, (str, os.PathLike)):
        source = Path(source)
        name, size = source.name if name is None else name, _size_on_disk(source)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        if name is None:
            raise InputError(_NAMELESS)
        source = bytes(source)
        size = len(source)
        if not size:
            raise InputError(f"{shown(name)}: is empty")
    elif hasattr(source, "read"):
        name, size, start = _open_file(source, name)
    elif isinstance(source, tuple):
        raise InputError("a pair of a name and bytes, a path or an open file was expected")
    else:
        raise InputError(
            f"cannot upload {type(source).__name__}: pass paths, open binary files, or pairs of a "
            "name and one of these or bytes"
        )
    return LocalFile(name, source, size, start)


def _size_on_disk(path: Path) -> int:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"{shown(path)}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{shown(path)}: is no path ({error})") from None
    if path.is_dir():
        raise InputError(f"{shown(path)}: is a folder; name the files in it")
    if not os.access(path, os.R_OK):
        raise InputError(f"{shown(path)}: permission denied")
    if size == 0:
        raise InputError(f"{shown(path)}: is empty")
    return size


def _open_file(stream: BinaryIO, name: str | None) -> tuple[str, int, int]:
    """Return the name of an open file, its size, and where it stands."""
    own_name = getattr(stream, "name", None)
    if name is None and isinstance(own_name, str):
        name = Path(own_name).name
    if name is None:
        raise InputError("an open file without a name: pass (name, file)")
    try:
        position = stream.tell()
        size = stream.seek(0, os.SEEK_END) - position
        stream.seek(position)
    except (OSError, ValueError) as error:
        raise InputError(f"{shown(name)}: cannot be rewound; pass (name, file.read())") from error
    if isinstance(stream.read(0), str):
        raise InputError(f"{shown(name)}: is open as text; open it with mode 'rb'")
    if size <= 0:
        raise InputError(f"{shown(name)}: is empty or at its end")
    return name, size, position


# --- Data that CVAT has, or fetches --------------------------------------------------------------


def _listed(what: str, names: Sequence[str]) -> Sequence[str]:
    if isinstance(names, str | bytes) or not isinstance(names, Sequence):
        raise InputError(f"{what} takes a list of names, not one {type(names).__name__}")
    if not names:
        raise InputError(f"the list of {what} names is empty")
    return names


def _paths(what: str, names: Sequence[str]) -> tuple[str, ...]:
    paths = tuple(check_server_path(name, what=what) for name in _listed(what, names))
    for path, count in Counter(paths).items():
        if count > 1:
            raise InputError(f"{what} {shown(path)}: is named twice")
    return paths


def _cloud(cloud: tuple[int, Sequence[str]]) -> tuple[int, tuple[str, ...]]:
    try:
        storage, keys = cloud
    except (TypeError, ValueError):
        raise InputError("cloud takes the id of a cloud storage and a list of keys in it") from None
    return check_whole("the id of a cloud storage", storage, least=1), _paths("cloud", keys)


def _fetched(urls: Sequence[str], params: DataParams) -> Upload:
    known: dict[str, str] = {}
    addresses, names = [], set[str]()
    for url in _listed("urls", urls):
        address = check_url(url)
        name = name_in_url(address)
        if name in names:
            raise InputError(
                f"{shown(name)}: two files of one name cannot be in one task; give the files "
                "themselves, or each URL in a request of its own"
            )
        known.update({url: name, address: name, name: name})
        addresses.append(address)
        names.add(name)
    check_extensions(names)
    extra = params.given
    if kind_of(names) == "images":
        extra = _as_in_cvat(extra, known)
    return Upload(urls=tuple(addresses), extra=extra)


# --- Names ---------------------------------------------------------------------------------------


def _as_in_cvat(params: dict[str, Any], known: Mapping[str, str | None]) -> dict[str, Any]:
    """Return parameters whose names are those of the files in CVAT; ``known`` has these by what the
    caller calls them.

    :raises InputError: a file is named that is not there.
    """

    def there(key: str, given: Iterable[str]) -> tuple[str, ...]:
        names = []
        for name in given:
            found = known.get(name, known.get(name_in_cvat(name)))
            if found is None:
                which = "several" if name in known else "none"
                raise InputError(
                    f"params: {key} names {shown(name)}, which is {which} of the files"
                )
            names.append(found)
        return tuple(names)

    names = dict(params)
    if "job_file_mapping" in params:
        jobs = params["job_file_mapping"]
        names["job_file_mapping"] = tuple(there("job_file_mapping", job) for job in jobs)
    if "upload_file_order" in params:
        names["upload_file_order"] = there("upload_file_order", params["upload_file_order"])
    validation = params.get("validation_params", {})
    if "frames" in validation:
        frames = there("validation_params.frames", validation["frames"])
        names["validation_params"] = {**validation, "frames": frames}
    return names


# --- The frames that the data becomes -------------------------------------------------------------


def frame_numbers(upload: Upload, template: DataParams) -> tuple[int | None, ...] | None:
    """Return the number of the frame that each file becomes, in a task of its own, in the caller's
    order; None for one that is no frame, and for all where CVAT alone decides on the order.

    A file is a frame where it is an image that is sent from here or fetched. CVAT sorts them by
    their names, unless the upload says otherwise (recordings data_params and groups). Names on the
    share and in cloud storages may be those of folders, unless they are divided into jobs.
    """
    names = upload.names
    images = all(PurePosixPath(name).suffix.lower() in IMAGE for name in names)
    if not (upload.files or upload.urls or upload.job_sizes) or not images:
        return None
    params = merged(template, upload.extra)
    if params.start_frame or params.stop_frame is not None or params.frame_filter:
        return None
    if upload.job_sizes:
        order: Sequence[str] = names
    elif params.job_file_mapping is not None:
        order = list(chain.from_iterable(params.job_file_mapping))
    elif params.sorting_method in (None, "lexicographical"):
        order = sorted(names)
    elif params.sorting_method == "predefined":
        order = params.upload_file_order or names
    else:
        return None
    numbers = {name: number for number, name in enumerate(order)}
    return tuple(map(numbers.get, names))


def frame_names(upload: Upload, *, decompress: bool = True) -> frozenset[str] | None:
    """Return what the frames of an upload are called; None where that cannot be known from here.

    A name can be that of a folder on the server, which stands for all that is in it. Of a zip or
    tar from here the members are read; an archive of another format, or on the server, has unknown
    frames. The members of a compressed tar take as long to list as it takes to decompress: without
    ``decompress`` they count as unknown.
    """
    if len(upload.files) == 1 and upload.kind == "archive":
        (file,) = upload.files
        if isinstance(file.source, bytes | Path):
            return _members(file, "r:*" if decompress else "r:")
    return frames_of_files(upload.names)


def frames_of_files(names: Iterable[str]) -> frozenset[str] | None:
    """Return what the frames of files are called that have these names in CVAT, as
    :func:`frame_names`."""
    media = [name.rstrip("/") for name in names if not name.endswith(MANIFEST)]
    if not media or kind_of(media) == "archive":
        return None
    return _with_points(media)


def frames_of_import(importing: ImportRecord) -> frozenset[str] | None:
    """Return what the frames of an import in doubt may be called; None where that is unknown."""
    if importing.frames is not None:
        return frozenset(importing.frames)
    return frames_of_files(name for member in importing.members for name in member.names)


def covers(names: frozenset[str], frames: Sequence[str]) -> bool:
    """Return whether a task with these ``frames`` has the data of these names, or a part of it."""
    return bool(frames) and all(
        frame in names or any(str(folder) in names for folder in PurePosixPath(frame).parents)
        for frame in frames
    )


def _members(archive: LocalFile, tar_mode: Literal["r:*", "r:"]) -> frozenset[str] | None:
    import tarfile
    import zipfile

    try:
        with archive.open() as stream:
            if zipfile.is_zipfile(stream):
                with zipfile.ZipFile(stream) as zipped:
                    return _with_points(zipped.namelist())
            stream.seek(0)
            with tarfile.open(fileobj=stream, mode=tar_mode) as tarred:
                return _with_points(each.name for each in tarred if each.isfile())
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, tarfile.TarError):
        return None


def _with_points(names: Iterable[str]) -> frozenset[str]:
    known = set(names)
    known |= {name.removesuffix(KITTI) + POINTS for name in known if name.endswith(KITTI)}
    return frozenset(known)
