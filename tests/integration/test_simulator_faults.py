"""The simulator's faults: each as an unmodified client meets it, and as CvatClient tells it."""

from __future__ import annotations

import contextlib
import threading
import tomllib
from collections.abc import Callable
from typing import Any

import pytest
import urllib3
from cvat_sdk import Client, models
from cvat_sdk.api_client import exceptions
from support.manual import PAGES, block
from support.simulated import LABELS, client_of, upload

from pool.cvat import CvatClient
from pool.errors import CvatAmbiguous, CvatBusy, CvatForbidden, CvatUnreachable
from pool.simulator import SimulatorServer, SimulatorSettings, Timings
from pool.simulator.actions import NAMES as ACTIONS
from pool.simulator.fault_reading import read_faults
from pool.simulator.faults import (
    KINDS,
    Cut,
    Error,
    Fault,
    Hang,
    InvalidFault,
    Latency,
    Quota,
    ReversedWebhooks,
    SlowBody,
)


def names(server: SimulatorServer) -> set[str]:
    return {task.name for task in server.state.tasks.values()}


def test_the_manual_has_them_all() -> None:
    page = PAGES["simulator"]
    assert [name for name in (*KINDS, *ACTIONS) if f"`{name}`" not in page] == []
    example = block("toml", "faults").text
    assert read_faults(tomllib.loads(example)) == (Cut("tasks:create", at="after", rate=0.1),)


# --- Calls -------------------------------------------------------------------------------------


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize(
    ("at", "exists"), [("arriving", False), ("before", False), ("after", True), ("answer", True)]
)
def test_connection_is_cut(
    server: SimulatorServer, client: CvatClient, at: Any, exists: bool, reset: bool
) -> None:
    name = f"cut {at} {reset}"
    with (
        server.fault(Cut("tasks:create", at=at, reset=reset, times=1)) as cut,
        # One that comes before all is sent is certain to have done nothing.
        pytest.raises(CvatUnreachable if at == "arriving" else CvatAmbiguous),
    ):
        client.create_task(LABELS, name)
    assert cut.fired == 1
    assert (name in names(server)) is exists
    assert [task.name for task in client.find_tasks(name)] == [name] * exists


def test_a_cut_is_one_of_tcp(server: SimulatorServer, http: urllib3.PoolManager) -> None:
    def error(fault: Fault, path: str = "/api/users/self") -> BaseException:
        with server.fault(fault), pytest.raises(urllib3.exceptions.HTTPError) as caught:
            http.request("GET", server.url + path)
        return caught.value

    reset = error(Cut("users:self", at="after"))
    assert isinstance(reset, urllib3.exceptions.ProtocolError)
    assert isinstance(reset.args[1], ConnectionResetError)
    ended = error(Cut("users:self", at="after", reset=False))
    assert "without response" in str(ended)
    half = error(Cut("users:self", at="answer", reset=False))
    assert "more expected" in str(half)
    reset = error(Cut("about", at="answer"), "/api/server/about")
    assert isinstance(reset.args[1], ConnectionResetError)
    assert http.request("GET", f"{server.url}/api/users/self").status == 200


def test_an_answer_without_a_body_is_cut_in_its_head(
    server: SimulatorServer, client: CvatClient, http: urllib3.PoolManager
) -> None:
    task_id = client.create_task(LABELS, "deleted unheard")
    with (
        server.fault(Cut("tasks:delete", at="answer", reset=False)),
        pytest.raises(urllib3.exceptions.ProtocolError),
    ):
        http.request("DELETE", f"{server.url}/api/tasks/{task_id}")
    assert task_id not in server.state.tasks


def test_cut_upload_is_under_way_all_the_same(server: SimulatorServer, client: CvatClient) -> None:
    task_id = client.create_task(LABELS, "cut upload")
    with server.fault(Cut("data:post", at="after", times=1)), pytest.raises(CvatAmbiguous):
        upload(client, task_id)
    server.wait_idle()
    assert task_id in client.jobs([task_id])


def test_large_upload_is_cut_while_it_is_sent(server: SimulatorServer, client: CvatClient) -> None:
    task_id = client.create_task(LABELS, "cut on the way")
    with server.fault(Cut("data:post", at="arriving")), pytest.raises(CvatUnreachable):
        upload(client, task_id, bytes(30_000_000))
    assert server.state.tasks[task_id].data is None


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        (Error(status=429, retry_after=7), CvatBusy, "throttled. Expected available in 7 seconds"),
        (Error(status=500), CvatBusy, "HTTP 500"),
        (Error(status=503, retry_after=3), CvatBusy, "HTTP 503"),
        (Error(status=502), CvatAmbiguous, "HTTP 502"),
        (Error(status=504), CvatAmbiguous, "HTTP 504"),
        (Error(status=409, message="no"), Exception, "no"),
        (Quota("tasks:create"), CvatForbidden, "user tasks limit reached"),
    ],
)
def test_errors(
    server: SimulatorServer, client: CvatClient, fault: Any, error: Any, words: str
) -> None:
    with server.fault(fault), pytest.raises(error, match=words) as caught:
        client.create_task(LABELS, "refused")
    if isinstance(fault, Error) and fault.retry_after is not None:
        assert caught.value.retry_after == fault.retry_after
    assert "refused" not in names(server)


def test_error_after_the_work_is_done(server: SimulatorServer, client: CvatClient) -> None:
    with server.fault(Error("tasks:create", status=504, at="after")), pytest.raises(CvatAmbiguous):
        client.create_task(LABELS, "timed out at the proxy")
    assert len(client.find_tasks("timed out at the proxy")) == 1


def test_the_sdk_meets_them_too(server: SimulatorServer) -> None:
    with Client(server.url, check_server_version=False) as sdk:
        sdk.api_client.configuration.access_token = server.access_token
        spec = models.TaskWriteRequest(name="by the SDK", **LABELS)
        with (
            server.fault(Error("tasks:create", status=429, retry_after=1)),
            pytest.raises(exceptions.ApiException) as caught,
        ):
            sdk.tasks.create(spec)
        assert (caught.value.status, caught.value.headers["Retry-After"]) == (429, "1")
        with (
            server.fault(Cut("tasks:create", at="after")),
            pytest.raises(urllib3.exceptions.HTTPError),
        ):
            sdk.tasks.create(spec)
        with server.fault(Error("tasks:list", status=502, times=2)) as twice:
            sdk.api_client.rest_client.pool_manager.connection_pool_kw["retries"].backoff_factor = 0
            assert "by the SDK" in {task.name for task in sdk.tasks.list()}
        assert twice.fired == 2


def test_quota_counts(server: SimulatorServer, client: CvatClient) -> None:
    with server.fault(Quota(limit=len(server.state.tasks) + 1)):
        task_id = client.create_task(LABELS, "the last one")
        with pytest.raises(CvatForbidden):
            client.create_task(LABELS, "one too many")
        client.delete_task(task_id)
        client.create_task(LABELS, "room again")


@pytest.mark.parametrize(("at", "exists"), [("before", False), ("after", True)])
def test_answer_never_comes(server: SimulatorServer, at: Any, exists: bool) -> None:
    name = f"hanging {at}"
    with client_of(server, timeout=0.1) as hasty:
        with server.fault(Hang("tasks:create", at=at)) as hang:
            with pytest.raises(CvatAmbiguous, match="no answer within"):
                hasty.create_task(LABELS, name)
            assert hang.fired == 1
            assert (name in names(server)) is exists
        # A call that was lost commits late, when nobody waits for it any more.
        server.wait_for(lambda _: name in names(server))


def test_hanging_call_goes_on_when_it_is_let(server: SimulatorServer, client: CvatClient) -> None:
    found: list[str] = []
    hang = server.faults.add(Hang("users:self"))
    caller = threading.Thread(target=lambda: found.append(client.whoami().username))
    caller.start()
    hang.wait()
    assert not found
    assert hang.remove()
    assert not hang.remove()
    caller.join(10)
    assert found == ["bot"]


def test_server_stops_in_spite_of_what_hangs() -> None:
    settings = SimulatorSettings(
        timings=Timings.zero(), faults=(Hang("users:self"), Latency("about", seconds=60.0))
    )
    failed: list[type] = []

    def call(what: Callable[[], Any]) -> None:
        try:
            what()
        except CvatUnreachable as error:
            failed.append(type(error))

    server = SimulatorServer(settings).start()
    with client_of(server) as client:
        callers = [
            threading.Thread(target=call, args=(what,)) for what in (client.whoami, client.about)
        ]
        for caller in callers:
            caller.start()
        server.wait_for(lambda _: len(server.stats.faults) == 2)
        server.stop()
        for caller in callers:
            caller.join(1)
    assert CvatUnreachable in failed


def test_latency_and_slow_bodies(server: SimulatorServer, client: CvatClient) -> None:
    with client_of(server, timeout=0.1) as hasty:
        with server.fault(Latency("tasks:create", seconds=0.15, at="after")):
            with pytest.raises(CvatAmbiguous):
                hasty.create_task(LABELS, "late answer")
            assert "late answer" in names(server)
        with server.fault(Latency("users:*", seconds=0.15, to=0.2)), pytest.raises(CvatUnreachable):
            hasty.whoami()
        # Each piece is in time, so the time-out for reading does not notice.
        with server.fault(SlowBody("users:self", pieces=5, pause=0.03)) as slow:
            assert hasty.whoami().username == "bot"
        assert slow.fired == 1


def test_rules_combine_the_first_outermost(server: SimulatorServer, client: CvatClient) -> None:
    with (
        server.fault(Error("tasks:create", status=500, at="after"), Cut("tasks:create")) as error,
        pytest.raises(CvatBusy),
    ):
        client.create_task(LABELS, "twice unlucky")
    assert error.fired == 1
    assert [rule.fault.kind for rule in server.faults] == []


def test_rates_are_drawn_from_the_seed() -> None:
    def hits(seed: int) -> list[bool]:
        settings = SimulatorSettings(timings=Timings.zero(), seed=seed)
        with SimulatorServer(settings) as server, client_of(server) as client:
            found = []
            with server.fault(Error("users:self", status=500, rate=0.4)) as error:
                for _ in range(30):
                    before = error.fired
                    with contextlib.suppress(CvatBusy):
                        client.whoami()
                    found.append(error.fired > before)
            assert server.stats.faults["error users:self"] == sum(found)
            return found

    first = hits(1)
    assert 3 < sum(first) < 25
    assert first == hits(1)
    assert first != hits(2)


def test_mistakes_are_named(server: SimulatorServer) -> None:
    with pytest.raises(InvalidFault, match="did you mean 'tasks:create'"):
        server.faults.add(Error("tasks:craete"))
    for wrong in (
        lambda: Error(status=200),
        lambda: Error(rate=0.0),
        lambda: Cut(times=0),
        lambda: Latency(seconds=2.0, to=1.0),
        lambda: SlowBody(pieces=0),
        lambda: ReversedWebhooks(count=1),
    ):
        with pytest.raises(InvalidFault):
            wrong()
