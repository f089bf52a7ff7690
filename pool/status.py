"""What the pool looks like now: levels, demand and troubles, read from the store only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from pool.handles import when
from pool.model import Levels, Outcome, TaskState
from pool.services.refill import LEAD_TIME
from pool.services.sizing import WINDOWS, target_size
from pool.settings import Settings, Template
from pool.store.base import Store


@dataclass(frozen=True, kw_only=True)
class TemplateStatus:
    """Levels, demand and troubles of one template. ``rate`` is in hand-outs a second."""

    name: str
    target: int
    warm: int
    creating: int
    leased: int
    importing: int
    deleting: int
    waiting: int
    rate: float
    hits: int
    waits: int
    colds: int
    paused_since: datetime | None = None
    held_since: datetime | None = None
    held_until: datetime | None = None
    hold_reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Status:
    """What the pool looks like now. ``maintainer`` is the process that refills, if any does."""

    server: str
    store: str
    maintainer: str | None
    in_flight: int
    templates: tuple[TemplateStatus, ...]


def read_status(store: Store, settings: Settings, *, now: float) -> Status:
    """The status of all templates; no call to the server is made."""
    levels = store.levels()
    hand_outs = store.hand_outs()
    return Status(
        server=settings.cvat.url,
        store=settings.store.url,
        maintainer=store.maintainer(now=now),
        in_flight=store.in_flight(),
        templates=tuple(
            _template_status(
                store, template, levels.get(name, Levels()), hand_outs.get(name, {}), now
            )
            for name, template in settings.templates.items()
        ),
    )


def _template_status(
    store: Store,
    template: Template,
    levels: Levels,
    hand_outs: Mapping[Outcome, int],
    now: float,
) -> TemplateStatus:
    history = store.demand(template.name, since=now - max(WINDOWS))
    target = target_size(history, template.pool, lead_time=LEAD_TIME, now=now)
    hold = store.holds().get(template.name)
    return TemplateStatus(
        name=template.name,
        target=target.size,
        warm=levels[TaskState.WARM],
        creating=levels[TaskState.CREATING],
        leased=levels[TaskState.LEASED],
        importing=levels[TaskState.IMPORTING],
        deleting=levels[TaskState.RETIRED] + levels[TaskState.FAILED] + levels[TaskState.DELETING],
        waiting=store.waiting(template.name),
        rate=target.rate,
        hits=hand_outs.get(Outcome.HIT, 0),
        waits=hand_outs.get(Outcome.WAIT, 0),
        colds=hand_outs.get(Outcome.COLD, 0),
        paused_since=when(store.paused().get(template.name)),
        held_since=when(hold.since) if hold else None,
        held_until=when(hold.retry_at) if hold else None,
        hold_reason=hold.reason if hold else "",
    )
