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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pool.bench import processes
from pool.bench.pictures import sample_image, sample_images, sample_labels
from pool.bench.processes import PATIENCE
from pool.cli.rendering import to_json
from pool.cli.status import StatusView
from pool.errors import PoolError

if TYPE_CHECKING:
    from rich.console import Console

    from pool.model import Status
    from pool.taskpool import TaskPool

__all__ = ["Demo", "sample_image"]

TEMPLATE = "street-scenes"
POOL_REQUESTS = 30
SDK_REQUESTS = 5
POOL_SIZE = 10


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Request to job ids, in milliseconds, of one way of getting there."""

    flow: str
    milliseconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.milliseconds)


class Demo:
    """The demo; each step is a method, in the order of the story."""

    def __init__(
        self, *, images: int, labels: int, speed: float, as_json: bool, serve: bool
    ) -> None:
        self._images = images
        self._labels = labels
        self._speed = speed
        self._as_json = as_json
        self._serve = serve
        self._console = _console(quiet=as_json)

    def run(self) -> None:
        """Start everything, compare, print, and stop everything.

        :raises PoolError: a part did not come up or failed.
        """
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cvat-pool-")))
            self._say("Starting a simulated CVAT with the timings of a real one ...")
            environment = stack.enter_context(processes.simulator(folder, speed=self._speed))
            url = environment["CVAT_URL"]
            config = folder / "config.toml"
            config.write_text(self._configuration(url, folder))
            self._say(f"Starting the daemon, which keeps {POOL_SIZE} tasks warm ...")
            daemon = stack.enter_context(
                processes.daemon(config, environment, folder, log_options=["--log-json"])
            )
            pool = stack.enter_context(_pool(config, environment))
            filled_in = self._wait_until_full(pool)
            before = pool.status()
            timings, examples = self._compare(pool, environment)
            after = pool.status()
            server = _server_times(url, [example["task_id"] for example in examples])
            if self._as_json:
                print(to_json(self._figures(timings, examples, server, filled_in, after)))
            else:
                self._show(before, after, timings, examples, server)
            if self._serve:
                self._leave_running(daemon.listening_at(), config, environment)

    # --- Setting up ---------------------------------------------------------------------------

    def _configuration(self, url: str, folder: Path) -> str:
        labels = [{"name": name} for name in sample_labels(self._labels)]
        (folder / "labels.json").write_text(json.dumps(labels))
        return (
            f'[cvat]\nurl = "{url}"\n'
            f'[store]\nurl = "sqlite:///{folder / "pool.db"}"\n'
            "[daemon]\nport = 0\n"
            f"[templates.{TEMPLATE}]\n"
            'labels_file = "labels.json"\n'
            f"pool = {{ min_size = {POOL_SIZE} }}\n"
        )

    def _wait_until_full(self, pool: TaskPool) -> float:
        began = time.monotonic()
        while time.monotonic() < began + PATIENCE:
            status = pool.status()
            row = status.templates[0]
            if row.warm >= row.target:
                return time.monotonic() - began
            if reason := row.hold_reason or status.hold_reason:
                raise PoolError(reason)
            time.sleep(0.05)
        raise PoolError(f"the pool was not full after {PATIENCE:g} s")

    # --- Comparing ------------------------------------------------------------------------------

    def _compare(
        self, pool: TaskPool, environment: dict[str, str]
    ) -> tuple[list[Timing], list[dict[str, Any]]]:
        from pool.bench.flows import PlainFlows

        examples: list[dict[str, Any]] = []

        def by_pool(number: int) -> None:
            files = [
                (f"frame{number:03d}_{index:03d}.jpg", image)
                for index, image in enumerate(self._pictures)
            ]
            request = pool.submit(TEMPLATE, files)
            jobs = request.jobs(timeout=PATIENCE)
            examples.append(
                {
                    "task_id": request.task_id,
                    "job_ids": [job.id for job in jobs],
                    "outcome": request.outcome,
                }
            )

        self._pictures = sample_images(self._images)
        fields = {"labels": [{"name": name} for name in sample_labels(self._labels)]}
        with (
            _plain_client(environment) as client,
            PlainFlows(client, fields, self._pictures) as flows,
        ):
            return [
                self._measure("pool", POOL_REQUESTS, by_pool),
                self._measure("SDK, polling every 500 ms", SDK_REQUESTS, flows.polling),
                self._measure("SDK, as it comes (5 s)", SDK_REQUESTS, flows.defaults),
            ], examples

    def _measure(self, flow: str, count: int, request: Callable[[int], object]) -> Timing:
        times = []
        for number in self._progress(flow, count):
            began = time.perf_counter()
            request(number)
            times.append((time.perf_counter() - began) * 1000)
        return Timing(flow=flow, milliseconds=tuple(times))

    def _progress(self, flow: str, count: int) -> Iterator[int]:
        from rich.progress import track

        yield from track(
            range(count),
            description=f"{count} requests: {flow}".ljust(40),
            console=self._console,
        )

    # --- Showing --------------------------------------------------------------------------------

    def _show(
        self,
        before: Status,
        after: Status,
        timings: Sequence[Timing],
        examples: Sequence[dict[str, Any]],
        server: Sequence[float],
    ) -> None:
        from rich import box
        from rich.table import Table

        self._console.print()
        self._console.print("[bold]Before[/] the first request:")
        self._console.print(StatusView(before))
        self._console.print("\n[bold]After[/] the last one:")
        self._console.print(StatusView(after))
        self._console.print("\n[bold]Job ids[/] of the first requests:")
        for example in examples[:3]:
            ids = ", ".join(map(str, example["job_ids"]))
            self._console.print(f"  task {example['task_id']}: job {ids} ({example['outcome']})")
        plural = "s" if self._images > 1 else ""
        table = Table(
            title=f"\nMilliseconds from a request to its job ids\n({self._images} image{plural}, "
            f"{self._labels} label{'s' if self._labels > 1 else ''})",
            title_justify="left",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        table.add_column("way", no_wrap=True)
        for heading in ("median", "min", "max", "ratio"):
            table.add_column(heading, justify="right")
        reference = timings[0].median
        for timing in timings:
            table.add_row(
                timing.flow,
                f"{timing.median:.0f}",
                f"{min(timing.milliseconds):.0f}",
                f"{max(timing.milliseconds):.0f}",
                f"{timing.median / reference:.1f}",
            )
        self._console.print(table)
        if server:
            own = statistics.median(server)
            self._console.print(
                f"Of the pool's {reference:.0f} ms, {own:.0f} ms are the server's own time, from "
                "receiving the data to having the jobs.\n"
                "Next: 'cvat-pool check' with a config.toml for your own server; see the README."
            )

    def _figures(
        self,
        timings: Sequence[Timing],
        examples: Sequence[dict[str, Any]],
        server: Sequence[float],
        filled_in: float,
        after: Status,
    ) -> dict[str, Any]:
        return {
            "images": self._images,
            "labels": self._labels,
            "pool_filled_seconds": round(filled_in, 3),
            "flows": {
                timing.flow: {
                    "requests": len(timing.milliseconds),
                    "median_ms": round(timing.median, 1),
                    "min_ms": round(min(timing.milliseconds), 1),
                    "max_ms": round(max(timing.milliseconds), 1),
                }
                for timing in timings
            },
            "server_own_median_ms": round(statistics.median(server), 1) if server else None,
            "examples": list(examples[:3]),
            "status": after,
        }

    def _leave_running(self, url: str, config: Path, environment: dict[str, str]) -> None:
        self._say(
            f"\nLeft running until Ctrl-C. Look at it: {url}/\n\nIn another terminal:\n\n"
            f"  export CVAT_ACCESS_TOKEN={environment['CVAT_ACCESS_TOKEN']}\n"
            f"  cvat-pool status --watch --config {config}\n"
            f"  cvat-pool get {TEMPLATE} IMAGE --config {config}\n",
            always=True,
        )
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            pass

    def _say(self, text: str, *, always: bool = False) -> None:
        if always and self._as_json:
            print(text, file=sys.stderr)
        else:
            self._console.print(text, highlight=False, soft_wrap=True)


def _console(*, quiet: bool) -> Console:
    from rich.console import Console

    return Console(stderr=quiet, quiet=quiet)


# --- The other processes ---------------------------------------------------------------------


def _plain_client(environment: dict[str, str]) -> AbstractContextManager[Any]:
    from pool.config.settings import CvatSettings
    from pool.cvat import AccessTokenCredentials
    from pool.cvat.plain import plain_client

    token = AccessTokenCredentials(environment["CVAT_ACCESS_TOKEN"])
    return plain_client(CvatSettings(url=environment["CVAT_URL"]), token)


@contextmanager
def _pool(config: Path, environment: dict[str, str]) -> Iterator[TaskPool]:
    from pool.config.loader import load
    from pool.cvat import connect
    from pool.taskpool import TaskPool

    settings = load(config)
    cvat = connect(settings.cvat, environment)
    try:
        with TaskPool(settings, cvat=cvat) as pool:
            yield pool
    finally:
        cvat.close()


def _server_times(url: str, task_ids: Iterable[int]) -> list[float]:
    """The simulator's own milliseconds from the POST to the commit, of these tasks."""
    from pool.bench.server_time import SimulatorTimes

    return [own.own_ms for own in SimulatorTimes(url).of(task_ids).values()]
