"""Replaces the warm tasks of a template that has changed one by one (``on_change = "replenish"``).

What the template made before can still be handed out, where no fresh task is warm, so it is kept
until fresh ones have taken its place. That adds no more tasks to a pool than are being created:
for each one that becomes warm, an older one goes.
"""

from __future__ import annotations

from pool.clock import Clock
from pool.config.settings import Template
from pool.logs import get_logger
from pool.maintenance.recycle import CHANGED
from pool.maintenance.sizing import Target
from pool.store import Store

log = get_logger(__name__)


def older_to_retire(fresh: int, older: int, *, wanted: int, replaced: int) -> int:
    """How many of the ``older`` warm tasks may go, where ``replaced`` of the ``fresh`` ones have
    just become warm and ``wanted`` should be.

    Never more than were replaced, and none while the pool is below what is wanted; all of them
    once the fresh ones alone are enough, since nothing more will be created in their place.
    """
    if fresh >= wanted:
        return older
    return max(0, min(older, replaced, fresh + older - wanted))


class Replenish:
    """Retires older warm tasks as they are replaced; for templates that ask for it."""

    def __init__(self, store: Store, *, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    def older(self, template: Template) -> int:
        """How many warm tasks that the template made before can still be handed out."""
        if template.older_from is None:
            return 0
        return self._store.older_warm_of(
            template.name, template.fingerprint, older_from=template.older_from
        )

    def settle(self, template: Template, target: Target, *, replaced: int = 0) -> int:
        """Retire what is due, ``replaced`` fresh tasks having just become warm; answers how many
        that were."""
        older = self.older(template)
        if template.older_from is None or not older:
            return 0
        fresh = self._store.warm_of(template.name, template.fingerprint)
        due = older_to_retire(fresh, older, wanted=target.size, replaced=replaced)
        if not due:
            return 0
        retired = self._store.retire_older(
            template.name,
            template.fingerprint,
            older_from=template.older_from,
            # Callers may have taken some since these were counted.
            keep=target.size,
            most=due,
            reason=CHANGED,
            now=self._clock.now(),
        )
        log.info("older tasks replaced", template=template.name, retired=retired, fresh=fresh)
        return retired
