"""One key, one answer: while the first call runs, from another process, and after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.commands import environment
from support.stepped import fill_for
from support.waiting import PATIENCE, wait_until

from pool import TaskPool
from pool.errors import IdempotencyConflict, WaitTimeout
from pool.model import LeaseState, Outcome, RequestState
from pool.simulator import SimulatorServer
from pool.simulator.faults import Hang
from pool.store import Store

#: A process that does one thing; if killed, it counts as gone a second later.
PROCESS = """
import sys
import pool.maintenance.heartbeat as heartbeat
heartbeat.TERM, heartbeat.PERIOD = 1.0, 0.3
from pool import TaskPool
pool = TaskPool.from_config("config.toml")
key = sys.argv[2]
if sys.argv[1] == "acquire":
    pool.acquire("scenes", idempotency_key=key)
else:
    pool.submit("scenes", ["frame.jpg"], idempotency_key=key)
print("done", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def patient(config_path: Path) -> None:
    """Who finds the pool empty waits, for as long as the test needs."""
    text = config_path.read_text().replace(
        'max_wait = "5s"', f'max_wait = "{PATIENCE:g}s", on_empty = "wait"'
    )
    config_path.write_text(text)


@pytest.fixture
def other(config_path: Path, log_in: None, patient: None) -> Iterator[TaskPool]:
    """Another process, as far as the store can tell."""
    with TaskPool.from_config(config_path) as other:
        yield other


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


def wait_for_lease(store: Store, state: LeaseState) -> str:
    wait_until(store, lambda: store.leases([state]))
    (lease,) = store.leases([state])
    return lease.id


def both_wait(futures: list[Future[str]], pool: TaskPool) -> str:
    """The one lease with which all the calls wait."""
    lease_id = wait_for_lease(pool.store, LeaseState.WAITING)
    # The later ones are waiting as well, or they find the same when they begin to.
    with pytest.raises(WaitTimeout):
        pool.acquire("scenes", idempotency_key="k", timeout=0.05)
    assert not any(future.done() for future in futures)
    return lease_id


# --- While the first call runs --------------------------------------------------------------------


def test_calls_with_one_key_wait_together_for_one_lease(
    pool: TaskPool, other: TaskPool, threads: ThreadPoolExecutor
) -> None:
    futures = [
        threads.submit(lambda each: each.acquire("scenes", idempotency_key="k").id, each)
        for each in (pool, other, pool, other)
    ]
    lease_id = both_wait(futures, pool)
    assert pool.store.waiting("scenes") == 1
    fill_for(pool)
    assert {future.result(PATIENCE) for future in futures} == {lease_id}
    assert sum(status.leased for status in pool.status().templates) == 1


def test_a_second_submit_is_answered_while_the_first_waits_and_sends_nothing(
    pool: TaskPool,
    other: TaskPool,
    threads: ThreadPoolExecutor,
    simulator: SimulatorServer,
    image: bytes,
) -> None:
    files = [("a.jpg", image)]
    first = threads.submit(pool.submit, "scenes", files, idempotency_key="k")
    wait_for_lease(pool.store, LeaseState.WAITING)
    second = other.submit("scenes", files, idempotency_key="k")
    assert second.refresh().state is RequestState.QUEUED
    with pytest.raises(IdempotencyConflict):
        other.submit("scenes", [("b.jpg", image)], idempotency_key="k")
    simulator.stats.reset()
    fill_for(pool)
    assert first.result(PATIENCE).id == second.id
    assert second.jobs(timeout=PATIENCE) == first.result().jobs(timeout=PATIENCE)
    calls = simulator.stats.calls
    # Every task is prepared by such a call as well.
    assert calls["data:post"] - calls["tasks:create"] == 1


# --- After a kill ---------------------------------------------------------------------------------


@contextmanager
def process(what: str, folder: Path, simulator: SimulatorServer) -> Iterator[subprocess.Popen[str]]:
    """Another process that acquires or submits with the key "k", killed at the end."""
    extra = {"CVAT_ACCESS_TOKEN": simulator.access_token}
    began = subprocess.Popen(
        [sys.executable, "-c", PROCESS, what, "k"],
        cwd=folder,
        env=environment(extra),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield began
    finally:
        began.kill()
        began.communicate(timeout=PATIENCE)


def kill(victim: subprocess.Popen[str]) -> None:
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait(PATIENCE)


def test_a_call_waits_in_place_of_one_that_was_killed(
    pool: TaskPool, config_path: Path, simulator: SimulatorServer, threads: ThreadPoolExecutor
) -> None:
    """Nobody else would: there is no daemon, and the pool is empty."""
    with process("acquire", config_path.parent, simulator) as first:
        lease_id = wait_for_lease(pool.store, LeaseState.WAITING)
        second = threads.submit(lambda: pool.acquire("scenes", idempotency_key="k"))
        kill(first)
        wait_until(
            pool.store,
            lambda: pool.store.leases([LeaseState.WAITING])[0].owner == pool.process.owner,
        )
        fill_for(pool)
        lease = second.result(PATIENCE)
    assert (lease.id, lease.outcome) == (lease_id, Outcome.WAIT)
    assert pool.status().templates[0].leased == 1


def test_what_was_handed_out_to_one_that_was_killed_is_handed_out_to_no_other(
    pool: TaskPool, config_path: Path, simulator: SimulatorServer
) -> None:
    fill_for(pool)
    with process("acquire", config_path.parent, simulator) as first:
        lease_id = wait_for_lease(pool.store, LeaseState.ACTIVE)
        kill(first)
    lease = pool.acquire("scenes", idempotency_key="k")
    assert lease.id == lease_id
    assert pool.acquire("scenes").task_id != lease.task_id


def test_the_data_of_one_that_was_killed_while_sending_is_not_sent_again(
    pool: TaskPool, config_path: Path, simulator: SimulatorServer, image_path: Path
) -> None:
    fill_for(pool)
    with (
        simulator.fault(Hang("data:post", at="before")),
        process("submit", config_path.parent, simulator) as first,
    ):
        wait_until(pool.store, lambda: pool.store.requests([RequestState.UPLOADING]).requests)
        kill(first)
    (sent,) = pool.store.requests().requests
    simulator.stats.reset()
    again = pool.submit("scenes", [image_path], idempotency_key="k")
    assert again.id == sent.id
    assert again.task_id == sent.task_id
    assert simulator.stats.calls["data:post"] == 0
    with pytest.raises(IdempotencyConflict):
        pool.submit("scenes", [("b.jpg", image_path.read_bytes())], idempotency_key="k")


def test_a_submit_that_was_answered_is_answered_again_after_a_kill(
    pool: TaskPool, config_path: Path, simulator: SimulatorServer, image_path: Path
) -> None:
    fill_for(pool)
    with process("submit", config_path.parent, simulator) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "done\n"
        kill(first)
    (sent,) = pool.store.requests().requests
    again = pool.submit("scenes", [image_path], idempotency_key="k")
    assert again.id == sent.id
    assert len(again.jobs(timeout=PATIENCE)) == 1
