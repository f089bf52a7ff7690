"""The last hour: sampled levels, and requests of all processes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.clock import ManualClock
from support.happening import make_warm, serve

from pool.config.settings import Settings
from pool.observability.history import EVERY, KEPT_FOR, History
from pool.observability.status import read_status
from pool.process import Process
from pool.status import Status
from pool.store import Store


class Configured:
    """The status, of a configuration that the test changes."""

    def __init__(self, store: Store, settings: Settings, clock: ManualClock) -> None:
        self.store, self.settings, self.clock = store, settings, clock

    def __call__(self) -> Status:
        return read_status(self.store, self.settings, self.settings.templates, now=self.clock.now())


@pytest.fixture
def status(engine: Process, settings: Settings, clock: ManualClock) -> Configured:
    return Configured(engine.store, settings, clock)


@pytest.fixture
def history(store: Store, status: Configured, clock: ManualClock) -> History:
    return History(store, status, clock=clock)


def test_levels_are_sampled(history: History, store: Store, clock: ManualClock) -> None:
    start = clock.now()
    history.run_once()
    make_warm(store, 1, 2)
    clock.advance(EVERY)
    assert history.run_once() == 2
    hour = history.hour()
    assert (hour.interval, hour.at) == (EVERY, [start, start + EVERY])
    assert hour.templates["scenes"].warm == [0, 2]
    assert hour.templates["scenes"].creating == [0, 0]
    assert hour.templates["scenes"].target == [3, 3]


def test_only_the_last_hour_is_kept(history: History, clock: ManualClock) -> None:
    for _ in range(int(KEPT_FOR / EVERY) + 10):
        history.run_once()
        clock.advance(EVERY)
    hour = history.hour()
    assert len(hour.at) == len(hour.templates["scenes"].warm) == KEPT_FOR / EVERY
    assert hour.at[0] == clock.now() - KEPT_FOR
    clock.advance(KEPT_FOR / 2)
    assert len(history.hour().at) == KEPT_FOR / EVERY / 2, "a daemon that slept"


def test_templates_that_come_and_go(
    history: History, status: Configured, clock: ManualClock
) -> None:
    before = status.settings
    history.run_once()
    template = before.templates["scenes"]
    status.settings = replace(before, templates={"new": replace(template, name="new")})
    history.run_once()
    hour = history.hour()
    assert {name: levels.target for name, levels in hour.templates.items()} == {
        "new": [None, 3],
        "scenes": [3, None],
    }


def test_requests_are_those_of_the_last_hour(
    history: History, store: Store, clock: ManualClock
) -> None:
    serve(store, "old", now=clock.now())
    clock.advance(KEPT_FOR + 1)
    serve(store, "r1", now=clock.now(), took=2.0, server=0.5)
    clock.advance(1.0)
    serve(store, "r2", now=clock.now(), failed="import-failed")
    first, second = history.hour().requests
    assert (first.request_id, first.seconds, first.server_seconds) == ("r1", 2.0, 0.5)
    assert (second.request_id, second.state) == ("r2", "failed")
    assert (second.code, second.error) == ("import-failed", "why")
