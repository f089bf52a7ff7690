"""The store is away for longer than a heartbeat's term: all are late, and none is taken for dead.

It is away while a test passes time in one leap: no process renews its claim meanwhile, as when a
server is restarted or a disk hangs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from conformance.store_factories import FACTORIES
from support.clock import ManualClock, SkippingClock
from support.scripted import ScriptedCvat
from support.stepped import CONTENT, IMPORTING, Start, Stepped, caller, fill_for
from support.waiting import PATIENCE

from pool import TaskPool
from pool.config.settings import Settings, StoreSettings, Template
from pool.errors import PoolError, StoreError
from pool.maintenance import heartbeat
from pool.maintenance.heartbeat import PERIOD, TERM
from pool.process import Process
from pool.store import Store

HOUR = 3600.0
#: At first some are late, and others are not yet.
AWAY = pytest.mark.parametrize("away", [TERM - PERIOD + 0.5, TERM + 1.0, HOUR])


@pytest.fixture(params=FACTORIES)
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return FACTORIES[request.param](tmp_path)


@pytest.fixture
def settings(template: Template, store_url: str, tmp_path: Path) -> Settings:
    store = StoreSettings(url=store_url, spool=tmp_path)
    return Settings(store=store, templates={template.name: template})


@dataclass(frozen=True)
class Work:
    """A request, the process that is at it, and what has the process go on."""

    request_id: str
    process: Process
    finish: Callable[[], None]


@contextmanager
def in_the_middle(
    cvat: ScriptedCvat, operation: str, call: Callable[[], object], process: Process
) -> Iterator[Work]:
    """While a process calls CVAT, for the one request that there is."""
    begun, go_on, before = threading.Event(), threading.Event(), cvat.before

    def hang(called: str) -> None:
        if called == operation:
            begun.set()
            assert go_on.wait(PATIENCE)

    cvat.before = hang
    thread = threading.Thread(target=call)

    def finish() -> None:
        go_on.set()
        thread.join(PATIENCE)

    thread.start()
    try:
        assert begun.wait(PATIENCE)
        # The calls of others do not hang.
        cvat.before = before
        [request] = process.store.requests().requests
        yield Work(request.id, process, finish)
    finally:
        finish()


@pytest.fixture(params=["waiting", "sending"])
def work(
    request: pytest.FixtureRequest,
    settings: Settings,
    store: Store,
    cvat: ScriptedCvat,
    clock: ManualClock,
) -> Iterator[Work]:
    """A call of a library waits for its task, which is being made, or sends its data."""
    with caller(settings, store, cvat, clock) as other:
        if request.param == "sending":
            fill_for(other)
        operation = {"waiting": "create_task", "sending": "upload"}[request.param]

        def submit() -> None:
            # Unless another process has taken it over.
            with suppress(PoolError):
                other.submit("scenes", [("a.jpg", CONTENT)])

        with in_the_middle(cvat, operation, submit, other.process) as work:
            yield work


def judge(daemon: Stepped) -> None:
    """Run the services that take over what processes that are gone have left."""
    daemon.run("adopt")
    daemon.serve()


def assert_is_served(daemon: Stepped, work: Work) -> None:
    assert daemon.read(work.request_id).owner == work.process.owner
    work.finish()
    assert daemon.read(work.request_id).state is IMPORTING


@AWAY
def test_the_first_process_that_is_back_takes_over_nothing(
    work: Work, empty: Stepped, clock: ManualClock, away: float
) -> None:
    clock.advance(PERIOD)
    empty.renew()
    clock.advance(away)
    # Its services may be back before its own heartbeat is.
    judge(empty)
    empty.renew()
    judge(empty)
    empty.advance(PERIOD)
    judge(empty)
    work.process.heartbeat.run_once()
    empty.advance(TERM - 1.0)
    judge(empty)
    assert_is_served(empty, work)


@AWAY
def test_a_daemon_that_is_started_after_it_takes_over_nothing(
    work: Work, start: Start, clock: ManualClock, away: float
) -> None:
    clock.advance(away)
    daemon = start()
    judge(daemon)
    daemon.advance(TERM - 1.0)
    judge(daemon)
    assert_is_served(daemon, work)


@AWAY
def test_another_daemon_leaves_accepted_requests_to_the_one_that_sends_them(
    daemon: Stepped, start: Start, cvat: ScriptedCvat, clock: ManualClock, away: float
) -> None:
    def accept() -> None:
        daemon.accept()
        daemon.drain()

    with in_the_middle(cvat, "upload", accept, daemon.process) as work:
        clock.advance(away)
        heir = start()
        judge(heir)
        heir.advance(TERM - 1.0)
        judge(heir)
        daemon.process.heartbeat.run_once()
        heir.advance(TERM - 1.0)
        judge(heir)
        assert_is_served(heir, work)


def test_a_process_that_is_not_back_a_term_later_is_gone(
    work: Work, empty: Stepped, clock: ManualClock
) -> None:
    clock.advance(HOUR)
    empty.renew()
    empty.advance(TERM + PERIOD)
    assert empty.run("adopt") == 1
    assert empty.read(work.request_id).owner == empty.process.owner


@pytest.mark.parametrize("away", ["fails", "takes long"])
def test_a_heartbeat_that_came_too_late_is_followed_by_another_at_once(
    settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch, away: str
) -> None:
    """What it says is from before the store was away."""
    clock, again, renew, calls = SkippingClock(), threading.Event(), store.renew_owner, 0

    def renew_late(owner: str, *, until: float, **presence: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            monkeypatch.setattr(heartbeat, "PERIOD", HOUR)
            if away == "fails":
                raise StoreError("away")
            clock.skip(HOUR)
        if calls == 3:
            again.set()
        renew(owner, until=until, **presence)

    monkeypatch.setattr(heartbeat, "PERIOD", 0.01)
    monkeypatch.setattr(heartbeat, "RETRY", 0.01, raising=False)
    monkeypatch.setattr(store, "renew_owner", renew_late)
    with closing(
        TaskPool(settings, store=store, cvat=cast(Any, ScriptedCvat()), clock=clock)
    ) as pool:
        pool.process.start()
        assert again.wait(PATIENCE)
