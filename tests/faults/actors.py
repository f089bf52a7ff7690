"""The processes that the storm kills: callers and daemons, each writing down what it was told.

What a caller writes is written after it heard of it and before it does anything else, in one
``write`` to a file of its own, so that a SIGKILL loses no line that was written.
"""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx
from support.hosts import move_to
from support.pictures import corrupt_picture, picture

from pool.errors import PoolError
from pool.logs import configure

#: With what the names of files begin that CVAT cannot import, and how many of all are so.
CORRUPT = "corrupt_"
CORRUPT_SHARE = 0.06
#: What callers on other machines than their daemons have to name.
API_TOKEN = "a-token-of-the-callers"
#: Seconds for which the storm's processes count as alive without a sign of life, so that what
#: the dead owned is taken over while the storm still blows.
TERM = 1.5
PERIOD = 0.4


@dataclass(frozen=True)
class Place:
    """Where a process of the storm works: the configuration, the folder for what it writes, the
    token for CVAT, and the daemon's address for those who call over HTTP."""

    config: Path
    folder: Path
    token: str
    daemon: str


class Diary:
    """One line of JSON an event, appended to one file a process."""

    def __init__(self, folder: Path, role: str) -> None:
        path = folder / f"{role}-{os.getpid()}-{random.randrange(10**6)}.jsonl"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, event: str, **facts: Any) -> None:
        line = json.dumps({"event": event, "at": time.time(), **facts}) + "\n"
        os.write(self._file, line.encode())


#: What takes long in the product, and how many seconds it takes in a storm: all of it still longer
#: than any call, so that the same things happen in the same order.
HASTE: dict[str, dict[str, Any]] = {
    "pool.maintenance.heartbeat": {"TERM": TERM, "PERIOD": PERIOD},
    "pool.maintenance.term": {"TERM": TERM, "RENEWAL": PERIOD},
    "pool.maintenance.scheduler": {
        "INTERVALS": {
            "adopt": 0.5,
            "carriers": 0.5,
            "delete": 0.5,
            "dispatch": 0.5,
            "lease_expiry": 1.0,
            "reconcile": 1.0,
            "retirement": 1.0,
            "showing": 0.5,
        }
    },
    "pool.store.slots": {"LOOKS": (0.5, 2.0)},
    "pool.maintenance.carriers": {"RETRY_AFTER": 1.0},
    "pool.requests.showing": {
        "TERM": 5.0,
        "FIRST_PAUSE": 0.2,
        "LONGEST_AWAY": 2.0,
        "LONGEST_PAUSE": 2.0,
        "WRONG_PAUSE": 2.0,
    },
    "pool.requests.breaker": {"TRANSIENT_CAP": 2.0, "REFUSED_BASE": 2.0, "REFUSED_CAP": 5.0},
    "pool.maintenance.reconcile_rules": {"STUCK_GRACE": 3.0},
    "pool.maintenance.deletion": {"RETRY_AFTER": 3.0},
    "pool.maintenance.reconcile": {"RETRY_BASE": 1.0, "RETRY_CAP": 3.0},
    "pool.tracking.tracker": {"ORPHAN_PATIENCE": 10.0},
    # All are back within a term after the server is.
    "pool.store.postgresql": {"_LONGEST_PAUSE": 0.15},
}


#: While there is a file of this name beside the configuration, the disk of the slots is full.
DISK_FULL = "disk-full"


class _Disk:
    """The calls of ``os``, of which ``fsync`` finds the disk full at times: the bytes are there in
    part then."""

    def __init__(self, full: Path) -> None:
        self._full = full

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def fsync(self, descriptor: int) -> None:
        if self._full.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(descriptor)


def hasten(folder: Path, role: str, haste: Mapping[str, dict[str, Any]] = HASTE) -> None:
    """Shorten the terms of this process, let its disk be filled, and log to a file."""
    slot_storage: Any = import_module("pool.requests.slot_storage")
    slot_storage.os = _Disk(folder / DISK_FULL)
    for name, terms in haste.items():
        module = import_module(name)
        for term, seconds in terms.items():
            assert hasattr(module, term), f"{name}.{term} is gone"
            if isinstance(seconds, dict):
                assert seconds.keys() <= getattr(module, term).keys()
                seconds = {**getattr(module, term), **seconds}
            setattr(module, term, seconds)
    log = os.open(folder / f"{role}-{os.getpid()}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 2)
    configure(level="info")


def run_daemon(place: Place, port: int) -> None:
    """A daemon that listens at a ``port``, until it is killed or stopped."""
    os.environ["CVAT_ACCESS_TOKEN"] = place.token
    hasten(place.folder, "daemon")
    from pool.config.loader import load
    from pool.daemon import Daemon

    settings = load(place.config)
    daemon = Daemon(replace(settings, daemon=replace(settings.daemon, port=port)))
    daemon.install_signals()
    daemon.run()


def run_daemon_on(host: int, place: Place, haste: Mapping[str, dict[str, Any]]) -> None:
    """``cvat-pool run`` on the host that the process ``host`` is on, until it is killed or stopped;
    with a ``haste`` as :data:`HASTE` is one."""
    move_to(host)
    os.environ.update(CVAT_ACCESS_TOKEN=place.token, POOL_API_TOKEN=API_TOKEN)
    hasten(place.folder, "daemon", haste)
    from pool.cli.app import main

    sys.argv = ["cvat-pool", "run", "--config", str(place.config)]
    main()


def run_caller_on(host: int, folder: Path, daemons: tuple[str, ...], seed: int) -> None:
    """A caller on the host that the process ``host`` is on, until it is killed, or kills itself
    where that is most awkward. It calls several daemons through a :class:`Balancer`."""
    move_to(host)
    os.environ.update(POOL_API_TOKEN=API_TOKEN)
    hasten(folder, "caller", {})
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from pool.client import RemotePool

    client = httpx.AsyncClient(transport=Balancer(daemons, seed))
    pool = RemotePool(daemons[0], patience=30.0, client=client)
    _call(Caller(pool, Diary(folder, "caller"), seed))


class Balancer(httpx.AsyncHTTPTransport):
    """Takes the calls of one client to one of several daemons, and to the next one when a call was
    lost or could not be served: the client sends it again, with the same key."""

    #: Seconds after which an answer is not waited for any more.
    PATIENCE = 15.0

    def __init__(self, daemons: tuple[str, ...], seed: int) -> None:
        super().__init__()
        self._daemons = [httpx.URL(url) for url in daemons]
        self._chosen = seed

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        chosen = self._chosen
        daemon = self._daemons[chosen % len(self._daemons)]
        request.url = request.url.copy_with(host=daemon.host, port=daemon.port)
        request.headers["Host"] = f"{daemon.host}:{daemon.port}"
        times = request.extensions["timeout"]
        request.extensions["timeout"] = times | {"read": min(times["read"], self.PATIENCE)}
        try:
            response = await super().handle_async_request(request)
        except httpx.TransportError:
            self._leave(chosen)
            raise
        if response.status_code >= 500:
            self._leave(chosen)
        return response

    def _leave(self, chosen: int) -> None:
        # Other calls may have done so already.
        if self._chosen == chosen:
            self._chosen += 1


def run_caller(place: Place, seed: int, remote: bool) -> None:
    """A caller that asks for tasks in every way that there is, until it is killed, or kills itself
    where that is most awkward; in this process, or of the daemon over HTTP if it is ``remote``."""
    os.environ["CVAT_ACCESS_TOKEN"] = place.token
    hasten(place.folder, "caller")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _call(Caller(_pool(place, remote), Diary(place.folder, "caller"), seed))


def _call(caller: Caller) -> None:
    while True:
        caller.do_something()
        # Not so fast that nothing is ever warm.
        time.sleep(caller.rng.uniform(0.0, 0.3))


def _pool(place: Place, remote: bool) -> Any:
    if remote:
        from pool.client import RemotePool

        return RemotePool(place.daemon, patience=10.0)
    from pool.taskpool import TaskPool

    return TaskPool.from_config(place.config)


class Caller:
    """Calls a pool in ways drawn from a seed."""

    def __init__(self, pool: Any, diary: Diary, seed: int) -> None:
        self._pool, self._diary = pool, diary
        self.rng = random.Random(seed)
        self._name = f"{os.getpid()}_{seed}"
        self._number = 0

    def do_something(self) -> None:
        self._number += 1
        file = f"{self._name}_{self._number}.png"
        ways = (self._submit, self._lease_and_upload, self._lease_and_release, self._lease_and_die)
        way = self.rng.choices(ways, weights=(60, 18, 18, 4))[0]
        try:
            way(file)
        except PoolError as error:
            self._diary.write("error", code=error.code, text=str(error))

    def _submit(self, file: str) -> None:
        content = picture(file)
        if self.rng.random() < CORRUPT_SHARE:
            file = f"{CORRUPT}{file}"
            content = corrupt_picture(file)
        key = f"key-{file}"
        self._diary.write("submit", key=key, file=file)
        try:
            request = self._pool.submit("scenes", [(file, content)], idempotency_key=key)
        except PoolError as error:
            self._diary.write("error", code=error.code, text=str(error))
            if self.rng.random() < 0.5:
                return
            # As callers do who were told that it did not work.
            request = self._pool.submit("scenes", [(file, content)], idempotency_key=key)
        self._accepted(request, key)
        if self.rng.random() < 0.2:
            again = self._pool.submit("scenes", [(file, content)], idempotency_key=key)
            self._diary.write("again", key=key, request=again.id)
        if self.rng.random() < 0.6:
            jobs = request.jobs(timeout=5)
            self._diary.write("ready", request=request.id, jobs=[job.id for job in jobs])

    def _lease_and_upload(self, file: str) -> None:
        lease = self._lease()
        self._accepted(lease.upload([(file, picture(file))]), None)

    def _lease_and_release(self, _file: str) -> None:
        lease = self._lease()
        self._pool.release(lease)
        self._diary.write("released", lease=lease.id)

    def _lease_and_die(self, _file: str) -> None:
        self._lease()
        self._die()

    def _lease(self) -> Any:
        lease = self._pool.acquire("scenes", timeout=10, ttl=3)
        self._diary.write("leased", lease=lease.id, task=lease.task_id)
        return lease

    def _accepted(self, request: Any, key: str | None) -> None:
        queued = request.task_id is None
        self._diary.write(
            "accepted", key=key, request=request.id, task=request.task_id, queued=queued
        )
        # A request that waits is served whatever becomes of its caller.
        if queued and self.rng.random() < 0.3:
            self._die()

    def _die(self) -> None:
        self._diary.write("died")
        os.kill(os.getpid(), signal.SIGKILL)
