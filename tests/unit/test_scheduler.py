from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from support.clock import ManualClock

from pool.clock import SystemClock
from pool.errors import StoreError
from pool.maintenance.scheduler import Scheduler

PATIENCE = 10.0
NEVER = 3600.0


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    scheduler = Scheduler(clock=SystemClock())
    yield scheduler
    scheduler.stop()


class Service:
    """Counts its runs; each run waits to be let go, so that the test decides what overlaps."""

    def __init__(self) -> None:
        self.began = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self.runs = 0

    def run_once(self) -> None:
        self.runs += 1
        self.began.release()
        assert self.go.acquire(timeout=PATIENCE)

    def wait_begun(self) -> None:
        assert self.began.acquire(timeout=PATIENCE)


def test_a_service_runs_at_once_and_when_woken(scheduler: Scheduler) -> None:
    service = Service()
    scheduler.add("it", service.run_once, every=NEVER)
    scheduler.start()
    service.wait_begun()
    service.go.release()
    scheduler.wake("it")
    service.wait_begun()
    service.go.release()
    assert service.runs == 2


def test_a_service_that_is_woken_before_the_start_runs_at_the_start(scheduler: Scheduler) -> None:
    service = Service()
    scheduler.add("it", service.run_once, every=NEVER)
    scheduler.wake("it")
    assert not service.began.acquire(timeout=0.05)
    scheduler.start()
    service.wait_begun()
    service.go.release()
    scheduler.stop()
    assert service.runs == 1


def test_wake_ups_while_it_runs_make_one_more_run(scheduler: Scheduler) -> None:
    service = Service()
    scheduler.add("it", service.run_once, every=NEVER)
    scheduler.start()
    service.wait_begun()
    for _ in range(5):
        scheduler.wake("it")
    service.go.release()
    service.wait_begun()
    service.go.release()
    scheduler.stop()
    assert service.runs == 2


def test_a_service_that_fails_runs_again_and_is_counted(scheduler: Scheduler) -> None:
    service = Service()

    def run_once() -> None:
        service.run_once()
        if service.runs == 1:
            raise OSError("it broke")

    scheduler.add("it", run_once, every=NEVER)
    scheduler.start()
    service.wait_begun()
    scheduler.wake("it")
    service.go.release()
    service.wait_begun()
    service.go.release()
    scheduler.stop()
    assert scheduler.records["it"].errors == 1


def test_a_service_decides_nothing_before_the_clock_was_looked_at() -> None:
    done: list[str] = []
    looking, service = Service(), Service()

    def look() -> None:
        done.append("looked")
        looking.run_once()
        if looking.runs == 1:
            raise StoreError("locked")

    def serve() -> None:
        done.append("served")
        service.run_once()

    scheduler = Scheduler(clock=SystemClock(), before=look)
    scheduler.add("it", serve, every=NEVER)
    scheduler.start()
    looking.wait_begun()
    scheduler.wake("it")
    for _ in range(2):
        looking.go.release()
    service.wait_begun()
    service.go.release()
    scheduler.stop()
    assert done == ["looked", "looked", "served"]
    assert scheduler.records["it"].errors == 1


def test_a_stop_waits_for_a_run_only_as_long_as_it_is_told_to(scheduler: Scheduler) -> None:
    service = Service()
    scheduler.add("it", service.run_once, every=NEVER)
    scheduler.start()
    service.wait_begun()
    scheduler.wake("it")
    assert not scheduler.stop(0.05)
    service.go.release()
    assert scheduler.stop(PATIENCE)
    assert service.runs == 1, "nothing more is begun"


def test_one_hung_service_does_not_stop_the_others(scheduler: Scheduler) -> None:
    hung, other = Service(), Service()
    scheduler.add("hung", hung.run_once, every=NEVER)
    scheduler.add("other", other.run_once, every=NEVER)
    scheduler.start()
    hung.wait_begun()
    other.wait_begun()
    other.go.release()
    scheduler.wake("other")
    other.wait_begun()
    other.go.release()
    hung.go.release()


def test_it_is_known_how_long_ago_a_service_succeeded(clock: ManualClock) -> None:
    scheduler, ran = Scheduler(clock=clock), threading.Event()
    clock.advance(5.0)
    scheduler.add("it", ran.set, every=NEVER)
    record = scheduler.records["it"]
    assert (record.every, record.added_at, record.succeeded_at) == (NEVER, 5.0, None)
    assert not scheduler.running
    scheduler.start()
    assert scheduler.running
    assert ran.wait(PATIENCE)
    scheduler.stop()
    assert (record.succeeded_at, scheduler.running) == (5.0, False)
