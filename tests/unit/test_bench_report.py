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


def printed(
    flows: dict[str, Any],
    idle: dict[str, Any] | None = None,
    *,
    width: int = 80,
    **conditions: object,
) -> str:
    stream = io.StringIO()
    figures = {"conditions": {**CONDITIONS, **conditions}, "flows": flows, "idle": idle}
    show(figures, Console(file=stream, width=width))
    return stream.getvalue()


STEPS = {"claim": 0.4, "post": 70.0, "import_and_polls": 177.0, "hand_over": 2.0}


@pytest.fixture
def flows() -> dict[str, Any]:
    return {
        "sdk": figures_of(5300.0, 5310.0, create_task=2),
        "poll-500ms": figures_of(760.0),
        "pool": {**figures_of(250.0, 250.0, upload=2, jobs=3), "steps_ms": STEPS},
        "pool-webhooks": {"available": False, "reason": "the server cannot reach us"},
        "pool-refill": {**figures_of(275.0), "refilled": 7},
        "pool-concurrent": figures_of(2400.0, 2500.0),
    }


def test_it_says_in_words_how_long_a_caller_waits_and_why(flows: dict[str, Any]) -> None:
    text = " ".join(printed(flows).split())
    assert "From 1 image to job ids, with 2 labels, on a simulated CVAT at speed 1" in text
    assert "Today, with the SDK's defaults, a caller waits 5.3 s." in text
    assert "With the pool it is 250 ms, 21 times less." in text
    assert "quickest way without a pool takes 760 ms: SDK's calls, a look in 500 ms." in text
    assert "CVAT's own work on the data is 200 ms and creating the task 30 ms" in text
    assert "The other 5.1 s are its further calls" in text
    assert "Of the pool's 250 ms, 70 ms are the upload, and 177 ms pass until CVAT has" in text
    assert "Of 20 requests at once half wait up to 2.5 s and nine of ten up to 2.5 s" in text
    assert "CVAT's are its own part of it: as the server says." in text
    assert "pool-webhooks was not measured: the server cannot reach us." in text
    assert "sdk: 2 requests, since each takes more than 5 s." in text
    assert "pool-refill: the daemon created 7 tasks meanwhile." in text
    assert "5 of the pool's requests found no warm task." in text


def test_where_the_clocks_agree_the_parts_are_those_of_the_server(flows: dict[str, Any]) -> None:
    parts = {"before_server": 3.0, "server": 208.0, "after_server": 39.0}
    flows["pool"]["steps_ms"] = STEPS | parts
    text = " ".join(printed(flows).split())
    assert "3 ms pass until CVAT has the data, 208 ms are its own work on it, and 39 ms" in text


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits(flows: dict[str, Any], width: int) -> None:
    lines = printed(flows, width=width).splitlines()
    assert max(map(len, lines)) <= width
    rows = [line.split() for line in lines]
    assert ["pool", "a", "warm", "task", "250", "250", "200", "2.5"] in rows
    assert ["flow", "way", "median", "p90", "CVAT's", "calls"] in rows


def test_a_configured_server_is_named(flows: dict[str, Any]) -> None:
    text = printed(flows, simulator_speed=None, images=2)
    assert "From 2 images to job ids, with 2 labels, on http://cvat.test" in text


def test_an_idle_daemon_alone() -> None:
    idle = {"tasks": 100, "seconds": 60.0, "cpu_percent": 0.6, "rss_mb": 80.0}
    text = " ".join(printed({}, {**idle, "calls_per_minute": 2.0, "calls": {"jobs": 2}}).split())
    assert "An idle daemon with 100 warm tasks, watched for 60 s, takes 0.60 % of one core" in text
    assert "80 MB, and makes 2.0 calls a minute to the server (2 jobs)." in text


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
