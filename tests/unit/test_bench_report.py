"""What a bench reports: the figures by their names, the table, and the picture."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pool.bench.bench import FLOWS
from pool.bench.measure import FlowResult, OwnTime, Sample
from pool.bench.report import check_plot_possible, draw, flow_figures, show, spread
from pool.errors import InputError

CONDITIONS = {
    "server": "http://cvat.test",
    "simulator_speed": 1.0,
    "template": "scenes",
    "images": 1,
    "labels": 2,
    "requests": 20,
    "seed": 0,
    "server_time_how": "as the server says",
    "server_time_exact": True,
}


def figures_of(
    *ours_ms: float, server: dict[int, float | None] | None = None, **calls: int
) -> dict[str, Any]:
    """The figures of requests of which the first is a miss, each 200 ms of the server's time or
    what ``server`` says; None is not known."""
    times = dict.fromkeys(range(len(ours_ms)), 200.0) | (server or {})
    own = {number: OwnTime(own_ms=each) for number, each in times.items() if each is not None}
    samples = [
        Sample(
            task_id=number,
            server=own.get(number),
            ours_ms=ours,
            began=10.0,
            ended=10.0 + ours / 1000,
            hit=number > 0,
            steps_ms={"post": 60.0 + 20 * number},
        )
        for number, ours in enumerate(ours_ms)
    ]
    return flow_figures(FlowResult(samples, {name: [0.03] * n for name, n in calls.items()}))


# --- The figures ----------------------------------------------------------------------------------


def test_the_figures_of_a_flow() -> None:
    figures = figures_of(250.0, 250.0, upload=2, jobs=3, rename_task=2)
    assert json.loads(json.dumps(figures)) == figures
    assert figures["ours_ms"] == {"median": 250.0, "p90": 250.0, "least": 250.0, "most": 250.0}
    assert figures["server_ms"]["median"] == 200.0
    assert figures["ours_to_server"] == {"median": 1.25, "p90": 1.25, "of_medians": 1.25}
    assert (figures["calls_per_request"], figures["polls_per_request"]) == (3.5, 1.5)
    assert figures["calls"]["jobs"] == {"count": 3, "median_ms": 30.0}
    assert figures["misses"] == 1
    assert figures["each_ms"] == [{"ours": 250.0, "server": 200.0}] * 2


@pytest.mark.parametrize(
    ("values", "median", "p90"),
    [([4.0, 1.0, 3.0, 2.0, 5.0], 3.0, 4.6), ([0.0, 10.0], 5.0, 9.0), ([7.0], 7.0, 7.0)],
)
def test_a_spread(values: list[float], median: float, p90: float) -> None:
    assert spread(values) == {
        "median": median,
        "p90": p90,
        "least": min(values),
        "most": max(values),
    }


def test_each_request_is_compared_with_its_own_import() -> None:
    # The slow import makes both times long, and the ratio no worse.
    figures = figures_of(110.0, 220.0, 150.0, server={0: 100.0, 1: 200.0, 2: 100.0})
    assert figures["ours_to_server"] == {"median": 1.1, "p90": 1.42, "of_medians": 1.5}


def test_requests_of_unknown_server_time_are_left_out_of_the_ratios() -> None:
    figures = figures_of(120.0, 900.0, server={0: 100.0, 1: None})
    assert figures["ours_to_server"] == {"median": 1.2, "p90": 1.2, "of_medians": 1.2}
    assert [each["server"] for each in figures["each_ms"]] == [100.0, None]
    nothing = figures_of(120.0, server={0: None})
    assert (nothing["server_ms"], nothing["ours_to_server"]) == (None, None)


def test_where_the_time_went() -> None:
    own = OwnTime(own_ms=200.0, received_at=10.01, committed_at=10.21)
    first = Sample(
        task_id=1, ours_ms=300.0, began=10.0, ended=10.3, steps_ms={"post": 60.0}, server=own
    )
    second = replace(first, task_id=2, steps_ms={"post": 80.0}, server=None)
    assert flow_figures(FlowResult([first, second]))["steps_ms"] == {
        "post": 70.0,
        "before_server": 10.0,
        "server": 200.0,
        "after_server": 90.0,
    }
    without_moments = replace(first, server=OwnTime(own_ms=200.0))
    assert flow_figures(FlowResult([without_moments, second]))["steps_ms"] == {"post": 70.0}


# --- For people -----------------------------------------------------------------------------------


def printed(flows: dict[str, Any], idle: dict[str, Any] | None = None, **conditions: object) -> str:
    stream = io.StringIO()
    figures = {"conditions": {**CONDITIONS, **conditions}, "flows": flows, "idle": idle}
    show(figures, Console(file=stream, width=100))
    return stream.getvalue()


@pytest.fixture
def flows() -> dict[str, Any]:
    return {
        "sdk": figures_of(5300.0, 5310.0),
        "pool": figures_of(250.0, 250.0, upload=2, jobs=3),
        "pool-webhooks": {"available": False, "reason": "the server cannot reach us"},
        "pool-refill": {**figures_of(275.0), "refilled": 7},
    }


def test_the_table_says_whose_the_figures_are(flows: dict[str, Any]) -> None:
    text = printed(flows)
    assert "1 image, 2 labels, on a simulated CVAT at speed 1" in text
    assert ["pool", "2", "250", "250", "200", "1.25", "1.25", "2.5", "1.5"] in [
        line.split() for line in text.splitlines()
    ]
    assert "Ours is what a caller waits" in text
    assert "The server's is its own time in ms: as the server says." in text
    assert "pool-webhooks is not available: the server cannot reach us." in text
    assert "sdk gets fewer requests" in text
    assert "Where a pool hit spends its time, median ms: post 70." in text
    assert "the daemon made 7 tasks" in text
    assert "3 of the pool's requests found no warm task" in text


def test_a_configured_server_is_named(flows: dict[str, Any]) -> None:
    text = printed(flows, simulator_speed=None, images=2)
    assert "2 images, 2 labels, on http://cvat.test" in text


def test_an_idle_daemon_alone() -> None:
    idle = {"tasks": 100, "seconds": 60.0, "cpu_percent": 0.6, "rss_mb": 80.0}
    (line,) = printed({}, {**idle, "calls_per_minute": 2.0, "calls": {"jobs": 2}}).splitlines()
    assert "0.60 % of one core, 80 MB resident, 2.0 calls a minute to the server (2 jobs)" in line


def test_every_flow_may_be_missing() -> None:
    missing = {"available": False, "reason": "because"}
    assert printed(dict.fromkeys(FLOWS, missing)).count("because") == len(FLOWS)


# --- The picture ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nowhere/out.png", "out.txt", "out"])
def test_where_no_picture_can_be(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"--plot .*{name}: "):
        check_plot_possible(tmp_path / name)


def test_a_picture_is_drawn(flows: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw({"flows": flows}, tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
