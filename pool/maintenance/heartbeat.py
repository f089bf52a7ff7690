"""Renew the claim of a live process on what it owns; others take over once it is gone."""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections.abc import Callable

from pool.clock import Clock
from pool.errors import StoreError
from pool.logs import get_logger
from pool.store import Store

log = get_logger(__name__)

#: Seconds between two renewals, and after how many without one a process counts as gone.
PERIOD = 3.0
TERM = 10.0


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
        clock: Clock,
        afterwards: Callable[[], object],
    ) -> None:
        self._store = store
        self._owner = owner
        self._clock = clock
        self._afterwards = afterwards
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def run_once(self) -> None:
        """Renew the claim for :data:`TERM` seconds."""
        self._store.renew_owner(self._owner, until=self._clock.now() + TERM)
        self._afterwards()

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
        while not self._stop.wait(PERIOD):
            try:
                self.run_once()
            except StoreError as error:
                log.warning("heartbeat failed", why=str(error))
