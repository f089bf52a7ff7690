"""What the product promises of a simulator with default timings, in figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """One figure that the product promises on a simulator with default timings."""

    name: str
    what: str
    limit: float
    at_least: bool = False
    value: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether it is as promised; None when it was not measured."""
        if self.value is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit


#: By what they are called in the JSON, which does not change.
GOALS = (
    Goal(
        name="pool_to_server_median",
        what="pool hit over the server's own time, median",
        limit=1.2,
    ),
    Goal(
        name="pool_to_server_p90",
        what="pool hit over the server's own time, p90",
        limit=1.35,
    ),
    Goal(name="pool_polls_per_request", what="polls of a pool hit", limit=3.0),
    Goal(
        name="webhooks_polls_per_request",
        what="polls of a pool hit with webhooks",
        limit=1.0,
    ),
    Goal(
        name="concurrent_polls_share",
        what="20 at once: polls over those of one poller each",
        limit=0.1,
    ),
    Goal(
        name="concurrent_added_share",
        what="20 at once: share added to the server's own time",
        limit=0.15,
    ),
    Goal(
        name="refill_to_idle_median",
        what="pool hit during a refill over one without",
        limit=1.15,
    ),
    Goal(
        name="faster_than_poll_500ms",
        what="pool hit: times faster than poll-500ms",
        limit=2.5,
        at_least=True,
    ),
    Goal(
        name="faster_than_sdk",
        what="pool hit: times faster than sdk",
        limit=20.0,
        at_least=True,
    ),
    Goal(name="idle_cpu_percent", what="idle daemon: percent of one core", limit=1.0),
    Goal(name="idle_rss_mb", what="idle daemon: resident MB", limit=120.0),
    Goal(name="idle_calls_per_minute", what="idle daemon: calls a minute", limit=6.0),
)


def goals_of(figures: Mapping[str, float | None]) -> list[Goal]:
    """The goals with what was measured; None was not."""
    return [replace(goal, value=figures.get(goal.name)) for goal in GOALS]
