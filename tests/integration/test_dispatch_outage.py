"""Requests in the spool while CVAT is away, and when it is back."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from support.clock import ManualClock
from support.scripted import ScriptedCvat
from support.services import PATIENCE, dispatch_of, fill, open_lease, refill_of
from support.spooled import (
    IMPORTING,
    QUEUED,
    READY,
    accept,
    accepted,
    come_back,
    entries,
    go_down,
    import_all,
    levels,
    read,
    serve,
    state,
    uploads,
)

from pool.config.settings import Template
from pool.errors import CvatBusy, CvatError, CvatUnreachable
from pool.maintenance.deletion import Deletion
from pool.maintenance.lease_expiry import LeaseExpiry
from pool.maintenance.reconcile import Reconcile
from pool.model import RequestState
from pool.process import Process
from pool.requests.breaker import SERVER, TRANSIENT_CAP
from pool.requests.dispatcher import Dispatcher

FAILED, CANCELLED = RequestState.FAILED, RequestState.CANCELLED


def strict(template: Template, on_empty: Any) -> Template:
    return replace(template, pool=replace(template.pool, on_empty=on_empty))


# --- CVAT is away --------------------------------------------------------------------------------


@pytest.mark.usefixtures("warm")
def test_a_server_that_is_down_costs_no_task_and_no_request(
    engine: Process,
    dispatch: Dispatcher,
    template: Template,
    cvat: ScriptedCvat,
    clock: ManualClock,
) -> None:
    go_down(cvat)
    request = accepted(engine, dispatch, template)
    dispatch.drain(PATIENCE)
    assert state(engine, request) is QUEUED
    assert levels(engine, template) == {"warm": 3}
    assert engine.store.holds()[SERVER].code == "cvat-unreachable"
    assert (read(engine, request).owner, read(engine, request).imports_used) == ("", 0)
    come_back(cvat)
    assert serve(dispatch) == 0, "held"
    clock.advance(2.0)
    assert dispatch.is_due()
    assert serve(dispatch) == 1
    assert state(engine, request) is IMPORTING
    assert engine.store.holds() == {}
    assert [call[0] for call in cvat.calls] == ["upload", "tasks", "tasks", "upload"]


@pytest.mark.usefixtures("warm")
def test_what_comes_while_the_server_is_held_takes_no_task(
    engine: Process, dispatch: Dispatcher, template: Template, cvat: ScriptedCvat
) -> None:
    go_down(cvat)
    accepted(engine, dispatch, template)
    dispatch.drain(PATIENCE)
    cvat.calls.clear()
    request = accepted(engine, dispatch, template)
    serve(dispatch)
    assert cvat.calls == []
    assert state(engine, request) is QUEUED
    assert levels(engine, template) == {"warm": 3}


@pytest.mark.usefixtures("warm")
def test_the_server_is_asked_before_any_request_is_tried(
    engine: Process,
    dispatch: Dispatcher,
    template: Template,
    cvat: ScriptedCvat,
    clock: ManualClock,
) -> None:
    go_down(cvat)
    requests = [accepted(engine, dispatch, template) for _ in range(3)]
    dispatch.drain(PATIENCE)
    for _ in range(3):
        clock.advance(60.0)
        cvat.calls.clear()
        dispatch.run_once()
        dispatch.run_once()
        dispatch.drain(PATIENCE)
        assert [call[0] for call in cvat.calls] == ["tasks"]
    come_back(cvat)
    clock.advance(60.0)
    serve(dispatch)
    tasks = [read(engine, each).task_id for each in requests]
    assert list(uploads(cvat)) == tasks, "the oldest first"


@pytest.mark.usefixtures("warm")
def test_nobody_overtakes_those_who_wait(
    engine: Process, dispatch: Dispatcher, template: Template, cvat: ScriptedCvat
) -> None:
    engine.breaker.hold(SERVER, CvatUnreachable("down"))
    waiting = [accepted(engine, dispatch, template) for _ in range(2)]
    engine.store.release_hold(SERVER, now=engine.clock.now())
    late = accept(engine, dispatch, template)
    assert late.task is None and late.request is not None
    serve(dispatch)
    served = [read(engine, each).task_id for each in (*waiting, late.request.id)]
    assert list(uploads(cvat)) == served


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("status", [500, 503])
def test_an_upload_into_the_void_costs_one_task_and_no_more(
    engine: Process,
    dispatch: Dispatcher,
    template: Template,
    cvat: ScriptedCvat,
    clock: ManualClock,
    status: int,
) -> None:
    go_down(cvat, CvatBusy("gateway", http_status=status))
    request = accepted(engine, dispatch, template)
    for _ in range(20):
        serve(dispatch)
        clock.advance(60.0)
    assert levels(engine, template) == {"warm": 2, "failed": 1}
    assert read(engine, request).imports_used == 1
    come_back(cvat)
    serve(dispatch)
    assert state(engine, request) is IMPORTING


@pytest.mark.usefixtures("warm")
def test_a_maintenance_page_fails_nothing(
    engine: Process,
    dispatch: Dispatcher,
    template: Template,
    cvat: ScriptedCvat,
    clock: ManualClock,
) -> None:
    go_down(cvat, CvatError("does not look like a CVAT server"))
    requests = [accepted(engine, dispatch, template) for _ in range(2)]
    for _ in range(5):
        serve(dispatch)
        clock.advance(60.0)
    assert {state(engine, each) for each in requests} == {QUEUED}
    come_back(cvat)
    serve(dispatch)
    assert {state(engine, each) for each in requests} == {IMPORTING}


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize(("asked", "granted"), [(30.0, 30.0), (86400.0, TRANSIENT_CAP)])
def test_retry_after_is_honoured_up_to_the_longest_back_off(
    engine: Process,
    dispatch: Dispatcher,
    template: Template,
    cvat: ScriptedCvat,
    clock: ManualClock,
    asked: float,
    granted: float,
) -> None:
    cvat.failures["upload"] = [CvatBusy("slow down", http_status=429, retry_after=asked)]
    request = accepted(engine, dispatch, template)
    serve(dispatch)
    clock.advance(granted - 1.0)
    assert serve(dispatch) == 0
    clock.advance(2.0)
    assert serve(dispatch) == 1
    assert state(engine, request) is IMPORTING


@pytest.mark.usefixtures("warm")
def test_a_hold_that_nobody_waits_for_ends_by_itself(
    engine: Process, dispatch: Dispatcher, cvat: ScriptedCvat, clock: ManualClock
) -> None:
    engine.breaker.hold(SERVER, CvatUnreachable("a caller met this"))
    go_down(cvat)
    clock.advance(60.0)
    serve(dispatch)
    assert SERVER in engine.store.holds()
    come_back(cvat)
    clock.advance(60.0)
    serve(dispatch)
    assert engine.store.holds() == {}
    assert [call[0] for call in cvat.calls] == ["tasks", "tasks"]


def test_a_pool_that_is_empty_because_cvat_is_away_is_no_reason_to_fail(
    engine: Process, template: Template, cvat: ScriptedCvat, clock: ManualClock
) -> None:
    patient = strict(template, "wait")
    engine.templates.replace({patient.name: patient})
    dispatch = dispatch_of(engine)
    engine.breaker.hold(SERVER, CvatUnreachable("down"))
    go_down(cvat)
    request = accepted(engine, dispatch, patient)
    for _ in range(60):
        dispatch.run_once()
        dispatch.drain(PATIENCE)
        clock.advance(60.0)
    assert state(engine, request) is QUEUED
    come_back(cvat)
    clock.advance(60.0)
    serve(dispatch)
    fill(refill_of(engine))
    serve(dispatch)
    assert state(engine, request) is IMPORTING


@pytest.mark.usefixtures("warm")
def test_the_refill_leaves_asking_to_the_dispatcher(
    engine: Process,
    dispatch: Dispatcher,
    template: Template,
    cvat: ScriptedCvat,
    clock: ManualClock,
) -> None:
    go_down(cvat)
    accepted(engine, dispatch, template)
    dispatch.drain(PATIENCE)
    clock.advance(60.0)
    refill = refill_of(engine)
    assert fill(refill) == 0
    assert cvat.count("create_task") == 0
    come_back(cvat)
    serve(dispatch)
    import_all(engine, cvat, clock)
    clock.advance(1.0)
    assert fill(refill) == 1


def leave_work_for_everybody(engine: Process, dispatch: Dispatcher, cvat: ScriptedCvat) -> str:
    """One of each: a task to name, one to delete, one that a lease has had for too long, and an
    import, whose request is the answer."""
    template = engine.templates["scenes"]
    named = open_lease(engine, template).task
    assert named is not None and named.task_id is not None
    cvat.make_ready(named.task_id)
    jobs = cvat.jobs_there[named.task_id]
    assert engine.store.complete_import(named.id, jobs, now=engine.clock.now())
    assert engine.store.retire_excess("scenes", keep=1, reason="old", now=engine.clock.now())
    open_lease(engine, template, ttl=1.0)
    fill(refill_of(engine))
    importing = accepted(engine, dispatch, template)
    dispatch.drain(PATIENCE)
    return importing


def test_cvat_down_for_an_hour(
    engine: Process,
    dispatch: Dispatcher,
    template: Template,
    cvat: ScriptedCvat,
    clock: ManualClock,
) -> None:
    """Requests come in all the while; nothing is lost or hammered, and all is well afterwards."""
    refill = refill_of(engine)
    fill(refill)
    importing = leave_work_for_everybody(engine, dispatch, cvat)
    services = (
        Reconcile(
            engine.store,
            engine.cvat(),
            engine.templates,
            http_timeout=30.0,
            verify_every=600.0,
            clock=clock,
        ),
        LeaseExpiry(engine.store, engine.cvat(), clock=clock),
        Deletion(engine.store, engine.cvat(), owner=engine.owner, clock=clock),
        engine.finalize,
        engine.tracker,
    )
    go_down(cvat)
    cvat.calls.clear()
    requests: list[str] = []
    minutes: list[int] = []
    for second in range(0, 3600, 4):
        if second % 120 == 0:
            requests.append(accepted(engine, dispatch, template))
        if second % 60 == 0:
            minutes.append(len(cvat.calls))
        dispatch.run_once()
        dispatch.drain(PATIENCE)
        fill(refill)
        for service in services:
            service.run_once()
        clock.advance(4.0)
    calls = [after - before for before, after in pairwise(minutes)]
    assert calls[0] < 20, "while the pauses grow from a second"
    assert max(calls[1:]) < 10, "for all services and templates together"
    assert {state(engine, each) for each in requests} == {QUEUED}
    assert state(engine, importing) is IMPORTING
    assert entries(engine) == sorted([*requests, importing])

    come_back(cvat)
    back = clock.monotonic()
    while any(state(engine, each) is QUEUED for each in requests):
        serve(dispatch)
        fill(refill)
        clock.advance(1.0)
    assert clock.monotonic() - back <= 65.0, "as soon as it was tried again"
    assert {state(engine, each) for each in requests} == {IMPORTING}
    tasks = [read(engine, each).task_id for each in requests]
    assert list(uploads(cvat)[-len(requests) :]) == tasks, "the oldest first"
    import_all(engine, cvat, clock)
    clock.advance(60.0)
    for service in services:
        service.run_once()
    fill(refill)
    assert {state(engine, each) for each in (*requests, importing)} == {READY}
    assert engine.store.due_steps(now=clock.now(), limit=99) == []
    assert engine.store.warm_of(template.name, template.fingerprint) == template.pool.min_size
