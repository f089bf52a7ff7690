from __future__ import annotations

import pytest

from pool.maintenance.clock_jumps import TOLERANCE, jump_between


@pytest.mark.parametrize(
    ("before", "after", "jump"),
    [
        ((1000.0, 0.0), (1001.0, 1.0), 0.0),
        ((1000.0, 0.0), (4600.0, 3600.0), 0.0),  # nobody looked for an hour
        ((1000.0, 0.0), (1001.0 + TOLERANCE, 1.0), 0.0),  # a correction
        ((1000.0, 7.0), (4601.0, 8.0), 3600.0),
        ((9000.0, 7.0), (1801.0, 8.0), -7200.0),
        ((1000.0, 0.0), (8200.0, 3600.0), 3600.0),
    ],
)
def test_a_clock_that_was_set_is_told_from_time_that_has_passed(
    before: tuple[float, float], after: tuple[float, float], jump: float
) -> None:
    assert jump_between(before, after) == pytest.approx(jump)
