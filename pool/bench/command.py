"""``cvat-pool bench``: its options, and what is printed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pool.cli.options import SpeedOption
from pool.errors import InputError

if TYPE_CHECKING:
    from pool.bench.bench import BenchOptions


def bench(
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="Measure its server; else a simulated one is started."),
    ] = None,
    simulator: Annotated[
        bool, typer.Option("--simulator", help="A simulated server, even with --config.")
    ] = False,
    speed: SpeedOption = 1.0,
    template: Annotated[
        str | None, typer.Option(help="Of the configuration; by default its first.")
    ] = None,
    requests: Annotated[int, typer.Option(min=1, help="Requests of each flow.")] = 20,
    flows: Annotated[str | None, typer.Option(help="Some flows only, such as sdk,pool.")] = None,
    images: Annotated[int, typer.Option(min=1, max=500, help="Images in a request.")] = 1,
    labels: Annotated[
        int | None, typer.Option(min=0, max=1000, help="Labels, instead of the template's.")
    ] = None,
    seed: Annotated[int, typer.Option(help="For images, chance, and the simulated server.")] = 0,
    idle: Annotated[
        str | None, typer.Option(help='Watch an idle daemon instead, for "60s" or the like.')
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw a picture: .png, .svg or .pdf.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure the pool beside the plain ways to job ids; deletes all that it makes."""
    from pool.bench.bench import BenchOptions, parse_flows
    from pool.config.units import parse_duration

    if plot is not None:
        from pool.bench.report import check_plot_possible

        if idle is not None:
            raise InputError("--plot shows flows, and --idle measures none")
        check_plot_possible(plot)
    settings = None
    if config is not None:
        from pool.config.loader import load

        settings = load(config)
    elif template is not None:
        raise InputError("--template is one of a configuration: give --config as well")
    try:
        seconds = None if idle is None else parse_duration(idle)
    except ValueError as error:
        raise InputError(f"--idle: {error}") from error
    options = BenchOptions(
        settings=settings,
        simulator=simulator or settings is None,
        template=template,
        requests=requests,
        flows=parse_flows(flows),
        images=images,
        labels=labels,
        speed=speed,
        seed=seed,
        idle=seconds,
    )
    _measure(options, as_json=as_json, plot=plot)


def _measure(options: BenchOptions, *, as_json: bool, plot: Path | None) -> None:
    from rich.console import Console

    from pool.bench.bench import Bench
    from pool.bench.report import show
    from pool.cli.output import to_json

    errors = Console(stderr=True)
    watched = sys.stderr.isatty()

    def say(what: str) -> None:
        if watched:
            errors.print(what, highlight=False, soft_wrap=True)

    report = Bench(options, os.environ).run(say=say, progress=_bar if watched else _no_bar)
    if plot is not None:
        from pool.bench.report import draw

        draw(report, plot)
    if as_json:
        print(to_json(report.figures()))
    else:
        show(report, Console())


@contextmanager
def _bar(steps: int) -> Iterator[Callable[[str], None]]:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        row = bar.add_task("measuring".ljust(16), total=steps)
        yield lambda name: bar.update(row, advance=1, description=name.ljust(16))


@contextmanager
def _no_bar(_steps: int) -> Iterator[Callable[[str], None]]:
    yield lambda _name: None
