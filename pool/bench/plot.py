"""A picture of a bench: every request of every flow, on one scale."""

from __future__ import annotations

import statistics
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pool.bench.report import Report
from pool.errors import InputError


def check_plot_possible(path: Path) -> None:
    """Said before anything is measured.

    :raises InputError: matplotlib is not installed, or the picture cannot be there.
    """
    if not installed():
        raise InputError("--plot needs matplotlib, the extra 'plot': pip install '.[plot]'")
    if not path.parent.is_dir():
        raise InputError(f"--plot {path}: there is no folder {path.parent}")
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InputError(f"--plot {path}: give a name that ends with .png, .svg or .pdf")


def installed() -> bool:
    """Whether there is a matplotlib."""
    try:
        return find_spec("matplotlib") is not None
    except ValueError:
        return False


def draw(report: Report, path: Path) -> None:
    """One row a flow: a dot a request, a line at its median, and the server's own time.

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
