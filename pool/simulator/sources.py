"""Where the files of an import come from, and what is in them: all that reads them."""

from __future__ import annotations

import fnmatch
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import urllib3

from .about import inside
from .data_params import DataParams
from .media import (
    DATA_ROOT,
    KINDS,
    SHARE_ROOT,
    ImportFailed,
    check_combination,
    chunk_size_for,
    extract,
    first_image_size,
    image_sizes,
    in_order,
    kind_of,
    validation_error,
)
from .records import Data, Frame
from .video import read_video


@dataclass(frozen=True, slots=True, kw_only=True)
class Media:
    """What an import found: the frames that the task will have, and how it shows them."""

    mode: str
    size: int
    frames: list[Frame]
    chunk_size: int
    storage: str
    #: Frames that had to be read to know this: more than ``size`` if a range was asked for.
    read: int


@dataclass(slots=True)
class Files:
    """The input files of an import: a folder and names below it."""

    folder: Path
    shown_as: str
    storage: str
    names: list[str] = field(default_factory=list)

    def path(self, name: str) -> Path:
        return self.folder / name

    def shown(self, name: str) -> str:
        """The path as the real server would have it in its messages."""
        return f"{self.shown_as}/{name}"


def read_media(
    data: Data, params: DataParams, share: Path, timeout: float, rng: random.Random
) -> Media:
    """Find the files and read what has to be known of them. Blocks: run it in a thread.

    Raises :class:`ImportFailed` with CVAT's words for it.
    """
    files = _gather(data, params, share, timeout)
    names = [name for name in files.names if not name.endswith(".jsonl")]
    counted: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for name in names:
        kind = "directory" if files.path(name).is_dir() else kind_of(name)
        if kind in counted:
            counted[kind].append(name)
    mode = check_combination(counted)
    if params.job_file_mapping is not None and mode != "annotation":
        raise validation_error(
            "job_file_mapping can't be used with sequence-based data like videos"
        )
    if data.storage == "share" and not counted["directory"]:
        _check_present(files, names)
    if counted["video"]:
        return _read_video(files, counted["video"][0], data, params)
    return _read_images(files, counted, data, params, rng)


def _gather(data: Data, params: DataParams, share: Path, timeout: float) -> Files:
    files = Files(data.raw, f"{DATA_ROOT}/{data.id}/raw", "local")
    if data.remote_files:
        files.names = _download(data.remote_files, data.raw, timeout)
    elif data.cloud_storage is not None:
        keys = _cloud_keys(data.cloud_storage.folder, data.server_files, params)
        files = Files(data.cloud_storage.folder, data.cloud_storage.resource, "cloud_storage")
        files.names = keys
    elif data.server_files:
        names = _without_parents(data.server_files)
        if params.copy_data:
            files.names = _copy(names, share, data.raw, params.server_files_exclude)
        else:
            files = Files(share, SHARE_ROOT, "share")
            files.names = [name for name in names if name not in params.server_files_exclude]
    else:
        files.names = list(data.client_files)
    return files


def _without_parents(names: Sequence[str]) -> list[str]:
    """Drop a folder that is given beside files below it: the files are what is meant."""
    given = [name.strip("/") for name in names]
    return [
        name for name in given if not any(other.startswith(f"{name}/") for other in given)
    ]  # fmt: skip


def _missing(shown: str) -> ImportFailed:
    return ImportFailed(f"FileNotFoundError: [Errno 2] No such file or directory: '{shown}'\n")


def _check_present(files: Files, names: Sequence[str]) -> None:
    for name in names:
        path = inside(files.folder, name)
        if path is None:
            raise ImportFailed(f"ValueError: Path {name!r} is not allowed\n")
        if not path.exists():
            raise _missing(files.shown(name))


def _copy(names: Sequence[str], share: Path, target: Path, exclude: Sequence[str]) -> list[str]:
    for name in names:
        source = inside(share, name)
        if source is None or not source.exists():
            raise _missing(f"{SHARE_ROOT}/{name}")
        if name in exclude:
            continue
        if source.is_dir():
            shutil.copytree(source, target / name, dirs_exist_ok=True)
        else:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target / name)
    return [name for name in names if name not in exclude]


def _cloud_keys(folder: Path, given: Sequence[str], params: DataParams) -> list[str]:
    present = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )
    keys: list[str] = []
    for name in given:
        if name.endswith("/"):
            keys += [key for key in present if key.startswith(name)]
        elif name in present:
            keys.append(name)
        else:
            raise validation_error(f"The file '{name}' not found on the cloud storage")
    if params.filename_pattern:
        keys += fnmatch.filter(present, params.filename_pattern)
    keys = [key for key in dict.fromkeys(keys) if key not in params.server_files_exclude]
    for name in (name for entry in params.job_file_mapping or () for name in entry):
        if name not in keys:
            raise validation_error(f"Job mapping file {name} is not specified in input files")
    return keys


def _download(urls: Sequence[str], target: Path, timeout: float) -> list[str]:
    """Fetch remote files. A server that does not answer fails the import, as in CVAT."""
    names: list[str] = []
    with urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(total=timeout)) as pool:
        for url in urls:
            name = unquote(urlsplit(url).path).rsplit("/", 1)[-1]
            if name in names:
                raise validation_error(f"filename collision: {name}")
            try:
                response = pool.request("GET", url, preload_content=False)
            except urllib3.exceptions.HTTPError as error:
                raise validation_error(_unreachable(url, error)) from None
            try:
                if response.status != 200:
                    raise validation_error(
                        f"Failed to download {url}; HTTP error {response.status}"
                    )
                with (target / name).open("wb") as file:
                    shutil.copyfileobj(response, file)
            finally:
                response.release_conn()
            names.append(name)
    return names


def _unreachable(url: str, error: urllib3.exceptions.HTTPError) -> str:
    """What the requests library would have said, which CVAT downloads with."""
    if isinstance(error, urllib3.exceptions.NewConnectionError):
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        kind = "HTTPSConnection" if parts.scheme == "https" else "HTTPConnection"
        reason = str(error).partition(": ")[2]
        where = f"(host='{parts.hostname}', port={port})"
        return (
            f"Failed to download {url}: ConnectionError: {kind}Pool{where}: "
            f"Max retries exceeded with url: {parts.path or '/'} (Caused by "
            f'NewConnectionError("{kind}{where}: {reason}"))'
        )
    return f"Failed to download {url}: {type(error).__name__}: {error}"


def _expand(files: Files, counted: dict[str, list[str]]) -> list[str]:
    """The images: named ones, those in named folders, those in an archive (now unpacked)."""
    names = list(counted["image"])
    for folder in counted["directory"]:
        names += [
            path.relative_to(files.folder).as_posix()
            for path in sorted(files.path(folder).rglob("*"))
            if path.is_file() and kind_of(path.name) == "image"
        ]
    return list(dict.fromkeys(names))


def _read_images(
    files: Files,
    counted: dict[str, list[str]],
    data: Data,
    params: DataParams,
    rng: random.Random,
) -> Media:
    for kind in ("pdf", "audio"):
        if counted[kind]:
            raise ImportFailed(f"NotImplementedError: the simulator reads no {kind} files\n")
    names = _expand(files, counted)
    for archive in counted["zip"] + counted["archive"]:
        names += extract(files.path(archive), data.raw)
        files = Files(data.raw, f"{DATA_ROOT}/{data.id}/raw", "local")
    if not names:
        raise ImportFailed("ValueError: No media data found\n")
    if params.job_file_mapping is not None:
        ordered = [name for entry in params.job_file_mapping for name in entry]
        for name in ordered:
            if name not in names:
                short = name.rsplit("/", 1)[-1]
                raise validation_error(f"Can't find file '{short}' in the input files")
    else:
        ordered = in_order(names, params.sorting_method, rng)
    if data.start_frame > (params.stop_frame or len(ordered) - 1):
        raise ImportFailed("AssertionError\n")
    chunk_size = data.chunk_size
    if chunk_size is None:
        first = ordered[data.start_frame]
        chunk_size = chunk_size_for(*first_image_size(files.path(first), files.shown(first)))
    _check_quality(data)
    sizes = image_sizes([(name, files.path(name)) for name in ordered])
    frames = [
        Frame(
            name=ordered[index],
            width=sizes[index][0],
            height=sizes[index][1],
            path=files.path(ordered[index]),
        )
        for index in _chosen(len(ordered), params)
    ]
    if not frames:
        raise ImportFailed("ValueError: No media data found\n")
    return Media(
        mode="annotation",
        size=len(frames),
        frames=frames,
        chunk_size=chunk_size,
        storage=files.storage,
        read=len(ordered),
    )


def _read_video(files: Files, name: str, data: Data, params: DataParams) -> Media:
    track = read_video(files.path(name), files.shown(name))
    _check_quality(data)
    size = len(_chosen(track.frames, params))
    if not size:
        raise ImportFailed("ValueError: No media data found\n")
    chunk_size = data.chunk_size
    if chunk_size is None:
        chunk_size = chunk_size_for(track.width, track.height) if params.use_zip_chunks else 36
    return Media(
        mode="interpolation",
        size=size,
        frames=[Frame(name=name, width=track.width, height=track.height, path=None)],
        chunk_size=chunk_size,
        storage=files.storage,
        read=size,
    )


def _chosen(count: int, params: DataParams) -> range:
    stop = count if params.stop_frame is None else min(params.stop_frame + 1, count)
    return range(params.start_frame or 0, stop, params.frame_step)


def _check_quality(data: Data) -> None:
    if not data.image_quality:
        raise validation_error(
            "The 'image_quality' parameter is required for image- and video-based tasks"
        )
