"""The HTTP server of the daemon, with a receiver that the test looks into."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import urllib3
from starlette.types import ASGIApp
from support.services import dispatch_of

from pool.config.settings import DaemonSettings
from pool.errors import CannotListen, CvatBusy, UnknownRequest
from pool.http.app import create_app
from pool.http.ending import Ending
from pool.http.server import HttpServer
from pool.http.webhooks import LONGEST
from pool.observability.observation import Observation
from pool.process import Engine

ANYWHERE = DaemonSettings(port=0)


class Receiver:
    """Takes what is signed "right"."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.full = False
        self.error: Exception | None = None

    def authentic(self, body: bytes, signature: str) -> bool:
        if self.error is not None:
            raise self.error
        return signature == "right"

    def put(self, body: bytes, signature: str) -> bool:
        if not self.full:
            self.bodies.append(body)
        return not self.full


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
def make_app(engine: Engine, receiver: Receiver) -> Callable[[], ASGIApp]:
    return lambda: create_app(
        engine,
        dispatch_of(engine),
        receiver,
        observation=Observation(engine),
        ending=Ending(),
    )


@pytest.fixture
def server(make_app: Callable[[], ASGIApp]) -> Iterator[HttpServer]:
    server = HttpServer(make_app, ANYWHERE)
    server.start()
    yield server
    server.stop(10.0)


@pytest.fixture
def http() -> Iterator[urllib3.PoolManager]:
    with urllib3.PoolManager(retries=False) as manager:
        yield manager


def post(
    http: urllib3.PoolManager, server: HttpServer, body: Any, signature: str | None = "right"
) -> urllib3.BaseHTTPResponse:
    headers = {} if signature is None else {"X-Signature-256": signature}
    return http.request("POST", f"{server.url}/webhooks/cvat", body=body, headers=headers)


def problem(answer: urllib3.BaseHTTPResponse) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = json.loads(answer.data)
    assert document["status"] == answer.status
    return document


def test_it_says_that_it_is_alive(server: HttpServer, http: urllib3.PoolManager) -> None:
    answer = http.request("GET", f"{server.url}/healthz")
    assert (answer.status, answer.json()) == (200, {"status": "ok"})


def test_a_signed_body_is_handed_over_as_it_is(
    server: HttpServer, http: urllib3.PoolManager, receiver: Receiver
) -> None:
    answer = post(http, server, b"\xff not even JSON")
    assert (answer.status, answer.data) == (204, b"")
    assert receiver.bodies == [b"\xff not even JSON"]


@pytest.mark.parametrize("signature", [None, "", "wrong"])
def test_what_is_not_signed_is_refused_without_a_reason(
    server: HttpServer, http: urllib3.PoolManager, receiver: Receiver, signature: str | None
) -> None:
    answer = post(http, server, b"{}", signature)
    assert problem(answer) == {
        "type": "urn:cvat-task-pool:error:bad-signature",
        "title": "The signature is missing or wrong",
        "status": 401,
    }
    assert receiver.bodies == []


def test_a_large_body_is_not_read(
    server: HttpServer, http: urllib3.PoolManager, receiver: Receiver
) -> None:
    assert post(http, server, b"x" * LONGEST).status == 204
    announced = post(http, server, b"x" * (LONGEST + 1))
    in_parts = post(http, server, (b"x" * 65536 for _ in range(LONGEST // 65536 + 1)))
    for answer in (announced, in_parts):
        assert problem(answer)["title"] == "The body is too large"
        assert answer.status == 413
    assert len(receiver.bodies) == 1


def test_too_much_at_once_is_refused_for_now(
    server: HttpServer, http: urllib3.PoolManager, receiver: Receiver
) -> None:
    receiver.full = True
    assert problem(post(http, server, b"{}"))["status"] == 503


def test_every_error_is_a_problem_document(
    server: HttpServer, http: urllib3.PoolManager, receiver: Receiver
) -> None:
    assert problem(http.request("GET", f"{server.url}/nothing"))["title"] == "Not Found"
    assert problem(http.request("PUT", f"{server.url}/webhooks/cvat"))["status"] == 405
    receiver.error = UnknownRequest("r1")
    document = problem(post(http, server, b"{}"))
    assert (document["status"], document["detail"]) == (404, "r1")
    receiver.error = CvatBusy("later", retry_after=7.2)
    assert post(http, server, b"{}").headers["retry-after"] == "8"
    receiver.error = RuntimeError("a secret inside")
    document = problem(post(http, server, b"{}"))
    assert document == {"type": "about:blank", "title": "Internal Server Error", "status": 500}


def test_the_routes_are_described(server: HttpServer, http: urllib3.PoolManager) -> None:
    paths = http.request("GET", f"{server.url}/openapi.json").json()["paths"]
    assert {"/healthz", "/webhooks/cvat", "/v1/leases", "/v1/requests"} <= set(paths)


def test_it_stops_and_starts_again_at_the_same_address(
    make_app: Callable[[], ASGIApp], http: urllib3.PoolManager
) -> None:
    first = HttpServer(make_app, ANYWHERE)
    first.start()
    first.start()
    port = int(first.url.rpartition(":")[2])
    assert http.request("GET", f"{first.url}/healthz").status == 200
    first.stop(10.0)
    first.stop()
    assert first.url == ""
    second = HttpServer(make_app, DaemonSettings(port=port))
    second.start()
    assert second.url.endswith(f":{port}")
    second.stop(10.0)


def test_a_taken_port_is_said_in_one_line(make_app: Callable[[], ASGIApp]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        server = HttpServer(make_app, DaemonSettings(port=port))
        with pytest.raises(CannotListen, match=rf"127\.0\.0\.1:{port}: address already in use"):
            server.start()
    assert not server.listening


def test_a_host_that_is_not_this_machine(make_app: Callable[[], ASGIApp]) -> None:
    server = HttpServer(make_app, DaemonSettings(host="nowhere.invalid"))
    with pytest.raises(CannotListen, match="nowhere"):
        server.start()


def test_ipv6(make_app: Callable[[], ASGIApp], http: urllib3.PoolManager) -> None:
    server = HttpServer(make_app, DaemonSettings(host="::1", port=0))
    try:
        server.start()
    except CannotListen:
        pytest.skip("this machine has no IPv6")
    assert http.request("GET", f"{server.url}/healthz").status == 200
    server.stop(10.0)
