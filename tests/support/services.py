"""Services wired as the daemon wires them, for tests that run each step by hand."""

from __future__ import annotations

import random

from pool.engine import Engine
from pool.services.dispatch import Dispatch
from pool.services.refill import Refill

PATIENCE = 20.0


def dispatch_of(engine: Engine, *, most_queued: int = 100, workers: int = 16) -> Dispatch:
    """A dispatch for the templates in force, whose chances are the same in every run."""
    return Dispatch(
        engine.store,
        engine.cvat,
        engine.templates,
        engine.hand_out,
        engine.intake,
        engine.queue,
        engine.spool,
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
        owner=engine.owner,
        clock=engine.clock,
        warm=engine.warm,
        rng=random.Random(1),
    )


def fill(refill: Refill) -> int:
    """Refill until there is nothing more to do; answers how many creates that took."""
    started = 0
    while report := refill.run_once().started:
        started += report
        assert refill.drain(PATIENCE)
    return started
