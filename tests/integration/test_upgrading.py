"""Two daemons on one database are upgraded one by one, while callers go on."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path

import pytest
from support.api import Api, waiting
from support.commands import Running, environment, running
from support.next_version import VERSION
from support.postgres import fresh_url
from support.waiting import PATIENCE
from urllib3.exceptions import HTTPError

from pool.simulator import SimulatorServer
from pool.store import open_store

CALLERS = 2


@pytest.fixture
def store_url(config_path: Path) -> str:
    """A database for the configuration."""
    url = fresh_url()
    with config_path.open("a") as file:
        file.write(f'\n[store]\nurl = "{url}"\nspool = "spool"\n')
    return url


@contextmanager
def next_version(config_path: Path, **extra: str) -> Iterator[Running]:
    """A daemon of the next version, as a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "support.next_version", "run"],
        cwd=config_path.parent,
        env=environment({**extra, "PYTHONPATH": str(Path(__file__).parents[1])}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    with process:
        daemon = Running(process, process.stdout)  # type: ignore[arg-type]
        try:
            yield daemon
        finally:
            process.kill()


class Callers:
    """Callers that send one request after the other, to any daemon that is there. A daemon that
    stops refuses them, or their connection; they ask again with the same key."""

    def __init__(self, image: bytes, urls: list[str]) -> None:
        self.urls = urls
        self.image = image
        #: The ids of the requests that were accepted, by their keys.
        self.accepted: dict[str, str] = {}
        self.wrong: list[str] = []
        self._numbers = count()
        self._guard = threading.Condition()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(CALLERS)]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    def go_on(self, requests: int) -> None:
        """Wait for so many more to be accepted."""
        with self._guard:
            wanted = len(self.accepted) + requests
            assert self._guard.wait_for(
                lambda: len(self.accepted) >= wanted or self.wrong, PATIENCE
            )
        assert not self.wrong

    def _call(self) -> None:
        while not self._over.is_set():
            key = f"key-{next(self._numbers)}"
            while not self._over.is_set() and not self._sent(key):
                self._over.wait(0.05)

    def _sent(self, key: str) -> bool:
        urls = self.urls
        try:
            with Api(urls[hash(key) % len(urls)]) as api:
                answer = api.submit([("a.jpg", self.image)], key=key)
        except HTTPError:
            return False
        if answer.status == 503 and answer.code == "stopping":
            return False
        with self._guard:
            if answer.status in (201, 202):
                self.accepted[key] = answer.json["id"]
            else:
                self.wrong.append(f"{answer.status} {answer.json}")
            self._guard.notify_all()
        return True


def test_one_by_one(
    config_path: Path, store_url: str, simulator: SimulatorServer, image: bytes
) -> None:
    folder, token = config_path.parent, simulator.access_token
    with (
        running("run", cwd=folder, CVAT_ACCESS_TOKEN=token) as one,
        running("run", cwd=folder, CVAT_ACCESS_TOKEN=token) as other,
        Callers(image, [one.url, other.url]) as callers,
    ):
        callers.go_on(6)
        callers.urls = [other.url]
        assert one.stop() == 0
        with next_version(config_path, CVAT_ACCESS_TOKEN=token) as new_one:
            callers.urls = [new_one.url, other.url]
            # Both versions at the same time.
            other.wait_for(f"the store was upgraded by version {VERSION}")
            callers.go_on(6)
            callers.urls = [new_one.url]
            assert other.stop() == 0
            with next_version(config_path, CVAT_ACCESS_TOKEN=token) as new_other:
                callers.urls = [new_one.url, new_other.url]
                callers.go_on(6)
                callers.__exit__()
                with Api(new_other.url) as api:
                    for request_id in callers.accepted.values():
                        seen = api.get(f"/v1/requests/{request_id}", headers=waiting(30))
                        assert seen.json["state"] == "ready", seen.json
                assert new_other.stop() == 0
            assert new_one.stop() == 0
    assert not callers.wrong
    with closing(open_store(store_url)) as store, store.connections.reading() as db:
        known = {request_id for (request_id,) in db.rows("SELECT id FROM requests")}
        assert known >= set(callers.accepted.values())
        # What the new trigger and the new code have written.
        assert db.number("SELECT COUNT(*) FROM ends") > 0
        assert (
            db.rows("SELECT needs, version FROM pool_migrations ORDER BY number")[-1][1] == VERSION
        )
    assert len(set(callers.accepted.values())) == len(callers.accepted)
