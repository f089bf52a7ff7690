"""A dispatcher of a process that only calls, for what its threads bring at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from pool.clock import Clock, Wakeup
from pool.logs import get_logger
from pool.requests.breaker import Breaker, Circuit
from pool.requests.dispatcher import Dispatcher
from pool.store import Store

log = get_logger(__name__)

#: Seconds between two looks whether the daemon that serves the queue is still there.
LOOK: Final = 1.0


class LocalDispatcher:
    """Serves the queue while no daemon does. It begins when it is woken first. Thread-safe.

    The queue is the same for all processes, and so is the way of taking from it: a daemon that
    starts meanwhile, or another process like this one, serves what this one has not begun.
    """

    def __init__(
        self, make: Callable[[], Dispatcher], store: Store, breaker: Breaker, *, clock: Clock
    ) -> None:
        self._make = make
        self._store = store
        self._breaker = breaker
        self._clock = clock
        self._guard = threading.Lock()
        self._thread: threading.Thread | None = None
        self._dispatcher: Dispatcher | None = None
        self._news = Wakeup(clock)
        #: When a process that closes leaves the rest to others, by the monotonic clock.
        self._ends_at: float | None = None

    def wake(self) -> None:
        """Serve what was queued. After :meth:`close` it waits for another process."""
        with self._guard:
            if self._ends_at is not None:
                return
            # In a process that was forked it is there, and has ended.
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="dispatch", daemon=True)
                self._thread.start()
        self._news.set()

    def place_freed(self) -> None:
        """Look at the queue if something waits in it, since an import has ended."""
        if self._dispatcher is not None and self._dispatcher.waits:
            self._news.set()

    def close(self, timeout: float) -> None:
        """Send what waits, within ``timeout`` seconds; what is left then waits for another process.
        Without CVAT nothing is waited for."""
        with self._guard:
            self._ends_at = self._clock.monotonic() + timeout
        if self._thread is not None:
            self._news.set()
            self._thread.join(timeout)
        if self._dispatcher is not None:
            self._dispatcher.stop(max(0.0, self._ends_at - self._clock.monotonic()))

    def _run(self) -> None:
        dispatcher = self._dispatcher = self._make()
        dispatcher.on_room(self._news.set)
        while True:
            closing = self._ends_at is not None
            pause: float | None = LOOK
            try:
                served = self._breaker.has_daemon()
                if not served:
                    dispatcher.run_once()
                if closing and (served or not dispatcher.waits or self._is_away()):
                    return
                pause = self._pause(dispatcher, served=served)
            except Exception:
                # Whatever it was, the others wait all the same: look again a little later.
                log.exception("queue not served")
            if self._ends_at is not None:
                left = self._ends_at - self._clock.monotonic()
                if left <= 0.0:
                    return
                pause = min(pause or left, left)
            self._news.wait(pause)

    def _is_away(self) -> bool:
        return self._breaker.server() is not Circuit.CLOSED

    def _pause(self, dispatcher: Dispatcher, *, served: bool) -> float | None:
        """Return the seconds until the next look; None when only news can bring one."""
        if served:
            return LOOK if self._store.queue_length() else None
        due_at = dispatcher.due_at
        return None if due_at is None else max(0.0, due_at - self._clock.monotonic())
