"""The machine's clock is set, by hours, forward and back: nothing is damaged by it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from support.clock import ManualClock
from support.scripted import ScriptedCvat
from support.stepped import CONTENT, READY, Start, Stepped, caller

from pool.config.settings import Template
from pool.errors import CvatForbidden, CvatRejected, StoreError
from pool.maintenance.heartbeat import TERM
from pool.model import TaskState, new_id
from pool.store import CreateLimit

HOUR = 3600.0
FILES = [("a.jpg", CONTENT)]
both_ways = pytest.mark.parametrize("hours", [6, -6, 40, -40])


@pytest.fixture
def daemon(daemon: Stepped) -> Stepped:
    """One with a full pool of three, that has looked at the clock."""
    daemon.advance(60.0)
    look(daemon)
    return daemon


def look(daemon: Stepped) -> None:
    """Any service does, before it begins."""
    daemon.run("cleanup")


def set_clock(daemon: Stepped, hours: float) -> None:
    """By the new time its term may be over; it begins another within two seconds."""
    daemon.clock.off += hours * HOUR
    daemon.renew()


def expiry(daemon: Stepped, lease_id: str) -> datetime:
    expires_at = daemon.pool.lease(lease_id).expires_at
    assert expires_at is not None
    return expires_at


def in_half_an_hour(daemon: Stepped) -> datetime:
    return datetime.fromtimestamp(daemon.clock.now() + 1800.0, UTC)


@both_ways
def test_a_caller_keeps_its_task_for_as_long_as_it_was_given(daemon: Stepped, hours: float) -> None:
    lease = daemon.pool.acquire("scenes", ttl=1800.0)
    daemon.advance(1.0)
    set_clock(daemon, hours)
    assert daemon.run("lease_expiry") == 0
    others = [daemon.pool.acquire("scenes").task_id for _ in range(2)]
    assert lease.task_id not in others
    daemon.advance(1790.0)
    assert daemon.run("lease_expiry") == 0
    daemon.advance(20.0)
    assert daemon.run("lease_expiry") == 1


@both_ways
def test_what_was_written_by_the_new_clock_already_is_left_as_it_is(
    daemon: Stepped, hours: float
) -> None:
    set_clock(daemon, hours)
    lease = daemon.pool.acquire("scenes", ttl=1800.0)
    daemon.pool.prewarm("scenes", 9, duration=1800.0)
    until = in_half_an_hour(daemon)
    assert lease.expires_at == until
    # The daemon looks a while after that.
    daemon.advance(30.0)
    look(daemon)
    assert expiry(daemon, lease.id) == until
    (row,) = daemon.pool.status().templates
    assert (row.prewarm_size, row.prewarm_until) == (9, until)


@both_ways
def test_the_clock_is_noticed_once(daemon: Stepped, hours: float) -> None:
    lease = daemon.pool.acquire("scenes", ttl=1800.0)
    set_clock(daemon, hours)
    until = in_half_an_hour(daemon)
    for _ in range(2):
        daemon.advance(1.0)
        look(daemon)
        assert expiry(daemon, lease.id) == until


def test_a_clock_that_was_set_while_the_store_was_busy_is_noticed_later(
    daemon: Stepped, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = daemon.pool.acquire("scenes", ttl=1800.0)
    set_clock(daemon, 6)
    until = in_half_an_hour(daemon)

    def refuse(*_: object, **__: object) -> int:
        raise StoreError("locked")

    with monkeypatch.context() as patch:
        patch.setattr(daemon.store, "move_times", refuse)
        with pytest.raises(StoreError):
            daemon.run("lease_expiry")
    daemon.advance(7.0)
    assert daemon.run("lease_expiry") == 0
    assert expiry(daemon, lease.id) == until


@both_ways
def test_the_work_of_a_process_that_is_alive_is_left_to_it(
    daemon: Stepped, cvat: ScriptedCvat, clock: ManualClock, hours: float
) -> None:
    with caller(daemon.process.settings, daemon.store, cvat, clock) as other:
        request = other.submit("scenes", FILES)
        other.process.heartbeat.run_once()
        daemon.advance(1.0)
        set_clock(daemon, hours)
        assert daemon.run("adopt") == 0
        other.process.heartbeat.run_once()
        daemon.advance(TERM - 1.0)
        assert daemon.run("adopt") == 0
        daemon.advance(2.0)
        assert daemon.run("adopt") == 1, "it has died meanwhile"
        # It has as much time as it had, so its jobs still count.
        daemon.import_all()
        assert daemon.states(request.id) == {READY}


@both_ways
def test_old_tasks_are_replaced_no_faster_than_others(
    daemon: Stepped, template: Template, hours: float
) -> None:
    set_clock(daemon, hours)
    most = template.pool.create_concurrency
    for _ in range(3):
        assert daemon.run("retirement") <= most
        assert daemon.levels()["warm"] >= template.pool.min_size - most
        daemon.fill()
        assert daemon.levels()["warm"] == template.pool.min_size


@pytest.mark.parametrize("noticed", [True, False])
@both_ways
def test_nothing_is_held_for_hours(
    daemon: Stepped, cvat: ScriptedCvat, hours: float, noticed: bool
) -> None:
    """Unless it was noticed, the clock was set while no daemon ran."""
    daemon.pool.acquire("scenes")
    cvat.failures["create_task"] = [CvatForbidden("read-only") for _ in range(9)]
    daemon.fill()
    cvat.failures.clear()
    assert list(daemon.store.holds()) == ["scenes"]
    if noticed:
        daemon.advance(1.0)
    set_clock(daemon, hours)
    if noticed:
        look(daemon)
    daemon.fill()
    assert daemon.levels()["warm"] == 3


@both_ways
def test_the_pool_neither_grows_nor_stands_still(
    daemon: Stepped, cvat: ScriptedCvat, hours: float
) -> None:
    """What was asked for in times to come is no demand, and no sign of the foreground."""
    before = daemon.pool.status().templates[0].target
    for _ in range(60):
        cvat.failures["upload"] = [CvatRejected("image_quality")]
        with pytest.raises(CvatRejected):
            daemon.pool.submit("scenes", FILES)
        daemon.advance(60.0)
        daemon.fill()
    set_clock(daemon, hours)
    look(daemon)
    assert daemon.pool.status().templates[0].target == before
    daemon.fill()
    assert daemon.levels()["warm"] == before


@both_ways
def test_a_create_that_died_is_settled(daemon: Stepped, template: Template, hours: float) -> None:
    """The one of a process that was killed: it counts as under way until then."""
    pooled = daemon.store.begin_create(
        new_id(),
        template.name,
        template.fingerprint,
        limit=CreateLimit(capacity=9, concurrency=9),
        owner="killed",
        now=daemon.clock.now(),
    )
    assert pooled is not None
    set_clock(daemon, hours)
    daemon.advance(1.0)
    daemon.run("reconcile")
    task = daemon.store.task(pooled.id)
    assert task is not None and task.state is TaskState.FAILED


@both_ways
def test_a_killed_daemon_is_replaced(daemon: Stepped, start: Start, hours: float) -> None:
    set_clock(daemon, hours)
    daemon.clock.advance(7.0)
    assert start().renew()
