"""``cvat-pool``: the pool from the command line.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 timed out (still running), 4 CVAT
refused the credentials, 5 pool empty.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Sequence
from itertools import islice
from typing import Annotated, Any, Final, NoReturn

import typer

from pool.bench.command import bench
from pool.cli.docs import docs
from pool.cli.get import get
from pool.cli.init import init
from pool.cli.lease import lease, release
from pool.cli.lists import leases, requests
from pool.cli.output import failure, hint, json_line
from pool.cli.reconcile import reconcile
from pool.cli.request import cancel, erase, wait
from pool.cli.run import check, run
from pool.cli.simulator import demo, simulator
from pool.cli.status import status
from pool.cli.store import store
from pool.cli.streams import streams
from pool.cli.template import drain, pause, prewarm, resume, tune
from pool.cli.webhook import webhook
from pool.errors import EXIT_FAILED, ConfigError, InputError, PoolError
from pool.version import VERSION

app = typer.Typer(
    name="cvat-pool",
    help="A warm pool of pre-created CVAT tasks: job ids as soon as the server has them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

#: What wrong options and arguments raise; Typer exports subclasses of it only.
UsageError: Any = typer.BadParameter.__base__


def main() -> None:
    """Run the console script: print one line for an error, and exit with its code.

    With --json the error is a document on standard output as well.
    """
    arguments = with_general_options_first(sys.argv[1:])
    try:
        sys.exit(app(arguments, prog_name="cvat-pool", standalone_mode=False))
    except UsageError as error:
        # A command without arguments has printed its help already, and has no message.
        if words := " ".join(error.format_message().split()).rstrip(".?"):
            what = words[0].lower() + words[1:]
            advice = f"; try '{error.ctx.command_path} --help'" if error.ctx else ""
            fail(InputError(what), arguments, f"{what}{advice}")
        sys.exit(error.exit_code)
    except PoolError as error:
        fail(error, arguments, str(error))
    except typer.Abort:
        # A question was answered by Ctrl-C, or by the end of the input.
        print("\ncvat-pool: given up", file=sys.stderr)
        sys.exit(EXIT_FAILED)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader has closed the pipe: no message can reach it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILED)


def fail(error: PoolError, arguments: Sequence[str], words: str) -> NoReturn:
    """Print an error and exit with its code."""
    if "--json" in arguments:
        # A line: it may be the last one of several.
        print(json_line({"error": failure(error)}))
    hint(f"cvat-pool: {words}")
    sys.exit(error.exit_code)


def with_general_options_first(arguments: Sequence[str]) -> list[str]:
    """Return arguments with the options that all commands have before the command, where Typer
    looks for them, wherever they were given."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    first, rest, given = [], [], iter(arguments[:end])
    for argument in given:
        if argument == "--log-json" or argument.startswith("--log-level="):
            first.append(argument)
        elif argument == "--log-level":
            first += [argument, *islice(given, 1)]
        else:
            rest.append(argument)
    return [*first, *rest, *arguments[end:]]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"cvat-task-pool {VERSION}")
        raise typer.Exit


@app.callback()
def _common(
    context: typer.Context,
    log_level: Annotated[
        str | None,
        typer.Option(
            help='debug, info, warning or error; "info" for run, else "error".',
            envvar="POOL_LOG_LEVEL",
            show_default=False,
        ),
    ] = None,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log as JSON.")] = False,
    _show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    from pool.logs import configure

    # A command ends with one line that says what went wrong; a daemon logs what it does.
    level = log_level or ("info" if context.invoked_subcommand == "run" else "error")
    if level not in ("debug", "info", "warning", "error"):
        raise ConfigError(f"--log-level {level!r}: give debug, info, warning or error")
    configure(level=level, as_json=log_json)


#: The commands by what they are for, in the order of the help.
PANELS: Final = {
    "Begin": (demo, init, check, run, docs),
    "Requests": (get, wait, requests, cancel, erase, streams),
    "Empty tasks": (lease, leases, release),
    "The pool": (status, pause, resume, drain, prewarm, tune, reconcile),
    "Trying and measuring": (simulator, bench),
}


def prose(docstring: str | None) -> str:
    """Return a docstring with a line for each paragraph, which Typer breaks at the terminal's
    width; it would keep the breaks of the source."""
    paragraphs = inspect.cleandoc(docstring or "").split("\n\n")
    return "\n\n".join(paragraph.replace("\n", " ") for paragraph in paragraphs)


for panel, commands in PANELS.items():
    for command in commands:
        app.command(rich_help_panel=panel, help=prose(command.__doc__))(command)
app.add_typer(webhook, rich_help_panel="The pool")
app.add_typer(store, rich_help_panel="The pool")
