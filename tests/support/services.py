"""Services wired as the daemon wires them, for tests that run each step by hand."""

from __future__ import annotations

import threading
from dataclasses import replace

from pool.config.settings import Template
from pool.maintenance.refill import Refill
from pool.process import Process
from pool.store import NewRequest, Opened
from support.scripted import ScriptedCvat

PATIENCE = 60.0


def open_lease(
    engine: Process,
    template: Template,
    *,
    request: NewRequest | None = None,
    ttl: float | None = None,
) -> Opened:
    """A task for a caller that uploads by itself, or for a request that is not sent yet."""
    placement = engine.placement
    if request is None:
        return placement.acquire(template, idempotency_key=None, ttl=ttl, timeout=None)
    opened = placement.open(template, request=request)
    if opened.task is not None:
        return opened
    handout = placement.obtain(template, opened.lease.id, None)
    return replace(opened, lease=handout.lease, task=handout.task, request=handout.request)


def refill_of(engine: Process) -> Refill:
    """A refill for the templates in force, whose chances are the same in every run."""
    return Refill(
        engine.store,
        engine.cvat(),
        engine.templates,
        engine.breaker,
        owner=engine.owner,
        clock=engine.clock,
    )


def fill(refill: Refill) -> int:
    """Refill until there is nothing more to do; answers how many creates that took."""
    started = 0
    while begun := refill.run_once():
        started += begun
        assert refill.drain(PATIENCE)
    return started


def one_round(refill: Refill, cvat: ScriptedCvat) -> int:
    """One round of refilling, and the end of its creates; answers how many it started. They end
    after it only: one that ended at once would make room for the next in the same round."""
    go, hook = threading.Event(), cvat.before

    def hold(operation: str) -> None:
        assert operation != "create_task" or go.wait(PATIENCE)
        hook(operation)

    cvat.before = hold
    started = refill.run_once()
    go.set()
    assert refill.drain(PATIENCE)
    if cvat.before is hold:
        cvat.before = hook
    return started
