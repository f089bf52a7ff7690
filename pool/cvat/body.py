"""What is sent with a call: in pieces, and with a memory of how far it got."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

#: Bytes given to the connection at a time: few enough that a slow line does not stall one
#: piece for the whole time-out.
SEND_SIZE: Final = 256 * 1024


class Body(Protocol):
    """What is sent with a call, in pieces, without being all in memory."""

    @property
    def content_type(self) -> str:
        """The media type of the body."""

    @property
    def length(self) -> int:
        """Bytes in all."""

    @property
    def replayable(self) -> bool:
        """Whether :meth:`chunks` can be called again, after a renewed login."""

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The bytes to send, ``length`` in all. Raises InputError when a source lacks some."""


@dataclass(frozen=True, slots=True)
class BytesBody:
    """A body that is in memory already."""

    data: bytes | memoryview
    content_type: str = "application/json"
    replayable: bool = True

    @property
    def length(self) -> int:
        return len(self.data)

    def chunks(self) -> Iterator[bytes | memoryview]:
        view = memoryview(self.data)
        for start in range(0, len(view), SEND_SIZE):
            yield view[start : start + SEND_SIZE]


class Sending:
    """Hands a body to the connection piece by piece and remembers how far it got."""

    def __init__(self, body: Body, progress: Callable[[int], None] | None) -> None:
        self._body = body
        self._progress = progress
        self.length = body.length
        #: Bytes that the connection has taken.
        self.sent = 0
        self.started = False
        self.complete = False

    def __iter__(self) -> Iterator[bytes | memoryview]:
        for chunk in self._body.chunks():
            self.started = True
            yield chunk
            self.sent += len(chunk)
            if self._progress is not None:
                self._progress(self.sent)
        self.complete = True
