"""``cvat-pool demo``: a pool at work beside the plain ways, on a simulated CVAT.

Three processes, as in real use: the simulator, the daemon, and this one, which asks for tasks.
Everything is in a temporary folder and gone afterwards.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pool.bench import processes
from pool.bench.pictures import sample_images, sample_labels
from pool.bench.processes import PATIENCE
from pool.cli.output import print_json
from pool.cli.status import StatusView
from pool.errors import PoolError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from pool.model import Status
    from pool.taskpool import TaskPool

TEMPLATE = "street-scenes"
POOL_REQUESTS = 30
SDK_REQUESTS = 5
POOL_SIZE = 10


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What was measured. ``flows`` are milliseconds from a request to its job ids, by the way of
    getting there, the pool first; ``server`` are CVAT's own of the pool's requests."""

    images: int
    labels: int
    filled_in: float
    before: Status
    after: Status
    flows: Mapping[str, Sequence[float]]
    examples: Sequence[Mapping[str, Any]]
    server: Sequence[float]


def demo(*, images: int, labels: int, speed: float, as_json: bool, serve: bool) -> None:
    """Start everything, compare, print, and stop everything.

    :raises PoolError: a part did not come up or failed.
    """
    from rich.console import Console

    console = Console(stderr=as_json, quiet=as_json)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cvat-pool-")))
        console.print(
            "Starting a simulated CVAT with the timings of a real one ...", highlight=False
        )
        environment = stack.enter_context(processes.simulator(folder, speed=speed))
        config = folder / "config.toml"
        config.write_text(_configuration(environment["CVAT_URL"], folder, labels))
        console.print(
            f"Starting the daemon, which keeps {POOL_SIZE} tasks warm ...", highlight=False
        )
        daemon = stack.enter_context(
            processes.daemon(config, environment, folder, log_options=["--log-json"])
        )
        with _pool(config, environment) as pool:
            result = _compare(pool, environment, console, images=images, labels=labels)
        if as_json:
            print_json(_figures(result))
        else:
            _show(result, console)
        if serve:
            _leave_running(daemon.listening_at(), config, environment, as_json=as_json)


def _configuration(url: str, folder: Path, labels: int) -> str:
    (folder / "labels.json").write_text(
        json.dumps([{"name": name} for name in sample_labels(labels)])
    )
    return f"""
[cvat]
url = "{url}"
[store]
url = "sqlite:///{folder / "pool.db"}"
[daemon]
port = 0
[templates.{TEMPLATE}]
labels_file = "labels.json"
pool = {{ min_size = {POOL_SIZE} }}
"""


@contextmanager
def _pool(config: Path, environment: dict[str, str]) -> Iterator[TaskPool]:
    from pool.config.loader import load
    from pool.cvat import connect
    from pool.taskpool import TaskPool

    settings = load(config)
    with (
        connect(settings.cvat, environment) as cvat,
        TaskPool(settings, cvat=cvat) as pool,
    ):
        yield pool


# --- Measuring ------------------------------------------------------------------------------------


def _compare(
    pool: TaskPool, environment: Mapping[str, str], console: Console, *, images: int, labels: int
) -> Demo:
    from pool.bench.plain import plain_client, plain_flows
    from pool.bench.server_time import SimulatorTimes
    from pool.config.settings import CvatSettings
    from pool.cvat import AccessTokenCredentials

    url, pictures = environment["CVAT_URL"], sample_images(images)
    examples: list[dict[str, Any]] = []

    def by_pool(number: int) -> None:
        files = [(f"frame{number:03d}_{at:03d}.jpg", each) for at, each in enumerate(pictures)]
        request = pool.submit(TEMPLATE, files)
        jobs = [job.id for job in request.jobs(timeout=PATIENCE)]
        examples.append({"task_id": request.task_id, "job_ids": jobs, "outcome": request.outcome})

    filled_in = _wait_until_full(pool)
    before = pool.status()
    token = AccessTokenCredentials(environment["CVAT_ACCESS_TOKEN"])
    fields = {"labels": [{"name": name} for name in sample_labels(labels)]}
    with (
        plain_client(CvatSettings(url=url), token) as client,
        plain_flows(client, fields, pictures) as plain,
    ):
        ways: Mapping[str, tuple[int, Callable[[int], object]]] = {
            "pool": (POOL_REQUESTS, by_pool),
            "SDK, polling every 500 ms": (SDK_REQUESTS, plain.polling),
            "SDK, as it comes (5 s)": (SDK_REQUESTS, plain.defaults),
        }
        flows = {way: _measure(way, *how, console) for way, how in ways.items()}
    own = SimulatorTimes(url).of(example["task_id"] for example in examples)
    return Demo(
        images=images,
        labels=labels,
        filled_in=filled_in,
        before=before,
        after=pool.status(),
        flows=flows,
        examples=examples[:3],
        server=[times.own_ms for times in own.values()],
    )


def _wait_until_full(pool: TaskPool) -> float:
    """Return the seconds until the pool was full.

    :raises PoolError: it is held, or that took too long.
    """
    began = time.monotonic()
    while (elapsed := time.monotonic() - began) < PATIENCE:
        status = pool.status()
        row = status.templates[0]
        if row.warm >= row.target:
            return elapsed
        if reason := row.hold_reason or status.hold_reason:
            raise PoolError(reason)
        time.sleep(0.05)
    raise PoolError(f"the pool was not full after {PATIENCE:g} s")


def _measure(
    way: str, count: int, request: Callable[[int], object], console: Console
) -> list[float]:
    from rich.progress import track

    times = []
    title = f"{count} requests: {way}".ljust(40)
    for number in track(range(count), description=title, console=console):
        began = time.perf_counter()
        request(number)
        times.append((time.perf_counter() - began) * 1000)
    return times


# --- Showing --------------------------------------------------------------------------------------


def _show(demo: Demo, console: Console) -> None:
    console.print("\n[bold]Before[/] the first request:")
    console.print(StatusView(demo.before))
    console.print("\n[bold]After[/] the last one:")
    console.print(StatusView(demo.after))
    console.print("\n[bold]Job ids[/] of the first requests:")
    for example in demo.examples:
        ids = ", ".join(map(str, example["job_ids"]))
        console.print(f"  task {example['task_id']}: job {ids} ({example['outcome']})")
    console.print(_table(demo))
    if demo.server:
        console.print(
            f"Of the pool's {statistics.median(demo.flows['pool']):.0f} ms, "
            f"{statistics.median(demo.server):.0f} ms are the server's own time, from "
            "receiving the data to having the jobs.\n"
            "Next: 'cvat-pool check' with a config.toml for your own server; see the README."
        )


def _table(demo: Demo) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(
        title=f"\nMilliseconds from a request to its job ids\n"
        f"({demo.images} image{'s' * (demo.images > 1)}, "
        f"{demo.labels} label{'s' * (demo.labels > 1)})",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("way", no_wrap=True)
    for heading in ("median", "min", "max", "ratio"):
        table.add_column(heading, justify="right")
    reference = statistics.median(demo.flows["pool"])
    for way, times in demo.flows.items():
        median = statistics.median(times)
        figures = (f"{each:.0f}" for each in (median, min(times), max(times)))
        table.add_row(way, *figures, f"{median / reference:.1f}")
    return table


def _figures(demo: Demo) -> dict[str, Any]:
    return {
        "images": demo.images,
        "labels": demo.labels,
        "pool_filled_seconds": round(demo.filled_in, 3),
        "flows": {
            way: {
                "requests": len(times),
                "median_ms": round(statistics.median(times), 1),
                "min_ms": round(min(times), 1),
                "max_ms": round(max(times), 1),
            }
            for way, times in demo.flows.items()
        },
        "server_own_median_ms": round(statistics.median(demo.server), 1) if demo.server else None,
        "examples": demo.examples,
        "status": demo.after,
    }


def _leave_running(
    url: str, config: Path, environment: Mapping[str, str], *, as_json: bool
) -> None:
    print(
        f"\nLeft running until Ctrl-C. Look at it: {url}/\n\nIn another terminal:\n\n"
        f"  export CVAT_ACCESS_TOKEN={environment['CVAT_ACCESS_TOKEN']}\n"
        f"  cvat-pool status --watch --config {config}\n"
        f"  cvat-pool get {TEMPLATE} IMAGE --config {config}\n",
        file=sys.stderr if as_json else sys.stdout,
        flush=True,
    )
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        pass
