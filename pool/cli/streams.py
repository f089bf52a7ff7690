"""``cvat-pool streams``: the streams that are open, and the end of one."""

from __future__ import annotations

import shutil
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from pool.cli.options import ConfigOption, JsonOption, ServerOption, open_pool
from pool.cli.output import done, print_json
from pool.cli.status import cut
from pool.errors import InputError

if TYPE_CHECKING:
    from pool.status import StreamStatus

_GAP = "  "
_HEADINGS = ("stream", "template", "task", "filled", "last used")
#: Columns of a name at least, also on a narrow screen.
_NARROWEST = 8


def streams(
    template: Annotated[
        str | None, typer.Argument(help="A template; those of all of them by default.")
    ] = None,
    config: ConfigOption = None,
    server: ServerOption = None,
    close: Annotated[
        str | None, typer.Option("--close", metavar="NAME", help="Close this stream of TEMPLATE.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the streams that are open, or close one.

    What is left of the task of a closed stream is filled no more.
    """
    if close is not None and template is None:
        raise InputError(f"--close {close!r}: name the template of the stream, too")
    with closing(open_pool(config, server)) as pool:
        if close is not None:
            pool.close_stream(template or "", close)
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
        print("\n".join(table(found, width=shutil.get_terminal_size().columns)))
    else:
        print("no stream is open")


def table(found: list[StreamStatus], *, width: int) -> list[str]:
    """Return the lines of a table of streams. Names are cut in the middle where it would be wider
    than ``width``."""
    rows = [
        (
            each.name,
            each.template,
            "-" if each.task_id is None else str(each.task_id),
            f"{each.filled}/{each.slots}",
            f"{each.used_at.astimezone():%Y-%m-%d %H:%M:%S}",
        )
        for each in found
    ]
    widths = [max(map(len, column)) for column in zip(_HEADINGS, *rows, strict=True)]
    for column in (0, 1):
        beyond = sum(widths) + len(_GAP) * (len(widths) - 1) - width
        widths[column] = max(min(_NARROWEST, widths[column]), widths[column] - max(0, beyond))
    return [
        _GAP.join(
            cut(cell, most).rjust(most) if column in (2, 3) else cut(cell, most).ljust(most)
            for column, (cell, most) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (_HEADINGS, *rows)
    ]
