"""``cvat-pool``: the pool from the command line.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 timed out (still running), 4 CVAT
refused the credentials, 5 pool empty.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pool.bench.command import bench
from pool.cli.options import ConfigOption, JsonOption, SpeedOption, print_json, settings_of
from pool.cli.reconcile import reconcile
from pool.cli.request import get, lease, release
from pool.cli.status import status
from pool.cli.template import drain, pause, prewarm, resume
from pool.cli.tune import tune
from pool.cli.webhook import webhook
from pool.errors import EXIT_FAILED, CannotListen, ConfigError, PoolError
from pool.version import VERSION

if TYPE_CHECKING:
    from pool.check import CheckResult
    from pool.simulator.faults import Fault

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
    """Run the console script: print one line for an error, and exit with its code."""
    try:
        sys.exit(app(prog_name="cvat-pool", standalone_mode=False))
    except UsageError as error:
        # A command without arguments has printed its help already, and has no message.
        if words := " ".join(error.format_message().split()).rstrip(".?"):
            what = words[0].lower() + words[1:]
            hint = f"; try '{error.ctx.command_path} --help'" if error.ctx else ""
            print(f"cvat-pool: {what}{hint}", file=sys.stderr)
        sys.exit(error.exit_code)
    except PoolError as error:
        print(f"cvat-pool: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader has closed the pipe: no message can reach it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILED)


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

    # A command ends with one line that says what went wrong; a daemon tells what it does.
    level = log_level or ("info" if context.invoked_subcommand == "run" else "error")
    if level not in ("debug", "info", "warning", "error"):
        raise ConfigError(f"--log-level {level!r}: give debug, info, warning or error")
    configure(level=level, as_json=log_json)


# --- Commands ------------------------------------------------------------------------------------

for command in (get, lease, release, status, pause, resume, drain, prewarm):
    app.command()(command)


@app.command()
def check(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Check all that run needs: configuration, store, port, server, credentials and each template.

    Creates and deletes one task a template.
    """
    from pool.check import mistakes, run_checks
    from pool.cli.rendering import print_check
    from pool.clock import SystemClock
    from pool.config.loader import InvalidConfig
    from pool.cvat import connect
    from pool.store import open_store

    def checks() -> Iterator[CheckResult]:
        try:
            settings = settings_of(config)
        except InvalidConfig as error:
            yield from mistakes(error)
        else:
            yield from run_checks(
                settings,
                lambda: open_store(settings.store.url),
                lambda: connect(settings.cvat),
                environ=os.environ,
                clock=SystemClock(),
            )

    results = []
    for result in checks():
        results.append(result)
        if not as_json:
            print_check(result)
    if as_json:
        print_json(
            [
                {
                    "name": result.name,
                    "ok": result.ok,
                    "detail": result.words,
                    "warnings": result.warnings,
                }
                for result in results
            ]
        )
    failed = [result.error for result in results if result.error is not None]
    if failed:
        raise typer.Exit(failed[0].exit_code)


@app.command()
def run(config: ConfigOption = None) -> None:
    """Keep the pools filled, until stopped by SIGTERM or Ctrl-C."""

    from pool.daemon import Daemon, leave

    daemon = Daemon(settings_of(config), api_token=os.environ.get("POOL_API_TOKEN"))
    daemon.install_signals()
    daemon.run()
    leave()


@app.command()
def demo(
    images: Annotated[int, typer.Option(min=1, max=500, help="Images in a request.")] = 1,
    labels: Annotated[int, typer.Option(min=1, max=1000, help="Labels of the template.")] = 2,
    speed: SpeedOption = 1.0,
    serve: Annotated[bool, typer.Option("--serve", help="Leave it running afterwards.")] = False,
    as_json: JsonOption = False,
) -> None:
    """See a pool at work, on a simulated CVAT: needs no server and leaves nothing behind."""
    from pool.demo import Demo

    Demo(images=images, labels=labels, speed=speed, as_json=as_json, serve=serve).run()


def _faults(path: Path | None) -> tuple[Fault, ...]:
    from pool.simulator.fault_reading import load_faults
    from pool.simulator.faults import InvalidFault

    try:
        return load_faults(path) if path is not None else ()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    except InvalidFault as error:
        raise ConfigError(str(error)) from None


def _cvat_version(text: str) -> str:
    from pool.simulator.versions import read_version

    try:
        read_version(text)
    except ValueError as error:
        raise ConfigError(f"--cvat-version: {error}") from None
    return text


@app.command()
def simulator(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8080,
    speed: SpeedOption = 1.0,
    share: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="A folder to offer as the share."),
    ] = None,
    faults: Annotated[
        Path | None, typer.Option(help="A TOML file of what is to go wrong.", show_default=False)
    ] = None,
    cvat_version: Annotated[
        str, typer.Option(help="The version of CVAT to behave like.")
    ] = "2.73.0",
) -> None:
    """Run a simulated CVAT server, to try things out.

    Prints how to reach it, as shell commands.
    """
    from pool.simulator import SimulatorServer, SimulatorSettings, Timings
    from pool.simulator.server import stop_signal

    settings = SimulatorSettings(
        timings=Timings().scaled(speed),
        share=share,
        faults=_faults(faults),
        version=_cvat_version(cvat_version),
    )
    stop = stop_signal()
    server = SimulatorServer(settings, host=host, port=port)
    try:
        server.start()
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise CannotListen(f"{host}:{port}: {why} (see --host and --port)") from None
    try:
        # Made up for this run alone and worth nothing elsewhere, so it may be shown.
        print(f"export CVAT_URL={server.url}")
        print(f"export CVAT_ACCESS_TOKEN={server.access_token}", flush=True)
        stop.wait()
    finally:
        server.stop()


app.command()(bench)
app.command()(reconcile)
app.command()(tune)
app.add_typer(webhook)


if __name__ == "__main__":
    main()
