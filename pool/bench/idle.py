"""What a daemon costs that has nothing to do: processor, memory, and calls to the server."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pool.bench.measure import LOGGING, logged_calls
from pool.bench.pooled import open_supply
from pool.errors import InputError

TEMPLATE = "bench-idle"
TASKS = 100
#: Seconds from the last create until the daemon counts as idle.
CALM = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class IdleCost:
    """Of one daemon process, over ``seconds``: its share of one core in percent, its resident
    memory in megabytes (10^6 bytes), and its calls to the server."""

    tasks: int
    seconds: float
    cpu_percent: float
    rss_mb: float
    calls_per_minute: float
    calls: Mapping[str, int]


def check_idle_possible() -> None:
    """Check before anything is started.

    :raises InputError: this system does not show what a process costs.
    """
    if not Path("/proc/self/stat").is_file():
        raise InputError("--idle reads /proc, which only Linux has")


def measure_idle(config: Path, environment: Mapping[str, str], seconds: float) -> IdleCost:
    """Fill a pool of :data:`TASKS` tasks of :data:`TEMPLATE` and watch its daemon do nothing.

    The daemon logs its calls, which is how they are counted on any server.

    :raises PoolError: the pool could not be filled.
    """
    with open_supply(config, environment, log_options=LOGGING) as supply:
        supply.wait_for(lambda: supply.level(TEMPLATE).warm >= TASKS, f"{TASKS} warm tasks")
        # A caller that is idle as well is not what is measured.
        supply.pool.close()
        process, log = supply.daemon.pid, supply.daemon.log
        time.sleep(CALM)
        calls_before, cpu_before = logged_calls(log), _cpu_seconds(process)
        began = time.monotonic()
        time.sleep(seconds)
        took = time.monotonic() - began
        calls = {
            operation: len(seconds_each) - len(calls_before.get(operation, ()))
            for operation, seconds_each in logged_calls(log).items()
        }
        return IdleCost(
            tasks=TASKS,
            seconds=took,
            cpu_percent=100 * (_cpu_seconds(process) - cpu_before) / took,
            rss_mb=_resident_bytes(process) / 1e6,
            calls_per_minute=sum(calls.values()) * 60 / took,
            calls={operation: count for operation, count in calls.items() if count},
        )


def _cpu_seconds(process: int) -> float:
    """User and system time of a process (proc(5), fields 14 and 15 of ``stat``)."""
    # The name in parentheses may contain anything.
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident_bytes(process: int) -> int:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
