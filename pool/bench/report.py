"""What a bench has measured: as figures for programs, as a table and a picture for people.

The figures are what ``--json`` prints; all others read them. Times are in milliseconds.
"""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pool.bench.measure import FlowResult, Sample
from pool.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console
    from rich.table import Table

#: What each flow is, in words; the first four do without the pool.
WAYS: Final = {
    "sdk": "SDK, looks every 5 s (default)",
    "sdk-100ms": "SDK, looks every 100 ms",
    "poll-500ms": "SDK's calls, a look in 500 ms",
    "busy-loop": "one upload, looks all the time",
    "pool": "a warm task",
    "pool-webhooks": "a warm task, with webhooks",
    "pool-refill": "a warm task, during a refill",
    "pool-concurrent": "20 at once, a warm task each",
}
#: What stands above the figures of a flow, in the table.
HEADINGS = ("median", "p90", "CVAT's", "calls")
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
    """Print what was measured in words, and the table."""
    conditions, flows, idle = figures["conditions"], figures["flows"], figures["idle"]
    if idle is not None:
        console.print(_idle(idle), highlight=False)
    if not flows:
        return
    measured = {name: flow for name, flow in flows.items() if flow["available"]}
    console.print(f"\n{_title(conditions)}", highlight=False)
    for line in _story(measured):
        console.print()
        print_paragraph(line, console)
    console.print(_table(measured))
    for line in _notes(conditions, flows):
        print_paragraph(line, console)


def print_paragraph(text: str, console: Console) -> None:
    """Print a text, broken between words, but not between a figure and its unit."""
    # Rich takes a no-break space for any other.
    lines = textwrap.wrap(text, console.width, break_long_words=False, break_on_hyphens=False)
    console.print("\n".join(lines), highlight=False, soft_wrap=True)


def duration(ms: float) -> str:
    """Return milliseconds as people read them: "248 ms", "5.3 s"."""
    # No break between the figure and its unit.
    return f"{ms:.0f}\N{NO-BREAK SPACE}ms" if ms < 1000 else f"{ms / 1000:.1f}\N{NO-BREAK SPACE}s"


def place(conditions: Figures) -> str:
    """Return which server was measured, in words."""
    if conditions["simulator_speed"] is None:
        return str(conditions["server"])
    return f"a simulated CVAT at speed {conditions['simulator_speed']:g}"


def _title(conditions: Figures) -> str:
    images, labels = (
        f"{conditions[of]} {of[:-1] if conditions[of] == 1 else of}" for of in ("images", "labels")
    )
    return f"From {images} to job ids, with {labels}, on {place(conditions)}"


def _story(flows: Mapping[str, Figures]) -> Iterator[str]:
    """Yield how long a caller waits today, and with the pool, and where that time goes."""
    took = {name: flow["ours_ms"]["median"] for name, flow in flows.items()}
    if words := " ".join(_comparison(took)):
        yield words
    if "sdk" in flows:
        yield _time_of_sdk(flows["sdk"])
    if "pool" in flows:
        yield _time_of_pool(flows["pool"])
    if burst := flows.get("pool-concurrent"):
        yield (
            f"Of 20 requests at once half wait up to {duration(burst['ours_ms']['median'])} and "
            f"nine of ten up to {duration(burst['ours_ms']['p90'])}, since CVAT imports few at a "
            "time. What they gain by sharing an import: 'cvat-pool bench --bulk'."
        )


def _comparison(took: Mapping[str, float]) -> Iterator[str]:
    if "sdk" in took:
        yield f"Today, with the SDK's defaults, a caller waits {duration(took['sdk'])}."
    if "pool" in took:
        less = f", {took['sdk'] / took['pool']:.0f} times less" if "sdk" in took else ""
        yield f"With the pool it is {duration(took['pool'])}{less}."
    others = {name: took[name] for name in ("sdk-100ms", "poll-500ms", "busy-loop") if name in took}
    if others:
        quickest = min(others, key=others.__getitem__)
        yield (
            f"The quickest way without a pool takes {duration(others[quickest])}: {WAYS[quickest]}."
        )


def _time_of_sdk(flow: Figures) -> str:
    ours, server = flow["ours_ms"]["median"], flow["server_ms"]
    create = flow["calls"].get("create_task", {}).get("median_ms", 0.0)
    if server is None:
        return f"Of the SDK's {duration(ours)}, creating the task is {duration(create)}."
    rest = max(0.0, ours - server["median"] - create)
    return (
        f"Of the SDK's {duration(ours)}, CVAT's own work on the data is "
        f"{duration(server['median'])} and creating the task {duration(create)}. The other "
        f"{duration(rest)} are its further calls, and the time until it looks again."
    )


def _time_of_pool(flow: Figures) -> str:
    steps = {name: duration(ms) for name, ms in flow["steps_ms"].items()}
    if "server" in steps:
        parts = (
            f"{steps['before_server']} pass until CVAT has the data, {steps['server']} are its own "
            f"work on it, and {steps['after_server']} pass until the pool has seen the jobs"
        )
    else:
        parts = (
            f"{steps['post']} are the upload, and {steps['import_and_polls']} pass until CVAT has "
            f"made the jobs and the pool has seen them; taking the task takes {steps['claim']}"
        )
    return f"Of the pool's {duration(flow['ours_ms']['median'])}, {parts}."


def _idle(idle: Figures) -> str:
    calls = ", ".join(f"{count} {name}" for name, count in sorted(idle["calls"].items()))
    return (
        f"An idle daemon with {idle['tasks']} warm tasks, watched for {idle['seconds']:.0f} s, "
        f"takes {idle['cpu_percent']:.2f} % of one core and {idle['rss_mb']:.0f} MB, and makes "
        f"{idle['calls_per_minute']:.1f} calls a minute to the server ({calls or 'none'})."
    )


def _table(flows: Mapping[str, Figures]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("flow", no_wrap=True)
    table.add_column("way", no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, flow in flows.items():
        ours, server = flow["ours_ms"], flow["server_ms"]
        table.add_row(
            name,
            WAYS[name],
            f"{ours['median']:.0f}",
            f"{ours['p90']:.0f}",
            f"{server['median']:.0f}" if server else "-",
            f"{flow['calls_per_request']:.1f}",
        )
    return table


def _notes(conditions: Figures, flows: Mapping[str, Figures]) -> Iterator[str]:
    measured = {name: flow for name, flow in flows.items() if flow["available"]}
    yield (
        "Milliseconds that a caller waits. CVAT's are its own part of it: "
        f"{conditions['server_time_how']}. Calls to CVAT are those of one request."
    )
    for name, flow in flows.items():
        if name not in measured:
            yield f"{name} was not measured: {flow['reason']}."
    if "sdk" in measured and measured["sdk"]["requests"] < conditions["requests"]:
        yield f"sdk: {measured['sdk']['requests']} requests, since each takes more than 5 s."
    if refill := measured.get("pool-refill"):
        yield f"pool-refill: the daemon created {refill['refilled']} tasks meanwhile."
    if misses := sum(flow["misses"] for flow in measured.values()):
        yield f"{misses} of the pool's requests found no warm task."


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
