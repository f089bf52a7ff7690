"""When the server was last heard from."""

from __future__ import annotations

from typing import Final

from pool.clock import Clock
from pool.errors import CvatAmbiguous, CvatRefusedCredentials, CvatUnreachable

#: What comes of a call that the server has not answered.
UNANSWERED: Final = frozenset({CvatUnreachable.code, CvatAmbiguous.code, "error"})


class Reach:
    """Knows of all calls that this process makes. Thread-safe."""

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._answered_at: float | None = None
        self._lost = False
        self._refused = False

    def call(self, _operation: str, _seconds: float, result: str) -> None:
        """A call has ended; see :data:`pool.cvat.OnCall`."""
        self._lost = result in UNANSWERED
        self._refused = result == CvatRefusedCredentials.code
        if not self._lost:
            self._answered_at = self._clock.monotonic()

    @property
    def lost(self) -> bool:
        """Whether the last call got no answer."""
        return self._lost

    @property
    def refused(self) -> bool:
        """Whether the last call was refused for its credentials."""
        return self._refused

    @property
    def answered_ago(self) -> float | None:
        """Seconds since the last answer; None before the first."""
        answered_at = self._answered_at
        return None if answered_at is None else self._clock.monotonic() - answered_at
