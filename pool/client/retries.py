"""When a call is made again: after lost connections and refusals for now, and not for ever.

Every call of the API may be made twice: what creates something bears an idempotency key, and the
rest comes to the same. So all that decides is whether another try can help, and for how long
somebody is willing to wait for that.
"""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import count
from typing import Final

from pool.client.answers import error_in
from pool.client.steps import Answer, Call, Lost, Pause, Talk
from pool.clock import Clock
from pool.config.arguments import check_seconds
from pool.config.units import retry_after
from pool.errors import (
    CvatError,
    ImportTimedOut,
    PoolEmpty,
    PoolError,
    PoolUnreachable,
    WaitTimeout,
)
from pool.logs import get_logger

log = get_logger(__name__)

#: Seconds that the pause before a second try lasts at most; it doubles, up to the cap.
BASE: Final = 0.2
CAP: Final = 5.0
#: Seconds for which a daemon is tried that has never answered: it may be just starting, but more
#: likely it does not run, or the address is wrong.
FIRST_CONTACT: Final = 5.0

#: Statuses that may pass by themselves (RFC 9110, section 15; RFC 6585, section 4).
_PASSING: Final = frozenset({429, 502, 503, 504})
#: What was asked for came to this; asking again would not be the same question.
_VERDICTS: Final = (PoolEmpty, WaitTimeout, ImportTimedOut, CvatError)


def refused_for_now(answer: Answer, error: PoolError) -> bool:
    """Whether an answer says, or lets one hope, that the same call is taken later.

    The daemon says so with ``Retry-After``; of a proxy before it, whose daemon is being
    restarted, one may hope it.
    """
    if answer.status not in _PASSING or isinstance(error, _VERDICTS):
        return False
    return "retry-after" in answer.headers or isinstance(error, PoolUnreachable)


def pause_before(attempt: int, wanted: float | None, *, rng: random.Random) -> float:
    """Seconds until try number ``attempt``, counted from 1 for the second one, is made.

    Exponential with full jitter
    (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/), on top of what
    the daemon ``wanted``, so that those who were told the same do not come back together.
    """
    ceiling = min(CAP, BASE * 2.0 ** min(attempt - 1, 10))
    return (wanted or 0.0) + rng.uniform(0.1 * ceiling, ceiling)


class Retries:
    """Makes calls again for at most ``patience`` seconds after the first failure."""

    def __init__(self, *, patience: float, clock: Clock, rng: random.Random) -> None:
        self._patience = check_seconds("patience", patience)
        self._clock = clock
        self._rng = rng
        self._reached = False

    def insist(self, call: Call, *, until: float | None = None) -> Talk[Answer]:
        """The answer to a call, be it granted or refused for good; ``until`` is when no try is
        made any more, on the monotonic clock.

        :raises PoolUnreachable: no answer came in time.
        """
        end: float | None = None
        doubted = False
        for attempt in count(1):
            answer: Answer | None = None
            wanted: float | None = None
            try:
                answer = yield call
            except Lost as lost:
                doubted = doubted or lost.sent
                error: PoolError = PoolUnreachable(lost.why)
                again = not lost.lasting and _can_be_sent_again(call, lost)
            else:
                assert answer is not None, "a call is followed by its answer"
                self._reached = True
                if answer.status < 300:
                    return answer
                error = error_in(answer)
                again = refused_for_now(answer, error)
                wanted = retry_after(answer.headers.get("retry-after"), now=self._clock.now())
                # Whoever answers for a daemon that it lost does not know what became of the call.
                doubted = doubted or (again and isinstance(error, PoolUnreachable))
            now = self._clock.monotonic()
            if end is None:
                end = now + (
                    self._patience if self._reached else min(self._patience, FIRST_CONTACT)
                )
                end = end if until is None else min(end, until)
            pause = pause_before(attempt, wanted, rng=self._rng)
            if not again or now + pause > end:
                if answer is None:
                    raise error
                return replace(answer, doubted=doubted)
            log.info("call tried again", path=call.path, why=str(error), pause=round(pause, 3))
            yield Pause(pause)
        raise AssertionError("tries end with an answer or an error")


def _can_be_sent_again(call: Call, lost: Lost) -> bool:
    return call.body is None or not lost.sent or call.body.replayable
