"""What happened, as records: the events of a store, and how far the sinks have been told. No I/O.

Times are seconds since the Unix epoch, UTC; durations are seconds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final, get_args

from pool.config.settings import EventKind

#: All kinds, in the order in which a request goes through its own.
KINDS: Final[tuple[EventKind, ...]] = get_args(EventKind)


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One change of the state of a request, a lease or a task.

    ``id`` grows from each event to the next that can be seen. ``task_id`` is CVAT's. ``state`` is
    the new one, of what ``kind`` names; ``code`` is why a request failed, the ``code`` of a class
    in :mod:`pool.errors`, or that of a :class:`pool.model.RequestWarning`, and else empty.

    ``seconds`` is what a hand-out took from asking to having, and a request from its creation to
    its end; ``server_seconds`` is CVAT's part of that: what came after it had accepted the data,
    and before that what passed while it or the template was held, and in tries that came to
    nothing. Both are None for all other kinds, ``server_seconds`` also when no data was accepted.
    """

    id: int
    kind: str
    at: float
    template: str
    task_id: int | None = None
    lease_id: str | None = None
    request_id: str | None = None
    state: str
    outcome: str | None = None
    code: str = ""
    seconds: float | None = None
    server_seconds: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SinkRecord:
    """How far one sink has been told: of all events up to ``cursor``, its id.

    ``failing_since`` is when the first delivery failed of all that have failed since the last
    one that was accepted; None while none has.
    """

    name: str
    cursor: int
    failing_since: float | None = None
    delivered: int = 0
    given_up: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class EndedRequest:
    """How a request ended, and how long it took; the fields are those of :class:`Event`."""

    request_id: str
    template: str
    outcome: str | None
    at: float
    seconds: float
    server_seconds: float | None
    state: str
    code: str
    error: str


def event_document(event: Event) -> dict[str, Any]:
    """An event as JSON tells it: its fields, with the time as RFC 3339 has it."""
    return {**asdict(event), "at": rfc3339(event.at)}


def rfc3339(seconds: float) -> str:
    """A time as JSON tells it, to the millisecond: ``2026-01-01T12:00:00.123Z``."""
    time = datetime.fromtimestamp(seconds, UTC)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
