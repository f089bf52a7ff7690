"""The remote pools before a scripted daemon: what they ask for, what they ask for again, and what
they make of the answers."""

from __future__ import annotations

import asyncio
import email
import io
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from email.utils import formatdate
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.clock import START, ManualClock
from support.pools import REMOTE
from support.remote import (
    ADDRESS,
    JOB,
    LEASE,
    READY,
    REQUEST,
    Connect,
    ScriptedDaemon,
    cut,
    page,
    problem,
    refused,
    wait_of,
)

from pool import (
    AsyncRemotePool,
    ConfigError,
    CvatBusy,
    ImportFailed,
    InputError,
    LeaseEnded,
    LeaseInUse,
    LeaseState,
    Outcome,
    PoolClosed,
    PoolEmpty,
    PoolError,
    PoolUnreachable,
    RemotePool,
    RequestCancelled,
    RequestState,
    SpoolFull,
    UnknownLease,
    UnknownRequest,
    UnknownStream,
    UnknownTemplate,
    WaitTimeout,
    errors,
)
from pool.model import Job
from pool.status import DAEMON_EXAMPLE, SPOOL_EXAMPLE, TEMPLATE_EXAMPLE, WaitReason, WebhookState

SECRET = "a-token-of-the-pool"
DONE = httpx.Response(204)
BUSY = problem(503, "too-busy", retry_after="1")


@pytest.fixture
def daemon(clock: ManualClock) -> ScriptedDaemon:
    return ScriptedDaemon(clock)


@pytest.fixture(params=REMOTE)
def connect(request: pytest.FixtureRequest, daemon: ScriptedDaemon) -> Iterator[Connect]:
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(daemon.connected(request.param, **options))


@pytest.fixture
def caller(connect: Connect) -> Any:
    return connect()


# --- Address, token and client --------------------------------------------------------------------


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
    with RemotePool(url) as pool:
        assert pool.url == address


@pytest.mark.parametrize(
    "url",
    ["", "host:8765", "ftp://host", "http://", "http://:8765", "http://host:99999", "http://[::1"],
)
def test_what_is_no_address(url: str) -> None:
    for kind in (RemotePool, AsyncRemotePool):
        with pytest.raises(ConfigError, match="http://host:8765"):
            kind(url)


def test_a_password_does_not_belong_into_the_address() -> None:
    with pytest.raises(ConfigError, match="POOL_API_TOKEN") as caught:
        RemotePool(f"http://me:{SECRET}@host")
    assert SECRET not in str(caught.value)
    with pytest.raises(ConfigError, match="a query or a fragment"):
        RemotePool("http://host/?a=b")


@pytest.mark.parametrize(
    ("given", "environment", "sent"),
    [
        (None, None, None),
        (None, " first , second", "Bearer first"),
        ("own", "first", "Bearer own"),
        ("", "first", None),
        ("tökén", None, "Bearer tökén"),
    ],
)
def test_where_the_token_comes_from(
    connect: Connect,
    daemon: ScriptedDaemon,
    monkeypatch: pytest.MonkeyPatch,
    given: str | None,
    environment: str | None,
    sent: str | None,
) -> None:
    monkeypatch.delenv("POOL_API_TOKEN", raising=False)
    if environment is not None:
        monkeypatch.setenv("POOL_API_TOKEN", environment)
    daemon.replies = [LEASE]
    connect(token=given).acquire("scenes")
    headers = dict(daemon.requests[0].headers.raw)
    assert headers.get(b"Authorization") == (None if sent is None else sent.encode())
    assert headers[b"User-Agent"].startswith(b"cvat-task-pool/")


def test_a_token_that_cannot_be_sent() -> None:
    with pytest.raises(ConfigError, match="cannot be printed") as caught:
        RemotePool(ADDRESS, token=f"{SECRET}\nX-Other: y")
    assert SECRET not in str(caught.value)


def test_the_token_is_in_no_log_and_no_error(
    connect: Connect, daemon: ScriptedDaemon, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    daemon.replies = [refused(), LEASE, httpx.ReadError(SECRET[:3])]
    pool = connect(token=SECRET)
    pool.acquire("scenes")
    assert {each.headers["Authorization"] for each in daemon.requests} == {f"Bearer {SECRET}"}
    with pytest.raises(PoolUnreachable) as caught:
        pool.status()
    assert "retrying call" in caplog.text
    for text in (caplog.text, str(caught.value), repr(caught.value), repr(pool)):
        assert SECRET not in text


def test_a_client_of_threads_is_refused() -> None:
    with httpx.Client() as client, pytest.raises(InputError, match=r"httpx\.AsyncClient"):
        RemotePool(ADDRESS, client=client)  # type: ignore[arg-type]


def test_a_given_client_is_closed_by_the_pool_that_has_the_loop(daemon: ScriptedDaemon) -> None:
    daemon.replies = [LEASE]
    client = httpx.AsyncClient(transport=httpx.MockTransport(daemon))
    with daemon.connected("RemotePool", client=client) as pool:
        pool.acquire("scenes")
    assert client.is_closed
    client = httpx.AsyncClient(transport=httpx.MockTransport(daemon))
    with daemon.connected("AsyncRemotePool", client=client) as pool:
        pool.acquire("scenes")
        pool.close()
        assert not client.is_closed


def test_a_closed_pool_says_so(caller: Any, daemon: ScriptedDaemon) -> None:
    caller.close()
    caller.close()
    with pytest.raises(PoolClosed):
        caller.acquire("scenes")
    assert daemon.requests == []


# --- Answers --------------------------------------------------------------------------------------


def every_error(kind: type[PoolError] = PoolError) -> list[type[PoolError]]:
    """All error classes of the product that have a code of their own."""
    kinds = [kind] if kind.__module__ == errors.__name__ and "code" in vars(kind) else []
    for narrower in kind.__subclasses__():
        kinds += every_error(narrower)
    return kinds


@pytest.mark.parametrize("kind", [kind for kind in every_error() if kind is not PoolError])
def test_every_error_comes_back_as_itself(
    caller: Any, daemon: ScriptedDaemon, kind: type[PoolError]
) -> None:
    daemon.replies = [problem(kind.status, kind.code, "the detail")]
    with pytest.raises(kind) as caught:
        caller.status()
    assert type(caught.value) is kind
    assert str(caught.value) == str(kind("the detail"))


def test_no_code_stands_for_two_errors() -> None:
    codes = [kind.code for kind in every_error()]
    assert sorted(codes) == sorted(set(codes))


@pytest.mark.parametrize(
    ("reply", "detail"),
    [
        (
            problem(418, "teapot", "short and stout", title="It is a teapot."),
            "It is a teapot: short and stout",
        ),
        (problem(404, "", title="Not Found"), "Not Found"),
    ],
)
def test_an_unknown_error_keeps_the_daemons_words(
    caller: Any, daemon: ScriptedDaemon, reply: httpx.Response, detail: str
) -> None:
    daemon.replies = [reply]
    with pytest.raises(PoolError) as caught:
        caller.status()
    assert type(caught.value) is PoolError
    assert caught.value.detail == detail


def test_a_validation_says_what_it_found(caller: Any, daemon: ScriptedDaemon) -> None:
    found = [
        {"where": "body.ttl", "what": "Input should be greater than 0"},
        {"where": "body.colour", "what": "Extra inputs are not permitted"},
    ]
    daemon.replies = [problem(422, "input", errors=found)]
    with pytest.raises(InputError) as caught:
        caller.status()
    assert caught.value.detail == (
        "body.ttl: Input should be greater than 0; body.colour: Extra inputs are not permitted"
    )


@pytest.mark.parametrize(
    ("reply", "kind", "seconds"),
    [
        (problem(502, "cvat-busy", retry_after="7"), CvatBusy, 7.0),
        (problem(429, "spool-full", retry_after="3000"), SpoolFull, 3000.0),
    ],
)
def test_an_error_says_when_to_come_again(
    caller: Any, daemon: ScriptedDaemon, reply: Any, kind: type[Any], seconds: float
) -> None:
    daemon.replies = [reply]
    with pytest.raises(kind) as caught:
        caller.status()
    assert caught.value.retry_after == seconds


@pytest.mark.parametrize("reply", [page(404), page(200), page(302, location="http://elsewhere/")])
def test_something_else_than_a_pool_is_named(
    connect: Connect, daemon: ScriptedDaemon, reply: httpx.Response
) -> None:
    """A redirect is not followed: it would take the token with it."""
    daemon.replies = [reply]
    with pytest.raises(PoolUnreachable, match=rf"{ADDRESS} answers {reply.status_code} \w+"):
        connect(token=SECRET).acquire("scenes")
    assert len(daemon.requests) == 1


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'"text"', b"\xff\xfe"])
def test_an_answer_without_a_document_is_not_a_pools(
    caller: Any, daemon: ScriptedDaemon, content: bytes
) -> None:
    daemon.replies = [httpx.Response(200, content=content)]
    with pytest.raises(PoolUnreachable):
        caller.request("r1")


def test_a_lease(caller: Any, daemon: ScriptedDaemon) -> None:
    daemon.replies = [LEASE]
    lease = caller.lease("l1")
    assert (lease.id, lease.task_id, lease.template) == ("l1", 42, "scenes")
    assert (lease.task_name, lease.url) == ("[cvat-pool p] scenes", "http://cvat/tasks/42")
    assert lease.outcome is Outcome.HIT
    assert lease.expires_at == datetime(2026, 1, 1, 12, 0, 0, 123_000, UTC)


def test_a_lease_that_has_no_task(caller: Any, daemon: ScriptedDaemon) -> None:
    daemon.replies = [{**LEASE, "state": LeaseState.WAITING, "task_id": None}]
    with pytest.raises(UnknownLease, match="l1 has no task"):
        caller.lease("l1")


def test_a_request(caller: Any, daemon: ScriptedDaemon) -> None:
    daemon.replies = [REQUEST, READY]
    request = caller.request("r1")
    assert (request.id, request.template, request.task_id) == ("r1", "scenes", 42)
    assert (request.url, request.outcome) == ("http://cvat/tasks/42", Outcome.WAIT)
    record = request.record
    assert (record.state, record.files) == (RequestState.IMPORTING, ("a.jpg", "b.jpg"))
    assert record.created_at == datetime(2026, 1, 1, 12, 0, 0, 123_000, UTC).timestamp()
    assert record.uploaded_at is None
    assert "r1" in repr(request) and "importing" in repr(request)
    jobs = request.jobs()
    assert jobs == [Job(**JOB)]
    # It is ready, so that nothing is asked for any more.
    assert request.jobs(timeout=0.0) == jobs
    assert request.state is RequestState.READY
    assert len(daemon.requests) == 2


ROW = {
    **TEMPLATE_EXAMPLE,
    "name": "scenes",
    "rate": 0.5,
    "paused_since": "2026-01-01T12:00:00.000Z",
    "hooks": "alive",
    "waits_for": "place",
    "group_sizes": [1, 40],
}
STATUS = {
    "server": "http://cvat",
    "store": "sqlite:///pool.db",
    "maintainer": "host:1",
    "daemons": [DAEMON_EXAMPLE],
    "spools": [SPOOL_EXAMPLE],
    "spools_warning": "",
    "in_flight": 2,
    "places_used": 1,
    "held_since": None,
    "held_until": None,
    "hold_reason": "",
    "hold_code": "",
    "templates": [ROW],
    "config_loaded_at": "2026-01-01T12:00:00.000Z",
    "config_rejected_at": None,
    "config_problems": [],
    "config_restart": ["daemon.port"],
}


def test_a_status(caller: Any, daemon: ScriptedDaemon) -> None:
    daemon.replies = [STATUS]
    status = caller.status()
    (row,) = status.templates
    assert (row.name, row.warm, row.rate) == ("scenes", 4, 0.5)
    assert (row.waits_for, row.group_sizes) == (WaitReason.PLACE, (1, 40))
    assert row.hooks is WebhookState.ALIVE
    assert (row.waits_for, row.group_sizes) == (WaitReason.PLACE, (1, 40))
    assert row.paused_since == datetime(2026, 1, 1, 12, tzinfo=UTC)
    assert (status.maintainer, status.in_flight) == ("host:1", 2)
    (running,) = status.daemons
    assert (running.url, running.since) == (
        "http://127.0.0.1:8765",
        datetime(2026, 1, 1, 12, 0, 0, 123000, tzinfo=UTC),
    )
    (spool,) = status.spools
    assert (spool.host, spool.shared, spool.queued) == ("pool-1", False, 2)
    assert status.config_restart == ("daemon.port",)


def test_what_a_newer_daemon_says_more_is_left_out(caller: Any, daemon: ScriptedDaemon) -> None:
    newer = {
        **STATUS,
        "mood": "good",
        "daemons": [{**DAEMON_EXAMPLE, "mood": "bad"}],
        "spools": [{**SPOOL_EXAMPLE, "mood": "calm"}],
        "templates": [{**ROW, "mood": "better"}],
    }
    daemon.replies = [LEASE, {**LEASE, "colour": "red"}, STATUS, newer]
    assert caller.lease("l1") == caller.lease("l1")
    assert caller.status() == caller.status()


@pytest.mark.parametrize(
    "wrong",
    [
        {"state": "dancing"},
        {"created_at": "yesterday"},
        {"jobs": 3},
        {"jobs": [{"id": 3}]},
        {"error": "oh"},
    ],
)
def test_what_cannot_be_understood_is_said_in_one_line(
    caller: Any, daemon: ScriptedDaemon, wrong: dict[str, Any]
) -> None:
    daemon.replies = [{**REQUEST, **wrong}]
    with pytest.raises(PoolError, match="not understood") as caught:
        caller.request("r1")
    assert "\n" not in str(caught.value)


# --- When a call is made again --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "again"),
    [
        (BUSY, True),
        (problem(429, "too-many-uploads", retry_after="1"), True),
        (problem(503, "stopping", retry_after="1"), True),
        (problem(503, "store", retry_after="1"), True),
        (problem(503, "a-newer-one", retry_after="1"), True),
        (problem(503, "too-busy"), False),
        # A proxy whose daemon is being restarted.
        (page(502), True),
        (page(503), True),
        (page(504), True),
        # These are results.
        (problem(503, "pool-empty", retry_after="1"), False),
        (problem(504, "timeout"), False),
        (problem(504, "import-timed-out"), False),
        (problem(502, "cvat-busy", retry_after="7"), False),
        (problem(502, "cvat-unreachable"), False),
        # Nothing says that these pass.
        (problem(500, ""), False),
        (problem(404, "unknown-template"), False),
        (problem(409, "lease-ended", retry_after="1"), False),
        (page(404), False),
        (page(302), False),
        # Lost, or not even begun.
        (refused(), True),
        (cut(), True),
    ],
    ids=repr,
)
def test_what_may_pass_is_tried_again(
    caller: Any, daemon: ScriptedDaemon, reply: Any, again: bool
) -> None:
    daemon.replies = [reply, LEASE]
    if again:
        assert caller.acquire("scenes").id == "l1"
    else:
        with pytest.raises(PoolError):
            caller.acquire("scenes")
    assert len(daemon.requests) == 1 + again
    assert len({each.headers["Idempotency-Key"] for each in daemon.requests}) == 1


@pytest.mark.parametrize(
    ("said", "least", "most"),
    [
        ("4", 4.0, 4.2),
        (formatdate(START + 20.0, usegmt=True), 20.0, 20.2),
        ("soon", 0.0, 0.2),
        ("-1", 0.0, 0.2),
        ("Wed, 99 Foo", 0.0, 0.2),
        ("", 0.0, 0.2),
    ],
)
def test_the_daemon_says_when_to_come_again(
    caller: Any, daemon: ScriptedDaemon, said: str, least: float, most: float
) -> None:
    daemon.replies = [problem(503, "too-busy", retry_after=said), LEASE]
    caller.acquire("scenes")
    (pause,) = daemon.pauses
    assert least < pause <= most


def test_pauses_grow(connect: Connect, daemon: ScriptedDaemon) -> None:
    daemon.replies = [BUSY, *[refused()] * 20, LEASE]
    connect(patience=100.0).acquire("scenes")
    assert daemon.pauses[0] <= 1.2
    ceilings = [min(5.0, 0.2 * 2**number) for number in range(1, 21)]
    for pause, ceiling in zip(daemon.pauses[1:], ceilings, strict=True):
        assert 0.1 * ceiling <= pause <= ceiling


def test_patience_ends(caller: Any, daemon: ScriptedDaemon) -> None:
    daemon.replies = [LEASE, cut()]
    caller.acquire("scenes")
    with pytest.raises(PoolUnreachable, match=rf"{ADDRESS}, connection reset"):
        caller.acquire("scenes")
    assert 25.0 < sum(daemon.pauses) <= 30.0
    assert len(daemon.requests) < 21


def test_patience_begins_with_the_first_failure(caller: Any, daemon: ScriptedDaemon) -> None:
    """A long poll may be lost after a time longer than the patience."""

    def lose_late(_: httpx.Request) -> httpx.Response:
        daemon.clock.advance(40.0)
        return problem(503, "stopping", retry_after="1")

    daemon.replies = [REQUEST, lose_late, READY]
    assert caller.request("r1").jobs()


def test_a_daemon_that_never_answered_is_given_up_early(
    caller: Any, daemon: ScriptedDaemon
) -> None:
    daemon.replies = [refused()]
    with pytest.raises(PoolUnreachable) as caught:
        caller.status()
    assert str(caught.value) == (
        f"No pool answers: {ADDRESS}, connection refused; is 'cvat-pool run' running there?"
    )
    assert caught.value.exit_code == 1
    assert sum(daemon.pauses) <= 5.0
    assert 2 < len(daemon.requests) < 20


def test_a_pause_that_is_longer_than_the_patience_is_not_waited(
    caller: Any, daemon: ScriptedDaemon
) -> None:
    daemon.replies = [problem(503, "too-busy", retry_after="3600")]
    with pytest.raises(errors.TooBusy):
        caller.status()
    assert daemon.pauses == []


def test_submit_tries_for_as_long_as_its_caller_wants(caller: Any, daemon: ScriptedDaemon) -> None:
    daemon.replies = [BUSY]
    with pytest.raises(errors.TooBusy):
        caller.submit("scenes", share=["a"], timeout=5.0)
    assert 3.0 < sum(daemon.pauses) <= 5.0


def test_what_would_fail_again_is_not_tried_again(caller: Any, daemon: ScriptedDaemon) -> None:
    unknown = httpx.ConnectError("no")
    unknown.__cause__ = OSError(-2, "Name or service not known")
    unknown.__cause__.__cause__ = socket.gaierror(-2, "Name or service not known")
    daemon.replies = [unknown]
    with pytest.raises(PoolUnreachable, match="name or service not known"):
        caller.status()
    assert len(daemon.requests) == 1


# --- Leases ---------------------------------------------------------------------------------------


def call_of(request: httpx.Request) -> tuple[str, str]:
    return request.method, request.url.raw_path.decode()


def test_acquire(caller: Any, daemon: ScriptedDaemon) -> None:
    daemon.replies = [httpx.Response(201, json=LEASE)]
    caller.acquire("scenes", timeout=2.5, ttl=60.0, idempotency_key="k")
    caller.acquire("scenes")
    caller.acquire("scenes")
    first, second, third = daemon.requests
    assert call_of(first) == ("POST", "/v1/leases")
    assert json.loads(first.content) == {"template": "scenes", "timeout": 2.5, "ttl": 60.0}
    assert json.loads(second.content) == {"template": "scenes"}
    keys = [each.headers["Idempotency-Key"] for each in (first, second, third)]
    assert keys[0] == "k" and len(set(keys)) == 3
    # The daemon may have to create a task.
    assert first.extensions["timeout"]["read"] == 30.0 + 120.0 + 2.5


@pytest.mark.parametrize("key", ["", "a b", "a\nb", "schlüssel", "k" * 256])
def test_a_key_that_no_header_takes(caller: Any, daemon: ScriptedDaemon, key: str) -> None:
    with pytest.raises(InputError, match="1 to 255 visible ASCII"):
        caller.acquire("scenes", idempotency_key=key)
    assert daemon.requests == []


def test_an_empty_pool_is_said_at_once(caller: Any, daemon: ScriptedDaemon) -> None:
    daemon.replies = [problem(503, "pool-empty", "nothing there", retry_after="1")]
    with pytest.raises(PoolEmpty, match="nothing there"):
        caller.acquire("scenes")
    assert daemon.pauses == []


NOT_OPEN = problem(404, "unknown-stream")


@pytest.mark.parametrize(
    "replies",
    # The first try was lost after it had worked.
    [[DONE], [BUSY, DONE], [cut(), NOT_OPEN], [page(502), NOT_OPEN]],
)
def test_a_stream_is_closed(caller: Any, daemon: ScriptedDaemon, replies: list[Any]) -> None:
    daemon.replies = list(replies)
    caller.close_stream("scenes", "cam/7 & 8?")
    assert len(daemon.requests) == len(replies)
    for call in daemon.requests:
        assert (call.method, call.url.path) == ("DELETE", "/v1/streams")
        assert dict(call.url.params) == {"template": "scenes", "name": "cam/7 & 8?"}


@pytest.mark.parametrize("replies", [[NOT_OPEN], [refused(), NOT_OPEN], [BUSY, NOT_OPEN]])
def test_a_stream_that_is_not_open(caller: Any, daemon: ScriptedDaemon, replies: list[Any]) -> None:
    daemon.replies = list(replies)
    with pytest.raises(UnknownStream):
        caller.close_stream("scenes", "camera 7")


RELEASED = {**LEASE, "state": "released"}
ENDED = problem(409, "lease-ended")


@pytest.mark.parametrize(
    ("replies", "calls"),
    [
        ([DONE], ["DELETE"]),
        ([BUSY, DONE], ["DELETE", "DELETE"]),
        # The first try was lost after it had worked.
        ([cut(), ENDED, RELEASED], ["DELETE", "DELETE", "GET"]),
        ([page(502), ENDED, RELEASED], ["DELETE", "DELETE", "GET"]),
    ],
)
def test_release(caller: Any, daemon: ScriptedDaemon, replies: list[Any], calls: list[str]) -> None:
    daemon.replies = list(replies)
    caller.release("l1")
    assert [call_of(each) for each in daemon.requests] == [
        (each, "/v1/leases/l1") for each in calls
    ]


@pytest.mark.parametrize(
    ("replies", "error"),
    [
        ([ENDED], LeaseEnded),
        # These tries cannot have released it.
        ([refused(), ENDED], LeaseEnded),
        ([BUSY, ENDED], LeaseEnded),
        ([cut(), ENDED, {**LEASE, "state": "expired"}], LeaseEnded),
        ([cut(), problem(409, "lease-in-use")], LeaseInUse),
        ([problem(404, "unknown-lease")], UnknownLease),
    ],
)
def test_a_release_that_did_not_work(
    caller: Any, daemon: ScriptedDaemon, replies: list[Any], error: type[PoolError]
) -> None:
    daemon.replies = list(replies)
    with pytest.raises(error):
        caller.release("l1")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a?b", "a b", "ä", "a\n"])
def test_what_leads_elsewhere_names_nothing(caller: Any, daemon: ScriptedDaemon, name: str) -> None:
    for method, error in [
        (caller.release, UnknownLease),
        (caller.lease, UnknownLease),
        (caller.request, UnknownRequest),
        (caller.pause, UnknownTemplate),
        (caller.resume, UnknownTemplate),
    ]:
        with pytest.raises(error):
            method(name)
    assert daemon.requests == []


def test_jobs_of_a_lease(caller: Any, daemon: ScriptedDaemon) -> None:
    daemon.replies = [LEASE, LEASE, {**LEASE, "state": "used", "jobs": [JOB]}]
    assert caller.lease("l1").jobs(timeout=20.0) == [Job(**JOB)]


FAILED = {"code": "import-failed", "title": "", "detail": "bad image", "status": 422}


@pytest.mark.parametrize(
    ("document", "error", "words"),
    [
        ({"state": "released"}, LeaseEnded, "l1 is released"),
        ({"state": "expired"}, LeaseEnded, "l1 is expired"),
        ({"error": FAILED}, ImportFailed, "bad image"),
    ],
)
def test_a_lease_that_will_have_no_jobs(
    caller: Any,
    daemon: ScriptedDaemon,
    document: dict[str, Any],
    error: type[PoolError],
    words: str,
) -> None:
    daemon.replies = [LEASE, {**LEASE, **document}]
    with pytest.raises(error, match=words):
        caller.lease("l1").jobs()


# --- Waiting for jobs -----------------------------------------------------------------------------


def passing(daemon: ScriptedDaemon) -> Callable[[httpx.Request], Any]:
    """A daemon that honours ``Prefer: wait``."""

    def reply(request: httpx.Request) -> Any:
        daemon.clock.advance(wait_of(request))
        return REQUEST

    return reply


def test_jobs_are_waited_for_in_long_polls(connect: Connect, daemon: ScriptedDaemon) -> None:
    daemon.replies = [REQUEST, passing(daemon), passing(daemon), READY]
    assert connect(timeout=7.0).request("r1").jobs() == [Job(**JOB)]
    first, *polls = daemon.requests
    assert [wait_of(each) for each in polls] == [30] * 3
    assert daemon.pauses == [], "a poll that was waited for is followed by the next at once"
    times = {"connect": 5.0, "read": 7.0, "write": 7.0, "pool": 7.0}
    assert first.extensions["timeout"] == times
    assert polls[0].extensions["timeout"] == {**times, "read": 37.0}


@pytest.mark.parametrize("timeout", [0.0, 0.05, 0.9, 3.0, 3.4, 61.5])
def test_a_wait_ends_on_time(caller: Any, daemon: ScriptedDaemon, timeout: float) -> None:
    daemon.replies = [REQUEST, passing(daemon)]
    request = caller.request("r1")
    with pytest.raises(WaitTimeout, match="r1"):
        request.jobs(timeout=timeout)
    assert daemon.clock.monotonic() == pytest.approx(timeout)
    assert len(daemon.requests) < 13


def test_a_daemon_that_ends_polls_early_is_not_asked_in_a_busy_loop(
    caller: Any, daemon: ScriptedDaemon
) -> None:
    daemon.replies = [*[REQUEST] * 21, READY]
    caller.request("r1").jobs()
    assert daemon.pauses[:5] == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8])
    assert set(daemon.pauses[5:]) == {1.0}


def test_a_daemon_that_is_restarted_is_asked_again(caller: Any, daemon: ScriptedDaemon) -> None:
    stopping = problem(503, "stopping", retry_after="1")
    daemon.replies = [REQUEST, REQUEST, stopping, cut(), refused(), refused(), READY]
    assert caller.request("r1").jobs(timeout=60.0)


@pytest.mark.parametrize(
    ("document", "error", "words"),
    [
        ({"state": "failed", "error": FAILED}, ImportFailed, "bad image"),
        (
            {"state": "failed", "error": {**FAILED, "code": "of-a-newer-one", "title": "Its"}},
            PoolError,
            "Its: bad image",
        ),
        ({"state": "cancelled"}, RequestCancelled, "r1"),
    ],
)
def test_a_request_that_will_have_no_jobs(
    caller: Any,
    daemon: ScriptedDaemon,
    document: dict[str, Any],
    error: type[PoolError],
    words: str,
) -> None:
    daemon.replies = [REQUEST, {**REQUEST, **document}]
    request = caller.request("r1")
    with pytest.raises(error, match=words) as caught:
        request.jobs()
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("replies", "cancelled"),
    [
        ([DONE], True),
        ([problem(409, "too-late")], False),
        ([cut(), problem(409, "too-late"), {**REQUEST, "state": "cancelled"}], True),
        ([cut(), problem(409, "too-late"), REQUEST], False),
    ],
)
def test_cancel(caller: Any, daemon: ScriptedDaemon, replies: list[Any], cancelled: bool) -> None:
    daemon.replies = [REQUEST, *replies]
    assert caller.request("r1").cancel() is cancelled


def test_cancel_of_an_unknown_request(caller: Any, daemon: ScriptedDaemon) -> None:
    daemon.replies = [REQUEST, problem(404, "unknown-request")]
    request = caller.request("r1")
    with pytest.raises(UnknownRequest):
        request.cancel()


# --- Control --------------------------------------------------------------------------------------


def test_control(caller: Any, daemon: ScriptedDaemon) -> None:
    daemon.replies = [cut(), {}]
    caller.pause("cars.v2")
    caller.resume("cars.v2")
    caller.resume()
    assert [call_of(each) for each in daemon.requests] == [
        ("POST", "/v1/templates/cars.v2/pause"),
        ("POST", "/v1/templates/cars.v2/pause"),
        ("POST", "/v1/templates/cars.v2/resume"),
        ("POST", "/v1/templates/resume"),
    ]
    assert {each.content for each in daemon.requests} == {b""}


def test_drain_says_how_many_tasks_were_retired(caller: Any, daemon: ScriptedDaemon) -> None:
    daemon.replies = [{"name": "scenes", "retired": 4}]
    assert caller.drain("scenes") == 4
    assert call_of(daemon.requests[0]) == ("POST", "/v1/templates/scenes/drain")


def test_prewarm(caller: Any, daemon: ScriptedDaemon) -> None:
    daemon.replies = [{}]
    caller.prewarm("scenes", 20, duration=60.0)
    assert json.loads(daemon.requests[0].content) == {"count": 20, "seconds": 60.0}


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
    caller: Any, daemon: ScriptedDaemon, tmp_path: Path
) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"first")
    daemon.replies = [httpx.Response(202, json=REQUEST)]
    shown: list[tuple[int, int]] = []
    request = caller.submit(
        "scenes",
        [path, ("b.jpg", b"second"), ("c.jpg", io.BytesIO(b"third"))],
        name="night ride",
        assignee=3,
        params={"image_quality": 9},
        idempotency_key="k",
        progress=lambda sent, total: shown.append((sent, total)),
    )
    assert request.id == "r1"
    (sent,) = daemon.requests
    assert parts_of(sent) == [
        ("template", None, b"scenes"),
        ("params", None, b'{"image_quality": 9}'),
        ("name", None, b"night ride"),
        ("assignee", None, b"3"),
        ("files", "a.jpg", b"first"),
        ("files", "b.jpg", b"second"),
        ("files", "c.jpg", b"third"),
    ]
    assert sent.headers["Content-Length"] == str(len(sent.content))
    assert "Transfer-Encoding" not in sent.headers
    assert sent.headers["Idempotency-Key"] == "k"
    assert "Prefer" not in sent.headers
    assert shown[-1] == (16, 16)


@pytest.mark.parametrize(
    ("given", "document"),
    [
        ({"share": ["a", "b"]}, {"share": ["a", "b"]}),
        ({"urls": ["http://x/a.jpg"]}, {"urls": ["http://x/a.jpg"]}),
        ({"cloud": (3, ["k"])}, {"cloud": {"storage_id": 3, "keys": ["k"]}}),
        (
            {"share": ["a"], "params": {"image_quality": 9}, "name": "night ride", "assignee": 3},
            {"share": ["a"], "params": {"image_quality": 9}, "name": "night ride", "assignee": 3},
        ),
        (
            {"share": ["a"], "stream": "camera ü"},
            {"share": ["a"], "stream": "camera ü"},
        ),
    ],
)
def test_data_from_elsewhere_is_only_named(
    caller: Any, daemon: ScriptedDaemon, given: dict[str, Any], document: dict[str, Any]
) -> None:
    daemon.replies = [httpx.Response(202, json=REQUEST)]
    caller.submit("scenes", **given)
    (sent,) = daemon.requests
    assert call_of(sent) == ("POST", "/v1/requests")
    assert json.loads(sent.content) == {"template": "scenes", **document}


def test_a_lease_takes_data(caller: Any, daemon: ScriptedDaemon) -> None:
    daemon.replies = [LEASE, httpx.Response(202, json=REQUEST), {**LEASE, "jobs": [JOB]}]
    lease = caller.acquire("scenes", timeout=1.0)
    assert lease.upload(("a.jpg", b"x")).id == "r1"
    assert ("lease_id", None, b"l1") in parts_of(daemon.requests[1])
    assert [job.id for job in lease.jobs()] == [JOB["id"]]


def test_a_lost_upload_is_sent_again_from_its_beginning(
    caller: Any, daemon: ScriptedDaemon
) -> None:
    daemon.replies = [cut(), page(503), httpx.Response(202, json=REQUEST)]
    stream = io.BytesIO(b"skipped" + bytes(3 * 2**20))
    stream.seek(7)
    shown: list[int] = []
    caller.submit("scenes", ("a.jpg", stream), progress=lambda sent, _: shown.append(sent))
    keys = {each.headers["Idempotency-Key"] for each in daemon.requests}
    bodies = {parts_of(each)[-1] for each in daemon.requests}
    assert (len(daemon.requests), len(keys)) == (3, 1)
    assert bodies == {("files", "a.jpg", bytes(3 * 2**20))}
    assert shown.count(3 * 2**20) == 3


def test_a_file_that_changes_while_it_is_sent(
    caller: Any, daemon: ScriptedDaemon, tmp_path: Path
) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(bytes(3 * 2**20))

    def shorten(sent: int, total: int) -> None:
        with path.open("r+b") as stream:
            stream.truncate(2**20)

    daemon.replies = [httpx.Response(202, json=REQUEST)]
    with pytest.raises(InputError, match=r"a\.jpg became shorter"):
        caller.submit("scenes", path, progress=shorten)


def test_what_cannot_be_used_is_not_sent(caller: Any, daemon: ScriptedDaemon) -> None:
    with pytest.raises(InputError, match="nothing"):
        caller.submit("scenes", "nothing.jpg")
    assert daemon.requests == []


# --- Threads, time-outs and processes -------------------------------------------------------------


def test_progress_may_call_the_pool(daemon: ScriptedDaemon) -> None:
    daemon.replies = [lambda _: REQUEST]
    seen: list[RequestState] = []
    with daemon.connected("RemotePool") as pool:
        pool.submit(
            "scenes",
            ("a.jpg", b"x"),
            progress=lambda *_: seen.append(pool.request("r1").record.state),
        )
    assert seen == [RequestState.IMPORTING]


def test_closing_ends_the_calls_of_other_threads(daemon: ScriptedDaemon) -> None:
    begun, ended = threading.Event(), threading.Event()

    async def sleep(_: float) -> None:
        begun.set()
        await asyncio.Event().wait()

    daemon.replies = [BUSY]
    with daemon.connected("RemotePool", sleep=sleep) as pool:

        def call() -> None:
            with pytest.raises(PoolClosed):
                pool.status()
            ended.set()

        thread = threading.Thread(target=call)
        thread.start()
        assert begun.wait(10)
    assert ended.wait(10)
    thread.join()
