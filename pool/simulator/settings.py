"""What a simulated server is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .buckets import Bucket
from .faults import Fault
from .timing import Timings
from .versions import Version, read_version


@dataclass(frozen=True, slots=True, kw_only=True)
class UserSettings:
    """A user who can log in. Without a password one is drawn at the start of the server."""

    username: str
    password: str | None = field(default=None, repr=False)
    email: str = ""
    is_superuser: bool = False
    groups: tuple[str, ...] = ("user",)
    first_name: str = ""
    last_name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganizationSettings:
    """An organization; ``owner`` and ``members`` are user names."""

    slug: str
    name: str = ""
    owner: str | None = None
    members: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudStorageSettings:
    """A registered cloud storage: a bucket, a folder that stands for one, or keys and bytes."""

    display_name: str
    resource: str = "bucket"
    bucket: Bucket | None = field(default=None, repr=False)
    folder: Path | None = None
    objects: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    organization: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorSettings:
    """All that can be chosen about a simulated server. Times in seconds unless said otherwise."""

    timings: Timings = field(default_factory=Timings)
    seed: int = 0
    #: The version that the server says it is, and behaves like (see ``versions.py``).
    version: str = "2.73.0"
    #: The first user owns the ready-made tokens. Ids are given in order, from 2 on: a real
    #: server's first user is the administrator that its installation made.
    users: tuple[UserSettings, ...] = (
        UserSettings(username="bot", email="bot@example.com", is_superuser=True, groups=("admin",)),
        UserSettings(username="worker", email="worker@example.com", groups=("worker",)),
    )
    organizations: tuple[OrganizationSettings, ...] = ()
    cloud_storages: tuple[CloudStorageSettings, ...] = ()
    #: Tokens of the first user. ``None``: drawn at the start.
    access_token: str | None = field(default=None, repr=False)
    readonly_token: str | None = field(default=None, repr=False)
    #: The connected file share; ``None``: an empty one.
    share: Path | None = None
    #: Where uploads are kept; ``None``: a temporary folder, removed at the end.
    folder: Path | None = None
    cores: int = 2
    import_workers: int = 2
    #: How long a finished request can be asked for; a failed one is kept for a year.
    request_result_ttl: float = 500.0
    #: Standard deviation of the logarithm of an import's duration.
    import_jitter: float = 0.10
    #: The share of imports that take twice as long.
    slow_import_rate: float = 0.02
    #: Answer 429 to the next anonymous call (a login counts as one). CVAT allows 100.
    anonymous_calls_per_minute: int | None = None
    #: Longest request line, in bytes, before the web server in front answers 414.
    max_request_line: int = 8192
    #: Seconds until a webhook's receiver counts as gone.
    webhook_timeout: float = 10.0
    #: Seconds until a remote file's server counts as gone.
    remote_timeout: float = 10.0
    max_jobs_per_task: int = 5_000
    #: What goes wrong from the start on.
    faults: tuple[Fault, ...] = ()

    def since(self, version: Version) -> bool:
        """Whether the server is of this version or a later one."""
        return read_version(self.version) >= version
