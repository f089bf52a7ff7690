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
from pool.cvat.webhooks import signature_of
from pool.errors import CannotListen, CvatBusy, UnknownRequest
from pool.http import page
from pool.http.server import HttpServer
from pool.http.webhooks import LONGEST
from pool.simulator import SimulatorServer
from pool.tracking import webhook_receiver
from pool.tracking.webhook_receiver import WebhookReceiver

SECRET = "the webhook's secret"


@pytest.fixture
def hooked(simulator: SimulatorServer, store_url: str) -> Iterator[Serving]:
    settings = settings_for(simulator.url, store_url, Template(name="scenes"))
    with serving(settings, simulator.access_token) as served:
        served.process.store.keep_webhook_secret(SECRET)
        yield served


def deliver(served: Serving, body: bytes, *, parts: int = 1) -> Answer:
    """A signed delivery, whose length is not announced if it comes in several parts."""
    headers = {"X-Signature-256": signature_of(body, SECRET)}
    size = len(body) // parts
    sent = body if parts == 1 else (body[i * size :][:size] for i in range(parts + 1))
    return served.api.post("/webhooks/cvat", body=sent, headers=headers)


# --- Webhooks -------------------------------------------------------------------------------------


def test_a_signed_body_is_taken_whatever_is_in_it(hooked: Serving) -> None:
    answer = deliver(hooked, b"\xff not even JSON")
    assert (answer.status, answer.body) == (204, b"")


@pytest.mark.parametrize("signature", [None, "", "wrong"])
def test_what_is_not_signed_is_refused_without_a_reason(
    hooked: Serving, signature: str | None
) -> None:
    headers = {} if signature is None else {"X-Signature-256": signature}
    answer = hooked.api.post("/webhooks/cvat", body=b"{}", headers=headers)
    assert (answer.status, answer.code) == (401, "bad-signature")
    assert answer.json == {
        "type": "urn:cvat-task-pool:error:bad-signature",
        "title": "The signature is missing or wrong",
        "status": 401,
    }


def test_a_large_body_is_not_read(hooked: Serving) -> None:
    assert deliver(hooked, b"x" * LONGEST).status == 204
    for parts in (1, 16):
        answer = deliver(hooked, b"x" * (LONGEST + 1), parts=parts)
        assert (answer.status, answer.code) == (413, "too-large")


def test_too_much_at_once_is_refused_for_now(
    hooked: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_receiver, "WAITING", 0)
    answer = deliver(hooked, b"{}")
    assert (answer.status, answer.code) == (503, "too-busy")


def test_every_error_is_a_problem_document(
    hooked: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hooked.api.get("/nothing").json["title"] == "Not Found"

    def fail_with(error: Exception) -> None:
        def authentic(*_: object) -> bool:
            raise error

        monkeypatch.setattr(WebhookReceiver, "authentic", authentic)

    with urllib3.PoolManager(retries=False) as http:

        def post() -> urllib3.BaseHTTPResponse:
            url, headers = f"{hooked.url}/webhooks/cvat", {"X-Signature-256": "any"}
            return http.request("POST", url, body=b"{}", headers=headers)

        # Errors that the document does not know of this route.
        fail_with(CvatBusy("later", retry_after=7.2))
        assert post().headers["retry-after"] == "8"
        fail_with(UnknownRequest("r1"))
        assert (post().status, post().json()["detail"]) == (404, "r1")
    fail_with(RuntimeError("a secret inside"))
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
