"""Take out of the pool what should not be handed out: warm tasks of an older template, of one that
was taken out or drained, too many, and too old.

Old ones go a few at a time and never at the pool's expense. While nothing is created, because the
template is paused or CVAT cannot be reached, they stay: an old task is better than none.

With ``on_change = "replenish"``, warm tasks that the template made before are replaced one by one:
they can still be handed out where no fresh task is warm, so they are kept until fresh ones have
taken their place. That adds no more tasks to a pool than are being created: for each one that
becomes warm, an older one goes.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Final

from pool.clock import Clock
from pool.config.settings import PoolSettings, Template
from pool.logs import get_logger
from pool.maintenance.sizing import Target
from pool.model import PooledTask, TaskState
from pool.requests.breaker import SERVER
from pool.requests.placement import older_warm
from pool.store import Store

log = get_logger(__name__)

#: Why warm tasks are retired, as their rows have it.
CHANGED: Final = "the template has changed"
TAKEN_OUT: Final = "the template was taken out"
DRAINED: Final = "the template is drained"
EXCESS: Final = "more than max_size"
AGED: Final = "older than max_age"
#: Every task has its own limit, between this share of ``max_age`` and all of it, so that a pool
#: that was filled at once does not grow old at once.
YOUNGEST_LIMIT: Final = 0.8


def age_limit(pooled_id: str, max_age: float) -> float:
    """Return how old this task may become, in seconds: always the same for one task."""
    share = zlib.crc32(pooled_id.encode()) / 2**32
    return max_age * (YOUNGEST_LIMIT + (1 - YOUNGEST_LIMIT) * share)


def too_old(
    warm: Sequence[PooledTask], settings: PoolSettings, *, now: float
) -> Sequence[PooledTask]:
    """Return the warm tasks beyond their limit, the longest overdue first."""
    overdue = {
        # The slots of a carrier are of one age, and go together.
        task.id: now - task.warm_at - age_limit(task.carrier_id or task.id, settings.max_age)
        for task in warm
        if task.warm_at is not None
    }
    old = [task for task in warm if overdue.get(task.id, 0) > 0]
    return sorted(old, key=lambda task: (-overdue[task.id], task.id))


def affordable(warm: int, creating: int, settings: PoolSettings, *, slots: int = 1) -> int:
    """Return how many old tasks may be retired now, so that no more have to be created at once
    than the template allows: those under way, and those that ``min_size`` asks for, count. Where a
    task has several ``slots``, ``warm`` counts these."""
    missing = max(0, settings.min_size - warm - creating * slots)
    return max(0, settings.create_concurrency - creating - math.ceil(missing / slots))


def older_to_retire(fresh: int, older: int, *, wanted: int, replaced: int) -> int:
    """Return how many of the ``older`` warm tasks may go, where ``replaced`` of the ``fresh`` ones
    have just become warm and ``wanted`` should be.

    Never more than were replaced, and none while the pool is below what is wanted; all of them
    once the fresh ones alone are enough, since nothing more will be created in their place.
    """
    if fresh >= wanted:
        return older
    return max(0, min(older, replaced, fresh + older - wanted))


def retire_replaced(
    store: Store, template: Template, target: Target, *, now: float, replaced: int = 0
) -> int:
    """Retire older warm tasks, ``replaced`` fresh ones having just become warm; return how many
    that were. Only for templates with ``on_change = "replenish"``."""
    older = older_warm(store, template)
    if template.reusable_origin is None or not older:
        return 0
    fresh = store.warm_of(template.name, template.fingerprint)
    due = older_to_retire(fresh, older, wanted=target.size, replaced=replaced)
    if not due:
        return 0
    retired = store.retire_older(
        template.name,
        template.fingerprint,
        reusable_origin=template.reusable_origin,
        # Callers may have taken some since these were counted.
        keep=target.size,
        most=due,
        reason=CHANGED,
        now=now,
    )
    log.info("older tasks replaced", template=template.name, retired=retired, fresh=fresh)
    return retired


class Retirement:
    """Retires warm tasks; :mod:`pool.maintenance.deletion` deletes them on the server."""

    def __init__(self, store: Store, templates: Mapping[str, Template], *, clock: Clock) -> None:
        self._store = store
        self._templates = templates
        self._clock = clock

    def run_once(self) -> int:
        """Retire what is due now; return how many tasks that were."""
        retired = sum(self._retire_misfits(template) for template in self._templates.values())
        retired += self._retire_unwanted()
        not_created = self._store.holds().keys() | self._store.paused().keys()
        for template in self._templates.values():
            old, room = self._aged(template)
            if not_created & {template.name, SERVER}:
                room = 0
            on_server = dict.fromkeys(task.carrier_id or task.id for task in old)
            chosen = set(list(on_server)[:room])
            for task in old:
                if (task.carrier_id or task.id) in chosen:
                    retired += self._store.retire(task.id, reason=AGED, now=self._clock.now())
        return retired

    def _retire_misfits(self, template: Template) -> int:
        """Retire tasks of an older template, then those beyond ``max_size``."""
        name, keep, now = template.name, template.most_warm, self._clock.now()
        reusable_origin = template.reusable_origin
        changed = self._store.retire_other_fingerprints(
            name, template.fingerprint, reusable_origin=reusable_origin, reason=CHANGED, now=now
        )
        if reusable_origin is not None:
            # Before any of the template as it is now goes as one too many.
            changed += self._store.retire_older(
                name,
                template.fingerprint,
                reusable_origin=reusable_origin,
                keep=keep,
                reason=CHANGED,
                now=now,
            )
        excess = self._store.retire_excess(name, keep=keep, reason=EXCESS, now=now)
        if changed or excess:
            log.info("tasks retired", template=name, changed=changed, excess=excess)
        return changed + excess

    def _retire_unwanted(self) -> int:
        """Retire all warm tasks of templates that were taken out or are drained: those that were
        being created meanwhile, and those that were given back."""
        drained = self._store.drained()
        retired = 0
        for name, levels in self._store.levels().items():
            unknown = name not in self._templates
            if levels[TaskState.WARM] and (unknown or name in drained):
                retired += self._store.retire_other_fingerprints(
                    name, "", reason=TAKEN_OUT if unknown else DRAINED, now=self._clock.now()
                )
        return retired

    def _aged(self, template: Template) -> tuple[Sequence[PooledTask], int]:
        """Return the old tasks of a template as it is now, and how many of them may go; of slots,
        how many carriers."""
        youngest = self._clock.now() - YOUNGEST_LIMIT * template.pool.max_age
        if not self._store.tasks(
            template=template.name, states=(TaskState.WARM,), warm_before=youngest
        ):
            return (), 0
        tasks = self._store.tasks(
            template=template.name, states=(TaskState.WARM, TaskState.CREATING)
        )
        mine = [task for task in tasks if task.fingerprint == template.fingerprint]
        warm = [task for task in mine if task.state is TaskState.WARM]
        slots = template.slots.per_task if template.slots else 1
        room = affordable(len(warm), len(mine) - len(warm), template.pool, slots=slots)
        return too_old(warm, template.pool, now=self._clock.now()), room
