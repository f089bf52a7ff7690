"""A simulator in a process of its own, which prints how to reach it: a name and a value a line.

Made up for one run and worth nothing elsewhere: its password may be shown to the parent process.
"""

from __future__ import annotations

import argparse

from pool.simulator import SimulatorServer, SimulatorSettings, Timings
from pool.simulator.server import stop_signal


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--speed", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    settings = SimulatorSettings(timings=Timings().scaled(given.speed), seed=given.seed)
    stop = stop_signal()
    with SimulatorServer(settings) as server:
        print(f"CVAT_URL={server.url}")
        print(f"CVAT_ACCESS_TOKEN={server.access_token}")
        print(f"CVAT_USERNAME={server.username}")
        print(f"CVAT_PASSWORD={server.password}", flush=True)
        stop.wait()


if __name__ == "__main__":
    main()
