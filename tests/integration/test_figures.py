"""Figures of the pool: each is computed in one place, and the same wherever it is read."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.api import Serving, serving, settings_for
from support.clock import ManualClock
from support.scripted import ScriptedCvat
from support.services import fill, one_round, open_lease, refill_of
from support.stepped import READY, Stepped, come_back, go_down

from pool import TaskPool, TemplateStatus
from pool.config.settings import PoolSettings, Template
from pool.observability.observation import Observation
from pool.process import Process
from pool.simulator import SimulatorServer
from pool.store import open_store

#: Seconds that a create takes here.
LEAD_TIME = 20.0
#: The time of a request, and its two parts.
PARTS = ("seconds", "server_seconds", "own_seconds")


@pytest.fixture
def template() -> Template:
    pool = PoolSettings(min_size=1, max_size=100, max_wait=0.0, create_concurrency=9)
    return Template(name="scenes", labels=({"name": "car"},), pool=pool)


@pytest.fixture
def slow(cvat: ScriptedCvat, clock: ManualClock) -> None:
    """Creates take :data:`LEAD_TIME` seconds."""
    cvat.before = lambda operation: clock.advance(LEAD_TIME) if operation == "create_task" else None


def status_of(engine: Process) -> TemplateStatus:
    (row,) = TaskPool.over(engine).status().templates
    return row


def measured(observation: Observation) -> dict[str, float]:
    """What the metrics expose, of one template."""
    text, _ = observation.metrics.expose()
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def ask(engine: Process, template: Template, times: int = 1) -> None:
    for _ in range(times):
        open_lease(engine, template)


# --- The target -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("slow")
def test_the_target_is_sized_by_the_lead_time_that_was_measured(
    engine: Process, template: Template, cvat: ScriptedCvat, clock: ManualClock, store_url: str
) -> None:
    refill = refill_of(engine)
    assert one_round(refill, cvat) == 1
    assert status_of(engine).lead_time == LEAD_TIME
    cvat.before = lambda _: None
    ask(engine, template, 30)
    clock.advance(1.0)
    shown = status_of(engine)
    # 30 in a minute are 10 in a lead time, and half as much again for the hit rate of 0.99; with
    # the second that is assumed before anything was measured they would be 3.
    assert shown.peak_rate == 0.5
    assert 15 <= shown.target <= 25
    # Another process, and one after a restart, know it too.
    elsewhere = open_store(store_url)
    try:
        other = Process(engine.settings, store=elsewhere, cvat=cast(Any, cvat), clock=clock)
        assert status_of(other) == shown
        fill(refill_of(other))
    finally:
        elsewhere.close()
    assert status_of(engine).warm == shown.target


def test_the_lead_time_follows_what_creates_take(
    engine: Process, template: Template, cvat: ScriptedCvat, clock: ManualClock
) -> None:
    refill = refill_of(engine)
    for seconds, learned in ((10.0, 10.0), (20.0, 12.0), (2.0, 10.0)):

        def take_long(operation: str, seconds: float = seconds) -> None:
            if operation == "create_task":
                clock.advance(seconds)

        cvat.before = take_long
        assert one_round(refill, cvat) == 1
        assert status_of(engine).lead_time == pytest.approx(learned)
        cvat.before = lambda _: None
        ask(engine, template)
        # So long after the hand-out that the demand of it is forgotten.
        clock.advance(1000.0)


# --- The rate -------------------------------------------------------------------------------------


def test_the_rate_is_that_of_the_last_minute(
    engine: Process, template: Template, clock: ManualClock
) -> None:
    ask(engine, template, 120)
    clock.advance(1.0)
    busy = status_of(engine)
    assert (busy.rate, busy.peak_rate) == (2.0, 2.0)
    clock.advance(120.0)
    quiet = status_of(engine)
    assert quiet.rate == 0.0
    assert quiet.peak_rate == 120 / 300
    assert quiet.target > template.pool.min_size, "the pool stays ready for a while"


# --- Whose time it was ----------------------------------------------------------------------------


def test_the_time_that_cvat_was_away_is_not_the_pools(daemon: Stepped, cvat: ScriptedCvat) -> None:
    observation = Observation(daemon.process)
    go_down(cvat)
    request = daemon.accept()
    daemon.drain()
    daemon.advance(600.0)
    come_back(cvat)
    daemon.serve()
    daemon.import_all()
    assert daemon.states(request) == {READY}
    observation.metrics.take(daemon.store.events_after(0, limit=99))
    shown = {name: measured(observation)[f"cvat_pool_request_{name}_sum"] for name in PARTS}
    assert shown["seconds"] == pytest.approx(600.0, abs=2.0)
    assert shown["server_seconds"] == pytest.approx(600.0, abs=2.0)
    assert shown["own_seconds"] == pytest.approx(0.0, abs=2.0)
    (ended,) = observation.history.hour().requests
    assert ended.server_seconds == pytest.approx(shown["server_seconds"])


# --- Who waits ------------------------------------------------------------------------------------


@pytest.fixture
def dry(simulator: SimulatorServer, store_url: str) -> Iterator[Serving]:
    """A template of which nothing is kept warm, and whose callers wait for what they want."""
    pool = PoolSettings(min_size=0, max_size=20, max_wait=20.0, on_empty="wait")
    settings = settings_for(simulator.url, store_url, Template(name="dry", pool=pool))
    with serving(settings, simulator.access_token) as served:
        yield served


def test_what_waits_is_counted_once_and_is_a_reason_to_create(dry: Serving, image: bytes) -> None:
    api = dry.api
    queued = [api.submit([("a.jpg", image)], template="dry") for _ in range(7)]
    assert {each.json["state"] for each in queued} == {"queued"}
    with ThreadPoolExecutor(2) as threads:
        callers = [threads.submit(api.lease, "dry") for _ in range(2)]
        while dry.process.store.waiting("dry") < 2:
            threading.Event().wait(0.005)
        (row,) = api.get("/v1/templates").json["templates"]
        assert (row["waiting"], row["queued"], row["target"]) == (2, 7, 0)
        shown = measured(Observation(dry.process))
        assert shown["cvat_pool_leases_waiting"] == 2
        assert shown["cvat_pool_requests_queued"] == 7
        dry.fill()
        assert [caller.result().status for caller in callers] == [201, 201]
    for each in queued:
        ended = api.get(each.headers["location"], headers={"Prefer": "wait=20"}).json
        assert (ended["state"], ended["outcome"]) == ("ready", "wait")
    (row,) = api.get("/v1/templates").json["templates"]
    assert (row["waits"], row["waiting"]) == (9, 0)
