"""The options that commands share, and what they open: settings, a pool, a duration."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pool.errors import InputError

if TYPE_CHECKING:
    from pool.client import RemotePool
    from pool.config.settings import Settings
    from pool.taskpool import TaskPool

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        help="The configuration; by default $POOL_CONFIG, else ./config.toml.",
        show_default=False,
    ),
]
# Not read by typer: a configuration that is named on the command line goes before the environment.
ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="URL",
        help="A daemon elsewhere, such as http://host:8765; by default $POOL_SERVER, if it is set. "
        "Its token is taken from $POOL_API_TOKEN.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
TemplateArgument = Annotated[str, typer.Argument(help="A template of the configuration.")]
TimeoutOption = Annotated[
    str | None,
    typer.Option("--timeout", help='How long to wait in all, such as "30s".', show_default=False),
]
SpeedOption = Annotated[
    float,
    typer.Option(
        min=0.0, max=1000.0, help="1 takes as long as CVAT does, 0.5 half as long, 0 no time."
    ),
]
KeyOption = Annotated[
    str | None,
    typer.Option("--key", help="Idempotency key: the same key gives the same answer."),
]


def settings_of(config: Path | None) -> Settings:
    """Load the configuration.

    :raises ConfigError: there is none, or it is wrong.
    """
    from pool.config.loader import load

    return load(_path_of(config))


def _path_of(config: Path | None) -> Path:
    from pool.config.loader import find_config

    return config if config is not None else find_config(os.environ)


def open_pool(config: Path | None, server: str | None) -> TaskPool | RemotePool:
    """Open the pool of a daemon elsewhere, or the one of the store here.

    :raises InputError: the command line names both.
    :raises ConfigError: the configuration or the address is wrong.
    """
    if server is not None and config is not None:
        raise InputError("--server asks a daemon elsewhere, which has its own --config: give one")
    if config is None:
        server = server or os.environ.get("POOL_SERVER")
    if server:
        from pool.client import RemotePool

        return RemotePool(server)
    from pool.taskpool import TaskPool

    return TaskPool.from_config(_path_of(config))


def seconds_of(text: str | None) -> float | None:
    """Return the seconds of a duration on the command line.

    :raises InputError: it is no duration.
    """
    from pool.config.units import parse_duration

    if text is None:
        return None
    try:
        return parse_duration(text)
    except ValueError as error:
        raise InputError(str(error)) from error
