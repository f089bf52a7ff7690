from __future__ import annotations

import math
import random
import statistics
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.clock import ManualClock

from pool.model import ImportRecord, ImportState
from pool.store import Store
from pool.tracking.poll_schedule import (
    LEASES_TOGETHER,
    LONGEST_PAUSE,
    TOGETHER,
    Pace,
    Paces,
    Tracked,
    due_together,
    pace_class,
    pause_after,
    size_class,
)

NOW = 1000.0
IMPORT = ImportRecord(
    id="i", template="t", state=ImportState.IMPORTING, owner="o", lease_id="l", pooled_id="p",
    task_id=1, handed_out_at=NOW,
)  # fmt: skip


def serve(pace: Pace, times: list[float], *, round_trip: float = 0.028) -> list[tuple[float, int]]:
    """Imports that take ``times``, each polled as the tracker does: seconds until known, polls."""
    served = []
    for time in times:
        asked_at, before, polls = max(0.0, pace.first - round_trip / 2), 0.0, 1
        while (looked_at := asked_at + round_trip / 2) < time:
            before = looked_at
            answered_at = asked_at + round_trip
            asked_at = answered_at + pause_after(answered_at, random.Random(polls))
            polls += 1
        pace.learn(not_before=before, done_by=looked_at)
        served.append((asked_at + round_trip, polls))
    return served


def imports(median: float, count: int = 400, seed: int = 5) -> list[float]:
    """Times as real ones vary: about a tenth around the median, one in fifty twice as long."""
    rng = random.Random(seed)
    return [
        median * math.exp(rng.gauss(0.0, 0.1)) * (2.0 if rng.random() < 0.02 else 1.0)
        for _ in range(count)
    ]


def test_without_history_there_is_a_first_poll_all_the_same() -> None:
    assert 0 < Pace().first < 0.2


@pytest.mark.parametrize(("median", "most"), [(0.02, 2), (0.15, 3), (2.0, 5), (60.0, 9)])
def test_polling_adds_a_bounded_share_with_few_polls_at_any_scale(median: float, most: int) -> None:
    times = imports(median)
    served = serve(Pace(), times)[50:]
    added = [known - time for (known, _), time in zip(served, times[50:], strict=True)]
    assert statistics.median(added) <= 0.052 + 0.06 * median
    assert statistics.mean(polls for _, polls in served) <= most


def test_a_server_that_gets_faster_is_found_out() -> None:
    """When every first poll finds the jobs, they may have been there for long."""
    pace = Pace()
    serve(pace, imports(1.0, 50))
    serve(pace, imports(0.15, 20))
    assert pace.first < 0.2


@pytest.mark.parametrize("before", [0, 20])
def test_a_slow_spell_is_soon_forgotten(before: int) -> None:
    """Imports that hung for a while, the first ones of all, say."""
    pace = Pace()
    serve(pace, imports(0.15, before))
    serve(pace, [5.0] * 10)
    served = serve(pace, imports(0.15, 20))
    assert served[-1][0] < 0.25


def test_a_server_that_gets_slower_is_followed() -> None:
    pace = Pace()
    serve(pace, imports(0.15, 50))
    serve(pace, imports(1.0, 200))
    assert pace.first > 0.6


def test_one_slow_import_hardly_delays_the_next() -> None:
    pace = Pace()
    serve(pace, imports(0.15, 100))
    before = pace.first
    pace.learn(not_before=9.0, done_by=10.0)
    assert pace.first <= before * 1.05


def test_an_import_is_late_only_after_the_usual_time() -> None:
    pace = Pace()
    serve(pace, imports(2.0, 50))
    assert 2.5 < pace.late_after() < 6.0


@given(st.floats(0, 3600))
def test_pauses_are_a_share_of_the_time_waited(waited: float) -> None:
    pause = pause_after(waited, random.Random(1))
    assert pause <= LONGEST_PAUSE * 1.1
    assert pause <= max(0.012, waited * 0.06)
    assert pause > 0


def test_the_number_of_polls_grows_with_the_logarithm_of_the_time() -> None:
    rng = random.Random(3)
    waited, polls = 0.2, 0
    while waited < 10.0:
        waited += pause_after(waited, rng) + 0.03
        polls += 1
    assert polls < 90


def test_size_classes_tell_apart_what_takes_longer() -> None:
    one = size_class("t", files=1, size=100_000, kind="images")
    assert one == size_class("t", files=1, size=110_000, kind="images")
    assert one != size_class("t", files=64, size=6_400_000, kind="images")
    assert one != size_class("t", files=1, size=100_000, kind="video")
    assert pace_class(one, ahead=2) == pace_class(one, ahead=3)
    assert len({pace_class(one, ahead=ahead) for ahead in (0, 1, 2, 4, 8)}) == 5


@pytest.mark.parametrize(
    ("waits", "asked"),
    [
        ({"polls": 1}, True),
        ({"polls": 1, "due": NOW}, True),
        # Its first poll would be premature, and in vain.
        ({}, False),
        ({"due": NOW + TOGETHER}, True),
        # CVAT did not answer; it is given time.
        ({"polls": 1, "errors": 1}, False),
        ({"polls": 1, "errors": 1, "due": NOW}, True),
        # A webhook is expected to tell of it.
        ({"polls": 1, "relaxed": True}, False),
        # Its caller uploads by itself, some time.
        ({"polls": 1, "importing": None}, False),
        # There may be hundreds of those, each due at a moment of its own.
        ({"polls": 1, "importing": None, "due": NOW + LEASES_TOGETHER}, True),
    ],
)
def test_what_is_polled_along_with_an_import_that_is_due(
    waits: dict[str, Any], asked: bool
) -> None:
    def watched(name: str, **known: Any) -> Tracked:
        usual = {"importing": IMPORT, "since": NOW - 1, "due": NOW + 0.5, "deadline": NOW + 60}
        return Tracked(
            pooled_id=name, task_id=1, template="t", size_class="p", **{**usual, **known}
        )

    due, other = watched("due", due=NOW), watched("other", **waits)
    assert (other in due_together([other, due], NOW)) is asked
    assert due_together([watched("other", polls=1)], NOW) == []


def test_what_a_burst_takes_does_not_delay_the_poll_of_one_alone(store: Store) -> None:
    paces = Paces(store, clock=ManualClock())
    one = size_class("t", files=1, size=100_000, kind="images")
    for ahead in [*range(40)] * 10:
        # Two at a time are imported.
        name, took = pace_class(one, ahead=ahead), 0.2 + 0.1 * ahead
        first = paces.first_poll(name, relaxed=False)
        tracked = Tracked(
            pooled_id="i", task_id=1, template="t", since=NOW, due=NOW, importing=IMPORT,
            pace_class=name, empty_at=0.0 if first >= took else took - 0.02,
        )  # fmt: skip
        paces.learn(tracked, NOW + max(first, took))
    assert paces.first_poll(pace_class(one, ahead=0), relaxed=False) == pytest.approx(0.2, rel=0.2)
    assert paces.first_poll(pace_class(one, ahead=39), relaxed=False) > 1.0
