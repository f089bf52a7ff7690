"""Requests of the library while CVAT is away: with a daemon on the store, and without one."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace

import pytest
from support.clock import ManualClock
from support.daemons import ends, maintains
from support.scripted import ScriptedCvat
from support.stepped import (
    IMPORTING,
    QUEUED,
    Start,
    caller,
    come_back,
    entries,
    go_down,
    levels,
    uploads,
)

from pool import Request, RequestCancelled, TaskPool, WaitTimeout
from pool.config.data_params import DataParams
from pool.config.settings import DaemonSettings, Settings, StoreSettings, Template
from pool.cvat.records import ImportState, ImportStatus
from pool.errors import (
    CvatBusy,
    CvatError,
    CvatUnreachable,
    IdempotencyConflict,
    InputError,
    PoolEmpty,
    QueueFull,
    SpoolFull,
)
from pool.model import LeaseState, RequestState, TaskState
from pool.requests.breaker import SERVER
from pool.store import Store

FILES = [("a.jpg", b"some bytes")]


@pytest.fixture
def settings(template: Template, store_url: str) -> Settings:
    return Settings(
        store=StoreSettings(url=store_url, spool_limit=5_000),
        daemon=DaemonSettings(max_queued=2),
        templates={template.name: template},
    )


@pytest.fixture
def pool(
    start: Start, settings: Settings, store: Store, cvat: ScriptedCvat, clock: ManualClock
) -> Iterator[TaskPool]:
    """A caller's, with a full pool, and without a daemon."""
    filling = start()
    filling.fill()
    filling.stop()
    cvat.calls.clear()
    with caller(settings, store, cvat, clock) as pool:
        yield pool


@pytest.fixture
def daemon(pool: TaskPool) -> None:
    """One maintains the store, and leaves alone what waits."""
    now = pool.clock.now()
    maintains(pool.store, until=now + 1000.0, now=now)


def submit(pool: TaskPool, *, key: str | None = None) -> Request:
    return pool.submit("scenes", FILES, idempotency_key=key)


def all_requests(pool: TaskPool) -> list[RequestState]:
    return [record.state for record in pool.store.requests().requests]


# --- With a daemon -------------------------------------------------------------------------------


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize(
    "error",
    [CvatUnreachable("connection refused"), CvatBusy("slow down", http_status=429)],
    ids=["unreachable", "busy"],
)
def test_a_request_that_cvat_cannot_take_is_queued(
    pool: TaskPool, cvat: ScriptedCvat, error: CvatError
) -> None:
    go_down(cvat, error)
    request = submit(pool)
    assert (request.state, request.task_id, request.outcome) == (QUEUED, None, None)
    assert levels(pool.store) == {"warm": 3}
    assert entries(pool.process) == [request.id]
    assert pool.store.holds()[SERVER].code == error.code
    assert cvat.count("upload") == 1
    with pytest.raises(WaitTimeout):
        request.jobs(timeout=0.01)


def test_it_is_served_when_cvat_is_back(pool: TaskPool, start: Start, cvat: ScriptedCvat) -> None:
    daemon = start()
    go_down(cvat)
    requests = [submit(pool) for _ in range(2)]
    come_back(cvat)
    pool.resume()
    daemon.serve()
    daemon.import_all()
    for request in requests:
        (job,) = request.jobs(timeout=0)
        assert job.id == (request.task_id or 0) * 10
    daemon.stop()
    assert entries(pool.process) == []


def test_what_waits_keeps_its_names_and_jobs_and_follows_the_sorting_of_its_template(
    pool: TaskPool, start: Start, template: Template, cvat: ScriptedCvat
) -> None:
    daemon = start()
    go_down(cvat)
    files = [("cam2/a.jpg", b"second"), ("cam1/a.jpg", b"first")]
    plain = pool.submit("scenes", files)
    assert [frame.number for frame in plain.frames] == [1, 0]
    jobs = pool.submit("scenes", files, job_size=1)
    come_back(cvat)
    predefined = replace(template, data=DataParams(sorting_method="predefined"))
    daemon.process.templates.replace({template.name: predefined})
    pool.resume()
    daemon.serve()
    sent = {call[2].job_sizes: call[2] for call in cvat.calls if call[0] == "upload"}
    for request, job_sizes in ((plain, ()), (jobs, (1, 1))):
        assert [(frame.file, frame.name, frame.number) for frame in request.frames] == [
            ("cam2/a.jpg", "cam2_a.jpg", 0),
            ("cam1/a.jpg", "cam1_a.jpg", 1),
        ]
        assert sent[job_sizes].names == request.record.files
        assert sent[job_sizes].given == ("cam2/a.jpg", "cam1/a.jpg")
    daemon.stop()


@pytest.mark.usefixtures("daemon")
def test_a_task_that_cannot_be_made_either(
    pool: TaskPool, template: Template, cvat: ScriptedCvat
) -> None:
    pool.store.retire_excess(template.name, keep=0, reason="dry", now=0.0)
    pool.process.templates.replace(
        {template.name: replace(template, pool=replace(template.pool, max_wait=0.0))}
    )
    go_down(cvat)
    request = submit(pool)
    assert request.state is QUEUED
    assert [call[0] for call in cvat.calls] == ["create_task", "tasks"]
    assert pool.store.queued() == {template.name: 1}
    assert entries(pool.process) == [request.id]


@pytest.mark.usefixtures("daemon")
def test_known_to_be_away_it_is_not_even_tried(pool: TaskPool, cvat: ScriptedCvat) -> None:
    go_down(cvat)
    before = submit(pool)
    cvat.calls.clear()
    request = submit(pool)
    assert request.state is QUEUED
    assert cvat.calls == []
    assert levels(pool.store) == {"warm": 3}
    assert entries(pool.process) == sorted([before.id, request.id])


@pytest.mark.usefixtures("daemon")
def test_warm_tasks_are_handed_out_all_the_while(pool: TaskPool, cvat: ScriptedCvat) -> None:
    go_down(cvat)
    submit(pool)
    cvat.calls.clear()
    assert len({pool.acquire("scenes").task_id for _ in range(3)}) == 3
    assert cvat.calls == []


@pytest.mark.usefixtures("daemon")
def test_an_answer_that_was_lost_with_the_server(pool: TaskPool, cvat: ScriptedCvat) -> None:
    go_down(cvat, CvatBusy("gateway", http_status=503))
    request = submit(pool)
    assert request.state is QUEUED
    assert levels(pool.store) == {"warm": 2, "failed": 1}, "nobody knows what is in it"
    assert request.record.imports_used == 1


@pytest.mark.usefixtures("daemon")
def test_an_upload_that_was_cut_and_then_the_server_is_gone(
    pool: TaskPool, cvat: ScriptedCvat
) -> None:
    cut = CvatUnreachable("cut after 5 of 10 bytes")
    cut.task_touched = True
    cut.import_not_begun = True
    cvat.failures["upload"] = [cut, CvatUnreachable("connection refused")]
    request = submit(pool)
    assert request.state is QUEUED
    assert levels(pool.store) == {"warm": 2, "failed": 1}
    assert entries(pool.process) == [request.id]


@pytest.mark.usefixtures("daemon")
def test_data_for_a_lease_waits_too(pool: TaskPool, cvat: ScriptedCvat) -> None:
    lease = pool.acquire("scenes")
    go_down(cvat)
    request = lease.upload(FILES)
    assert request.state is QUEUED
    record = pool.store.lease(lease.id)
    assert record is not None and record.state is LeaseState.RELEASED
    assert levels(pool.store) == {"warm": 3}


@pytest.mark.usefixtures("daemon")
def test_an_open_file_is_kept_from_where_it_stood(pool: TaskPool, cvat: ScriptedCvat) -> None:
    stream = io.BytesIO(b"skipped, and sent")
    stream.seek(9)

    def read_some(_operation: str) -> None:
        stream.read(3)
        raise CvatUnreachable("no connection")

    cvat.before = read_some
    request = pool.submit("scenes", [("a.jpg", stream)])
    kept = pool.process.spool.load(request.id)
    assert kept is not None
    assert kept.files[0].source.read_bytes() == b"and sent"  # type: ignore[union-attr]


@pytest.mark.usefixtures("daemon")
def test_a_stream_that_cannot_be_read_again_is_an_error_that_says_so(
    pool: TaskPool, cvat: ScriptedCvat
) -> None:
    stream = io.BytesIO(b"some bytes")

    def close_it(_operation: str) -> None:
        stream.close()
        raise CvatUnreachable("no connection")

    cvat.before = close_it
    with pytest.raises(InputError, match=r"a\.jpg cannot be read: .*closed") as raised:
        pool.submit("scenes", [("a.jpg", stream)], idempotency_key="k")
    assert isinstance(raised.value.__cause__, CvatUnreachable)
    assert all_requests(pool) == [RequestState.FAILED]
    assert levels(pool.store) == {"warm": 3}
    assert entries(pool.process) == []


# --- The bounds ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize("known", [False, True], ids=["tried", "held"])
def test_more_than_max_queued_is_refused(
    pool: TaskPool, template: Template, cvat: ScriptedCvat, known: bool
) -> None:
    go_down(cvat)
    waiting = []
    for _ in range(2):
        waiting.append(submit(pool).id)
        if not known:
            pool.resume()
    with pytest.raises(QueueFull, match="max_queued") as raised:
        submit(pool, key="k")
    assert raised.value.retry_after is not None
    assert raised.value.status == 429
    assert entries(pool.process) == sorted(waiting)
    assert levels(pool.store) == {"warm": 3}
    assert pool.store.queued() == {template.name: 2}
    pool.request(waiting[0]).cancel()
    assert submit(pool, key="k").state is QUEUED, "the key is free for another try"


@pytest.mark.usefixtures("daemon")
def test_the_count_that_decides_comes_after_the_data_is_kept(
    pool: TaskPool, template: Template, cvat: ScriptedCvat, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_down(cvat)
    waiting = [submit(pool).id for _ in range(2)]
    # Others have queued theirs since it was looked at.
    monkeypatch.setattr(pool.store, "queue_length", lambda: 0)
    with pytest.raises(QueueFull):
        submit(pool)
    assert entries(pool.process) == sorted(waiting)
    assert pool.store.queued() == {template.name: 2}


@pytest.mark.usefixtures("daemon")
def test_more_than_the_spool_takes_is_refused(pool: TaskPool, cvat: ScriptedCvat) -> None:
    go_down(cvat)
    first = pool.submit("scenes", [("a.jpg", bytes(3_000))])
    with pytest.raises(SpoolFull, match="spool_limit"):
        pool.submit("scenes", [("a.jpg", bytes(3_000))])
    assert entries(pool.process) == [first.id]
    assert levels(pool.store) == {"warm": 3}
    assert sorted(all_requests(pool)) == [RequestState.FAILED, QUEUED]


# --- Keys, calling off, looking ------------------------------------------------------------------


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize("known", [False, True], ids=["tried", "held"])
def test_the_same_key_gives_the_queued_request(
    pool: TaskPool,
    settings: Settings,
    store: Store,
    cvat: ScriptedCvat,
    clock: ManualClock,
    known: bool,
) -> None:
    go_down(cvat)
    first = submit(pool, key="k")
    if not known:
        pool.resume()
    with caller(settings, store, cvat, clock) as other:
        assert submit(other, key="k").id == submit(pool, key="k").id == first.id
        with pytest.raises(IdempotencyConflict):
            other.submit("scenes", [("b.jpg", b"other")], idempotency_key="k")
    assert entries(pool.process) == [first.id]
    assert cvat.count("upload") == 1


def test_calling_off_what_is_queued(pool: TaskPool, start: Start, cvat: ScriptedCvat) -> None:
    daemon = start()
    go_down(cvat)
    request = submit(pool)
    come_back(cvat)
    assert request.cancel()
    assert not request.cancel()
    assert entries(pool.process) == []
    pool.resume()
    assert daemon.serve() == 0
    with pytest.raises(RequestCancelled):
        request.jobs(timeout=1.0)
    assert pool.store.leases([LeaseState.WAITING]) == []


@pytest.mark.usefixtures("daemon")
def test_status_tells_how_many_are_queued(pool: TaskPool, cvat: ScriptedCvat) -> None:
    assert pool.status().templates[0].queued == 0
    go_down(cvat)
    submit(pool)
    status = pool.status()
    assert (status.templates[0].queued, status.in_flight) == (1, 0)
    assert "cannot be reached" in status.hold_reason


@pytest.mark.usefixtures("daemon")
def test_on_empty_fail_does_not_wait_with_an_empty_pool(
    pool: TaskPool, template: Template, cvat: ScriptedCvat
) -> None:
    strict = replace(template, pool=replace(template.pool, on_empty="fail"))
    pool.process.templates.replace({template.name: strict})
    go_down(cvat)
    assert submit(pool).state is QUEUED, "there are tasks"
    pool.store.retire_excess(template.name, keep=0, reason="dry", now=0.0)
    with pytest.raises(PoolEmpty):
        submit(pool)


# --- Without a daemon ----------------------------------------------------------------------------


def test_without_a_daemon_it_fails_at_once(pool: TaskPool, cvat: ScriptedCvat) -> None:
    go_down(cvat)
    with pytest.raises(CvatUnreachable):
        submit(pool, key="k")
    assert entries(pool.process) == []
    assert pool.store.holds() == {}
    assert levels(pool.store) == {"warm": 3}
    assert all_requests(pool) == [RequestState.FAILED]
    come_back(cvat)
    assert submit(pool, key="k").state is IMPORTING


def test_a_daemon_that_ends_in_between(pool: TaskPool, daemon: None, cvat: ScriptedCvat) -> None:
    go_down(cvat)
    cvat.before = lambda _operation: _end(pool)
    with pytest.raises(CvatUnreachable):
        submit(pool)
    assert entries(pool.process) == []
    assert levels(pool.store) == {"warm": 3}


def _end(pool: TaskPool) -> None:
    ends(pool.store, now=pool.clock.now())
    raise CvatUnreachable("no connection")


def test_without_a_daemon_another_task_is_tried_after_a_lost_answer(
    pool: TaskPool, cvat: ScriptedCvat
) -> None:
    cvat.failures["upload"] = [CvatBusy("gateway", http_status=503)]
    cvat.failures["jobs"] = [CvatUnreachable("gone"), *[]]
    request = submit(pool)
    assert request.state is IMPORTING
    assert len(set(uploads(cvat))) == 2


@pytest.mark.usefixtures("daemon")
def test_a_server_that_answers_is_asked_and_another_task_tried(
    pool: TaskPool, cvat: ScriptedCvat
) -> None:
    cvat.failures["upload"] = [CvatBusy("HTTP 500", http_status=500)]
    for task in pool.store.tasks(states=(TaskState.WARM,)):
        cvat.states[task.task_id or 0] = ImportState(status=ImportStatus.UNKNOWN)
    assert submit(pool).state is IMPORTING
    assert len(set(uploads(cvat))) == 2
    assert entries(pool.process) == []
