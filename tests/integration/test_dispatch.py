"""Requests that are handed to the dispatch: served at once, or when there is a task."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
from support.clock import ManualClock
from support.scripted import ScriptedCvat
from support.services import PATIENCE, dispatch_of, fill, open_lease, refill_of
from support.spooled import (
    IMPORTING,
    OTHER,
    QUEUED,
    accept,
    accepted,
    entries,
    import_all,
    levels,
    read,
    receive,
    serve,
    state,
    uploads,
)

from pool.config.settings import DaemonSettings, Settings, Template
from pool.errors import (
    CvatBusy,
    CvatUnreachable,
    IdempotencyConflict,
    LeaseEnded,
    PoolEmpty,
    QueueFull,
)
from pool.model import LeaseState, Outcome, RequestState
from pool.process import Process
from pool.requests.breaker import SERVER
from pool.requests.dispatcher import Dispatcher
from pool.store import Store

FAILED, CANCELLED = RequestState.FAILED, RequestState.CANCELLED


def strict(template: Template, on_empty: Any) -> Template:
    return replace(template, pool=replace(template.pool, on_empty=on_empty))


# --- Handed over ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("warm")
def test_an_accepted_request_is_served_at_once(
    engine: Process,
    dispatch: Dispatcher,
    template: Template,
    cvat: ScriptedCvat,
    clock: ManualClock,
) -> None:
    opened = accept(engine, dispatch, template)
    assert opened.task is not None and opened.request is not None
    assert opened.request.outcome is Outcome.HIT
    dispatch.drain(PATIENCE)
    assert [call[0] for call in cvat.calls] == ["upload"]
    assert state(engine, opened.request.id) is IMPORTING
    assert entries(engine) == [opened.request.id], "it may be needed again"
    import_all(engine, cvat, clock)
    engine.close()
    assert entries(engine) == []


@pytest.mark.usefixtures("warm")
def test_what_is_sent_is_what_was_received(
    engine: Process, dispatch: Dispatcher, template: Template, cvat: ScriptedCvat
) -> None:
    upload, _ = receive(engine)
    accept(engine, dispatch, template)
    dispatch.drain(PATIENCE)
    (sent,) = [call[2] for call in cvat.calls if call[0] == "upload"]
    assert [(file.name, file.source.read_bytes()) for file in sent.files] == [
        (file.name, file.source.read_bytes()) for file in cast(Any, upload.files)
    ]


@pytest.mark.usefixtures("warm")
def test_a_known_key_gives_the_first_request_and_keeps_no_second_copy(
    engine: Process, dispatch: Dispatcher, template: Template
) -> None:
    first = accept(engine, dispatch, template, key="k")
    again = accept(engine, dispatch, template, key="k")
    dispatch.drain(PATIENCE)
    assert again.replayed
    assert first.request is not None and again.request is not None
    assert again.request.id == first.request.id
    assert entries(engine) == [first.request.id]
    upload, request = receive(engine)
    with pytest.raises(IdempotencyConflict):
        dispatch.accept(template, upload, request, idempotency_key="k", payload="other")
    assert entries(engine) == [first.request.id]


@pytest.mark.usefixtures("warm")
def test_data_for_a_lease_goes_into_its_task(
    engine: Process, dispatch: Dispatcher, template: Template, cvat: ScriptedCvat
) -> None:
    leased = open_lease(engine, template)
    assert leased.task is not None
    upload, request = receive(engine)
    opened = dispatch.accept(template, upload, request, lease_id=leased.lease.id)
    dispatch.drain(PATIENCE)
    assert opened.task == leased.task
    assert uploads(cvat) == [leased.task.task_id]
    upload, request = receive(engine)
    with pytest.raises(LeaseEnded):
        dispatch.accept(template, upload, request, lease_id=leased.lease.id)
    assert len(entries(engine)) == 1


# --- An empty pool -------------------------------------------------------------------------------


def test_an_empty_pool_is_waited_for_and_then_a_task_made(
    engine: Process,
    dispatch: Dispatcher,
    template: Template,
    cvat: ScriptedCvat,
    clock: ManualClock,
) -> None:
    engine.store.acquire_maintenance("me", until=clock.now() + 99, now=clock.now())
    request = accepted(engine, dispatch, template)
    assert serve(dispatch) == 0
    assert not dispatch.is_due()
    clock.advance(template.pool.max_wait)
    assert dispatch.is_due()
    assert serve(dispatch) == 1
    assert state(engine, request) is IMPORTING
    assert read(engine, request).outcome is Outcome.COLD


def test_a_task_that_becomes_warm_meanwhile_is_taken(
    engine: Process, dispatch: Dispatcher, template: Template, clock: ManualClock
) -> None:
    engine.store.acquire_maintenance("me", until=clock.now() + 99, now=clock.now())
    request = accepted(engine, dispatch, template)
    dispatch.run_once()
    fill(refill_of(engine))
    assert serve(dispatch) == 1
    assert read(engine, request).outcome is Outcome.WAIT


def test_who_may_only_wait_fails_after_max_wait(
    engine: Process, template: Template, clock: ManualClock
) -> None:
    patient = strict(template, "wait")
    engine.templates.replace({patient.name: patient})
    dispatch = dispatch_of(engine)
    request = accepted(engine, dispatch, patient)
    dispatch.run_once()
    assert state(engine, request) is QUEUED
    clock.advance(patient.pool.max_wait)
    assert dispatch.run_once().started == 0
    assert (state(engine, request), read(engine, request).error_code) == (FAILED, "pool-empty")
    assert entries(engine) == []


@pytest.mark.usefixtures("warm")
def test_on_empty_fail_refuses_at_the_door(
    engine: Process, template: Template, cvat: ScriptedCvat
) -> None:
    impatient = strict(template, "fail")
    engine.templates.replace({impatient.name: impatient})
    dispatch = dispatch_of(engine)
    first = accept(engine, dispatch, impatient, key="k")
    for _ in range(2):
        accept(engine, dispatch, impatient)
    dispatch.drain(PATIENCE)
    before = engine.store.requests().requests
    with pytest.raises(PoolEmpty):
        accept(engine, dispatch, impatient)
    assert engine.store.requests().requests == before
    assert engine.store.leases([LeaseState.WAITING]) == []
    assert len(entries(engine)) == 3
    assert accept(engine, dispatch, impatient, key="k").request == read(
        engine, first.request.id if first.request else ""
    )


@pytest.mark.usefixtures("warm")
def test_a_dry_template_holds_no_other_up(
    engine: Process, template: Template, clock: ManualClock
) -> None:
    engine.templates.replace({template.name: template, OTHER.name: OTHER})
    fill(refill_of(engine))
    dispatch = dispatch_of(engine, workers=2)
    engine.store.drain(template.name, reason="tried out", now=clock.now())
    waiting = [accepted(engine, dispatch, strict(template, "wait")) for _ in range(40)]
    served = accepted(engine, dispatch, OTHER)
    serve(dispatch)
    assert state(engine, served) is IMPORTING
    assert {state(engine, each) for each in waiting} == {QUEUED}


# --- The bound -----------------------------------------------------------------------------------


def test_a_full_queue_refuses_and_keeps_nothing(
    settings: Settings, store: Store, template: Template, cvat: ScriptedCvat, clock: ManualClock
) -> None:
    settings = replace(settings, daemon=DaemonSettings(max_queued=2))
    engine = Process(settings, store=store, cvat=cast(Any, cvat), clock=clock)
    dispatch = dispatch_of(engine)
    engine.breaker.hold(SERVER, CvatBusy("down", http_status=429, retry_after=20.0))
    waiting = [accepted(engine, dispatch, template) for _ in range(2)]
    before = engine.store.requests().requests
    with pytest.raises(QueueFull, match="max_queued") as raised:
        accept(engine, dispatch, template, key="k")
    assert raised.value.retry_after == pytest.approx(20.0)
    assert engine.store.requests().requests == before
    assert entries(engine) == sorted(waiting)
    assert engine.store.cancel_request(waiting[0], now=clock.now())
    assert not accept(engine, dispatch, template, key="k").replayed


# --- People --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("warm")
def test_a_template_that_was_taken_out_is_an_end(
    engine: Process, dispatch: Dispatcher, template: Template
) -> None:
    engine.breaker.hold(SERVER, CvatUnreachable("down"))
    request = accepted(engine, dispatch, template)
    engine.templates.replace({OTHER.name: OTHER})
    assert dispatch.run_once().started == 0
    assert read(engine, request).error_code == "unknown-template"
    assert entries(engine) == []


def test_a_request_that_is_called_off_while_its_task_is_made(
    engine: Process,
    dispatch: Dispatcher,
    template: Template,
    cvat: ScriptedCvat,
    clock: ManualClock,
) -> None:
    request = ""

    def call_off(operation: str) -> None:
        if operation == "create_task":
            assert engine.store.cancel_request(request, now=clock.now())

    cvat.before = call_off
    request = accepted(engine, dispatch, template)
    serve(dispatch)
    assert state(engine, request) is CANCELLED
    assert levels(engine, template) == {"warm": 1}, "its task is as good as any other"
    assert (entries(engine), uploads(cvat)) == ([], [])
