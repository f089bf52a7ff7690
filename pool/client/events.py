"""The daemon's stream of events as its listener reads it, over as many connections as it takes."""

from __future__ import annotations

from collections.abc import Collection

from pool.client.answers import event_in
from pool.client.steps import Call
from pool.config.arguments import check_template
from pool.errors import InputError
from pool.model import KINDS, Event

#: Seconds that the stream may be silent beside the time-out of an answer: the daemon sends a
#: comment every 15 seconds.
SILENCE = 15.0


class Following:
    """One listener's place in the events: what it asks for, and what it makes of the bytes.

    Reads server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html) as
    far as the daemon uses them. After a lost connection :meth:`call` goes on where it was, so that
    nothing is missed.
    """

    def __init__(
        self,
        *,
        kinds: Collection[str] | None = None,
        template: str | None = None,
        after: int | None = None,
    ) -> None:
        unknown = sorted(set(kinds or ()) - set(KINDS))
        if unknown:
            raise InputError(f"no event is of kind {unknown[0]!r}; there is {', '.join(KINDS)}")
        self._kinds = frozenset(kinds or ())
        self._template = None if template is None else check_template(template)
        self._last = None if after is None else str(after)
        self._rest = b""
        self._id: str | None = None
        self._data: list[str] = []

    def call(self) -> Call:
        """What asks for the events from here on; what was read only in part is read again."""
        self._rest, self._id, self._data = b"", None, []
        headers = {"Accept": "text/event-stream"}
        if self._last is not None:
            headers["Last-Event-ID"] = self._last
        return Call(
            method="GET",
            path="/v1/events",
            query={} if self._template is None else {"template": self._template},
            headers=headers,
            patience=SILENCE,
        )

    def feed(self, data: bytes) -> list[Event]:
        """The events that are complete with these bytes.

        :raises PoolError: one cannot be understood.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        found = [self._line(line.decode("utf-8", "replace")) for line in lines]
        return [event for event in found if event is not None]

    def _line(self, line: str) -> Event | None:
        """An event, when the line is the empty one that ends it."""
        if not line:
            return self._end()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "id":
            self._id = value
        elif name == "data":
            self._data.append(value)
        return None

    def _end(self) -> Event | None:
        data, self._data = "\n".join(self._data), []
        place, self._id = self._id, None
        if place is None:
            return None  # levels, or a comment
        event = event_in(data) if data else None
        self._last = place
        if event is None or (self._kinds and event.kind not in self._kinds):
            return None
        return event
