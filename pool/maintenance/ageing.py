"""Replaces warm tasks that have become old, a few at a time and never at the pool's expense."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pool.clock import Clock
from pool.config.settings import PoolSettings, Template
from pool.logs import get_logger
from pool.model import PooledTask, TaskState
from pool.requests.breaker import SERVER
from pool.store import Store

log = get_logger(__name__)

#: Every task has its own limit, between this share of ``max_age`` and all of it, so that a pool
#: that was filled at once does not grow old at once.
YOUNGEST_LIMIT: Final = 0.8


@dataclass(frozen=True, kw_only=True, slots=True)
class AgeingReport:
    """How many tasks were retired, and how many are old and wait for their turn."""

    retired: int = 0
    waiting: int = 0


def age_limit(pooled_id: str, max_age: float) -> float:
    """How old this task may become, in seconds: always the same for one task."""
    share = zlib.crc32(pooled_id.encode()) / 2**32
    return max_age * (YOUNGEST_LIMIT + (1 - YOUNGEST_LIMIT) * share)


def too_old(
    warm: Sequence[PooledTask], settings: PoolSettings, *, now: float
) -> Sequence[PooledTask]:
    """The warm tasks beyond their limit, the longest overdue first."""
    overdue = {
        task.id: now - task.warm_at - age_limit(task.id, settings.max_age)
        for task in warm
        if task.warm_at is not None
    }
    old = [task for task in warm if overdue.get(task.id, 0) > 0]
    return sorted(old, key=lambda task: (-overdue[task.id], task.id))


def affordable(warm: int, creating: int, settings: PoolSettings) -> int:
    """How many tasks may be retired now, so that no more have to be created at once than the
    template allows: those under way, and those that ``min_size`` already asks for, count."""
    missing = max(0, settings.min_size - warm - creating)
    return max(0, settings.create_concurrency - creating - missing)


class Ageing:
    """Retires old warm tasks as they can be replaced.

    While nothing is created, because the template is paused or CVAT cannot be reached, none is
    retired: an old task is better than none.
    """

    def __init__(self, store: Store, templates: Mapping[str, Template], *, clock: Clock) -> None:
        self._store = store
        self._templates = templates
        self._clock = clock

    def run_once(self) -> AgeingReport:
        """Retire what is old and can be replaced now."""
        stopped = self._store.holds().keys() | self._store.paused().keys()
        retired = waiting = 0
        for template in self._templates.values():
            old, room = self._look(template)
            if stopped & {template.name, SERVER}:
                room = 0
            for task in old[:room]:
                retired += self._store.retire(
                    task.id, reason="older than max_age", now=self._clock.now()
                )
            waiting += len(old[room:])
        if retired:
            log.info("old tasks retired", tasks=retired, waiting=waiting)
        return AgeingReport(retired=retired, waiting=waiting)

    def _look(self, template: Template) -> tuple[Sequence[PooledTask], int]:
        """The old tasks of a template as it is now, and how many of them may go."""
        tasks = self._store.tasks(
            template=template.name, states=(TaskState.WARM, TaskState.CREATING)
        )
        mine = [task for task in tasks if task.fingerprint == template.fingerprint]
        warm = [task for task in mine if task.state is TaskState.WARM]
        room = affordable(len(warm), len(mine) - len(warm), template.pool)
        return too_old(warm, template.pool, now=self._clock.now()), room
