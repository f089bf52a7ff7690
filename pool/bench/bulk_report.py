"""What ``cvat-pool bench --bulk`` has measured: as figures for programs, as a table, words and a
picture for people.

The figures are what ``--json`` prints; all others read them. Times are in milliseconds.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pool.bench.report import Figures, place, save, spread

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

#: What bursts are called in the report.
BURSTS = {
    "one": "one",
    "few": "at once",
    "few-grouped": "at once, grouped",
    "many": "at once",
    "many-grouped": "at once, grouped",
    "one-import": "one import of as many files",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """The ms from the beginning of a burst to the job ids of a request, and these; or why it has
    failed."""

    ms: float = 0.0
    jobs: tuple[int, ...] = ()
    why: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Burst:
    """Requests that came at once, and how many tasks were filled for them."""

    served: tuple[Served, ...]
    imports: int

    @property
    def median_ms(self) -> float:
        """What half of them waited at most."""
        return statistics.median(each.ms for each in self.served)

    @property
    def all_ms(self) -> float:
        """What passed until the last one had its job ids."""
        return max(each.ms for each in self.served)


def burst_figures(found: Mapping[str, Sequence[Burst]]) -> Figures:
    """Return the figures of bursts by name, and what they are compared with."""
    figures: Figures = {
        name: {
            "bursts": len(bursts),
            "requests": len(bursts[0].served),
            "median_ms": round(statistics.median(burst.median_ms for burst in bursts), 1),
            "all_ms": round(statistics.median(burst.all_ms for burst in bursts), 1),
            "imports": statistics.median(burst.imports for burst in bursts),
            "each_ms": [[round(each.ms, 1) for each in burst.served] for burst in bursts],
        }
        for name, bursts in found.items()
    }

    def ratio(name: str, other: str, of: str) -> float:
        return round(float(figures[name][of] / figures[other][of]), 2)

    return figures | {
        "ratios": {
            "many_sooner": ratio("many", "many-grouped", "all_ms"),
            "many_to_one_import": ratio("many-grouped", "one-import", "all_ms"),
            "few_to_one": ratio("few-grouped", "one", "median_ms"),
            "few_to_one_without": ratio("few", "one", "median_ms"),
        }
    }


def pair_figures(pairs: Sequence[tuple[float, float]]) -> Figures:
    """Return the figures of pairs, in ms without and with group commit: the mean difference, with
    its interval of 95 %, by the standard error of the mean."""
    differences = [with_it - without for without, with_it in pairs]
    mean = statistics.fmean(differences)
    error = statistics.stdev(differences) / len(differences) ** 0.5 if len(pairs) > 1 else 0.0
    return {
        "pairs": len(pairs),
        "without_ms": spread([without for without, _ in pairs]),
        "with_ms": spread([with_it for _, with_it in pairs]),
        "added_ms": round(mean, 2),
        "interval_ms": [round(mean - 1.96 * error, 2), round(mean + 1.96 * error, 2)],
    }


# --- For people -----------------------------------------------------------------------------------


def show(figures: Figures, console: Console) -> None:
    """Print a table of the bursts, and what else was measured in words."""
    bulk = figures["bulk"]
    console.print(f"\nMany requests at once, on {place(figures['conditions'])}", highlight=False)
    if bursts := bulk.get("bursts"):
        console.print(_table(bursts))
    for line in _lines(bulk):
        console.print(line, highlight=False)


def _table(bursts: Figures) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("requests over HTTP", no_wrap=True)
    for heading in ("median ms", "all ms", "imports"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, words in BURSTS.items():
        if burst := bursts.get(name):
            several = "" if name in ("one", "one-import") else f"{burst['requests']} "
            cells = (f"{burst['median_ms']:.0f}", f"{burst['all_ms']:.0f}", f"{burst['imports']:g}")
            table.add_row(several + words, *cells)
    return table


def _lines(figures: Figures) -> Iterator[str]:
    if bursts := figures.get("bursts"):
        ratios, many = bursts["ratios"], bursts["many"]["requests"]
        few = bursts["few"]["requests"]
        yield (
            f"{many} at once have all job ids {ratios['many_sooner']:.1f} times sooner with group "
            f"commit, after {ratios['many_to_one_import']:.2f} of what one import of the same "
            "files takes."
        )
        yield (
            f"{few} at once wait {ratios['few_to_one']:.2f} times as long as one alone (median), "
            f"{ratios['few_to_one_without']:.2f} times without group commit."
        )
    if idle := figures.get("idle"):
        low, high = idle["interval_ms"]
        yield (
            f"On an idle server group commit adds {idle['added_ms']:+.1f} ms to "
            f"{idle['without_ms']['median']:.0f} ms (95 %: {low:+.1f} to {high:+.1f}, "
            f"{idle['pairs']} pairs in turns)."
        )
    if corrupt := figures.get("corrupt"):
        yield (
            f"{corrupt['requests']} at once with one corrupt image: {corrupt['ready']} ready, "
            f"{corrupt['failed']} failed, {corrupt['jobs_given_twice']} jobs given twice, "
            f"{corrupt['imports']} imports ({corrupt['imports_without_it']} without it)."
        )
        yield from (f"  {why}" for why in corrupt["why"])
    if arrivals := figures.get("arrivals"):
        yield (
            f"{arrivals['arrivals_per_s']:.0f} arrivals a second for {arrivals['seconds']:g} s, "
            f"of which the server manages {arrivals['one_by_one_per_s']:.0f} one by one:"
        )
        for name, words in (("grouped", "with group commit"), ("single", "without")):
            each = arrivals[name]
            p95 = "-" if each["p95_ms"] is None else f"{each['p95_ms']:.0f} ms"
            yield (
                f"  {words}: p95 {p95} of {each['served']} served, {max(each['waiting'])} waited "
                f"at most, {each['waiting'][-1]} at the end, {each['imports']} imports."
            )
    if queue := figures.get("queue"):
        submit, waits = queue["submit"], queue["interactive_ms"]
        yield (
            f"With {queue['queued']} requests waiting, one more is accepted in "
            f"{submit['full']['ms']['median']:.1f} ms, {submit['full']['ratio']:.1f} times what "
            f"the disk takes for its bytes ({submit['empty']['ratio']:.1f} times with none)."
        )
        yield (
            f"A daemon starts with them in {queue['restart_s']:.1f} s, and has "
            f"{queue['resident_mb']['full']:.0f} MB; {queue['resident_mb']['serving']:.0f} MB "
            "while it serves them."
        )
        yield (
            f"An interactive request waits {waits['meanwhile']['median']:.0f} ms meanwhile, "
            f"{waits['meanwhile']['most']:.0f} at most, and {waits['alone']['median']:.0f} alone."
        )


# --- A picture ------------------------------------------------------------------------------------


def draw(figures: Figures, path: Path) -> None:
    """Draw how long each request of the bursts waited, and how many arrivals wait, second by
    second.

    :raises InputError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    parts = [name for name in ("bursts", "arrivals") if name in figures]
    figure = Figure(figsize=(9, 0.6 + 3.2 * max(1, len(parts))), layout="constrained")
    FigureCanvasAgg(figure)
    for row, name in enumerate(parts):
        axes: Any = figure.add_subplot(len(parts), 1, row + 1)
        {"bursts": _draw_bursts, "arrivals": _draw_arrivals}[name](figures[name], axes)
    save(figure, path)


def _draw_bursts(bursts: Figures, axes: Any) -> None:
    names = [name for name in BURSTS if name in bursts]
    for row, name in enumerate(names):
        each = [ms for burst in bursts[name]["each_ms"] for ms in burst]
        grouped = name.endswith("grouped")
        axes.plot(each, [row] * len(each), "|", color="tab:blue" if grouped else "tab:gray")
        axes.annotate(f"{bursts[name]['all_ms']:.0f}", (bursts[name]["all_ms"], row - 0.2))
    counts = [bursts[name]["requests"] for name in names]
    words = [
        BURSTS[name] if count == 1 else f"{count} {BURSTS[name]}"
        for name, count in zip(names, counts, strict=True)
    ]
    axes.set_yticks(range(len(names)), words)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(axis="x", which="both", alpha=0.25)
    axes.set_xlabel("ms from a burst to the job ids of each request")


def _draw_arrivals(arrivals: Figures, axes: Any) -> None:
    for name, words in (("single", "without group commit"), ("grouped", "with group commit")):
        waiting = arrivals[name]["waiting"]
        axes.plot(range(1, len(waiting) + 1), waiting, label=words)
    axes.set_xlabel(f"s, at {arrivals['arrivals_per_s']:.0f} arrivals a second")
    axes.set_ylabel("requests without job ids")
    axes.grid(alpha=0.25)
    axes.legend()
