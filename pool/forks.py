"""Hold locks across a fork, since the child gets a copy of what they guard.

A lock that another thread holds at that time is never released in the child, which has no such
thread.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Final, Protocol


class Forked(Protocol):
    """An object that is prepared before each fork of the process, and released after it."""

    def before_fork(self) -> None:
        """Wait until it is not in use, and keep it so."""

    def after_fork(self) -> None:
        """Let it be used again, in the parent and in the child."""


#: Two threads may fork at once.
_one_at_a_time: Final = threading.Lock()
_all: Final[weakref.WeakSet[Forked]] = weakref.WeakSet()
_prepared: Final[list[Forked]] = []


def prepare_for_forks(each: Forked) -> None:
    """Prepare ``each`` before every fork of the process, as long as it exists."""
    with _one_at_a_time:
        _all.add(each)


def _before() -> None:
    _one_at_a_time.acquire()
    for each in tuple(_all):
        each.before_fork()
        _prepared.append(each)


def _after() -> None:
    try:
        while _prepared:
            _prepared.pop().after_fork()
    finally:
        _one_at_a_time.release()


os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after)
