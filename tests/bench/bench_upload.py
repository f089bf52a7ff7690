"""How fast large uploads are, and how little memory they take. Run by hand:

    python tests/bench/bench_upload.py                           2 GB of images, simulated server
    python tests/bench/bench_upload.py --size 500MB --at-once 1 2 4 8
    python tests/bench/bench_upload.py --file-size 200MB         few large files, resumably
    python tests/bench/bench_upload.py --config config.toml      a server of yours

The data are a few pictures under many names, so they take little room here, though not on the
server. Each upload is a process of its own, that does what users do: ``TaskPool.submit``. The
tasks are deleted afterwards.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pool import TaskPool
from pool.config.loader import load, loads
from pool.config.settings import Settings, StoreSettings
from pool.config.units import parse_size
from pool.cvat import connect

DISTINCT = 8
WIDTH, HEIGHT = 1920, 1080


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One upload: seconds, and bytes of memory."""

    at_once: int
    files: int
    size: int
    task_id: int | None
    to_accepted: float
    to_jobs: float
    idle_memory: int
    peak_memory: int

    @property
    def growth(self) -> int:
        return self.peak_memory - self.idle_memory

    @property
    def throughput(self) -> float:
        """Bytes a second, from the call of submit until CVAT has accepted all."""
        return self.size / self.to_accepted


# --- The data ----------------------------------------------------------------------------------


def make_files(folder: Path, size: int, file_size: int | None) -> list[Path]:
    """Images of ``size`` bytes in all; every one of ``file_size`` if that is given."""
    pictures = [folder / f"picture{number}.jpg" for number in range(DISTINCT)]
    for number, path in enumerate(pictures):
        make_picture(path, number, file_size)
    made: list[Path] = []
    while size > 0:
        source = pictures[len(made) % DISTINCT]
        path = folder / f"{len(made):06}.jpg"
        path.hardlink_to(source)
        made.append(path)
        size -= source.stat().st_size
    return made


def make_picture(path: Path, seed: int, file_size: int | None) -> None:
    """A JPEG of 1080p and half a megabyte; with a hole behind the picture up to ``file_size``."""
    from PIL import Image

    coarse = Image.frombytes(
        "RGB", (WIDTH // 8, HEIGHT // 8), random.Random(seed).randbytes(WIDTH * HEIGHT // 64 * 3)
    )
    noise = Image.effect_noise((WIDTH, HEIGHT), 20).convert("RGB")
    Image.blend(coarse.resize((WIDTH, HEIGHT)), noise, 0.15).save(path, "JPEG", quality=85)
    if file_size is not None:
        os.truncate(path, file_size)


# --- The server --------------------------------------------------------------------------------


@contextmanager
def server(config: Path | None) -> Iterator[Settings]:
    """The settings for a server: the one that a configuration names, else a simulated one."""
    if config is not None:
        yield load(config)
        return
    from pool.simulator import SimulatorServer, SimulatorSettings

    with SimulatorServer(SimulatorSettings()) as simulator:
        os.environ["CVAT_ACCESS_TOKEN"] = simulator.access_token
        yield loads(f'[cvat]\nurl = "{simulator.url}"\n[templates.bench]\nlabels = []\n')


# --- One upload, in a process of its own -------------------------------------------------------


def upload(settings: Settings, template: str, paths: list[Path], results: Any) -> None:
    chosen = settings.templates[template]
    with TaskPool(settings) as pool:
        # Idle is a process that has all it needs for its work: modules, connections, a task.
        lease = pool.acquire(template)
        idle = memory()[0]
        started = time.perf_counter()
        request = lease.upload(paths, progress=lambda *_: None)
        accepted = time.perf_counter()
        request.jobs()
        ready = time.perf_counter()
        results.put(
            Result(
                at_once=chosen.importing.upload_concurrency,
                files=len(paths),
                size=sum(path.stat().st_size for path in paths),
                task_id=request.task_id,
                to_accepted=accepted - started,
                to_jobs=ready - started,
                idle_memory=idle,
                peak_memory=memory()[1],
            )
        )


def memory() -> tuple[int, int]:
    """This process's memory now, and at most so far, in bytes."""
    try:
        lines = dict(
            line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines()
        )
        return tuple(int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))  # type: ignore[return-value]
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return (most, most) if sys.platform == "darwin" else (most * 1024, most * 1024)


def measure(settings: Settings, template: str, paths: list[Path], at_once: int) -> Result:
    """Upload in a new process, and delete the task."""
    with tempfile.TemporaryDirectory(prefix="bench-upload-") as folder:
        chosen = settings.templates[template]
        changed = replace(
            chosen,
            importing=replace(chosen.importing, upload_concurrency=at_once, timeout=3600.0),
            pool=replace(chosen.pool, max_wait=0.0, on_empty="create"),
        )
        own = replace(
            settings,
            store=StoreSettings(url=f"sqlite:///{folder}/pool.db"),
            templates={template: changed},
        )
        context = multiprocessing.get_context("spawn")
        results = context.Queue()
        process = context.Process(target=upload, args=(own, template, paths, results))
        process.start()
        try:
            process.join()
            if process.exitcode:
                raise SystemExit("the upload failed")
            result: Result = results.get(timeout=10)
        finally:
            delete_tasks(own)
        return result


def delete_tasks(settings: Settings) -> None:
    """Delete what the store of one measurement knows of, whatever became of it."""
    path = settings.store.url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path)) as db, connect(settings.cvat) as client:
        for (task_id,) in db.execute("SELECT task_id FROM tasks WHERE task_id NOT NULL"):
            client.delete_task(task_id)


# --- The whole ---------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=parse_size, default=2 * 10**9, help="of all files")
    parser.add_argument("--file-size", type=parse_size, help="of each, by default half a megabyte")
    parser.add_argument("--at-once", type=int, nargs="+", default=[4], help="requests at a time")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--config", type=Path, help="a server; by default a simulated one")
    parser.add_argument("--template", help="by default the configuration's first")
    parser.add_argument("--folder", type=Path, help="where the data is made; by default in /tmp")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    console = Console(stderr=True)
    results = []
    with (
        tempfile.TemporaryDirectory(prefix="bench-upload-", dir=options.folder) as folder,
        server(options.config) as settings,
    ):
        template = options.template or next(iter(settings.templates))
        paths = make_files(Path(folder), options.size, options.file_size)
        for number in range(options.repeat * len(options.at_once)):
            at_once = options.at_once[number % len(options.at_once)]
            with console.status(f"{len(paths)} files to {settings.cvat.url}, {at_once} at once"):
                results.append(measure(settings, template, paths, at_once))
    if options.json:
        print(json.dumps([asdict(result) for result in results], indent=2))
    else:
        Console().print(table(results))


def table(results: list[Result]) -> Table:
    shown = Table(title="Large uploads", title_justify="left")
    for heading in (
        "at once",
        "files",
        "MB",
        "MB/s",
        "accepted",
        "jobs",
        "idle",
        "peak above idle",
    ):
        shown.add_column(heading, justify="right")
    for result in results:
        shown.add_row(
            str(result.at_once),
            str(result.files),
            f"{result.size / 1e6:.0f}",
            f"{result.throughput / 1e6:.0f}",
            f"{result.to_accepted:.2f} s",
            f"{result.to_jobs:.2f} s",
            f"{result.idle_memory / 1e6:.0f} MB",
            f"{result.growth / 1e6:.0f} MB",
        )
    return shown


if __name__ == "__main__":
    main()
