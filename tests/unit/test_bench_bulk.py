"""What bursts and pairs of requests are summed up to, and how that reads."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from pool.bench.bulk_report import Burst, Served, burst_figures, pair_figures, show


def burst(*each_ms: float, imports: int = 1) -> Burst:
    served = tuple(Served(ms=ms, jobs=(at,)) for at, ms in enumerate(each_ms))
    return Burst(served=served, imports=imports)


BURSTS = {
    "one": [burst(100), burst(120)],
    "few": [burst(200, 400, 900, imports=3)],
    "few-grouped": [burst(200, 220, 230, imports=2)],
    "many-grouped": [burst(300, 500, imports=2)],
    "one-import": [burst(400)],
    "many": [burst(1000, 6000, imports=2)],
}


def test_bursts_are_compared_with_what_ran_in_turns_with_them() -> None:
    figures = burst_figures(BURSTS)
    assert figures["one"]["median_ms"] == 110
    assert figures["few"] == {
        "bursts": 1,
        "requests": 3,
        "median_ms": 400,
        "all_ms": 900,
        "imports": 3,
        "each_ms": [[200, 400, 900]],
    }
    assert figures["ratios"] == {
        "many_sooner": 12.0,
        "many_to_one_import": 1.25,
        "few_to_one": 2.0,
        "few_to_one_without": 3.64,
    }


@pytest.mark.parametrize(
    ("pairs", "added", "interval"),
    [
        ([(100.0, 101.0), (100.0, 103.0)], 2.0, [0.04, 3.96]),
        ([(100.0, 90.0)], -10.0, [-10.0, -10.0]),
    ],
)
def test_pairs_say_what_is_added_and_how_sure_that_is(
    pairs: list[tuple[float, float]], added: float, interval: list[float]
) -> None:
    figures = pair_figures(pairs)
    assert figures["pairs"] == len(pairs)
    assert figures["added_ms"] == added
    assert figures["interval_ms"] == pytest.approx(interval, abs=0.01)


def test_the_report_fits_a_terminal() -> None:
    stream = StringIO()
    conditions = {"server": "http://cvat.test", "simulator_speed": None}
    bulk = {"bursts": burst_figures(BURSTS)}
    show({"conditions": conditions, "bulk": bulk}, Console(file=stream, width=80))
    table, _, words = stream.getvalue().partition("2 at once have")
    assert max(map(len, table.splitlines())) <= 80
    assert "Many requests at once, on http://cvat.test" in table
    assert "3 at once, grouped" in table
    assert "12.0 times sooner" in words
