"""What follows from an upload: the whole table of the one decision, and what goes into it."""

from __future__ import annotations

from itertools import product

import pytest

from pool.errors import (
    ConfigError,
    CvatAmbiguous,
    CvatBusy,
    CvatError,
    CvatForbidden,
    CvatNotFound,
    CvatRefusedCredentials,
    CvatRejected,
    CvatUnreachable,
    InputError,
    PoolError,
)
from pool.requests.lifecycle import (
    OWN_FAILURES,
    OWN_SECONDS,
    Delivery,
    Fault,
    Step,
    delivery_of,
    is_away,
    is_own_fault,
    is_passing,
    may_be_shared,
    next_step,
)

#: By delivery and fault: the steps of a caller that waits with tasks left and with none, and those
#: of a request that was accepted.
D, A, W, F = Step.DONE, Step.ANOTHER_TASK, Step.WAIT, Step.FAIL
TABLE = {
    (Delivery.ACCEPTED, None): (D, D, D, D),
    (Delivery.ACCEPTED, Fault.SHARED): (D, D, D, D),
    (Delivery.ACCEPTED, Fault.SUSPECT): (D, D, D, D),
    (Delivery.ACCEPTED, Fault.OWN): (D, D, D, D),
    (Delivery.UNTOUCHED, None): (F, F, F, F),
    (Delivery.UNTOUCHED, Fault.SHARED): (W, W, W, W),
    (Delivery.UNTOUCHED, Fault.SUSPECT): (W, W, W, W),
    (Delivery.UNTOUCHED, Fault.OWN): (F, F, F, F),
    (Delivery.REFUSED, None): (F, F, F, F),
    (Delivery.REFUSED, Fault.SHARED): (W, W, W, W),
    (Delivery.REFUSED, Fault.SUSPECT): (W, W, W, W),
    (Delivery.REFUSED, Fault.OWN): (F, F, F, F),
    (Delivery.TASK_LOST, None): (A, F, A, F),
    (Delivery.TASK_LOST, Fault.SHARED): (A, W, A, W),
    (Delivery.TASK_LOST, Fault.SUSPECT): (A, F, A, W),
    (Delivery.TASK_LOST, Fault.OWN): (F, F, F, F),
    (Delivery.UNSETTLED, None): (A, F, A, F),
    (Delivery.UNSETTLED, Fault.SHARED): (W, W, W, W),
    (Delivery.UNSETTLED, Fault.SUSPECT): (W, W, W, W),
    (Delivery.UNSETTLED, Fault.OWN): (F, F, F, F),
}


def test_the_table_is_whole() -> None:
    assert set(TABLE) == set(product(Delivery, (None, *Fault)))


@pytest.mark.parametrize(("delivery", "fault"), TABLE)
def test_what_is_done_next(delivery: Delivery, fault: Fault | None) -> None:
    steps = tuple(
        next_step(delivery, fault, tasks_left=left, accepted=accepted)
        for accepted in (False, True)
        for left in (1, 0)
    )
    assert steps == TABLE[delivery, fault]
    many = next_step(delivery, fault, tasks_left=9, accepted=True)
    assert many is steps[2]


@pytest.mark.parametrize("delivery", Delivery)
@pytest.mark.parametrize("left", [0, 1, 4])
def test_an_outage_ends_no_accepted_request(delivery: Delivery, left: int) -> None:
    assert next_step(delivery, Fault.SHARED, tasks_left=left, accepted=True) is not Step.FAIL


def touched(error: PoolError) -> PoolError:
    error.task_touched = True
    return error


def unfinished(error: PoolError) -> PoolError:
    error.import_not_begun = True
    return touched(error)


@pytest.mark.parametrize(
    ("error", "delivery"),
    [
        (CvatNotFound("404"), Delivery.TASK_LOST),
        (CvatRejected("Adding more data is not supported"), Delivery.TASK_LOST),
        (CvatRejected("400"), Delivery.REFUSED),
        (CvatAmbiguous("reset"), Delivery.UNSETTLED),
        (CvatBusy("500", http_status=500), Delivery.UNSETTLED),
        (CvatBusy("429", http_status=429), Delivery.UNTOUCHED),
        (CvatUnreachable("refused"), Delivery.UNTOUCHED),
        (CvatRefusedCredentials("401"), Delivery.UNTOUCHED),
        (CvatForbidden("403"), Delivery.UNTOUCHED),
        (InputError("a.jpg: gone"), Delivery.UNTOUCHED),
        (ConfigError("no credentials"), Delivery.UNTOUCHED),
        (CvatError("does not look like a CVAT server"), Delivery.REFUSED),
        (touched(CvatUnreachable("reset")), Delivery.TASK_LOST),
        (unfinished(CvatAmbiguous("reset")), Delivery.TASK_LOST),
        (unfinished(CvatBusy("503", http_status=503)), Delivery.TASK_LOST),
        (touched(CvatBusy("429", http_status=429)), Delivery.REFUSED),
        (touched(CvatForbidden("403")), Delivery.REFUSED),
        (touched(InputError("a.jpg: shrank")), Delivery.REFUSED),
    ],
)
def test_what_an_error_says_about_the_data(error: PoolError, delivery: Delivery) -> None:
    assert delivery_of(error) is delivery


@pytest.mark.parametrize(
    ("error", "away", "passing", "shared"),
    [
        (CvatUnreachable("refused"), True, True, True),
        (CvatAmbiguous("reset"), True, True, True),
        (CvatBusy("429", http_status=429), True, True, True),
        (CvatBusy("503", http_status=503), True, True, True),
        (CvatError("does not look like a CVAT server"), False, True, True),
        (CvatRefusedCredentials("401"), False, False, True),
        (CvatForbidden("403"), False, False, True),
        (CvatRejected("400"), False, False, False),
        (CvatNotFound("404"), False, False, False),
        (InputError("a.jpg: gone"), False, False, False),
        (ConfigError("no credentials"), False, False, False),
    ],
)
def test_whether_others_may_fail_too(
    error: PoolError, away: bool, passing: bool, shared: bool
) -> None:
    assert (is_away(error), is_passing(error)) == (away, passing)
    assert may_be_shared(error, accepted=True) is shared
    assert may_be_shared(error, accepted=False) is away


def test_a_caller_hears_of_an_upload_that_is_cut_off() -> None:
    cut = touched(CvatUnreachable("reset"))
    assert may_be_shared(cut, accepted=True)
    assert not may_be_shared(cut, accepted=False)


@pytest.mark.parametrize(
    ("failed_at", "others", "own"),
    [
        ((70.0, 85.0, 70.0 + OWN_SECONDS), True, True),
        ((0.0, 15.0, OWN_SECONDS), False, False),
        ((70.0, 85.0, 69.9 + OWN_SECONDS), True, False),
        ((0.0, OWN_SECONDS * 9), True, False),
        (tuple(range(100)), False, False),
        ((), True, False),
    ],
)
def test_when_an_operation_has_a_fault_of_its_own(
    failed_at: tuple[float, ...], others: bool, own: bool
) -> None:
    assert OWN_FAILURES == 3
    assert is_own_fault(failed_at, others_succeeded=others) is own
