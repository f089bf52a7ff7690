"""Waits of tests for what stands in a store, whichever process brings it about."""

from __future__ import annotations

from collections.abc import Callable

from pool.clock import SystemClock
from pool.events.feed import Feed
from pool.store import Store

#: Seconds after which a test gives up.
PATIENCE = 60.0


def wait_until(store: Store, condition: Callable[[], object], patience: float = PATIENCE) -> None:
    """Return once the condition holds, which is checked after each commit to the store.

    :raises AssertionError: it does not hold after ``patience`` seconds.
    """
    feed = Feed(store, clock=SystemClock())
    try:
        assert feed.wait_for(lambda: condition() or None, patience), "it did not come to that"
    finally:
        feed.close()
