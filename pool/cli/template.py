"""``cvat-pool pause``, ``resume``, ``drain`` and ``prewarm``: control of templates."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

from pool.cli.options import (
    ConfigOption,
    ServerOption,
    TemplateArgument,
    open_pool,
    seconds_of,
)


def pause(
    template: TemplateArgument, config: ConfigOption = None, server: ServerOption = None
) -> None:
    """Create no more tasks of a template until it is resumed; hand out what is there."""
    with closing(open_pool(config, server)) as pool:
        pool.pause(template)


def resume(
    template: Annotated[
        str | None,
        typer.Argument(help="A template of the configuration; all of them by default."),
    ] = None,
    config: ConfigOption = None,
    server: ServerOption = None,
) -> None:
    """Create tasks again, after pause or drain, and try at once what is held.

    That is a template, or all of them, and CVAT itself.
    """
    with closing(open_pool(config, server)) as pool:
        pool.resume(template)


def drain(
    template: TemplateArgument, config: ConfigOption = None, server: ServerOption = None
) -> None:
    """Take all warm tasks of a template out of the pool, and create no more until it is resumed.

    The daemon deletes them on the server; those that callers have are left to them.
    """
    with closing(open_pool(config, server)) as pool:
        pool.drain(template)


def prewarm(
    template: TemplateArgument,
    count: Annotated[int, typer.Argument(help="How many tasks to keep warm; 0 ends it.")],
    duration: Annotated[
        str, typer.Option("--for", metavar="DURATION", help='For how long, such as "2h".')
    ] = "15m",
    config: ConfigOption = None,
    server: ServerOption = None,
) -> None:
    """Keep more tasks of a template warm for a while, since many are about to be asked for."""
    seconds = seconds_of(duration)
    assert seconds is not None
    with closing(open_pool(config, server)) as pool:
        pool.prewarm(template, count, duration=seconds)
