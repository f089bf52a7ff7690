"""Puts requests aside that CVAT cannot take now, for the daemon to serve them later."""

from __future__ import annotations

import random

from pool.clock import Clock
from pool.cvat.records import Upload
from pool.errors import PoolError, QueueFull
from pool.logs import get_logger
from pool.model import Hold, RequestRecord, new_id
from pool.services.backoff import SERVER, hold_after
from pool.spool import Spool
from pool.store.base import Store

log = get_logger(__name__)

#: Seconds after which a caller who met a full queue may try again: at least, and at most. In
#: between it is when CVAT is tried again.
LEAST_PAUSE = 1.0
LONGEST_PAUSE = 60.0


class Queue:
    """The requests of one store that wait in the spool, ``most`` at a time."""

    def __init__(
        self,
        store: Store,
        spool: Spool,
        *,
        most: int,
        clock: Clock,
        rng: random.Random | None = None,
    ) -> None:
        self._store = store
        self._spool = spool
        self._most = most
        self._clock = clock
        self._rng = rng or random.Random()

    @property
    def served(self) -> bool:
        """Whether there is a daemon that would serve what is put aside."""
        return self._store.maintainer(now=self._clock.now()) is not None

    @property
    def spares_calls(self) -> bool:
        """Whether CVAT was away when it was last tried, so that trying again is best left to the
        daemon, and there is one."""
        return SERVER in self._store.holds() and self.served

    def put_aside(self, request: RequestRecord, upload: Upload) -> RequestRecord | None:
        """Keep the data of a request that nothing was done for yet; afterwards it is ``QUEUED``,
        and its task, if it had one, ``WARM`` again. It is on the disk when this returns.

        None when there is no daemon that would serve it. A request that somebody else has ended
        or taken over meanwhile is answered as it is.

        :raises QueueFull: there is no room for it; the request is as it was.
        :raises InputError: its data cannot be read again; likewise.
        :raises StoreError: the disk does not do its part; likewise.
        """
        if not self.served:
            return None
        try:
            # The count that decides comes last, but a full queue should not cost a copy.
            self._check_room()
            self._spool.keep(request.id, upload)
            queued = self._store.queue_request(
                request.id,
                under=request.lease_id,
                lease_id=new_id(self._clock.now()),
                most=self._most,
                now=self._clock.now(),
            )
        except QueueFull as error:
            self._spool.drop(request.id)
            error.retry_after = self.retry_after()
            raise
        if queued is None:
            self._spool.drop(request.id)
            log.info("request not queued: it is somebody else's", request_id=request.id)
            return self._store.request(request.id)
        log.info(
            "request queued", request_id=request.id, template=request.template, bytes=request.size
        )
        return queued

    def _check_room(self) -> None:
        if self._store.queue_length() >= self._most:
            raise QueueFull(f"{self._most} requests wait, as many as daemon.max_queued allows")

    def hold(self, name: str, error: PoolError) -> Hold:
        """Have a template, or the server as a whole, held after a failure, for everybody."""
        now = self._clock.now()
        hold = hold_after(name, error, self._store.holds().get(name), now=now, rng=self._rng)
        self._store.hold(hold)
        log.warning(
            "template holds" if name else "all templates hold",
            template=name,
            why=hold.reason,
            retry_in=round((hold.retry_at or now) - now, 1),
        )
        return hold

    def retry_after(self) -> float:
        """Seconds after which a caller who met a full queue may try again."""
        hold = self._store.holds().get(SERVER)
        wait = (hold.retry_at or 0.0) - self._clock.now() if hold else 0.0
        return min(LONGEST_PAUSE, max(LEAST_PAUSE, wait))
