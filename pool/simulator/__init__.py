"""A CVAT server in one process, small enough to ship: for the demo and the tests.

Unmodified cvat-sdk and cvat-cli work with it. It holds tasks, jobs, projects, webhooks and
uploads for as long as it runs, answers as CVAT 2.73 was recorded to answer, and takes the time
that a real server takes, or none at all::

    from pool.simulator import SimulatorServer, SimulatorSettings, Timings

    with SimulatorServer(SimulatorSettings(timings=Timings.zero())) as server:
        server.url, server.access_token

Imports nothing of the rest of the package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .settings import (
    CloudStorageSettings,
    OrganizationSettings,
    SimulatorSettings,
    UserSettings,
)
from .timing import Timings

if TYPE_CHECKING:
    from .server import SimulatorServer
    from .simulator import Simulator

__all__ = [
    "CloudStorageSettings",
    "OrganizationSettings",
    "Simulator",
    "SimulatorServer",
    "SimulatorSettings",
    "Timings",
    "UserSettings",
]


def __getattr__(name: str) -> Any:
    # Starlette, uvicorn and Pillow are imported only by those who start a server.
    if name == "Simulator":
        from .simulator import Simulator

        return Simulator
    if name == "SimulatorServer":
        from .server import SimulatorServer

        return SimulatorServer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
