"""``cvat-pool demo``: compares the pool with the SDK alone, on a simulated CVAT.

Three processes, as in real use: the simulator, the daemon, and this one, which sends requests. All
files are in a temporary folder that is deleted afterwards.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pool.bench import processes
from pool.bench.pictures import sample_images, sample_labels
from pool.cli.output import print_json
from pool.cli.status import StatusView

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from pool.bench.pooled import Supply

TEMPLATE = "street-scenes"
POOL_REQUESTS = 30
SDK_REQUESTS = 5
POOL_SIZE = 10


def demo(*, images: int, labels: int, speed: float, as_json: bool, serve: bool) -> None:
    """Start all parts, compare, print the result, and stop all parts.

    :raises PoolError: a part did not start, or failed.
    """
    from rich.console import Console

    from pool.bench.pooled import open_supply

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
        supply = stack.enter_context(open_supply(config, environment))
        figures = _compare(supply, environment, console, folder, images=images, labels=labels)
        if as_json:
            print_json(figures)
        else:
            _show(figures, console)
        if serve:
            url = supply.daemon.listening_at()
            supply.pool.close()
            _leave_running(url, config, environment, as_json=as_json)


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


# --- Measuring ------------------------------------------------------------------------------------


def _compare(
    supply: Supply,
    environment: Mapping[str, str],
    console: Console,
    folder: Path,
    *,
    images: int,
    labels: int,
) -> dict[str, Any]:
    """Return the measured times: milliseconds from a request to its job ids, for the pool and for
    each way without it; and the server's own part for the pool's requests."""
    from pool.bench.measure import PATIENCE
    from pool.bench.plain import PlainWays, plain_client
    from pool.bench.pooled import named_files
    from pool.bench.server_time import SimulatorTimes
    from pool.config.settings import CvatSettings
    from pool.cvat import AccessTokenCredentials

    url, pictures = environment["CVAT_URL"], sample_images(images)
    examples: list[dict[str, Any]] = []

    def by_pool(number: int) -> None:
        request = supply.pool.submit(TEMPLATE, named_files(number, pictures))
        jobs = [job.id for job in request.jobs(timeout=PATIENCE)]
        examples.append({"task_id": request.task_id, "job_ids": jobs, "outcome": request.outcome})

    began = time.monotonic()
    supply.wait_until_warm(TEMPLATE, POOL_SIZE)
    filled_in = time.monotonic() - began
    console.print("\n[bold]Before[/] the first request:")
    console.print(StatusView(supply.pool.status()))
    fields = {"labels": [{"name": name} for name in sample_labels(labels)]}
    token = AccessTokenCredentials(environment["CVAT_ACCESS_TOKEN"])
    with plain_client(CvatSettings(url=url), token) as client:
        plain = PlainWays(client, fields, pictures, folder)
        flows = {
            "pool": _measure("pool", POOL_REQUESTS, by_pool, console),
            **{
                way: _measure(way, SDK_REQUESTS, request, console)
                for way, request in {
                    "SDK, polling every 500 ms": plain.polling,
                    "SDK, as it comes (5 s)": plain.defaults,
                }.items()
            },
        }
    times = SimulatorTimes(url)
    own = [found.own_ms for each in examples if (found := times.of(each["task_id"]))]
    return {
        "images": images,
        "labels": labels,
        "pool_filled_seconds": round(filled_in, 3),
        "flows": flows,
        "server_own_median_ms": round(statistics.median(own), 1) if own else None,
        "examples": examples[:3],
        "status": supply.pool.status(),
    }


def _measure(
    way: str, count: int, request: Callable[[int], object], console: Console
) -> dict[str, float]:
    from rich.progress import track

    times = []
    title = f"{count} requests: {way}".ljust(40)
    for number in track(range(count), description=title, console=console):
        began = time.perf_counter()
        request(number)
        times.append((time.perf_counter() - began) * 1000)
    return {
        "requests": count,
        "median_ms": round(statistics.median(times), 1),
        "min_ms": round(min(times), 1),
        "max_ms": round(max(times), 1),
    }


# --- Showing --------------------------------------------------------------------------------------


def _show(figures: Mapping[str, Any], console: Console) -> None:
    console.print("\n[bold]After[/] the last one:")
    console.print(StatusView(figures["status"]))
    console.print("\n[bold]Job ids[/] of the first requests:")
    for example in figures["examples"]:
        ids = ", ".join(map(str, example["job_ids"]))
        console.print(f"  task {example['task_id']}: job {ids} ({example['outcome']})")
    console.print(_table(figures))
    if figures["server_own_median_ms"] is not None:
        console.print(
            f"Of the pool's {figures['flows']['pool']['median_ms']:.0f} ms, "
            f"{figures['server_own_median_ms']:.0f} ms are the server's own time, from "
            "receiving the data to having the jobs.\n"
            "Next: 'cvat-pool init' for your own server; 'cvat-pool docs' is the manual."
        )


def _table(figures: Mapping[str, Any]) -> Table:
    from rich import box
    from rich.table import Table

    images, labels = figures["images"], figures["labels"]
    table = Table(
        title=f"\nMilliseconds from a request to its job ids\n"
        f"({images} image{'s' * (images > 1)}, {labels} label{'s' * (labels > 1)})",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("way", no_wrap=True)
    for heading in ("median", "min", "max", "ratio"):
        table.add_column(heading, justify="right")
    reference = figures["flows"]["pool"]["median_ms"]
    for way, flow in figures["flows"].items():
        times = (f"{flow[name]:.0f}" for name in ("median_ms", "min_ms", "max_ms"))
        table.add_row(way, *times, f"{flow['median_ms'] / reference:.1f}")
    return table


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
