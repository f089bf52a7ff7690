from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool.config.settings import PoolSettings
from pool.maintenance.sizing import (
    Target,
    demand_rate,
    poisson_quantile,
    rate_over,
    target_size,
)
from pool.model import Demand, Prewarm

SETTINGS = PoolSettings(min_size=5, max_size=40, hit_rate=0.99)


def history(*counts: int, now: float = 1000.0) -> list[Demand]:
    """Buckets of ten seconds, the last one just begun."""
    return [
        Demand(template="t", start=now - 10.0 * (len(counts) - 1 - index), hits=count)
        for index, count in enumerate(counts)
    ]


def test_without_demand_the_minimum_is_kept() -> None:
    target = target_size([], SETTINGS, lead_time=1.0, now=1000.0)
    assert (target.size, target.rate) == (5, 0.0)
    assert target.reorder_point == 1


def test_the_busiest_window_counts() -> None:
    burst = history(60, 0, 0, 0, 0, 0)
    assert demand_rate(burst, now=1000.0) == pytest.approx(1.0)
    assert demand_rate(burst, now=1240.0) == pytest.approx(60 / 300)


def test_demand_raises_the_target_up_to_the_maximum() -> None:
    busy = target_size(history(*[100] * 6), SETTINGS, lead_time=1.0, now=1000.0)
    assert SETTINGS.min_size < busy.size < SETTINGS.max_size
    busier = target_size(history(*[1000] * 6), SETTINGS, lead_time=1.0, now=1000.0)
    assert busier.size == SETTINGS.max_size


def test_the_whole_target() -> None:
    wide = PoolSettings(min_size=0, max_size=40, hit_rate=0.99)
    target = target_size(history(*[20] * 6), wide, lead_time=3.0, now=1000.0)
    # Six are asked for during three seconds on average, and at most 12 in 99 of 100 cases.
    assert target == Target(size=12, reorder_point=6, rate=2.0, peak_rate=2.0, lead_time=3.0)
    slower = target_size(history(*[20] * 6), wide, lead_time=3.5, now=1000.0)
    assert (slower.size, slower.reorder_point) == (14, 7)
    steady = target_size(history(*[15] * 6), wide, lead_time=5.0, now=1000.0)
    assert (steady.size, steady.reorder_point) == (15, 7)
    calmer = target_size(history(60, 0, 0, 0, 0, 0, now=940.0), wide, lead_time=3.0, now=1000.0)
    assert (calmer.rate, calmer.peak_rate) == (0.0, 0.2)


@pytest.mark.parametrize(
    ("min_size", "max_size", "counts", "reorder_point"),
    [(0, 3, [50] * 6, 2), (0, 1, [50] * 6, 0), (7, 40, [], 1), (10, 40, [], 2)],
)
def test_the_reorder_point_is_below_the_target(
    min_size: int, max_size: int, counts: list[int], reorder_point: int
) -> None:
    settings = PoolSettings(min_size=min_size, max_size=max_size, hit_rate=0.99)
    target = target_size(history(*counts), settings, lead_time=1.0, now=1000.0)
    assert target.reorder_point == reorder_point < target.size


def test_the_rate_is_that_of_the_window_alone() -> None:
    seen = history(1, 2, 4, 8, 16)
    assert rate_over(40.0, seen, now=1000.0) == pytest.approx(30 / 40), "begun 40 s ago: not in it"
    assert rate_over(40.0, seen, now=990.0) == pytest.approx(15 / 40), "one is yet to come"
    assert rate_over(40.0, seen, now=1000.1) == pytest.approx(30 / 40)


def test_an_empty_pool_may_be_wanted() -> None:
    none = PoolSettings(min_size=0, max_size=10)
    target = target_size([], none, lead_time=1.0, now=1000.0)
    assert (target.size, target.reorder_point) == (0, 0)


@given(st.floats(0.01, 400.0), st.floats(0.5, 0.999))
def test_poisson_quantile_is_the_smallest_that_suffices(mean: float, probability: float) -> None:
    k = poisson_quantile(mean, probability)

    def cumulative(most: int) -> float:
        return sum(
            math.exp(i * math.log(mean) - mean - math.lgamma(i + 1)) for i in range(most + 1)
        )

    assert cumulative(k) >= probability - 1e-9
    assert k == 0 or cumulative(k - 1) < probability + 1e-9


def test_poisson_quantile_goes_on_smoothly_for_large_means() -> None:
    below, above = poisson_quantile(499.0, 0.99), poisson_quantile(501.0, 0.99)
    assert 0 <= above - below <= 5


def test_a_share_that_the_rounded_sum_never_reaches() -> None:
    assert poisson_quantile(123.4, 1 - 1e-15) > poisson_quantile(123.4, 0.9999)


def test_the_target_serves_the_promised_share() -> None:
    """Simulated: arrivals at a constant rate, refills that each take the lead time."""
    rng = random.Random(7)
    rate, lead = 8.0, 1.0
    size = poisson_quantile(rate * lead, 0.95) + 1
    now, hits, total = 0.0, 0, 20_000
    warm_at: list[float] = [0.0] * size
    for _ in range(total):
        now += rng.expovariate(rate)
        warm_at.sort()
        if warm_at[0] <= now:
            hits += 1
        warm_at[0] = max(now, warm_at[0]) + lead
    assert hits / total >= 0.94


@pytest.mark.parametrize(
    ("now", "size"),
    [(999.9, 5), (1000.0, 12), (1059.9, 12), (1060.0, 5)],
)
def test_a_prewarm_counts_while_its_time_lasts(now: float, size: int) -> None:
    prewarm = Prewarm(template="t", size=12, since=1000.0, until=1060.0)
    assert target_size([], SETTINGS, lead_time=1.0, now=now, prewarm=prewarm).size == size


def test_a_prewarm_neither_lowers_the_target_nor_passes_the_maximum() -> None:
    def size(wished: int, demand: list[Demand]) -> int:
        prewarm = Prewarm(template="t", size=wished, since=0.0, until=2000.0)
        return target_size(demand, SETTINGS, lead_time=1.0, now=1000.0, prewarm=prewarm).size

    assert size(2, []) == SETTINGS.min_size
    assert size(99, []) == SETTINGS.max_size, "it was lowered since"
    busy = history(*[100] * 6)
    assert size(6, busy) == target_size(busy, SETTINGS, lead_time=1.0, now=1000.0).size > 6
