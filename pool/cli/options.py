"""The options that commands share, and how they are read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, overload

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
# No ``envvar``: --config on the command line goes before $POOL_SERVER.
ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="URL",
        help="The address of a daemon, such as http://host:8765; by default $POOL_SERVER. The "
        "token is read from $POOL_API_TOKEN.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
TemplateArgument = Annotated[str, typer.Argument(help="The name of a template.")]
TimeoutOption = Annotated[
    str | None,
    typer.Option("--timeout", help='How long to wait in all, such as "30s".', show_default=False),
]
SpeedOption = Annotated[
    float,
    typer.Option(min=0.0, max=1000.0, help="Time scale: 1 is as slow as CVAT, 0.5 twice as fast."),
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


def open_pool(
    config: Path | None, server: str | None, *, patience: float | None = None
) -> TaskPool | RemotePool:
    """Open the pool of the daemon at ``server``, or else the pool of the configured store.
    ``patience`` is for how many seconds a daemon is tried again; None: as usual.

    :raises InputError: the command line names both.
    :raises ConfigError: the configuration or the address is wrong.
    """
    if server is not None and config is not None:
        raise InputError("give either --server or --config: a daemon has its own configuration")
    if config is None:
        server = server or os.environ.get("POOL_SERVER")
    if server:
        from pool.client import RemotePool

        return RemotePool(server) if patience is None else RemotePool(server, patience=patience)
    from pool.taskpool import TaskPool

    return TaskPool.from_config(_path_of(config))


def time_left(timeout: str | None) -> Callable[[], float | None]:
    """Return a function that says how many seconds of ``--timeout`` are left; None: no limit.

    :raises InputError: it is not a duration.
    """
    from pool.clock import SystemClock

    clock, patience = SystemClock(), seconds_of("--timeout", timeout)
    began = clock.monotonic()

    def left() -> float | None:
        return None if patience is None else max(0.0, patience - (clock.monotonic() - began))

    return left


@overload
def seconds_of(option: str, text: str) -> float: ...
@overload
def seconds_of(option: str, text: str | None) -> float | None: ...
def seconds_of(option: str, text: str | None) -> float | None:
    """Return the seconds of a duration that an option of the command line gives.

    :raises InputError: it is not a duration; the message names the option.
    """
    from pool.config.units import parse_duration

    if text is None:
        return None
    try:
        return parse_duration(text)
    except ValueError as error:
        raise InputError(f"{option} {text!r}: {error}") from error
