"""The pool as Python code uses it: the same in this process, over HTTP, and over asyncio."""

from __future__ import annotations

import io
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from conformance.store_factories import FACTORIES
from support.pools import (
    HERE,
    REMOTE,
    hand_outs,
    level,
    listed,
    opened,
    serving,
    tasks_with,
    wait_for,
    write_config,
)
from support.waiting import PATIENCE

from pool import (
    IdempotencyConflict,
    ImportFailed,
    InputError,
    LeaseEnded,
    LeaseInUse,
    Outcome,
    Placed,
    PoolClosed,
    PoolEmpty,
    RequestState,
    TaskPool,
    UnknownLease,
    UnknownRequest,
    UnknownTemplate,
    WaitTimeout,
)
from pool.bench.plain import plain_client
from pool.cvat import AccessTokenCredentials
from pool.daemon import Daemon
from pool.model import Event
from pool.simulator import SimulatorServer


@pytest.fixture(scope="module", params=FACTORIES)
def daemon(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    simulator: SimulatorServer,
) -> Iterator[Daemon]:
    """One for each store and all tests here, so they tell their own work by its ids and keys."""
    folder = tmp_path_factory.mktemp("pools")
    config = write_config(folder, simulator, store=FACTORIES[request.param](folder))
    with serving(config, simulator) as daemon:
        yield daemon


@pytest.fixture(scope="module", params=[HERE, *REMOTE])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def caller(kind: str, daemon: Daemon) -> Iterator[Any]:
    with opened(kind, daemon) as pool:
        yield pool


@pytest.fixture
def full(daemon: Daemon, caller: Any) -> Any:
    """The pool of a caller, once the daemon has filled it."""
    wait_for(daemon, lambda: level(caller).warm >= 3)
    return caller


# --- Data in, job ids out -------------------------------------------------------------------------


def test_from_files_to_job_ids(full: Any, image_path: Path) -> None:
    request = full.submit("scenes", [image_path], timeout=10.0)
    (job,) = request.jobs(timeout=20)
    assert (job.start_frame, job.stop_frame) == (0, 0)
    assert request.outcome is Outcome.HIT
    assert (request.placed, request.no_slot, request.stream) == (Placed.TASK, "", None)
    assert request.task_id is not None
    assert request.url.endswith(f"/tasks/{request.task_id}")
    assert job.url == f"{request.url}/jobs/{job.id}"
    assert request.state is RequestState.READY
    assert request.jobs() == [job], "asked again, the same answer"
    assert (request.template, request.record.files) == ("scenes", ("frame.jpg",))
    found = full.request(request.id)
    assert (found.id, found.task_id, found.url) == (request.id, request.task_id, request.url)
    assert found.jobs(timeout=20) == [job]


def test_every_kind_of_input(full: Any, image: bytes, image_path: Path) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("one.jpg", image)
        content.writestr("two.jpg", image)
    with image_path.open("rb") as stream:
        requests = [
            full.submit("scenes", image_path),
            full.submit("scenes", str(image_path)),
            full.submit("scenes", [("a.jpg", image), ("cam1/b.jpg", image)]),
            full.submit("scenes", [('qu"ote ä.jpg', image_path)]),
            full.submit("scenes", stream),
            full.submit("scenes", [("all.zip", archive.getvalue())]),
            full.submit("scenes", share=["cam1/a.jpg", "cam1/b.jpg"]),
        ]
        frames = [request.jobs(timeout=20)[0].stop_frame + 1 for request in requests]
    assert frames == [1, 1, 2, 1, 1, 2, 2]
    assert requests[3].record.files == ('qu"ote ä.jpg',)


def test_what_a_request_has_to_do_without_is_told(
    full: Any, daemon: Daemon, simulator: SimulatorServer, image: bytes
) -> None:
    heard: list[Event] = []
    given_up = threading.Event()

    def callback(event: Event) -> None:
        heard.append(event)
        if event.code == "not-assigned":
            given_up.set()

    with TaskPool(daemon.settings) as other:
        stop = other.subscribe(callback, ["request.warned"])
        request = full.submit("scenes", [("a.jpg", image)], name="night ride", assignee=999)
        assert request.jobs(timeout=20)
        assert given_up.wait(PATIENCE)
        stop()
    unknown, unassigned = request.warnings
    assert (unknown.code, unassigned.code) == ("unknown-assignee", "not-assigned")
    assert "no user 999" in unknown.text
    assert "1 of 1 job(s) not assigned to user 999: CVAT knows no such user" in unassigned.text
    assert [event.code for event in heard] == ["unknown-assignee", "not-assigned"]
    assert {event.request_id for event in heard} == {request.id}
    assert full.request(request.id).record.warnings == (unknown, unassigned)
    assert simulator.state.tasks[request.task_id].name == "night ride"


def test_progress_comes_to_all_bytes(full: Any, image: bytes) -> None:
    told: list[tuple[int, int]] = []
    size = len(image) + 3 * 2**20
    large = ("large.jpg", image + bytes(3 * 2**20))
    request = full.submit("scenes", large, progress=lambda *now: told.append(now))
    assert told[-1] == (size, size)
    assert told == sorted(told)
    assert request.jobs(timeout=20)


@pytest.mark.parametrize("by", ["id", "username"])
def test_name_and_assignee_and_params(
    full: Any, daemon: Daemon, simulator: SimulatorServer, image: bytes, by: str
) -> None:
    user = daemon.process.cvat().whoami()
    request = full.submit(
        "scenes",
        [("b.jpg", image), ("a.jpg", image)],
        name="night ride",
        assignee=getattr(user, by),
        params={"sorting_method": "predefined"},
    )
    (job,) = request.jobs(timeout=20)
    assert (request.record.name, request.record.assignee) == ("night ride", getattr(user, by))
    simulator.wait_for(lambda state: state.tasks[request.task_id].name == "night ride")
    simulator.wait_for(lambda state: state.jobs[job.id].assignee is not None)
    assignee = simulator.state.jobs[job.id].assignee
    assert assignee is not None and assignee.id == user.id
    settled = full.request(request.id).jobs()
    wait_for(daemon, lambda: full.request(request.id).jobs()[0].assignee == user.username)
    assert [replace(each, assignee=None) for each in settled] == [replace(job, assignee=None)]
    frames = simulator.state.tasks[request.task_id].data
    assert frames is not None and job.stop_frame == 1


def test_a_file_that_is_no_image_fails_with_the_servers_words(full: Any) -> None:
    request = full.submit("scenes", [("a.jpg", b"this is no image")])
    with pytest.raises(ImportFailed, match="cannot identify image file"):
        request.jobs(timeout=20)
    assert request.state is RequestState.FAILED
    with pytest.raises(ImportFailed):
        full.request(request.id).jobs(timeout=20)


def test_the_task_of_a_failed_request_is_no_link_once_it_is_deleted(
    full: Any, daemon: Daemon
) -> None:
    request = full.submit("scenes", [("a.jpg", b"this is no image")])
    with pytest.raises(ImportFailed):
        request.jobs(timeout=20)
    wait_for(daemon, lambda: full.request(request.id).record.task_deleted)
    failed = full.request(request.id)
    assert (failed.task_id, failed.url) == (request.task_id, None)


# --- Lists ----------------------------------------------------------------------------------------


def test_requests_are_listed_and_found(full: Any, kind: str, image: bytes) -> None:
    """By all that others see of them, also in the middle of a long list."""
    stream = f"unlike {kind}"
    requests, jobs = [], []
    for number in range(3):
        files = [(f"{kind} Ä{number}.jpg", image)]
        requests.append(full.submit("scenes", files, name=f"{kind} {number}"))
        jobs.append(requests[-1].jobs(timeout=20))
    broken = full.submit("scenes", [(f"{kind}.jpg", b"no image")], name=f"{kind} broken")
    with pytest.raises(ImportFailed):
        broken.jobs(timeout=20)
    # Seconds as a float are not exact to the microsecond.
    since = datetime.fromtimestamp(requests[1].record.created_at - 0.001, UTC)

    def ids(*states: str, **which: Any) -> list[str]:
        return [each.id for each in listed(full, states, **which)]

    first, second, third = (request.id for request in requests)
    assert ids(text=kind.upper())[:4] == [broken.id, third, second, first]
    assert ids("ready", text=f"{kind} ä") == [third, second, first]
    assert ids("failed", "cancelled", text=kind)[0] == broken.id
    assert ids("ready", text=kind, since=since) == [third, second]
    assert ids("ready", template="strict") == ids(text=stream) == []
    assert ids(text=second) == [second]
    found = listed(full, ["ready"], text=kind)
    assert [each.jobs() for each in found] == jobs[::-1]
    assert found[0].record.name == f"{kind} 2"


def test_a_list_is_read_as_far_as_the_iteration_goes(
    full: Any, kind: str, image: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pool.taskpool.PAGE", 2)
    monkeypatch.setattr("pool.client.asynchronous.PAGE", 2)
    name = f"paged {kind}"
    asked = [full.submit("scenes", [("a.jpg", image)], name=name).id for _ in range(3)]
    assert [each.id for each in listed(full, text=name)] == asked[::-1]
    assert [each.id for each in listed(full, text=name, count=2)] == asked[:0:-1]


def test_a_list_of_what_cannot_be(full: Any) -> None:
    for states, which in (
        (["done"], {}),
        ([], {"text": ""}),
        ([], {"text": "x" * 201}),
        ([], {"since": datetime(2026, 1, 1)}),
        ([], {"since": 5.0}),
    ):
        with pytest.raises(InputError):
            full.requests(states, **which)
    with pytest.raises(UnknownTemplate):
        full.requests(template="no/such")


def test_the_events_of_a_request(full: Any, image: bytes) -> None:
    request = full.submit("scenes", [("a.jpg", image)])
    request.jobs(timeout=20)
    kinds = [each.kind for each in request.events() if each.kind.startswith("request")]
    assert kinds == ["request.uploading", "request.importing", "request.ready"]
    assert {each.request_id for each in request.events()} == {request.id}


def test_leases_are_listed_and_named(
    full: Any, kind: str, daemon: Daemon, simulator: SimulatorServer, image: bytes
) -> None:
    name = f"night tour {kind}"
    named, plain = full.acquire("scenes", name=name), full.acquire("scenes")
    assert (named.name, plain.name) == (name, None)
    assert named.task_name.startswith("[cvat-pool ")
    held = full.leases("scenes")
    assert [each for each in held if each.id in (named.id, plain.id)] == [plain, named]
    assert full.leases("strict") == []
    with TaskPool(daemon.settings) as other:
        assert {each.id for each in other.leases()} == {each.id for each in full.leases()}
    for lease in held:
        if lease.id != named.id:
            lease.release()
    # Its task is called so once it has data.
    request = named.upload([("a.jpg", image)])
    request.jobs(timeout=20)
    assert request.record.name == name
    simulator.wait_for(lambda state: state.tasks[named.task_id].name == name)
    assert full.leases() == []


@pytest.mark.parametrize("timeout", [0.0, 1.2])
def test_a_wait_that_times_out_leaves_the_import_running(
    full: Any, daemon: Daemon, simulator: SimulatorServer, image: bytes, timeout: float
) -> None:
    simulator.hold_imports()
    try:
        request = full.submit("scenes", [("a.jpg", image)])
        with pytest.raises(TimeoutError) as caught:
            request.jobs(timeout=timeout)
        assert type(caught.value) is WaitTimeout
        assert request.id in str(caught.value)
        assert request.cancel() is False, "too late for that"
        assert request.cancel(hide=True) is True
    finally:
        simulator.release_imports()
    assert len(request.jobs(timeout=20)) == 1
    _is_hidden(daemon, simulator, request)


def _is_hidden(daemon: Daemon, simulator: SimulatorServer, request: Any) -> None:
    """The frames of a request, which is alone in its task, are hidden, and the request says so."""
    data = simulator.state.tasks[request.task_id].data
    assert data is not None
    wait_for(daemon, lambda: request.hidden == "done")
    assert data.deleted_frames == [frame.number for frame in request.frames]


def test_a_request_is_erased(
    full: Any, daemon: Daemon, simulator: SimulatorServer, image: bytes
) -> None:
    request = full.submit("scenes", [("a.jpg", image), ("b.jpg", image)])
    request.jobs(timeout=20)
    assert request.hidden is None
    erased = full.erase(request.id)
    assert (erased.id, erased.task_id) == (request.id, request.task_id)
    _is_hidden(daemon, simulator, request)
    assert full.erase(request.id).hidden == "done"
    with pytest.raises(UnknownRequest):
        full.erase("no-such-request")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "empty"),
        (["no-such-file.jpg"], "no-such-file.jpg: No such file"),
        (["."], "is a folder"),
        ([__file__, __file__], "is given twice"),
        ([("..", b"x")], "is no file name"),
        ([("a.jpg", b"")], "is empty"),
        (b"bytes", "need a name"),
        ([3], "cannot upload int"),
        (io.StringIO("text"), "without a name"),
        (None, "give one of files, share, urls and cloud"),
    ],
)
def test_bad_input_takes_no_task(full: Any, files: Any, words: str) -> None:
    before = hand_outs(full)
    with pytest.raises(InputError) as caught:
        full.submit("scenes", files)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert hand_outs(full) == before


@pytest.mark.parametrize("size", [10, 20 * 2**20])
def test_an_unknown_template_names_the_known_ones(full: Any, size: int) -> None:
    with pytest.raises(UnknownTemplate, match="there is scenes"):
        full.submit("scences", [("a.jpg", bytes(size))])
    for call in (full.acquire, full.pause, full.resume, full.drain):
        with pytest.raises(UnknownTemplate):
            call("scences")


def test_a_name_that_is_too_long(full: Any, image: bytes) -> None:
    before = hand_outs(full)
    with pytest.raises(InputError):
        full.submit("scenes", [("a.jpg", image)], name="n" * 257)
    assert hand_outs(full) == before


# --- Leases ---------------------------------------------------------------------------------------


def test_acquire_and_upload(full: Any, image: bytes) -> None:
    lease = full.acquire("scenes", timeout=5.0)
    assert lease.outcome is Outcome.HIT
    assert lease.url.endswith(f"/tasks/{lease.task_id}")
    assert full.lease(lease.id).task_id == lease.task_id
    request = lease.upload([("a.jpg", image)])
    assert request.task_id == lease.task_id
    assert lease.jobs(timeout=20) == request.jobs(timeout=20)
    with pytest.raises(LeaseEnded):
        lease.upload([("b.jpg", image)])
    with pytest.raises(LeaseInUse):
        full.release(lease)


def test_a_lease_lasts_as_long_as_its_caller_wants(full: Any) -> None:
    short, ordinary = full.acquire("scenes", ttl=60.0), full.acquire("scenes")
    lasts = (ordinary.expires_at - short.expires_at).total_seconds()
    assert lasts == pytest.approx(3540, abs=10)


def test_an_untouched_task_goes_back(full: Any) -> None:
    lease = full.acquire("scenes")
    lease.release()
    with pytest.raises(LeaseEnded, match="released"):
        lease.release()
    with pytest.raises(LeaseEnded, match="released"):
        lease.jobs(timeout=5)
    assert full.acquire("scenes").id != lease.id


def test_a_lease_that_was_given_back_has_no_jobs_of_the_next_caller(
    full: Any, image: bytes
) -> None:
    lease = full.acquire("scenes")
    lease.release()
    # The oldest warm task goes out first, so this one does soon.
    others = []
    for _ in range(10):
        other = full.acquire("scenes", timeout=5.0)
        if other.task_id == lease.task_id:
            break
        others.append(other)
    assert other.upload([("a.jpg", image)]).jobs(timeout=20)
    for each in others:
        each.release()
    assert (other.task_id, other.id != lease.id) == (lease.task_id, True)
    with pytest.raises(LeaseEnded, match="released"):
        lease.jobs(timeout=5)


def test_a_task_that_its_caller_filled_is_not_taken_back(
    full: Any, daemon: Daemon, simulator: SimulatorServer, image_path: Path
) -> None:
    lease = full.acquire("scenes", name="by hand")
    credentials = AccessTokenCredentials(simulator.access_token)
    with plain_client(daemon.settings.cvat, credentials) as client:
        task = client.tasks.retrieve(lease.task_id)
        task.upload_data([image_path], params={"image_quality": 70}, status_check_period=0.01)
    with pytest.raises(LeaseInUse):
        full.release(lease)
    (job,) = lease.jobs(timeout=20)
    assert job.id
    simulator.wait_for(lambda state: state.tasks[lease.task_id].name == "by hand")


def test_unknown_ids(full: Any) -> None:
    for name in ("no-such-lease", "no/such lease", ""):
        with pytest.raises(UnknownLease):
            full.release(name)
        with pytest.raises(UnknownLease):
            full.lease(name)
        with pytest.raises(UnknownRequest):
            full.request(name)


def test_an_empty_pool_that_may_not_create(full: Any) -> None:
    with pytest.raises(PoolEmpty, match="on_empty"):
        full.acquire("strict")


# --- Idempotency ----------------------------------------------------------------------------------


def test_the_same_key_gives_the_same_request(
    full: Any, kind: str, daemon: Daemon, simulator: SimulatorServer, image: bytes
) -> None:
    # The server is the same for both stores.
    key = f"request-{kind}-{daemon.process.store.pool_id}"
    first = full.submit("scenes", [(f"{key}.jpg", image)], idempotency_key=key)
    jobs = first.jobs(timeout=20)
    second = full.submit("scenes", [(f"{key}.jpg", image)], idempotency_key=key)
    assert second.id == first.id
    assert second.jobs(timeout=20) == jobs
    assert tasks_with(simulator, f"{key}.jpg") == [first.task_id]
    with pytest.raises(IdempotencyConflict):
        full.submit("scenes", [(f"{key}.jpg", image + b" ")], idempotency_key=key)


def test_the_same_key_gives_the_same_lease(full: Any, kind: str) -> None:
    first = full.acquire("scenes", idempotency_key=f"lease-{kind}")
    assert full.acquire("scenes", idempotency_key=f"lease-{kind}") == first


# --- Control and status ---------------------------------------------------------------------------


def test_pause_and_resume(full: Any) -> None:
    full.pause("scenes")
    assert level(full).paused_since is not None
    full.resume("scenes")
    assert level(full).paused_since is None


def test_drain_and_prewarm(full: Any, daemon: Daemon) -> None:
    full.pause("scenes")
    try:
        # What is being made would be warm, and to drain, after the first drain.
        wait_for(daemon, lambda: level(full).creating == 0)
        assert full.drain("scenes") >= 3
        assert full.drain("scenes") == 0
        assert (level(full).warm, level(full).paused_since is None) == (0, False)
    finally:
        full.resume("scenes")
    full.prewarm("scenes", 5, duration=60.0)
    assert level(full).prewarm_size == 5
    # A busy minute may want more.
    wait_for(daemon, lambda: level(full).warm == level(full).target >= 5)
    full.prewarm("scenes", 0)
    assert level(full).prewarm_size == 0
    with pytest.raises(InputError):
        full.prewarm("scenes", -1)


def test_the_status_is_the_same_for_all(full: Any, daemon: Daemon) -> None:
    seen = full.status()
    with TaskPool(daemon.settings) as pool:
        own = pool.status()
    assert [each.name for each in seen.templates] == ["scenes", "strict"]
    assert type(seen.templates[0]) is type(own.templates[0])
    loaded = [each.config_loaded_at for each in (seen, own)]
    assert loaded[0] is not None
    # Over HTTP times have milliseconds.
    assert {at.isoformat(timespec="milliseconds") for at in loaded if at} == {
        loaded[0].isoformat(timespec="milliseconds")
    }
    # A process says each few seconds that it is alive.
    assert [each.place for each in seen.spools] == [each.place for each in own.spools] != []
    assert [each.owner for each in seen.daemons] == [each.owner for each in own.daemons]
    seen, own = (
        replace(each, templates=(), config_loaded_at=None, spools=(), daemons=())
        for each in (seen, own)
    )
    assert seen == own


# --- Life -----------------------------------------------------------------------------------------


def test_a_request_is_seen_by_another_caller(
    full: Any, daemon: Daemon, simulator: SimulatorServer, image: bytes
) -> None:
    simulator.hold_imports()
    with TaskPool(daemon.settings) as other:
        try:
            request = full.submit("scenes", [("a.jpg", image)])
            seen = other.request(request.id)
            with pytest.raises(WaitTimeout):
                seen.jobs(timeout=0.05)
        finally:
            simulator.release_imports()
        assert seen.jobs(timeout=20) == request.jobs(timeout=20)


def test_a_closed_pool_says_so(kind: str, daemon: Daemon) -> None:
    with opened(kind, daemon) as pool:
        pool.close()
        pool.close()
        with pytest.raises(PoolClosed):
            pool.acquire("scenes")


@pytest.mark.parametrize("kind", [HERE, "RemotePool"], indirect=True, scope="module")
def test_a_subscriber_hears_what_happens(full: Any, image: bytes) -> None:
    heard: list[Event] = []
    ready = threading.Event()

    def callback(told: Event) -> None:
        heard.append(told)
        if told.kind == "request.ready":
            ready.set()

    stop = full.subscribe(callback, ["request.importing", "request.ready"], template="scenes")
    request = full.submit("scenes", [("a.jpg", image)])
    assert ready.wait(PATIENCE)
    stop()
    assert {told.request_id for told in heard} == {request.id}
    assert [told.kind for told in heard] == ["request.importing", "request.ready"]
    assert heard[-1].task_id == full.request(request.id).task_id
    with pytest.raises(InputError, match="no event is of kind"):
        full.subscribe(callback, ["request.done"])


def test_many_at_once(full: Any, image: bytes) -> None:
    """One pool object, many threads."""
    found: list[int] = []

    def work(number: int) -> None:
        request = full.submit("scenes", [(f"{number}.jpg", image)], timeout=30.0)
        found.extend(job.id for job in request.jobs(timeout=30))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(set(found)) == 8
