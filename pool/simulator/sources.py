"""Where the files of an import come from, and what is in them: all that reads them."""

from __future__ import annotations

import fnmatch
import random
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .data_params import DataParams
from .downloads import download
from .manifests import Entry, described, read_manifest
from .media import (
    DATA_ROOT,
    KINDS,
    SHARE_ROOT,
    ImportFailed,
    check_combination,
    chunk_size_for,
    first_image_size,
    image_sizes,
    in_order,
    is_cloud,
    kind_of,
    unpack,
    validation_error,
)
from .records import CloudStorage, Data, Frame
from .scenes import Related, find_scenes, frame_name
from .settings import SimulatorSettings
from .video import read_audio, read_video

MANIFEST = "manifest.jsonl"
MOST_FETCHED_AT_ONCE = 8
READ_MORE = "Read more: https://docs.cvat.ai/docs/manual/advanced/dataset_manifest/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Media:
    """What an import found: the frames that the task will have, and how it shows them."""

    mode: str
    dimension: str = "2d"
    media_type: str = "image"
    size: int
    frames: list[Frame]
    chunk_size: int
    storage: str
    #: Frames that had to be read to know this: more than ``size`` if a range was asked for.
    read: int


@dataclass(frozen=True, slots=True)
class Files:
    """The input files of an import: a folder and names below it, by their kinds."""

    folder: Path
    #: The folder as the real server would have it in its messages.
    shown_as: str
    storage: str
    found: dict[str, list[str]]
    #: The list of the images that was sent with them, or lay in their archive.
    manifest: Path | None
    #: Whether the real server reads the images out of a zip that it holds open.
    zipped: bool = False

    def path(self, name: str) -> Path:
        return self.folder / name

    def shown(self, name: str) -> str:
        return f"{self.shown_as}/{name}"


def read_media(
    data: Data,
    params: DataParams,
    share: Path,
    settings: SimulatorSettings,
    rng: random.Random,
) -> Media:
    """Find the files and read what has to be known of them. Blocks: run it in a thread.

    Raises :class:`ImportFailed` with CVAT's words for it.
    """
    files = _gather(data, params, share, settings)
    mode = check_combination(files.found)
    if params.job_file_mapping is not None and mode != "annotation":
        raise validation_error(
            "job_file_mapping can't be used with sequence-based data like videos"
        )
    if params.copy_data:
        _copy(_without_parents(data.server_files), share, data.raw, params.server_files_exclude)
    if files.found["video"]:
        return _read_video(files, files.found["video"][0], data, params)
    if files.found["audio"]:
        return _read_audio(files, files.found["audio"][0])
    return _read_images(files, data, params, rng)


def _gather(data: Data, params: DataParams, share: Path, settings: SimulatorSettings) -> Files:
    """The files by their kinds, as their names tell them; nothing was opened yet."""
    own = _own_folder(data)
    names = list(data.client_files)
    if data.remote_files:
        names = download(data.remote_files, data.raw, own, settings)
    folder, shown_as, storage, server_files = data.raw, own, "local", list(data.server_files)
    if data.cloud_storage is not None:
        folder, shown_as = data.folder / "fetched", data.cloud_storage.resource
        storage = "cloud_storage"
        server_files = _cloud_keys(data.cloud_storage, server_files, params)
        _fetch(data.cloud_storage, server_files, folder)
    elif server_files and not params.copy_data:
        folder, shown_as, storage = share, SHARE_ROOT, "share"
    manifests = [name for name in names + server_files if name.endswith(".jsonl")]
    if len(manifests) > 1:
        raise validation_error("Only one manifest file can be attached to data")
    manifest = None
    if manifests and storage != "cloud_storage":
        manifest = (share if params.copy_data else folder) / manifests[0]
        read_manifest(manifest)
    found: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for name in names:
        found.setdefault(kind_of(name), []).append(name)
    for name in _without_parents(server_files):
        is_folder = storage != "cloud_storage" and (share / name).is_dir()
        found.setdefault("directory" if is_folder else kind_of(name), []).append(name)
    found = {kind: found[kind] for kind in KINDS}
    return Files(folder, shown_as, storage, found, manifest)


def _own_folder(data: Data) -> str:
    return f"{DATA_ROOT}/{data.id}/raw"


def _without_parents(names: Sequence[str]) -> list[str]:
    """Drop a folder that is given beside files below it: the files are what is meant."""
    given = [name.rstrip("/") for name in names]
    parents = {str(parent) for name in given for parent in PurePosixPath(name).parents}
    return [name for name in given if name not in parents]


def _without(names: Iterable[str], exclude: Sequence[str]) -> list[str]:
    """Leave out names, and what is below the folders that end in a slash."""
    return [
        name
        for name in names
        if name not in exclude
        and not any(f"{parent}/" in exclude for parent in PurePosixPath(name).parents)
    ]


def _copy(names: Sequence[str], share: Path, target: Path, exclude: Sequence[str]) -> None:
    files = [file for name in names for file in _below(share, name)]
    for name in _without(files, exclude):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(share / name, target / name)
        except FileNotFoundError as error:
            missing = f"{SHARE_ROOT}/{name}"
            raise ImportFailed(
                f"FileNotFoundError: [Errno {error.errno}] {error.strerror}: {missing!r}\n"
            ) from None


def _below(folder: Path, name: str) -> list[str]:
    """All files in a folder, by their names below its root; a file alone is itself."""
    if not (folder / name).is_dir():
        return [name]
    files = (path for path in (folder / name).rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in files)


def _cloud_keys(storage: CloudStorage, given: Sequence[str], params: DataParams) -> list[str]:
    keys: list[str] = []
    for name in given:
        keys += storage.bucket.keys(name) if name.endswith("/") else [name]
    keys = _without(keys, params.server_files_exclude)
    if params.filename_pattern:
        keys += fnmatch.filter(storage.bucket.keys(), params.filename_pattern)
    found = dict.fromkeys(keys)
    for name in (name for entry in params.job_file_mapping or () for name in entry):
        if name not in found:
            raise validation_error(f"Job mapping file {name} is not specified in input files")
    return list(found)


def _fetch(storage: CloudStorage, keys: Iterable[str], target: Path) -> None:
    """Download objects, to see what is in them. Frames are read from the bucket again."""

    def fetch(key: str) -> None:
        path = target / key
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.write_bytes(storage.bucket.read(key))
        except OSError:
            where = f"on the cloud storage '{storage.display_name}'"
            raise ImportFailed(
                f"rest_framework.exceptions.NotFound: The file '{key}' not found {where}\n"
            ) from None

    with ThreadPoolExecutor(MOST_FETCHED_AT_ONCE) as threads:
        for _ in threads.map(fetch, keys):
            pass


def _read_images(files: Files, data: Data, params: DataParams, rng: random.Random) -> Media:
    if files.found["pdf"]:
        raise ImportFailed("NotImplementedError: the simulator reads no pdf files\n")
    names, files = _images(files, data)
    if files.manifest and params.sorting_method == "random":
        raise validation_error("It isn't supported to upload manifest file and use random sorting")
    if files.storage == "share":
        names = _without(names, params.server_files_exclude)
    if not names:
        raise ImportFailed("Exception: No image found\n")
    scenes = find_scenes(names, files.shown)
    has_clouds = any(map(is_cloud, scenes))
    ordered = _ordered([name for name in names if name in scenes], files, params, rng)
    if data.start_frame > (params.stop_frame or len(ordered) - 1):
        raise ImportFailed("AssertionError\n")
    chunk_size = data.chunk_size
    if chunk_size is None:
        first = ordered[data.start_frame]
        in_memory = files.zipped and not has_clouds
        size = first_image_size(first, files.path(first), files.shown(first), in_memory)
        chunk_size = chunk_size_for(*size)
    if not has_clouds:
        _check_quality(data)
    frames = _frames(ordered, scenes, files, params)
    if not frames:
        raise ImportFailed("ValueError: No media data found\n")
    return Media(
        mode="annotation",
        dimension="3d" if has_clouds else "2d",
        media_type="point_cloud" if has_clouds else "image",
        size=len(frames),
        frames=frames,
        chunk_size=chunk_size,
        storage=files.storage,
        read=len(ordered),
    )


def _images(files: Files, data: Data) -> tuple[list[str], Files]:
    """The images: named ones, those in named folders, those in an archive, and where they are."""
    names = [PurePosixPath(name).as_posix() for name in files.found["image"]]
    for folder in files.found["directory"]:
        names += [name for name in _below(files.folder, folder) if kind_of(name) == "image"]
    for archive in files.found["zip"] + files.found["archive"]:
        names = unpack(files.path(archive), data.raw, files.shown(archive))
        manifest = files.manifest or data.raw / MANIFEST
        return names, Files(
            data.raw,
            _own_folder(data),
            "local",
            files.found,
            manifest if manifest.exists() else None,
            zipped=bool(files.found["zip"]),
        )
    return names, files


def _ordered(names: list[str], files: Files, params: DataParams, rng: random.Random) -> list[str]:
    if params.job_file_mapping is not None:
        wanted = [
            PurePosixPath(name).as_posix() for entry in params.job_file_mapping for name in entry
        ]
    elif params.sorting_method == "predefined" and (files.manifest or files.zipped):
        if files.manifest is None:
            raise ImportFailed(
                f"FileNotFoundError: Can't find upload manifest file '{MANIFEST}' in the uploaded "
                "files. When the 'predefined' sorting method is used, this file is required in the "
                f"input files. {READ_MORE}\n"
            )
        wanted = [entry.name for entry in read_manifest(files.manifest)]
        mismatching = sorted(set(names) ^ set(wanted))
        if mismatching:
            raise _mismatch(mismatching, names)
    else:
        return in_order(names, params.sorting_method, rng)
    present = set(names)
    for name in wanted:
        if name not in present:
            short = name.rsplit("/", 1)[-1]
            raise validation_error(f"Can't find file '{short}' in the input files")
    return wanted


def _mismatch(mismatching: Sequence[str], uploaded: Sequence[str]) -> ImportFailed:
    shown = [f"{name} ({'upload' if name in uploaded else 'manifest'})" for name in mismatching[:5]]
    rest = len(mismatching) - 5
    return ImportFailed(
        "FileNotFoundError: Uploaded files do no match the upload manifest file contents. "
        "Please check the upload manifest file contents and the list of uploaded files. "
        f"Mismatching files: {', '.join(shown)}{f' (and {rest} more). ' if rest > 0 else ''}. "
        f"{READ_MORE}\n"
    )


def _frames(
    ordered: Sequence[str], scenes: Related, files: Files, params: DataParams
) -> list[Frame]:
    """The frames that are asked for, each checked against the list that says how large it is."""
    if files.manifest is not None:
        entries = read_manifest(files.manifest)
    else:
        sizes = image_sizes((name, files.path(name)) for name in ordered)
        entries = [Entry(described(name), *size) for name, size in zip(ordered, sizes, strict=True)]
    frames = []
    for index in _chosen(len(ordered), params):
        if index >= len(entries):
            raise ImportFailed(
                f"IndexError: Invalid index number: {index}, "
                f"Maximum allowed index is {len(entries) - 1}\n"
            )
        name, entry = ordered[index], entries[index]
        if name != entry.name and not name.endswith(f"/{entry.name}"):
            raise validation_error("Incorrect file mapping to manifest content")
        frames.append(
            Frame(
                name=frame_name(name),
                width=entry.width,
                height=entry.height,
                path=files.path(name),
                key=name if files.storage == "cloud_storage" else None,
                related=tuple(map(files.path, scenes[name])),
            )
        )
    return frames


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
        frames=[Frame(name=name, width=track.width, height=track.height, path=files.path(name))],
        chunk_size=chunk_size,
        storage=files.storage,
        read=size,
    )


def _read_audio(files: Files, name: str) -> Media:
    """A sound is one chunk, whose frames are its milliseconds."""
    length = read_audio(files.path(name), files.shown(name))
    return Media(
        mode="interpolation",
        dimension="1d",
        media_type="audio",
        size=length,
        frames=[Frame(name=name, width=0, height=0, path=files.path(name))],
        chunk_size=length,
        storage=files.storage,
        read=1,
    )


def _chosen(count: int, params: DataParams) -> range:
    stop = count if params.stop_frame is None else min(params.stop_frame + 1, count)
    return range(params.start_frame or 0, stop, params.frame_step)


def _check_quality(data: Data) -> None:
    if not data.image_quality:
        raise validation_error(
            "The 'image_quality' parameter is required for image- and video-based tasks"
        )
