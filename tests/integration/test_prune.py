from __future__ import annotations

from support.clock import ManualClock

from pool.engine import Engine
from pool.model import TaskState, new_id
from pool.services.prune import LEAST, Prune
from pool.settings import Template
from pool.store.base import CreateLimit


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
