"""The rows of the simulated server. No behaviour: that is in the files named for it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from .buckets import Bucket
from .cache import PictureCache

Json = dict[str, Any]


@dataclass(slots=True, kw_only=True)
class User:
    id: int
    username: str
    password: str = field(repr=False)
    email: str
    is_superuser: bool
    groups: tuple[str, ...]
    date_joined: datetime
    last_login: datetime | None = None
    first_name: str = ""
    last_name: str = ""


@dataclass(slots=True, kw_only=True)
class AccessToken:
    id: int
    value: str = field(repr=False)
    name: str
    user: User
    read_only: bool
    created: datetime
    expires: datetime | None = None
    last_used: datetime | None = None


@dataclass(slots=True, kw_only=True)
class Organization:
    id: int
    slug: str
    name: str
    owner: User
    members: set[int]
    created: datetime


@dataclass(slots=True, kw_only=True)
class CloudStorage:
    id: int
    display_name: str
    resource: str
    bucket: Bucket = field(repr=False)
    owner: User
    organization: Organization | None
    created: datetime
    updated: datetime
    provider_type: str = "AWS_S3_BUCKET"
    credentials_type: str = "ANONYMOUS_ACCESS"
    specific_attributes: str = ""
    description: str = ""
    manifests: list[str] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Label:
    id: int
    name: str
    color: str
    type: str
    attributes: list[Json]
    sublabels: list[Json]
    #: What a skeleton looks like; ``None`` for other labels.
    svg: str | None = None
    task_id: int | None = None
    project_id: int | None = None


@dataclass(slots=True, kw_only=True)
class Project:
    id: int
    name: str
    owner: User
    assignee: User | None
    bug_tracker: str
    organization: Organization | None
    created: datetime
    updated: datetime
    assignee_updated: datetime | None = None
    label_ids: list[int] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Frame:
    name: str
    width: int
    height: int
    #: Where its bytes are; for a video, those of all its frames.
    path: Path
    #: Where they are in the task's cloud storage, if they come from there.
    key: str | None = None
    #: Pictures that are shown beside it.
    related: tuple[Path, ...] = ()


@dataclass(slots=True, kw_only=True)
class Layout:
    """Which frames of a task are its validation set, and where they stand in for themselves."""

    mode: str
    frames: list[int]
    per_job: int | None = None
    #: Frames in jobs that show one of the pool, and which.
    honeypots: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Data:
    id: int
    folder: Path
    #: Names as they are below ``raw``, in the order of their arrival.
    client_files: dict[str, None] = field(default_factory=dict)
    server_files: list[str] = field(default_factory=list)
    remote_files: list[str] = field(default_factory=list)
    chunk_size: int | None = None
    image_quality: int = 0
    start_frame: int = 0
    stop_frame: int = 0
    frame_filter: str = ""
    frame_step: int = 1
    sorting_method: str = "lexicographical"
    storage: str = "local"
    cloud_storage: CloudStorage | None = None
    size: int = 0
    frames: list[Frame] = field(default_factory=list)
    deleted_frames: list[int] = field(default_factory=list)
    chunks_updated: datetime | None = None
    compressed_chunk_type: str = "imageset"
    original_chunk_type: str = "imageset"
    validation: Layout | None = None
    cache: PictureCache = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.cache = PictureCache(self.folder / "cache")

    @property
    def is_video(self) -> bool:
        return self.original_chunk_type == "video"

    @property
    def is_audio(self) -> bool:
        return self.original_chunk_type == "audio_mp3"

    @property
    def raw(self) -> Path:
        return self.folder / "raw"


@dataclass(slots=True, kw_only=True)
class Task:
    id: int
    name: str
    owner: User
    assignee: User | None
    project: Project | None
    organization: Organization | None
    bug_tracker: str
    subset: str
    segment_size: int
    overlap: int | None
    consensus_replicas: int
    created: datetime
    updated: datetime
    assignee_updated: datetime | None = None
    label_ids: list[int] = field(default_factory=list)
    data: Data | None = None
    dimension: str = ""
    mode: str = ""
    media_type: str = ""
    job_ids: list[int] = field(default_factory=list)
    #: The lock of the database's row. An import holds it until it commits, so data that is sent
    #: meanwhile waits, and then finds the task as the import left it.
    lock: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)

    @property
    def is_initialized(self) -> bool:
        return bool(self.media_type)


@dataclass(slots=True, kw_only=True)
class Job:
    id: int
    task: Task
    start_frame: int
    stop_frame: int
    created: datetime
    updated: datetime
    type: str = "annotation"
    #: As many as from start to stop, unless only some of them belong to the job.
    frame_count: int
    parent_job_id: int | None = None
    replicas_count: int = 0
    assignee: User | None = None
    assignee_updated: datetime | None = None
    stage: str = "annotation"
    state: str = "new"
    #: By kind: ``tags``, ``shapes``, ``tracks``.
    annotations: dict[str, list[Json]] = field(default_factory=dict)

    @property
    def status(self) -> str:
        if self.stage == "acceptance":
            return "completed" if self.state == "completed" else "validation"
        return self.stage


@dataclass(slots=True, kw_only=True)
class Request:
    """A request of CVAT's: work in the background, on a task or a job of it."""

    id: str
    task_id: int
    owner: User
    project_id: int | None
    organization: Organization | None
    created: datetime
    base_url: str
    status: str = "queued"
    message: str = ""
    started: datetime | None = None
    finished: datetime | None = None
    expires: datetime | None = None


@dataclass(slots=True, kw_only=True)
class ImportRequest(Request):
    """The import of a task's data."""

    params: Any
    #: Whether the import finds its task not committed yet.
    is_early: bool = False
    #: Whether a caller has seen it failed.
    looked_at: bool = False


@dataclass(slots=True, kw_only=True)
class ExportRequest(Request):
    """The export of a task, or of one of its jobs."""

    job_id: int | None
    format: str
    with_images: bool
    #: The file that came of it.
    result: Path | None = None


@dataclass(slots=True, kw_only=True)
class Webhook:
    id: int
    target_url: str
    description: str
    type: str
    content_type: str
    secret: str = field(repr=False)
    is_active: bool
    enable_ssl: bool
    owner: User
    project_id: int | None
    organization: Organization | None
    events: tuple[str, ...]
    created: datetime
    updated: datetime
    deliveries: list[int] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Delivery:
    id: int
    webhook_id: int
    event: str
    status_code: int | None
    redelivery: bool
    request_duration: int
    created: datetime
    updated: datetime
    changed_fields: str
    request: Json
    response: str


@dataclass(slots=True)
class Upload:
    """A file on its way: the bytes so far are in ``path``."""

    data: Data
    user: User
    name: str
    size: int
    path: Path
    offset: int = 0


def request_id(task_id: int) -> str:
    return f"action=create&target=task&target_id={task_id}"


def export_id(target: str, target_id: int, user_id: int, wanted: str) -> str:
    """The id of the export of a task or a job (``target``) in a format."""
    form = wanted.replace(" ", "_").replace(".", "~")
    return (
        f"action=export&target={target}&target_id={target_id}&user_id={user_id}"
        f"&format={form}&subresource=dataset"
    )
