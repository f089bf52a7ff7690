"""What a bench reports: the figures by their names, the tables, and the picture."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from pool.bench.bench import FLOWS
from pool.bench.idle import IdleCost
from pool.bench.measure import FlowResult, OwnTime, Sample
from pool.bench.report import Conditions, Report, check_plot_possible, draw, show
from pool.cli.output import to_json
from pool.errors import InputError

CONDITIONS = Conditions(
    server="http://cvat.test",
    simulator_speed=1.0,
    template="scenes",
    images=1,
    labels=2,
    requests=20,
    seed=0,
    server_time_how="as the server says",
    server_time_exact=True,
)


def result(name: str, ours_ms: float, *, first_id: int, count: int = 2, **calls: int) -> FlowResult:
    samples = [
        Sample(
            task_id=first_id + number,
            ours_ms=ours_ms,
            began=0.0,
            ended=ours_ms / 1000,
            hit=number > 0,
            steps_ms={"import_and_polls": ours_ms - 60.0},
        )
        for number in range(count)
    ]
    return FlowResult(name, samples, {name: [0.03] * many for name, many in calls.items()})


@pytest.fixture
def report() -> Report:
    results = {
        "sdk": result("sdk", 5300.0, first_id=10, jobs=2, import_state=4),
        "poll-500ms": result("poll-500ms", 750.0, first_id=20),
        "pool": result("pool", 250.0, first_id=30, upload=2, jobs=3, rename_task=2),
        "pool-webhooks": FlowResult("pool-webhooks", not_available="the server cannot reach us"),
        "pool-refill": result("pool-refill", 275.0, first_id=40),
        "pool-concurrent": result("pool-concurrent", 2100.0, first_id=50, count=20, jobs=30),
    }
    own = {
        sample.task_id: OwnTime(own_ms=2000.0 if name == "pool-concurrent" else 200.0)
        for name, each in results.items()
        for sample in each.samples
    }
    idle = IdleCost(
        tasks=100, seconds=60.0, cpu_percent=0.6, rss_mb=80.0, calls_per_minute=2.0, calls={}
    )
    return Report(conditions=CONDITIONS, results=results, own=own, idle=idle, refilled=7)


def test_the_figures_of_a_flow(report: Report) -> None:
    figures = json.loads(to_json(report.figures()))
    assert figures["conditions"]["server_time_exact"] is True
    pool = figures["flows"]["pool"]
    assert pool["ours_ms"] == {"median": 250.0, "p90": 250.0, "least": 250.0, "most": 250.0}
    assert pool["server_ms"]["median"] == 200.0
    assert pool["ours_to_server"] == {"median": 1.25, "p90": 1.25, "of_medians": 1.25}
    assert (pool["calls_per_request"], pool["polls_per_request"]) == (3.5, 1.5)
    assert pool["calls"]["jobs"] == {"count": 3, "median_ms": 30.0}
    assert pool["misses"] == 1
    assert pool["each_ms"] == [{"ours": 250.0, "server": 200.0}] * 2
    assert figures["flows"]["pool-webhooks"] == {
        "available": False,
        "reason": "the server cannot reach us",
    }
    assert figures["flows"]["pool-refill"]["refilled"] == 7


def printed(report: Report) -> str:
    stream = io.StringIO()
    show(report, Console(file=stream, width=100))
    return stream.getvalue()


def test_the_tables_say_whose_the_figures_are(report: Report) -> None:
    text = printed(report)
    assert "1 image, 2 labels, on a simulated CVAT at speed 1" in text
    assert "Ours is what a caller waits" in text
    assert "The server's is its own time in ms: as the server says." in text
    assert "pool-webhooks is not available: the server cannot reach us." in text
    assert "sdk gets fewer requests" in text
    assert "found no warm task" in text
    assert "0.60 % of one core, 80 MB resident, 2.0 calls a minute" in text


def test_a_configured_server_is_named(report: Report) -> None:
    conditions = replace(CONDITIONS, simulator_speed=None)
    assert "on http://cvat.test" in printed(replace(report, conditions=conditions))


def test_a_report_of_nothing() -> None:
    report = Report(conditions=CONDITIONS, results={}, own={})
    assert report.figures()["flows"] == {}
    assert printed(report) == ""


def test_every_flow_may_be_missing() -> None:
    results = {name: FlowResult(name, not_available="because") for name in FLOWS}
    report = Report(conditions=CONDITIONS, results=results, own={})
    assert printed(report).count("because") == len(FLOWS)


# --- The picture -------------------------------------------------------------------------------


def test_a_picture_needs_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match="the extra 'plot'"):
        check_plot_possible(tmp_path / "out.png")


@pytest.mark.parametrize("name", ["nowhere/out.png", "out.txt", "out"])
def test_where_no_picture_can_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setattr("pool.bench.report.installed", lambda: True)
    with pytest.raises(InputError, match="--plot"):
        check_plot_possible(tmp_path / name)


def test_a_picture_is_drawn(report: Report, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw(report, tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
