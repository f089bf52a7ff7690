"""``cvat-pool pause``, ``resume``, ``drain`` and ``prewarm``: control of templates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from pool.cli.options import (
    ConfigOption,
    JsonOption,
    ServerOption,
    TemplateArgument,
    open_pool,
    seconds_of,
    settings_of,
)
from pool.cli.output import counted, done, print_json, wrapped

if TYPE_CHECKING:
    from pool.maintenance.tuning import Advice


def pause(
    template: TemplateArgument,
    config: ConfigOption = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stop creating tasks of a template until it is resumed; warm tasks are still handed out."""
    with closing(open_pool(config, server)) as pool:
        pool.pause(template)
    done(f"paused {template}", {"template": template, "paused": True}, as_json=as_json)


def resume(
    template: Annotated[
        str | None,
        typer.Argument(help="A template of the configuration; all of them by default."),
    ] = None,
    config: ConfigOption = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create tasks again after pause or drain, and end holds.

    Applies to one template, or to all of them. A hold of the server ends, too.
    """
    with closing(open_pool(config, server)) as pool:
        pool.resume(template)
    words = f"resumed {template or 'all templates'}"
    done(words, {"template": template, "paused": False}, as_json=as_json)


def drain(
    template: TemplateArgument,
    config: ConfigOption = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take all warm tasks of a template out of the pool, and stop creating them until resume.

    The daemon deletes them on the server. Leased tasks stay with their callers.
    """
    with closing(open_pool(config, server)) as pool:
        retired = pool.drain(template)
    done(
        f"drained {template}: {counted(retired, 'warm task')} retired",
        {"template": template, "paused": True, "retired": retired},
        as_json=as_json,
    )


def prewarm(
    template: TemplateArgument,
    count: Annotated[int, typer.Argument(help="Tasks to keep warm; 0 ends it.")],
    duration: Annotated[
        str, typer.Option("--for", metavar="DURATION", help='For how long, such as "2h".')
    ] = "15m",
    config: ConfigOption = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Keep more tasks of a template warm for a while, before a burst of requests."""
    from pool.clock import SystemClock
    from pool.observability.status import moment

    seconds = seconds_of("--for", duration)
    with closing(open_pool(config, server)) as pool:
        pool.prewarm(template, count, duration=seconds)
    now = SystemClock().now()
    until = datetime.fromtimestamp(now + seconds, UTC) if count else None
    done(
        f"{template}: at least {count} warm until {moment(until, now)}"
        if until
        else f"{template}: the prewarm has ended",
        {"template": template, "count": count, "until": until},
        as_json=as_json,
    )


def tune(
    template: TemplateArgument, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Recommend a min_size, from the demand and the create times of the last seven days.

    Changes nothing.
    """
    from pool.clock import SystemClock
    from pool.config.settings import Templates
    from pool.maintenance.tuning import tune as tune_by
    from pool.store import open_store

    settings = settings_of(config)
    chosen = Templates(settings.templates).named(template)
    with closing(open_store(settings.store.url)) as store:
        advice = tune_by(store, chosen, now=SystemClock().now())
    if as_json:
        print_json(advice)
    else:
        what = "slot" if chosen.slots else "task"
        for line in _advice(advice, chosen.pool.max_size, what):
            print(wrapped(line))


def _advice(advice: Advice, max_size: int, what: str) -> Iterator[str]:
    demanded, creates = advice.demanded, advice.creates
    if demanded.since is None or advice.min_size is None:
        yield f"{advice.template} had no demand in the last seven days: no recommendation."
        return
    refused = f", {demanded.refused} without a task" if demanded.refused else ""
    yield (
        f"since {demanded.since.astimezone():%Y-%m-%d %H:%M}: {demanded.total} hand-outs, "
        f"{demanded.hits} hits, {demanded.waits} waits, {demanded.colds} colds{refused}"
    )
    yield (
        f"served at once: {_percent(demanded.hit_rate)}; hit_rate wants {_percent(advice.wanted)}"
    )
    if creates.count:
        yield (
            f"to create a {what}: {creates.median:.2f} s (median), {creates.slow:.2f} s (p90), "
            f"of {creates.count}"
        )
    else:
        yield f"to create a {what}: not measured yet, {creates.slow:.2f} s is assumed"
    yield f"min_size = {advice.current} alone would have served {_percent(advice.expected_now)}"
    yield f"min_size = {advice.min_size} is recommended: {_percent(advice.expected)} at once"
    if advice.min_size > max_size:
        yield f"this needs a larger max_size than {max_size}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
