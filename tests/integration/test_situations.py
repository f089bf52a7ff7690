"""What users of such pools report, by the name under which they report it.

Others of that kind are among the tests of what they are about: a pool that drains after a failed
create, a waiter that swallows a task, and a clean-up that one bad row starves (test_services), a
stale template (test_template_changes), and a hung call that stops all maintenance (test_scheduler).
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Any, cast

from support.api import in_thread
from support.clock import ManualClock
from support.scripted import ScriptedCvat
from support.stepped import CONTENT, IMPORTING, Start, Stepped
from support.waiting import PATIENCE

from pool import Outcome, TaskPool
from pool.config.settings import Settings, Template
from pool.daemon import Daemon
from pool.errors import CvatNotFound
from pool.maintenance.reconcile_rules import stuck_after
from pool.maintenance.term import TERM
from pool.model import TaskState
from pool.store import Store


def test_growth_flag_stuck(empty: Stepped, settings: Settings, cvat: ScriptedCvat) -> None:
    """A create that dies in a way that nobody thought of does not count as under way for ever."""

    def die(operation: str) -> None:
        if operation == "create_task":
            raise RuntimeError("unheard of")

    cvat.before = die
    empty.fill()
    cvat.before = lambda _: None
    assert "warm" not in empty.levels()
    empty.advance(stuck_after(settings.cvat.timeout) + 1.0)
    empty.run("reconcile")
    empty.fill()
    assert empty.levels()["warm"] == 3


def test_over_creation_by_lag(start: Start, cvat: ScriptedCvat, clock: ManualClock) -> None:
    """Two daemons that see the same shortage do not both fill it: one got no time to run while the
    other took over, and does not know it yet."""
    first = start()
    clock.advance(TERM + 1.0)
    daemons = [first, start()]
    with ThreadPoolExecutor(2) as threads:
        for _ in range(5):
            list(threads.map(Stepped.fill, daemons))
    assert cvat.count("create_task") == 3


def test_leak_sweep_that_hits_a_task_being_deleted(daemon: Stepped, cvat: ScriptedCvat) -> None:
    """The sweep for orphans runs while a deletion is under way, and leaves its tasks to it."""
    daemon.pool.drain("scenes")

    def meanwhile(operation: str) -> None:
        if operation == "delete_task":
            cvat.before = lambda _: None
            daemon.run("reconcile")

    cvat.before = meanwhile
    assert daemon.run("delete").deleted == 3
    daemon.run("reconcile")
    assert daemon.run("delete").deleted == 0
    assert cvat.count("delete_task") == 3


def test_poisoned_pool(daemon: Stepped, cvat: ScriptedCvat) -> None:
    """Warm tasks that were deleted on the server are passed over, each once; nobody fails."""
    cvat.failures["upload"] = [CvatNotFound("No Task matches the given query.")] * 2
    request = daemon.pool.submit("scenes", [("a.jpg", CONTENT)])
    assert request.state is IMPORTING
    assert daemon.levels() == {"importing": 1, "failed": 2}


def test_stampede_on_an_empty_pool(
    settings: Settings, template: Template, store: Store, cvat: ScriptedCvat
) -> None:
    """Twenty callers at once on an empty pool with a daemon: as many tasks, and no more at a
    time than configured."""
    most = 0
    guard = threading.Lock()

    def look(operation: str) -> None:
        nonlocal most
        if operation == "create_task":
            with guard:
                most = max(most, len(store.tasks(states=(TaskState.CREATING,))))

    cvat.before = look
    patient = replace(
        template, pool=replace(template.pool, max_size=30, max_wait=PATIENCE, on_empty="wait")
    )
    settings = replace(
        settings,
        daemon=replace(settings.daemon, port=0),
        templates={template.name: patient},
    )
    with (
        in_thread(Daemon(settings, store=store, cvat=cast(Any, cvat))),
        closing(TaskPool(settings, store=store, cvat=cast(Any, cvat))) as pool,
        ThreadPoolExecutor(20) as callers,
    ):
        leases = list(callers.map(lambda _: pool.acquire("scenes"), range(20)))
    assert len({lease.task_id for lease in leases}) == 20
    assert all(lease.outcome is not Outcome.COLD for lease in leases)
    assert most <= patient.pool.create_concurrency
