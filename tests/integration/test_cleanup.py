from __future__ import annotations

import os
import time

import pytest
from support.clock import ManualClock
from support.happening import make_warm, serve
from support.scripted import ScriptedCvat
from support.stepped import IMPORTING, QUEUED, Stepped, go_down

from pool.config.settings import Template
from pool.maintenance import cleanup as module
from pool.maintenance.cleanup import EVENTS_FOR, LEAST, SPOOL_GRACE, UNDELIVERED_FOR, Cleanup
from pool.model import TaskState, new_id
from pool.process import Process
from pool.store import FINAL_GRACE, CreateLimit


def forgettable(engine: Process, template: Template) -> None:
    """A create that failed."""
    limit, now = CreateLimit(capacity=9, concurrency=9), engine.clock.now()
    task = engine.store.begin_create(
        new_id(), template.name, template.fingerprint, limit=limit, owner="o", now=now
    )
    assert task is not None
    engine.store.fail_create(task.id, reason="refused", now=now)
    engine.store.begin_delete(owner="o", limit=9, retry_after=60.0, now=now)
    engine.store.finish_delete(task.id, now=now)


def test_finished_rows_are_forgotten_after_their_time(
    engine: Process, template: Template, clock: ManualClock
) -> None:
    for _ in range(3):
        forgettable(engine, template)
    cleanup = Cleanup(engine.store, engine.spool, keep=7200.0, clock=clock)
    clock.advance(7200.0)
    assert cleanup.run_once().rows == 0
    clock.advance(1.0)
    assert cleanup.run_once().rows == 3
    assert engine.store.tasks(states=tuple(TaskState)) == []


def test_what_the_sizing_looks_at_is_kept_whatever_the_settings(
    engine: Process, template: Template, clock: ManualClock
) -> None:
    forgettable(engine, template)
    cleanup = Cleanup(engine.store, engine.spool, keep=1.0, clock=clock)
    clock.advance(LEAST)
    assert cleanup.run_once().rows == 0


# --- Events ---------------------------------------------------------------------------------------


def test_events_are_forgotten_after_a_day(engine: Process, clock: ManualClock) -> None:
    cleanup = Cleanup(engine.store, engine.spool, keep=1e9, clock=clock)
    make_warm(engine.store, 1, 2, now=clock.now())
    clock.advance(EVENTS_FOR)
    make_warm(engine.store, 3, now=clock.now())
    assert cleanup.run_once().events == 0
    clock.advance(1.0)
    assert cleanup.run_once().events == 2
    assert [event.task_id for event in engine.store.events_after(0, limit=9)] == [3]


def test_what_a_sink_has_to_be_told_is_kept_with_its_request(
    engine: Process, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, cleanup = engine.store, Cleanup(engine.store, engine.spool, keep=7200.0, clock=clock)
    store.open_sinks(["dead"])
    serve(store, "r1", now=clock.now())
    (step,) = store.due_steps(now=clock.now() + FINAL_GRACE, limit=9)
    assert store.end_step(step, name="n", now=clock.now())
    clock.advance(3 * EVENTS_FOR)
    report = cleanup.run_once()
    assert (report.events, store.request("r1") is not None) == (0, True)
    make_warm(store, 9, now=clock.now())
    clock.advance(UNDELIVERED_FOR - 3 * EVENTS_FOR)
    assert cleanup.run_once().events == 0
    monkeypatch.setattr(module, "MOST_EVENTS", 2)
    assert cleanup.run_once().events == store.last_event_id() - 2, "but never too many"
    store.pass_events("dead", up_to=store.last_event_id())
    cleanup.run_once()
    assert store.request("r1") is None


def test_nothing_is_kept_for_a_sink_for_more_than_a_week(
    engine: Process, clock: ManualClock
) -> None:
    store, cleanup = engine.store, Cleanup(engine.store, engine.spool, keep=7200.0, clock=clock)
    store.open_sinks(["dead"])
    make_warm(store, 1, 2, now=clock.now())
    clock.advance(UNDELIVERED_FOR + 1)
    make_warm(store, 3, now=clock.now())
    assert cleanup.run_once().events == 2


# --- The spool ------------------------------------------------------------------------------------


def age(engine: Process) -> None:
    """Have the spool written to some time ago."""
    before = time.time() - SPOOL_GRACE - 1.0
    for path in engine.spool.folder.rglob("*"):
        os.utime(path, (before, before))


def test_entries_that_no_unfinished_request_belongs_to_are_dropped(
    daemon: Stepped, cvat: ScriptedCvat, clock: ManualClock
) -> None:
    assert daemon.run("cleanup").spooled == 0
    go_down(cvat)
    waiting, cancelled = daemon.accept(), daemon.accept()
    daemon.drain()
    daemon.store.cancel_request(cancelled, now=clock.now())
    never_written_down = daemon.process.spool.receive(new_id())
    never_written_down.add("a.jpg").write(b"some bytes")
    never_written_down.finish(sync=False)
    daemon.process.spool.receive("half-received").discard()
    assert daemon.run("cleanup").spooled == 0, "they may be about to be"
    age(daemon.process)
    assert daemon.run("cleanup").spooled == 2
    assert daemon.spooled() == [waiting]
    assert daemon.states(waiting) == {QUEUED}


def test_what_is_being_imported_may_be_needed_again(daemon: Stepped) -> None:
    request = daemon.accept()
    daemon.drain()
    assert daemon.states(request) == {IMPORTING}
    age(daemon.process)
    assert daemon.run("cleanup").spooled == 0
