"""From what a caller passes as ``files`` to what is uploaded: checked before anything is sent."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from pool.cvat.multipart import name_on_server
from pool.cvat.records import LocalFile, Upload
from pool.errors import InputError

Source = str | os.PathLike[str] | bytes | BinaryIO
FileLike = str | os.PathLike[str] | tuple[str, Source] | BinaryIO
Files = FileLike | Iterable[FileLike]

VIDEO = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".mpg", ".mpeg", ".m4v", ".wmv"})
ARCHIVE = frozenset({".zip", ".tar", ".gz", ".bz2", ".xz", ".7z", ".rar", ".pdf"})

#: Bytes read at a time when content is digested.
BLOCK = 2**20


def build_upload(
    files: Files | None = None,
    *,
    share: Sequence[str] | None = None,
    urls: Sequence[str] | None = None,
    cloud: tuple[int, Sequence[str]] | None = None,
    params: Mapping[str, Any] | None = None,
) -> Upload:
    """The data of one request, from exactly one of the four sources.

    :raises InputError: none or several sources, a missing or unreadable file, an empty list,
        two files of one name (CVAT answers 500 to that).
    """
    given = [
        name
        for name, value in (("files", files), ("share", share), ("urls", urls), ("cloud", cloud))
        if value is not None
    ]
    if len(given) != 1:
        raise InputError(
            f"give one of files, share, urls and cloud, not {' and '.join(given) or 'none of them'}"
        )
    extra = dict(params or {})
    if share is not None:
        return Upload(share=_names("share", share), extra=extra)
    if urls is not None:
        return Upload(urls=_web_addresses(urls), extra=extra)
    if cloud is not None:
        storage, keys = cloud
        return Upload(cloud=(storage, _names("cloud", keys)), extra=extra)
    local = tuple(_local_file(item) for item in _each(files))
    if not local:
        raise InputError("the list of files is empty")
    _refuse_duplicates([name_on_server(file.name) for file in local])
    return Upload(files=local, extra=extra)


def names_of(upload: Upload) -> tuple[str, ...]:
    """The names that the data will have inside the task, in the caller's order."""
    if upload.files:
        return tuple(name_on_server(file.name) for file in upload.files)
    if upload.cloud is not None:
        return upload.cloud[1]
    return upload.share or upload.urls


def kind_of(upload: Upload) -> str:
    """The sort of data, for what is learned of import times."""
    if not upload.files:
        return "share" if upload.share else "urls" if upload.urls else "cloud"
    suffixes = {PurePosixPath(file.name).suffix.lower() for file in upload.files}
    if suffixes & VIDEO:
        return "video"
    if suffixes & ARCHIVE:
        return "archive"
    return "images"


def digest(upload: Upload, told: Mapping[str, Any], contents: Iterable[bytes] | None = None) -> str:
    """A digest of the data, content included, and of what was told with it: what an
    idempotency key is bound to. ``contents`` are the SHA-256 digests of the files, where they
    are known already."""
    summary = hashlib.sha256(
        json.dumps(
            {
                "told": told,
                "names": names_of(upload),
                "cloud": upload.cloud[0] if upload.cloud else None,
                "extra": upload.extra,
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
    if isinstance(file.source, bytes):
        content.update(file.source)
    elif isinstance(file.source, Path):
        with file.source.open("rb") as stream:
            _feed(content, stream)
    else:
        position = file.source.tell()
        _feed(content, file.source)
        file.source.seek(position)
    return content.digest()


def _feed(content: Any, stream: BinaryIO) -> None:
    while block := stream.read(BLOCK):
        content.update(block)


def _each(files: Files | None) -> list[FileLike]:
    if files is None:
        return []
    if isinstance(files, (str, os.PathLike)) or _is_pair(files) or hasattr(files, "read"):
        return [cast(FileLike, files)]
    if isinstance(files, (bytes, bytearray)):
        raise InputError("bytes need a name: pass (name, bytes)")
    return list(cast(Iterable[FileLike], files))


def _is_pair(item: object) -> bool:
    """Whether this is a name and what is behind it. A tuple of two paths is a list of files."""
    return (
        isinstance(item, tuple)
        and len(item) == 2
        and isinstance(item[0], str)
        and not isinstance(item[1], str)
    )


def _local_file(item: FileLike) -> LocalFile:
    if isinstance(item, tuple):
        if not _is_pair(item):
            raise InputError("a pair of a name and bytes, a path or an open file was expected")
        return _source(item[1], item[0])
    return _source(item, None)


def _source(source: object, name: str | None) -> LocalFile:
    if isinstance(source, (bytes, bytearray, memoryview)):
        content = bytes(source)
        if name is None:
            raise InputError("bytes need a name: pass (name, bytes)")
        if not content:
            raise InputError(f"{name}: is empty")
        return LocalFile(clean_name(name), content, len(content))
    if isinstance(source, (str, os.PathLike)):
        return _path(Path(source), name)
    if hasattr(source, "read"):
        return _stream(cast(BinaryIO, source), name)
    raise InputError(
        f"cannot upload a {type(source).__name__}: pass paths, open binary files, or pairs of a "
        "name and one of these or bytes"
    )


def _path(path: Path, name: str | None) -> LocalFile:
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name the files in it")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: permission denied")
    if status.st_size == 0:
        raise InputError(f"{path}: is empty")
    return LocalFile(clean_name(name or path.name), path, status.st_size)


def _stream(stream: BinaryIO, name: str | None) -> LocalFile:
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
        raise InputError(f"{name}: cannot be rewound; pass (name, file.read())") from error
    if isinstance(stream.read(0), str):
        raise InputError(f"{name}: is open as text; open it with mode 'rb'")
    if size <= 0:
        raise InputError(f"{name}: is empty or at its end")
    return LocalFile(clean_name(name), stream, size, position)


def clean_name(name: str) -> str:
    """A file's name as it goes to CVAT. It may have folders, which CVAT drops, but leads nowhere
    else.

    :raises InputError: it does, or is no name.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if not name.strip() or any(ord(character) < 32 for character in name):
        raise InputError(f"{name!r}: is no file name")
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"{name!r}: a name inside a task cannot be absolute or contain '..'")
    return str(path)


def _names(what: str, names: Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, str):
        raise InputError(f"{what} takes a list of names, not one string")
    if not names:
        raise InputError(f"the list of {what} names is empty")
    _refuse_duplicates(list(names))
    return tuple(names)


def _web_addresses(urls: Sequence[str]) -> tuple[str, ...]:
    for url in _names("urls", urls):
        if not url.startswith(("http://", "https://")):
            raise InputError(f"{url}: only http and https addresses can be imported")
    return tuple(urls)


def _refuse_duplicates(names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InputError(f"{name}: two files of one name cannot be in one task")
        seen.add(name)
