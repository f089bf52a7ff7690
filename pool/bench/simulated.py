"""A simulator in a process of its own, which prints how to reach it: a name and a value a line.

Made up for one run and worth nothing elsewhere: its password may be shown to the parent process.
"""

from __future__ import annotations

import argparse
import signal

from pool.simulator import SimulatorServer, SimulatorSettings, Timings


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--speed", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    settings = SimulatorSettings(timings=Timings().scaled(given.speed), seed=given.seed)
    # Blocked in all threads, so that the signal waits for this one to take it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    with SimulatorServer(settings) as server:
        owner = server.simulator.owner
        print(f"CVAT_URL={server.url}")
        print(f"CVAT_ACCESS_TOKEN={server.access_token}")
        print(f"CVAT_USERNAME={owner.username}")
        print(f"CVAT_PASSWORD={owner.password}", flush=True)
        signal.sigwait({signal.SIGTERM})


if __name__ == "__main__":
    main()
