"""``cvat-pool streams``: the streams that are open, and the end of one."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from pool.cli.lists import tenant_column
from pool.cli.options import ConfigOption, JsonOption, ServerOption, open_pool
from pool.cli.output import done, print_json
from pool.cli.table import Column, table, terminal_width
from pool.errors import InputError

if TYPE_CHECKING:
    from pool.status import StreamStatus


def streams(
    template: Annotated[
        str | None, typer.Argument(help="A template; those of all of them by default.")
    ] = None,
    config: ConfigOption = None,
    server: ServerOption = None,
    close: Annotated[
        str | None, typer.Option("--close", metavar="NAME", help="Close this stream of TEMPLATE.")
    ] = None,
    tenant: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="With --close: a stream of this tenant, a token's name."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the streams that are open, or close one.

    What is left of the task of a closed stream is filled no more.
    """
    if close is not None and template is None:
        raise InputError(f"--close {close!r}: name the template of the stream, too")
    if close is None and tenant is not None:
        raise InputError(f"--tenant {tenant!r}: it goes with --close")
    with closing(open_pool(config, server)) as pool:
        if close is not None:
            pool.close_stream(template or "", close, tenant=tenant)
            done(
                f"closed stream {close!r} of {template}",
                {"template": template, "stream": close, "closed": True},
                as_json=as_json,
            )
            return
        found = pool.streams(template)
    if as_json:
        print_json(found)
    elif found:
        print("\n".join(table(_columns(found), width=terminal_width())))
    else:
        print("no stream is open")


def _columns(found: list[StreamStatus]) -> list[Column]:
    return [
        Column(heading="stream", values=[each.name for each in found], least=8),
        Column(heading="template", values=[each.template for each in found], least=8),
        *tenant_column([each.tenant for each in found]),
        Column(
            heading="task",
            values=["-" if each.task_id is None else str(each.task_id) for each in found],
            right=True,
        ),
        Column(
            heading="filled", values=[f"{each.filled}/{each.slots}" for each in found], right=True
        ),
        Column(
            heading="last used",
            values=[f"{each.used_at.astimezone():%Y-%m-%d %H:%M:%S}" for each in found],
        ),
    ]
