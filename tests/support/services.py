"""Services wired as the daemon wires them, for tests that run each step by hand."""

from __future__ import annotations

import random
import threading

from pool.maintenance.refill import Refill
from pool.process import Engine
from pool.requests.dispatcher import Dispatch
from support.scripted import ScriptedCvat

PATIENCE = 20.0


def dispatch_of(engine: Engine, *, most_queued: int = 100, workers: int = 16) -> Dispatch:
    """A dispatch for the templates in force, whose chances are the same in every run."""
    return Dispatch(
        engine.store,
        engine.templates,
        engine.hand_out,
        engine.intake,
        engine.queue,
        engine.spool,
        engine.breaker,
        owner=engine.owner,
        most_queued=most_queued,
        warm=engine.warm,
        clock=engine.clock,
        rng=random.Random(1),
        workers=workers,
    )


def refill_of(engine: Engine) -> Refill:
    """A refill for the templates in force, whose chances are the same in every run."""
    return Refill(
        engine.store,
        engine.cvat(),
        engine.templates,
        engine.breaker,
        owner=engine.owner,
        clock=engine.clock,
        warm=engine.warm,
    )


def fill(refill: Refill) -> int:
    """Refill until there is nothing more to do; answers how many creates that took."""
    started = 0
    while report := refill.run_once().started:
        started += report
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
    started = refill.run_once().started
    go.set()
    assert refill.drain(PATIENCE)
    if cvat.before is hold:
        cvat.before = hook
    return started
