"""The last hour, or week: sampled levels, and requests of all processes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.clock import ManualClock
from support.happening import make_warm, serve

from pool.config.settings import Settings
from pool.observability.history import HOUR, History
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


def test_levels_are_sampled(
    history: History, store: Store, status: Configured, clock: ManualClock
) -> None:
    clock.advance(-clock.now() % 600)
    start = clock.now()
    history.run_once()
    make_warm(store, 1, 2)
    clock.advance(5.0)
    assert history.run_once() == 1
    clock.advance(5.0)
    history.run_once()
    # No daemon runs.
    clock.advance(20.0)
    make_warm(store, 3)
    history.run_once()
    hour = History(store, status, clock=clock).report()
    assert hour.interval == 10
    assert hour.at == [start, start + 10, start + 20, start + 30]
    levels = hour.templates["scenes"]
    assert levels.warm == [1, 2, None, 3]
    assert levels.least == [0, 2, None, 3]
    assert levels.creating == [0, 0, None, 0]
    assert levels.target == [3, 3, None, 3]


@pytest.mark.parametrize(
    ("seconds", "step"),
    [(300, 10), (3600, 10), (3601, 60), (21600, 60), (21601, 600), (604800, 600)],
)
def test_a_longer_time_has_larger_steps(
    history: History, clock: ManualClock, seconds: int, step: int
) -> None:
    history.run_once()
    clock.advance(seconds / 2)
    history.run_once()
    clock.advance(seconds / 2)
    report = history.report(seconds)
    assert report.interval == step
    assert seconds / 2 // step <= len(report.at) - 1 <= seconds / 2 // step + 1
    assert sum(warm is not None for warm in report.templates["scenes"].warm) == 2
    clock.advance(seconds / 2)
    assert len(history.report(seconds).at) == 1


def test_templates_that_come_and_go(
    history: History, status: Configured, clock: ManualClock
) -> None:
    before = status.settings
    history.run_once()
    template = before.templates["scenes"]
    status.settings = replace(before, templates={"new": replace(template, name="new")})
    clock.advance(10.0)
    history.run_once()
    hour = history.report()
    assert {name: levels.target for name, levels in hour.templates.items()} == {
        "new": [None, 3],
        "scenes": [3, None],
    }


def test_requests_are_those_of_the_last_hour(
    history: History, store: Store, clock: ManualClock
) -> None:
    serve(store, "old", now=clock.now())
    clock.advance(HOUR + 1)
    serve(store, "r1", now=clock.now(), took=2.0, server=0.5)
    clock.advance(1.0)
    serve(store, "r2", now=clock.now(), failed="import-failed")
    first, second = history.report().requests
    assert (first.request_id, first.seconds, first.server_seconds) == ("r1", 2.0, 0.5)
    assert (second.request_id, second.state) == ("r2", "failed")
    assert (second.code, second.error) == ("import-failed", "why")
