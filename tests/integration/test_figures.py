"""Figures of the pool: each is computed in one place, and the same wherever it is read."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.api import Api, Serving, serving, settings_for
from support.clock import ManualClock
from support.scripted import ScriptedCvat
from support.stepped import READY, Stepped, caller, come_back, go_down
from support.waiting import PATIENCE, wait_until

from pool import TaskPool, TemplateStatus
from pool.config.settings import PoolSettings, Template
from pool.simulator import SimulatorServer
from pool.store import open_store

#: Seconds that a create takes here.
LEAD_TIME = 20.0
#: The time of a request, and its two parts.
PARTS = ("seconds", "server_seconds", "held_seconds", "own_seconds")


@pytest.fixture
def template() -> Template:
    pool = PoolSettings(min_size=1, max_size=100, max_wait=0.0, create_concurrency=9)
    return Template(name="scenes", labels=({"name": "car"},), pool=pool)


@pytest.fixture
def slow(cvat: ScriptedCvat, clock: ManualClock) -> None:
    """Creates take :data:`LEAD_TIME` seconds."""
    cvat.before = lambda operation: clock.advance(LEAD_TIME) if operation == "create_task" else None


def status_of(pool: TaskPool) -> TemplateStatus:
    (row,) = pool.status().templates
    return row


def measured(api: Api) -> dict[str, float]:
    """What the metrics expose, of one template."""
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(api.get("/metrics").body.decode())
        for sample in family.samples
    }


def ask(daemon: Stepped, times: int = 1) -> None:
    for _ in range(times):
        daemon.pool.acquire("scenes")


# --- The target -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("slow")
def test_the_target_is_sized_by_the_lead_time_that_was_measured(
    empty: Stepped, cvat: ScriptedCvat, clock: ManualClock, store_url: str
) -> None:
    assert empty.one_round() == 1
    assert status_of(empty.pool).lead_time == LEAD_TIME
    cvat.before = lambda _: None
    ask(empty, 30)
    clock.advance(1.0)
    shown = status_of(empty.pool)
    # 30 in a minute are 10 in a lead time, and half as much again for the hit rate of 0.99; with
    # the second that is assumed before anything was measured they would be 3.
    assert shown.peak_rate == 0.5
    assert 15 <= shown.target <= 25
    # Another process, and one after a restart, know it too.
    elsewhere = open_store(store_url)
    with caller(empty.process.settings, elsewhere, cvat, clock) as other:
        assert status_of(other) == shown
    elsewhere.close()
    empty.fill()
    assert status_of(empty.pool).warm == shown.target


def test_the_lead_time_follows_what_creates_take(
    empty: Stepped, cvat: ScriptedCvat, clock: ManualClock
) -> None:
    for seconds, learned in ((10.0, 10.0), (20.0, 12.0), (2.0, 10.0)):

        def take_long(operation: str, seconds: float = seconds) -> None:
            if operation == "create_task":
                clock.advance(seconds)

        cvat.before = take_long
        assert empty.one_round() == 1
        assert status_of(empty.pool).lead_time == pytest.approx(learned)
        cvat.before = lambda _: None
        ask(empty)
        # So long after the hand-out that the demand of it is forgotten.
        clock.advance(1000.0)


# --- The rate -------------------------------------------------------------------------------------


def test_the_rate_is_that_of_the_last_minute(
    empty: Stepped, template: Template, clock: ManualClock
) -> None:
    ask(empty, 120)
    clock.advance(1.0)
    busy = status_of(empty.pool)
    assert (busy.rate, busy.peak_rate) == (2.0, 2.0)
    clock.advance(120.0)
    quiet = status_of(empty.pool)
    assert quiet.rate == 0.0
    assert quiet.peak_rate == 120 / 300
    assert quiet.target > template.pool.min_size, "the pool stays ready for a while"


# --- Whose time it was ----------------------------------------------------------------------------


def test_the_time_that_cvat_was_away_is_not_the_pools(daemon: Stepped, cvat: ScriptedCvat) -> None:
    go_down(cvat)
    request = daemon.accept()
    daemon.drain()
    daemon.advance(600.0)
    come_back(cvat)
    daemon.serve()
    daemon.import_all()
    assert daemon.states(request) == {READY}
    with daemon.api as api:
        wait_until(daemon.store, lambda: measured(api)["cvat_pool_request_seconds_count"])
        shown = {name: measured(api)[f"cvat_pool_request_{name}_sum"] for name in PARTS}
        (ended,) = api.get("/v1/history").json["requests"]
    assert shown["seconds"] == pytest.approx(600.0, abs=2.0)
    assert shown["held_seconds"] == pytest.approx(600.0, abs=2.0)
    assert shown["server_seconds"] == pytest.approx(0.0, abs=2.0)
    assert shown["own_seconds"] == pytest.approx(0.0, abs=2.0)
    assert shown["seconds"] == pytest.approx(sum(shown[name] for name in PARTS[1:]))
    for name in PARTS[:3]:
        assert ended[name] == pytest.approx(shown[name])


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
        wait_until(dry.process.store, lambda: dry.process.store.waiting("dry") == 2)
        (row,) = api.get("/v1/templates").json["templates"]
        assert (row["waiting"], row["queued"], row["target"]) == (2, 7, 0)
        assert row["oldest_waiting_since"] == queued[0].json["created_at"]
        shown = measured(api)
        assert shown["cvat_pool_leases_waiting"] == 2
        assert shown["cvat_pool_requests_queued"] == 7
        assert 0.0 < shown["cvat_pool_oldest_waiting_seconds"] < PATIENCE
        dry.fill()
        assert [caller.result().status for caller in callers] == [201, 201]
    for each in queued:
        ended = api.get(each.headers["location"], headers={"Prefer": "wait=20"}).json
        assert (ended["state"], ended["outcome"]) == ("ready", "wait")
    (row,) = api.get("/v1/templates").json["templates"]
    assert (row["waits"], row["waiting"], row["oldest_waiting_since"]) == (9, 0, None)
