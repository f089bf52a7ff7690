"""What ``cvat-pool bench --slots`` has measured, each figure beside what it is to be.

The figures are what ``--json`` prints; the table reads them.
"""

from __future__ import annotations

import operator
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pool.bench.report import Figures, duration, percentile, place, print_paragraph

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class Aim:
    """What a figure is to be: at most ``bound``, unless it ``least`` is. ``path`` are the keys of
    the figure."""

    what: str
    path: str
    bound: float | None
    unit: str = "ms"
    least: bool = False


#: The aims of slots, in the order of the table. Without a bound a figure stands for comparison.
AIMS: Final = (
    Aim("ids, library, p50", "ids.slots.p50", 10),
    Aim("ids, library, p99, in p50", "ids.tail", 5, "x"),
    Aim("ids, library, p50, in bare fsyncs of the bytes", "ids.fsyncs", 8, "x"),
    Aim("ids, over HTTP, p50", "ids.http.p50", 10),
    Aim("ids, over HTTP, p99, in p50", "ids.http_tail", 5, "x"),
    Aim("ids, in a bucket, p50", "ids.bucket.p50", 25),
    Aim("ids, in a bucket, p99, in p50", "ids.bucket_tail", 5, "x"),
    Aim("an ordinary hit, p50", "ids.pool.p50", None),
    Aim("the SDK with its defaults, p50", "ids.sdk.p50", None),
    Aim("sooner than an ordinary hit", "ids.sooner_than_pool", 15, "x", least=True),
    Aim("sooner than the SDK", "ids.sooner_than_sdk", 300, "x", least=True),
    Aim("20 at once, library, all ids, p50", "burst.library.p50", 100),
    Aim("20 at once, over HTTP, all ids, p50", "burst.http.p50", 100),
    Aim("lone, shown after the ids, p50", "lone.shown_s.p50", None, "s"),
    Aim("lone, shown after the ids, p95", "lone.shown_s.p95", 0.5, "s"),
    Aim("50 a second, ids, p50", "rate.ms.p50", None),
    Aim("50 a second, ids, p99", "rate.ms.p99", 100),
    Aim("50 a second, in no slot", "rate.placed.otherwise", 0, ""),
    Aim("50 a second, shown after the ids, p50", "rate.shown_s.p50", None, "s"),
    Aim("50 a second, shown after the ids, p95", "rate.shown_s.p95", 1.5, "s"),
    Aim("50 a second, time the import queue is busy", "rate.import_busy", 0.333, ""),
)


def percentiles(values: Sequence[float]) -> Figures | None:
    """Return the percentiles that the aims are about; None of no values."""
    if not values:
        return None
    found = {f"p{percent}": round(percentile(values, percent), 2) for percent in (50, 95, 99)}
    return {"requests": len(values), **found, "most": round(max(values), 2)}


def ids_figures(found: Mapping[str, Sequence[float]], main: str, others: Sequence[str]) -> Figures:
    """Return the figures of requests one after the other, in ms, and what they are compared with;
    what was not measured is null."""
    names = {"slots": main, "http": "http", "pool": "pool", "sdk": "sdk", "fsync": "fsync"}
    if others:
        names["bucket"] = others[0]
    figures: Figures = {name: percentiles(found.get(key, ())) for name, key in names.items()}
    figures.setdefault("bucket", None)
    # With neighbours in time, since a disk is not always as quick.
    pairs = zip(found[main], found.get("fsync", ()), strict=False)
    fsyncs = [ours / bare for ours, bare in pairs]

    def ratio(one: str, of: str, other: str, by: str) -> float | None:
        return (
            round(figures[one][of] / figures[other][by], 2)
            if figures[one] and figures[other]
            else None
        )

    return figures | {
        "fsyncs": round(statistics.median(fsyncs), 2) if fsyncs else None,
        "tail": ratio("slots", "p99", "slots", "p50"),
        "http_tail": ratio("http", "p99", "http", "p50"),
        "bucket_tail": ratio("bucket", "p99", "bucket", "p50"),
        "sooner_than_pool": ratio("pool", "p50", "slots", "p50"),
        "sooner_than_sdk": ratio("sdk", "p50", "slots", "p50"),
    }


def aims(figures: Figures) -> list[Figures]:
    """Return each figure that was measured beside its aim, and whether that is met."""
    return [
        {
            "what": aim.what,
            "value": value,
            "unit": aim.unit,
            ("at_least" if aim.least else "at_most"): aim.bound,
            "met": None if aim.bound is None else _compare(aim)(value, aim.bound),
        }
        for aim in AIMS
        if (value := _at(figures, aim.path)) is not None
    ]


def _compare(aim: Aim) -> Callable[[float, float], bool]:
    return operator.ge if aim.least else operator.le


def _at(figures: Any, path: str) -> float | None:
    for key in path.split("."):
        figures = figures.get(key) if figures is not None else None
    return None if figures is None else float(figures)


# --- For people -----------------------------------------------------------------------------------


def show(figures: Figures, console: Console) -> None:
    """Print what was measured in words, the table, and what was skipped."""
    slots = figures["slots"]
    console.print(f"\nJob ids before the data, on {place(figures['conditions'])}", highlight=False)
    for line in _story(slots):
        console.print()
        print_paragraph(line, console)
    console.print(_table(slots["aims"]))
    for what, why in slots["skipped"].items():
        console.print(f"{what} is skipped: {why}.", highlight=False)


def _story(figures: Figures) -> Iterator[str]:
    """Yield how long a caller and an annotator wait, beside the ways without slots."""
    ids, lone, rate = (figures.get(name) for name in ("ids", "lone", "rate"))
    if ids and ids["slots"]:
        words = f"A request into a slot has its job ids after {duration(ids['slots']['p50'])}"
        if ids["pool"]:
            words += f"; from a warm task it is {duration(ids['pool']['p50'])}"
        if ids["sdk"]:
            words += f", with the SDK's defaults {duration(ids['sdk']['p50'])}"
        yield f"{words}."
    if lone and (shown := lone["shown_s"]):
        yield (
            f"An annotator can open it {duration(shown['p50'] * 1000)} later, and 95 of 100 within "
            f"{duration(shown['p95'] * 1000)}."
        )
    if rate:
        yield (
            f"{rate['requests']} frames in {rate['seconds']:g} s from 4 clients went into the "
            f"slots of {rate['tasks']} tasks; {len(rate['failed'])} failed, {rate['not_shown']} "
            "were not shown."
        )
        yield from sorted({str(why) for why in rate["failed"]})


def _table(rows: Sequence[Figures]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("from a request to its job ids, and shown")
    for heading in ("measured", "aim", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        bound = row.get("at_most", row.get("at_least"))
        sign = ">=" if "at_least" in row else "<="
        aim = "" if bound is None else f"{sign} {bound:g} {row['unit']}".rstrip()
        met = {None: "", True: "met", False: "missed"}[row["met"]]
        table.add_row(row["what"], f"{row['value']:.4g} {row['unit']}".rstrip(), aim, met)
    return table
