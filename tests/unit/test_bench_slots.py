"""What requests into slots are summed up to, and how that reads beside its aims."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from pool.bench.server_time import busy_share
from pool.bench.slots_report import aims, ids_figures, show

FOUND = {
    "share": [5.0, 5.0, 6.0],
    "http": [8.0],
    "s3": [30.0],
    "pool": [200.0],
    "fsync": [1.0, 0.5, 1.0],
}


def test_ids_are_compared_with_what_ran_in_turns_with_them() -> None:
    figures = ids_figures(FOUND, "share", ["s3"])
    assert figures["slots"]["p50"] == 5.0
    assert figures["fsyncs"] == 6.0, "the median of each with its neighbour"
    assert figures["sooner_than_pool"] == 40.0
    assert figures["sooner_than_sdk"] is None, "it was not run"
    assert figures["bucket"]["p50"] == 30.0


@pytest.mark.parametrize(
    ("figures", "what", "met"),
    [
        ({"ids": {"slots": {"p50": 10.0}}}, "ids, library, p50", True),
        ({"ids": {"slots": {"p50": 10.1}}}, "ids, library, p50", False),
        ({"ids": {"sooner_than_pool": 15.0}}, "sooner than an ordinary hit", True),
        ({"ids": {"sooner_than_pool": 14.0}}, "sooner than an ordinary hit", False),
        ({"ids": {"pool": {"p50": 999.0}}}, "an ordinary hit, p50", None),
        ({"rate": {"placed": {"otherwise": 1}}}, "50 a second, in no slot", False),
        ({"rate": {"placed": {"otherwise": 0}}}, "50 a second, in no slot", True),
    ],
)
def test_each_figure_stands_beside_its_aim(
    figures: dict[str, Any], what: str, met: bool | None
) -> None:
    (row,) = aims(figures)
    assert (row["what"], row["met"]) == (what, met)


def test_the_table_has_room_in_a_terminal_of_80_columns() -> None:
    figures: dict[str, Any] = {
        "ids": ids_figures(FOUND, "share", ["s3"]) | {"sdk": {"p50": 5369.0}},
        "rate": {
            "seconds": 2.0,
            "requests": 100,
            "tasks": 3,
            "failed": ["no", "no"],
            "not_shown": 0,
            "ms": {"p50": 9.0, "p99": 123.4},
            "placed": {"otherwise": 0},
            "import_busy": 0.25,
        },
        "skipped": {"A bucket": "moto is not installed"},
    }
    out = StringIO()
    conditions = {"server": "http://cvat.test", "simulator_speed": None}
    slots = figures | {"aims": aims(figures)}
    show({"conditions": conditions, "slots": slots}, Console(file=out, width=80))
    lines = [line.strip() for line in out.getvalue().splitlines()]
    words = " ".join(out.getvalue().split())
    assert "A request into a slot has its job ids after" in words
    assert "with the SDK's defaults 5.4 s." in words
    (row,) = [line for line in lines if line.startswith("50 a second, ids, p99")]
    assert row.split()[-5:] == ["ms", "<=", "100", "ms", "missed"]
    assert "A bucket is skipped: moto is not installed." in lines
    assert "no" in lines


@pytest.mark.parametrize(
    ("spans", "share"),
    [
        ([], 0.0),
        ([(0.0, 30.0)], 1.0),
        ([(10.0, 12.0), (11.0, 13.0), (11.5, 12.5)], 0.3),
        ([(8.0, 11.0), (19.0, 25.0)], 0.2),
        ([(1.0, 2.0), (30.0, 31.0)], 0.0),
    ],
)
def test_the_share_of_a_time_in_which_something_was_busy(
    spans: list[tuple[float, float]], share: float
) -> None:
    assert busy_share(spans, 10.0, 20.0) == pytest.approx(share)
