"""Keep deadlines apart from the store's clock being set, forward or back.

Times in the store are those of its clock, since several processes share them and outlive one
another. When that clock is set by hours, a lease that was given an hour ago would end now, or in
half a day, and a process that is alive would count as gone. So every daemon compares its time with
the monotonic clock, also while another one maintains the store; and the one that maintains it moves
the times that are still to come along with the clock, before any of its services decides something.

Where the store has a clock of its own, a machine that slept has seen the same jump, and nothing has
happened to the store's clock: other processes have renewed their claims meanwhile. Where the clock
is that of the machine, which all processes share, a sleep is treated as a clock that was set: an
hour that was left is left then.
"""

from __future__ import annotations

import threading
from typing import Final

from pool.clock import Clock
from pool.errors import TermLost
from pool.logs import get_logger
from pool.maintenance.heartbeat import TERM
from pool.store import Store

log = get_logger(__name__)

#: Seconds by which the two clocks may drift apart from one look to the next. Corrections of a
#: running clock are far smaller, and all that is compared with it has longer to go.
TOLERANCE: Final = 5.0
#: Seconds by which the clocks of two processes may differ, as each knows the store's.
DIFFERENCE: Final = 1.0


def jump_between(before: tuple[float, float], after: tuple[float, float]) -> float:
    """Return by how many seconds the clock was set between two looks, each at (the clock, the
    monotonic one); 0 when it was not."""
    jump = (after[0] - before[0]) - (after[1] - before[1])
    return jump if abs(jump) > TOLERANCE else 0.0


class ClockJumps:
    """Notices when the clock was set. Thread-safe."""

    def __init__(self, store: Store, owner: str, *, clock: Clock) -> None:
        self._store = store
        self._owner = owner
        self._clock = clock
        self._guard = threading.Lock()
        self._looked = clock.now(), clock.monotonic()
        #: Whether it was the store's clock that has jumped since.
        self._is_set = False

    def look(self) -> None:
        """Notice a jump, after the time was compared with the store's: soon, since the others will
        renew by the new time. What is to be done about it is left to the daemon that maintains.

        :raises StoreError: the store cannot be asked; the next look notices it.
        """
        with self._guard:
            if self._noticed() and self._is_maintained_by_another():
                self._forget()

    def run_once(self, term: int) -> float:
        """Move what is still to come if the store's clock was set since the last time; return by
        how many seconds, 0 when it was not, which costs nothing.

        :raises TermLost: this process does not maintain the store any more in that term.
        :raises StoreError: the store cannot be used; it is tried again.
        """
        # Other services wait meanwhile: they must not decide by times that are being moved.
        with self._guard:
            jump = self._noticed()
            if jump:
                now = self._clock.now()
                since = now - (self._clock.monotonic() - self._looked[1]) - TOLERANCE
                moved = self._store.move_times(
                    jump, since=since, grace=TERM, term=term, owner=self._owner, now=now
                )
                if moved is None:
                    raise TermLost(f"term {term}")
                log.warning("the clock was set", seconds=round(jump, 1), moved=moved)
                self._forget()
            return jump

    def _noticed(self) -> float:
        """The seconds by which the store's clock was set since the last look, as long as nothing is
        done about it."""
        now = self._clock.now()
        jump = jump_between(self._looked, (now, self._clock.monotonic()))
        if jump and not self._is_set:
            old_time = now - jump
            # None goes back while its machine sleeps.
            if (
                jump > 0.0
                and self._store.time() is not None
                and self._store.others_renewed(self._owner, after=old_time + TERM + DIFFERENCE)
            ):
                log.warning("this machine stood still", seconds=round(jump, 1))
                jump = 0.0
            self._is_set = jump != 0.0
        if not jump:
            self._forget()
        return jump

    def _is_maintained_by_another(self) -> bool:
        """Whether another daemon sees to it."""
        now = self._clock.now()
        present = self._store.present_term(now=now)
        # One that ends later was written before the clock was set back.
        return present is not None and present.owner != self._owner and present.until < now + TERM

    def _forget(self) -> None:
        self._looked = self._clock.now(), self._clock.monotonic()
        self._is_set = False
