"""Data that was kept for a request is dropped when it is over, whoever found that."""

from __future__ import annotations

from support.clock import ManualClock
from support.scripted import ScriptedCvat
from support.services import fill, open_lease, refill_of

from pool.config.settings import Template
from pool.config.source import build_upload
from pool.model import RequestState
from pool.process import Process
from pool.store import NewRequest


def test_data_that_went_into_a_lease_that_was_followed(
    engine: Process, template: Template, cvat: ScriptedCvat, clock: ManualClock
) -> None:
    """Its end is found by who follows the lease, and knows of no request."""
    fill(refill_of(engine))
    opened = open_lease(engine, template)
    assert opened.task is not None and opened.task.task_id is not None
    (watched,) = engine.store.watched_leases()
    engine.tracker.watch_lease(watched)
    engine.spool.keep("r1", build_upload([("a.jpg", b"content")]))
    request = NewRequest(id="r1", files=("a.jpg",), size=7, spooled=True)
    handout = engine.store.attach_request(
        opened.lease.id, request, owner=engine.owner, now=clock.now()
    )
    assert handout is not None and handout.request is not None
    engine.store.begin_import(
        handout.request.import_id or "", deadline=clock.now() + 60, now=clock.now()
    )
    cvat.make_ready(opened.task.task_id)
    while (wait := engine.tracker.seconds_until_due()) is not None:
        clock.advance(wait)
        engine.tracker.run_once()
    record = engine.store.request("r1")
    assert record is not None and record.state is RequestState.READY
    engine.close()  # waits for what is done afterwards
    assert engine.spool.used == 0
