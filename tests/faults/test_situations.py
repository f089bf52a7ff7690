"""What users of such pools report, one test each, by the name under which they report it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, cast

import pytest
from support.clock import ManualClock
from support.scripted import ScriptedCvat
from support.services import PATIENCE, fill, open_lease, refill_of

from pool.clock import SystemClock
from pool.config.settings import Settings, Template
from pool.config.source import build_upload
from pool.errors import CvatBusy, CvatNotFound, PoolEmpty
from pool.maintenance.deletion import Deletion
from pool.maintenance.reconcile import Reconcile
from pool.maintenance.scheduler import Scheduler
from pool.model import Handout, LeaseState, Outcome, TaskState
from pool.process import Process
from pool.store import NewRequest, Store


def reconcile_of(engine: Process) -> Reconcile:
    return Reconcile(
        engine.store,
        engine.cvat(),
        engine.settings.templates,
        http_timeout=30.0,
        verify_every=600.0,
        clock=engine.clock,
    )


def retire_all(engine: Process) -> None:
    for task in engine.store.tasks(states=(TaskState.WARM,)):
        engine.store.retire(task.id, reason="for the test", now=engine.clock.now())


def warm(engine: Process) -> int:
    return sum(levels[TaskState.WARM] for levels in engine.store.levels().values())


def test_pool_drains_and_never_refills_after_a_failed_create(
    engine: Process, cvat: ScriptedCvat, clock: ManualClock
) -> None:
    refill = refill_of(engine)
    cvat.failures["create_task"] = [
        CvatBusy("no", http_status=503),
        CvatBusy("no", http_status=429),
    ]
    fill(refill)
    reconcile = reconcile_of(engine)
    for _ in range(300):
        clock.advance(1.0)
        reconcile.run_once()
        fill(refill)
    assert warm(engine) == 3


def test_growth_flag_stuck(engine: Process, cvat: ScriptedCvat, clock: ManualClock) -> None:
    """A create that dies in a way that nobody thought of does not count as under way for ever."""
    refill = refill_of(engine)
    crash = True

    def die(operation: str) -> None:
        if crash and operation == "create_task":
            raise RuntimeError("unheard of")

    cvat.before = die
    fill(refill)
    crash = False
    assert warm(engine) == 0
    clock.advance(200.0)
    reconcile_of(engine).run_once()
    fill(refill)
    assert warm(engine) == 3


def test_over_creation_by_lag(
    engine: Process, settings: Settings, store: Store, cvat: ScriptedCvat, clock: ManualClock
) -> None:
    """Two processes that see the same shortage do not both fill it."""
    other = Process(settings, store=store, cvat=cast(Any, cvat), clock=clock)
    refills = [refill_of(engine), refill_of(other)]
    with ThreadPoolExecutor(2) as threads:
        for _ in range(5):
            list(threads.map(fill, refills))
    assert cvat.count("create_task") == 3
    other.close()


def test_waiter_that_times_out_swallows_a_task(
    engine: Process, template: Template, clock: ManualClock
) -> None:
    patient = replace(template, pool=replace(template.pool, on_empty="wait"))
    engine.store.acquire_maintenance("daemon", until=clock.now() + 99, now=clock.now())
    with pytest.raises(PoolEmpty):
        open_lease(engine, patient)
    fill(refill_of(engine))
    assert warm(engine) == 3
    assert engine.store.leases([LeaseState.WAITING]) == []


def test_stale_template_handed_out(engine: Process, template: Template) -> None:
    fill(refill_of(engine))
    changed = replace(template, labels=({"name": "tram"},))
    opened = open_lease(engine, changed)
    assert opened.task is not None
    assert opened.lease.outcome is Outcome.COLD
    assert opened.task.fingerprint == changed.fingerprint


def test_leak_sweep_that_hits_a_task_being_deleted(
    engine: Process, cvat: ScriptedCvat, clock: ManualClock
) -> None:
    """The sweep for orphans runs while a deletion is under way, and leaves its tasks to it."""
    fill(refill_of(engine))
    retire_all(engine)
    sweep = reconcile_of(engine)

    def meanwhile(operation: str) -> None:
        if operation == "delete_task":
            cvat.before = lambda _: None
            assert sweep.plan().findings == ()

    cvat.before = meanwhile
    deletion = Deletion(engine.store, engine.cvat(), owner=engine.owner, clock=clock)
    assert deletion.run_once().deleted == 3
    assert deletion.run_once().deleted == 0
    assert sweep.plan().findings == ()
    assert cvat.count("delete_task") == 3


def test_hung_call_that_stops_all_maintenance() -> None:
    scheduler = Scheduler(clock=SystemClock())
    release, hung, other = threading.Event(), threading.Event(), threading.Semaphore(0)

    def hang() -> None:
        hung.set()
        assert release.wait(PATIENCE)

    scheduler.add("hung", hang, every=3600.0)
    scheduler.add("other", other.release, every=3600.0)
    scheduler.start()
    try:
        assert hung.wait(PATIENCE)
        for _ in range(3):
            assert other.acquire(timeout=PATIENCE)
            scheduler.wake("other")
    finally:
        release.set()
        scheduler.stop()


def test_poisoned_pool(engine: Process, template: Template, cvat: ScriptedCvat) -> None:
    """Warm tasks that were deleted on the server are passed over, each once; nobody fails."""
    fill(refill_of(engine))
    upload = build_upload([("a.jpg", b"some bytes")])
    cvat.failures["upload"] = [CvatNotFound("No Task matches the given query.")] * 2
    opened = open_lease(
        engine, template, request=NewRequest(id="r", files=("a.jpg",), size=upload.size)
    )
    assert opened.task is not None
    assert opened.request is not None
    handout = Handout(lease=opened.lease, task=opened.task, request=opened.request)
    request = engine.runner.run(template, handout, upload)
    assert request.state.value == "importing"
    failed = engine.store.tasks(states=(TaskState.FAILED,))
    assert len(failed) == 2


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
    patient = replace(template, pool=replace(template.pool, max_wait=PATIENCE))
    engine = Process(
        replace(settings, templates={template.name: patient}), store=store, cvat=cast(Any, cvat)
    )
    now = engine.clock.now()
    store.acquire_maintenance("daemon", until=now + 2 * PATIENCE, now=now)
    store.renew_owner(engine.owner, until=now + 2 * PATIENCE)
    refill = refill_of(engine)
    done = threading.Event()

    def keep_filling() -> None:
        while not done.is_set():
            fill(refill)
            done.wait(0.02)

    filler = threading.Thread(target=keep_filling)
    filler.start()
    try:
        with ThreadPoolExecutor(20) as callers:
            opened = list(callers.map(lambda _: open_lease(engine, patient), range(20)))
    finally:
        done.set()
        filler.join(PATIENCE)
        refill.stop(PATIENCE)
    assert len({each.task.id for each in opened if each.task is not None}) == 20
    assert all(each.lease.outcome is not Outcome.COLD for each in opened)
    assert cvat.count("create_task") <= 20 + patient.pool.min_size
    assert most <= patient.pool.create_concurrency
    engine.close()


def test_clean_up_starved_by_one_bad_row(
    engine: Process, cvat: ScriptedCvat, clock: ManualClock
) -> None:
    fill(refill_of(engine))
    retire_all(engine)
    bad = min(cvat.tasks_there)

    def refuse(operation: str) -> None:
        if operation == "delete_task" and cvat.calls[-1][1] == bad:
            raise CvatBusy("no", http_status=500)

    cvat.before = refuse
    deletion = Deletion(engine.store, engine.cvat(), owner=engine.owner, clock=clock)
    for _ in range(5):
        deletion.run_once()
        clock.advance(100.0)
    assert list(cvat.tasks_there) == [bad]
