"""Requests in the spool when CVAT says no, or when tasks turn out to be no use."""

from __future__ import annotations

from typing import Any

import pytest
from support.clock import ManualClock
from support.scripted import ScriptedCvat
from support.services import PATIENCE, dispatch_of, fill, refill_of
from support.spooled import (
    IMPORTING,
    OTHER,
    QUEUED,
    READY,
    accepted,
    come_back,
    entries,
    go_down,
    import_all,
    levels,
    read,
    receive,
    serve,
    state,
    uploads,
)

from pool.config.settings import Template
from pool.cvat.failures import mark_not_finished, mark_touched
from pool.errors import (
    CvatAmbiguous,
    CvatBusy,
    CvatError,
    CvatForbidden,
    CvatNotFound,
    CvatRefusedCredentials,
    CvatRejected,
    CvatUnreachable,
    StoreError,
)
from pool.model import MOST_TASKS_SPOOLED, RequestState
from pool.process import Process
from pool.requests.breaker import SERVER
from pool.requests.dispatcher import Dispatcher
from pool.requests.runner import RETRY_AFTER_INTERNAL_ERROR


def failing(error: Exception) -> Any:
    def fail(*_: object) -> None:
        raise error

    return fail


FAILED, CANCELLED = RequestState.FAILED, RequestState.CANCELLED


# --- CVAT says no --------------------------------------------------------------------------------


@pytest.mark.usefixtures("warm")
def test_what_cvat_refuses_fails_in_its_words(
    engine: Process, dispatch: Dispatcher, template: Template, cvat: ScriptedCvat
) -> None:
    cvat.failures["upload"] = [CvatRejected("HTTP 413 too large", http_status=413)]
    request = accepted(engine, dispatch, template)
    serve(dispatch)
    assert (state(engine, request), read(engine, request).error) == (FAILED, "HTTP 413 too large")
    assert levels(engine, template) == {"warm": 2, "failed": 1}
    assert entries(engine) == []
    assert engine.store.holds() == {}


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("kind", [CvatRefusedCredentials, CvatForbidden])
def test_refused_credentials_hold_one_template_until_a_person_acts(
    engine: Process,
    dispatch: Dispatcher,
    template: Template,
    cvat: ScriptedCvat,
    clock: ManualClock,
    kind: type[CvatError],
) -> None:
    engine.templates.replace({template.name: template, OTHER.name: OTHER})
    fill(refill_of(engine))
    cvat.failures["upload"] = [kind("read-only") for _ in range(3)]
    requests = [accepted(engine, dispatch, template) for _ in range(2)]
    serve(dispatch)
    assert {state(engine, each) for each in requests} == {QUEUED}
    assert "read-only" in engine.store.holds()[template.name].reason
    tried = cvat.count("upload")
    served = accepted(engine, dispatch, OTHER)
    cvat.failures["upload"].clear()
    serve(dispatch)
    assert state(engine, served) is IMPORTING
    assert cvat.count("upload") == tried + 1
    engine.store.release_hold(template.name, now=engine.clock.now())  # as "cvat-pool resume" does
    serve(dispatch)
    assert {state(engine, each) for each in requests} == {IMPORTING}


@pytest.mark.usefixtures("warm")
def test_a_refusal_of_all_is_tried_again_with_one(
    engine: Process, template: Template, cvat: ScriptedCvat, clock: ManualClock
) -> None:
    dispatch = dispatch_of(engine, workers=8)
    cvat.failures["upload"] = [CvatRefusedCredentials("revoked") for _ in range(5)]
    requests = [accepted(engine, dispatch, template) for _ in range(3)]
    serve(dispatch)
    clock.advance(61.0)
    cvat.calls.clear()
    serve(dispatch)
    assert cvat.count("upload") == 1
    cvat.failures["upload"].clear()
    clock.advance(200.0)
    serve(dispatch)
    assert {state(engine, each) for each in requests} == {IMPORTING}
    assert engine.store.holds() == {}


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize(
    ("error", "end"),
    [
        (CvatForbidden("not your cloud storage"), FAILED),
        (CvatBusy("HTTP 500", http_status=500), FAILED),
        (CvatUnreachable("reset"), FAILED),
        # A token that is refused is never a request's own fault.
        (CvatRefusedCredentials("revoked"), QUEUED),
    ],
)
def test_data_that_cvat_alone_does_not_take_does_not_hold_up_the_others(
    engine: Process,
    dispatch: Dispatcher,
    template: Template,
    cvat: ScriptedCvat,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
    error: CvatError,
    end: RequestState,
) -> None:
    send, refill = cvat.upload, refill_of(engine)

    def choosy(task_id: int, data: Any, params: Any, **options: Any) -> str:
        if data.files[0].name == "theirs.jpg":
            cvat.calls.append(("refused", task_id))
            raise error
        return send(task_id, data, params, **options)

    monkeypatch.setattr(cvat, "upload", choosy)
    upload, request = receive(engine, "theirs.jpg")
    dispatch.accept(template, upload, request)
    dispatch.drain(PATIENCE)
    first = accepted(engine, dispatch, template)
    clock.advance(61.0)
    serve(dispatch)
    assert state(engine, first) is IMPORTING, "tried before the one that has failed"
    for _ in range(9):
        clock.advance(10.0)
        serve(dispatch)
        if end is FAILED:
            fill(refill)
            other = accepted(engine, dispatch, template)
            serve(dispatch)
            assert state(engine, other) is IMPORTING, "not held up any more"
    assert state(engine, request.id) is end
    if end is FAILED:
        assert cvat.count("refused") == 3
        assert read(engine, request.id).error == (
            f"{error.detail}; the same works for others, so look at its files and data parameters"
        )
        assert engine.store.holds() == {}


def test_a_template_that_cvat_will_not_make_is_not_tried_for_each_request(
    engine: Process,
    dispatch: Dispatcher,
    template: Template,
    cvat: ScriptedCvat,
    clock: ManualClock,
) -> None:
    cvat.failures["create_task"] = [CvatRejected("no such project") for _ in range(9)]
    requests = [accepted(engine, dispatch, template) for _ in range(3)]
    serve(dispatch)
    assert [state(engine, each) for each in requests] == [FAILED, QUEUED, QUEUED]
    assert read(engine, requests[0]).error == "no such project"
    assert cvat.count("create_task") == 1
    cvat.failures.clear()
    clock.advance(61.0)
    serve(dispatch)
    assert [state(engine, each) for each in requests[1:]] == [IMPORTING, IMPORTING]


# --- Tasks that turn out to be no use ------------------------------------------------------------


@pytest.mark.usefixtures("warm")
def test_a_task_that_is_gone_is_replaced(
    engine: Process, dispatch: Dispatcher, template: Template, cvat: ScriptedCvat
) -> None:
    cvat.failures["upload"] = [CvatNotFound("No Task matches the given query.")]
    request = accepted(engine, dispatch, template)
    serve(dispatch)
    assert state(engine, request) is IMPORTING
    assert len(set(uploads(cvat))) == 2
    assert levels(engine, template) == {"warm": 1, "failed": 1, "importing": 1}


@pytest.mark.usefixtures("warm")
def test_an_upload_that_is_cut_is_sent_again_a_little_later(
    engine: Process,
    dispatch: Dispatcher,
    template: Template,
    cvat: ScriptedCvat,
    clock: ManualClock,
) -> None:
    cut = CvatUnreachable("cut after 5 of 10 bytes")
    mark_touched(cut)
    mark_not_finished(cut)
    cvat.failures["upload"] = [cut]
    request = accepted(engine, dispatch, template)
    assert serve(dispatch) == 0
    assert state(engine, request) is QUEUED
    assert engine.store.holds() == {}, "a proxy may cut this upload, and no other"
    clock.advance(1.0)
    assert dispatch.is_due()
    assert serve(dispatch) == 1
    assert len(set(uploads(cvat))) == 2


@pytest.mark.usefixtures("warm")
def test_an_answer_that_was_lost_is_settled_by_looking(
    engine: Process, dispatch: Dispatcher, template: Template, cvat: ScriptedCvat
) -> None:
    cvat.failures["upload"] = [CvatAmbiguous("reset")]
    cvat.before = lambda operation: (
        cvat.make_ready(uploads(cvat)[0]) if operation == "upload" else None
    )
    request = accepted(engine, dispatch, template)
    serve(dispatch)
    assert state(engine, request) is IMPORTING
    assert cvat.count("upload") == 1


@pytest.mark.usefixtures("warm")
def test_where_no_upload_works_no_request_fails(
    engine: Process,
    dispatch: Dispatcher,
    template: Template,
    cvat: ScriptedCvat,
    clock: ManualClock,
) -> None:
    """CVAT's disk is full, say: it answers all questions, and takes no data."""
    cvat.failures["upload"] = [CvatBusy("HTTP 500", http_status=500) for _ in range(999)]
    requests = [accepted(engine, dispatch, template) for _ in range(2)]
    refill = refill_of(engine)
    for _ in range(2 * MOST_TASKS_SPOOLED):
        clock.advance(61.0)
        fill(refill)
        before = cvat.count("upload")
        serve(dispatch)
        assert cvat.count("upload") == before + 1, "one try a minute, and a task for it"
    assert {state(engine, each) for each in requests} == {QUEUED}
    spent = [read(engine, each).imports_used for each in requests]
    assert abs(spent[0] - spent[1]) <= 1, "each in turn"
    hold = engine.store.holds()[template.name]
    assert (hold.uploads, "HTTP 500" in hold.reason) == (True, True)
    cvat.failures["upload"].clear()
    clock.advance(61.0)
    fill(refill)
    serve(dispatch)
    fill(refill)
    serve(dispatch)
    assert {state(engine, each) for each in requests} == {IMPORTING}
    assert engine.store.holds() == {}


@pytest.mark.usefixtures("warm")
def test_an_import_that_cvat_lost_is_sent_again(
    engine: Process,
    dispatch: Dispatcher,
    template: Template,
    cvat: ScriptedCvat,
    clock: ManualClock,
) -> None:
    request = accepted(engine, dispatch, template)
    dispatch.drain(PATIENCE)
    while state(engine, request) is IMPORTING:
        clock.advance(engine.tracker.seconds_until_due() or 0.0)
        engine.tracker.run_once()
    assert state(engine, request) is QUEUED
    assert serve(dispatch) == 1
    import_all(engine, cvat, clock)
    assert state(engine, request) is READY
    assert len(set(uploads(cvat))) == 2


@pytest.mark.usefixtures("warm")
def test_an_import_is_not_late_while_nobody_can_tell(
    engine: Process,
    dispatch: Dispatcher,
    template: Template,
    cvat: ScriptedCvat,
    clock: ManualClock,
) -> None:
    requests = []
    for _ in range(3):
        requests.append(accepted(engine, dispatch, template))
        clock.advance(0.03)
    dispatch.drain(PATIENCE)
    go_down(cvat)
    cvat.calls.clear()
    end = clock.monotonic() + 3600.0
    while clock.monotonic() < end:
        clock.advance(engine.tracker.seconds_until_due() or 0.0)
        engine.tracker.run_once()
    assert {state(engine, each) for each in requests} == {IMPORTING}
    assert len(cvat.calls) < 240, "all are asked for together"
    come_back(cvat)
    import_all(engine, cvat, clock)
    assert {state(engine, each) for each in requests} == {READY}


@pytest.mark.usefixtures("warm")
def test_data_that_cannot_be_read_now_costs_no_task(
    engine: Process,
    dispatch: Dispatcher,
    template: Template,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine.breaker.hold(SERVER, CvatUnreachable("down"))
    request = accepted(engine, dispatch, template)
    engine.store.release_hold(SERVER, now=engine.clock.now())
    with monkeypatch.context() as patch:
        patch.setattr(engine.spool, "load", failing(StoreError("permission denied")))
        serve(dispatch)
    assert state(engine, request) is QUEUED
    assert levels(engine, template) == {"warm": 3}
    clock.advance(RETRY_AFTER_INTERNAL_ERROR)
    serve(dispatch)
    assert state(engine, request) is IMPORTING


@pytest.mark.usefixtures("warm")
def test_data_that_is_gone_is_an_end(
    engine: Process,
    dispatch: Dispatcher,
    template: Template,
    cvat: ScriptedCvat,
    clock: ManualClock,
) -> None:
    go_down(cvat)
    request = accepted(engine, dispatch, template)
    dispatch.drain(PATIENCE)
    come_back(cvat)
    engine.spool.drop(request)
    clock.advance(60.0)
    serve(dispatch)
    assert (state(engine, request), read(engine, request).error_code) == (FAILED, "data-gone")
    assert levels(engine, template) == {"warm": 3}
