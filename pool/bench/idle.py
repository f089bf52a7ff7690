"""What a daemon costs that has nothing to do: processor, memory, and calls to the server."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pool.bench.measure import logged_calls
from pool.bench.pooled import open_supply
from pool.errors import InputError

TEMPLATE = "bench-idle"
TASKS = 100
#: Seconds from the last create until the daemon counts as idle.
CALM = 2.0


def check_idle_possible() -> None:
    """Check before anything is started.

    :raises InputError: this system does not show what a process costs.
    """
    if not Path("/proc/self/stat").is_file():
        raise InputError("--idle reads /proc, which only Linux has")


def measure_idle(config: Path, environment: Mapping[str, str], seconds: float) -> dict[str, Any]:
    """Fill a pool of :data:`TASKS` tasks of :data:`TEMPLATE` and watch its daemon do nothing.

    Return its share of one core in percent, its resident memory in megabytes (10^6 bytes), and
    its calls to the server, which it logs: so they are counted on any server.

    :raises PoolError: the pool could not be filled.
    """
    with open_supply(config, environment) as supply:
        supply.wait_until_warm(TEMPLATE, TASKS)
        # A caller that is idle as well is not what is measured.
        supply.pool.close()
        process, log = supply.daemon.pid, supply.daemon.log
        time.sleep(CALM)
        calls_before, cpu_before = logged_calls(log), _cpu_seconds(process)
        began = time.monotonic()
        time.sleep(seconds)
        took = time.monotonic() - began
        calls = {
            operation: len(each) - len(calls_before.get(operation, ()))
            for operation, each in logged_calls(log).items()
        }
        return {
            "tasks": TASKS,
            "seconds": round(took, 1),
            "cpu_percent": round(100 * (_cpu_seconds(process) - cpu_before) / took, 2),
            "rss_mb": round(_resident_bytes(process) / 1e6, 1),
            "calls_per_minute": round(sum(calls.values()) * 60 / took, 1),
            "calls": {operation: count for operation, count in calls.items() if count},
        }


def _cpu_seconds(process: int) -> float:
    """User and system time of a process (proc(5), fields 14 and 15 of ``stat``)."""
    # The name in parentheses may contain anything.
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident_bytes(process: int) -> int:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
