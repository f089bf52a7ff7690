"""``cvat-pool store``: move the rows of a pool to another store, and check them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from pool.cli.options import ConfigOption, JsonOption, settings_of
from pool.cli.output import counted, hint, print_json
from pool.errors import EXIT_FAILED, InputError, StoreError

if TYPE_CHECKING:
    from pool.store.connections import Connections
    from pool.store.copying import CopyProgress, CopyReport

#: Rows from which a copy gets a progress bar.
BAR_FROM: Final = 10_000

store = typer.Typer(
    name="store",
    help="Move the rows of the pool to another store, and check them.",
    no_args_is_help=True,
)

_HELP: Final = "sqlite:///FILE, postgresql://HOST/DATABASE, or a configuration whose store it is."


@store.command()
def copy(
    source: Annotated[str, typer.Argument(metavar="FROM", help=_HELP, show_default=False)],
    target: Annotated[str, typer.Argument(metavar="TO", help=_HELP, show_default=False)],
    abort: Annotated[
        bool, typer.Option("--abort", help="Give a copy up that has begun, and use FROM again.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Copy all rows to a store that is empty, and leave the old one for good.

    All processes of the pool have to be stopped. After a failure run it again: it goes on where it
    was. Passwords are taken from PGPASSWORD, a password file, a service file, or the configuration.
    """
    from pool.clock import SystemClock
    from pool.store.copying import StoreCopy

    with _opened(source) as ours, _opened(target) as theirs:
        move = StoreCopy(ours, theirs, now=SystemClock().now())
        if abort:
            move.give_up()
            if as_json:
                print_json({"from": ours.place, "to": theirs.place, "given_up": True})
            else:
                print(f"{ours.place} is used again; delete what was copied to {theirs.place}.")
            return
        with _progress() as progress:
            report = move.run(progress)
        if as_json:
            print_json({"from": ours.place, "to": theirs.place, **_document(report)})
        else:
            _print(ours.place, theirs.place, report)


def _document(report: CopyReport | None) -> dict[str, Any]:
    if report is None:
        return {"copied_before": True}
    return {
        "copied_before": False,
        "resumed": report.resumed,
        "rows": report.rows,
        "sha256": report.digest,
    }


def _print(source: str, target: str, report: CopyReport | None) -> None:
    if report is None:
        print(f"{source} was copied to {target} before; nothing was done.")
        return
    _print_rows(report.rows)
    print(f"All {sum(report.rows.values())} rows are the same in both (SHA-256 {report.digest}).")
    hint(f'Now set store.url = "{target}"; {source} is not used any more.')
    spool = f"{source.removeprefix('sqlite:///')}.spool"
    if source.startswith("sqlite:") and Path(spool).is_dir():
        hint(
            f'Data that waits is in the spool still: set store.spool = "{spool}", or move that '
            "folder as a whole, with the file spool.id in it."
        )


def _print_rows(rows: Mapping[str, int]) -> None:
    """Print how many rows there are of each table that has any."""
    for table, count in rows.items():
        if count:
            print(f"{table:<16}{count:>10}")


@store.command()
def check(
    place: Annotated[
        str | None,
        typer.Argument(metavar="[STORE]", help=f"{_HELP} By default --config's."),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check that the rows are whole and agree with each other; exit with 1 if they do not."""
    from pool.store import connections_of
    from pool.store.checking import check_store

    opened = (
        closing(connections_of(settings_of(config).store.url)) if place is None else _opened(place)
    )
    with opened as connections:
        if not connections.exists():
            raise StoreError(f"there is no store at {connections.place}")
        connections.make_ready()
        report = check_store(connections)
    if as_json:
        print_json(report)
    else:
        _print_rows(report.rows)
        for problem in report.problems:
            print(f"wrong: {problem}")
        total = counted(sum(report.rows.values()), "row")
        print(f"{report.place}: {total}, {counted(len(report.problems), 'problem')}")
    if report.problems:
        raise typer.Exit(EXIT_FAILED)


@contextmanager
def _opened(text: str) -> Iterator[Connections]:
    """The connections to the store that an argument names."""
    from pool.store import connections_of

    with closing(connections_of(_url_of(text))) as connections:
        yield connections


def _url_of(text: str) -> str:
    """Return the address of a store, or the one that a configuration has.

    :raises InputError: it holds a password, which everybody on the machine can see.
    """
    from pool.config.urls import has_password

    if text.endswith(".toml"):
        return settings_of(Path(text)).store.url
    if has_password(text):
        raise InputError(
            "others can read a password in the arguments of a process; give it by PGPASSWORD, a "
            "password file or a service file, or name a configuration in place of the address"
        )
    return text


@contextmanager
def _progress() -> Iterator[CopyProgress]:
    """Show a progress bar for a long copy, if standard error is a terminal."""
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        rows = bar.add_task("copying", visible=False)

        def show(done: int, total: int) -> None:
            what = "copying" if 2 * done <= total else "comparing"
            bar.update(
                rows, completed=done, total=total, description=what, visible=total >= BAR_FROM
            )

        yield show
