"""What goes with every call, connections that break, and servers that are none."""

from __future__ import annotations

import logging
import socket
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from support.clock import ManualClock

from pool import errors
from pool.config.settings import CvatSettings
from pool.cvat import AccessTokenCredentials, Credentials, CvatClient
from unit.cvat_stub import Reply, StubServer, closed_port

TOKEN = AccessTokenCredentials("s3cr3t-token")
TASK = {"id": 7, "name": "x", "jobs": {"count": 0}}
PAGE: dict[str, Any] = {"count": 0, "next": None, "results": []}

Connect = Callable[..., CvatClient]


@pytest.fixture
def connected(server: StubServer, clock: ManualClock) -> Iterator[Connect]:
    """Makes clients of the stub server, or of another one."""
    with ExitStack() as stack:

        def connect(
            credentials: Credentials = TOKEN, url: str = server.url, **settings: Any
        ) -> CvatClient:
            settings.setdefault("timeout", 5.0)
            client = CvatClient(CvatSettings(url=url, **settings), credentials, clock=clock)
            return stack.enter_context(client)

        yield connect


# --- What goes with every call -----------------------------------------------------------------


@pytest.mark.parametrize("organization", ["", "acme"])
def test_every_call_bears_the_token_and_the_organization(
    server: StubServer, connected: Connect, organization: str
) -> None:
    server.answer = lambda _: Reply(data={"id": 1, "username": "bot"})
    connected(organization=organization).whoami()
    headers = server.seen[0].headers
    assert headers["Authorization"] == "Bearer s3cr3t-token"
    assert headers["X-Organization"] == organization
    assert headers["Accept"] == "application/vnd.cvat+json"
    assert headers["User-Agent"].startswith("cvat-task-pool")


@pytest.mark.parametrize("slash", ["", "/", "//"])
@pytest.mark.parametrize("prefix", ["", "/cvat"])
def test_addresses_with_a_slash_or_a_path(
    server: StubServer, connected: Connect, prefix: str, slash: str
) -> None:
    server.answer = lambda _: Reply(data={"name": "CVAT", "version": "2.73.0"})
    client = connected(url=f"{server.url}{prefix}{slash}")
    assert client.about().version == "2.73.0"
    assert server.paths() == [f"{prefix}/api/server/about"]
    assert client.job_url(1, 2) == f"{server.url}{prefix}/tasks/1/jobs/2"


def test_every_call_is_counted_and_logged_without_secrets(
    server: StubServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="pool")
    calls: list[tuple[str, float, str]] = []
    answers = iter([Reply(status=201, data=TASK), Reply(status=500, text="<html>")])
    server.answer = lambda _: next(answers)
    settings = CvatSettings(url=server.url)
    with CvatClient(settings, TOKEN, on_call=lambda *call: calls.append(call)) as client:
        client.create_task({}, "x")
        with pytest.raises(errors.CvatBusy):
            client.rename_task(7, "y")
    assert [(name, result) for name, _, result in calls] == [
        ("create_task", "ok"),
        ("rename_task", "cvat-busy"),
    ]
    created, renamed = (
        record.getMessage() for record in caplog.records if record.name.startswith("pool.cvat")
    )
    assert "operation=create_task" in created
    assert "status=201" in created
    for fact in ("operation=rename_task", "task_id=7", "status=500", "result=cvat-busy"):
        assert fact in renamed
    assert "s3cr3t" not in caplog.text


def test_nothing_shows_the_token(server: StubServer, connected: Connect) -> None:
    server.answer = lambda _: Reply(cut=True)
    client = connected()
    with pytest.raises(errors.CvatAmbiguous) as raised:
        client.create_task({}, "x")
    shown = traceback.TracebackException.from_exception(raised.value, capture_locals=True)
    assert "s3cr3t" not in "".join(shown.format())
    assert "s3cr3t" not in repr(client) + repr(vars(client))


# --- Connections -------------------------------------------------------------------------------


def test_connections_are_kept(server: StubServer, connected: Connect) -> None:
    server.answer = lambda _: Reply(data={"id": 1, "username": "bot"})
    client = connected()
    for _ in range(5):
        client.whoami()
    assert server.connections == 1


def test_warming_up_opens_connections_side_by_side(server: StubServer, connected: Connect) -> None:
    server.answer = lambda _: Reply(data={"id": 1, "username": "bot"})
    client = connected()
    client.warm_up(4)
    opened = server.connections
    assert opened == 4
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: client.whoami(), range(4)))
    assert server.connections == opened


@pytest.mark.parametrize("how", [Reply(cut=True), Reply(reset=True)])
def test_a_dead_connection_is_not_noticed_by_a_read(
    server: StubServer, connected: Connect, how: Reply
) -> None:
    answers = iter([how, Reply(data=PAGE)])
    server.answer = lambda _: next(answers)
    assert connected().jobs([7]) == {}
    assert len(server.seen) == 2


def test_a_read_is_tried_twice_and_no_more(server: StubServer, connected: Connect) -> None:
    server.answer = lambda _: Reply(cut=True)
    with pytest.raises(errors.CvatUnreachable, match="closed the connection") as raised:
        connected().jobs([7])
    assert type(raised.value) is errors.CvatUnreachable
    assert len(server.seen) == 2


def test_what_can_be_repeated_is_repeated_once(server: StubServer, connected: Connect) -> None:
    answers = iter([Reply(cut=True), Reply(status=404, data={"detail": "No Task matches"})])
    server.answer = lambda _: next(answers)
    assert connected().delete_task(7) is False


@pytest.mark.parametrize("how", [Reply(cut=True), Reply(reset=True)])
def test_a_create_that_was_sent_and_cut_is_ambiguous_and_never_repeated(
    server: StubServer, connected: Connect, how: Reply
) -> None:
    server.answer = lambda _: how
    with pytest.raises(errors.CvatAmbiguous):
        connected().create_task({}, "x")
    assert len(server.seen) == 1


def test_a_connection_that_the_server_left_is_not_used_for_a_create(
    server: StubServer, connected: Connect
) -> None:
    answers = iter([Reply(data=PAGE, leave=True), Reply(status=201, data=TASK)])
    server.answer = lambda _: next(answers)
    client = connected()
    client.jobs([7])
    assert server.left.wait(5)
    assert client.create_task({}, "x") == 7
    assert server.connections == 2


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda client: client.create_task({}, "x"), errors.CvatAmbiguous),
        (lambda client: client.jobs([7]), errors.CvatUnreachable),
    ],
)
def test_time_outs(
    server: StubServer,
    connected: Connect,
    call: Callable[[CvatClient], object],
    kind: type[errors.CvatError],
) -> None:
    server.answer = lambda _: Reply(stall=True)
    with pytest.raises(errors.CvatUnreachable, match=r"no answer within 0\.1 s") as raised:
        call(connected(timeout=0.1))
    assert type(raised.value) is kind
    assert len(server.seen) == 1


def test_a_create_has_its_own_time_out(server: StubServer, connected: Connect) -> None:
    server.answer = lambda _: Reply(stall=True)
    with pytest.raises(errors.CvatAmbiguous, match=r"0\.1 s"):
        connected(timeout=30.0).create_task({}, "x", timeout=0.1)


def test_nobody_listens(connected: Connect) -> None:
    client = connected(url=f"http://127.0.0.1:{closed_port()}")
    with pytest.raises(errors.CvatUnreachable, match="connection refused") as raised:
        client.create_task({}, "x")
    assert type(raised.value) is errors.CvatUnreachable


def test_a_name_that_nobody_knows(connected: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(errors.CvatUnreachable, match="host name cannot be resolved") as raised:
        connected(url="http://cvat.invalid").create_task({}, "x")
    assert type(raised.value) is errors.CvatUnreachable


def test_tls_that_fails_before_anything_was_sent(server: StubServer, connected: Connect) -> None:
    client = connected(url=server.url.replace("http:", "https:"), verify_tls=False)
    with pytest.raises(errors.CvatUnreachable, match="TLS failed") as raised:
        client.create_task({}, "x")
    assert type(raised.value) is errors.CvatUnreachable


# --- Servers that are no CVAT ------------------------------------------------------------------


def test_a_login_page_is_no_cvat(server: StubServer, connected: Connect) -> None:
    server.answer = lambda _: Reply(text="<html>Sign in", kind="text/html")
    client = connected()
    for call in (client.about, client.whoami, lambda: client.jobs([1])):
        with pytest.raises(errors.CvatError, match=r"not look like a CVAT.*text/html.*cvat\.url"):
            call()


def test_json_of_something_else_is_no_cvat(server: StubServer, connected: Connect) -> None:
    server.answer = lambda _: Reply(data={"status": "ok"})
    client = connected()
    for call in (client.about, lambda: client.jobs([1])):
        with pytest.raises(errors.CvatError, match="does not look like a CVAT"):
            call()
    server.answer = lambda _: Reply(status=404, text="not here", kind="text/plain")
    with pytest.raises(errors.CvatError, match="does not look like a CVAT"):
        client.about()


def test_a_redirect_is_never_followed(server: StubServer, connected: Connect) -> None:
    server.answer = lambda _: Reply(status=307, headers={"Location": "https://cvat.test/api/x"})
    client = connected()
    for call in (lambda: client.jobs([1]), lambda: client.create_task({}, "x")):
        with pytest.raises(errors.CvatError, match=r"redirects to https://cvat\.test/api/x"):
            call()
    assert len(server.seen) == 2


@pytest.mark.parametrize("data", [{}, [], "x", {"id": None}])
def test_a_create_without_an_id_is_ambiguous(
    server: StubServer, connected: Connect, data: object
) -> None:
    server.answer = lambda _: Reply(status=201, data=data)
    with pytest.raises(errors.CvatAmbiguous):
        connected().create_task({}, "x")
