"""``cvat-pool bench``: its options, and what is printed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pool.cli.options import JsonOption, SpeedOption
from pool.errors import InputError


def bench(
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="Measure its server instead of a simulated one."),
    ] = None,
    simulator: Annotated[
        bool, typer.Option("--simulator", help="Start a simulated server, even with --config.")
    ] = False,
    speed: SpeedOption = 1.0,
    template: Annotated[
        str | None, typer.Option(help="A template of the configuration; by default its first.")
    ] = None,
    requests: Annotated[int, typer.Option(min=1, help="Requests of each flow.")] = 20,
    flows: Annotated[str | None, typer.Option(help="These flows only, such as sdk,pool.")] = None,
    images: Annotated[int, typer.Option(min=1, max=500, help="Images in a request.")] = 1,
    labels: Annotated[
        int | None,
        typer.Option(min=0, max=1000, help="Number of labels, instead of the template's."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of images, pauses and the simulated server.")] = 0,
    idle: Annotated[
        str | None, typer.Option(help='Watch an idle daemon instead, for a time such as "60s".')
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw a picture: .png, .svg or .pdf.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare the pool with plain ways to job ids, and delete all that was made."""
    from rich.console import Console
    from rich.progress import Progress

    from pool.bench.bench import Bench, parse_flows
    from pool.bench.report import check_plot_possible, draw, show
    from pool.cli.output import print_json
    from pool.config.loader import load
    from pool.config.units import parse_duration

    if plot is not None:
        if idle is not None:
            raise InputError("--plot shows flows, and --idle measures none")
        check_plot_possible(plot)
    if config is None and template is not None:
        raise InputError("--template is one of a configuration: give --config as well")
    settings = None if config is None else load(config)
    try:
        seconds = None if idle is None else parse_duration(idle)
    except ValueError as error:
        raise InputError(f"--idle: {error}") from error
    run = Bench(
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
    errors = Console(stderr=True, quiet=not sys.stderr.isatty())
    with Progress(console=errors, transient=True) as progress:
        figures = run.run(progress)
    if plot is not None:
        draw(figures, plot)
    if as_json:
        print_json(figures)
    else:
        show(figures, Console())
