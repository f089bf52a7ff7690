"""What people see of a pool: its status, and that of each template, in Python and over HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Final

from pydantic import ConfigDict, PlainSerializer, WithJsonSchema

from pool.clock import rfc3339

#: A time that JSON has in RFC 3339, to the millisecond.
Time = Annotated[
    datetime,
    PlainSerializer(lambda time: rfc3339(time.timestamp()), return_type=str, when_used="json"),
    WithJsonSchema(
        {"type": "string", "format": "date-time", "examples": ["2026-01-01T12:00:00.123Z"]}
    ),
]


def described(**example: Any) -> ConfigDict:
    """Return the pydantic configuration of a class whose fields are described by the texts below
    them."""
    return ConfigDict(use_attribute_docstrings=True, json_schema_extra={"examples": [example]})


class WebhookState(StrEnum):
    """Whether the webhook of a template delivers."""

    ALIVE = "alive"
    SILENT = "silent"
    NOT_INSTALLED = "not installed"
    #: CVAT has no webhooks for personal tasks outside of a project.
    IMPOSSIBLE = "not possible"


class WaitReason(StrEnum):
    """What the queued requests of a template wait for, as it is now."""

    NOTHING = "nothing"
    #: The template, or the server, is held: CVAT refuses, or cannot be reached.
    HOLD = "hold"
    #: As many imports are under way as may be; meanwhile they gather.
    PLACE = "place"
    #: No task is warm.
    TASK = "task"
    #: They gather for ``group_delay``.
    OTHERS = "others"
    #: Their turn: a worker takes them as soon as it can.
    TURN = "turn"
    #: No daemon runs, so that only the process that they came from serves them.
    DAEMON = "daemon"
    #: Their data is on a machine that is away, or cannot be read.
    DATA = "data"


TEMPLATE_EXAMPLE: Final[dict[str, Any]] = {
    "name": "street-scenes",
    "target": 5,
    "warm": 4,
    "creating": 1,
    "leased": 0,
    "importing": 1,
    "deleting": 0,
    "carriers": 0,
    "slots_filled": 0,
    "slots_retired": 0,
    "waiting": 0,
    "queued": 0,
    "oldest_waiting_since": None,
    "queued_interactive": 0,
    "queued_bulk": 0,
    "waits_for": "nothing",
    "places": 0,
    "group_sizes": [1, 12, 40],
    "rate": 0.2,
    "peak_rate": 0.5,
    "lead_time": 1.0,
    "hits": 120,
    "waits": 3,
    "colds": 1,
    "paused_since": None,
    "held_since": None,
    "held_until": None,
    "hold_reason": "",
    "hold_code": "",
    "prewarm_size": 0,
    "prewarm_until": None,
    "hooks": "not installed",
    "hooks_silent_since": None,
}


@dataclass(frozen=True, kw_only=True)
class TemplateStatus:
    """Levels, demand and troubles of one template."""

    __pydantic_config__: ClassVar[ConfigDict] = described(**TEMPLATE_EXAMPLE)

    name: str
    target: int
    """The number of tasks, or of slots, to keep warm."""
    warm: int
    creating: int
    leased: int
    importing: int
    deleting: int
    carriers: int
    """Tasks whose jobs are slots, as long as any of these is warm or leased."""
    slots_filled: int
    """Slots of these tasks that hold data."""
    slots_retired: int
    """Those that never will."""
    waiting: int
    """Callers that wait for a task, and have no request queued."""
    queued: int
    """Requests that wait for a task, or for CVAT."""
    oldest_waiting_since: Time | None
    """When the one of these callers and requests came that has waited the longest."""
    queued_interactive: int
    """Those of them with this priority."""
    queued_bulk: int
    waits_for: WaitReason
    """What the queued requests wait for."""
    places: int
    """Imports of requests that may share a task that may be under way at the same time, of all
    templates; 0: its requests do not share."""
    group_sizes: tuple[int, ...]
    """Requests of each of the latest imports of the last 15 minutes, the oldest first."""
    rate: float
    """Hand-outs a second in the last minute."""
    peak_rate: float
    """Hand-outs a second in the busiest of the last 1, 5 and 15 minutes: gives the target."""
    lead_time: float
    """Seconds that a create takes: gives the target, with the rate."""
    hits: int
    waits: int
    colds: int
    paused_since: Time | None
    held_since: Time | None
    held_until: Time | None
    hold_reason: str
    """Why nothing is created or sent, for it or for all; empty: not held."""
    hold_code: str
    """The code of the error that it is held for."""
    prewarm_size: int
    """The size that prewarming asks for; 0: none."""
    prewarm_until: Time | None
    hooks: WebhookState
    """Whether its webhook delivers; while it is silent, the jobs are found by polling."""
    hooks_silent_since: Time | None


@dataclass(frozen=True, kw_only=True)
class StreamStatus:
    """A stream that is open: requests whose jobs follow each other in the same tasks."""

    __pydantic_config__: ClassVar[ConfigDict] = described(
        template="street-scenes",
        tenant="",
        name="camera 7",
        opened_at="2026-01-01T12:00:00.123Z",
        used_at="2026-01-01T12:31:07.456Z",
        tasks=2,
        task_id=42,
        url="http://localhost:8080/tasks/42",
        filled=12,
        slots=50,
    )

    template: str
    tenant: str
    """The name of the token that its requests came with; empty: the operator."""
    name: str
    opened_at: Time
    used_at: Time
    """When a request last asked for a place in it; unused for long, it is closed."""
    tasks: int
    """How many tasks it has had."""
    task_id: int | None
    """CVAT's id of the latest one, into which the next request goes."""
    url: str | None
    """The page of that task."""
    filled: int
    """How many of the slots of that task are filled."""
    slots: int
    """How many slots that task has."""


DAEMON_EXAMPLE: Final[dict[str, Any]] = {
    "owner": "host:4711:7c0857",
    "url": "http://127.0.0.1:8765",
    "version": "0.1.0",
    "since": "2026-01-01T12:00:00.123Z",
    "cut_off": False,
}


@dataclass(frozen=True, kw_only=True)
class DaemonStatus:
    """A daemon that is at work."""

    __pydantic_config__: ClassVar[ConfigDict] = described(**DAEMON_EXAMPLE)

    owner: str
    """Its host, its process and a random part."""
    url: str
    """The address at which it listens."""
    version: str
    since: Time
    cut_off: bool
    """CVAT answers other daemons, and not this one: it leaves the work to them."""


SPOOL_EXAMPLE: Final = {
    "place": "/var/lib/cvat-pool/spool",
    "host": "pool-1",
    "shared": False,
    "seen_at": "2026-01-01T12:00:00.123Z",
    "away": False,
    "trouble": "",
    "queued": 2,
}


@dataclass(frozen=True, kw_only=True)
class SpoolStatus:
    """A place where the data of requests waits."""

    __pydantic_config__: ClassVar[ConfigDict] = described(**SPOOL_EXAMPLE)

    place: str
    """Its path on the host, or the address of a bucket."""
    host: str
    """The machine that it is on; empty for one that all machines reach."""
    shared: bool
    """Whether all machines can reach it."""
    seen_at: Time
    """When a process that reads it was last heard of."""
    away: bool
    """No process reads it: what waits there waits for one."""
    trouble: str
    """Why it cannot be used; empty: it can."""
    queued: int
    """Requests that wait with their data in it."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """What the pool looks like now."""

    __pydantic_config__: ClassVar[ConfigDict] = described(
        server="http://localhost:8080",
        store="sqlite:////var/lib/cvat-pool/pool.db",
        maintainer="host:4711:7c0857",
        daemons=[DAEMON_EXAMPLE],
        in_flight=1,
        places_used=1,
        held_since=None,
        held_until=None,
        hold_reason="",
        hold_code="",
        spools=[],
        spools_warning="",
        templates=[TEMPLATE_EXAMPLE],
        config_loaded_at="2026-01-01T12:00:00.123Z",
        config_rejected_at=None,
        config_problems=[],
        config_restart=[],
    )

    server: str
    store: str
    maintainer: str | None
    """The daemon that maintains the store, if any does."""
    daemons: tuple[DaemonStatus, ...]
    """The daemons that are at work, the oldest first."""
    in_flight: int
    """Requests that are uploading or importing."""
    places_used: int
    """Imports of requests that may share a task that are under way."""
    held_since: Time | None
    held_until: Time | None
    hold_reason: str
    """Why nothing is created for any template; empty: nothing is wrong with the server as a
    whole."""
    hold_code: str
    """The code of that error."""
    spools: tuple[SpoolStatus, ...]
    """The spools that are read now, or in which data waits."""
    spools_warning: str
    """What it means that daemons have spools of their own; empty where they have not."""
    templates: tuple[TemplateStatus, ...]
    config_loaded_at: Time | None
    """When the maintainer read the configuration that is in force."""
    config_rejected_at: Time | None
    """Since when the configuration file is wrong, and not followed."""
    config_problems: tuple[str, ...]
    """What is wrong with the file."""
    config_restart: tuple[str, ...]
    """Changed keys that are followed only after a restart."""
