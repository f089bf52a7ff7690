"""That the server is about to stop: told once, from any thread, to all answers that wait."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Ending:
    """Told by the daemon before it stops listening, so that no answer is cut off that could end
    early: a long-poll with what there is now, a stream of events with nothing more."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._listeners: set[Callable[[], None]] = set()
        self._told = False

    @property
    def told(self) -> bool:
        """Whether the server is about to stop."""
        return self._told

    def tell(self) -> None:
        """The server is about to stop; telling it twice does nothing."""
        with self._guard:
            self._told = True
            listeners, self._listeners = self._listeners, set()
        for listener in listeners:
            listener()

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Have ``listener`` called once, on the thread that tells, or at once when it was told
        before. The answer takes the listener away again."""
        with self._guard:
            if not self._told:
                self._listeners.add(listener)
                return lambda: self._forget(listener)
        listener()
        return lambda: None

    def _forget(self, listener: Callable[[], None]) -> None:
        with self._guard:
            self._listeners.discard(listener)
