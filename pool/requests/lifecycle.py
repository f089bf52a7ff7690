"""What follows when data was sent: pure decisions, the same for a caller that waits for the answer
and for the daemon that serves what was accepted before."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import Final

from pool.cvat import cut_off, left_untouched, tells_of_other_data
from pool.errors import (
    CvatAmbiguous,
    CvatBusy,
    CvatError,
    CvatForbidden,
    CvatNotFound,
    CvatRefusedCredentials,
    CvatRejected,
    CvatUnreachable,
    PoolError,
)

#: Tasks that a request gets at most while its caller waits for the answer: a task can be gone or
#: burnt through no fault of its data, but not time and again.
MOST_TASKS: Final = 3
#: An operation that fails so often, over so many seconds at least, while it succeeds for others,
#: fails for a reason of its own.
OWN_FAILURES: Final = 3
OWN_SECONDS: Final = 30.0
REFUSALS: Final = (CvatRefusedCredentials, CvatForbidden, CvatRejected)


class Delivery(Enum):
    """How things stand after an upload."""

    #: CVAT has the data, even if its answer was lost.
    ACCEPTED = auto()
    #: Nothing reached the task; it can be given back.
    UNTOUCHED = auto()
    #: The task is no use, but the data may be fine: another task may take it.
    TASK_LOST = auto()
    #: The answer was lost, and CVAT could not be asked what has become of the data.
    UNSETTLED = auto()
    #: CVAT does not want this data.
    REFUSED = auto()


class Fault(Enum):
    """The fault domain of a failed upload. None stands for the data, or the task, alone."""

    #: The server as a whole, or the whole template: it passes, or a person ends it.
    SHARED = auto()
    #: Probably the request alone, since the same works for others; not certain yet.
    SUSPECT = auto()
    #: The request alone, for certain.
    OWN = auto()


class Step(Enum):
    """What is done next for a request."""

    #: Nothing: CVAT has the data, and its import is tracked.
    DONE = auto()
    #: Send the data again, into another task; this one is thrown away.
    ANOTHER_TASK = auto()
    #: Wait until CVAT takes data again. The task is warm again if it is untouched.
    WAIT = auto()
    #: Queue the requests of a group again, in parts: one of them only need be the cause. The task
    #: is warm again if it is untouched.
    SPLIT = auto()
    #: End the request. The task is warm again if it is untouched.
    FAIL = auto()


def next_step(
    delivery: Delivery,
    fault: Fault | None,
    *,
    tasks_left: int,
    accepted: bool,
    shared: bool = False,
) -> Step:
    """Decide what follows from an upload.

    ``tasks_left`` is how many more tasks the request may use up. ``accepted`` says that its caller
    was answered before, so that only what is the request's own ends it: an outage fails nothing
    then, however long it lasts. ``shared``: the upload is that of several requests, none of which
    fails for another.
    """
    step = _next_step(delivery, fault, tasks_left=tasks_left, accepted=accepted)
    return Step.SPLIT if shared and step is Step.FAIL else step


def _next_step(delivery: Delivery, fault: Fault | None, *, tasks_left: int, accepted: bool) -> Step:
    match delivery, fault:
        case Delivery.ACCEPTED, _:
            return Step.DONE
        case _, Fault.OWN:
            return Step.FAIL
        case Delivery.UNTOUCHED | Delivery.REFUSED, None:
            return Step.FAIL
        case ((Delivery.UNTOUCHED | Delivery.REFUSED | Delivery.UNSETTLED), Fault()):
            # Another task now would most likely go the same way.
            return Step.WAIT
    if tasks_left > 0:
        return Step.ANOTHER_TASK
    if fault is Fault.SHARED or (fault is Fault.SUSPECT and accepted):
        return Step.WAIT
    return Step.FAIL


def delivery_of(error: PoolError) -> Delivery:
    """Return what an error of an upload says about the data. ``UNSETTLED`` calls for a look at the
    server (CVAT.md, fact 10)."""
    if isinstance(error, CvatNotFound) or cut_off(error):
        return Delivery.TASK_LOST
    if isinstance(error, CvatRejected) and tells_of_other_data(error.detail):
        # Another caller's data is in it, which is left alone when the task is thrown away.
        return Delivery.TASK_LOST
    if outcome_unknown(error):
        return Delivery.UNSETTLED
    return Delivery.UNTOUCHED if left_untouched(error) else Delivery.REFUSED


def outcome_unknown(error: PoolError) -> bool:
    """Whether the server may have done what was asked although it did not say so.

    A lost answer, and a 5xx, which a proxy may send while the server behind it goes on.
    """
    if isinstance(error, CvatAmbiguous):
        return True
    return isinstance(error, CvatBusy) and (error.http_status or 0) >= 500


def is_away(error: BaseException) -> bool:
    """Whether CVAT cannot be reached, is too busy, or fails."""
    return isinstance(error, CvatUnreachable | CvatBusy)


def is_passing(error: BaseException) -> bool:
    """Whether a failure may pass by itself: as :func:`is_away`, or an answer that is none of
    CVAT's, such as a maintenance page."""
    return isinstance(error, CvatError) and not isinstance(error, (*REFUSALS, CvatNotFound))


def may_be_shared(error: PoolError, *, accepted: bool) -> bool:
    """Whether a failure may be about more than the request and its task, and is worth waiting for.

    For an accepted request that is what passes by itself, and CVAT's word about credentials and
    permissions. A caller that waits for the answer gets an error for its own credentials, which may
    not be the daemon's, and for an upload that a proxy cuts off each time.
    """
    if not accepted:
        return is_away(error) and not cut_off(error)
    return is_passing(error) or isinstance(error, CvatRefusedCredentials | CvatForbidden)


def is_own_fault(failed_at: Sequence[float], *, others_succeeded: bool) -> bool:
    """Whether an operation that failed at these times, while it succeeded for others or not, has
    a fault of its own. Where nothing succeeds it is an outage, however long that lasts."""
    return (
        others_succeeded
        and len(failed_at) >= OWN_FAILURES
        and failed_at[-1] - failed_at[0] >= OWN_SECONDS
    )
