"""The recommended size of a pool, by the demand that there was."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import pytest

from pool.config.settings import PoolSettings
from pool.maintenance.sizing import LEAD_TIME
from pool.maintenance.tuning import Advice, Creates, advise, being_replaced, creates_in
from pool.model import Outcome
from pool.store import Asked

NOW = 1_800_000_000.0


def asked(at: Iterable[float]) -> Asked:
    times = [NOW + seconds for seconds in at]
    return Asked(times=times, outcomes={Outcome.HIT: len(times)})


def advice(
    found: Asked, *, seconds: float = 1.0, hit_rate: float = 0.99, min_size: int = 5
) -> Advice:
    creates = Creates(count=10, median=seconds, slow=seconds)
    return advise(found, creates, "scenes", PoolSettings(min_size=min_size, hit_rate=hit_rate))


def served_at_once(asked_at: Sequence[float], size: int, seconds: float) -> float:
    """Plays a pool of a size, step by step: the definition that the quick way is held against."""
    hits = 0
    ends: list[float] = []
    for time in asked_at:
        warm = size - sum(end > time for end in ends)
        hits += warm > 0
        ends.append(max([time, *ends]) + seconds)
    return hits / len(asked_at)


def test_what_is_being_replaced_when_somebody_comes() -> None:
    assert being_replaced([NOW, NOW + 10, NOW + 20], 1.0) == {0: 3}
    times = [NOW + at for at in (0, 0, 0, 0.5, 1.0, 2.5, 9)]
    assert being_replaced(times, 1.0) == {0: 2, 1: 1, 2: 1, 3: 3}
    assert being_replaced([NOW, NOW, NOW], 0.0) == {0: 3}


def test_callers_who_leave_time_for_a_create_need_one_task() -> None:
    told = advice(asked(range(0, 1000, 2)))
    assert (told.min_size, told.expected) == (1, 1.0)
    assert told.expected_now == 1.0


def test_a_burst_counts_as_the_burst_that_it_was() -> None:
    told = advice(asked([0.0] * 20))
    assert (told.min_size, told.expected) == (20, 1.0)
    assert told.expected_now == 5 / 20


def test_a_rare_burst_matters_as_little_as_the_hit_rate_allows() -> None:
    burst = [20_000.0] * 20
    calm = [float(at) for at in range(0, 19_000, 10)]
    assert advice(asked(calm + burst), hit_rate=0.999).min_size == 19
    assert advice(asked(calm + burst), hit_rate=0.99).min_size == 1


@pytest.mark.parametrize("seed", range(20))
def test_it_is_the_smallest_size_that_serves_the_share(seed: int) -> None:
    rng = random.Random(seed)
    asked_at = sorted(
        rng.uniform(0, 300) if rng.random() < 0.7 else rng.choice([50.0, 51.0, 200.0])
        for _ in range(rng.randint(1, 200))
    )
    seconds, wanted = rng.uniform(0.1, 5.0), rng.choice([0.5, 0.9, 0.99, 0.999])
    told = advice(asked(asked_at), seconds=seconds, hit_rate=wanted)
    assert told.min_size is not None
    shifted = [NOW + at for at in asked_at]
    assert told.expected == served_at_once(shifted, told.min_size, seconds) >= wanted
    assert served_at_once(shifted, told.min_size - 1, seconds) < wanted
    assert told.expected_now == served_at_once(shifted, 5, seconds)


def test_what_came_of_it_is_counted() -> None:
    outcomes = {Outcome.HIT: 3, Outcome.WAIT: 1, Outcome.COLD: 2, None: 1}
    demanded = advice(Asked(times=[NOW + at for at in range(7)], outcomes=outcomes)).demanded
    assert (demanded.hits, demanded.waits, demanded.colds, demanded.refused) == (3, 1, 2, 1)
    assert demanded.total == 7
    assert demanded.hit_rate == 3 / 7
    assert demanded.since is not None and demanded.since.timestamp() == NOW


def test_without_demand_nobody_can_tell() -> None:
    told = advice(asked([]))
    assert (told.min_size, told.expected, told.expected_now) == (None, None, None)
    assert (told.demanded.total, told.demanded.hit_rate, told.demanded.since) == (0, None, None)


def test_the_times_of_creates() -> None:
    found = creates_in([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 60.0])
    assert (found.count, found.median, found.slow) == (10, 5.0, 9.0)
    assert creates_in([0.25]) == Creates(count=1, median=0.25, slow=0.25)


def test_creates_that_nobody_has_measured() -> None:
    assert creates_in([]) == Creates(count=0, median=LEAD_TIME, slow=LEAD_TIME)
