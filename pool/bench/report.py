"""What a bench came to: as figures for programs, and as tables for people."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pool.bench.calls import polls, total
from pool.bench.goals import Goal, goals_of
from pool.bench.idle import IdleCost
from pool.bench.measure import FlowResult, OwnTime, lone_polls, ratios, spread, steps
from pool.version import VERSION

#: Seconds of one poll, when none of a single request was measured (CVAT.md).
ROUND_TRIP = 0.027
#: What stands above the figures of a flow.
HEADINGS = ("requests", "ours", "p90", "server's", "ratio", "p90", "calls", "polls")

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

#: Seconds between two looks of the poller that :attr:`Report.figures` compares a burst with.
FIXED_POLLER = 0.1


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
        """All figures by stable names; what was not measured is null."""
        return {
            "version": VERSION,
            "conditions": asdict(self.conditions),
            "flows": {name: self._flow(result) for name, result in self.results.items()},
            "idle": None if self.idle is None else _rounded(asdict(self.idle)),
            "goals": {
                goal.name: {
                    "value": None if goal.value is None else round(goal.value, 3),
                    "at_least" if goal.at_least else "at_most": goal.limit,
                    "met": goal.met,
                }
                for goal in self.goals()
            },
        }

    def _flow(self, result: FlowResult) -> dict[str, Any]:
        if not result.samples:
            return {"available": False, "reason": result.not_available or "no requests"}
        count = len(result.samples)
        ours, server = spread(result.ours), spread(self._own_of(result))
        ratio = ratios(result.samples, self.own)
        found: dict[str, Any] = {
            "available": True,
            "requests": count,
            "ours_ms": _rounded(asdict(ours)) if ours else None,
            "server_ms": _rounded(asdict(server)) if server else None,
            "ours_to_server": _rounded(asdict(ratio), 3) if ratio else None,
            "calls_per_request": round(total(result.calls) / count, 2),
            "polls_per_request": round(polls(result.calls) / count, 3),
            "calls": {
                operation: {
                    "count": len(seconds),
                    "median_ms": round(statistics.median(seconds) * 1000, 1),
                }
                for operation, seconds in sorted(result.calls.items())
            },
            "misses": result.misses,
            "steps_ms": _rounded(steps(result.samples, self.own)),
            "each_ms": [
                {
                    "ours": round(sample.ours_ms, 1),
                    "server": round(self.own[sample.task_id].own_ms, 1)
                    if sample.task_id in self.own
                    else None,
                }
                for sample in result.samples
            ],
        }
        if result.name == "pool-refill":
            found["refilled"] = self.refilled
        if result.name == "pool-concurrent":
            found |= self._concurrent(result)
        return found

    def _concurrent(self, result: FlowResult) -> dict[str, Any]:
        # From the end of the POST on, which is when a poller begins.
        waits = [sample.steps_ms.get("import_and_polls", 0.0) / 1000 for sample in result.samples]
        alone = sum(self._lone_polls(waits))
        fixed = sum(math.ceil(wait / FIXED_POLLER) for wait in waits)
        made = polls(result.calls)
        return {
            "polls": made,
            "polls_alone": alone,
            "polls_alone_every_100_ms": fixed,
            "polls_share": _rounded_or_none(_over(made, alone), 4),
            "added_to_server": _minus_one(self._ratio("pool-concurrent", "median")),
            "to_single_median": _rounded_or_none(
                _over(self._median("pool-concurrent"), self._median("pool"))
            ),
        }

    def _lone_polls(self, waits: Sequence[float]) -> list[int]:
        """As if each had had a poller of its own, which has learned from single requests."""
        single = self._result("pool")
        if single is None:
            return [lone_polls(wait, round_trip=ROUND_TRIP) for wait in waits]
        first = statistics.median(each.steps_ms["import_and_polls"] for each in single.samples)
        round_trip = statistics.median(single.calls.get("jobs", [ROUND_TRIP]))
        return [
            lone_polls(wait, first=first / 1000 - round_trip, round_trip=round_trip)
            for wait in waits
        ]

    def goals(self) -> list[Goal]:
        """The figures that the product promises."""
        burst = self._result("pool-concurrent")
        figures = self._concurrent(burst) if burst is not None else {}
        pool, idle = self._median("pool"), self.idle
        return goals_of(
            {
                "pool_to_server_median": self._ratio("pool", "median"),
                "pool_to_server_p90": self._ratio("pool", "p90"),
                "pool_polls_per_request": self._polls("pool"),
                "webhooks_polls_per_request": self._polls("pool-webhooks"),
                "concurrent_polls_share": figures.get("polls_share"),
                "concurrent_added_share": figures.get("added_to_server"),
                "refill_to_idle_median": _over(self._median("pool-refill"), pool),
                "faster_than_poll_500ms": _over(self._median("poll-500ms"), pool),
                "faster_than_sdk": _over(self._median("sdk"), pool),
                "idle_cpu_percent": idle.cpu_percent if idle else None,
                "idle_rss_mb": idle.rss_mb if idle else None,
                "idle_calls_per_minute": idle.calls_per_minute if idle else None,
            }
        )

    def _result(self, name: str) -> FlowResult | None:
        result = self.results.get(name)
        return result if result is not None and result.samples else None

    def _own_of(self, result: FlowResult) -> list[float]:
        ids = (sample.task_id for sample in result.samples)
        return [self.own[task_id].own_ms for task_id in ids if task_id in self.own]

    def _median(self, name: str) -> float | None:
        result = self._result(name)
        return statistics.median(result.ours) if result else None

    def _ratio(self, name: str, figure: str) -> float | None:
        result = self._result(name)
        found = ratios(result.samples, self.own) if result else None
        return getattr(found, figure) if found else None

    def _polls(self, name: str) -> float | None:
        result = self._result(name)
        return polls(result.calls) / len(result.samples) if result else None


# --- For people ----------------------------------------------------------------------------------


def show(report: Report, console: Console) -> None:
    """The tables, and what the figures in them are."""
    conditions = report.conditions
    if report.results:
        # Above the table and not its title, which would be folded to the table's width.
        console.print(f"\n{_title(conditions)}\n", highlight=False, soft_wrap=True)
        console.print(_flow_table(report))
        for line in _notes(report):
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
    promised = [goal for goal in report.goals() if goal.value is not None]
    if promised:
        aims = conditions.simulator_speed == 1.0
        console.print("\nIn this run:\n")
        console.print(_goal_table(promised, aims=aims))


def _title(conditions: Conditions) -> str:
    where = conditions.server
    if conditions.simulator_speed is not None:
        where = f"a simulated CVAT at speed {conditions.simulator_speed:g}"
    return (
        f"From a request to its job ids, {_many(conditions.images, 'image')}, "
        f"{_many(conditions.labels, 'label')}, on {where}:"
    )


def _flow_table(report: Report) -> Table:
    table = _table()
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, flow in report.figures()["flows"].items():
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


def _notes(report: Report) -> list[str]:
    figures = report.figures()["flows"]
    how = report.conditions.server_time_how
    notes = [
        "Ours is what a caller waits, in ms, from having the images to having the job ids.",
        f"The server's is its own time in ms: {how}.",
        "The ratio is ours over the server's, request by request: its median and its p90.",
        *(
            f"{name} is not available: {flow['reason']}."
            for name, flow in figures.items()
            if not flow["available"]
        ),
    ]
    if "sdk" in figures and figures["sdk"].get("requests", 0) < report.conditions.requests:
        notes.append("sdk gets fewer requests than the others, since each takes more than 5 s.")
    pool = figures.get("pool")
    if pool and pool["available"]:
        steps_there = ", ".join(
            f"{name.replace('_', ' ')} {value:.0f}" for name, value in pool["steps_ms"].items()
        )
        notes.append(f"Where a pool hit spends its time, median ms: {steps_there}.")
        notes.append(
            "The pool's tasks were made ahead of time by its daemon, with 2 calls each, which are "
            "not in its count; its calls include naming the task after the job ids are out."
        )
    burst = figures.get("pool-concurrent")
    if burst and burst["available"]:
        notes.append(
            f"At once: {burst['polls']} polls in all, where one poller for each request would make "
            f"{burst['polls_alone']} at the same pace, and {burst['polls_alone_every_100_ms']} at "
            "one every 100 ms."
        )
    refill = figures.get("pool-refill")
    if refill and refill["available"]:
        notes.append(f"During the refill the daemon made {refill['refilled']} tasks.")
    misses = sum(flow.get("misses", 0) for flow in figures.values())
    if misses:
        notes.append(f"{misses} of the pool's requests found no warm task.")
    return notes


def _goal_table(goals: Sequence[Goal], *, aims: bool) -> Table:
    table = _table()
    table.add_column("figure", justify="right")
    if aims:
        table.add_column("aim", justify="right")
    for goal in goals:
        row = [goal.what, f"{goal.value:.2f}"]
        if aims:
            sign = ">=" if goal.at_least else "<="
            row.append(f"{sign} {goal.limit:g}{'' if goal.met else ', missed'}")
        table.add_row(*row)
    return table


def _table() -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    return table


# --- Small arithmetic ----------------------------------------------------------------------------


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _over(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None


def _minus_one(value: float | None) -> float | None:
    return None if value is None else round(value - 1, 4)


def _rounded_or_none(value: float | None, digits: int = 3) -> float | None:
    return None if value is None else round(value, digits)


def _rounded(values: Mapping[str, Any], digits: int = 1) -> dict[str, Any]:
    return {
        key: round(value, digits) if isinstance(value, float) else value
        for key, value in values.items()
    }
