"""The processes that the storm kills: callers and daemons, each writing down what it was told.

What a caller writes is written after it heard of it and before it does anything else, in one
``write`` to a file of its own, so that a SIGKILL loses no line that was written.
"""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path
from typing import Any

from pool.errors import PoolError
from pool.logs import configure

#: Seconds for which the storm's processes count as alive without a sign of life, so that what
#: the dead owned is taken over while the storm still blows.
TERM = 1.5
PERIOD = 0.4


class Diary:
    """One line of JSON an event, appended to one file a process."""

    def __init__(self, folder: Path, role: str) -> None:
        path = folder / f"{role}-{os.getpid()}-{random.randrange(10**6)}.jsonl"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, event: str, **facts: Any) -> None:
        line = json.dumps({"event": event, **facts}) + "\n"
        os.write(self._file, line.encode())


def hasten(folder: Path, role: str) -> None:
    """Shorten the terms of this process, and log to a file."""
    import pool.daemon
    import pool.services.heartbeat

    pool.services.heartbeat.TERM = TERM
    pool.services.heartbeat.PERIOD = PERIOD
    pool.daemon.TERM = TERM
    pool.daemon.RENEWAL = PERIOD
    pool.daemon.ADOPT_EVERY = 0.5
    pool.daemon.DELETE_EVERY = 0.5
    pool.daemon.SETTLE_EVERY = 1.0
    log = os.open(folder / f"{role}-{os.getpid()}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 2)
    configure(level="info")


def run_daemon(config: Path, folder: Path, token: str) -> None:
    """A daemon until it is killed or stopped."""
    os.environ["CVAT_ACCESS_TOKEN"] = token
    hasten(folder, "daemon")
    from pool.config import load
    from pool.daemon import Daemon

    daemon = Daemon(load(config))
    daemon.install_signals()
    daemon.run()


def run_caller(config: Path, folder: Path, token: str, image: bytes, seed: int) -> None:
    """A caller that asks for tasks in every way that there is, until it is killed."""
    os.environ["CVAT_ACCESS_TOKEN"] = token
    hasten(folder, "caller")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from pool.taskpool import TaskPool

    rng = random.Random(seed)
    diary = Diary(folder, "caller")
    pool = TaskPool.from_config(config)
    number = 0
    while True:
        number += 1
        name = f"{os.getpid()}_{seed}_{number}.jpg"
        try:
            choice = rng.random()
            if choice < 0.6:
                _submit(pool, diary, name, image, rng)
            elif choice < 0.8:
                _lease_and_upload(pool, diary, name, image)
            else:
                _lease_and_release(pool, diary)
        except PoolError as error:
            diary.write("error", code=error.code, text=str(error))


def _submit(pool: Any, diary: Diary, name: str, image: bytes, rng: random.Random) -> None:
    key = f"key {name}"
    diary.write("submit", key=key, file=name)
    request = pool.submit("scenes", [(name, image)], idempotency_key=key)
    diary.write("accepted", key=key, request=request.id, task=request.task_id)
    if rng.random() < 0.2:
        again = pool.submit("scenes", [(name, image)], idempotency_key=key)
        diary.write("again", key=key, request=again.id)
    if rng.random() < 0.7:
        jobs = request.jobs(timeout=30)
        diary.write("ready", request=request.id, jobs=[job.id for job in jobs])


def _lease_and_upload(pool: Any, diary: Diary, name: str, image: bytes) -> None:
    lease = pool.acquire("scenes", timeout=10, ttl=3)
    diary.write("leased", lease=lease.id, task=lease.task_id)
    request = lease.upload([(name, image)])
    diary.write("accepted", key=None, request=request.id, task=request.task_id)


def _lease_and_release(pool: Any, diary: Diary) -> None:
    lease = pool.acquire("scenes", timeout=10, ttl=3)
    diary.write("leased", lease=lease.id, task=lease.task_id)
    pool.release(lease)
    diary.write("released", lease=lease.id)
