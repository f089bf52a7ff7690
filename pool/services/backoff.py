"""What to do after a failure: who holds, until when, and what to tell people meanwhile.

This is the one policy for failures of creates, and of uploads of requests that wait in the spool.
The hold of the server as a whole is a circuit breaker (Nygard, "Release It!", 2007): while it lasts
no template calls; then one create tries, and one request, and the success of either ends the hold.
"""

from __future__ import annotations

import random
from enum import Enum, auto

from pool.errors import (
    CvatBusy,
    CvatForbidden,
    CvatRefusedCredentials,
    CvatRejected,
    CvatUnreachable,
    PoolError,
)
from pool.model import Hold

#: A passing failure is tried again within this many seconds at first, and doubles up to the cap.
TRANSIENT_BASE = 1.0
TRANSIENT_CAP = 60.0

#: A refusal wants a person; asking again this rarely only notices that the person came.
REFUSED_BASE = 60.0
REFUSED_CAP = 900.0

REFUSALS = (CvatRefusedCredentials, CvatForbidden, CvatRejected)

#: The name under which the server as a whole is held: no template can be called so.
SERVER = ""


class Gate(Enum):
    """What a hold leaves to try now."""

    #: Anything: there is no hold.
    OPEN = auto()
    #: One thing, to see whether the trouble is over.
    AJAR = auto()
    #: Nothing.
    SHUT = auto()


def gate(hold: Hold | None, *, now: float) -> Gate:
    """What may be tried now. A hold without a time for the next try waits for a person."""
    if hold is None:
        return Gate.OPEN
    return Gate.SHUT if hold.retry_at is None or too_early(hold, now=now) else Gate.AJAR


def too_early(hold: Hold, *, now: float) -> bool:
    """Whether the time for the next try is yet to come. A hold that begins in times to come began
    before the clock was set back, so that its times mean nothing."""
    return hold.retry_at is not None and hold.since <= now < hold.retry_at


def is_away(error: BaseException) -> bool:
    """Whether the server cannot be reached or is too busy, which passes by itself."""
    return isinstance(error, CvatUnreachable | CvatBusy)


def held_by(template: str, error: PoolError) -> str:
    """What a failed create holds: its own template when CVAT refused it, and the server as a
    whole, for all templates, when it could not be reached or was too busy."""
    return template if isinstance(error, REFUSALS) else SERVER


def hold_after(
    template: str, error: PoolError, previous: Hold | None, *, now: float, rng: random.Random
) -> Hold:
    """The hold that follows a failed create.

    Passing failures (429, 5xx, lost connections) back off exponentially with full jitter
    (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/) and honour
    ``Retry-After``; refusals (400, 401, 403) are tried again after minutes.
    """
    attempts = 1
    if previous is not None:
        # Creates that ran at the same time fail together; that is one failure, not several.
        together = previous.retry_at is not None and now < previous.retry_at
        attempts = previous.attempts + (not together)
    if isinstance(error, REFUSALS):
        delay = min(REFUSED_CAP, REFUSED_BASE * 2.0 ** min(attempts - 1, 10))
    else:
        ceiling = min(TRANSIENT_CAP, TRANSIENT_BASE * 2.0 ** min(attempts - 1, 10))
        delay = rng.uniform(0.1 * ceiling, ceiling)
        if isinstance(error, CvatBusy) and error.retry_after is not None:
            delay = max(delay, error.retry_after)
    return Hold(
        template=template,
        code=error.code,
        reason=str(error),
        since=min(previous.since, now) if previous is not None else now,
        retry_at=now + delay,
        attempts=attempts,
    )
