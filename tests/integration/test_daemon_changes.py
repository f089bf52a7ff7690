"""What people tell a daemon that runs: more tasks, none at all, tasks of another kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.api import in_thread
from support.waiting import wait_until

from pool import Outcome, TaskPool
from pool.config.loader import load
from pool.daemon import Daemon
from pool.model import TaskState


@pytest.fixture
def daemon(config_path: Path, log_in: None) -> Iterator[Daemon]:
    """A daemon on a thread of this process, which does nothing by the clock for an hour."""
    text = config_path.read_text().replace("port = 0", 'port = 0\ntick = "1h"')
    text = text.replace("min_size = 2", 'min_size = 2, on_change = "replenish"')
    config_path.write_text(text)
    with in_thread(Daemon(load(config_path))) as daemon:
        yield daemon


@pytest.fixture
def caller(daemon: Daemon, config_path: Path) -> Iterator[TaskPool]:
    with TaskPool.from_config(config_path) as caller:
        yield caller


def warm(caller: TaskPool) -> int:
    return caller.status().templates[0].warm


def test_a_prewarm_of_another_process_is_followed_at_once(daemon: Daemon, caller: TaskPool) -> None:
    wait_until(daemon.process.store, lambda: warm(caller) == 2)
    caller.prewarm("scenes", 5)
    wait_until(daemon.process.store, lambda: warm(caller) == 5)


def test_a_drained_pool_is_filled_again_when_it_is_resumed(
    daemon: Daemon, caller: TaskPool
) -> None:
    wait_until(daemon.process.store, lambda: warm(caller) == 2)
    assert caller.drain("scenes") == 2
    assert warm(caller) == 0
    caller.resume("scenes")
    wait_until(daemon.process.store, lambda: warm(caller) == 2)


def test_a_changed_file_replaces_the_pool_and_leaves_it_full_all_the_while(
    daemon: Daemon, caller: TaskPool, config_path: Path
) -> None:
    wait_until(daemon.process.store, lambda: warm(caller) == 2)
    before = daemon.process.templates["scenes"].fingerprint
    config_path.write_text(config_path.read_text().replace('"person"', '"tram"'))

    def replaced() -> bool:
        assert warm(caller) >= 2
        tasks = caller.store.tasks(states=[TaskState.WARM])
        return before not in {task.fingerprint for task in tasks}

    wait_until(daemon.process.store, replaced)
    lease = caller.acquire("scenes")
    assert lease.outcome is Outcome.HIT
    task = caller.store.task_on_server(lease.task_id)
    assert task is not None
    assert task[0].fingerprint == daemon.process.templates["scenes"].fingerprint != before
