"""Requests in the spool when processes die, sleep for too long or stop."""

from __future__ import annotations

from typing import Any, cast

import pytest
from support.clock import ManualClock
from support.scripted import ScriptedCvat
from support.services import PATIENCE, dispatch_of
from support.spooled import (
    IMPORTING,
    QUEUED,
    accepted,
    come_back,
    entries,
    go_down,
    levels,
    read,
    serve,
    state,
)

from pool.config.settings import Template
from pool.errors import (
    CvatUnreachable,
)
from pool.maintenance.heartbeat import TERM
from pool.model import LeaseState, RequestState
from pool.process import Process
from pool.requests.dispatcher import Dispatcher
from pool.requests.runner import RETRY_AFTER_INTERNAL_ERROR


def another(engine: Process, cvat: ScriptedCvat, clock: ManualClock) -> Process:
    """Another process on the same store."""
    return Process(engine.settings, store=engine.store, cvat=cast(Any, cvat), clock=clock)


@pytest.mark.usefixtures("warm")
def test_queued_requests_outlive_the_daemon(
    engine: Process,
    dispatch: Dispatcher,
    template: Template,
    cvat: ScriptedCvat,
    clock: ManualClock,
) -> None:
    go_down(cvat)
    requests = [accepted(engine, dispatch, template) for _ in range(3)]
    dispatch.drain(PATIENCE)
    come_back(cvat)
    clock.advance(TERM + 60.0)
    heir = another(engine, cvat, clock)
    assert heir.recovery.adopt() == 0
    serve(dispatch_of(heir))
    assert {state(heir, each) for each in requests} == {IMPORTING}
    assert {read(heir, each).owner for each in requests} == {heir.owner}
    heir.close()


@pytest.mark.usefixtures("warm")
def test_an_upload_whose_process_died_gets_another_task(
    engine: Process, template: Template, cvat: ScriptedCvat, clock: ManualClock
) -> None:
    dead = dispatch_of(engine)
    engine.heartbeat.run_once()
    cvat.failures["upload"] = [cast(Any, MemoryError("killed"))]
    request = accepted(engine, dead, template)
    dead.drain(PATIENCE)
    assert state(engine, request) is RequestState.UPLOADING
    burnt = read(engine, request).task_id

    heir = another(engine, cvat, clock)
    dispatch = dispatch_of(heir)
    assert serve(dispatch) == 0, "its process lives"
    clock.advance(TERM + 1.0)
    assert heir.recovery.adopt() == 0
    assert serve(dispatch) == 1
    assert state(heir, request) is IMPORTING
    assert read(heir, request).task_id != burnt
    assert levels(heir, template) == {"warm": 1, "failed": 1, "importing": 1}
    heir.close()


@pytest.mark.usefixtures("warm")
def test_whoever_was_taken_for_dead_does_no_harm(
    engine: Process, template: Template, cvat: ScriptedCvat, clock: ManualClock
) -> None:
    """A process that slept too long finds its upload refused, after its request was taken over."""
    sleeper = dispatch_of(engine)
    heir = another(engine, cvat, clock)
    dispatch = dispatch_of(heir)

    def sleep(operation: str) -> None:
        if operation == "upload":
            cvat.before = lambda _operation: None
            clock.advance(TERM + 1.0)
            heir.heartbeat.run_once()
            assert serve(dispatch) == 1
            raise CvatUnreachable("the network was down as well")

    engine.heartbeat.run_once()
    cvat.before = sleep
    request = accepted(engine, sleeper, template)
    sleeper.drain(PATIENCE)
    record = read(heir, request)
    assert (record.state, record.owner) == (IMPORTING, heir.owner)
    task = heir.store.task(record.pooled_id or "")
    assert task is not None and task.state.value == "importing", "not given back as warm"
    heir.close()


@pytest.mark.usefixtures("warm")
def test_a_request_that_stumbled_is_left_alone_for_a_while(
    engine: Process,
    dispatch: Dispatcher,
    template: Template,
    cvat: ScriptedCvat,
    clock: ManualClock,
) -> None:
    cvat.failures["upload"] = [cast(Any, MemoryError("no"))]
    request = accepted(engine, dispatch, template)
    assert serve(dispatch) == 0
    clock.advance(RETRY_AFTER_INTERNAL_ERROR)
    assert dispatch.is_due()
    assert serve(dispatch) == 1
    assert state(engine, request) is IMPORTING


@pytest.mark.usefixtures("warm")
def test_stopping_leaves_what_has_not_begun_to_others(
    engine: Process,
    dispatch: Dispatcher,
    template: Template,
    cvat: ScriptedCvat,
    clock: ManualClock,
) -> None:
    requests: list[str] = []

    def stop(operation: str) -> None:
        if operation == "upload":
            requests.append(accepted(engine, dispatch, template))
            dispatch.stop(0.0)

    cvat.before = stop
    first = accepted(engine, dispatch, template)
    dispatch.drain(PATIENCE)
    assert state(engine, first) is IMPORTING
    (left,) = requests
    assert (state(engine, left), read(engine, left).owner) == (QUEUED, "")
    lease = engine.store.lease(read(engine, left).lease_id)
    assert lease is not None and lease.state is LeaseState.WAITING
    # What has been taken in meanwhile is accepted all the same, for the next daemon.
    late = accepted(engine, dispatch, template)
    assert (state(engine, late), read(engine, late).owner) == (QUEUED, "")
    assert entries(engine) == sorted([first, left, late])
