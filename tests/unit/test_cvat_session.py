"""Logins with a password: made once for all threads, renewed once, never hammered."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.clock import ManualClock

from pool import errors
from pool.config.settings import CvatSettings
from pool.cvat import CvatClient, PasswordCredentials
from unit.cvat_stub import Reply, Seen, StubServer

PASSWORD = PasswordCredentials("bot", "s3cr3t-password")
TASK = {"id": 7, "name": "x", "jobs": {"count": 0}}


@pytest.fixture
def client(server: StubServer, clock: ManualClock) -> Iterator[CvatClient]:
    settings = CvatSettings(url=server.url, timeout=5.0, organization="acme")
    with CvatClient(settings, PASSWORD, clock=clock) as client:
        yield client


class Sessions:
    """A server's side of logging in."""

    def __init__(self, server: StubServer) -> None:
        self.logins = 0
        self.valid = ""
        self.refuse: Reply | None = None
        self.lock = threading.Lock()
        server.answer = self.answer

    def answer(self, seen: Seen) -> Reply:
        if seen.path == "/api/auth/login":
            return self.refuse or self.log_in(seen)
        cookies = seen.headers.get("Cookie", "")
        if not self.valid or f"sessionid={self.valid}" not in cookies:
            return Reply(status=401, data={"detail": "Authentication credentials were not …"})
        if seen.method == "POST" and seen.headers.get("X-CSRFToken") != f"csrf-{self.valid}":
            return Reply(status=403, data={"detail": "CSRF Failed"})
        if seen.method == "POST":
            return Reply(status=201, data=TASK)
        return Reply(data={"id": 1, "username": "bot"})

    def log_in(self, seen: Seen) -> Reply:
        assert seen.json == {"username": "bot", "password": "s3cr3t-password"}
        assert seen.headers.get("Cookie") is None
        assert seen.headers.get("X-Organization") is None
        with self.lock:
            self.logins += 1
            self.valid = f"session{self.logins}"
        cookies = [
            f"csrftoken=csrf-{self.valid}; expires=Sun, 06 Dec 2026 13:15:36 GMT; Path=/",
            f"sessionid={self.valid}; expires=Sun, 06 Dec 2026 13:15:36 GMT; HttpOnly; Path=/",
        ]
        return Reply(data={"key": "x"}, headers={"Set-Cookie": cookies})


@pytest.fixture
def sessions(server: StubServer) -> Sessions:
    return Sessions(server)


def test_one_login_serves_all_calls(sessions: Sessions, client: CvatClient) -> None:
    assert client.whoami().username == "bot"
    assert client.create_task({}, "x") == 7
    assert client.access_token() is None
    assert sessions.logins == 1


def test_many_threads_log_in_once(sessions: Sessions, client: CvatClient) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: client.whoami(), range(24)))
    assert sessions.logins == 1


def test_an_expired_session_is_renewed_once_by_many_threads(
    sessions: Sessions, client: CvatClient, clock: ManualClock
) -> None:
    client.whoami()
    sessions.valid = "expired"
    clock.advance(14 * 86400)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: client.create_task({}, "x"), range(24)))
    assert sessions.logins == 2


def test_a_fresh_session_that_is_refused_is_not_renewed(
    sessions: Sessions, client: CvatClient
) -> None:
    client.whoami()
    sessions.valid = "gone"
    for _ in range(3):
        with pytest.raises(errors.CvatRefusedCredentials):
            client.whoami()
    assert sessions.logins == 1


def test_a_wrong_password_is_not_tried_again_and_again(
    server: StubServer, sessions: Sessions, client: CvatClient, clock: ManualClock
) -> None:
    words = "Unable to log in with provided credentials."
    sessions.refuse = Reply(status=400, data={"non_field_errors": [words]})
    for _ in range(10):
        with pytest.raises(errors.CvatRefusedCredentials, match=words):
            client.whoami()
    assert server.paths("POST") == ["/api/auth/login"]
    clock.advance(60)
    sessions.refuse = None
    assert client.whoami().id == 1


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (Reply(cut=True), errors.CvatUnreachable),
        (Reply(status=502, text="<html>"), errors.CvatBusy),
        (Reply(status=429, data={"detail": "slow down"}), errors.CvatBusy),
        (Reply(text="<html>", kind="text/html"), errors.CvatError),
    ],
)
def test_a_login_that_fails_for_another_reason_may_be_tried_again(
    sessions: Sessions, client: CvatClient, reply: Reply, kind: type[errors.CvatError]
) -> None:
    sessions.refuse = reply
    with pytest.raises(errors.CvatError) as raised:
        client.create_task({}, "x")
    assert type(raised.value) is kind
    sessions.refuse = None
    assert client.create_task({}, "x") == 7
