"""The machine's clock is set, by hours, forward and back: nothing is damaged by it."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from support.clock import ManualClock
from support.scripted import ScriptedCvat
from support.services import PATIENCE, fill, open_lease, refill_of

from pool import TaskPool
from pool.clock import SystemClock
from pool.config.settings import Template
from pool.config.source import build_upload
from pool.errors import CvatForbidden, StoreError
from pool.maintenance.clock_jumps import ClockJumps
from pool.maintenance.heartbeat import TERM
from pool.maintenance.lease_expiry import LeaseExpiry
from pool.maintenance.reconcile import Reconcile
from pool.maintenance.retirement import Retirement
from pool.maintenance.scheduler import Scheduler
from pool.model import Handout, RequestState, TaskState, new_id
from pool.process import Process
from pool.store import CreateLimit, NewRequest

HOUR = 3600.0
both_ways = pytest.mark.parametrize("hours", [6, -6, 40, -40])


@dataclass
class World:
    """A full pool of three, and the services as the daemon has them, each run by hand."""

    process: Process
    cvat: ScriptedCvat
    clock: ManualClock

    def __post_init__(self) -> None:
        engine, clock = self.process, self.clock
        self.template: Template = engine.templates["scenes"]
        self.refill = refill_of(engine)
        self.timekeeping = ClockJumps(engine.store, clock=clock)
        self.expiry = LeaseExpiry(engine.store, engine.cvat(), clock=clock)
        self.retirement = Retirement(engine.store, engine.templates, clock=clock)
        self.reconcile = Reconcile(
            engine.store,
            engine.cvat(),
            engine.templates,
            http_timeout=30.0,
            verify_every=600.0,
            clock=clock,
        )

    def set_clock(self, hours: float) -> None:
        self.clock.off += hours * HOUR

    def run(self, service: Any) -> Any:
        """As the scheduler does it."""
        self.timekeeping.run_once()
        return service.run_once()

    def count(self, state: TaskState) -> int:
        return len(self.process.store.tasks(states=[state]))


@pytest.fixture
def world(engine: Process, cvat: ScriptedCvat, clock: ManualClock) -> World:
    world = World(engine, cvat, clock)
    assert fill(world.refill) == 3
    clock.advance(60.0)
    world.timekeeping.run_once()
    return world


@both_ways
def test_a_caller_keeps_its_task_for_as_long_as_it_was_given(world: World, hours: float) -> None:
    opened = open_lease(world.process, world.template, ttl=1800.0)
    world.clock.advance(1.0)
    world.set_clock(hours)
    assert world.run(world.expiry) == 0
    others = [open_lease(world.process, world.template) for _ in range(2)]
    assert opened.task is not None
    assert opened.task.id not in [other.task.id for other in others if other.task is not None]
    world.clock.advance(1790.0)
    assert world.run(world.expiry) == 0
    world.clock.advance(20.0)
    assert world.run(world.expiry) == 1


@both_ways
def test_what_was_written_by_the_new_clock_already_is_left_as_it_is(
    world: World, hours: float
) -> None:
    pool = TaskPool.over(world.process)
    world.set_clock(hours)
    lease = open_lease(world.process, world.template, ttl=1800.0).lease
    pool.prewarm("scenes", 9, duration=1800.0)
    until = datetime.fromtimestamp(world.clock.now() + 1800.0, UTC)
    assert pool.lease(lease.id).expires_at == until
    # The daemon looks a while after that.
    world.clock.advance(30.0)
    assert world.timekeeping.run_once() == pytest.approx(hours * HOUR)
    assert pool.lease(lease.id).expires_at == until
    (row,) = pool.status().templates
    assert (row.prewarm_size, row.prewarm_until) == (9, until)


@both_ways
def test_the_clock_is_noticed_once(world: World, hours: float) -> None:
    world.clock.advance(1.0)
    world.set_clock(hours)
    assert world.timekeeping.run_once() == hours * HOUR
    world.clock.advance(1.0)
    assert world.timekeeping.run_once() == 0.0


def test_a_clock_that_was_set_while_the_store_was_busy_is_noticed_later(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_lease(world.process, world.template, ttl=1800.0)
    world.clock.advance(1.0)
    world.set_clock(6)

    def refuse(*_: object, **__: object) -> int:
        raise StoreError("locked")

    with monkeypatch.context() as patch:
        patch.setattr(world.process.store, "move_times", refuse)
        with pytest.raises(StoreError):
            world.timekeeping.run_once()
    world.clock.advance(7.0)
    assert world.timekeeping.run_once() == 6 * HOUR
    lease = world.process.store.lease(opened.lease.id)
    assert lease is not None
    assert lease.expires_at == pytest.approx(world.clock.now() + 1800.0 - 8.0)


@both_ways
def test_the_work_of_a_process_that_is_alive_is_left_to_it(world: World, hours: float) -> None:
    other = Process(
        world.process.settings,
        store=world.process.store,
        cvat=cast(Any, world.cvat),
        clock=world.clock,
    )
    world.process.heartbeat.run_once()
    image = build_upload([("a.jpg", b"some bytes")])
    request = NewRequest(id="r", files=("a.jpg",), size=10)
    opened = open_lease(world.process, world.template, request=request)
    assert opened.task is not None and opened.request is not None
    handout = Handout(lease=opened.lease, task=opened.task, request=opened.request)
    world.process.runner.run(world.template, handout, image)
    world.clock.advance(1.0)
    world.set_clock(hours)
    world.timekeeping.run_once()
    assert other.recovery.adopt() == 0
    world.process.heartbeat.run_once()
    world.clock.advance(TERM - 1.0)
    assert other.recovery.adopt() == 0
    world.clock.advance(2.0)
    assert other.recovery.adopt() == 1, "it has died meanwhile"
    # It has as much time as it had, so its jobs still count.
    world.cvat.make_ready(opened.task.task_id or 0)
    while (wait := other.tracker.seconds_until_due()) is not None:
        world.clock.advance(wait)
        other.tracker.run_once()
    served = world.process.store.request("r")
    assert served is not None and served.state is RequestState.READY
    other.close()


@both_ways
def test_old_tasks_are_replaced_no_faster_than_others(world: World, hours: float) -> None:
    world.set_clock(hours)
    most = world.template.pool.create_concurrency
    for _ in range(3):
        assert world.run(world.retirement) <= most
        assert world.count(TaskState.WARM) >= world.template.pool.min_size - most
        fill(world.refill)
        assert world.count(TaskState.WARM) == world.template.pool.min_size


@both_ways
def test_nothing_is_held_for_hours(world: World, hours: float) -> None:
    open_lease(world.process, world.template)
    world.cvat.failures["create_task"] = [CvatForbidden("read-only") for _ in range(9)]
    fill(world.refill)
    world.cvat.failures.clear()
    assert list(world.process.store.holds()) == ["scenes"]
    world.clock.advance(1.0)
    world.set_clock(hours)
    world.timekeeping.run_once()
    fill(world.refill)
    assert world.count(TaskState.WARM) == 3


@pytest.mark.parametrize("hours", [6, -6])
def test_nothing_is_held_for_hours_although_nobody_noticed(world: World, hours: float) -> None:
    """The clock was set while no daemon ran."""
    open_lease(world.process, world.template)
    world.cvat.failures["create_task"] = [CvatForbidden("read-only") for _ in range(9)]
    fill(world.refill)
    world.cvat.failures.clear()
    world.set_clock(hours)
    fill(world.refill)
    assert world.count(TaskState.WARM) == 3


@both_ways
def test_the_pool_neither_grows_nor_stands_still(world: World, hours: float) -> None:
    """What was asked for in times to come is no demand, and no sign of the foreground."""
    pool = TaskPool.over(world.process)
    (row,) = pool.status().templates
    for number in range(60):
        request = NewRequest(id=f"r{number}", files=("a.jpg",), size=10)
        opened = open_lease(world.process, world.template, request=request)
        assert opened.request is not None
        world.process.store.fail_request(
            opened.request.id, code="x", message="", now=world.clock.now()
        )
        fill(world.refill)
        world.clock.advance(60.0)
    world.set_clock(hours)
    world.timekeeping.run_once()
    assert pool.status().templates[0].target == row.target
    fill(world.refill)
    assert world.count(TaskState.WARM) == row.target


@both_ways
def test_a_create_that_died_is_settled(world: World, hours: float) -> None:
    """The one of a process that was killed: it counts as under way until then."""
    store, template = world.process.store, world.template
    limit = CreateLimit(capacity=9, concurrency=9)
    pooled = store.begin_create(
        new_id(),
        template.name,
        template.fingerprint,
        limit=limit,
        owner="killed",
        now=world.clock.now(),
    )
    assert pooled is not None
    world.set_clock(hours)
    world.clock.advance(1.0)
    world.run(world.reconcile)
    task = store.task(pooled.id)
    assert task is not None and task.state is TaskState.FAILED


@both_ways
def test_a_killed_daemon_is_replaced(world: World, hours: float) -> None:
    store, clock = world.process.store, world.clock
    assert store.acquire_maintenance("killed", until=clock.now() + 6.0, now=clock.now())
    world.set_clock(hours)
    clock.advance(7.0)
    assert store.acquire_maintenance("heir", until=clock.now() + 6.0, now=clock.now())


# --- The scheduler --------------------------------------------------------------------------------


def test_a_service_decides_nothing_before_the_clock_was_looked_at() -> None:
    done: list[str] = []
    ended = threading.Semaphore(0)
    broken = True

    def look() -> None:
        done.append("looked")
        if broken:
            ended.release()
            raise StoreError("locked")

    def serve() -> None:
        done.append("served")
        ended.release()

    scheduler = Scheduler(clock=SystemClock(), before=look)
    scheduler.add("service", serve, every=3600.0)
    scheduler.start()
    try:
        assert ended.acquire(timeout=PATIENCE)
        broken = False
        scheduler.wake("service")
        assert ended.acquire(timeout=PATIENCE)
    finally:
        scheduler.stop()
    assert done == ["looked", "looked", "served"]
    assert scheduler.records["service"].errors == 1


def test_a_stop_waits_for_a_run_only_as_long_as_it_is_told_to() -> None:
    begun, release, again = threading.Event(), threading.Event(), []

    def serve() -> None:
        again.append(1)
        begun.set()
        assert release.wait(PATIENCE)

    scheduler = Scheduler(clock=SystemClock())
    scheduler.add("service", serve, every=3600.0)
    scheduler.start()
    assert begun.wait(PATIENCE)
    scheduler.wake("service")
    assert not scheduler.stop(0.05)
    release.set()
    assert scheduler.stop(PATIENCE)
    assert len(again) == 1, "nothing more is begun"
