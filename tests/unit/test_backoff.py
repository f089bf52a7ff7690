from __future__ import annotations

import random

import pytest

from pool.errors import CvatBusy, CvatForbidden, CvatRefusedCredentials, CvatUnreachable, PoolError
from pool.model import Hold
from pool.services.backoff import REFUSED_CAP, TRANSIENT_CAP, hold_after


def chain(error: PoolError, count: int, seed: int = 1) -> list[Hold]:
    rng = random.Random(seed)
    holds: list[Hold] = []
    for number in range(count):
        previous = holds[-1] if holds else None
        holds.append(hold_after("scenes", error, previous, now=100.0 + number, rng=rng))
    return holds


def delay(hold: Hold, position: int) -> float:
    assert hold.retry_at is not None
    return hold.retry_at - (100.0 + position)


def test_passing_failures_back_off_up_to_the_cap() -> None:
    holds = chain(CvatUnreachable("refused"), 12)
    ceilings = [min(TRANSIENT_CAP, 2.0**number) for number in range(12)]
    for number, (hold, ceiling) in enumerate(zip(holds, ceilings, strict=True)):
        assert 0.1 * ceiling <= delay(hold, number) <= ceiling
        assert hold.attempts == number + 1


def test_two_pools_do_not_try_again_at_the_same_moment() -> None:
    first, second = (chain(CvatUnreachable(), 6, seed=seed) for seed in (1, 2))
    assert [hold.retry_at for hold in first] != [hold.retry_at for hold in second]


def test_retry_after_is_the_least() -> None:
    (hold,) = chain(CvatBusy("slow down", http_status=429, retry_after=33.0), 1)
    assert delay(hold, 0) == 33.0


@pytest.mark.parametrize("error", [CvatRefusedCredentials("no"), CvatForbidden("read-only")])
def test_refusals_are_tried_again_after_minutes(error: PoolError) -> None:
    holds = chain(error, 8)
    delays = [delay(hold, number) for number, hold in enumerate(holds)]
    assert delays[0] == 60.0
    assert delays == sorted(delays)
    assert delays[-1] == REFUSED_CAP


def test_a_hold_says_why_and_since_when() -> None:
    holds = chain(CvatForbidden("token is read-only"), 3)
    assert {hold.since for hold in holds} == {100.0}
    assert "read-only" in holds[-1].reason
    assert holds[-1].code == "cvat-forbidden"
