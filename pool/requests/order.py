"""In which order those that wait are served.

The higher priority goes first; within one, tenants take turns, and within a tenant templates. But
every second turn is that of a request that has waited for more than :data:`AGED` seconds: tenants
take turns with these, too, each with its oldest. So a load of one tenant or one template holds up
no other, and none waits for ever, however much comes that is more urgent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from typing import Final

from pool.store import Unserved

#: Seconds after which a request goes before more urgent ones, every second turn.
AGED: Final = 60.0

Group = Sequence[Unserved]


class Turns:
    """Whose turn it is, from one round of dispatching to the next. For one thread at a time."""

    def __init__(self) -> None:
        #: When each tenant was served last, each template of a tenant, and a tenant with what had
        #: waited for long, counted in turns.
        self._tenants: dict[str, int] = {}
        self._templates: dict[tuple[str, str], int] = {}
        self._aged: dict[str, int] = {}
        self._turn = 0
        #: Whether the last turn was that of a request that had waited for long.
        self._was_aged = True

    def order(self, queues: Collection[Sequence[Group]], *, now: float) -> Iterator[Group]:
        """Yield the groups that wait, in queues that have an order of their own, in that in which
        they are to be served. Those that are, :meth:`served` is called with at once."""
        left = [deque(groups) for groups in queues]
        aged: dict[str, deque[Group]] = {}
        for group in sorted(
            (group for groups in queues for group in groups if _is_aged(group, now)),
            key=lambda group: group[0].created_at,
        ):
            aged.setdefault(group[0].tenant, deque()).append(group)
        done: set[str] = set()
        while heads := _heads(left, done):
            oldest = [] if self._was_aged else _heads(aged.values(), done)
            if oldest:
                group = min(oldest, key=self._precedence_of_aged)
            else:
                group = min(heads, key=self._precedence)
            done.add(group[0].id)
            yield group

    def _precedence(self, group: Group) -> tuple[int, int, int]:
        first = group[0]
        return (
            first.priority.level,
            self._tenants.get(first.tenant, 0),
            self._templates.get((first.tenant, first.template), 0),
        )

    def _precedence_of_aged(self, group: Group) -> tuple[int, float]:
        return self._aged.get(group[0].tenant, 0), group[0].created_at

    def served(self, group: Group, *, now: float) -> None:
        """Note that a group has had its turn."""
        first = group[0]
        self._turn += 1
        self._tenants[first.tenant] = self._turn
        self._templates[first.tenant, first.template] = self._turn
        self._was_aged = _is_aged(group, now)
        if self._was_aged:
            self._aged[first.tenant] = self._turn


def _heads(queues: Collection[deque[Group]], done: Collection[str]) -> list[Group]:
    """Return the first of each queue that is not done, where there is one."""
    for queue in queues:
        while queue and queue[0][0].id in done:
            queue.popleft()
    return [queue[0] for queue in queues if queue]


def _is_aged(group: Group, now: float) -> bool:
    return now - group[0].created_at > AGED
