"""Requests of the threads of one process that share imports, while there is no daemon."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pytest
import urllib3
from support.api import in_thread, settings_for
from support.pictures import colour, picture, seen
from support.waiting import PATIENCE, wait_until

from pool import Request, TaskPool
from pool.config.settings import ImportSettings, PoolSettings, Settings, Template
from pool.cvat import AccessTokenCredentials, CvatClient
from pool.daemon import Daemon
from pool.model import Outcome, RequestState
from pool.simulator import SimulatorServer

GROUPED = Template(
    name="scenes",
    labels=({"name": "car"},),
    pool=PoolSettings(min_size=0),
    importing=ImportSettings(timeout=20.0, grouping="auto", concurrency=1),
)
COUNT = 20


@pytest.fixture
def settings(server: SimulatorServer, store_url: str) -> Settings:
    return settings_for(server.url, store_url, GROUPED)


@contextmanager
def process(settings: Settings, server: SimulatorServer) -> Iterator[TaskPool]:
    """A process that only calls."""
    credentials = AccessTokenCredentials(server.access_token)
    with CvatClient(settings.cvat, credentials) as cvat, TaskPool(settings, cvat=cvat) as pool:
        yield pool


def submit_at_once(
    pool: TaskPool, server: SimulatorServer, *, release: Callable[[], object]
) -> list[Request]:
    """Have many threads submit a picture each while the server imports nothing; then ``release``
    it."""
    server.hold_imports()
    with ThreadPoolExecutor(COUNT) as threads:
        calls = [
            threads.submit(pool.submit, "scenes", [("a.png", picture(number))])
            for number in range(COUNT)
        ]
        requests = [each.result(PATIENCE) for each in calls]
    assert len([each for each in requests if each.refresh().task_id is None]) == COUNT - 1
    release()
    return requests


def check(
    requests: Sequence[Request], server: SimulatorServer, http: urllib3.PoolManager
) -> set[int | None]:
    """Each has a job of its own with its own picture; return the tasks that they share."""
    jobs = [request.jobs(timeout=PATIENCE) for request in requests]
    assert len({job.id for (job,) in jobs}) == len(requests)
    for number, (job,) in enumerate(jobs):
        frames = {"id": job.id, "start_frame": job.start_frame, "stop_frame": job.stop_frame}
        assert seen(server, http, frames) == [colour(number)]
    return {request.refresh().task_id for request in requests}


def test_threads_that_submit_at_the_same_time_share_few_imports(
    settings: Settings, server: SimulatorServer, http: urllib3.PoolManager
) -> None:
    """Their pool is empty: a task is made for the first, and one for all others."""
    with process(settings, server) as pool:
        requests = submit_at_once(pool, server, release=server.release_imports)
        assert len(check(requests, server, http)) == 2
        assert {each.refresh().outcome for each in requests} == {Outcome.COLD}
        assert pool.store.hand_outs()["scenes"] == {Outcome.COLD: COUNT}


def test_a_process_that_closes_sends_what_waits(
    settings: Settings, server: SimulatorServer, http: urllib3.PoolManager
) -> None:
    with process(settings, server) as pool:
        requests = submit_at_once(pool, server, release=server.release_imports)
    with process(settings, server) as other:
        states = {other.request(each.id).state for each in requests}
        assert states <= {RequestState.IMPORTING, RequestState.READY}
        with served(settings, server):
            assert len(check([other.request(each.id) for each in requests], server, http)) == 2


def test_what_a_process_could_not_send_waits_for_the_next(
    settings: Settings, server: SimulatorServer, http: urllib3.PoolManager
) -> None:
    """The server is busy for longer than a process that closes has time. Here it goes on after it
    has closed: its threads may still bring what they had begun to an end, which is one group."""
    hasty = replace(settings, daemon=replace(settings.daemon, stop_timeout=0.2))
    with process(hasty, server) as pool:
        requests = submit_at_once(pool, server, release=lambda: None)
    with process(settings, server) as other:
        waiting = [other.request(each.id) for each in requests]
        assert not [each for each in waiting if each.state.finished]
        server.release_imports()
        with served(settings, server):
            assert len(check(waiting, server, http)) in (2, 3)


def test_a_daemon_that_starts_meanwhile_serves_what_waits(
    settings: Settings, server: SimulatorServer, http: urllib3.PoolManager
) -> None:
    with process(settings, server) as pool:
        requests = submit_at_once(pool, server, release=lambda: None)
        with served(settings, server):
            wait_until(pool.store, pool.process.breaker.has_daemon)
            server.release_imports()
            assert len(check(requests, server, http)) == 2


@contextmanager
def served(settings: Settings, server: SimulatorServer) -> Iterator[Daemon]:
    credentials = AccessTokenCredentials(server.access_token)
    with (
        CvatClient(settings.cvat, credentials) as cvat,
        in_thread(Daemon(settings, cvat=cvat)) as daemon,
    ):
        yield daemon
