"""Hears events on a thread: one stream, over as many connections as it takes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pool.client.events import Following
from pool.client.talks import Talks
from pool.client.wire import Wire
from pool.errors import PoolClosed, PoolError, PoolUnreachable
from pool.logs import get_logger
from pool.model import Event

if TYPE_CHECKING:
    import httpx

log = get_logger(__name__)


class Listening:
    """The events from where ``following`` stands; connected when it is made.

    :raises PoolUnreachable: no daemon answers.
    """

    def __init__(self, wire: Wire, talks: Talks, following: Following) -> None:
        self._wire = wire
        self._talks = talks
        self._following = following
        self._stopped = False
        self._response: httpx.Response | None = self._open()

    def __iter__(self) -> Iterator[Event]:
        """The events, until :meth:`stop`; a daemon that is being restarted is waited for.

        :raises PoolUnreachable: that took too long; iterating again goes on where this ended.
        """
        while not self._stopped:
            if self._response is None:
                self._wire.run(self._talks.rest())
                self._response = self._open()
            try:
                yield from self._events(self._response)
            finally:
                self._response.close()
                self._response = None

    def stop(self) -> None:
        """End it, from any thread."""
        self._stopped = True
        response = self._response
        if response is not None:
            self._wire.hang_up(response)

    def call(self, callback: Callable[[Event], None]) -> None:
        """Call back with each event on a thread of its own, until :meth:`stop`."""
        threading.Thread(
            target=self._call_back, args=(callback,), name="callback", daemon=True
        ).start()

    # --- Inside ---------------------------------------------------------------------------------

    def _open(self) -> httpx.Response:
        return self._wire.open(self._talks.listen(self._following))

    def _events(self, response: httpx.Response) -> Iterator[Event]:
        for data in self._wire.pieces(response):
            for event in self._following.feed(data):
                if self._stopped:
                    return
                yield event

    def _call_back(self, callback: Callable[[Event], None]) -> None:
        while not self._stopped:
            try:
                for event in self:
                    _call(callback, event)
            except PoolUnreachable as error:
                log.warning("events not heard", why=str(error))
            except PoolClosed:
                return
            except PoolError as error:
                log.error("events not heard any more", why=str(error))
                return


def _call(callback: Callable[[Event], None], event: Event) -> None:
    try:
        callback(event)
    except Exception:
        log.exception("callback failed", kind=event.kind, event_id=event.id)
