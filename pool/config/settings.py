"""The settings, frozen and typed: the one list of the keys of ``config.toml``, of their types,
bounds and defaults.

Durations are seconds, sizes are bytes. The defaults here are the product's; the ``config.toml`` in
the repository documents every key, which a test checks.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import ItemsView, Iterator, Mapping, ValuesView
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, PlainValidator, model_validator
from pydantic.dataclasses import dataclass as table

from pool.config.data_params import DEFAULTS, DataParams, read_params
from pool.config.fields import (
    BUCKETS,
    NOT_BLANK,
    ONE_LINE,
    ONE_OF,
    Duration,
    DurationOrZero,
    Flag,
    Id,
    Line,
    ServerUrl,
    SinkUrl,
    Size,
    SpoolPlace,
    Stamp,
    StoreUrl,
    User,
    Variable,
    WatchedFile,
    Whole,
    described,
    expected,
    is_place,
    refused,
)
from pool.config.urls import shown_store_url
from pool.errors import ConfigError, UnknownTemplate
from pool.model import Assignee, EventKind, Role, Scope

#: Users among whom the jobs of one template are divided. Each is counted by a call of its own.
MOST_ASSIGNEES: Final = 50

_STRICT: Final = ConfigDict(
    extra="forbid", hide_input_in_errors=True, validate_by_name=True, validate_by_alias=True
)


@table(frozen=True, kw_only=True, config=_STRICT)
class CvatSettings:
    """How the server is reached. Credentials never stand here, only where they are found."""

    url: ServerUrl = "http://localhost:8080"
    organization: Annotated[
        str,
        Field(pattern="^[A-Za-z0-9_-]{0,16}$"),
        described(
            "an organization's slug, at most 16 letters, digits, - and _ (its short name, as in "
            'CVAT\'s menu; "" is the personal workspace)'
        ),
    ] = ""
    timeout: Duration = 30.0
    verify_tls: Flag = True
    access_token_file: WatchedFile | None = None
    profile: Annotated[Line, NOT_BLANK] | None = None


@table(frozen=True, kw_only=True, config=_STRICT)
class StoreSettings:
    """Where the rows are, and how long those of finished requests, leases and tasks are kept.

    ``spool`` is where the data of requests waits while the server is down, at most
    ``spool_limit`` bytes of it: a folder, or a bucket that all machines reach; None is a folder on
    this machine (:attr:`spool_folder`).
    """

    url: StoreUrl = field(default="sqlite:///pool.db", repr=False)
    keep_finished: Duration = 30 * 86400.0
    spool: SpoolPlace | None = None
    spool_limit: Size = 20 * 2**30

    @property
    def spool_folder(self) -> Path:
        """The folder of the spool, or of what is read from the bucket: by default the store's file
        with ``.spool`` after its name; where the store is no file, ``cvat-task-pool/spool`` in the
        user's folder for state, ``$XDG_STATE_HOME`` or ``~/.local/state``.

        :raises ConfigError: the user has none.
        """
        if isinstance(self.spool, Path):
            return self.spool
        if self.path is not None:
            return Path(f"{self.path}.spool")
        state = os.environ.get("XDG_STATE_HOME", "")
        try:
            # A relative one is to be ignored (XDG Base Directory Specification).
            home = Path(state) if state.startswith("/") else Path.home() / ".local" / "state"
        except RuntimeError:
            raise ConfigError(
                "store.spool has to name a folder, since this user has no home"
            ) from None
        return home / "cvat-task-pool" / "spool"

    @property
    def spool_address(self) -> str | None:
        """The address of the bucket that all machines reach; None where the spool is a folder."""
        return self.spool if isinstance(self.spool, str) else None

    @property
    def waits_with_machine(self) -> bool:
        """Whether the store can be reached from several machines, and its spool may be a folder on
        one of them."""
        return self.path is None and self.spool_address is None

    @property
    def path(self) -> Path | None:
        """The store's file; None where a server keeps it."""
        scheme, _, path = self.url.partition(":///")
        return Path(path) if scheme == "sqlite" else None

    @property
    def place(self) -> str:
        """Where the store is, as it may be shown."""
        return shown_store_url(self.url)


@table(frozen=True, kw_only=True, config=_STRICT)
class DaemonSettings:
    """The daemon: where it listens, how often its services run, and how much it takes in.

    A body is taken in as long as its pieces are ``receive_timeout`` seconds apart at most.
    """

    host: Annotated[
        str,
        Field(pattern="^[0-9A-Za-z.:_-]+$"),
        described('a host name or an IP address, such as "127.0.0.1"'),
    ] = "127.0.0.1"
    port: Annotated[int, Whole(0, 65535)] = 8765
    tick: Duration = 5.0
    stop_timeout: Duration = 10.0
    verify_every: Duration = 600.0
    max_queued: Annotated[int, Whole(1)] = 1000
    max_body: Size = 10 * 2**30
    max_files: Annotated[int, Whole(1)] = 10_000
    receive_timeout: Duration = 30.0


def _some_kinds(kinds: tuple[EventKind, ...]) -> tuple[EventKind, ...]:
    if not kinds:
        raise refused("expected at least one kind of event")
    return kinds


@table(frozen=True, kw_only=True, config=_STRICT)
class SecretSettings:
    """Where a secret is found: ``secret_env`` is the name of the environment variable that holds it
    (in the file, ``secret = "${NAME}"``), ``secret_file`` the file."""

    secret_env: Annotated[Variable | None, Field(validation_alias="secret")] = None
    secret_file: WatchedFile | None = None

    @model_validator(mode="after")
    def _one_secret(self) -> Self:
        if self.secret_env is not None and self.secret_file is not None:
            raise refused("give only one of secret_file and secret")
        return self


@table(frozen=True, kw_only=True, config=_STRICT)
class SinkSettings(SecretSettings):
    """An address that events are posted to, and the secret that signs them; without one nothing is
    signed. No ``templates`` means all of them."""

    url: SinkUrl
    templates: tuple[Line, ...] = ()
    kinds: Annotated[tuple[Annotated[EventKind, ONE_OF], ...], AfterValidator(_some_kinds)] = (
        "request.ready",
        "request.failed",
    )


@table(frozen=True, kw_only=True, config=_STRICT)
class TokenSettings(SecretSettings):
    """What the callers with a token may do, for which templates, and where the token is found:
    several, separated by commas, are valid side by side. No ``templates`` means all of them."""

    role: Annotated[Role, ONE_OF]
    templates: tuple[Line, ...] = ()


@table(frozen=True, kw_only=True, config=_STRICT)
class EventSettings:
    """Where events are posted to."""

    sinks: tuple[SinkSettings, ...] = ()


def _replicas(value: int) -> int:
    if value == 1:
        raise expected("0 (no consensus) or at least 2")
    return value


@table(frozen=True, kw_only=True, config=_STRICT)
class TaskSettings:
    """Fields of the task itself (``POST /api/tasks``)."""

    subset: Annotated[str, Field(max_length=64), ONE_LINE] = ""
    bug_tracker: Annotated[str, Field(max_length=2000), ONE_LINE] = ""
    segment_size: Annotated[int, Whole(0)] = 0
    overlap: Annotated[int, Whole(0)] | None = None
    consensus_replicas: Annotated[int, Whole(0), AfterValidator(_replicas)] = 0
    assignee: Id | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.overlap is not None and self.overlap >= self.segment_size > 0:
            raise refused(
                f"overlap, {self.overlap}, must be less than segment_size, {self.segment_size}"
            )
        return self


def _no_user_twice(users: tuple[Assignee, ...]) -> tuple[Assignee, ...]:
    if len(set(users)) < len(users):
        raise refused("a user is named twice")
    return users


@table(frozen=True, kw_only=True, config=_STRICT)
class AssignmentSettings:
    """Who gets the jobs of requests that name no assignee, job by job.

    ``assign`` is how: "round-robin", each in its turn, which is meant where nothing is said; or
    "least-loaded", the one with the fewest jobs that are not completed.
    """

    assignees: Annotated[
        tuple[User, ...], Field(max_length=MOST_ASSIGNEES), AfterValidator(_no_user_twice)
    ] = ()
    assign: Annotated[Literal["round-robin", "least-loaded"], ONE_OF] | None = None

    @model_validator(mode="after")
    def _among_some(self) -> Self:
        if self.assign is not None and not self.assignees:
            raise refused("assign says how jobs are divided among assignees = [...], and none are")
        return self


@table(frozen=True, kw_only=True, config=_STRICT)
class PoolSettings:
    """How the pool of a template is sized and handed out.

    ``on_change`` says what becomes of the warm tasks when the fingerprint changes: "recreate"
    retires them at once; "replenish" hands them out until fresh ones have taken their place.
    """

    min_size: Annotated[int, Whole(0)] = 5
    max_size: Annotated[int, Whole(1)] = 200
    hit_rate: Annotated[
        float,
        Field(gt=0, lt=1, strict=True),
        described("a number between 0 and 1, both excluded"),
    ] = 0.99
    max_age: Duration = 24 * 3600.0
    on_empty: Annotated[Literal["wait", "create", "fail"], ONE_OF] = "create"
    max_wait: DurationOrZero = 2.0
    create_concurrency: Annotated[int, Whole(1, 32)] = 2
    lease_ttl: Duration = 3600.0
    on_change: Annotated[Literal["recreate", "replenish"], ONE_OF] = "recreate"

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min_size > self.max_size:
            raise refused(f"min_size, {self.min_size}, is above max_size, {self.max_size}")
        return self


@table(frozen=True, kw_only=True, config=_STRICT)
class ImportSettings:
    """How data goes in. Data up to ``single_request_limit`` goes in one request, more in several,
    ``upload_concurrency`` of them at a time.

    With ``grouping = "auto"`` at most ``concurrency`` imports of requests that may share a task are
    under way at the same time, and one more on its way. What comes meanwhile gathers, and goes into
    the next one together: at most ``group_requests`` requests with ``group_files`` files of
    ``group_bytes`` in all. Where nothing is under way a request goes at once, unless
    ``group_delay`` has it wait for others. With ``concurrency = "auto"`` it is adapted to how many
    workers the server has: see :mod:`pool.requests.concurrency`.

    ``priority`` is that of requests whose caller names none.
    """

    timeout: Duration = 600.0
    grouping: Annotated[Literal["auto", "off"], ONE_OF] = "off"
    concurrency: Annotated[
        Annotated[int, Whole(1, 32)] | Literal["auto"],
        described('"auto" or a whole number from 1 to 32'),
    ] = 2
    group_requests: Annotated[int, Whole(1, 1000)] = 200
    group_bytes: Size = 64 * 2**20
    group_files: Annotated[int, Whole(1, 5000)] = 1000
    group_delay: DurationOrZero = 0.0
    priority: Annotated[Literal["interactive", "normal", "bulk"], ONE_OF] = "normal"
    single_request_limit: Size = 64 * 2**20
    upload_concurrency: Annotated[int, Whole(1, 16)] = 4


#: Slots of one task at the most: deleting takes longer than the import, and grows with the jobs.
MOST_SLOTS: Final = 500
#: Placeholders of one task at the most.
MOST_PLACEHOLDERS: Final = 5000
NO_CACHE_STORAGE: Final = (
    "cache_storage is missing: the id of any cloud storage that CVAT can reach; naming it is what "
    "has CVAT read the files again"
)
#: Formats of a slot's pictures, as Pillow calls them.
SLOT_FORMATS: Final[Mapping[str, str]] = {
    "jpg": "JPEG",
    "png": "PNG",
    "webp": "WEBP",
    "bmp": "BMP",
    "tiff": "TIFF",
}


def _slot_storage(value: object) -> str:
    """A folder as ``file:///mnt/share``, or a place in a bucket as ``s3://bucket/prefix``."""
    what = (
        '"file:///" and a folder, such as "file:///mnt/cvat-share/pool", or a bucket and a place '
        'in it, such as "s3://bucket/pool" ("gs://", "az://")'
    )
    scheme, separator, place = value.partition("://") if isinstance(value, str) else ("", "", "")
    if not separator or not is_place(place) or scheme not in ("file", *BUCKETS):
        # It may hold a key, so that what was found is not shown.
        raise refused(f"expected {what}; credentials never stand here")
    if scheme == "file" and (not place.startswith("/") or not place.strip("/")):
        raise expected(what)
    return f"{scheme}://{place.rstrip('/')}"


@table(frozen=True, kw_only=True, config=_STRICT)
class SlotSettings:
    """Jobs that exist before their data: their pictures' size and format, how many frames a job
    has, how many jobs a task; and where their files stand.

    ``storage`` is the place as the pool writes it, ``server`` the same place as CVAT reads it: a
    path on its share, or a bucket's cloud storage. ``cache_storage`` is the id of any cloud storage
    that CVAT can reach; naming it has CVAT forget what it has read before. A stream that no request
    has used for ``stream_idle`` seconds is closed.
    """

    size: Annotated[
        str,
        Field(pattern=r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$"),
        described('width and height in pixels, such as "1920x1080"'),
    ]
    storage: Annotated[str, PlainValidator(_slot_storage)]
    server: Annotated[
        str,
        Field(pattern=r"^(share:[^\s/\\][^\s\\]*|share:|cloud:[1-9][0-9]{0,9})$"),
        described('"share:PATH", a folder of CVAT\'s share, or "cloud:ID", a cloud storage\'s id'),
    ]
    format: Annotated[Literal["jpg", "png", "webp", "bmp", "tiff"], ONE_OF] = "jpg"
    frames: Annotated[int, Whole(1, 1000)] = 1
    per_task: Annotated[int, Whole(1, MOST_SLOTS)] = 1
    cache_storage: Id | None = None
    stream_idle: Duration = 3600.0

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.storage.startswith("file:") != self.server.startswith("share:"):
            raise refused(
                'storage and server are the same place: "file://" goes with "share:", and a '
                'bucket with "cloud:"'
            )
        if self.share_path is not None and ".." in self.share_path.split("/"):
            raise refused('server: a path on the share has no ".."')
        if self.cloud_id is None and self.cache_storage is None:
            raise refused(NO_CACHE_STORAGE)
        if self.frames * self.per_task > MOST_PLACEHOLDERS:
            raise refused(
                f"frames times per_task, {self.frames * self.per_task}, is above "
                f"{MOST_PLACEHOLDERS}, what one task should have"
            )
        return self

    @property
    def made_by(self) -> Mapping[str, Any]:
        """What a carrier is made by."""
        kept = ("cache_storage", "stream_idle")
        return {name: value for name, value in asdict(self).items() if name not in kept}

    @property
    def dimensions(self) -> tuple[int, int]:
        """Width and height, in pixels."""
        width, _, height = self.size.partition("x")
        return int(width), int(height)

    @property
    def share_path(self) -> str | None:
        """The folder on CVAT's share; None in a bucket."""
        kind, _, path = self.server.partition(":")
        return path.strip("/") if kind == "share" else None

    @property
    def cloud_id(self) -> int | None:
        """The id of the bucket's cloud storage; None on a share."""
        kind, _, number = self.server.partition(":")
        return int(number) if kind == "cloud" else None

    @property
    def drops_with(self) -> int:
        """The cloud storage whose naming drops what CVAT has cached of a task."""
        number = self.cache_storage or self.cloud_id
        assert number is not None
        return number


def against_slots(task: TaskSettings, data: DataParams) -> list[str]:
    """Return the keys that do not go with jobs over placeholders."""
    taken = {
        "use_cache": data.use_cache is False,
        "copy_data": data.copy_data is True,
        "storage_method": data.storage_method not in (None, "cache"),
    }
    return [*against_groups(task, data), *(name for name, set_ in taken.items() if set_)]


def against_groups(task: TaskSettings, data: DataParams) -> list[str]:
    """Return the keys that do not go with requests that have one job each in a shared task."""
    divided = {
        "segment_size": task.segment_size,
        "consensus_replicas": task.consensus_replicas,
        "job_file_mapping": data.job_file_mapping,
        "validation_params": data.validation_params,
    }
    return [*(name for name, value in divided.items() if value), *data.against_mapping]


#: The tables inside a template, those of them that [defaults] speaks for, and the keys of which
#: a template has one.
TEMPLATE_TABLES: Final[Mapping[str, type]] = {
    "task": TaskSettings,
    "data": DataParams,
    "pool": PoolSettings,
    "import": ImportSettings,
}
DEFAULT_TABLES: Final = ("pool", "import", "data")
LABEL_SOURCES: Final = ("labels", "labels_file", "project")


def keys_of(kind: Any) -> tuple[str, ...]:
    """Return the keys of a table, as the file spells them."""
    fields = kind.__pydantic_fields__.items()
    return tuple(str(field.validation_alias or name) for name, field in fields)


@dataclass(frozen=True, kw_only=True)
class Template:
    """What a pooled task looks like, and how its pool is sized.

    Either ``labels`` (CVAT's own label-constructor JSON, one mapping a label) or ``project``
    (a project's id) is given, never both; neither makes tasks without labels.
    """

    name: str
    labels: tuple[Mapping[str, Any], ...] = ()
    project: int | None = None
    task: TaskSettings = field(default_factory=TaskSettings)
    data: DataParams = field(default_factory=lambda: read_params(DEFAULTS))
    pool: PoolSettings = field(default_factory=PoolSettings)
    importing: ImportSettings = field(default_factory=ImportSettings)
    assignment: AssignmentSettings = field(default_factory=AssignmentSettings)
    slots: SlotSettings | None = None
    server: CvatSettings = field(default_factory=CvatSettings)

    @cached_property
    def create_fields(self) -> Mapping[str, Any]:
        """The body of ``POST /api/tasks``, less the name."""
        labels = {"labels": [dict(label) for label in self.labels]}
        fields: dict[str, Any] = labels if self.project is None else {"project_id": self.project}
        for name, value in asdict(self.task).items():
            # An overlap of 0 is sent; other fields that are 0 or "" are left to CVAT.
            if value or (name == "overlap" and value is not None):
                fields["assignee_id" if name == "assignee" else name] = value
        return fields

    @property
    def divided(self) -> bool:
        """Whether jobs whose request names no assignee are divided among some of its own."""
        return bool(self.assignment.assignees)

    @property
    def doubtful(self) -> str:
        """What to check when CVAT fails to create tasks of this template alone, in words."""
        if self.task.assignee is not None:
            return f"the template's assignee {self.task.assignee}"
        if self.project is not None:
            return f"the template's project {self.project}"
        return "the template's labels and task fields"

    @cached_property
    def fingerprint(self) -> str:
        """A digest of all that is sent when a task is created, and of where it is sent.

        Two templates with one fingerprint make tasks that are alike. What goes
        with the data, and how the pool is sized, is not part of it.
        """
        slots = {"slots": self.slots.made_by} if self.slots else {}
        return _digest({**_place(self.server), "fields": self.create_fields, **slots})

    @cached_property
    def ordinary(self) -> Template:
        """The same without slots: what serves requests that fit into none. No task of it is kept
        warm, so one is made for each, or for each group."""
        if self.slots is None:
            return self
        pool = replace(self.pool, on_empty="create", max_wait=0.0, on_change="recreate")
        return replace(self, slots=None, pool=pool)

    @cached_property
    def origin(self) -> str:
        """A digest of where tasks are created: the server and the organization; and of the slots
        that they have, since a picture fits only into those of its size."""
        return origin_of(self.server, self.slots)

    @property
    def most_warm(self) -> int:
        """How many warm tasks there are at the most; slots come as many at a time as a task has."""
        return self.pool.max_size + (self.slots.per_task - 1 if self.slots else 0)

    @property
    def reusable_origin(self) -> str | None:
        """The origin whose tasks of other fingerprints will do while none of this one is warm;
        None where none will do (``on_change = "recreate"``)."""
        return self.origin if self.pool.on_change == "replenish" else None

    @property
    def outline(self) -> Mapping[str, Any]:
        """What a status needs of the template, as JSON: how its pool is sized, and its project."""
        return {"project": self.project, "pool": asdict(self.pool)}

    @classmethod
    def of_outline(cls, name: str, outline: Mapping[str, Any]) -> Template:
        """Return the template of an :attr:`outline`: enough for a status."""
        return cls(name=name, project=outline["project"], pool=PoolSettings(**outline["pool"]))


def origin_of(server: CvatSettings, slots: SlotSettings | None = None) -> str:
    """Return the :attr:`Template.origin` of a template on a server that has these slots."""
    return _digest({**_place(server), **({"slots": slots.made_by} if slots else {})})


def _place(server: CvatSettings) -> dict[str, Any]:
    return {"server": server.url.rstrip("/"), "organization": server.organization}


def _digest(sent: Mapping[str, Any]) -> str:
    canonical = json.dumps(sent, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


class Templates(Mapping[str, Template]):
    """The templates in force, by name. A reload replaces them as a whole: an iteration sees those
    of one configuration."""

    def __init__(self, templates: Mapping[str, Template]) -> None:
        self._current = dict(templates)

    def replace(self, templates: Mapping[str, Template]) -> None:
        """Put these in force, and no others."""
        self._current = dict(templates)

    def within(self, scope: Scope) -> Templates:
        """Return those of them that a caller sees."""
        if not scope.templates:
            return self
        return Templates({name: each for name, each in self.items() if scope.covers_template(name)})

    def named(self, name: str) -> Template:
        """Return the template of that name.

        :raises UnknownTemplate: there is none; the message names the known ones.
        """
        current = self._current
        try:
            return current[name]
        except (KeyError, TypeError):
            known = ", ".join(current) or "none at all"
            raise UnknownTemplate(f"{ascii(name)[:100]}; there is {known}") from None

    def __getitem__(self, name: str) -> Template:
        return self._current[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._current)

    def __len__(self) -> int:
        return len(self._current)

    def values(self) -> ValuesView[Template]:
        return self._current.values()

    def items(self) -> ItemsView[str, Template]:
        return self._current.items()


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The whole configuration.

    ``warnings`` are, a line each, what is taken although it is probably a mistake. ``files``
    are all files that were read, or that hold a secret, as they were before they were read.
    """

    cvat: CvatSettings = field(default_factory=CvatSettings)
    store: StoreSettings = field(default_factory=StoreSettings)
    daemon: DaemonSettings = field(default_factory=DaemonSettings)
    events: EventSettings = field(default_factory=EventSettings)
    tokens: Mapping[str, TokenSettings] = field(default_factory=dict)
    templates: Mapping[str, Template] = field(default_factory=dict)
    path: Path | None = None
    warnings: tuple[str, ...] = ()
    files: Mapping[Path, Stamp] = field(default_factory=dict, compare=False)
