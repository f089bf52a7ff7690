"""The remote client on httpx, threads and asyncio alike, in front of a scripted daemon."""

from __future__ import annotations

import email
import io
import json
import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.blocking import Blocking, EventLoop
from support.clock import ManualClock
from support.talking import JOB, LEASE, REQUEST

from pool import (
    AsyncRemotePool,
    ConfigError,
    InputError,
    PoolClosed,
    PoolUnreachable,
    RemotePool,
    RequestState,
)
from pool.client.wire import address_of, find_token

ADDRESS = "http://127.0.0.1:8765"
SECRET = "a-token-of-the-pool"
READY = {**REQUEST, "state": "ready", "jobs": [JOB]}


class Scripted:
    """Answers in turn; errors of httpx among the answers are raised. Reads all of each body."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.seen: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, httpx.Response):
            return answer
        return httpx.Response(200, json=answer)


@pytest.fixture
def daemon() -> Scripted:
    return Scripted()


Connect = Callable[..., Any]


@pytest.fixture(params=["threads", "asyncio"])
def connect(
    request: pytest.FixtureRequest, daemon: Scripted, clock: ManualClock
) -> Iterator[Connect]:
    """Makes a client of the scripted daemon; time passes when it pauses."""
    opened: list[Any] = []

    def threads(**options: Any) -> Any:
        client = httpx.Client(transport=httpx.MockTransport(daemon))
        opened.append(client.close)
        return RemotePool(ADDRESS, client=client, clock=clock, rng=random.Random(1), **options)

    with EventLoop() as loop:

        def coroutines(**options: Any) -> Any:
            async def sleep(seconds: float) -> None:
                clock.sleep(seconds)

            client = httpx.AsyncClient(transport=httpx.MockTransport(daemon))
            opened.append(lambda: loop.call(client.aclose))
            pool = AsyncRemotePool(
                ADDRESS, client=client, clock=clock, sleep=sleep, rng=random.Random(1), **options
            )
            return Blocking(loop, pool)

        yield threads if request.param == "threads" else coroutines
        for close in opened:
            close()


# --- Address and token ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://host:8765", "http://host:8765"),
        ("http://host:8765/", "http://host:8765"),
        (" https://host/pool/ ", "https://host/pool"),
        ("http://[::1]:8765", "http://[::1]:8765"),
    ],
)
def test_addresses(url: str, address: str) -> None:
    assert address_of(url) == address


@pytest.mark.parametrize(
    "url",
    ["", "host:8765", "ftp://host", "http://", "http://:8765", "http://host:99999", "http://[::1"],
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ConfigError, match="http://host:8765"):
        RemotePool(url)


def test_a_password_does_not_belong_into_the_address() -> None:
    with pytest.raises(ConfigError, match="POOL_API_TOKEN") as caught:
        RemotePool(f"http://me:{SECRET}@host")
    assert SECRET not in str(caught.value)
    with pytest.raises(ConfigError, match="ends before"):
        RemotePool("http://host/?a=b")


def test_where_the_token_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POOL_API_TOKEN", raising=False)
    assert find_token(None) is None
    monkeypatch.setenv("POOL_API_TOKEN", " first , second")
    assert find_token(None) == "first"
    assert find_token("own") == "own"
    assert find_token("") is None
    with pytest.raises(ConfigError, match="cannot be printed") as caught:
        find_token(f"{SECRET}\nX-Other: y")
    assert SECRET not in str(caught.value)


def test_the_token_is_shown_to_the_daemon_and_to_nobody_else(
    connect: Connect, daemon: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    daemon.answers = [httpx.ConnectError("refused"), LEASE, *[httpx.ReadError(SECRET[:3])] * 99]
    pool = connect(token=SECRET)
    pool.acquire("scenes")
    assert {each.headers["Authorization"] for each in daemon.seen} == {f"Bearer {SECRET}"}
    with pytest.raises(PoolUnreachable) as caught:
        pool.status()
    assert "tried again" in caplog.text
    for text in (caplog.text, str(caught.value), repr(caught.value), repr(pool)):
        assert SECRET not in text


def test_a_token_of_any_letters(connect: Connect, daemon: Scripted) -> None:
    daemon.answers = [LEASE]
    connect(token="tökén").acquire("scenes")
    assert (b"Authorization", "Bearer tökén".encode()) in daemon.seen[0].headers.raw


def test_without_a_token_none_is_shown(connect: Connect, daemon: Scripted) -> None:
    daemon.answers = [LEASE]
    connect(token="").acquire("scenes")
    headers = daemon.seen[0].headers
    assert "Authorization" not in headers
    assert headers["User-Agent"].startswith("cvat-task-pool/")


# --- Calls ----------------------------------------------------------------------------------------


def test_an_answer_has_its_time_and_a_wait_has_more(connect: Connect, daemon: Scripted) -> None:
    daemon.answers = [REQUEST, READY]
    request = connect(timeout=7.0).request("r1")
    request.jobs(timeout=20.0)
    plain, waiting = (each.extensions["timeout"] for each in daemon.seen)
    assert plain == {"connect": 5.0, "read": 7.0, "write": 7.0, "pool": 7.0}
    assert waiting["read"] == 7.0 + 20.0
    assert daemon.seen[1].headers["Prefer"] == "wait=20"


def test_a_request_that_is_ready_costs_no_further_call(connect: Connect, daemon: Scripted) -> None:
    daemon.answers = [REQUEST, READY]
    request = connect().request("r1")
    assert (request.id, request.template, request.task_id) == ("r1", "scenes", 42)
    assert (request.url, request.outcome.value) == ("http://cvat/tasks/42", "wait")
    assert "r1" in repr(request) and "importing" in repr(request)
    jobs = request.jobs()
    assert [job.id for job in jobs] == [JOB["id"]]
    assert request.jobs(timeout=0.0) == jobs
    assert request.state is RequestState.READY
    assert len(daemon.seen) == 2


def test_a_refused_connection_names_the_address_and_what_to_do(
    connect: Connect, daemon: Scripted
) -> None:
    refused = httpx.ConnectError("All connection attempts failed")
    refused.__cause__ = ConnectionRefusedError(111, "Connect call failed ('127.0.0.1', 8765)")
    daemon.answers = [refused] * 99
    with pytest.raises(PoolUnreachable) as caught:
        connect().status()
    assert str(caught.value) == (
        f"No pool answers: {ADDRESS}, connection refused; is 'cvat-pool run' running there?"
    )
    assert caught.value.exit_code == 1
    assert 2 < len(daemon.seen) < 20


def test_a_redirect_is_not_followed(connect: Connect, daemon: Scripted) -> None:
    """It would take the token with it."""
    daemon.answers = [httpx.Response(307, headers={"Location": "http://elsewhere/"})]
    with pytest.raises(PoolUnreachable, match="307 Temporary Redirect"):
        connect(token=SECRET).status()
    assert len(daemon.seen) == 1


def test_a_closed_pool_says_so(connect: Connect, daemon: Scripted) -> None:
    pool = connect()
    pool.close()
    pool.close()
    with pytest.raises(PoolClosed):
        pool.acquire("scenes")
    assert daemon.seen == []


def test_closing_leaves_a_given_client_open(daemon: Scripted) -> None:
    with httpx.Client(transport=httpx.MockTransport(daemon)) as client:
        with RemotePool(ADDRESS, client=client):
            pass
        assert not client.is_closed


# --- Uploads --------------------------------------------------------------------------------------


def parts_of(request: httpx.Request) -> list[tuple[str, str | None, bytes]]:
    """The parts of a multipart body: the name of the field, of the file, and the content."""
    kind = f"Content-Type: {request.headers['Content-Type']}\r\n\r\n".encode()
    message = email.message_from_bytes(kind + request.content)
    parts = []
    for part in message.get_payload():
        assert isinstance(part, email.message.Message)
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        parts.append((str(name), part.get_filename(), content))
    return parts


def test_files_and_fields_go_in_one_body_of_known_length(
    connect: Connect, daemon: Scripted, tmp_path: Path
) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"first")
    daemon.answers = [httpx.Response(202, json=REQUEST)]
    told: list[tuple[int, int]] = []
    request = connect().submit(
        "scenes",
        [path, ("b.jpg", b"second"), ("c.jpg", io.BytesIO(b"third"))],
        name="night ride",
        assignee=3,
        params={"image_quality": 9},
        idempotency_key="k",
        progress=lambda sent, total: told.append((sent, total)),
    )
    assert request.id == "r1"
    (seen,) = daemon.seen
    assert parts_of(seen) == [
        ("template", None, b"scenes"),
        ("params", None, b'{"image_quality": 9}'),
        ("name", None, b"night ride"),
        ("assignee", None, b"3"),
        ("files", "a.jpg", b"first"),
        ("files", "b.jpg", b"second"),
        ("files", "c.jpg", b"third"),
    ]
    assert seen.headers["Content-Length"] == str(len(seen.content))
    assert "Transfer-Encoding" not in seen.headers
    assert seen.headers["Idempotency-Key"] == "k"
    assert told[-1] == (16, 16)


def test_a_lost_upload_is_sent_again_from_its_beginning(connect: Connect, daemon: Scripted) -> None:
    daemon.answers = [
        httpx.ReadError("connection reset"),
        httpx.Response(503, headers={"Retry-After": "1"}),
        httpx.Response(202, json=REQUEST),
    ]
    stream = io.BytesIO(b"skipped" + bytes(3 * 2**20))
    stream.seek(7)
    told: list[int] = []
    connect().submit("scenes", ("a.jpg", stream), progress=lambda sent, _: told.append(sent))
    keys = {each.headers["Idempotency-Key"] for each in daemon.seen}
    bodies = {parts_of(each)[-1] for each in daemon.seen}
    assert (len(daemon.seen), len(keys)) == (3, 1)
    assert bodies == {("files", "a.jpg", bytes(3 * 2**20))}
    assert told.count(3 * 2**20) == 3


def test_a_file_that_changes_while_it_is_sent(
    connect: Connect, daemon: Scripted, tmp_path: Path
) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(bytes(3 * 2**20))

    def shorten(sent: int, total: int) -> None:
        with path.open("r+b") as stream:
            stream.truncate(2**20)

    daemon.answers = [httpx.Response(202, json=REQUEST)]
    with pytest.raises(InputError, match=r"a\.jpg became shorter"):
        connect().submit("scenes", path, progress=shorten)


def test_what_cannot_be_used_is_not_sent(connect: Connect, daemon: Scripted) -> None:
    with pytest.raises(InputError, match="nothing"):
        connect().submit("scenes", "nothing.jpg")
    assert daemon.seen == []


def test_a_lease_takes_data(connect: Connect, daemon: Scripted) -> None:
    daemon.answers = [LEASE, httpx.Response(202, json=REQUEST), {**LEASE, "jobs": [JOB]}]
    lease = connect().acquire("scenes", timeout=1.0)
    assert (lease.task_id, lease.outcome.value) == (42, "hit")
    assert lease.upload(("a.jpg", b"x")).id == "r1"
    assert ("lease_id", None, b"l1") in parts_of(daemon.seen[1])
    assert [job.id for job in lease.jobs()] == [JOB["id"]]


def test_data_from_elsewhere_is_only_named(connect: Connect, daemon: Scripted) -> None:
    daemon.answers = [httpx.Response(202, json=REQUEST)]
    connect().submit("scenes", cloud=(3, ["k"]))
    assert json.loads(daemon.seen[0].content) == {
        "template": "scenes",
        "cloud": {"storage_id": 3, "keys": ["k"]},
    }
