"""What people see of a pool: its status, and that of each template."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class WebhookState(StrEnum):
    """Whether the webhook of a template delivers."""

    ALIVE = "alive"
    SILENT = "silent"
    NOT_INSTALLED = "not installed"
    #: CVAT has no webhooks for personal tasks outside of a project.
    IMPOSSIBLE = "not possible"


@dataclass(frozen=True, kw_only=True)
class TemplateStatus:
    """Levels, demand and troubles of one template.

    ``waiting`` are callers that wait for a task without a request, ``queued`` requests that wait
    for one, or for the server. ``rate`` is in hand-outs a second, in the last minute. ``target``
    is what the ``peak_rate``, that of the busiest of the last 1, 5 and 15 minutes, asks for while
    one task is created, which takes ``lead_time`` seconds.
    ``prewarm_size`` is the size that was asked for until ``prewarm_until``; 0 when none was.
    While it is held, by itself or with the server, ``hold_reason`` says why and ``hold_code`` is
    the code of the error.
    ``hooks`` says whether its webhook delivers; while it is ``silent``, polling does all the work.
    """

    name: str
    target: int
    warm: int
    creating: int
    leased: int
    importing: int
    deleting: int
    waiting: int
    queued: int = 0
    rate: float
    peak_rate: float = 0.0
    lead_time: float = 0.0
    hits: int
    waits: int
    colds: int
    paused_since: datetime | None = None
    held_since: datetime | None = None
    held_until: datetime | None = None
    hold_reason: str = ""
    hold_code: str = ""
    prewarm_size: int = 0
    prewarm_until: datetime | None = None
    hooks: WebhookState = WebhookState.NOT_INSTALLED
    hooks_silent_since: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Status:
    """What the pool looks like now. ``maintainer`` is the process that refills, if any does.

    ``hold_reason`` says why nothing is created for any template, "" when nothing is wrong with
    the server as a whole. That process has had its configuration since ``config_loaded_at``. Since
    ``config_rejected_at`` the file has ``config_problems``, and is not followed; None when it is.
    ``config_restart`` are the keys in it that only a restart follows.
    """

    server: str
    store: str
    maintainer: str | None
    in_flight: int
    held_since: datetime | None
    held_until: datetime | None
    hold_reason: str
    templates: tuple[TemplateStatus, ...]
    config_loaded_at: datetime | None = None
    config_rejected_at: datetime | None = None
    config_problems: tuple[str, ...] = ()
    config_restart: tuple[str, ...] = ()
