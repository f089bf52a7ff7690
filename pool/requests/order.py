"""In which order those that wait are served.

The higher priority goes first, and templates take turns; but every second turn is that of the
request that has waited longest, once that is more than :data:`AGED` seconds. So a load of one
template holds up no other, and none waits for ever, however much comes that is more urgent.
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
        #: When each template was served last, counted in turns.
        self._served: dict[str, int] = {}
        self._turn = 0
        #: Whether the last turn was that of a request that had waited for long.
        self._was_aged = True

    def order(self, queues: Collection[Sequence[Group]], *, now: float) -> Iterator[Group]:
        """Yield the groups that wait, in queues that have an order of their own, in that in which
        they are to be served. Those that are, :meth:`served` is called with at once."""
        left = [deque(groups) for groups in queues]
        aged = deque(
            sorted(
                (group for groups in queues for group in groups if _is_aged(group, now)),
                key=lambda group: group[0].created_at,
            )
        )
        done: set[str] = set()
        while heads := [head for queue in left if (head := _head(queue, done))]:
            oldest = None if self._was_aged else _head(aged, done)
            group = oldest or min(heads, key=self._precedence)
            done.add(group[0].id)
            yield group

    def _precedence(self, group: Group) -> tuple[int, int]:
        return group[0].priority.level, self._served.get(group[0].template, 0)

    def served(self, group: Group, *, now: float) -> None:
        """Note that a group has had its turn."""
        self._turn += 1
        self._served[group[0].template] = self._turn
        self._was_aged = _is_aged(group, now)


def _head(queue: deque[Group], done: Collection[str]) -> Group | None:
    while queue and queue[0][0].id in done:
        queue.popleft()
    return queue[0] if queue else None


def _is_aged(group: Group, now: float) -> bool:
    return now - group[0].created_at > AGED
