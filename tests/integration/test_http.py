"""The HTTP server of the daemon: where it listens, webhooks, and errors as problem documents."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
import urllib3
from fastapi import FastAPI
from support.api import Answer, Serving, serving, settings_for

from pool.config.settings import DaemonSettings, Template
from pool.errors import CannotListen, CvatBusy, UnknownRequest
from pool.http import page
from pool.http.server import HttpServer
from pool.http.webhooks import LONGEST
from pool.simulator import SimulatorServer
from pool.tracking.webhook_receiver import WebhookReceiver


class Receiver(WebhookReceiver):
    """Takes what is signed "right", and fails as the test says."""

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
def hooked(simulator: SimulatorServer, store_url: str, receiver: Receiver) -> Iterator[Serving]:
    settings = settings_for(simulator.url, store_url, Template(name="scenes"))
    with serving(settings, simulator.access_token, receiver=receiver) as served:
        yield served


def deliver(served: Serving, body: Any, signature: str | None = "right") -> Answer:
    headers = {} if signature is None else {"X-Signature-256": signature}
    return served.api.post("/webhooks/cvat", body=body, headers=headers)


# --- Webhooks -------------------------------------------------------------------------------------


def test_a_signed_body_is_handed_over_as_it_is(hooked: Serving, receiver: Receiver) -> None:
    answer = deliver(hooked, b"\xff not even JSON")
    assert (answer.status, answer.body) == (204, b"")
    assert receiver.bodies == [b"\xff not even JSON"]


@pytest.mark.parametrize("signature", [None, "", "wrong"])
def test_what_is_not_signed_is_refused_without_a_reason(
    hooked: Serving, receiver: Receiver, signature: str | None
) -> None:
    answer = deliver(hooked, b"{}", signature)
    assert (answer.status, answer.code) == (401, "bad-signature")
    assert answer.json == {
        "type": "urn:cvat-task-pool:error:bad-signature",
        "title": "The signature is missing or wrong",
        "status": 401,
    }
    assert receiver.bodies == []


def test_a_large_body_is_not_read(hooked: Serving, receiver: Receiver) -> None:
    assert deliver(hooked, b"x" * LONGEST).status == 204
    announced = deliver(hooked, b"x" * (LONGEST + 1))
    in_parts = deliver(hooked, (b"x" * 65536 for _ in range(LONGEST // 65536 + 1)))
    for answer in (announced, in_parts):
        assert (answer.status, answer.code) == (413, "too-large")
    assert len(receiver.bodies) == 1


def test_too_much_at_once_is_refused_for_now(hooked: Serving, receiver: Receiver) -> None:
    receiver.full = True
    answer = deliver(hooked, b"{}")
    assert (answer.status, answer.code) == (503, "too-busy")


def test_every_error_is_a_problem_document(hooked: Serving, receiver: Receiver) -> None:
    assert hooked.api.get("/nothing").json["title"] == "Not Found"
    receiver.error = CvatBusy("later", retry_after=7.2)
    with urllib3.PoolManager(retries=False) as http:

        def post() -> urllib3.BaseHTTPResponse:
            url = f"{hooked.server.url}/webhooks/cvat"
            return http.request("POST", url, body=b"{}", headers={"X-Signature-256": "right"})

        # Errors that the document does not know of this route.
        assert post().headers["retry-after"] == "8"
        receiver.error = UnknownRequest("r1")
        assert (post().status, post().json()["detail"]) == (404, "r1")
    receiver.error = RuntimeError("a secret inside")
    answer = deliver(hooked, b"{}")
    assert answer.json == {"type": "about:blank", "title": "Internal Server Error", "status": 500}


# --- Where it listens -----------------------------------------------------------------------------


def server_at(**settings: Any) -> HttpServer:
    def make_app() -> FastAPI:
        app = FastAPI()
        app.include_router(page.router)
        return app

    return HttpServer(make_app, DaemonSettings(**{"port": 0, **settings}))


def answers(server: HttpServer) -> bool:
    with urllib3.PoolManager(retries=False) as http:
        return http.request("GET", server.url).status == 200


def test_it_stops_and_starts_again_at_the_same_address() -> None:
    first = server_at()
    first.start()
    first.start()
    port = int(first.url.rpartition(":")[2])
    assert answers(first)
    first.stop(10.0)
    first.stop()
    assert first.url == ""
    second = server_at(port=port)
    second.start()
    assert second.url.endswith(f":{port}")
    assert answers(second)
    second.stop(10.0)


def test_a_taken_port_is_said_in_one_line() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        server = server_at(port=port)
        with pytest.raises(CannotListen, match=rf"127\.0\.0\.1:{port}: address already in use"):
            server.start()
    assert not server.listening


def test_an_app_that_cannot_be_made_leaves_the_address_free() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def fail() -> FastAPI:
        raise RuntimeError("no app")

    broken = HttpServer(fail, DaemonSettings(port=port))
    with pytest.raises(RuntimeError, match="no app") as raised:
        broken.start()
    # The error refers to all that the call held, so nothing is closed by being collected.
    assert raised.value.__traceback__ is not None
    server = server_at(port=port)
    server.start()
    assert answers(server)
    server.stop(10.0)


def test_a_host_that_is_not_this_machine() -> None:
    with pytest.raises(CannotListen, match="nowhere"):
        server_at(host="nowhere.invalid").start()


def test_ipv6() -> None:
    server = server_at(host="::1")
    try:
        server.start()
    except CannotListen:
        pytest.skip("this machine has no IPv6")
    assert answers(server)
    server.stop(10.0)
