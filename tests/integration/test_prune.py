from __future__ import annotations

import pytest
from support.clock import ManualClock
from support.happening import make_warm, serve

from pool.config.settings import Template
from pool.maintenance import prune as module
from pool.maintenance.prune import EVENTS_FOR, LEAST, UNTOLD_FOR, Prune
from pool.model import TaskState, new_id
from pool.process import Engine
from pool.store import FINAL_GRACE, CreateLimit


def forgettable(engine: Engine, template: Template) -> None:
    """A create that came to nothing."""
    limit, now = CreateLimit(capacity=9, concurrency=9), engine.clock.now()
    task = engine.store.begin_create(
        new_id(), template.name, template.fingerprint, limit=limit, owner="o", now=now
    )
    assert task is not None
    engine.store.fail_create(task.id, reason="refused", now=now)
    engine.store.begin_delete(owner="o", limit=9, retry_after=60.0, now=now)
    engine.store.finish_delete(task.id, now=now)


def test_finished_rows_are_forgotten_after_their_time(
    engine: Engine, template: Template, clock: ManualClock
) -> None:
    for _ in range(3):
        forgettable(engine, template)
    prune = Prune(engine.store, keep=7200.0, clock=clock)
    clock.advance(7200.0)
    assert prune.run_once().pruned == 0
    clock.advance(1.0)
    report = prune.run_once()
    assert (report.pruned, report.more) == (3, False)
    assert engine.store.tasks(states=tuple(TaskState)) == []


def test_what_the_sizing_looks_at_is_kept_whatever_the_settings(
    engine: Engine, template: Template, clock: ManualClock
) -> None:
    forgettable(engine, template)
    prune = Prune(engine.store, keep=1.0, clock=clock)
    clock.advance(LEAST)
    assert prune.run_once().pruned == 0


# --- Events ---------------------------------------------------------------------------------------


def test_events_are_forgotten_after_a_day(engine: Engine, clock: ManualClock) -> None:
    prune = Prune(engine.store, keep=1e9, clock=clock)
    make_warm(engine.store, 1, 2, now=clock.now())
    clock.advance(EVENTS_FOR)
    make_warm(engine.store, 3, now=clock.now())
    assert prune.run_once().events == 0
    clock.advance(1.0)
    assert prune.run_once().events == 2
    assert [event.task_id for event in engine.store.events_after(0, limit=9)] == [3]


def test_what_a_sink_has_to_be_told_is_kept_with_its_request(
    engine: Engine, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, prune = engine.store, Prune(engine.store, keep=7200.0, clock=clock)
    store.open_sinks(["dead"])
    serve(store, "r1", now=clock.now())
    (step,) = store.due_steps(now=clock.now() + FINAL_GRACE, limit=9)
    assert store.end_step(step.task.id, step.kind, name="n", now=clock.now())
    clock.advance(3 * EVENTS_FOR)
    report = prune.run_once()
    assert (report.events, store.request("r1") is not None) == (0, True)
    make_warm(store, 9, now=clock.now())
    clock.advance(UNTOLD_FOR - 3 * EVENTS_FOR)
    assert prune.run_once().events == 0
    monkeypatch.setattr(module, "MOST_EVENTS", 2)
    assert prune.run_once().events == store.last_event_id() - 2, "but never too many"
    store.pass_events("dead", up_to=store.last_event_id())
    prune.run_once()
    assert store.request("r1") is None


def test_nothing_is_kept_for_a_sink_for_more_than_a_week(
    engine: Engine, clock: ManualClock
) -> None:
    store, prune = engine.store, Prune(engine.store, keep=7200.0, clock=clock)
    store.open_sinks(["dead"])
    make_warm(store, 1, 2, now=clock.now())
    clock.advance(UNTOLD_FOR + 1)
    make_warm(store, 3, now=clock.now())
    assert prune.run_once().events == 2
