"""Connections that are slow, broken, or no HTTP at all."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest
from support.api import Serving, serving, settings_for
from support.waiting import PATIENCE

from pool.config.settings import Template
from pool.http import protocol
from pool.simulator import SimulatorServer


@pytest.fixture
def line(refusing: Serving) -> Iterator[socket.socket]:
    port = refusing.port
    with socket.create_connection(("127.0.0.1", port)) as line:
        line.settimeout(PATIENCE)
        yield line


def rest(line: socket.socket) -> bytes:
    """All that comes until the server closes."""
    received = b""
    while piece := line.recv(2**16):
        received += piece
    return received


def until_alive(line: socket.socket) -> None:
    """All of one answer to :data:`GET`."""
    received = b""
    while not received.endswith(b'{"status":"ok"}'):
        received += line.recv(2**16)
    assert received.startswith(b"HTTP/1.1 200 OK")


def problem(answer: bytes) -> int:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head.lower()
    document = json.loads(body)
    assert head.startswith(b"HTTP/1.1 %d " % document["status"])
    return int(document["status"])


GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"GET /healthz HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        GET + b"no colon\r\n\r\n",
        GET + b"a\x00b: c\r\n\r\n",
        GET + b"Content-Length: x\r\n\r\n",
        GET + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
        GET + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
def test_what_is_no_http(line: socket.socket, refusing: Serving, sent: bytes) -> None:
    line.sendall(sent)
    assert problem(rest(line)) == 400
    assert refusing.api.get("/healthz").status == 200


@pytest.mark.parametrize(
    "sent",
    [
        GET + b"X: " + b"x" * (protocol.LONGEST_HEAD + 1) + b"\r\n\r\n",
        GET + b"X: y\r\n" * 20_000 + b"\r\n",
        GET + b"X: " + b"x" * 500_000,
        b"GET /" + b"x" * 500_000,
    ],
)
def test_a_head_that_is_too_long(line: socket.socket, sent: bytes) -> None:
    line.sendall(sent)
    assert problem(rest(line)) == 431


def test_a_long_head_that_is_not_too_long(line: socket.socket) -> None:
    line.sendall(GET + b"X: " + b"x" * 60_000 + b"\r\nConnection: close\r\n\r\n")
    assert rest(line).startswith(b"HTTP/1.1 200 OK")


def test_a_head_that_does_not_come(
    line: socket.socket, refusing: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEAD_WITHIN", 0.1)
    line.sendall(GET + b"\r\n")
    until_alive(line)
    # The next one on the same connection.
    line.sendall(GET)
    assert problem(rest(line)) == 408


def test_a_connection_that_says_nothing(refusing: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_WITHIN", 0.1)
    port = refusing.port
    with socket.create_connection(("127.0.0.1", port)) as line:
        line.settimeout(PATIENCE)
        assert rest(line) == b""


def test_too_many_connections(
    line: socket.socket, refusing: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.sendall(GET + b"\r\n")
    until_alive(line)
    monkeypatch.setattr(protocol, "MOST_CONNECTIONS", 1)
    port = refusing.port
    with socket.create_connection(("127.0.0.1", port)) as further:
        further.settimeout(PATIENCE)
        assert problem(rest(further)) == 503


def test_an_answer_before_the_end_of_the_body(line: socket.socket) -> None:
    """It is read to its end, so that the answer is not lost, and the connection goes on."""
    line.sendall(
        b"POST /v1/requests HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n"
        b"Content-Length: 3000000\r\n\r\n" + b"x" * 1_000_000
    )
    assert line.recv(15) == b"HTTP/1.1 415 Un"
    line.sendall(b"x" * 2_000_000 + GET + b"Connection: close\r\n\r\n")
    assert b"HTTP/1.1 200 OK" in rest(line)


def test_an_answer_before_the_end_of_an_endless_body(
    line: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "LINGER", 0.2)
    line.sendall(
        b"POST /v1/requests HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n"
        b"Content-Length: 3000000\r\n\r\n"
    )
    assert b" 415 " in rest(line)


def test_a_body_is_asked_for_before_it_is_sent(line: socket.socket) -> None:
    head = (
        b"POST /v1/leases HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n"
        b"Expect: 100-continue\r\nConnection: close\r\nContent-Type: "
    )
    line.sendall(head + b"application/json\r\n\r\n")
    assert line.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
    line.sendall(b"{}")
    assert b"HTTP/1.1 422 " in rest(line)


def test_a_body_that_is_not_wanted_is_not_asked_for(line: socket.socket) -> None:
    line.sendall(
        b"POST /v1/leases HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n"
        b"Expect: 100-continue\r\nConnection: close\r\nContent-Type: text/plain\r\n\r\n"
    )
    assert rest(line).startswith(b"HTTP/1.1 415 ")


def test_calls_that_do_not_wait_for_answers(line: socket.socket) -> None:
    line.sendall((GET + b"\r\n") * 3 + GET + b"Connection: close\r\n\r\n")
    assert rest(line).count(b"HTTP/1.1 200 OK") == 4


def test_an_upgrade_that_nobody_offers(line: socket.socket) -> None:
    line.sendall(GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    until_alive(line)


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/v1/requests", "Content-Type: multipart/form-data; boundary=b"),
        ("/v1/requests", "Content-Type: application/json"),
        ("/v1/leases", "Content-Type: application/json"),
        ("/webhooks/cvat", "X-Signature-256: sha256=0"),
    ],
)
def test_a_body_that_does_not_come(
    simulator: SimulatorServer, store_url: str, path: str, headers: str
) -> None:
    settings = settings_for(simulator.url, store_url, Template(name="scenes"), receive_timeout=0.2)
    with serving(settings, simulator.access_token) as served:
        port = served.port
        with socket.create_connection(("127.0.0.1", port)) as line:
            line.settimeout(PATIENCE)
            line.sendall(
                f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
                f"Connection: close\r\n{headers}\r\n\r\n-".encode()
            )
            assert problem(rest(line)) == 408


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_an_answer_before_the_end_of_the_last_body(line: socket.socket, version: bytes) -> None:
    """As a proxy sends it, which closes after each call: the answer is not lost by a reset."""
    line.sendall(
        b"POST /v1/requests HTTP/"
        + version
        + b"\r\nHost: localhost\r\nContent-Type: text/plain\r\n"
        b"Connection: close\r\nContent-Length: 3000000\r\n\r\n" + b"x" * 1_000_000
    )
    line.sendall(b"x" * 2_000_000)
    assert problem(rest(line)) == 415
