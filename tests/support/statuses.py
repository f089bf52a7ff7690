"""Statuses of pools in which all is well, but for what a test says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter

from pool.status import (
    DAEMON_EXAMPLE,
    TEMPLATE_EXAMPLE,
    DaemonStatus,
    Status,
    TemplateStatus,
    WebhookState,
)

_DAEMON = TypeAdapter(DaemonStatus).validate_python(DAEMON_EXAMPLE)
_TEMPLATE = TypeAdapter(TemplateStatus).validate_python(TEMPLATE_EXAMPLE)
_STATUS = Status(
    server="s",
    store="u",
    maintainer="host:1",
    daemons=(),
    in_flight=0,
    places_used=0,
    held_since=None,
    held_until=None,
    hold_reason="",
    hold_code="",
    spools=(),
    spools_warning="",
    templates=(),
    config_loaded_at=None,
    config_rejected_at=None,
    config_problems=(),
    config_restart=(),
)


def template_status(name: str = "scenes", **more: Any) -> TemplateStatus:
    """A template with no demand that has all it should have."""
    idle = {"target": 2, "warm": 2, "creating": 0, "importing": 0, "group_sizes": ()}
    return replace(_TEMPLATE, name=name, **{**idle, "hooks": WebhookState.ALIVE, **more})


def daemon_status(**more: Any) -> DaemonStatus:
    """A daemon that works."""
    return replace(_DAEMON, **more)


def status_with(*templates: TemplateStatus, **more: Any) -> Status:
    """A pool that a daemon maintains."""
    return replace(_STATUS, templates=templates, **more)
