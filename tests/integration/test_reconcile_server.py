"""Rows and server are brought together on a simulated server, and by the command line."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from support.commands import cvat_pool, running

from pool.cvat import CvatClient
from pool.maintenance.deletion import Deletion
from pool.maintenance.reconcile import Reconcile
from pool.maintenance.reconcile_rules import Action
from pool.maintenance.term import maintaining
from pool.model import new_id, task_name
from pool.simulator import SimulatorServer
from pool.simulator.faults import Error
from pool.store import Store, open_store
from pool.store.checking import check_store
from pool.taskpool import TaskPool


@pytest.fixture
def client(pool: TaskPool) -> CvatClient:
    return pool.process.cvat()


@pytest.fixture
def other_store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(f"sqlite:///{tmp_path / 'other.db'}")
    yield opened
    opened.close()


def released(pool: TaskPool, count: int) -> list[int]:
    """Warm tasks, made by taking them cold and giving them back."""
    leases = [pool.acquire("scenes") for _ in range(count)]
    for lease in leases:
        pool.release(lease)
    return [lease.task_id for lease in leases]


def on_simulator(pool: TaskPool, store: Store | None = None) -> Reconcile:
    return Reconcile(
        store or pool.store,
        pool.process.cvat(),
        pool.settings.templates,
        None,
        http_timeout=10.0,
        verify_every=600.0,
        clock=pool.clock,
    )


def test_two_pools_leave_each_other_alone(
    pool: TaskPool, client: CvatClient, other_store: Store, simulator: SimulatorServer
) -> None:
    ids = released(pool, 2)
    for store in (other_store, pool.store):
        plan = on_simulator(pool, store).plan()
        assert plan.findings == ()
        assert len(plan.verified) == (2 if store is pool.store else 0)
    assert sorted(client.tasks(ids)) == sorted(ids)


def test_what_people_do_to_warm_tasks_on_a_server(pool: TaskPool, client: CvatClient) -> None:
    renamed, deleted, kept = released(pool, 3)
    client.rename_task(renamed, "my night drive")
    client.delete_task(deleted)
    service = on_simulator(pool)
    found = {finding.task_id: finding.action for finding in service.plan().findings}
    assert found == {renamed: Action.DISOWN, deleted: Action.RETIRE}
    service.apply(service.plan())
    with maintaining(pool.store, "o", clock=pool.clock) as term:
        assert term is not None
        Deletion(pool.store, client, term, owner="o", clock=pool.clock).run_once()
    assert [task.task_id for task in pool.store.tasks()] == [kept]
    assert client.tasks([renamed])[renamed].name == "my night drive"


def test_a_young_orphan_is_seen_and_left(pool: TaskPool, client: CvatClient) -> None:
    name = task_name(pool.store.pool_id, "scenes", new_id())
    task_id = client.create_task({"labels": []}, name)
    (finding,) = on_simulator(pool).plan().findings
    assert (finding.action, finding.task_id) == (Action.LEAVE, task_id)
    info = client.task(task_id)
    assert info is not None and info.age is not None
    assert -2.0 < info.age < 60.0
    client.delete_task(task_id)
    assert client.task(task_id) is None


def test_the_command_prints_what_it_would_do_and_does_it(
    pool: TaskPool, client: CvatClient, config_path: Path, simulator: SimulatorServer
) -> None:
    used, gone = released(pool, 2)
    client.rename_task(used, "mine")
    client.delete_task(gone)
    orphan = client.create_task({"labels": []}, task_name(pool.store.pool_id, "scenes", new_id()))
    folder, token = config_path.parent, simulator.access_token
    table = cvat_pool("reconcile", "--dry-run", cwd=folder, CVAT_ACCESS_TOKEN=token)
    assert (table.returncode, table.stderr) == (0, "")
    assert table.stdout.endswith("3 findings, no warm tasks as expected; nothing was done\n")
    told = json.loads(
        cvat_pool("reconcile", "--dry-run", "--json", cwd=folder, CVAT_ACCESS_TOKEN=token).stdout
    )
    actions = {finding["task_id"]: finding["action"] for finding in told["findings"]}
    assert actions == {used: "disown", gone: "retire", orphan: "leave alone"}
    assert told["done"] is None
    assert len(pool.store.tasks()) == 2
    told = json.loads(cvat_pool("reconcile", "--json", cwd=folder, CVAT_ACCESS_TOKEN=token).stdout)
    assert told["done"] == {
        "disown": 1,
        "retire": 1,
        "deleted": 1,
        "left to others": 0,
        "slots retired": 0,
        "slots ended": 0,
        "not deleted yet": 0,
    }
    assert pool.store.tasks() == []
    assert set(client.tasks([used, orphan])) == {used, orphan}
    client.delete_task(orphan)
    again = cvat_pool("reconcile", cwd=folder, CVAT_ACCESS_TOKEN=token)
    assert again.stdout == "reconciled: nothing to do; no warm tasks as expected\n"


def test_the_command_leaves_deletions_to_a_daemon_that_maintains_the_pool(
    pool: TaskPool, client: CvatClient, config_path: Path, simulator: SimulatorServer
) -> None:
    """It repairs the rest, and says so."""
    folder, token = config_path.parent, simulator.access_token
    (gone, used) = released(pool, 2)
    client.delete_task(gone)
    orphan = client.create_task({"labels": []}, task_name(pool.store.pool_id, "scenes", new_id()))
    simulator.state.tasks[orphan].created -= timedelta(days=1)
    with maintaining(pool.store, "pool-1:4711:7c0857", clock=pool.clock):
        done = cvat_pool("reconcile", "--json", cwd=folder, CVAT_ACCESS_TOKEN=token)
    counts = {what: times for what, times in json.loads(done.stdout)["done"].items() if times}
    assert (done.returncode, counts) == (0, {"retire": 1})
    (hint,) = done.stderr.splitlines()
    assert "left to the daemon that maintains the pool (process 4711 on pool-1)" in hint
    assert set(client.tasks([used, orphan])) == {used, orphan}
    done = cvat_pool("reconcile", "--json", cwd=folder, CVAT_ACCESS_TOKEN=token)
    counts = {what: times for what, times in json.loads(done.stdout)["done"].items() if times}
    assert counts == {"delete": 1, "deleted": 1}
    assert list(client.tasks([used, orphan])) == [used]
    assert check_store(pool.store.connections).problems == ()


def test_an_orphan_that_cvat_will_not_delete_does_not_keep_the_others(
    pool: TaskPool, client: CvatClient, config_path: Path, simulator: SimulatorServer
) -> None:
    orphans = [
        client.create_task({"labels": []}, task_name(pool.store.pool_id, "scenes", new_id()))
        for _ in range(3)
    ]
    for orphan in orphans:
        simulator.state.tasks[orphan].created -= timedelta(days=1)
    with simulator.fault(Error("tasks:delete", status=403, times=1)):
        done = cvat_pool(
            "reconcile", "--json", cwd=config_path.parent, CVAT_ACCESS_TOKEN=simulator.access_token
        )
    assert (done.returncode, json.loads(done.stdout)["done"]["delete"]) == (0, 2)
    (warning,) = done.stderr.splitlines()
    assert warning.startswith("Warning: not everything was done: CVAT does not allow this")
    (left,) = client.tasks(orphans)
    client.delete_task(left)


def test_after_a_kill_the_warm_tasks_are_verified_first(
    pool: TaskPool, client: CvatClient, config_path: Path, simulator: SimulatorServer
) -> None:
    folder, token = config_path.parent, simulator.access_token
    with running("run", cwd=folder, CVAT_ACCESS_TOKEN=token) as daemon:
        daemon.wait_for("maintenance begun")
        os.kill(daemon.process.pid, signal.SIGKILL)
        daemon.process.wait()
    # As if its term were over.
    now = pool.clock.now()
    term = pool.store.present_term(now=0.0)
    assert term is not None
    assert pool.store.renew_term(term.term, term.owner, seconds=0.0, clock=lambda: now)
    with running("run", cwd=folder, CVAT_ACCESS_TOKEN=token) as daemon:
        daemon.wait_for("unclean stop")
        assert daemon.stop() == 0
    with running("run", cwd=folder, CVAT_ACCESS_TOKEN=token) as daemon:
        daemon.wait_for("maintenance begun")
        daemon.stop()
        assert not any("unclean" in line for line in daemon.lines)
