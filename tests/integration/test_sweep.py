"""What the spool has no use for is dropped, and nothing else."""

from __future__ import annotations

import os
import time

from support.clock import ManualClock
from support.services import PATIENCE
from support.spooled import accept, accepted, entries, receive, state

from pool.config.settings import Template
from pool.errors import CvatUnreachable
from pool.maintenance.sweep import GRACE, Sweep, SweepReport
from pool.model import RequestState
from pool.process import Engine
from pool.requests.breaker import SERVER
from pool.requests.dispatcher import Dispatcher


def age(engine: Engine) -> None:
    """Nobody has written to the spool for a while."""
    before = time.time() - GRACE - 1.0
    for path in engine.spool.folder.rglob("*"):
        os.utime(path, (before, before))


def test_entries_that_no_unfinished_request_belongs_to_are_dropped(
    engine: Engine, dispatch: Dispatcher, template: Template, clock: ManualClock
) -> None:
    sweep = Sweep(engine.store, engine.spool)
    assert sweep.run_once() == SweepReport()
    engine.breaker.hold(SERVER, CvatUnreachable("down"))
    waiting, cancelled = (accepted(engine, dispatch, template) for _ in range(2))
    engine.store.cancel_request(cancelled, now=clock.now())
    _, never_written_down = receive(engine)
    engine.spool.receive("half-received").discard()
    assert sweep.run_once() == SweepReport(), "they may be about to be"
    age(engine)
    assert sweep.run_once() == SweepReport(dropped=2)
    assert entries(engine) == [waiting]
    assert state(engine, waiting) is RequestState.QUEUED
    assert never_written_down.id not in entries(engine)


def test_what_is_being_imported_may_be_needed_again(
    engine: Engine, dispatch: Dispatcher, template: Template
) -> None:
    opened = accept(engine, dispatch, template)
    dispatch.run_once()
    dispatch.drain(PATIENCE)
    assert opened.request is not None
    assert state(engine, opened.request.id) is RequestState.IMPORTING
    age(engine)
    assert Sweep(engine.store, engine.spool).run_once() == SweepReport()
