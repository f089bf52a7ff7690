from __future__ import annotations

import random

import pytest

from pool.backoff import backoff
from pool.errors import CvatBusy, CvatForbidden, CvatRefusedCredentials, CvatUnreachable, PoolError
from pool.model import Hold
from pool.requests.breaker import REFUSED_CAP, TRANSIENT_CAP, hold_after


def chain(error: PoolError, count: int, seed: int = 1) -> list[tuple[Hold, float]]:
    """Holds that follow each other, each failure at the time at which the one before ends; with
    the seconds that each lasts."""
    rng = random.Random(seed)
    now, holds = 100.0, []
    previous: Hold | None = None
    for _ in range(count):
        previous = hold_after("scenes", error, previous, now=now, rng=rng)
        assert previous.retry_at is not None
        holds.append((previous, previous.retry_at - now))
        now = previous.retry_at
    return holds


def test_passing_failures_back_off_up_to_the_cap() -> None:
    holds = chain(CvatUnreachable("refused"), 12)
    ceilings = [min(TRANSIENT_CAP, 2.0**number) for number in range(12)]
    for number, ((hold, delay), ceiling) in enumerate(zip(holds, ceilings, strict=True)):
        assert 0.1 * ceiling - 1e-9 <= delay <= ceiling + 1e-9
        assert hold.attempts == number + 1


def test_two_pools_do_not_try_again_at_the_same_moment() -> None:
    first, second = (chain(CvatUnreachable(), 6, seed=seed) for seed in (1, 2))
    assert [delay for _, delay in first] != [delay for _, delay in second]


@pytest.mark.parametrize(("asked", "granted"), [(33.0, 33.0), (86400.0, TRANSIENT_CAP)])
def test_retry_after_is_the_least(asked: float, granted: float) -> None:
    ((_, delay),) = chain(CvatBusy("slow down", http_status=429, retry_after=asked), 1)
    assert delay == granted


def test_a_refusal_and_a_passing_failure_have_pauses_of_their_own() -> None:
    rng = random.Random(1)
    refused = chain(CvatForbidden("no"), 5)[-1][0]
    hold = hold_after("scenes", CvatUnreachable(), refused, now=refused.retry_at or 0.0, rng=rng)
    assert (hold.attempts, hold.since) == (1, refused.retry_at)


def test_creates_that_fail_together_are_one_failure() -> None:
    rng = random.Random(1)
    first = hold_after("scenes", CvatForbidden(), None, now=100.0, rng=rng)
    second = hold_after("scenes", CvatForbidden(), first, now=100.1, rng=rng)
    assert (first.attempts, second.attempts) == (1, 1)


@pytest.mark.parametrize("error", [CvatRefusedCredentials("no"), CvatForbidden("read-only")])
def test_refusals_are_tried_again_after_minutes(error: PoolError) -> None:
    delays = [delay for _, delay in chain(error, 8)]
    assert delays[0] == 60.0
    assert delays == sorted(delays)
    assert delays[-1] == REFUSED_CAP


def test_a_hold_says_why_and_since_when() -> None:
    holds = [hold for hold, _ in chain(CvatForbidden("token is read-only"), 3)]
    assert {hold.since for hold in holds} == {100.0}
    assert "read-only" in holds[-1].reason
    assert holds[-1].code == "cvat-forbidden"


@pytest.mark.parametrize("least", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(
    ("failures", "ceiling"), [(0, 0.2), (1, 0.2), (2, 0.4), (5, 3.2), (6, 5.0), (9999, 5.0)]
)
def test_a_pause_is_drawn_from_below_a_ceiling_that_doubles(
    failures: int, ceiling: float, least: float
) -> None:
    drawn = [
        backoff(failures, base=0.2, cap=5.0, rng=random.Random(seed), least=least)
        for seed in range(200)
    ]
    assert least * ceiling == pytest.approx(min(drawn), abs=0.05 * ceiling)
    assert max(drawn) == pytest.approx(ceiling, rel=0.05)
    assert least * ceiling <= min(drawn) <= max(drawn) <= ceiling
