from __future__ import annotations

from dataclasses import replace

import pytest

from pool.maintenance.refill import Situation, creates_wanted
from pool.maintenance.sizing import Target

TARGET = Target(size=10, reorder_point=2, rate=0.0, peak_rate=0.0, lead_time=1.0)


@pytest.mark.parametrize(
    ("warm", "creating", "waiting", "in_flight", "wanted"),
    [
        (10, 0, 0, 0, 0),
        (5, 0, 0, 0, 4),
        (5, 5, 0, 0, 0),
        (5, 0, 0, 3, 0),
        (2, 0, 0, 3, 1),
        (0, 0, 5, 3, 1),
        (0, 10, 1, 0, 4),
    ],
)
def test_refilling_steps_back_for_the_foreground(
    warm: int, creating: int, waiting: int, in_flight: int, wanted: int
) -> None:
    situation = Situation(
        warm=warm,
        capacity=warm + creating,
        waiting=waiting,
        foreground=in_flight > 0,
        paused=False,
        held=False,
    )
    assert creates_wanted(situation, TARGET, concurrency=4) == wanted


def test_what_is_paused_or_held_is_left_alone_and_a_probe_is_one_create() -> None:
    needed = Situation(
        warm=0, capacity=0, waiting=0, foreground=False, paused=False, held=False, probing=True
    )
    assert creates_wanted(needed, TARGET, concurrency=4) == 1
    for reason in ("paused", "held"):
        assert creates_wanted(replace(needed, **{reason: True}), TARGET, concurrency=4) == 0


@pytest.mark.parametrize(("warm", "wanted"), [(3, 0), (2, 4), (0, 4)])
def test_slots_that_run_out_are_made_as_fast_as_may_be_while_requests_are_served(
    warm: int, wanted: int
) -> None:
    situation = Situation(
        warm=warm, capacity=warm, waiting=0, foreground=True, paused=False, held=False, slots=True
    )
    assert creates_wanted(situation, TARGET, concurrency=4) == wanted
