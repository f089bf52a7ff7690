from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from support.clock import ManualClock

from pool.clock import SystemClock
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
    failed, succeeded = threading.Event(), threading.Event()

    def run_once() -> None:
        if not failed.is_set():
            failed.set()
            raise OSError("it broke")
        succeeded.set()

    scheduler.add("it", run_once, every=NEVER)
    scheduler.start()
    assert failed.wait(PATIENCE)
    while not succeeded.is_set():
        scheduler.wake("it")
        succeeded.wait(0.01)
    scheduler.stop()
    assert scheduler.records["it"].errors == 1


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
