"""The recommended size of a pool, by the demand that there was."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from pool.model import LeaseRecord, LeaseState, Outcome, PooledTask, TaskState
from pool.services.refill import LEAD_TIME
from pool.services.tuning import Advice, Creates, advise, being_replaced, creates_in
from pool.settings import PoolSettings

NOW = 1_800_000_000.0


def leases(asked_at: Sequence[float], outcome: Outcome | None = Outcome.HIT) -> list[LeaseRecord]:
    return [
        LeaseRecord(
            id=f"l{number}",
            template="scenes",
            state=LeaseState.USED if outcome else LeaseState.ABANDONED,
            owner="",
            outcome=outcome,
            created_at=NOW + at,
        )
        for number, at in enumerate(asked_at)
    ]


def advice(
    found: Sequence[LeaseRecord], *, seconds: float = 1.0, hit_rate: float = 0.99, min_size: int = 5
) -> Advice:
    creates = Creates(count=10, median=seconds, slow=seconds)
    return advise(found, creates, "scenes", PoolSettings(min_size=min_size, hit_rate=hit_rate))


def served_at_once(asked_at: Sequence[float], size: int, seconds: float) -> float:
    """Plays a pool of a size, step by step: the definition that the quick way is held against."""
    hits, ends = 0, []
    for time in asked_at:
        warm = size - sum(end > time for end in ends)
        hits += warm > 0
        ends.append(max([time, *ends]) + seconds)
    return hits / len(asked_at)


def test_what_is_being_replaced_when_somebody_comes() -> None:
    assert being_replaced([0, 10, 20], 1.0) == [0, 0, 0]
    assert being_replaced([0, 0, 0, 0.5, 1.0, 2.5, 9], 1.0) == [0, 1, 2, 3, 3, 3, 0]


def test_callers_who_leave_time_for_a_create_need_one_task() -> None:
    told = advice(leases(range(0, 1000, 2)))
    assert (told.min_size, told.expected) == (1, 1.0)
    assert told.expected_now == 1.0


def test_a_burst_counts_as_the_burst_that_it_was() -> None:
    told = advice(leases([0.0] * 20))
    assert (told.min_size, told.expected) == (20, 1.0)
    assert told.expected_now == 5 / 20


def test_a_rare_burst_matters_as_little_as_the_hit_rate_allows() -> None:
    burst = [20_000.0] * 20
    calm = [float(at) for at in range(0, 19_000, 10)]
    assert advice(leases(calm + burst), hit_rate=0.999).min_size == 19
    assert advice(leases(calm + burst), hit_rate=0.99).min_size == 1


@pytest.mark.parametrize("seed", range(20))
def test_it_is_the_smallest_size_that_serves_the_share(seed: int) -> None:
    rng = random.Random(seed)
    asked_at = sorted(
        rng.uniform(0, 300) if rng.random() < 0.7 else rng.choice([50.0, 51.0, 200.0])
        for _ in range(rng.randint(1, 200))
    )
    seconds, wanted = rng.uniform(0.1, 5.0), rng.choice([0.5, 0.9, 0.99, 1.0])
    told = advice(leases(asked_at), seconds=seconds, hit_rate=wanted)
    assert told.min_size is not None
    shifted = [NOW + at for at in asked_at]
    assert told.expected == served_at_once(shifted, told.min_size, seconds) >= wanted
    assert served_at_once(shifted, told.min_size - 1, seconds) < wanted
    assert told.expected_now == served_at_once(shifted, 5, seconds)


def test_what_came_of_it_is_counted() -> None:
    found = [
        *leases([0, 1, 2]),
        *leases([3], Outcome.WAIT),
        *leases([4, 5], Outcome.COLD),
        *leases([6], None),
    ]
    demanded = advice(found).demanded
    assert (demanded.hits, demanded.waits, demanded.colds, demanded.refused) == (3, 1, 2, 1)
    assert demanded.total == 7
    assert demanded.hit_rate == 3 / 7
    assert demanded.since is not None and demanded.since.timestamp() == NOW


def test_without_demand_nobody_can_tell() -> None:
    told = advice([])
    assert (told.min_size, told.expected, told.expected_now) == (None, None, None)
    assert (told.demanded.total, told.demanded.hit_rate, told.demanded.since) == (0, None, None)


def task(took: float | None) -> PooledTask:
    return PooledTask(
        id="t",
        template="scenes",
        fingerprint="f",
        state=TaskState.READY,
        name="n",
        created_at=NOW,
        warm_at=None if took is None else NOW + took,
        changed_at=NOW,
    )


def test_the_times_of_creates() -> None:
    found = creates_in(
        [task(None), *(task(float(took)) for took in (9, 1, 2, 3, 4, 5, 6, 7, 8, 60))]
    )
    assert (found.count, found.median, found.slow) == (10, 5.0, 9.0)
    assert creates_in([task(0.25)]) == Creates(count=1, median=0.25, slow=0.25)


def test_creates_that_nobody_has_measured() -> None:
    assert creates_in([task(None)]) == Creates(count=0, median=LEAD_TIME, slow=LEAD_TIME)
