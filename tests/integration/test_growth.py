"""What happens again and again leaves nothing behind in the process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path

import pytest
from support.api import Api, waiting
from support.growth import grown
from support.pools import HERE, opened, serving, write_config
from support.streams import Stream
from support.waiting import poll_until

from pool import ImportFailed, PoolError, TaskPool
from pool.daemon import Daemon
from pool.errors import StoreError
from pool.events.feed import Service, Unsubscribe
from pool.maintenance import term as term_module
from pool.maintenance.scheduler import INTERVALS
from pool.observability import status as status_module
from pool.requests import dispatcher as dispatch_module
from pool.simulator import SimulatorServer

#: Seconds of a term of maintenance.
TERM = 0.4
#: Its requests wait, and it is never filled.
PATIENT = """
[templates.patient]
labels = []
pool = { min_size = 0, max_wait = "1h", on_empty = "wait" }
"""


@pytest.fixture
def daemon(
    tmp_path: Path, simulator: SimulatorServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Daemon]:
    monkeypatch.setattr(term_module, "TERM", TERM)
    monkeypatch.setattr(term_module, "RENEWAL", 0.05)
    monkeypatch.setitem(INTERVALS, "reload", 0.05)
    monkeypatch.setattr(dispatch_module, "FORGET_EVERY", 0.0)
    # A status has as many sizes of imports at the most.
    monkeypatch.setattr(status_module, "MOST_IMPORTS", 2)
    path = write_config(tmp_path, simulator)
    path.write_text(path.read_text() + PATIENT)
    with serving(path, simulator) as daemon:
        daemon.process.store.pause("patient", now=daemon.process.clock.now())
        yield daemon


@pytest.fixture
def api(daemon: Daemon) -> Iterator[Api]:
    with Api(daemon.url) as api:
        yield api


def test_terms_of_maintenance(daemon: Daemon) -> None:
    """Another daemon maintains the store for a while, and this one again."""
    store, clock = daemon.process.store, daemon.process.clock

    def lost() -> bool:
        now = clock.now()
        present = store.present_term(now=now)
        if present is not None and present.owner == daemon.process.owner:
            store.renew_term(present.term, present.owner, seconds=0.0, clock=lambda: now)
        store.begin_term("another", seconds=TERM, clock=lambda: now)
        return daemon.maintenance is None

    def term() -> None:
        poll_until(lost)
        poll_until(lambda: daemon.maintenance is not None)
        assert daemon.observation.health.run_once().ready

    assert grown(daemon, term) == {}


def test_requests_that_are_cancelled_while_they_wait(daemon: Daemon, api: Api) -> None:
    def submit_and_cancel() -> None:
        queued = api.submit([("a.jpg", b"x")], template="patient")
        assert (queued.status, queued.json["state"]) == (202, "queued")
        assert api.delete(queued.headers["location"]).status == 204
        daemon.dispatcher.run_once()

    assert grown(daemon, submit_and_cancel) == {}


def test_streams_that_cannot_begin(
    daemon: Daemon, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The place in the events cannot be read, once the feed has been asked to watch."""
    feed, store = daemon.process.feed, daemon.process.store
    on, last_event_id = feed.on, store.last_event_id
    broken = threading.Event()

    def listen_and_break(service: Service, *kinds: str) -> Unsubscribe:
        unsubscribe = on(service, *kinds)
        broken.set()
        return unsubscribe

    def read() -> int:
        if broken.is_set():
            broken.clear()
            raise StoreError("the disk is away")
        return last_event_id()

    def listen() -> None:
        answer = api._http.request("GET", f"{api.url}/v1/events")
        assert answer.status == 503

    monkeypatch.setattr(feed, "on", listen_and_break)
    monkeypatch.setattr(store, "last_event_id", read, raising=False)
    assert grown(daemon, listen) == {}


def test_templates_that_come_and_go(daemon: Daemon, api: Api) -> None:
    path, numbers = daemon.settings.path, count()
    assert path is not None
    text = path.read_text()

    def reload() -> None:
        name = f"template-{next(numbers)}"
        path.write_text(f"{text}\n[templates.{name}]\nlabels = []\npool = {{ min_size = 1 }}\n")
        poll_until(lambda: name in daemon.process.templates)
        lease = api.lease(name, timeout=20)
        assert lease.status == 201
        path.write_text(text)
        poll_until(lambda: name not in daemon.process.templates)

    assert grown(daemon, reload) == {}


def test_calls_of_all_kinds(daemon: Daemon, api: Api, image: bytes) -> None:
    """What daily work consists of, good and bad."""

    def call() -> None:
        sent = api.submit([("a.jpg", image)], wait=20)
        assert sent.status == 201
        assert api.get(sent.headers["location"], headers=waiting(5)).status == 200
        assert api.submit([("a.jpg", b"no image")], wait=20).json["status"] == 422
        lease = api.lease(timeout=20)
        assert api.get(lease.headers["location"], headers=waiting(0)).status == 200
        assert api.delete(lease.headers["location"]).status == 204
        assert api.lease("strict").status == 503
        stream = Stream(api._http.request("GET", f"{api.url}/v1/events", preload_content=False))
        stream.response.close()

    assert grown(daemon, call) == {}


def test_calls_in_this_process(daemon: Daemon, image: bytes) -> None:
    """As of those over HTTP, of a pool that somebody uses as a library."""

    def call(pool: TaskPool) -> None:
        pool.release(pool.acquire("scenes", timeout=20))
        assert pool.submit("scenes", [("a.jpg", image)]).jobs(timeout=20)
        with pytest.raises(ImportFailed):
            pool.submit("scenes", [("a.jpg", b"no image")]).jobs(timeout=20)
        for template in ("strict", "nonsense"):
            with pytest.raises(PoolError):
                pool.acquire(template)
        with pytest.raises(PoolError):
            pool.acquire("patient", timeout=0.05)
        pool.subscribe(print)()

    with opened(HERE, daemon) as pool:
        assert grown(pool, partial(call, pool)) == {}
