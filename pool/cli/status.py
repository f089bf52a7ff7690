"""``cvat-pool status``: levels, demand and problems of all templates, at any terminal width.

The name, the warm tasks and the state always fit into 60 columns. Other figures that are not zero
get a column where there is room, and a line below the table where there is none.
"""

from __future__ import annotations

import re
import sys
import textwrap
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from pool.cli.options import ConfigOption, JsonOption, ServerOption, open_pool
from pool.cli.output import error_document, hint, json_line, print_json
from pool.cli.table import Column, cut, printable, table
from pool.errors import PoolError

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.text import Text

    from pool.config.loader import InvalidConfig
    from pool.status import Status, TemplateStatus

#: Seconds between two looks of --watch.
EVERY: Final = 1.0
_AGAIN: Final = "(trying again)"
#: Columns of the narrowest layout, even on a narrower screen.
NARROWEST: Final = 40
_GAP: Final = "  "
#: Further figures of a template, the most telling about problems first.
_FIGURES: Final[Sequence[tuple[str, Callable[[TemplateStatus], str]]]] = (
    ("queued", lambda row: str(row.queued)),
    ("waiting", lambda row: str(row.waiting)),
    ("importing", lambda row: str(row.importing)),
    ("leased", lambda row: str(row.leased)),
    ("deleting", lambda row: str(row.deleting)),
    ("hit/wait/cold", lambda row: f"{row.hits}/{row.waits}/{row.colds}"),
)
#: A space that :mod:`textwrap` does not break at.
_UNBROKEN: Final = "\N{NO-BREAK SPACE}"
_NOTHING: Final = frozenset({"0", "0/0/0"})
#: Colours only: everything can be read without them (NO_COLOR).
_GOOD, _ATTENTION, _BAD = "green", "yellow", "red"
_COLOURS: Final = {"ok": _GOOD, "held": _BAD}

WideOption = Annotated[bool, typer.Option("--wide", help="Show all columns, whatever the width.")]


def status(
    config: ConfigOption = None,
    server: ServerOption = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Refresh every second, until Ctrl-C.")
    ] = False,
    wide: WideOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show levels, demand and problems of all templates."""
    with _reading(config, server, patience=EVERY if watch else None) as read:
        if not watch:
            _show(read(), wide=wide, as_json=as_json)
        elif sys.stdout.isatty() and not as_json:
            _watch(read, wide=wide)
        else:
            _follow(read, wide=wide, as_json=as_json)


@contextmanager
def _reading(
    config: Path | None, server: str | None, *, patience: float | None
) -> Iterator[Callable[[], Status]]:
    """Yield a function that returns the status. If the configuration file is wrong and a daemon is
    running, use the configuration of the daemon."""
    from pool.config.loader import InvalidConfig

    with ExitStack() as stack:
        try:
            pool = stack.enter_context(closing(open_pool(config, server, patience=patience)))
        except InvalidConfig as error:
            read = _by_daemon(error, stack)
            if read is None:
                raise
            yield read
        else:
            yield pool.status


def _by_daemon(error: InvalidConfig, stack: ExitStack) -> Callable[[], Status] | None:
    from pool.clock import SystemClock
    from pool.config.settings import Template
    from pool.observability.status import read_status
    from pool.store import open_store

    rest, clock = error.rest, SystemClock()
    if rest is None or (rest.store.path and not rest.store.path.exists()):
        return None
    store = stack.enter_context(closing(open_store(rest.store.url)))
    if store.maintainer(now=clock.now()) is None or store.configuration() is None:
        return None

    def read() -> Status:
        record = store.configuration()
        outlines = record.templates if record is not None else {}
        templates = {name: Template.of_outline(name, each) for name, each in outlines.items()}
        return read_status(store, rest, templates, now=clock.now())

    return read


def _show(status: Status, *, wide: bool, as_json: bool) -> None:
    if as_json:
        print_json(status)
        return
    from rich.console import Console

    # Longer lines are not cropped: StatusView makes lines fit where possible.
    Console().print(StatusView(status, wide=wide), crop=False)


def _watch(read: Callable[[], Status], *, wide: bool) -> None:
    """Refresh the status on the screen until Ctrl-C. Where it cannot be read, the latest one stays,
    with the reason below it."""
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    view = StatusView(read(), wide=wide)
    with suppress(KeyboardInterrupt), Live(view, auto_refresh=False) as live:
        while True:
            time.sleep(EVERY)
            try:
                view = StatusView(read(), wide=wide)
            except PoolError as error:
                live.update(Group(view, Text(f"{error} {_AGAIN}", style=_BAD)), refresh=True)
            else:
                live.update(view, refresh=True)


def _follow(read: Callable[[], Status], *, wide: bool, as_json: bool) -> None:
    """Print one status after another for a program, a file or a pager, until Ctrl-C: JSON lines, or
    blocks of text with an empty line between them."""
    status: Status | PoolError = read()
    with suppress(KeyboardInterrupt):
        while True:
            if isinstance(status, PoolError):
                if as_json:
                    print(json_line({"error": error_document(status)}), flush=True)
                hint(f"{status} {_AGAIN}")
            elif as_json:
                print(json_line(status), flush=True)
            else:
                _show(status, wide=wide, as_json=False)
                print(flush=True)
            time.sleep(EVERY)
            try:
                status = read()
            except PoolError as error:
                status = error


@dataclass(frozen=True)
class _Column:
    """A heading, and one value for each template."""

    heading: str
    values: Sequence[str]

    @property
    def width(self) -> int:
        return max(map(len, (self.heading, *self.values)))

    @property
    def count(self) -> int:
        """How many of the values are not zero."""
        return sum(value not in _NOTHING for value in self.values)


class StatusView:
    """A status for :mod:`rich` to print. ``wide`` shows all columns, whatever the width."""

    def __init__(self, status: Status, *, wide: bool = False) -> None:
        self._status = status
        self._rows = status.templates
        self._wide = wide
        self._now = time.time()

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> Iterator[Text]:
        from rich.text import Text

        from pool.observability.status import MOST_NAMED, notes, troubles

        width = max(NARROWEST, options.max_width)
        status = self._status
        first, *others = troubles(status, now=self._now) or ("",)
        yield Text(f"{status.server}, requests in flight: {status.in_flight}")
        yield from self._sentence(first, width, _BAD)
        yield Text()
        left_out = yield from self._table(width)
        yield Text()
        few = [each for each in left_out if each.count <= MOST_NAMED]
        yield from self._further([each for each in left_out if each not in few], width)
        for words in others:
            yield from self._sentence(words, width, _BAD)
        for words in (*map(self._figures, few), *notes(status, now=self._now)):
            yield from self._sentence(words, width)

    def _table(self, width: int) -> Generator[Text, None, Sequence[_Column]]:
        """Yield the lines of the table; return the columns that do not fit."""
        from pool.observability.status import state_of

        state = _Column("state", [state_of(row) for row in self._rows])
        warm = _Column("warm", [f"{row.warm}/{row.target}" for row in self._rows])
        left = width - 2 * len(_GAP) - warm.width - state.width
        names = [row.name if self._wide else cut(row.name, left) for row in self._rows]
        name = _Column("template", names)
        left -= name.width
        further, left_out = [], []
        for heading, figure in _FIGURES:
            column = _Column(heading, [figure(row) for row in self._rows])
            if self._wide or len(_GAP) + column.width <= left:
                if self._wide or column.count:
                    further.append(column)
                    left -= len(_GAP) + column.width
            elif column.count:
                left_out.append(column)
        for number in range(-1, len(self._rows)):
            yield _line(name, warm, state, further, number)
        return left_out

    def _further(self, left_out: Sequence[_Column], width: int) -> Iterator[Text]:
        """Yield tables of the columns that did not fit, of the templates that have any of them."""
        from rich.text import Text

        columns = list(left_out)
        while columns:
            longest = max(len(row.name) for row in self._rows)
            taken, columns = columns[:1], columns[1:]
            while (
                columns
                and longest + sum(len(_GAP) + each.width for each in (*taken, columns[0])) <= width
            ):
                taken.append(columns.pop(0))
            shown = [
                number
                for number in range(len(self._rows))
                if any(each.values[number] not in _NOTHING for each in taken)
            ]
            names = [self._rows[number].name for number in shown]
            for line in table(
                [
                    Column(heading="template", values=names, least=len("template")),
                    *(
                        Column(
                            heading=each.heading,
                            values=[each.values[number] for number in shown],
                            right=True,
                        )
                        for each in taken
                    ),
                ],
                width=width,
            ):
                yield Text(line, no_wrap=True, overflow="ignore")
            yield Text()

    def _figures(self, column: _Column) -> str:
        pairs = zip(self._rows, column.values, strict=True)
        named = [f"{row.name}{_UNBROKEN}{value}" for row, value in pairs if value not in _NOTHING]
        return f"{column.heading}: {', '.join(named)}"

    def _sentence(self, words: str, width: int, style: str = "") -> Iterator[Text]:
        """Yield the lines of a sentence, broken between words, not inside names or commands."""
        from rich.text import Text

        # CVAT's own words may stand in it, which a terminal must not follow.
        words = _UNBROKEN.join(map(printable, words.split(_UNBROKEN)))
        most = width - len(f"{_GAP}(),")
        for row in self._rows:
            if len(row.name) > most:
                words = words.replace(row.name, cut(row.name, most))
        words = re.sub(r"'[^']*'", lambda command: command[0].replace(" ", _UNBROKEN), words)
        for line in textwrap.wrap(
            words,
            width,
            subsequent_indent=_GAP,
            break_long_words=False,
            break_on_hyphens=False,
        ):
            line = line.replace(_UNBROKEN, " ")
            yield Text(line, style=style, no_wrap=True, overflow="ignore")


def _line(
    name: _Column, warm: _Column, state: _Column, further: Sequence[_Column], number: int
) -> Text:
    """Return a line of the table; -1 is the headings."""
    from rich.text import Text

    def cell(column: _Column) -> str:
        return column.heading if number < 0 else column.values[number]

    line = Text(no_wrap=True, overflow="ignore")
    line.append(cell(name).ljust(name.width) + _GAP + cell(warm).rjust(warm.width) + _GAP)
    line.append(cell(state), style="" if number < 0 else _COLOURS.get(cell(state), _ATTENTION))
    if further:
        line.append(" " * (state.width - len(cell(state))))
    for column in further:
        line.append(_GAP + cell(column).rjust(column.width))
    return line
