"""How fast and how safe the hand-out is. Run by hand: ``python tests/bench/bench_store.py``, with
``--postgres`` on a PostgreSQL server of its own too, on the same disk, with PostgreSQL's settings.
The two take turns within one run, since a disk and a machine are not equally quick all day.

Everything is durable (``synchronous=FULL``) and goes through the store's own methods; only the
rows to start with are written past them, since a hundred thousand would take minutes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pool.errors import StoreError
from pool.model import new_id
from pool.store import NewLease, NewRequest, Store, open_store

TEMPLATE, FINGERPRINT = "streets", "f00d"
#: What the hand-out may take, in milliseconds.
GOAL_MEDIAN, GOAL_P99 = 0.5, 3.0
#: How often SQLite's median PostgreSQL's may be, and how many hand-outs a second so many processes
#: have to make on it.
GOAL_RATIO, GOAL_RATE, GOAL_PROCESSES = 3.0, 1_500, 16
#: In how many turns calls are timed, where two stores are measured.
TURNS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Milliseconds that one kind of call took."""

    what: str
    calls: int
    median: float
    p99: float
    worst: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Contest:
    """What came of many processes that claimed all tasks there were."""

    processes: int
    tasks: int
    seconds: float
    duplicates: int
    lost: int
    errors: int
    median: float
    p99: float
    worst: float

    @property
    def rate(self) -> float:
        return self.tasks / self.seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument(
        "--dir", type=Path, help="where the stores are made (default: a temporary folder)"
    )
    parser.add_argument("--warm", type=int, default=1_000, help="warm tasks (default: %(default)s)")
    parser.add_argument(
        "--finished", type=int, default=100_000, help="finished rows (default: %(default)s)"
    )
    parser.add_argument("--postgres", action="store_true", help="measure PostgreSQL, too")
    parser.add_argument(
        "--processes",
        type=int,
        nargs="+",
        default=[8, GOAL_PROCESSES],
        help="how many claim at once, one contest for each number (default: %(default)s)",
    )
    parser.add_argument(
        "--contested", type=int, default=8_000, help="tasks that these claim (default: %(default)s)"
    )
    asked = parser.parse_args()

    found: dict[str, object] = {}
    with tempfile.TemporaryDirectory(dir=asked.dir) as name, ExitStack() as stack:
        folder = Path(name)
        makers: dict[str, Callable[[str], str]] = {
            "SQLite": lambda name: f"sqlite:///{folder / name}.db"
        }
        if asked.postgres:
            makers["PostgreSQL"] = stack.enter_context(postgres_server(folder))
        timings: dict[str, list[Timing]] = {store: [] for store in makers}
        for finished in (0, asked.finished):
            for timing_of in measure(makers, asked.warm, finished):
                for store, timing in timing_of.items():
                    timings[store].append(timing)
        contests: dict[str, list[Contest]] = {store: [] for store in makers}
        for processes in asked.processes:
            for store, url_of in makers.items():
                url = url_of(f"contest{processes}")
                contests[store].append(compete(url, processes, asked.contested))
        fsync = fsync_cost(folder / "fsync")
        for store in makers:
            show(store, timings[store], contests[store], fsync)
            found[store] = {
                "timings": [asdict(timing) for timing in timings[store]],
                "contests": [asdict(each) | {"rate": each.rate} for each in contests[store]],
                "fsync": asdict(fsync),
            }
        if asked.postgres:
            compare(timings["SQLite"], timings["PostgreSQL"], contests["PostgreSQL"])
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2))


@contextmanager
def postgres_server(folder: Path) -> Iterator[Callable[[str], str]]:
    """A server whose commits reach the disk of ``folder``, and a database of each name on it."""
    sys.path.append(str(Path(__file__).parents[1]))
    from support.postgres import PostgresServer

    server = PostgresServer(
        {"fsync": "on", "full_page_writes": "on", "autovacuum": "on"}, above=folder
    )

    def url_of(name: str) -> str:
        return server.url(server.new_database())

    try:
        yield url_of
    finally:
        server.remove()


# --- One process ----------------------------------------------------------------------------------


def measure(
    makers: Mapping[str, Callable[[str], str]], warm: int, finished: int
) -> Iterator[Mapping[str, Timing]]:
    """Time the calls that must not depend on how many rows are finished, by store."""
    rows = f"{finished:,} finished"
    with ExitStack() as opened:
        stores = {
            name: opened.enter_context(filled(url_of(f"{finished}"), warm, finished))
            for name, url_of in makers.items()
        }
        yield timed(f"hand-out, {rows}", warm // 2, stores, claim)
        yield timed(f"hand-out for a request, {rows}", warm // 2, stores, claim_for_data)
    with ExitStack() as opened:
        stores = {
            name: opened.enter_context(filled(url_of(f"{finished}.status"), warm, finished))
            for name, url_of in makers.items()
        }
        yield timed(f"levels, {rows}", 500, stores, Store.levels)
        yield timed(f"in_flight, {rows}", 500, stores, Store.in_flight)
        yield timed(f"expired_leases, {rows}", 500, stores, expired)
        yield timed(f"adopt_requests, {rows}", 500, stores, adopt)
        yield timed(f"change_token, {rows}", 500, stores, Store.change_token)


def expired(store: Store) -> object:
    return store.expired_leases(now=time.time())


def adopt(store: Store) -> object:
    return store.adopt_requests("o", now=1.0)


def claim_for_data(store: Store) -> int | None:
    return claim(store, data=True)


def claim(store: Store, *, data: bool = False) -> int | None:
    wanted = NewLease(
        id=new_id(), template=TEMPLATE, fingerprint=FINGERPRINT, owner="bench", ttl=3600.0
    )
    request = NewRequest(id=new_id(), files=("a.jpg",)) if data else None
    task = store.open_lease(wanted, request=request, now=time.time()).task
    return task.task_id if task else None


def timed(
    what: str, calls: int, stores: Mapping[str, Store], call: Callable[[Store], object]
) -> Mapping[str, Timing]:
    """Time a call on each store, in turns."""
    taken: dict[str, list[float]] = {name: [] for name in stores}
    for _ in range(TURNS):
        for name, store in stores.items():
            taken[name] += times(calls // TURNS, partial(call, store))
    return {name: summary(what, each) for name, each in taken.items()}


def times(calls: int, call: Callable[[], object]) -> list[float]:
    """Return how many milliseconds each of so many calls took."""
    taken = []
    for _ in range(calls):
        began = time.perf_counter()
        call()
        taken.append(1000 * (time.perf_counter() - began))
    return taken


def summary(what: str, taken: list[float]) -> Timing:
    return Timing(
        what=what,
        calls=len(taken),
        median=statistics.median(taken),
        p99=statistics.quantiles(taken, n=100, method="inclusive")[-1],
        worst=max(taken),
    )


def fsync_cost(path: Path) -> Timing:
    """What the disk alone takes for a durable write of a page: the floor under a hand-out."""
    with path.open("wb", buffering=0) as file:

        def write() -> None:
            file.write(b"x" * 4096)
            os.fdatasync(file.fileno())

        return summary("write and fsync of 4 KiB, without a store", times(500, write))


# --- Many processes -------------------------------------------------------------------------------


def compete(url: str, processes: int, tasks: int) -> Contest:
    """Have processes claim all tasks as fast as they can."""
    with filled(url, tasks, 0):
        pass
    context = multiprocessing.get_context("spawn")
    gate = context.Barrier(processes + 1)
    answers = context.Queue()
    workers = [
        context.Process(target=claim_all, args=(url, gate, answers)) for _ in range(processes)
    ]
    for worker in workers:
        worker.start()
    gate.wait()
    began = time.perf_counter()
    results = [answers.get() for _ in workers]
    seconds = time.perf_counter() - began
    for worker in workers:
        worker.join()
    taken = Counter(task_id for task_ids, _, _ in results for task_id in task_ids)
    spread = summary("", [one for _, times, _ in results for one in times])
    return Contest(
        processes=processes,
        tasks=tasks,
        seconds=seconds,
        duplicates=taken.total() - len(taken),
        lost=tasks - len(taken),
        errors=sum(errors for _, _, errors in results),
        median=spread.median,
        p99=spread.p99,
        worst=spread.worst,
    )


def claim_all(url: str, gate: object, answers: object) -> None:
    store = open_store(url)
    taken: list[int] = []
    times: list[float] = []
    errors = 0
    gate.wait()  # type: ignore[attr-defined]
    while True:
        began = time.perf_counter()
        try:
            task_id = claim(store)
        except StoreError:
            errors += 1
            continue
        times.append(1000 * (time.perf_counter() - began))
        if task_id is None:
            break
        taken.append(task_id)
    store.close()
    answers.put((taken, times, errors))  # type: ignore[attr-defined]


# --- Rows to start with ---------------------------------------------------------------------------


@contextmanager
def filled(url: str, warm: int, finished: int) -> Iterator[Store]:
    """A store with warm tasks, and with finished tasks, leases, requests and jobs."""
    store = open_store(url)
    with store.connections.writing() as db:
        db.changed(
            """
            WITH RECURSIVE n (i) AS (SELECT 1 WHERE :finished > 0
                                     UNION ALL SELECT i + 1 FROM n WHERE i < :finished)
            INSERT INTO tasks (id, template, fingerprint, state, name, task_id, cold,
                               lease_id, owner, created_at, warm_at, changed_at)
            SELECT 't' || i, :template, :fingerprint,
                   CASE i % 4 WHEN 0 THEN 'deleted' ELSE 'ready' END,
                   'done ' || i, i, :cold, 'l' || i, 'bench', i, i, i
            FROM n
            """,
            finished=finished,
            template=TEMPLATE,
            fingerprint=FINGERPRINT,
            cold=False,
        )
        db.changed(
            """
            INSERT INTO leases (id, template, fingerprint, state, owner, request_id, pooled_id,
                                task_id, outcome, ttl, payload, created_at, handed_out_at,
                                expires_at)
            SELECT lease_id, template, fingerprint, 'used', 'bench', 'r' || task_id, id, task_id,
                   'hit', 60, '', created_at, created_at, created_at + 60
            FROM tasks
            """
        )
        db.changed(
            """
            INSERT INTO imports (id, template, state, owner, lease_id, pooled_id, task_id, outcome,
                                 size, handed_out_at, uploaded_at, finished_at)
            SELECT 'i' || task_id, template, 'ready', 'gone', id, pooled_id, task_id, 'hit', 100000,
                   created_at, created_at, created_at
            FROM leases
            """
        )
        db.changed(
            """
            INSERT INTO import_members (import_id, position, request_id, files, names)
            SELECT 'i' || task_id, 0, request_id, '["a.jpg"]', '["a.jpg"]' FROM leases
            """
        )
        db.changed(
            """
            INSERT INTO requests (id, template, state, owner, lease_id, import_id, files, size,
                                  payload, created_at, finished_at, sought)
            SELECT request_id, template, 'ready', 'gone', id, 'i' || task_id, '["a.jpg"]', 100000,
                   '', created_at, created_at, 'a.jpg'
            FROM leases
            """
        )
        db.changed(
            """
            INSERT INTO jobs (pooled_id, id, request_id, url, start_frame, stop_frame)
            SELECT id, task_id, 'r' || task_id, 'https://cvat.example/api/jobs/' || task_id, 0, 9
            FROM tasks WHERE state = 'ready'
            """
        )
        db.changed(
            """
            WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :warm)
            INSERT INTO tasks (id, template, fingerprint, state, name, task_id, cold, owner,
                               created_at, warm_at, changed_at)
            SELECT 'w' || i, :template, :fingerprint, 'warm', 'warm ' || i, 1000000 + i, :cold,
                   'bench', i, i, i
            FROM n
            """,
            warm=warm,
            template=TEMPLATE,
            fingerprint=FINGERPRINT,
            cold=False,
        )
    # What was filled in goes to the disk now, not while something is being measured.
    with store.connections.reading() as db:
        db.rows("PRAGMA wal_checkpoint(TRUNCATE)" if url.startswith("sqlite") else "CHECKPOINT")
        if not url.startswith("sqlite"):
            db.rows("ANALYZE")
    os.sync()
    yield store
    store.close()


# --- What came out --------------------------------------------------------------------------------


def show(store: str, timings: list[Timing], contests: list[Contest], fsync: Timing) -> None:
    console = Console(width=100)
    table = Table(title=f"{store}: one process (milliseconds)")
    for column in ("what", "calls", "median", "p99", "worst", "to none finished"):
        table.add_column(column, justify="left" if column == "what" else "right")
    without = {timing.what.split(",")[0]: timing for timing in timings[: len(timings) // 2]}
    for timing in [*timings, fsync]:
        base = without.get(timing.what.split(",")[0])
        table.add_row(
            timing.what,
            str(timing.calls),
            f"{timing.median:.3f}",
            f"{timing.p99:.3f}",
            f"{timing.worst:.3f}",
            f"x {timing.median / base.median:.2f}" if base and base is not timing else "",
        )
    console.print(table)
    hand_outs = [timing for timing in timings if timing.what.startswith("hand-out")]
    met = all(one.median <= GOAL_MEDIAN and one.p99 <= GOAL_P99 for one in hand_outs)
    console.print(
        f"Goal: median <= {GOAL_MEDIAN} ms, p99 <= {GOAL_P99} ms: {'met' if met else 'MISSED'}"
    )
    for contest in contests:
        console.print(
            f"{store}: {contest.processes} processes claimed {contest.tasks:,} tasks in "
            f"{contest.seconds:.2f} s ({contest.rate:,.0f} a second): {contest.duplicates} handed "
            f"out twice, {contest.lost} lost, {contest.errors} errors; each took "
            f"{contest.median:.2f} ms (median), "
            f"{contest.p99:.1f} ms (p99), {contest.worst:.0f} ms (worst)"
        )


def compare(sqlite: list[Timing], postgres: list[Timing], contests: list[Contest]) -> None:
    """Say whether PostgreSQL does what it has to beside SQLite."""
    console = Console(width=100)
    for one, other in zip(sqlite, postgres, strict=True):
        if one.what.startswith("hand-out"):
            ratio = other.median / one.median
            met = "met" if ratio <= GOAL_RATIO else "MISSED"
            console.print(f"{one.what}: x {ratio:.2f} SQLite's median, goal x {GOAL_RATIO}: {met}")
    for contest in contests:
        if contest.processes >= GOAL_PROCESSES:
            met = "met" if contest.rate >= GOAL_RATE else "MISSED"
            console.print(
                f"{contest.processes} processes: {contest.rate:,.0f} a second, goal {GOAL_RATE:,}: "
                f"{met}"
            )


if __name__ == "__main__":
    main()
