"""One call that fails is not an outage: a daemon, its callers, and a CVAT that does not serve one
template, or one request, and serves all others."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.api import Api, in_thread
from support.clock import SkippingClock
from support.commands import cvat_pool
from support.pools import REMOTE, opened
from support.waiting import PATIENCE, wait_until

from pool import Request, RequestState, TaskPool
from pool.config.loader import load
from pool.daemon import Daemon
from pool.errors import CvatBusy, CvatRefusedCredentials
from pool.model import Event
from pool.simulator import SimulatorServer, SimulatorSettings, Timings
from pool.simulator.faults import Cut, Error, Hang
from pool.status import TemplateStatus

#: Seconds within which a template is served, whatever becomes of another's calls.
SOON = 5.0
QUEUED = RequestState.QUEUED
REFUSED = CvatRefusedCredentials.code
POISONED = "* poisoned: *"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatorServer]:
    """One of our own, for others would miss it."""
    with SimulatorServer(SimulatorSettings(timings=Timings.zero())) as server:
        monkeypatch.setenv("CVAT_ACCESS_TOKEN", server.access_token)
        yield server


@pytest.fixture
def clock() -> SkippingClock:
    return SkippingClock()


def write_config(
    server: SimulatorServer,
    folder: Path,
    *,
    healthy: int | None = None,
    poisoned: int = 0,
    assignee: int | None = 99999,
) -> Path:
    """A template whose assignee was deleted, and one that is all right; by their least sizes."""
    text = f"""[cvat]
url = "{server.url}"
timeout = "3s"
[daemon]
port = 0
[defaults]
max_wait = "100ms"
timeout = "20s"
[templates.poisoned]
labels = [{{ name = "car" }}]
pool = {{ min_size = {poisoned} }}
"""
    if assignee is not None:
        text += f"task = {{ assignee = {assignee} }}\n"
    if healthy is not None:
        text += f"[templates.healthy]\nlabels = []\npool = {{ min_size = {healthy} }}\n"
    path = folder / "config.toml"
    path.write_text(text)
    return path


@contextmanager
def running(config: Path, clock: SkippingClock) -> Iterator[Daemon]:
    with in_thread(Daemon(load(config), clock=clock)) as daemon:
        yield daemon


def row_of(pool: TaskPool, name: str) -> TemplateStatus:
    return next(each for each in pool.status().templates if each.name == name)


def skip_until_tried(
    daemon: Daemon, server: SimulatorServer, clock: SkippingClock, request: Request
) -> None:
    """Skip what is left of the pause, until a task was tried for a request, or it has ended."""
    before = server.stats.calls["tasks:create"]
    clock.skip(61.0)
    wait_until(
        daemon.process.store,
        lambda: server.stats.calls["tasks:create"] > before or request.state is not QUEUED,
    )


# --- One template --------------------------------------------------------------------------------


@pytest.mark.parametrize("door", ["TaskPool", *REMOTE])
def test_a_template_that_cvat_cannot_make_holds_up_no_other(
    server: SimulatorServer, clock: SkippingClock, tmp_path: Path, image: bytes, door: str
) -> None:
    config = write_config(server, tmp_path, healthy=0)
    with running(config, clock) as daemon, opened(door, daemon) as caller:
        pool = TaskPool.over(daemon.process)
        sick = pool.submit("poisoned", [("a.jpg", image)])
        assert sick.state is QUEUED
        for number in range(3):
            began = time.monotonic()
            request = caller.submit("healthy", [(f"{number}.jpg", image)])
            if door == "TaskPool":
                assert request.state is not QUEUED, "CVAT takes it at once"
            request.jobs(timeout=SOON)
            assert time.monotonic() - began < SOON
        wait_until(daemon.process.store, lambda: "assignee" in row_of(pool, "poisoned").hold_reason)
        row = row_of(caller, "poisoned")
        assert row.hold_reason == (
            "CVAT is overloaded or failing: HTTP 500 Internal Server Error; the same works for "
            "others, so look at the template's assignee 99999"
        )
        assert (row.held_since is not None, row.hold_code) == (True, "cvat-busy")
        assert row_of(caller, "healthy").held_since is None
        assert caller.status().hold_reason == "", "CVAT as a whole is well"
        with Api(daemon.url) as api:
            assert api.get("/readyz").status == 200
            metrics = api.get("/metrics").body.decode()
        assert 'cvat_pool_template_held{code="cvat-busy",template="poisoned"} 1.0' in metrics
        assert 'cvat_pool_template_held{code="",template="healthy"} 0.0' in metrics
        assert "cvat_pool_server_held 0.0" in metrics
        if door == "TaskPool":
            shown = " ".join(cvat_pool("status", cwd=tmp_path).stdout.split())
            assert "poisoned: CVAT is overloaded or failing since" in shown
            assert "look at the template's assignee 99999" in shown


@pytest.mark.parametrize("least", [0, 2], ids=["on demand", "kept warm"])
def test_a_request_that_alone_fails_ends_with_what_to_look_at(
    server: SimulatorServer, clock: SkippingClock, tmp_path: Path, image: bytes, least: int
) -> None:
    config = write_config(server, tmp_path, healthy=0, poisoned=least)
    with running(config, clock) as daemon:
        pool = TaskPool.over(daemon.process)
        sick = pool.submit("poisoned", [("a.jpg", image)])
        for _ in range(4):
            pool.submit("healthy", [("b.jpg", image)]).jobs(timeout=SOON)
            skip_until_tried(daemon, server, clock, sick)
            wait_until(
                daemon.process.store, lambda: row_of(pool, "poisoned").held_since is not None
            )
        wait_until(daemon.process.store, lambda: sick.state is not QUEUED)
        with pytest.raises(CvatBusy) as raised:
            sick.jobs(timeout=SOON)
        assert "HTTP 500 Internal Server Error" in str(raised.value)
        assert "the template's assignee 99999" in str(raised.value)
        assert row_of(pool, "poisoned").held_since is not None
        wait_until(
            daemon.process.store,
            lambda: row_of(pool, "poisoned").creating == 0,
        )


@pytest.mark.parametrize("least", [0, 2], ids=["on demand", "kept warm"])
def test_where_nothing_succeeds_nothing_fails(
    server: SimulatorServer, clock: SkippingClock, tmp_path: Path, image: bytes, least: int
) -> None:
    """With a single template nobody can tell: it is held with the reason in plain sight."""
    config = write_config(server, tmp_path, poisoned=least)
    with running(config, clock) as daemon:
        pool = TaskPool.over(daemon.process)
        sick = pool.submit("poisoned", [("a.jpg", image)])
        wait_until(daemon.process.store, lambda: row_of(pool, "poisoned").held_since is not None)
        wait_until(
            daemon.process.store,
            lambda: row_of(pool, "poisoned").creating == 0,
        )
        for _ in range(5):
            skip_until_tried(daemon, server, clock, sick)
        assert sick.state is QUEUED
        row = row_of(pool, "poisoned")
        assert "HTTP 500 Internal Server Error" in row.hold_reason
        with Api(daemon.url) as api:

            def is_held() -> bool:
                ready = api.get("/readyz")
                check = ready.json["checks"]["server"]
                return (ready.status, check["ok"], check["code"]) == (200, False, "cvat-busy")

            wait_until(daemon.process.store, is_held)
        # The account is back.
        daemon.process.templates.replace(
            load(write_config(server, tmp_path, assignee=None)).templates
        )
        clock.skip(61.0)
        sick.jobs(timeout=PATIENCE)


@pytest.mark.parametrize(
    "fault",
    [
        Error("tasks:create", status=500, task=POISONED),
        Error("tasks:create", status=502, task=POISONED),
        Error("tasks:create", status=429, retry_after=86400, task=POISONED),
        Cut("tasks:create", task=POISONED),
        Hang("tasks:create", task=POISONED),
        Error("data:post", status=500, task=POISONED),
        Error("data:post", status=504, task=POISONED),
        Cut("data:post", at="arriving", task=POISONED),
        Hang("data:post", task=POISONED),
    ],
    ids=lambda fault: f"{fault.where} {fault.kind} {getattr(fault, 'status', '')}".strip(),
)
def test_whatever_anothers_calls_answer(
    server: SimulatorServer, clock: SkippingClock, tmp_path: Path, image: bytes, fault: Any
) -> None:
    config = write_config(server, tmp_path, healthy=0, assignee=None)
    with running(config, clock) as daemon, opened("RemotePool", daemon) as caller:
        handle = server.faults.add(fault)
        sick = [caller.submit("poisoned", [(f"{n}.jpg", image)]) for n in range(3)]
        handle.wait()
        for number in range(3):
            caller.submit("healthy", [(f"h{number}.jpg", image)]).jobs(timeout=SOON)
        assert row_of(caller, "healthy").held_since is None
        handle.remove()
        # A call that failed before and is noticed only after the skip would count as one of then.
        assert daemon.maintenance is not None
        assert daemon.dispatcher.drain(PATIENCE)
        assert daemon.maintenance.refill.drain(PATIENCE)
        clock.skip(61.0)
        for request in sick:
            request.jobs(timeout=PATIENCE)


# --- One request ---------------------------------------------------------------------------------


def test_a_token_that_is_refused_is_no_requests_fault(
    server: SimulatorServer, clock: SkippingClock, tmp_path: Path, image: bytes
) -> None:
    """However often it is refused for one request, and taken for another's in between."""
    config = write_config(server, tmp_path, healthy=0, assignee=None)
    with running(config, clock) as daemon:
        pool = TaskPool.over(daemon.process)
        refused = server.faults.add(Error("data:post", status=401, task=POISONED))
        with opened("RemotePool", daemon) as caller:
            unlucky = caller.submit("poisoned", [("a.jpg", image)])
            for number in range(4):
                refused.wait(number + 1)
                wait_until(
                    daemon.process.store, lambda: row_of(pool, "poisoned").hold_code == REFUSED
                )
                caller.submit("healthy", [(f"{number}.jpg", image)]).jobs(timeout=PATIENCE)
                clock.skip(16.0)
                assert unlucky.state is QUEUED
                caller.resume("poisoned")
            refused.remove()
            caller.resume()
            unlucky.jobs(timeout=PATIENCE)


# --- What the server asks for --------------------------------------------------------------------


@pytest.mark.parametrize("asked", [86400, "1e12", "inf", "Fri, 31 Dec 9999 23:59:59 GMT", "soon"])
def test_retry_after_is_believed_within_bounds(
    server: SimulatorServer, clock: SkippingClock, tmp_path: Path, image: bytes, asked: int | str
) -> None:
    config = write_config(server, tmp_path, assignee=None)
    with running(config, clock) as daemon, opened("RemotePool", daemon) as caller:
        busy = server.faults.add(Error("tasks:*", status=503, retry_after=asked))
        request = caller.submit("poisoned", [("a.jpg", image)])
        busy.wait(2)
        wait_until(daemon.process.store, lambda: caller.status().hold_reason != "")
        status = caller.status()
        assert (status.held_until - status.held_since).total_seconds() <= 60.0
        with Api(daemon.url) as api:
            assert (api.get("/v1/templates").status, api.get("/metrics").status) == (200, 200)
        busy.remove()
        clock.skip(60.0)
        request.jobs(timeout=PATIENCE)


@pytest.mark.parametrize("door", ["command", "HTTP", *REMOTE, "one template"])
def test_resume_ends_all_holds(
    server: SimulatorServer, clock: SkippingClock, tmp_path: Path, image: bytes, door: str
) -> None:
    config = write_config(server, tmp_path, healthy=0, assignee=None)
    with running(config, clock) as daemon, opened("RemotePool", daemon) as caller:
        busy = server.faults.add(Error("tasks:*", status=503, retry_after=60))
        requests = [caller.submit(name, [("a.jpg", image)]) for name in ("poisoned", "healthy")]
        wait_until(daemon.process.store, lambda: caller.status().hold_reason != "")
        assert all(row.held_since for row in caller.status().templates), "with the server"
        caller.pause("healthy")
        busy.remove()
        if door == "command":
            assert cvat_pool("resume", cwd=tmp_path).returncode == 0
        elif door == "HTTP":
            with Api(daemon.url) as api:
                rows = api.post("/v1/templates/resume").json["templates"]
            assert [row["paused_since"] for row in rows] == [None, None]
        elif door == "one template":
            caller.resume("poisoned")
        else:
            with opened(door, daemon) as other:
                other.resume()
        for request in requests:
            request.jobs(timeout=PATIENCE)
        paused = {row.name for row in caller.status().templates if row.paused_since}
        assert paused == ({"healthy"} if door == "one template" else set())


# --- Credentials that were refused ----------------------------------------------------------------


def refuse(server: SimulatorServer, daemon: Daemon, caller: Any, image: bytes, how: str) -> Request:
    """A request that waits, since the token is none any more, or may only read."""
    getattr(server.actions, how)()
    request: Request = caller.submit("poisoned", [("a.jpg", image)])
    wait_until(daemon.process.store, lambda: row_of(caller, "poisoned").held_since is not None)
    return request


@pytest.mark.parametrize("how", ["revoke_tokens", "restrict_tokens"])
def test_a_start_tries_at_once_what_was_refused(
    server: SimulatorServer, clock: SkippingClock, tmp_path: Path, image: bytes, how: str
) -> None:
    config = write_config(server, tmp_path, assignee=None)
    with running(config, clock) as daemon, opened("RemotePool", daemon) as caller:
        request = refuse(server, daemon, caller, image, how)
        with Api(daemon.url) as api:
            ready = api.get("/readyz")
        check = ready.json["checks"]["server"]
        code = REFUSED if how == "revoke_tokens" else "cvat-forbidden"
        assert (ready.status, check["ok"], check["code"]) == (200, False, code)
        assert row_of(caller, "poisoned").hold_code == code
    server.actions.restore_tokens()
    with running(config, clock) as daemon:
        pool = TaskPool.over(daemon.process)
        pool.request(request.id).jobs(timeout=PATIENCE)
        assert row_of(pool, "poisoned").held_since is None


def test_a_token_that_may_only_read_is_noticed_with_full_pools(
    server: SimulatorServer, clock: SkippingClock, tmp_path: Path, image: bytes
) -> None:
    config = write_config(server, tmp_path, poisoned=1, assignee=None)
    with running(config, clock) as daemon:
        pool = TaskPool.over(daemon.process)
        wait_until(daemon.process.store, lambda: row_of(pool, "poisoned").warm == 1)
    server.actions.restrict_tokens()
    with running(config, clock) as daemon, Api(daemon.url) as api:
        pool = TaskPool.over(daemon.process)
        wait_until(daemon.process.store, lambda: row_of(pool, "poisoned").held_since is not None)
        assert "is read-only; make one that may write" in row_of(pool, "poisoned").hold_reason
        ready = api.get("/readyz")
        check = ready.json["checks"]["server"]
        assert (ready.status, check["ok"], check["code"]) == (200, False, "cvat-forbidden")
        server.actions.restore_tokens()
        clock.skip(61.0)
        # Nothing is to be created, so that only a request shows that it is mended.
        wait_until(daemon.process.store, lambda: api.get("/readyz").json["checks"]["server"]["ok"])
        with opened("RemotePool", daemon) as caller:
            caller.submit("poisoned", [("a.jpg", image)]).jobs(timeout=PATIENCE)
        assert row_of(pool, "poisoned").held_since is None


def test_a_reload_tries_at_once_what_was_refused(
    server: SimulatorServer, clock: SkippingClock, tmp_path: Path, image: bytes
) -> None:
    config = write_config(server, tmp_path, assignee=None)
    with running(config, clock) as daemon, opened("RemotePool", daemon) as caller:
        request = refuse(server, daemon, caller, image, "revoke_tokens")
        server.actions.restore_tokens()
        config.write_text(config.read_text() + "# the token was renewed\n")
        request.jobs(timeout=PATIENCE)


def test_another_token_in_its_file_is_used_at_once(
    server: SimulatorServer,
    clock: SkippingClock,
    tmp_path: Path,
    image: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = write_config(server, tmp_path, assignee=None)
    monkeypatch.delenv("CVAT_ACCESS_TOKEN")
    token = tmp_path / "token"
    token.write_text("expired")
    token.chmod(0o600)
    config.write_text(
        config.read_text().replace("[daemon]", 'access_token_file = "token"\n[daemon]')
    )
    with running(config, clock) as daemon, opened("RemotePool", daemon) as caller:
        request = caller.submit("poisoned", [("a.jpg", image)])
        wait_until(daemon.process.store, lambda: row_of(caller, "poisoned").hold_code == REFUSED)
        token.write_text("")  # as it is for a moment while it is written
        token.write_text(server.access_token)
        request.jobs(timeout=PATIENCE)


# --- Numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["down", "uploads refused"])
def test_a_request_that_waits_for_cvat_is_counted_and_told_once(
    server: SimulatorServer, clock: SkippingClock, tmp_path: Path, image: bytes, how: str
) -> None:
    config = write_config(server, tmp_path, poisoned=2, assignee=None)
    with running(config, clock) as daemon, opened("RemotePool", daemon) as caller:
        pool = TaskPool.over(daemon.process)
        wait_until(daemon.process.store, lambda: row_of(pool, "poisoned").warm == 2)
        events: list[Event] = []
        end = pool.subscribe(events.append)
        busy = None
        if how == "down":
            server.actions.down()
        else:
            busy = server.faults.add(Error("data:post", status=429))
        request = caller.submit("poisoned", [("a.jpg", image)])
        for number in range(5):
            if busy is not None:
                busy.wait(number + 1)
            wait_until(
                daemon.process.store, lambda: row_of(pool, "poisoned").held_since is not None
            )
            clock.skip(61.0)
        row = row_of(pool, "poisoned")
        assert (row.hits, row.waits, row.colds, row.rate) == (0, 0, 0, 0.0)
        if busy is not None:
            busy.remove()
        server.actions.up()
        caller.resume()
        request.jobs(timeout=PATIENCE)
        row = row_of(pool, "poisoned")
        assert (row.hits, row.waits, row.colds) == (0, 1, 0)
        wait_until(
            daemon.process.store, lambda: "request.ready" in [event.kind for event in events]
        )
        end()
        of_request = Counter(event.kind for event in events if event.task_id == request.task_id)
        assert of_request["lease.handed_out"] == of_request["lease.used"] == 1
        kinds = Counter(event.kind for event in events)
        assert (kinds["lease.released"], kinds["lease.handed_out"]) == (0, 1)
        assert "task.warm" not in of_request, "it was warm all the time"
