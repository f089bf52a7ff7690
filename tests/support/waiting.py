"""Waits of tests for what stands in a store, whichever process brings it about."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from pool.clock import SystemClock
from pool.events.feed import Feed
from pool.store import Store

#: Seconds after which a test gives up, and until the next check when nothing is committed.
PATIENCE = 60.0
RECHECK = 2.0
#: Seconds between two checks of what is announced nowhere.
POLL = 0.005


def wait_until(store: Store, condition: Callable[[], object], patience: float = PATIENCE) -> None:
    """Return once the condition holds, which is checked after each commit to the store.

    :raises AssertionError: it does not hold after ``patience`` seconds.
    """
    feed, committed = Feed(store, clock=SystemClock()), threading.Event()
    feed.on(lambda _: committed.set())
    end = time.monotonic() + patience
    try:
        while not condition():
            assert time.monotonic() < end, "it did not come to that"
            committed.wait(RECHECK)
            committed.clear()
    finally:
        feed.close()


def poll_until(condition: Callable[[], object], patience: float = PATIENCE) -> None:
    """Return once the condition holds, of what is announced nowhere.

    :raises AssertionError: it does not hold after ``patience`` seconds.
    """
    end, pause = time.monotonic() + patience, threading.Event()
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        pause.wait(POLL)
