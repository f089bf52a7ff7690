"""The statistics of a bench, and in which order it runs its flows."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool.bench.measure import (
    OwnTime,
    Sample,
    interleave,
    quantile,
    ratios,
    spread,
    steps,
)


def sample(task_id: int, ours_ms: float, **more: Any) -> Sample:
    return Sample(task_id=task_id, ours_ms=ours_ms, began=0.0, ended=ours_ms / 1000, **more)


def test_a_quantile_is_interpolated() -> None:
    assert quantile([4.0, 1.0, 3.0, 2.0, 5.0], 0.5) == 3.0
    assert quantile([0.0, 10.0], 0.9) == pytest.approx(9.0)
    assert quantile([7.0], 0.9) == 7.0
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)


def test_a_spread() -> None:
    values = spread([10.0, 20.0, 30.0])
    assert values is not None
    assert (values.median, values.least, values.most) == (20.0, 10.0, 30.0)
    assert values.p90 == pytest.approx(28.0)
    assert spread([]) is None


def test_each_request_is_compared_with_its_own_import() -> None:
    # The slow import makes both times long, and the ratio no worse.
    samples = [sample(1, 110.0), sample(2, 220.0), sample(3, 150.0)]
    own = {1: OwnTime(own_ms=100.0), 2: OwnTime(own_ms=200.0), 3: OwnTime(own_ms=100.0)}
    found = ratios(samples, own)
    assert found is not None
    assert found.median == pytest.approx(1.1)
    assert found.p90 == pytest.approx(1.42)
    assert found.of_medians == pytest.approx(1.5)


def test_requests_of_unknown_server_time_are_left_out_of_the_ratios() -> None:
    found = ratios([sample(1, 120.0), sample(2, 900.0)], {1: OwnTime(own_ms=100.0)})
    assert found is not None
    assert found.median == found.p90 == pytest.approx(1.2)
    assert ratios([sample(1, 120.0)], {}) is None


def test_where_the_time_went() -> None:
    samples = [
        Sample(task_id=1, ours_ms=300.0, began=10.0, ended=10.3, steps_ms={"post": 60.0}),
        Sample(task_id=2, ours_ms=300.0, began=20.0, ended=20.3, steps_ms={"post": 80.0}),
    ]
    own = {1: OwnTime(own_ms=200.0, received_at=10.01, committed_at=10.21)}
    found = steps(samples, own)
    assert found["post"] == 70.0
    assert found["before_server"] == pytest.approx(10.0)
    assert found["server"] == 200.0
    assert found["after_server"] == pytest.approx(90.0)
    assert "server" not in steps(samples, {1: OwnTime(own_ms=200.0)})


# --- The order of the flows ----------------------------------------------------------------------


def test_one_of_each_in_turn() -> None:
    rounds = list(interleave({"a": 3, "b": 3}))
    assert rounds == [(0, ["a", "b"]), (1, ["a", "b"]), (2, ["a", "b"])]


def test_the_rarer_flow_is_spread_evenly() -> None:
    rounds = dict(interleave({"often": 9, "rare": 3}))
    assert [number for number, names in rounds.items() if "rare" in names] == [2, 5, 8]


def test_nothing_to_run() -> None:
    assert list(interleave({})) == []
    assert list(interleave({"a": 0})) == []


@given(st.dictionaries(st.text(min_size=1, max_size=3), st.integers(0, 40), max_size=6))
def test_every_flow_is_run_as_often_as_wanted(counts: dict[str, int]) -> None:
    run = [name for _, names in interleave(counts) for name in names]
    assert {name: run.count(name) for name in counts} == counts
    assert all(len(set(names)) == len(names) for _, names in interleave(counts))
