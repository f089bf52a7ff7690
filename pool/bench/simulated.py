"""A simulator in a process of its own, which prints how to reach it: a name and a value a line.

Made up for one run and worth nothing elsewhere: its password may be shown to the parent process.
"""

from __future__ import annotations

import argparse

from pool.simulator import Simulator, SimulatorSettings, Timings, serve


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--speed", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    settings = SimulatorSettings(timings=Timings().scaled(given.speed), seed=given.seed)
    serve(settings, port=0, on_ready=_announce)


def _announce(simulator: Simulator, url: str) -> None:
    print(f"CVAT_URL={url}")
    print(f"CVAT_ACCESS_TOKEN={simulator.access_token}")
    print(f"CVAT_USERNAME={simulator.owner.username}")
    print(f"CVAT_PASSWORD={simulator.owner.password}", flush=True)


if __name__ == "__main__":
    main()
