"""What a bench has measured: as figures for programs, as a table and a picture for people.

The figures are what ``--json`` prints; all others read them. Times are in milliseconds.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pool.bench.measure import FlowResult, Sample
from pool.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console
    from rich.table import Table

#: What stands above the figures of a flow.
HEADINGS = ("requests", "ours", "p90", "server's", "ratio", "p90", "calls", "polls")
#: The operations that ask whether the jobs are there.
POLLS = ("jobs", "import_state")

Figures = dict[str, Any]


def flow_figures(result: FlowResult) -> Figures:
    """Return the figures of one flow by stable names; what was not measured is null."""
    samples, calls = result.samples, result.calls
    own = [each.server.own_ms if each.server else None for each in samples]
    polls = sum(len(calls.get(operation, ())) for operation in POLLS)
    return {
        "available": True,
        "requests": len(samples),
        "ours_ms": spread([sample.ours_ms for sample in samples]),
        "server_ms": spread([time for time in own if time is not None]),
        "ours_to_server": _ratios(samples),
        "calls_per_request": round(sum(map(len, calls.values())) / len(samples), 2),
        "polls_per_request": round(polls / len(samples), 3),
        "calls": {
            operation: {
                "count": len(seconds),
                "median_ms": round(statistics.median(seconds) * 1000, 1),
            }
            for operation, seconds in sorted(calls.items())
        },
        "misses": sum(sample.hit is False for sample in samples),
        "steps_ms": _steps(samples),
        "each_ms": [
            {"ours": round(each.ours_ms, 1), "server": None if time is None else round(time, 1)}
            for each, time in zip(samples, own, strict=True)
        ],
    }


def spread(values: Sequence[float]) -> Figures | None:
    """Return the median, the 90th percentile and the range of some values; None of none."""
    if not values:
        return None
    figures = {
        "median": statistics.median(values),
        "p90": percentile(values, 90),
        "least": min(values),
        "most": max(values),
    }
    return {name: round(value, 1) for name, value in figures.items()}


def _ratios(samples: Sequence[Sample]) -> Figures | None:
    """Compare each request with the server's own time for that very request.

    Imports vary, so a ratio of two medians hides what a caller of one request sees; both are
    given. None when the server's own time is not known of any.
    """
    pairs = [
        (each.ours_ms, each.server.own_ms)
        for each in samples
        if each.server and each.server.own_ms > 0
    ]
    if not pairs:
        return None
    each = [ours / server for ours, server in pairs]
    ours, server = (statistics.median(times) for times in zip(*pairs, strict=True))
    figures = {
        "median": statistics.median(each),
        "p90": percentile(each, 90),
        "of_medians": ours / server,
    }
    return {name: round(value, 3) for name, value in figures.items()}


def _steps(samples: Sequence[Sample]) -> Figures:
    """Return the median milliseconds of each step of a request.

    Where this side and the server share a clock, also the three parts of the whole: before the
    data arrived, the server's own, and after the commit.
    """
    found: dict[str, list[float]] = {}
    for sample in samples:
        taken, own = dict(sample.steps_ms), sample.server
        if own and own.received_at is not None and own.committed_at is not None:
            taken["before_server"] = (own.received_at - sample.began) * 1000
            taken["server"] = own.own_ms
            taken["after_server"] = (sample.ended - own.committed_at) * 1000
        for step, milliseconds in taken.items():
            found.setdefault(step, []).append(milliseconds)
    return {step: round(statistics.median(values), 1) for step, values in found.items()}


def percentile(values: Sequence[float], percent: int) -> float:
    """Return a percentile, interpolated between neighbours."""
    # One value is its own percentile; Python 3.11 and 3.12 want two.
    return statistics.quantiles(
        values if len(values) > 1 else 2 * list(values), n=100, method="inclusive"
    )[percent - 1]


# --- For people -----------------------------------------------------------------------------------


def show(figures: Figures, console: Console) -> None:
    """Print the table, and what the figures in it are."""
    conditions, flows, idle = figures["conditions"], figures["flows"], figures["idle"]
    lines = [] if idle is None else [_idle(idle)]
    if flows:
        # Above the table and not its title, which would be folded to the table's width.
        console.print(f"\n{_title(conditions)}\n", highlight=False, soft_wrap=True)
        console.print(_table(flows))
        lines = _notes(conditions, flows)
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _title(conditions: Figures) -> str:
    where = conditions["server"]
    if conditions["simulator_speed"] is not None:
        where = f"a simulated CVAT at speed {conditions['simulator_speed']:g}"
    images, labels = (
        f"{conditions[of]} {of[:-1] if conditions[of] == 1 else of}" for of in ("images", "labels")
    )
    return f"From a request to its job ids, {images}, {labels}, on {where}:"


def _idle(idle: Figures) -> str:
    calls = ", ".join(f"{count} {name}" for name, count in sorted(idle["calls"].items()))
    return (
        f"Idle daemon with {idle['tasks']} warm tasks, {idle['seconds']:.0f} s: "
        f"{idle['cpu_percent']:.2f} % of one core, {idle['rss_mb']:.0f} MB resident, "
        f"{idle['calls_per_minute']:.1f} calls a minute to the server ({calls or 'none'})"
    )


def _table(flows: Mapping[str, Figures]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, flow in flows.items():
        cells = ["-"] * len(HEADINGS)
        if flow["available"]:
            ours, server, ratio = flow["ours_ms"], flow["server_ms"], flow["ours_to_server"]
            cells = [
                str(flow["requests"]),
                f"{ours['median']:.0f}",
                f"{ours['p90']:.0f}",
                f"{server['median']:.0f}" if server else "-",
                f"{ratio['median']:.2f}" if ratio else "-",
                f"{ratio['p90']:.2f}" if ratio else "-",
                f"{flow['calls_per_request']:.1f}",
                f"{flow['polls_per_request']:.1f}",
            ]
        table.add_row(name, *cells)
    return table


def _notes(conditions: Figures, flows: Mapping[str, Figures]) -> list[str]:
    measured = {name: flow for name, flow in flows.items() if flow["available"]}
    notes = [
        "Ours is what a caller waits, in ms, from having the images to having the job ids.",
        f"The server's is its own time in ms: {conditions['server_time_how']}.",
        "The ratio is ours over the server's, request by request: its median and its p90.",
        *(
            f"{name} is not available: {flow['reason']}."
            for name, flow in flows.items()
            if name not in measured
        ),
    ]
    if "sdk" in measured and measured["sdk"]["requests"] < conditions["requests"]:
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


# --- A picture ------------------------------------------------------------------------------------


def check_plot_possible(path: Path) -> None:
    """Check before anything is measured.

    :raises InputError: matplotlib is not installed, or the picture cannot be there.
    """
    if not path.parent.is_dir():
        raise InputError(f"--plot {path}: there is no folder {path.parent}")
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InputError(f"--plot {path}: give a name that ends with .png, .svg or .pdf")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        why = "--plot needs matplotlib, the extra 'plot': pip install '.[plot]'"
        raise InputError(why) from None


def draw(figures: Figures, path: Path) -> None:
    """Draw every request of every flow, on one scale.

    :raises InputError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    flows = {name: flow for name, flow in figures["flows"].items() if flow["available"]}
    figure = Figure(figsize=(9, 1.2 + 0.55 * len(flows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    for row, flow in enumerate(flows.values()):
        ours = [each["ours"] for each in flow["each_ms"]]
        own = [each["server"] for each in flow["each_ms"] if each["server"] is not None]
        axes.plot(own, [row + 0.17] * len(own), "|", color="tab:gray", markersize=7)
        axes.plot(ours, [row - 0.1] * len(ours), "o", color="tab:blue", alpha=0.45)
        median = flow["ours_ms"]["median"]
        axes.plot([median, median], [row - 0.33, row + 0.33], color="tab:blue", linewidth=2)
        axes.annotate(f" {median:.0f}", (median, row - 0.35), fontsize=8, va="center")
    axes.set_yticks(range(len(flows)), list(flows))
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="x", which="minor", labelsize=7)
    axes.grid(axis="x", which="both", alpha=0.25)
    axes.set_xlabel("ms from a request to its job ids; grey: the server's own time")
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a picture.

    :raises InputError: the file cannot be written.
    """
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise InputError(f"--plot {path}: {error.strerror or error}") from None
