"""``cvat-pool simulator`` and ``demo``: a pool without a CVAT server."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pool.cli.options import JsonOption, SpeedOption
from pool.cli.output import json_line
from pool.errors import CannotListen, ConfigError

if TYPE_CHECKING:
    from pool.simulator import CloudStorageSettings
    from pool.simulator.faults import Fault


def demo(
    images: Annotated[int, typer.Option(min=1, max=500, help="Images in a request.")] = 1,
    labels: Annotated[int, typer.Option(min=1, max=1000, help="Labels of the template.")] = 2,
    speed: SpeedOption = 1.0,
    serve: Annotated[bool, typer.Option("--serve", help="Keep it running afterwards.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a pool on a simulated CVAT: needs no server, and leaves nothing behind."""
    from pool.demo import demo as show

    show(images=images, labels=labels, speed=speed, as_json=as_json, serve=serve)


def simulator(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")
    ] = 8766,
    speed: SpeedOption = 1.0,
    share: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="The folder of the server's share."),
    ] = None,
    cloud_storage: Annotated[
        list[str] | None,
        typer.Option(
            help="A cloud storage: a folder, or s3://BUCKET, with endpoint and key as the "
            "environment has them. May be repeated: 1, 2, …",
            show_default=False,
        ),
    ] = None,
    faults: Annotated[
        Path | None, typer.Option(help="A TOML file with faults to inject.", show_default=False)
    ] = None,
    cvat_version: Annotated[str, typer.Option(help="The version of CVAT to simulate.")] = "2.73.0",
    token: Annotated[
        str | None,
        typer.Option(
            help="The access token that it accepts, such as dev-token, so that a restart keeps it; "
            "by default a new one. It protects nothing.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a simulated CVAT server.

    Prints its address and credentials as shell commands.
    """
    from pool.simulator import SimulatorServer, SimulatorSettings, Timings
    from pool.simulator.server import stop_signal

    settings = SimulatorSettings(
        timings=Timings().scaled(speed),
        share=share,
        cloud_storages=tuple(map(_cloud_storage, cloud_storage or ())),
        faults=_faults(faults),
        version=_cvat_version(cvat_version),
        access_token=_token(token),
    )
    stop = stop_signal()
    server = SimulatorServer(settings, host=host, port=port)
    try:
        server.start()
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise CannotListen(f"{host}:{port}: {why} (see --host and --port)") from None
    try:
        # All who can reach the simulator may use it: the token is no secret.
        if as_json:
            print(json_line({"url": server.url, "access_token": server.access_token}), flush=True)
        else:
            print(f"export CVAT_URL={server.url}")
            print(f"export CVAT_ACCESS_TOKEN={server.access_token}", flush=True)
        stop.wait()
    finally:
        server.stop()


def _cloud_storage(address: str) -> CloudStorageSettings:
    from pool.simulator import CloudStorageSettings
    from pool.simulator.buckets import bucket_at

    try:
        return CloudStorageSettings(display_name=address, bucket=bucket_at(address, os.environ))
    except ValueError as error:
        raise ConfigError(f"--cloud-storage: {error}") from None


def _faults(path: Path | None) -> tuple[Fault, ...]:
    from pool.simulator.fault_reading import load_faults
    from pool.simulator.faults import InvalidFault

    try:
        return load_faults(path) if path is not None else ()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    except InvalidFault as error:
        raise ConfigError(str(error)) from None


def _token(text: str | None) -> str | None:
    """Return a token, if a header can carry it."""
    if text is not None and not re.fullmatch(r"[!-~]+", text):
        raise ConfigError(f"--token {text!r}: give ASCII letters, digits and signs, without spaces")
    return text


def _cvat_version(text: str) -> str:
    from pool.simulator.versions import read_version

    try:
        read_version(text)
    except ValueError as error:
        raise ConfigError(f"--cvat-version: {error}") from None
    return text
