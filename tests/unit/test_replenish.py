from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool.maintenance.replenish import older_to_retire

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
