"""Puts requests aside that CVAT cannot take now, for the daemon to serve them later."""

from __future__ import annotations

from collections.abc import Callable

from pool.clock import Clock
from pool.cvat.records import Upload
from pool.errors import QueueFull
from pool.logs import get_logger
from pool.model import RequestRecord, new_id
from pool.requests.backoff import SERVER
from pool.requests.breaker import Breaker
from pool.requests.spool import Spool
from pool.store import Store

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
        breaker: Breaker,
        *,
        most: int,
        clock: Clock,
    ) -> None:
        self._store = store
        self._spool = spool
        self._breaker = breaker
        self._most = most
        self._clock = clock

    @property
    def served(self) -> bool:
        """Whether there is a daemon that would serve what is put aside."""
        return self._store.maintainer(now=self._clock.now()) is not None

    def spares_calls(self, template: str, has_warm: Callable[[], bool]) -> bool:
        """Whether a request of a template would fail now in a way that passes, so that trying
        again is best left to the daemon, and there is one. ``has_warm`` tells whether it needs no
        new task."""
        return self._breaker.is_away(template, has_warm) and self.served

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

    def retry_after(self) -> float:
        """Seconds after which a caller who met a full queue may try again."""
        now = self._clock.monotonic()
        wait = (self._breaker.tries_at([SERVER], now=now) or now) - now
        return min(LONGEST_PAUSE, max(LEAST_PAUSE, wait))
