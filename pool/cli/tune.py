"""``cvat-pool tune``: what size of a pool the demand so far would have wanted."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from pool.cli.options import ConfigOption, JsonOption, TemplateArgument, settings_of
from pool.cli.output import print_json

if TYPE_CHECKING:
    from pool.maintenance.tuning import Advice


def tune(
    template: TemplateArgument, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Recommend a min_size, by the demand and the creates of the last seven days.

    Changes nothing.
    """
    from pool.clock import SystemClock
    from pool.config.templates import Templates
    from pool.maintenance.tuning import tune as tune_by
    from pool.store import open_store

    settings = settings_of(config)
    chosen = Templates(settings.templates).named(template)
    with closing(open_store(settings.store.url)) as store:
        advice = tune_by(store, chosen, now=SystemClock().now())
    if as_json:
        print_json(advice)
    else:
        _print(advice, chosen.pool.max_size)


def _print(advice: Advice, max_size: int) -> None:
    demanded, creates = advice.demanded, advice.creates
    if demanded.since is None or advice.min_size is None:
        print(f"{advice.template} had no demand lately, so nothing can be recommended.")
        return
    refused = f", {demanded.refused} without a task" if demanded.refused else ""
    print(
        f"since {demanded.since.astimezone():%Y-%m-%d %H:%M}: {demanded.total} hand-outs, "
        f"{demanded.hits} hits, {demanded.waits} waits, {demanded.colds} colds{refused}"
    )
    print(
        f"served at once: {_percent(demanded.hit_rate)}; hit_rate wants {_percent(advice.wanted)}"
    )
    if creates.count:
        print(
            f"to create a task: {creates.median:.2f} s (median), {creates.slow:.2f} s (p90), "
            f"of {creates.count}"
        )
    else:
        print(f"to create a task: not measured yet, {creates.slow:.2f} s is assumed")
    print(f"min_size = {advice.current} alone would have served {_percent(advice.expected_now)}")
    print(f"min_size = {advice.min_size} is recommended: {_percent(advice.expected)} at once")
    if advice.min_size > max_size:
        print(f"max_size = {max_size} has to be raised for that")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
