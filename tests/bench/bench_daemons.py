"""What a second daemon on one PostgreSQL adds: hand-outs by one daemon and by two, and by as many
processes directly on the store; and what they wait for.

    python tests/bench/bench_daemons.py [--seconds 5] [--pairs 6] [--callers 8]

One and two take turns within one run, by the same callers, since a disk and a machine are not
equally quick all day: what counts is the ratio of each pair. All of it runs on this machine, so
that two daemons have no more cores than one. Then once more without ``fsync``, to see what the disk
has to do with it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import psycopg
from support.postgres import PostgresServer

from bench.bench_http import hand_outs, p99
from bench.bench_store import compete
from bench.http_server import NAME, Server, put_warm, server
from pool.config.settings import Settings
from pool.model import Levels, TaskState
from pool.simulator import SimulatorServer, SimulatorSettings
from pool.store import open_store

SAFE = {"fsync": "on", "full_page_writes": "on", "autovacuum": "on"}
#: More hand-outs a second than there can be, and seconds between two looks at the database.
MOST = 500
LOOK = 0.01
TICKS = os.sysconf("SC_CLK_TCK")

#: What connections do that have a transaction; which of them writes, and how many wait for that.
ACTIVITY = """
    SELECT CASE WHEN state LIKE 'idle in%' THEN 'the process'
                WHEN wait_event IS NULL THEN 'PostgreSQL''s processor'
                WHEN wait_event_type = 'Lock' THEN 'the lock'
                ELSE wait_event END,
           EXISTS (SELECT 1 FROM pg_locks WHERE pg_locks.pid = activity.pid
                   AND locktype = 'advisory' AND granted)
    FROM pg_stat_activity AS activity
    WHERE datname = current_database() AND xact_start IS NOT NULL AND pid <> pg_backend_pid()
"""


@dataclass
class Round:
    """Hand-outs for some seconds."""

    seconds: float
    took: list[float] = field(default_factory=list)
    errors: int = 0
    #: Of all looks: in how many one held the lock of writers, what that one did, and how many
    #: waited for it.
    held: float = 0.0
    holder: Counter[str] = field(default_factory=Counter)
    waiting: float = 0.0
    #: Cores in use by daemons, by PostgreSQL, by this process, by all.
    cores: dict[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        return len(self.took) / self.seconds

    @property
    def median(self) -> float:
        return 1e3 * statistics.median(self.took)

    @property
    def p99(self) -> float:
        return 1e3 * p99(self.took)


# --- Over HTTP ------------------------------------------------------------------------------------


def measure(
    servers: Sequence[Server], database: PostgresServer, url: str, callers: int, seconds: float
) -> Round:
    """Have the callers ask the daemons, each of them one."""
    # No more than these: the services look at all that are warm.
    top_up(servers[0].settings, int(seconds * MOST))
    found = Round(seconds)
    pids = {
        "daemons": [each.pid for each in servers],
        "callers and CVAT": [os.getpid()],
    }
    results: list[tuple[list[float], int]] = []
    with watched(found, url), spent(found, pids, database):
        until = time.monotonic() + seconds
        threads = [
            threading.Thread(
                target=lambda address: results.append(hand_outs(address, 10**9, until)),
                args=(servers[number % len(servers)].address,),
            )
            for number in range(callers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found.took = [each for times, _ in results for each in times]
    found.errors = sum(errors for _, errors in results)
    return found


def top_up(settings: Settings, size: int) -> None:
    with closing(open_store(settings.store.url)) as store:
        missing = size - store.levels().get(NAME, Levels())[TaskState.WARM]
    if missing > 0:
        put_warm(settings, missing)


@contextmanager
def watched(found: Round, url: str) -> Iterator[None]:
    """Look at what the connections of the database do, again and again."""
    done = threading.Event()
    looks = held = waiting = 0

    def look() -> None:
        nonlocal looks, held, waiting
        with psycopg.connect(url, autocommit=True) as conn:
            while not done.wait(LOOK):
                rows = conn.execute(ACTIVITY).fetchall()
                looks += 1
                writers = [what for what, writes in rows if writes]
                held += bool(writers)
                found.holder.update(writers)
                waiting += sum(what == "the lock" for what, _ in rows)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    found.held, found.waiting = held / looks, waiting / looks


@contextmanager
def spent(found: Round, pids: dict[str, list[int]], database: PostgresServer) -> Iterator[None]:
    """Note down the processor time of processes meanwhile."""

    def now() -> dict[str, float]:
        by = {name: sum(map(cpu_of, each)) for name, each in pids.items()}
        # Those of ended connections count as the postmaster's, once it has waited for them.
        by["PostgreSQL"] = sum(map(cpu_of, [database.pid, *children_of(database.pid)]))
        busy = [int(each) / TICKS for each in Path("/proc/stat").read_text().split()[1:9]]
        by["all of this machine"] = sum(busy[:3]) + sum(busy[5:7])
        by["taken by other machines"] = busy[7]
        return by

    before, began = now(), time.monotonic()
    yield
    took = time.monotonic() - began
    found.cores = {name: (value - before[name]) / took for name, value in now().items()}


def cpu_of(pid: int) -> float:
    """Seconds of processor that a process has used, with its ended children."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    return sum(map(int, fields[11:15])) / TICKS


def children_of(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


# --- What came out --------------------------------------------------------------------------------


def report(name: str, ones: Sequence[Round], twos: Sequence[Round]) -> None:
    print(f"\n{name}: {len(ones)} pairs, {os.cpu_count()} cores")
    for what, rounds in (("one daemon", ones), ("two daemons", twos)):
        every = [each for found in rounds for each in found.took]
        print(
            f"  {what:12} {len(every) / sum(each.seconds for each in rounds):7.1f} hand-outs/s, "
            f"median {1e3 * statistics.median(every):5.1f} ms, p99 {1e3 * p99(every):6.1f} ms, "
            f"errors {sum(each.errors for each in rounds)}"
        )
        looks = sum((each.holder for each in rounds), Counter())
        most = ", ".join(
            f"{what} {100 * count / looks.total():.0f} %" for what, count in looks.most_common(4)
        )
        held = statistics.mean(each.held for each in rounds)
        waiting = statistics.mean(each.waiting for each in rounds)
        print(
            f"    the writers' lock was held {100 * held:.0f} % of the time, {waiting:.2f} "
            f"processes waited for it; it was held for: {most}"
        )
        cores = {
            key: statistics.mean(each.cores[key] for each in rounds) for key in rounds[0].cores
        }
        print(f"    cores in use: {', '.join(f'{k} {v:.2f}' for k, v in cores.items())}")
        rate = statistics.mean(each.rate for each in rounds)
        spent = {key: 1e3 * cores[key] / rate for key in ("daemons", "PostgreSQL")}
        print(
            "    processor for a hand-out: "
            + ", ".join(f"{key} {value:.2f} ms" for key, value in spent.items())
        )
    for what, ratios in (
        ("hand-outs", [two.rate / one.rate for one, two in zip(ones, twos, strict=True)]),
        ("median", [two.median / one.median for one, two in zip(ones, twos, strict=True)]),
        ("p99", [two.p99 / one.p99 for one, two in zip(ones, twos, strict=True)]),
    ):
        print(
            f"  {what}, two to one: {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )


def set_fsync(database: PostgresServer, fsync: str) -> None:
    if database.settings["fsync"] != fsync:
        database.stop()
        database.settings["fsync"] = fsync
        database.start()


def pairs(count: int) -> Iterator[tuple[int, ...]]:
    """One first, then two first, and so on."""
    for number in range(count):
        yield (1, 2) if number % 2 == 0 else (2, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--tasks", type=int, default=2000, help="for processes on the store")
    asked = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        database = PostgresServer(SAFE, above=folder)
        stack.callback(database.remove)
        url = database.url(database.new_database())
        simulator = stack.enter_context(SimulatorServer(SimulatorSettings()))
        size = int(asked.seconds * MOST)
        servers = [stack.enter_context(server(simulator, size=size, store=url)) for _ in range(2)]
        for fsync in ("on", "off"):
            set_fsync(database, fsync)
            measure(servers, database, url, asked.callers, 2.0)
            rounds: dict[int, list[Round]] = {1: [], 2: []}
            for pair in pairs(asked.pairs):
                for many in pair:
                    found = measure(servers[:many], database, url, asked.callers, asked.seconds)
                    rounds[many].append(found)
            report(f"POST /v1/leases, {asked.callers} callers, fsync {fsync}", rounds[1], rounds[2])
        for fsync in ("on", "off"):
            set_fsync(database, fsync)
            ratios = []
            for pair in pairs(asked.pairs):
                rates = {}
                for many in pair:
                    fresh = database.url(database.new_database())
                    contest = compete(fresh, many, asked.tasks)
                    assert contest.duplicates == contest.lost == contest.errors == 0
                    rates[many] = contest
                ratios.append((rates[2].rate / rates[1].rate, rates[2].median / rates[1].median))
                print(
                    f"processes on the store, fsync {fsync}: one {rates[1].rate:.0f}/s, median "
                    f"{rates[1].median:.2f} ms; two {rates[2].rate:.0f}/s, median "
                    f"{rates[2].median:.2f} ms"
                )
            print(
                f"processes on the store, fsync {fsync}, two to one: hand-outs "
                f"{statistics.median(each for each, _ in ratios):.2f}, median "
                f"{statistics.median(each for _, each in ratios):.2f}"
            )


if __name__ == "__main__":
    main()
