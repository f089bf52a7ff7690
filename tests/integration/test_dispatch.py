"""Requests that a daemon has accepted over HTTP: served at once, or when there is a task; while
CVAT is away; when it says no; and when processes die or stop.

The daemon's services run one by one, on a scripted CVAT and a clock that the test moves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

import pytest
from support.clock import ManualClock
from support.scripted import ScriptedCvat
from support.stepped import (
    CANCELLED,
    CONTENT,
    FAILED,
    IMPORTING,
    OTHER,
    QUEUED,
    READY,
    Start,
    Stepped,
    come_back,
    go_down,
    uploads,
)
from support.waiting import PATIENCE, wait_until

from pool.config.settings import PoolSettings, Template
from pool.cvat.records import ImportState, ImportStatus
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
from pool.maintenance.heartbeat import TERM
from pool.model import MOST_TASKS_SPOOLED, LeaseState, Outcome, RequestState
from pool.requests.breaker import SERVER, TRANSIENT_CAP
from pool.requests.dispatcher import GONE_AFTER
from pool.requests.runner import RETRY_AFTER_INTERNAL_ERROR
from pool.requests.worker_pool import WORKERS
from pool.store import Store

#: Seconds after which whatever failed in passing is tried again.
LATER = TRANSIENT_CAP + 1.0


def on_empty(template: Template, choice: Any) -> Template:
    return replace(template, pool=replace(template.pool, on_empty=choice))


def queued(daemon: Stepped, count: int, template: str = "scenes") -> list[str]:
    """Requests that wait because CVAT is away; it is back when this returns, and held."""
    go_down(daemon.cvat)
    requests = [daemon.accept(template) for _ in range(count)]
    daemon.serve()
    come_back(daemon.cvat)
    daemon.cvat.calls.clear()
    return requests


def calls(cvat: ScriptedCvat) -> list[str]:
    return [call[0] for call in cvat.calls]


# --- With a task, and without ---------------------------------------------------------------------


def test_an_accepted_request_is_served_at_once(daemon: Stepped, cvat: ScriptedCvat) -> None:
    request = daemon.accept()
    assert daemon.read(request).outcome is Outcome.HIT
    daemon.drain()
    assert calls(cvat) == ["upload"]
    (file,) = cvat.calls[0][2].files
    assert (file.name, file.source.read_bytes()) == ("a.jpg", CONTENT)
    assert daemon.states(request) == {IMPORTING}
    assert daemon.spooled() == [request], "it may be needed again"
    daemon.import_all()
    daemon.stop()
    assert daemon.spooled() == []


@pytest.mark.parametrize("meanwhile", ["nothing", "a task becomes warm"])
def test_an_empty_pool_is_waited_for_and_then_a_task_made(
    empty: Stepped, template: Template, meanwhile: str
) -> None:
    request = empty.accept()
    assert empty.serve() == 0
    assert not empty.dispatcher.is_due()
    if meanwhile == "nothing":
        empty.advance(template.pool.max_wait)
        assert empty.dispatcher.is_due()
    else:
        empty.fill()
    assert empty.serve() == 1
    assert empty.states(request) == {IMPORTING}
    cold = meanwhile == "nothing"
    assert empty.read(request).outcome is (Outcome.COLD if cold else Outcome.WAIT)


def test_who_may_only_wait_fails_after_max_wait(start: Start, template: Template) -> None:
    daemon = start(on_empty(template, "wait"))
    request = daemon.accept()
    daemon.serve()
    assert daemon.states(request) == {QUEUED}
    daemon.advance(template.pool.max_wait)
    assert daemon.serve() == 0
    record = daemon.read(request)
    assert (record.state, record.error_code) == (FAILED, "pool-empty")
    assert daemon.spooled() == []


def test_who_gets_a_task_at_the_last_moment_does_not_fail(start: Start, template: Template) -> None:
    daemon = start(on_empty(template, "wait"))
    request = daemon.accept()
    daemon.serve()
    daemon.fill()
    daemon.advance(template.pool.max_wait)
    assert daemon.serve() == 1
    assert daemon.states(request) == {IMPORTING}


def test_on_empty_fail_refuses_at_the_door(start: Start, template: Template, store: Store) -> None:
    daemon = start(on_empty(template, "fail"))
    daemon.fill()
    first = daemon.accept(key="k")
    rest = [daemon.accept() for _ in range(2)]
    refused = daemon.post()
    assert (refused.status, refused.code) == (503, "pool-empty")
    assert len(store.requests().requests) == 3
    assert store.leases([LeaseState.WAITING]) == []
    assert daemon.spooled() == sorted([first, *rest])
    assert daemon.accept(key="k") == first, "known already"


def test_data_stays_while_it_is_in_doubt_whether_its_request_is_accepted(
    daemon: Stepped, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to the commit was lost, and the caller calls again."""
    with monkeypatch.context() as patched:
        patched.setattr(store, "open_lease", _committing_in_doubt(store.open_lease))
        lost = daemon.post(key="k")
    assert (lost.status, lost.code) == (503, "store")
    request = daemon.accept(key="k")
    assert daemon.spooled() == [request]


def _committing_in_doubt(write: Callable[..., object]) -> Callable[..., object]:
    def written(*arguments: Any, **options: Any) -> object:
        write(*arguments, **options)
        error = StoreError("the connection was lost")
        error.in_doubt = True
        raise error

    return written


def test_a_full_queue_refuses_and_keeps_nothing(
    start: Start, cvat: ScriptedCvat, store: Store
) -> None:
    daemon = start(max_queued=2)
    daemon.fill()
    go_down(cvat, CvatBusy("down", http_status=429, retry_after=20.0))
    waiting = [daemon.accept(), daemon.accept()]
    daemon.serve()
    refused = daemon.post(key="k")
    assert (refused.status, refused.code) == (429, "queue-full")
    assert "max_queued" in refused.json["detail"]
    assert refused.headers["retry-after"] == "20"
    assert len(store.requests().requests) == 2
    assert daemon.spooled() == sorted(waiting)
    daemon.pool.request(waiting[0]).cancel()
    assert daemon.states(daemon.accept(key="k")) == {QUEUED}


@pytest.mark.parametrize("trouble", ["nothing warm", "slow creates", "slow uploads"])
def test_a_template_in_trouble_leaves_workers_for_the_others(
    start: Start,
    template: Template,
    cvat: ScriptedCvat,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    trouble: str,
) -> None:
    """More requests of it wait than there are workers, and another's is served meanwhile."""
    most, go_on = 2 * WORKERS, threading.Event()
    create, send = cvat.create_task, cvat.upload

    def create_slowly(fields: Any, name: str, **options: Any) -> int:
        assert f" {template.name}:" not in name or go_on.wait(2 * PATIENCE)
        return create(fields, name, **options)

    def send_slowly(task_id: int, data: Any, params: Any, **options: Any) -> str:
        assert data.files[0].name != "slow.jpg" or go_on.wait(2 * PATIENCE)
        return send(task_id, data, params, **options)

    pool = PoolSettings(min_size=0, max_size=most, max_wait=60.0, on_empty="wait")
    if trouble == "slow creates":
        pool = replace(pool, max_wait=0.0, on_empty="create", create_concurrency=most)
        monkeypatch.setattr(cvat, "create_task", create_slowly)
    if trouble == "slow uploads":
        pool = replace(pool, min_size=most)
        monkeypatch.setattr(cvat, "upload", send_slowly)
    daemon = start(replace(template, pool=pool), OTHER, workers=WORKERS)
    daemon.fill()
    try:
        waiting = [daemon.accept(name="slow.jpg") for _ in range(most)]
        daemon.dispatcher.run_once()
        served = daemon.accept(OTHER.name)
        wait_until(store, lambda: daemon.states(served) == {IMPORTING})
        assert IMPORTING not in daemon.states(*waiting)
    finally:
        go_on.set()


def test_a_template_that_was_taken_out_is_an_end(daemon: Stepped) -> None:
    (request,) = queued(daemon, 1)
    daemon.process.templates.replace({OTHER.name: OTHER})
    assert daemon.serve() == 0
    assert daemon.states(request) == {QUEUED}, "a daemon that has it may be about to start"
    daemon.advance(GONE_AFTER)
    assert daemon.dispatcher.is_due()
    assert daemon.serve() == 0
    assert daemon.read(request).error_code == "unknown-template"
    assert daemon.spooled() == []


def test_a_request_that_is_called_off_while_its_task_is_made(
    empty: Stepped, template: Template, cvat: ScriptedCvat
) -> None:
    request = empty.accept()

    def call_off(operation: str) -> None:
        if operation == "create_task":
            with empty.api as api:
                assert api.delete(f"/v1/requests/{request}").status == 204

    cvat.before = call_off
    empty.advance(template.pool.max_wait)
    empty.serve()
    assert empty.states(request) == {CANCELLED}
    assert empty.levels() == {"warm": 1}, "its task is as good as any other"
    assert (empty.spooled(), uploads(cvat)) == ([], [])


# --- CVAT is away ---------------------------------------------------------------------------------


def test_a_server_that_is_down_costs_no_task_and_no_request(
    daemon: Stepped, cvat: ScriptedCvat, store: Store
) -> None:
    go_down(cvat)
    request = daemon.accept()
    daemon.drain()
    assert (daemon.states(request), daemon.levels()) == ({QUEUED}, {"warm": 3})
    assert store.holds()[SERVER].code == "cvat-unreachable"
    assert (daemon.read(request).owner, daemon.read(request).imports_used) == ("", 0)
    later = daemon.accept()
    assert daemon.serve() == 0, "held"
    assert calls(cvat) == ["upload", "tasks"], "the second is not even tried"
    assert (daemon.states(later), daemon.levels()) == ({QUEUED}, {"warm": 3})
    come_back(cvat)
    daemon.advance(LATER)
    assert daemon.dispatcher.is_due()
    assert daemon.serve() == 2
    assert daemon.states(request, later) == {IMPORTING}
    assert store.holds() == {}
    assert calls(cvat)[2:] == ["tasks", "upload", "upload"]


def test_the_server_is_asked_before_any_request_is_tried(
    daemon: Stepped, cvat: ScriptedCvat
) -> None:
    requests = queued(daemon, 3)
    go_down(cvat)
    for _ in range(3):
        daemon.advance(LATER)
        cvat.calls.clear()
        daemon.dispatcher.run_once()
        daemon.dispatcher.run_once()
        daemon.drain()
        assert calls(cvat) == ["tasks"]
    come_back(cvat)
    daemon.advance(LATER)
    daemon.serve()
    assert uploads(cvat) == [daemon.read(each).task_id for each in requests], "the oldest first"


def test_no_request_overtakes_those_that_wait(daemon: Stepped, cvat: ScriptedCvat) -> None:
    waiting = queued(daemon, 2)
    daemon.pool.resume("scenes")
    late = daemon.accept()
    assert daemon.states(late) == {QUEUED}
    daemon.serve()
    assert uploads(cvat) == [daemon.read(each).task_id for each in (*waiting, late)]


@pytest.mark.parametrize(
    "error",
    [
        CvatBusy("gateway", http_status=500),
        CvatBusy("gateway", http_status=503),
        CvatError("does not look like a CVAT server"),
    ],
    ids=["500", "503", "a maintenance page"],
)
def test_an_upload_into_the_void_costs_one_task_and_no_more(
    daemon: Stepped, cvat: ScriptedCvat, error: CvatError
) -> None:
    go_down(cvat, error)
    request = daemon.accept()
    for _ in range(20):
        daemon.serve()
        daemon.advance(LATER)
    assert daemon.levels() == {"warm": 2, "failed": 1}
    assert daemon.read(request).imports_used == 1
    come_back(cvat)
    daemon.serve()
    assert daemon.states(request) == {IMPORTING}


def test_a_hold_that_no_request_waits_for_ends_by_itself(
    daemon: Stepped, cvat: ScriptedCvat, store: Store
) -> None:
    (request,) = queued(daemon, 1)
    daemon.pool.request(request).cancel()
    go_down(cvat)
    daemon.advance(LATER)
    daemon.serve()
    assert SERVER in store.holds()
    come_back(cvat)
    daemon.advance(LATER)
    daemon.serve()
    assert store.holds() == {}
    assert calls(cvat) == ["tasks", "tasks"]


def test_a_pool_that_is_empty_because_cvat_is_away_is_no_reason_to_fail(
    start: Start, template: Template, cvat: ScriptedCvat
) -> None:
    daemon = start(on_empty(template, "wait"))
    go_down(cvat)
    daemon.run("refill")
    daemon.refill.drain(PATIENCE)
    request = daemon.accept()
    for _ in range(60):
        daemon.serve()
        daemon.advance(LATER)
    assert daemon.states(request) == {QUEUED}
    come_back(cvat)
    daemon.serve()
    daemon.fill()
    daemon.serve()
    assert daemon.states(request) == {IMPORTING}


def test_the_refill_leaves_asking_to_the_dispatcher(daemon: Stepped, cvat: ScriptedCvat) -> None:
    queued(daemon, 1)
    go_down(cvat)
    daemon.advance(LATER)
    assert daemon.fill() == 0
    assert cvat.count("create_task") == 0
    come_back(cvat)
    daemon.serve()
    daemon.import_all()
    daemon.advance(1.0)
    assert daemon.fill() == 1


SERVICES = ("reconcile", "lease_expiry", "delete", "finalize")


def leave_work_for_all(daemon: Stepped) -> str:
    """One of each: a task to name, one to delete, one that a lease has had for too long, and an
    import, whose request is the answer."""
    cvat, store, clock = daemon.cvat, daemon.store, daemon.clock
    named = daemon.accept(name="named.jpg")
    daemon.drain()
    daemon.import_all()
    assert daemon.states(named) == {READY}
    daemon.fill()
    assert store.retire_excess("scenes", keep=1, reason="old", now=clock.now())
    daemon.pool.acquire("scenes", ttl=1.0)
    daemon.fill()
    cvat.calls.clear()
    importing = daemon.accept()
    daemon.drain()
    return importing


def test_cvat_down_for_an_hour(
    daemon: Stepped, template: Template, cvat: ScriptedCvat, store: Store, clock: ManualClock
) -> None:
    """Requests come in all the while; nothing is lost or hammered, and all is well afterwards."""
    importing = leave_work_for_all(daemon)
    go_down(cvat)
    cvat.calls.clear()
    requests: list[str] = []
    minutes: list[int] = []

    def run_services() -> None:
        daemon.run(*SERVICES)
        daemon.process.tracker.run_once()

    # In small steps at first, while the pauses are short.
    for second in [*range(0, 120, 4), *range(120, 3600, 12)]:
        if second % 120 == 0:
            requests.append(daemon.accept())
        if second % 60 == 0:
            minutes.append(len(cvat.calls))
        daemon.dispatcher.run_once()
        daemon.drain()
        daemon.fill()
        run_services()
        daemon.advance(4.0 if second < 120 else 12.0)
    made = [after - before for before, after in pairwise(minutes)]
    assert made[0] < 20, "while the pauses grow from a second"
    assert max(made[1:]) < 10, "for all services and templates together"
    assert daemon.states(*requests) == {QUEUED}
    assert daemon.states(importing) == {IMPORTING}
    assert daemon.spooled() == sorted([*requests, importing])

    come_back(cvat)
    back = clock.monotonic()
    while QUEUED in daemon.states(*requests):
        daemon.serve()
        daemon.fill()
        daemon.advance(1.0)
    assert clock.monotonic() - back <= 65.0, "as soon as it was tried again"
    assert daemon.states(*requests) == {IMPORTING}
    tasks = [daemon.read(each).task_id for each in requests]
    assert uploads(cvat)[-len(requests) :] == tasks, "the oldest first"
    daemon.import_all()
    daemon.advance(60.0)
    run_services()
    daemon.fill()
    assert daemon.states(*requests, importing) == {READY}
    assert store.due_steps(now=clock.now(), limit=99) == []
    assert store.warm_of(template.name, template.fingerprint) == template.pool.min_size


# --- CVAT says no ---------------------------------------------------------------------------------


def test_what_cvat_refuses_fails_in_its_words(
    daemon: Stepped, cvat: ScriptedCvat, store: Store
) -> None:
    cvat.failures["upload"] = [CvatRejected("HTTP 413 too large", http_status=413)]
    request = daemon.accept()
    daemon.serve()
    assert daemon.states(request) == {FAILED}
    assert daemon.read(request).error == "HTTP 413 too large"
    assert daemon.levels() == {"warm": 2, "failed": 1}
    assert (daemon.spooled(), store.holds()) == ([], {})


@pytest.mark.parametrize("kind", [CvatRefusedCredentials, CvatForbidden])
def test_refused_credentials_hold_one_template_until_a_person_acts(
    start: Start, template: Template, cvat: ScriptedCvat, store: Store, kind: type[CvatError]
) -> None:
    daemon = start(template, OTHER)
    daemon.fill()
    cvat.failures["upload"] = [kind("read-only") for _ in range(3)]
    requests = [daemon.accept() for _ in range(2)]
    daemon.serve()
    assert daemon.states(*requests) == {QUEUED}
    assert "read-only" in store.holds()[template.name].reason
    tried = cvat.count("upload")
    cvat.failures["upload"].clear()
    served = daemon.accept(OTHER.name)
    daemon.serve()
    assert daemon.states(served) == {IMPORTING}
    assert cvat.count("upload") == tried + 1
    daemon.pool.resume(template.name)
    daemon.serve()
    assert daemon.states(*requests) == {IMPORTING}


def test_a_refusal_of_all_is_tried_again_with_one(
    start: Start, cvat: ScriptedCvat, store: Store
) -> None:
    daemon = start(workers=8)
    daemon.fill()
    cvat.failures["upload"] = [CvatRefusedCredentials("revoked") for _ in range(5)]
    requests = [daemon.accept() for _ in range(3)]
    daemon.serve()
    daemon.advance(LATER)
    cvat.calls.clear()
    daemon.serve()
    assert cvat.count("upload") == 1
    cvat.failures["upload"].clear()
    daemon.advance(200.0)
    daemon.serve()
    assert daemon.states(*requests) == {IMPORTING}
    assert store.holds() == {}


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
    daemon: Stepped,
    cvat: ScriptedCvat,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    error: CvatError,
    end: RequestState,
) -> None:
    send = cvat.upload

    def choosy(task_id: int, data: Any, params: Any, **options: Any) -> str:
        if data.files[0].name == "theirs.jpg":
            cvat.calls.append(("refused", task_id))
            raise error
        return send(task_id, data, params, **options)

    monkeypatch.setattr(cvat, "upload", choosy)
    theirs = daemon.accept(name="theirs.jpg")
    daemon.drain()
    first = daemon.accept()
    daemon.advance(LATER)
    daemon.serve()
    assert daemon.states(first) == {IMPORTING}, "tried before the one that has failed"
    for _ in range(9):
        daemon.advance(10.0)
        daemon.serve()
        if end is FAILED:
            daemon.fill()
            other = daemon.accept()
            daemon.serve()
            assert daemon.states(other) == {IMPORTING}, "not held up any more"
    assert daemon.states(theirs) == {end}
    if end is FAILED:
        assert cvat.count("refused") == 3
        assert daemon.read(theirs).error == (
            f"{error.detail}; the same works for others, so look at its files and data parameters"
        )
        assert store.holds() == {}


def test_a_template_that_cvat_will_not_make_is_not_tried_for_each_request(
    empty: Stepped, cvat: ScriptedCvat
) -> None:
    cvat.failures["create_task"] = [CvatRejected("no such project") for _ in range(9)]
    first, *rest = [empty.accept() for _ in range(3)]
    empty.advance(1.0)
    empty.serve()
    assert (empty.states(first), empty.states(*rest)) == ({FAILED}, {QUEUED})
    assert empty.read(first).error == "no such project"
    assert cvat.count("create_task") == 1
    cvat.failures.clear()
    empty.advance(LATER)
    empty.serve()
    assert empty.states(*rest) == {IMPORTING}


def test_where_no_upload_works_no_request_fails(
    daemon: Stepped, template: Template, cvat: ScriptedCvat, store: Store
) -> None:
    """CVAT's disk is full, say: it answers all questions, and takes no data."""
    cvat.failures["upload"] = [CvatBusy("HTTP 500", http_status=500) for _ in range(999)]
    requests = [daemon.accept() for _ in range(2)]
    daemon.serve()
    for _ in range(2 * MOST_TASKS_SPOOLED):
        daemon.advance(LATER)
        daemon.fill()
        before = cvat.count("upload")
        daemon.serve()
        assert cvat.count("upload") == before + 1, "one try a minute, and a task for it"
    assert daemon.states(*requests) == {QUEUED}
    spent = [daemon.read(each).imports_used for each in requests]
    assert abs(spent[0] - spent[1]) <= 1, "each after the other"
    hold = store.holds()[template.name]
    assert (hold.uploads, "HTTP 500" in hold.reason) == (True, True)
    cvat.failures["upload"].clear()
    daemon.advance(LATER)
    for _ in requests:
        daemon.fill()
        daemon.serve()
    assert daemon.states(*requests) == {IMPORTING}
    assert store.holds() == {}


# --- Tasks, imports and data that turn out to be no use -------------------------------------------


@pytest.mark.parametrize("door", ["HTTP", "TaskPool"])
@pytest.mark.parametrize(
    ("error", "arrived", "tasks"),
    [
        (CvatNotFound("No Task matches the given query."), False, 2),
        (CvatAmbiguous("reset"), True, 1),
        (CvatAmbiguous("reset"), False, 2),
    ],
    ids=["the task is gone", "its answer was lost", "it was lost"],
)
def test_an_upload_that_fails_is_settled_by_looking(
    daemon: Stepped, cvat: ScriptedCvat, door: str, error: CvatError, arrived: bool, tasks: int
) -> None:
    cvat.failures["upload"] = [error]

    def arrive(operation: str) -> None:
        if operation == "upload" and arrived:
            cvat.states[uploads(cvat)[-1]] = ImportState(status=ImportStatus.STARTED)

    cvat.before = arrive
    if door == "HTTP":
        request = daemon.accept()
        daemon.serve()
        daemon.advance(LATER)
        daemon.serve()
    else:
        request = daemon.pool.submit("scenes", [("a.jpg", CONTENT)]).id
    assert daemon.states(request) == {IMPORTING}
    assert len(uploads(cvat)) == len(set(uploads(cvat))) == tasks, "each has the data once at most"
    assert daemon.read(request).task_id == uploads(cvat)[-1]


def test_an_upload_that_is_cut_is_sent_again_a_little_later(
    daemon: Stepped, cvat: ScriptedCvat, store: Store
) -> None:
    cut = CvatUnreachable("cut after 5 of 10 bytes")
    cut.task_touched = True
    cut.import_not_begun = True
    cvat.failures["upload"] = [cut]
    request = daemon.accept()
    assert daemon.serve() == 0
    assert daemon.states(request) == {QUEUED}
    assert store.holds() == {}, "a proxy may cut this upload, and no other"
    daemon.advance(1.0)
    assert daemon.dispatcher.is_due()
    assert daemon.serve() == 1
    assert len(set(uploads(cvat))) == 2


def test_an_import_that_cvat_lost_is_sent_again(daemon: Stepped, cvat: ScriptedCvat) -> None:
    request = daemon.accept()
    daemon.drain()
    daemon.track(until=lambda: daemon.states(request) != {IMPORTING})
    assert daemon.states(request) == {QUEUED}
    assert daemon.serve() == 1
    daemon.import_all()
    assert daemon.states(request) == {READY}
    assert len(set(uploads(cvat))) == 2


def test_an_import_is_not_late_while_cvat_cannot_tell(
    daemon: Stepped, cvat: ScriptedCvat, clock: ManualClock
) -> None:
    requests = []
    for _ in range(3):
        requests.append(daemon.accept())
        daemon.advance(0.03)
    daemon.drain()
    go_down(cvat)
    cvat.calls.clear()
    daemon.track(until=lambda: clock.monotonic() > 3600.0)
    assert daemon.states(*requests) == {IMPORTING}
    assert len(cvat.calls) < 240, "all are asked for together"
    come_back(cvat)
    daemon.import_all()
    assert daemon.states(*requests) == {READY}


def test_data_that_cannot_be_read_now_costs_no_task(
    daemon: Stepped, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise StoreError("permission denied")

    (request,) = queued(daemon, 1)
    daemon.pool.resume("scenes")
    with monkeypatch.context() as patch:
        patch.setattr(daemon.process.spool, "load", fail)
        daemon.serve()
    assert (daemon.states(request), daemon.levels()) == ({QUEUED}, {"warm": 3})
    daemon.advance(RETRY_AFTER_INTERNAL_ERROR)
    daemon.serve()
    assert daemon.states(request) == {IMPORTING}


def test_data_that_is_gone_is_an_end(daemon: Stepped) -> None:
    (request,) = queued(daemon, 1)
    daemon.process.spool.drop(request)
    daemon.advance(LATER)
    daemon.serve()
    record = daemon.read(request)
    assert (record.state, record.error_code) == (FAILED, "data-gone")
    assert daemon.levels() == {"warm": 3}


# --- Processes die, sleep for too long, or stop ---------------------------------------------------


def take_over(heir: Stepped) -> None:
    """Let the term of the one before end, and look at what it may have left half done."""
    heir.advance(TERM + 1.0)
    heir.run("reconcile", "adopt")


def test_queued_requests_outlive_the_daemon(daemon: Stepped, start: Start) -> None:
    requests = queued(daemon, 3)
    daemon.stop()
    heir = start()
    heir.serve()
    assert heir.states(*requests) == {IMPORTING}
    assert {heir.read(each).owner for each in requests} == {heir.process.owner}


def test_an_upload_whose_process_died_gets_another_task(
    daemon: Stepped, start: Start, cvat: ScriptedCvat
) -> None:
    cvat.failures["upload"] = [cast(Any, MemoryError("killed"))]
    request = daemon.accept()
    daemon.drain()
    assert daemon.states(request) == {RequestState.UPLOADING}
    burnt = daemon.read(request).task_id
    heir = start()
    assert not heir.renew(), "its process lives"
    take_over(heir)
    assert heir.serve() == 1
    assert heir.states(request) == {IMPORTING}
    assert heir.read(request).task_id != burnt
    assert heir.levels() == {"warm": 1, "failed": 1, "importing": 1}


def test_what_was_taken_for_dead_does_no_harm(
    daemon: Stepped, start: Start, cvat: ScriptedCvat, store: Store
) -> None:
    """A process that slept too long finds its upload refused, after its request was taken over."""
    heir = start()

    def sleep(operation: str) -> None:
        if operation == "upload":
            cvat.before = lambda _operation: None
            take_over(heir)
            assert heir.serve() == 1
            raise CvatUnreachable("the network was down as well")

    cvat.before = sleep
    request = daemon.accept()
    daemon.drain()
    record = heir.read(request)
    assert (record.state, record.owner) == (IMPORTING, heir.process.owner)
    task = store.task(record.pooled_id or "")
    assert task is not None and task.state.value == "importing", "not given back as warm"


def test_a_request_that_stumbled_is_left_alone_for_a_while(
    daemon: Stepped, cvat: ScriptedCvat
) -> None:
    cvat.failures["upload"] = [cast(Any, MemoryError("no"))]
    request = daemon.accept()
    assert daemon.serve() == 0
    daemon.advance(RETRY_AFTER_INTERNAL_ERROR)
    assert daemon.dispatcher.is_due()
    assert daemon.serve() == 1
    assert daemon.states(request) == {IMPORTING}


def test_stopping_leaves_what_has_not_begun_to_others(
    daemon: Stepped, cvat: ScriptedCvat, store: Store
) -> None:
    requests: list[str] = []

    def stop(operation: str) -> None:
        if operation == "upload":
            requests.append(daemon.accept())
            daemon.dispatcher.stop(0.0)

    cvat.before = stop
    first = daemon.accept()
    daemon.drain()
    assert daemon.states(first) == {IMPORTING}
    # What comes in meanwhile is accepted all the same, for the next daemon.
    requests.append(daemon.accept())
    assert daemon.states(*requests) == {QUEUED}
    assert {daemon.read(each).owner for each in requests} == {""}
    left = store.lease(daemon.read(requests[0]).lease_id)
    assert left is not None and left.state is LeaseState.WAITING
    assert daemon.spooled() == sorted([first, *requests])
