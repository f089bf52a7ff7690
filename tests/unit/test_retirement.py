from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool.config.settings import PoolSettings
from pool.maintenance.retirement import affordable, age_limit, older_to_retire, too_old
from pool.model import PooledTask, TaskState, new_id

DAY = 86400.0
SETTINGS = PoolSettings(min_size=5, create_concurrency=2, max_age=DAY)


def warm(pooled_id: str, *, since: float = 0.0) -> PooledTask:
    return PooledTask(
        id=pooled_id,
        template="t",
        fingerprint="f",
        state=TaskState.WARM,
        name="n",
        task_id=1,
        created_at=since,
        warm_at=since,
        changed_at=since,
    )


def test_every_task_has_a_limit_of_its_own_that_does_not_change() -> None:
    ids = [new_id() for _ in range(200)]
    limits = [age_limit(pooled_id, DAY) for pooled_id in ids]
    assert limits == [age_limit(pooled_id, DAY) for pooled_id in ids]
    assert all(0.8 * DAY <= limit <= DAY for limit in limits)
    assert len({int(limit / DAY * 100) for limit in limits}) == 20, "spread over all of it"


def test_a_pool_that_was_filled_at_once_does_not_grow_old_at_once() -> None:
    tasks = [warm(new_id()) for _ in range(100)]
    counts = [len(too_old(tasks, SETTINGS, now=share * DAY)) for share in (0.8, 0.85, 0.95, 1.01)]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, 100)
    assert 5 < counts[1] < 45
    assert 55 < counts[2] < 95


def test_the_longest_overdue_comes_first() -> None:
    old, older, fresh = warm("a"), warm("b", since=-DAY), warm("c", since=DAY)
    assert list(too_old([old, fresh, older], SETTINGS, now=1.1 * DAY)) == [older, old]


def test_no_more_are_retired_than_can_be_replaced() -> None:
    assert affordable(5, 0, SETTINGS) == 2
    assert affordable(4, 1, SETTINGS) == 1
    assert affordable(4, 0, SETTINGS) == 1
    assert affordable(3, 0, SETTINGS) == 0
    assert affordable(0, 0, SETTINGS) == 0
    assert affordable(50, 2, SETTINGS) == 0
    assert affordable(50, 0, SETTINGS) == 2


# --- Replenish ------------------------------------------------------------------------------------

NUMBER = st.integers(0, 30)


@pytest.mark.parametrize(
    ("fresh", "older", "wanted", "replaced", "go"),
    [
        (0, 5, 5, 0, 0),  # the change itself
        (1, 5, 5, 1, 1),  # one for one
        (2, 5, 5, 2, 2),  # two became warm together
        (1, 3, 5, 1, 0),  # a pool below its size keeps what it has
        (1, 9, 5, 1, 1),  # and one above it shrinks no faster
        (5, 9, 5, 1, 9),  # fresh ones alone are enough
        (7, 2, 5, 0, 2),
        (0, 4, 0, 0, 4),  # nothing is wanted
        (3, 0, 5, 1, 0),
    ],
)
def test_older_tasks_go_as_they_are_replaced(
    fresh: int, older: int, wanted: int, replaced: int, go: int
) -> None:
    assert older_to_retire(fresh, older, wanted=wanted, replaced=replaced) == go


@given(fresh=NUMBER, older=NUMBER, wanted=NUMBER, replaced=NUMBER)
def test_the_pool_never_goes_below_what_is_wanted_and_never_faster_than_it_is_replaced(
    fresh: int, older: int, wanted: int, replaced: int
) -> None:
    go = older_to_retire(fresh, older, wanted=wanted, replaced=replaced)
    assert 0 <= go <= older
    if fresh < wanted:
        assert go <= replaced
        assert go == 0 or fresh + older - go >= wanted
    else:
        assert go == older, "nothing old is left behind for ever"


@given(older=NUMBER, wanted=st.integers(1, 30))
def test_replacing_one_by_one_ends_with_fresh_ones_only(older: int, wanted: int) -> None:
    most = max(older, wanted)
    for fresh in range(1, wanted + 1):
        older -= older_to_retire(fresh, older, wanted=wanted, replaced=1)
        assert fresh + older <= most
    assert older == 0
