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
from pool.services.intake import Aftermath, Attempt
from pool.services.serving import Culprit, Verdict, culprit_of, judge
from pool.services.watched import MOST_TASKS_SPOOLED

SERVER, TEMPLATE, OWN = Culprit.SERVER, Culprit.TEMPLATE, Culprit.OWN
WAIT, ANOTHER_TASK, FAIL = Verdict.WAIT, Verdict.ANOTHER_TASK, Verdict.FAIL


@pytest.mark.parametrize(
    ("error", "culprit"),
    [
        (CvatUnreachable("refused"), SERVER),
        (CvatAmbiguous("reset"), SERVER),
        (CvatBusy("429", http_status=429), SERVER),
        (CvatBusy("503", http_status=503), SERVER),
        (CvatError("does not look like a CVAT server"), SERVER),
        (CvatRefusedCredentials("401"), TEMPLATE),
        (CvatForbidden("403"), TEMPLATE),
        (CvatRejected("400"), OWN),
        (CvatNotFound("404"), OWN),
        (InputError("a.jpg: gone"), OWN),
        (ConfigError("no credentials"), OWN),
    ],
)
def test_whose_fault_it_is(error: PoolError, culprit: Culprit) -> None:
    assert culprit_of(error) is culprit


@pytest.mark.parametrize(
    ("aftermath", "culprit", "verdict"),
    [
        (Aftermath.UNTOUCHED, SERVER, WAIT),
        (Aftermath.UNTOUCHED, TEMPLATE, WAIT),
        (Aftermath.UNTOUCHED, OWN, FAIL),
        (Aftermath.REFUSED, OWN, FAIL),
        (Aftermath.REFUSED, TEMPLATE, ANOTHER_TASK),
        (Aftermath.REFUSED, SERVER, ANOTHER_TASK),
        (Aftermath.TASK_LOST, OWN, ANOTHER_TASK),
        (Aftermath.TASK_LOST, SERVER, ANOTHER_TASK),
        (Aftermath.UNSETTLED, SERVER, ANOTHER_TASK),
    ],
)
def test_what_becomes_of_the_request(
    aftermath: Aftermath, culprit: Culprit, verdict: Verdict
) -> None:
    attempt = Attempt(aftermath, PoolError("why"))
    assert judge(attempt, culprit, spent=0) is verdict
    assert judge(attempt, culprit, spent=MOST_TASKS_SPOOLED - 2) is verdict
    last = judge(attempt, culprit, spent=MOST_TASKS_SPOOLED - 1)
    assert last is (FAIL if verdict is ANOTHER_TASK else verdict)
