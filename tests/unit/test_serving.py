"""What follows from a failure: whose fault it is, and what becomes of the request."""

from __future__ import annotations

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
from pool.requests.breaker import OWN_FAILURES, OWN_SECONDS, Blame, is_own_fault
from pool.requests.runner import Aftermath
from pool.requests.serving import Verdict, judge, may_be_others
from pool.tracking.tracker import MOST_TASKS_SPOOLED

WAIT, ANOTHER_TASK, FAIL = Verdict.WAIT, Verdict.ANOTHER_TASK, Verdict.FAIL


@pytest.mark.parametrize(
    ("error", "others"),
    [
        (CvatUnreachable("refused"), True),
        (CvatAmbiguous("reset"), True),
        (CvatBusy("429", http_status=429), True),
        (CvatBusy("503", http_status=503), True),
        (CvatError("does not look like a CVAT server"), True),
        (CvatRefusedCredentials("401"), True),
        (CvatForbidden("403"), True),
        (CvatRejected("400"), False),
        (CvatNotFound("404"), False),
        (InputError("a.jpg: gone"), False),
        (ConfigError("no credentials"), False),
    ],
)
def test_whether_others_may_fail_too(error: PoolError, others: bool) -> None:
    assert may_be_others(error) is others


@pytest.mark.parametrize(
    ("aftermath", "blame", "verdict"),
    [
        (Aftermath.UNTOUCHED, Blame.OTHERS, WAIT),
        (Aftermath.UNTOUCHED, Blame.SUSPECT, WAIT),
        (Aftermath.UNTOUCHED, Blame.OWN, FAIL),
        (Aftermath.UNTOUCHED, None, FAIL),
        (Aftermath.REFUSED, None, FAIL),
        (Aftermath.REFUSED, Blame.OTHERS, ANOTHER_TASK),
        (Aftermath.TASK_LOST, None, ANOTHER_TASK),
        (Aftermath.TASK_LOST, Blame.SUSPECT, ANOTHER_TASK),
        (Aftermath.TASK_LOST, Blame.OWN, FAIL),
        (Aftermath.UNSETTLED, Blame.OTHERS, ANOTHER_TASK),
    ],
)
def test_what_becomes_of_the_request(
    aftermath: Aftermath, blame: Blame | None, verdict: Verdict
) -> None:
    assert judge(aftermath, blame, spent=0) is verdict
    assert judge(aftermath, blame, spent=MOST_TASKS_SPOOLED - 2) is verdict
    last = judge(aftermath, blame, spent=MOST_TASKS_SPOOLED - 1)
    assert last is (FAIL if (verdict, blame) == (ANOTHER_TASK, None) else verdict)


@pytest.mark.parametrize(
    ("failed_at", "others", "own"),
    [
        ((0.0, 15.0, OWN_SECONDS), True, True),
        ((0.0, 15.0, OWN_SECONDS), False, False),
        ((0.0, 15.0, OWN_SECONDS - 0.1), True, False),
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
