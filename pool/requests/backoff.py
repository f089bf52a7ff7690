"""How long something is held after a failure, and what its circuit lets through meanwhile.

A hold is an open circuit breaker (Nygard, "Release It!", 2007): while it lasts nothing is tried;
then one call tries, and its success closes the circuit. :mod:`pool.requests.breaker` decides what
a failure holds: one template, or the server as a whole.
"""

from __future__ import annotations

import random
from enum import Enum, auto

from pool.backoff import backoff
from pool.cvat.failures import LONGEST_BACK_OFF
from pool.errors import (
    CvatBusy,
    CvatError,
    CvatForbidden,
    CvatNotFound,
    CvatRefusedCredentials,
    CvatRejected,
    CvatUnreachable,
    PoolError,
)
from pool.model import Hold

#: A passing failure is tried again within this many seconds at first, and doubles up to the cap.
#: What the server asks for (``Retry-After``) is believed up to the cap as well.
TRANSIENT_BASE = 1.0
TRANSIENT_CAP = LONGEST_BACK_OFF

#: A refusal wants a person; asking again this rarely only notices that the person came.
REFUSED_BASE = 60.0
REFUSED_CAP = 900.0

REFUSALS = (CvatRefusedCredentials, CvatForbidden, CvatRejected)

#: The name under which the server as a whole is held: no template can be called so.
SERVER = ""


class Circuit(Enum):
    """What a hold leaves to try now."""

    #: Anything: there is no hold.
    CLOSED = auto()
    #: One call, to see whether the trouble is over.
    HALF_OPEN = auto()
    #: Nothing.
    OPEN = auto()


def circuit(hold: Hold | None, *, now: float) -> Circuit:
    """What may be tried now. A hold without a time for the next try waits for a person."""
    if hold is None:
        return Circuit.CLOSED
    waits = hold.retry_at is None or too_early(hold, now=now)
    return Circuit.OPEN if waits else Circuit.HALF_OPEN


def too_early(hold: Hold, *, now: float) -> bool:
    """Whether the time for the next try is yet to come. A hold that begins in times to come began
    before the clock was set back, so that its times mean nothing."""
    return hold.retry_at is not None and hold.since <= now < hold.retry_at


def is_away(error: BaseException) -> bool:
    """Whether CVAT cannot be reached, is too busy, or fails."""
    return isinstance(error, CvatUnreachable | CvatBusy)


def is_passing(error: BaseException) -> bool:
    """Whether a failure may pass by itself: as :func:`is_away`, or an answer that is none of
    CVAT's, such as a maintenance page."""
    return isinstance(error, CvatError) and not isinstance(error, (*REFUSALS, CvatNotFound))


def hold_after(
    template: str,
    error: PoolError,
    previous: Hold | None,
    *,
    uploads: bool = False,
    now: float,
    rng: random.Random,
) -> Hold:
    """The hold that follows a failure.

    Passing failures (429, 5xx, lost connections) back off and honour ``Retry-After`` up to the
    longest back-off; refusals (400, 401, 403) are tried again after
    minutes. ``uploads`` tells that data is not taken either.
    """
    refused = isinstance(error, REFUSALS)
    if previous is not None and was_refused(previous) != refused:
        # Another kind of trouble, with pauses of its own.
        previous = None
    attempts = 1
    if previous is not None:
        # Calls that ran at the same time fail together; that is one failure, not several.
        together = previous.retry_at is not None and now < previous.retry_at
        attempts = previous.attempts + (not together)
    if refused:
        delay = backoff(attempts, base=REFUSED_BASE, cap=REFUSED_CAP, least=1.0)
    else:
        delay = backoff(attempts, base=TRANSIENT_BASE, cap=TRANSIENT_CAP, rng=rng)
        if isinstance(error, CvatBusy) and error.retry_after is not None:
            delay = max(delay, min(error.retry_after, TRANSIENT_CAP))
    return Hold(
        template=template,
        code=error.code,
        reason=str(error),
        since=min(previous.since, now) if previous is not None else now,
        retry_at=now + delay,
        attempts=attempts,
        uploads=uploads or (previous is not None and previous.uploads),
    )


def was_refused(hold: Hold) -> bool:
    """Whether a hold is for a refusal, which wants a person, and not for a passing failure."""
    return hold.code in {kind.code for kind in REFUSALS}
