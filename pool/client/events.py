"""Client of the daemon's stream of events, which reconnects."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Collection
from contextlib import suppress
from typing import Final

import httpx

from pool.client.parse import parse_event
from pool.client.transport import Call, Transport
from pool.config.arguments import check_template
from pool.errors import InputError, PoolError
from pool.model import KINDS, Event

#: Seconds of silence that are allowed beside the time-out of an answer: the daemon sends a comment
#: every 15 seconds.
SILENCE: Final = 15.0
#: Seconds before a stream that ended is opened again.
PAUSE: Final = 0.05


class EventStream:
    """A stream of events, and the id of the last one that was read.

    Parses server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html) as
    far as the daemon uses them. A new connection continues after the last event, so that none is
    missed.

    :raises InputError: a kind does not exist, or the name of the template is invalid.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        kinds: Collection[str] | None,
        template: str | None,
        after: int | None,
    ) -> None:
        unknown = sorted(set(kinds or ()) - set(KINDS))
        if unknown:
            raise InputError(f"no event is of kind {unknown[0]!r}; there is {', '.join(KINDS)}")
        self._transport = transport
        self._kinds = frozenset(kinds or ())
        self._query = None if template is None else {"template": check_template(template)}
        self._last_id = None if after is None else str(after)
        self._response: httpx.Response | None = None
        self._pieces: AsyncIterator[bytes] | None = None
        self._ready: deque[Event] = deque()
        self._rest = b""
        self._id: str | None = None
        self._data: list[str] = []

    async def open(self) -> None:
        """Connect, to continue after the last event; a partly read event is read again.

        :raises PoolUnreachable: no daemon answers.
        """
        self._rest, self._id, self._data = b"", None, []
        headers = {"Accept": "text/event-stream"}
        if self._last_id is not None:
            headers["Last-Event-ID"] = self._last_id
        self._response = await self._transport.stream(
            Call(method="GET", path="/v1/events", query=self._query, headers=headers, slack=SILENCE)
        )
        self._pieces = self._response.aiter_bytes()

    async def next(self) -> Event:
        """Wait for the next event and return it; reconnect while the daemon restarts.

        :raises PoolUnreachable: that took too long; the next call continues where this one ended.
        :raises PoolError: an event is malformed.
        """
        while not self._ready:
            if self._pieces is None:
                await self._transport.sleep(PAUSE)
                await self.open()
                continue
            piece = None
            with suppress(httpx.RequestError, httpx.StreamError):
                piece = await anext(self._pieces, None)
            if piece is None:
                await self.close()
                continue
            try:
                self._feed(piece)
            except PoolError:
                await self.close()
                raise
        return self._ready.popleft()

    async def close(self) -> None:
        """Close the connection; :meth:`next` opens another."""
        response, self._response, self._pieces = self._response, None, None
        if response is not None:
            await response.aclose()

    # --- Reading --------------------------------------------------------------------------------

    def _feed(self, piece: bytes) -> None:
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            name, _, value = line.decode("utf-8", "replace").partition(":")
            value = value.removeprefix(" ")
            if not line:
                self._end_message()
            elif name == "id":
                self._id = value
            elif name == "data":
                self._data.append(value)

    def _end_message(self) -> None:
        data, self._data = "\n".join(self._data), []
        place, self._id = self._id, None
        if place is None:
            return  # levels, or a comment
        event = parse_event(data) if data else None
        self._last_id = place
        if event is not None and (not self._kinds or event.kind in self._kinds):
            self._ready.append(event)
