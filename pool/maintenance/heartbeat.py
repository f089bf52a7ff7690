"""Renew the claim of a live process on what it owns; others take over once it is gone.

A claim that was not renewed in time does not say that its process is gone: when the store was away
(its server was restarted, a disk hung), no process could renew one, and the first that is back must
not take the others for dead. So others are judged as of one's own last renewal, never as of a
later time; and where no process at all has renewed its claim for a while, all get another term.
"""

from __future__ import annotations

import math
import os
import secrets
import socket
import threading
from collections.abc import Callable, Mapping

from pool.clock import Clock
from pool.errors import StoreError
from pool.logs import get_logger
from pool.store import Store
from pool.version import VERSION

log = get_logger(__name__)

#: Seconds between two renewals, and after how many without one a process counts as gone.
PERIOD = 3.0
TERM = 10.0
#: Seconds until another try after one that failed: the terms of all run on meanwhile.
RETRY = 1.0


def lull() -> float:
    """Return how many seconds without any process's renewal are too many. A claim is up to one
    period older than the newest one, and its process may need another to renew it."""
    return TERM - 2 * PERIOD


def new_owner() -> str:
    """Return a name for this process that no other process has, on any machine."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"


class Heartbeat:
    """Renews the claim of one process on its requests and leases, and calls ``afterwards`` each
    time."""

    def __init__(
        self,
        store: Store,
        owner: str,
        *,
        spools: Callable[[], Mapping[str, str]],
        clock: Clock,
        afterwards: Callable[[], object],
        spool: Callable[[], str] = lambda: "",
        cut_off: Callable[[], bool] = lambda: False,
    ) -> None:
        """``spool`` returns the id of the spool into which the process puts data, ``spools`` those
        of all that it can read, with why it cannot; ``cut_off`` whether it alone cannot reach the
        server."""
        self._store = store
        self._owner = owner
        self._spools = spools
        self._clock = clock
        self._afterwards = afterwards
        self._spool = spool
        self._cut_off = cut_off
        #: When this process began, in seconds since the epoch.
        self.since = clock.now()
        self._is_daemon = False
        self._url = ""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._renewed_at = -math.inf

    def run_once(self) -> None:
        """Renew the claim for :data:`TERM` seconds."""
        # Not when it is done: the store may have kept this waiting.
        now = self._clock.now()
        if spared := self._store.spare_owners(now=now, term=TERM, lull=lull()):
            log.info("claims were not renewed for long; they last another term", claims=spared)
        self._store.renew_owner(
            self._owner,
            until=now + TERM,
            daemon=self._is_daemon,
            url=self._url,
            version=VERSION,
            since=self.since,
            spool=self._spool(),
            spools=self._spools(),
            cut_off=self._cut_off(),
            now=now,
        )
        self._renewed_at = now
        self._afterwards()

    def announce(self, url: str) -> None:
        """Say at once that this process is a daemon at work, which listens at ``url``.

        :raises StoreError: the store cannot be used; the next renewal says it.
        """
        self._is_daemon, self._url = True, url
        self.run_once()

    def withdraw(self) -> None:
        """Say at once that it is a daemon no more: it serves nothing that is queued from now on.

        :raises StoreError: the store cannot be used.
        """
        if self._is_daemon:
            self._is_daemon = False
            self.run_once()

    def judged_at(self) -> float:
        """Return the time as of which this process may judge others: whose term had ended by then
        is gone. Later ends may be due to what has kept this process, too, from renewing."""
        # The clock may have been set back since.
        return min(self._renewed_at, self._clock.now())

    def start(self) -> None:
        """Renew now, and then every :data:`PERIOD` seconds on a thread until :meth:`stop`."""
        self.run_once()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End in an orderly way: what this process owned is free at once."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(PERIOD)
        try:
            self._store.forget_owner(self._owner)
        except StoreError as error:
            log.warning("owner not forgotten", why=str(error))

    def _run(self) -> None:
        pause = PERIOD
        while not self._stop.wait(pause):
            began = self._clock.monotonic()
            try:
                self.run_once()
                # A renewal is as of when it began: after one that took long the next is due.
                pause = max(0.0, began + PERIOD - self._clock.monotonic())
            except StoreError as error:
                log.warning("heartbeat failed", why=str(error))
                pause = min(RETRY, PERIOD)
