"""The steps of a talk with a daemon: what is sent, what comes back, and what is waited for.

A talk is a generator that yields steps and is sent what came of them, so it does no I/O itself and
serves threads and asyncio alike; :mod:`pool.client.wire` takes the steps.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pool.client.body import FilesBody

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One HTTP request to the daemon; ``path`` is below the daemon's address, and encoded.

    ``patience`` is how many seconds its answer may take longer than others do.
    """

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Mapping[str, Any] | None = None
    body: FilesBody | None = None
    patience: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What the daemon at ``address``, or something before it, answered; the names of headers are
    in lower case.

    ``doubted`` tells that the call was made before, and that the daemon may have acted on it
    although no answer came.
    """

    address: str
    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes = b""
    doubted: bool = False


@dataclass(frozen=True, slots=True)
class Pause:
    """Nothing is sent for so many ``seconds``."""

    seconds: float


class Lost(Exception):
    """A call got no answer.

    ``sent`` tells that the daemon may have acted on it. ``lasting`` tells that the same would
    happen again: a name that does not exist, a certificate that is not trusted.
    """

    def __init__(self, why: str, *, sent: bool, lasting: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.sent = sent
        self.lasting = lasting


#: Yields steps; is sent an :class:`Answer` for each call, and None for a pause.
Talk = Generator[Call | Pause, Answer | None, T]
