"""Whether a daemon says that it is of use, and what is wrong when it is not."""

from __future__ import annotations

import threading
from typing import Any, cast

import pytest
from support.clock import ManualClock
from support.daemons import ends, maintains
from support.waiting import PATIENCE, poll_until

from pool.errors import StoreError
from pool.maintenance.scheduler import ServiceRecord
from pool.model import Hold
from pool.observability import health as module
from pool.observability.health import Health, HealthReport, MaintainerCheck, ServerContact
from pool.process import Process
from pool.requests.breaker import SERVER
from pool.store import Store

INTERVAL = 100.0


@pytest.fixture
def contact(clock: ManualClock) -> ServerContact:
    contact = ServerContact(clock=clock)
    contact.call("ok")
    return contact


class Services:
    """A scheduler that runs nothing."""

    def __init__(self) -> None:
        self.running = True
        self.records = {"refill": ServiceRecord(every=INTERVAL, succeeded_at=0.0)}


@pytest.fixture
def scheduler() -> Services:
    return Services()


@pytest.fixture
def health(
    engine: Process, contact: ServerContact, scheduler: Services, clock: ManualClock
) -> Health:
    """The health of a daemon that has just taken over."""
    maintains(engine.store, until=clock.now() + 1e6, now=clock.now(), owner="me")
    return Health(
        engine.store,
        contact,
        lambda: [cast(Any, scheduler)],
        engine.templates,
        engine.store.configuration,
        owner="me",
        clock=clock,
    )


def look(health: Health, clock: ManualClock) -> HealthReport:
    clock.advance(module.ANSWER_FOR)
    return health.run_once()


def test_all_is_well(health: Health, clock: ManualClock) -> None:
    report = look(health, clock)
    assert report.ready
    assert report.checks.server.answered_seconds_ago == 1.0
    assert report.checks.scheduler.stale == ()


def test_a_store_that_cannot_be_written(
    health: Health, clock: ManualClock, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise StoreError("the disk that holds /var/lib/pool.db is full")

    monkeypatch.setattr(store, "check_writable", full, raising=False)
    report = look(health, clock)
    assert (report.ready, report.checks.store.ok) == (False, False)


@pytest.mark.parametrize("name", [SERVER, "scenes"])
def test_a_server_that_is_held_or_all_templates(
    health: Health, clock: ManualClock, store: Store, name: str
) -> None:
    hold = Hold(
        template=name,
        code="cvat-unreachable",
        reason="http://cvat.internal cannot be reached",
        since=clock.now(),
        retry_at=None,
    )
    store.hold(hold)
    report = look(health, clock)
    check = report.checks.server
    assert (check.ok, check.held, check.code) == (False, True, "cvat-unreachable")
    assert report.ready, "requests are accepted, and wait; another daemon could do no more"
    assert check.held_seconds == 1.0
    assert "internal" not in repr(report)
    store.release_hold(name, now=clock.now())
    assert look(health, clock).ready


@pytest.mark.parametrize("result", ["cvat-unreachable", "cvat-ambiguous", "error"])
def test_a_server_that_does_not_answer(
    health: Health, clock: ManualClock, contact: ServerContact, result: str
) -> None:
    contact.call(result)
    assert not look(health, clock).checks.server.ok
    contact.call("cvat-rejected")
    assert look(health, clock).ready, "a refusal is an answer"


def test_a_server_that_refuses_the_credentials(
    health: Health, clock: ManualClock, contact: ServerContact
) -> None:
    contact.call("cvat-unauthorized")
    check = look(health, clock).checks.server
    assert (check.ok, check.code) == (False, "cvat-unauthorized")
    contact.call("ok")
    assert look(health, clock).ready


def test_a_server_that_was_not_heard_from_for_long(health: Health, clock: ManualClock) -> None:
    clock.advance(module.SILENT_FOR)
    assert not look(health, clock).checks.server.ok


def test_a_server_that_nothing_was_asked_of_yet(
    engine: Process, scheduler: Services, clock: ManualClock
) -> None:
    health = Health(
        engine.store,
        ServerContact(clock=clock),
        lambda: [cast(Any, scheduler)],
        engine.templates,
        engine.store.configuration,
        owner="me",
        clock=clock,
    )
    check = look(health, clock).checks.server
    assert (check.ok, check.answered_seconds_ago) == (True, None)


def test_a_service_that_has_not_run_for_long(
    health: Health, clock: ManualClock, scheduler: Services
) -> None:
    clock.advance(module.STALE_INTERVALS * INTERVAL - module.ANSWER_FOR)
    assert look(health, clock).ready
    report = look(health, clock)
    assert (report.ready, report.checks.scheduler.stale) == (False, ("refill",))
    scheduler.records["refill"].succeeded_at = clock.monotonic()
    report = look(health, clock)
    assert report.ready
    assert report.checks.scheduler.last_success_seconds_ago == {"refill": 1.0}


def test_a_scheduler_that_has_ended_or_not_begun(
    engine: Process, contact: ServerContact, health: Health, clock: ManualClock, scheduler: Services
) -> None:
    scheduler.running = False
    assert not look(health, clock).checks.scheduler.ok
    none = Health(
        engine.store,
        contact,
        lambda: [],
        engine.templates,
        lambda: None,
        owner="me",
        clock=clock,
    )
    assert not look(none, clock).checks.scheduler.ok


def test_a_daemon_is_ready_whoever_maintains_the_store(
    health: Health, clock: ManualClock, store: Store
) -> None:
    assert look(health, clock).checks.maintainer == MaintainerCheck(ok=True, here=True)
    ends(store, now=clock.now())
    report = look(health, clock)
    assert report.ready
    assert report.checks.maintainer == MaintainerCheck(ok=False, here=False)
    maintains(store, until=clock.now() + 9, now=clock.now(), owner="another")
    report = look(health, clock)
    assert report.ready
    assert report.checks.maintainer == MaintainerCheck(ok=True, here=False)


def test_a_store_that_hangs_is_not_ok_in_time(
    health: Health, clock: ManualClock, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, hang = list[None](), threading.Event()

    def hanging() -> None:
        asked.append(None)
        assert hang.wait(PATIENCE)

    monkeypatch.setattr(store, "check_writable", hanging, raising=False)
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    try:
        for _ in range(3):
            report = look(health, clock)
            assert (report.ready, report.checks.store.ok) == (False, False)
            assert report.checks.scheduler.ok
        assert len(asked) == 1, "it is not asked once more"
    finally:
        hang.set()
    poll_until(lambda: look(health, clock).ready)


def test_whoever_asks_often_gets_the_same_answer_for_a_moment(
    health: Health, clock: ManualClock, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[None] = []
    monkeypatch.setattr(store, "check_writable", lambda: writes.append(None), raising=False)
    for _ in range(100):
        health.run_once()
    assert len(writes) == 1
    clock.advance(module.ANSWER_FOR)
    health.run_once()
    assert len(writes) == 2
