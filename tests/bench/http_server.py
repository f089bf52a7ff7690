"""A daemon in a process of its own, for what measures it from outside."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.api import in_thread, settings_for
from support.waiting import PATIENCE

from pool.config.settings import ImportSettings, PoolSettings, Settings, Template
from pool.cvat import AccessTokenCredentials, CvatClient
from pool.daemon import Daemon
from pool.logs import configure
from pool.model import Job, new_id
from pool.process import Process
from pool.simulator import SimulatorServer
from pool.store import open_store

NAME = "scenes"
#: Seconds between two ends of imports that are waited for.
SPACING = 0.005


def serve(settings: Settings, access_token: str, pipe: Connection) -> None:
    """Runs in a process of its own until it receives "end". Logs as a daemon does, to nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    configure(level="info")
    cvat = CvatClient(settings.cvat, AccessTokenCredentials(access_token))
    with in_thread(Daemon(settings, cvat=cvat)) as daemon:
        pipe.send(daemon.url)
        while (word := pipe.recv()) != "end":
            deliver(daemon.process, *word)
            pipe.send("done")


def deliver(process: Process, first: int, last: int) -> None:
    """Have the jobs of many imports known in this process, as a webhook does, one by one."""
    for task_id in range(first, last):
        task, importing = process.store.task_on_server(task_id) or (None, None)
        assert task is not None and importing is not None
        process.tracker.deliver(task, importing, jobs_of(task_id))
        time.sleep(SPACING)


def jobs_of(task_id: int) -> tuple[Job, ...]:
    return (Job(id=task_id, url=f"http://cvat/jobs/{task_id}", start_frame=0, stop_frame=0),)


@dataclass(frozen=True)
class Server:
    url: str
    pid: int
    settings: Settings
    simulator: SimulatorServer
    pipe: Connection

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").partition(":")
        return host, int(port)

    def send(self, word: Any) -> None:
        self.pipe.send(word)

    def wait(self) -> None:
        assert self.pipe.recv() == "done"

    def status(self, name: str) -> int:
        """A number from the process's status: VmRSS in KiB, Threads."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1])
        raise LookupError(name)


@contextmanager
def server(simulator: SimulatorServer, *, size: int, store: str = "") -> Iterator[Server]:
    """A daemon, with all its services, whose pool keeps ``size`` tasks; on a ``store`` that others
    are on, too, or on one of its own."""
    template = Template(
        name=NAME,
        labels=({"name": "car"},),
        pool=PoolSettings(min_size=size, max_size=size, on_empty="fail"),
        importing=ImportSettings(timeout=600.0),
    )
    with tempfile.TemporaryDirectory() as folder:
        # The simulator does not have the tasks that are put into the store.
        settings = settings_for(
            simulator.url,
            store or f"sqlite:///{folder}/pool.db",
            template,
            spool=Path(folder),
            verify_every=3600.0,
        )
        here, there = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=serve, args=(settings, simulator.access_token, there)
        )
        process.start()
        try:
            assert here.poll(PATIENCE)
            yield Server(here.recv(), process.pid or 0, settings, simulator, here)
        finally:
            here.send("end")
            process.join(PATIENCE)
            process.kill()


def put_warm(settings: Settings, count: int) -> None:
    """Warm tasks that only the store knows of, by one statement: while it lasts, nobody else
    writes."""
    template = settings.templates[NAME]
    with closing(open_store(settings.store.url)) as store, store.connections.writing() as db:
        db.changed(
            """
            WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :count)
            INSERT INTO tasks (id, template, fingerprint, origin, state, name, task_id,
                               prepared, cold, owner, created_at, warm_at, changed_at)
            SELECT :some || i, :template, :fingerprint, 'bench', 'warm', 'task ' || i,
                   1000000 + i, :prepared, :cold, 'bench', :now, :now, :now
            FROM n
            """,
            some=new_id(),
            count=count,
            template=template.name,
            fingerprint=template.fingerprint,
            prepared=True,
            cold=False,
            now=time.time(),
        )
