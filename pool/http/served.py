"""What one app works on: the parts of the daemon that its routers are made for."""

from __future__ import annotations

from dataclasses import dataclass, field

from pool.http.ending import Ending
from pool.http.webhooks import Receiver
from pool.observability.observation import Observation
from pool.process import Engine
from pool.requests.dispatcher import Dispatch


@dataclass(frozen=True, kw_only=True)
class Served:
    """The parts of one daemon. ``dispatch`` serves the requests that are accepted, and
    ``receiver`` takes webhooks. ``tokens`` are what callers have to show one of; without any, only
    this machine's own programs are served. ``observation`` looks at the engine; None makes one
    that nothing is counted for. ``ending`` tells when answers have to come to an end.
    """

    engine: Engine
    dispatch: Dispatch
    receiver: Receiver
    tokens: tuple[str, ...] = ()
    observation: Observation | None = None
    ending: Ending = field(default_factory=Ending)
