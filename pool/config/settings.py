"""The settings, frozen and typed, as :mod:`pool.config.loader` reads them from ``config.toml``.

Durations are seconds, sizes are bytes. The defaults here are the product's defaults; the
``config.toml`` in the repository documents every one of them, which a test checks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pool.config.data_params import DEFAULTS, DataParams, read_params
from pool.model import EventKind

#: What tells one state of a file from another, written anew or in place; None where there is none.
Stamp = tuple[int, int, int] | None

OnEmpty = Literal["wait", "create", "fail"]
OnChange = Literal["recreate", "replenish"]


@dataclass(frozen=True, kw_only=True)
class CvatSettings:
    """How the server is reached. Credentials never stand here, only where they are found."""

    url: str = "http://localhost:8080"
    organization: str = ""
    timeout: float = 30.0
    verify_tls: bool = True
    access_token_file: Path | None = None
    profile: str | None = None


@dataclass(frozen=True, kw_only=True)
class StoreSettings:
    """Where the rows are, and how long those are kept that nothing more will happen to.

    ``spool`` is where the data of requests waits while the server is down, at most
    ``spool_limit`` bytes of it; None is a folder beside the store (:attr:`spool_folder`).
    """

    url: str = "sqlite:///pool.db"
    keep_finished: float = 30 * 86400.0
    spool: Path | None = None
    spool_limit: int = 20 * 2**30

    @property
    def spool_folder(self) -> Path:
        """The spool, or in its place the store's file with ``.spool`` after its name."""
        return self.spool or Path(f"{self.path}.spool")

    @property
    def path(self) -> Path:
        """The store's file."""
        return Path(self.url.partition(":///")[2])


@dataclass(frozen=True, kw_only=True)
class DaemonSettings:
    """The daemon: where it listens, how often its services run, and how much it takes in.

    A body is taken in as long as its pieces are ``receive_timeout`` seconds apart at most.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    tick: float = 5.0
    stop_timeout: float = 10.0
    verify_every: float = 600.0
    max_queued: int = 1000
    max_body: int = 10 * 2**30
    max_files: int = 10_000
    receive_timeout: float = 30.0


@dataclass(frozen=True, kw_only=True)
class SinkSettings:
    """An address that is told of events, and where the secret that signs them is found.

    The secret itself never stands here: ``secret_env`` names the environment variable that holds
    it, ``secret_file`` the file. Neither signs nothing. No ``templates`` means all of them.
    """

    url: str
    secret_env: str | None = None
    secret_file: Path | None = None
    templates: tuple[str, ...] = ()
    kinds: tuple[EventKind, ...] = ("request.ready", "request.failed")


@dataclass(frozen=True, kw_only=True)
class EventSettings:
    """Who is told of what happens."""

    sinks: tuple[SinkSettings, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """Fields of the task itself (``POST /api/tasks``)."""

    subset: str = ""
    bug_tracker: str = ""
    segment_size: int = 0
    overlap: int | None = None
    consensus_replicas: int = 0
    assignee: int | None = None


@dataclass(frozen=True, kw_only=True)
class PoolSettings:
    """How the pool of a template is sized and handed out.

    ``on_change`` says what becomes of the warm tasks when the fingerprint changes: "recreate"
    retires them at once; "replenish" hands them out until fresh ones have taken their place.
    """

    min_size: int = 5
    max_size: int = 200
    hit_rate: float = 0.99
    max_age: float = 24 * 3600.0
    on_empty: OnEmpty = "create"
    max_wait: float = 2.0
    create_concurrency: int = 2
    lease_ttl: float = 3600.0
    on_change: OnChange = "recreate"


@dataclass(frozen=True, kw_only=True)
class ImportSettings:
    """How data goes in. Data up to ``single_request_limit`` goes in one request, more in several,
    ``upload_concurrency`` of them at a time."""

    timeout: float = 600.0
    grouping: Literal["off"] = "off"
    single_request_limit: int = 64 * 2**20
    upload_concurrency: int = 4


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
    server: CvatSettings = field(default_factory=CvatSettings)

    @cached_property
    def create_fields(self) -> Mapping[str, Any]:
        """The body of ``POST /api/tasks``, less the name."""
        fields: dict[str, Any] = {}
        if self.project is not None:
            fields["project_id"] = self.project
        else:
            fields["labels"] = [dict(label) for label in self.labels]
        task = self.task
        if task.subset:
            fields["subset"] = task.subset
        if task.bug_tracker:
            fields["bug_tracker"] = task.bug_tracker
        if task.segment_size:
            fields["segment_size"] = task.segment_size
        if task.overlap is not None:
            fields["overlap"] = task.overlap
        if task.consensus_replicas:
            fields["consensus_replicas"] = task.consensus_replicas
        if task.assignee is not None:
            fields["assignee_id"] = task.assignee
        return fields

    @property
    def doubtful(self) -> str:
        """What to look at when CVAT fails to create tasks of this template alone, in words."""
        if self.task.assignee is not None:
            return f"the template's assignee {self.task.assignee}"
        if self.project is not None:
            return f"the template's project {self.project}"
        return "the template's labels and task fields"

    @cached_property
    def fingerprint(self) -> str:
        """A digest of all that the server is told when a task is created, and of where.

        Two templates with one fingerprint make tasks that cannot be told apart. What goes
        with the data, and how the pool is sized, is not part of it.
        """
        return _digest({**self._place, "fields": self.create_fields})

    @cached_property
    def origin(self) -> str:
        """A digest of where tasks are created: the server and the organization."""
        return _digest(self._place)

    @property
    def older_from(self) -> str | None:
        """The origin whose tasks of other fingerprints will do while none of this one is warm;
        None where the template says that none will (``on_change = "recreate"``)."""
        return self.origin if self.pool.on_change == "replenish" else None

    @property
    def _place(self) -> dict[str, Any]:
        return {
            "server": self.server.url.rstrip("/"),
            "organization": self.server.organization,
        }


def _digest(told: Mapping[str, Any]) -> str:
    canonical = json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The whole configuration.

    ``warnings`` tell, each on a line, what is taken although it is probably a mistake. ``files``
    are all files that were read, or that hold a secret, as they were before they were read.
    """

    cvat: CvatSettings = field(default_factory=CvatSettings)
    store: StoreSettings = field(default_factory=StoreSettings)
    daemon: DaemonSettings = field(default_factory=DaemonSettings)
    events: EventSettings = field(default_factory=EventSettings)
    templates: Mapping[str, Template] = field(default_factory=dict)
    path: Path | None = None
    warnings: tuple[str, ...] = ()
    files: Mapping[Path, Stamp] = field(default_factory=dict, compare=False)
