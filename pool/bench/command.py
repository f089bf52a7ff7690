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
    bulk: Annotated[
        bool, typer.Option("--bulk", help="Many requests at once over HTTP, grouped and not.")
    ] = False,
    slots: Annotated[
        bool, typer.Option("--slots", help="Requests into slots, beside ordinary ones.")
    ] = False,
    seconds: Annotated[
        float, typer.Option(min=1, max=86400, help="How long frames come, with --slots.")
    ] = 60.0,
    flows: Annotated[
        str | None,
        typer.Option(
            help="These flows only, such as sdk,pool; with --bulk such as bursts,idle, with "
            "--slots such as ids,rate."
        ),
    ] = None,
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
    """Measure how long your server takes to job ids, today and with the pool.

    All that is made on the server is deleted afterwards.
    """
    from rich.console import Console
    from rich.progress import Progress

    from pool.bench import bulk_report, report, slots_report
    from pool.bench import slots as slot_bench
    from pool.bench.bench import FLOWS, Bench, parse_flows
    from pool.bench.bulk import SCENARIOS, SIMULATED
    from pool.cli.output import print_json
    from pool.config.loader import load
    from pool.config.units import parse_duration

    if plot is not None:
        if idle is not None:
            raise InputError("--plot shows flows, and --idle measures none")
        report.check_plot_possible(plot)
    if config is None and template is not None:
        raise InputError("--template is one of a configuration: give --config as well")
    if bulk and (idle is not None or images > 1):
        raise InputError("--bulk has requests of one image, and its own measure of an idle server")
    if slots and (bulk or idle is not None or images > 1 or plot is not None):
        raise InputError(
            "--slots has requests of one image, and goes with none of --bulk, --idle and --plot"
        )
    settings = None if config is None else load(config)
    simulator = simulator or settings is None
    known = [name for name in SCENARIOS if simulator or name not in SIMULATED] if bulk else FLOWS
    chosen = parse_flows(flows, slot_bench.SCENARIOS if slots else known)
    try:
        watched = None if idle is None else parse_duration(idle)
    except ValueError as error:
        raise InputError(f"--idle: {error}") from error
    run = Bench(
        settings=settings,
        simulator=simulator,
        template=template,
        requests=requests,
        flows=() if bulk or slots else chosen,
        bulk=chosen if bulk else (),
        slots=chosen if slots else (),
        seconds=seconds,
        images=images,
        labels=labels,
        speed=speed,
        seed=seed,
        idle=watched,
    )
    errors = Console(stderr=True, quiet=not sys.stderr.isatty())
    with Progress(console=errors, transient=True) as progress:
        figures = run.run(progress)
    if plot is not None:
        if bulk:
            bulk_report.draw(figures["bulk"], plot)
        else:
            report.draw(figures, plot)
    if as_json:
        print_json(figures)
    elif bulk:
        bulk_report.show(figures, Console())
    elif slots:
        slots_report.show(figures, Console())
    else:
        report.show(figures, Console())
