"""What a bench has measured: as figures for programs, as tables and a picture for people."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pool.bench.idle import IdleCost
from pool.bench.measure import POLLS, FlowResult, OwnTime, ratios, spread, steps
from pool.errors import InputError
from pool.version import VERSION

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

#: What stands above the figures of a flow.
HEADINGS = ("requests", "ours", "p90", "server's", "ratio", "p90", "calls", "polls")


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """Under which a bench was run. ``simulator_speed`` is None for a configured server."""

    server: str
    simulator_speed: float | None
    template: str
    images: int
    labels: int
    requests: int
    seed: int
    server_time_how: str
    server_time_exact: bool


@dataclass(frozen=True, kw_only=True)
class Report:
    """The outcome of one bench. Times are in milliseconds."""

    conditions: Conditions
    results: Mapping[str, FlowResult]
    own: Mapping[int, OwnTime]
    idle: IdleCost | None = None
    refilled: int = 0

    def figures(self) -> dict[str, Any]:
        """Return all figures by stable names; what was not measured is null."""
        return {
            "version": VERSION,
            "conditions": asdict(self.conditions),
            "flows": {name: self._flow(result) for name, result in self.results.items()},
            "idle": None if self.idle is None else _rounded(asdict(self.idle)),
        }

    def _flow(self, result: FlowResult) -> dict[str, Any]:
        count = len(result.samples)
        if not count:
            return {"available": False, "reason": result.not_available or "no requests"}
        own = [self.own.get(sample.task_id) for sample in result.samples]
        ours, server = spread(result.ours), spread([each.own_ms for each in own if each])
        ratio = ratios(result.samples, self.own)
        polls = sum(len(result.calls.get(operation, ())) for operation in POLLS)
        found: dict[str, Any] = {
            "available": True,
            "requests": count,
            "ours_ms": _rounded(asdict(ours)) if ours else None,
            "server_ms": _rounded(asdict(server)) if server else None,
            "ours_to_server": _rounded(asdict(ratio), 3) if ratio else None,
            "calls_per_request": round(sum(map(len, result.calls.values())) / count, 2),
            "polls_per_request": round(polls / count, 3),
            "calls": {
                operation: {
                    "count": len(seconds),
                    "median_ms": round(statistics.median(seconds) * 1000, 1),
                }
                for operation, seconds in sorted(result.calls.items())
            },
            "misses": sum(sample.hit is False for sample in result.samples),
            "steps_ms": _rounded(steps(result.samples, self.own)),
            "each_ms": [
                {"ours": round(ours, 1), "server": round(each.own_ms, 1) if each else None}
                for ours, each in zip(result.ours, own, strict=True)
            ],
        }
        if result.name == "pool-refill":
            found["refilled"] = self.refilled
        return found


def _rounded(values: Mapping[str, Any], digits: int = 1) -> dict[str, Any]:
    return {
        key: round(value, digits) if isinstance(value, float) else value
        for key, value in values.items()
    }


# --- For people ----------------------------------------------------------------------------------


def show(report: Report, console: Console) -> None:
    """Print the tables, and what the figures in them are."""
    if report.results:
        figures = report.figures()["flows"]
        # Above the table and not its title, which would be folded to the table's width.
        console.print(f"\n{_title(report.conditions)}\n", highlight=False, soft_wrap=True)
        console.print(_table(figures))
        for line in _notes(report.conditions, figures):
            console.print(line, highlight=False, soft_wrap=True)
    if report.idle is not None:
        idle = report.idle
        calls = ", ".join(f"{count} {name}" for name, count in sorted(idle.calls.items()))
        console.print(
            f"Idle daemon with {idle.tasks} warm tasks, {idle.seconds:.0f} s: "
            f"{idle.cpu_percent:.2f} % of one core, {idle.rss_mb:.0f} MB resident, "
            f"{idle.calls_per_minute:.1f} calls a minute to the server ({calls or 'none'})",
            highlight=False,
            soft_wrap=True,
        )


def _title(conditions: Conditions) -> str:
    where = conditions.server
    if conditions.simulator_speed is not None:
        where = f"a simulated CVAT at speed {conditions.simulator_speed:g}"
    images = f"{conditions.images} image{'' if conditions.images == 1 else 's'}"
    labels = f"{conditions.labels} label{'' if conditions.labels == 1 else 's'}"
    return f"From a request to its job ids, {images}, {labels}, on {where}:"


def _table(figures: Mapping[str, Any]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, flow in figures.items():
        if not flow["available"]:
            table.add_row(name, *["-"] * len(HEADINGS))
            continue
        server, ratio = flow["server_ms"], flow["ours_to_server"]
        table.add_row(
            name,
            str(flow["requests"]),
            f"{flow['ours_ms']['median']:.0f}",
            f"{flow['ours_ms']['p90']:.0f}",
            f"{server['median']:.0f}" if server else "-",
            f"{ratio['median']:.2f}" if ratio else "-",
            f"{ratio['p90']:.2f}" if ratio else "-",
            f"{flow['calls_per_request']:.1f}",
            f"{flow['polls_per_request']:.1f}",
        )
    return table


def _notes(conditions: Conditions, figures: Mapping[str, Any]) -> list[str]:
    measured = {name: flow for name, flow in figures.items() if flow["available"]}
    notes = [
        "Ours is what a caller waits, in ms, from having the images to having the job ids.",
        f"The server's is its own time in ms: {conditions.server_time_how}.",
        "The ratio is ours over the server's, request by request: its median and its p90.",
        *(
            f"{name} is not available: {flow['reason']}."
            for name, flow in figures.items()
            if name not in measured
        ),
    ]
    if "sdk" in figures and figures["sdk"].get("requests", 0) < conditions.requests:
        notes.append("sdk gets fewer requests than the others, since each takes more than 5 s.")
    if pool := measured.get("pool"):
        parts = (
            f"{name.replace('_', ' ')} {value:.0f}" for name, value in pool["steps_ms"].items()
        )
        notes.append(f"Where a pool hit spends its time, median ms: {', '.join(parts)}.")
        notes.append(
            "The pool's tasks were made ahead of time by its daemon, with 2 calls each, which are "
            "not in its count; its calls include naming the task after the job ids are out."
        )
    if refill := measured.get("pool-refill"):
        notes.append(f"During the refill the daemon made {refill['refilled']} tasks.")
    if misses := sum(flow["misses"] for flow in measured.values()):
        notes.append(f"{misses} of the pool's requests found no warm task.")
    return notes


# --- A picture -----------------------------------------------------------------------------------


def check_plot_possible(path: Path) -> None:
    """Check before anything is measured.

    :raises InputError: matplotlib is not installed, or the picture cannot be there.
    """
    if not installed():
        raise InputError("--plot needs matplotlib, the extra 'plot': pip install '.[plot]'")
    if not path.parent.is_dir():
        raise InputError(f"--plot {path}: there is no folder {path.parent}")
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InputError(f"--plot {path}: give a name that ends with .png, .svg or .pdf")


def installed() -> bool:
    """Return whether there is a matplotlib."""
    try:
        return find_spec("matplotlib") is not None
    except ValueError:
        return False


def draw(report: Report, path: Path) -> None:
    """Draw every request of every flow, on one scale.

    :raises InputError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    results = [result for result in report.results.values() if result.samples]
    figure = Figure(figsize=(9, 1.2 + 0.55 * len(results)), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    for row, result in enumerate(results):
        own = [report.own[s.task_id].own_ms for s in result.samples if s.task_id in report.own]
        axes.plot(own, [row + 0.17] * len(own), "|", color="tab:gray", markersize=7)
        axes.plot(result.ours, [row - 0.1] * len(result.ours), "o", color="tab:blue", alpha=0.45)
        median = statistics.median(result.ours)
        axes.plot([median, median], [row - 0.33, row + 0.33], color="tab:blue", linewidth=2)
        axes.annotate(f" {median:.0f}", (median, row - 0.35), fontsize=8, va="center")
    axes.set_yticks(range(len(results)), [result.name for result in results])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="x", which="minor", labelsize=7)
    axes.grid(axis="x", which="both", alpha=0.25)
    axes.set_xlabel("ms from a request to its job ids; grey: the server's own time")
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise InputError(f"--plot {path}: {error.strerror or error}") from None
