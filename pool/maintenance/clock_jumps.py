"""Keep deadlines apart from the machine's clock being set, forward or back.

Times in the store are those of the wall clock, since several processes share them and outlive
one another. When that clock is set by hours, a lease that was given an hour ago would end now, or
in half a day, and a process that is alive would count as gone. So the one process that maintains
the store compares the wall clock with the monotonic one before any service decides something, and
moves the times that are still to come along with it.

A machine that slept looks the same, and is treated so: an hour that was left is left then.
"""

from __future__ import annotations

import threading
from typing import Final

from pool.clock import Clock
from pool.logs import get_logger
from pool.maintenance.heartbeat import TERM
from pool.store import Store

log = get_logger(__name__)

#: Seconds by which the two clocks may drift apart from one look to the next. Corrections of a
#: running clock are far smaller, and all that is compared with it has longer to go.
TOLERANCE: Final = 5.0


def jump_between(before: tuple[float, float], after: tuple[float, float]) -> float:
    """Return by how many seconds the wall clock was set between two looks, each at (the wall
    clock, the monotonic one); 0 when it was not."""
    jump = (after[0] - before[0]) - (after[1] - before[1])
    return jump if abs(jump) > TOLERANCE else 0.0


class ClockJumps:
    """Notices when the clock was set. Thread-safe."""

    def __init__(self, store: Store, *, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._guard = threading.Lock()
        self._looked = clock.now(), clock.monotonic()

    def run_once(self) -> float:
        """Move what is still to come if the clock was set since the last time; return by how many
        seconds, 0 when it was not, which costs nothing."""
        # Other services wait meanwhile: they must not decide by times that are being moved.
        with self._guard:
            now, monotonic = self._clock.now(), self._clock.monotonic()
            jump = jump_between(self._looked, (now, monotonic))
            if jump:
                since = now - (monotonic - self._looked[1]) - TOLERANCE
                moved = self._store.move_times(jump, since=since, term=TERM, now=now)
                log.warning("the clock was set", seconds=round(jump, 1), moved=moved)
            # Only now: when the store could not be written, it is tried again.
            self._looked = now, monotonic
            return jump
