"""The stream of events as the remote pools read it, over as many connections as it takes."""

from __future__ import annotations

import asyncio
import json
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from support.blocking import Blocking
from support.clock import ManualClock
from support.pools import REMOTE
from support.remote import ScriptedDaemon, page, problem, refused

from pool import InputError, PoolError, PoolUnreachable
from pool.model import KINDS, Event, event_document

PATIENCE = 20.0


def event(number: int, kind: str = "request.ready", **more: Any) -> Event:
    state = kind.partition(".")[2]
    return Event(id=number, kind=kind, at=1_767_000_000.5, template="t", state=state, **more)


def message(one: Event) -> bytes:
    data = json.dumps(event_document(one))
    return f"id: {one.id}\nevent: {one.kind}\ndata: {data}\n\n".encode()


LEVELS = b'retry: 2000\n\nevent: levels\ndata: {"in_flight": 1}\n\n: still here\n\n'


class Pieces(httpx.AsyncByteStream):
    """Content that comes in pieces of so many bytes."""

    def __init__(self, content: bytes, size: int) -> None:
        self._content = content
        self._size = size

    async def __aiter__(self) -> Any:
        for start in range(0, len(self._content), self._size):
            yield self._content[start : start + self._size]


def stream(*content: bytes, size: int | None = None) -> Any:
    """A connection that carries this, and ends."""
    joined = b"".join(content)
    headers = {"Content-Type": "text/event-stream"}
    if size is None:
        return httpx.Response(200, headers=headers, content=joined)
    return lambda _: httpx.Response(200, headers=headers, stream=Pieces(joined, size))


@pytest.fixture
def daemon(clock: ManualClock) -> ScriptedDaemon:
    return ScriptedDaemon(clock)


@pytest.fixture(params=REMOTE)
def caller(request: pytest.FixtureRequest, daemon: ScriptedDaemon) -> Iterator[Any]:
    with daemon.connected(request.param) as pool:
        yield pool


def hear(caller: Any, count: int, **options: Any) -> list[Event]:
    """The first events of a pool of either kind."""
    events = caller.events(**options)
    if isinstance(caller, Blocking):
        return caller.first(events, count)
    return [next(events) for _ in range(count)]


def places(daemon: ScriptedDaemon) -> list[str | None]:
    """After which event each connection was to go on."""
    return [each.headers.get("Last-Event-ID") for each in daemon.requests]


# --- Reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 7, 100, None])
def test_events_are_read_wherever_the_bytes_are_parted(
    caller: Any, daemon: ScriptedDaemon, size: int | None
) -> None:
    first = event(7, "request.failed", request_id="r1", code="ä\u2028", seconds=1.5)
    daemon.replies = [stream(LEVELS, message(first), LEVELS, message(event(8)), size=size)]
    assert hear(caller, 2) == [first, event(8)]
    assert daemon.requests[0].headers["Accept"] == "text/event-stream"


def test_only_what_is_wanted_is_heard_and_the_place_moves_on_all_the_same(
    caller: Any, daemon: ScriptedDaemon
) -> None:
    daemon.replies = [
        stream(message(event(1)), message(event(2, "task.warm")), message(event(3))),
        stream(message(event(4, "task.warm"))),
    ]
    heard = hear(caller, 2, kinds=["task.warm"], template="t")
    assert [each.id for each in heard] == [2, 4]
    assert {each.url.raw_path for each in daemon.requests} == {b"/v1/events?template=t"}
    assert places(daemon) == [None, "3"]


def test_an_event_that_was_cut_off_is_read_again(caller: Any, daemon: ScriptedDaemon) -> None:
    daemon.replies = [
        stream(message(event(1)), message(event(2))[:-1]),
        stream(message(event(2))),
    ]
    assert hear(caller, 2) == [event(1), event(2)]
    assert places(daemon) == [None, "1"]


def test_where_a_listener_begins(caller: Any, daemon: ScriptedDaemon) -> None:
    # The daemon says where now is.
    daemon.replies = [stream(b"retry: 2000\nid: 41\n\n"), stream(message(event(42)))]
    hear(caller, 1)
    daemon.replies = [stream(message(event(1)))]
    hear(caller, 1, after=0)
    assert places(daemon) == [None, "41", "0"]


def test_an_unknown_kind_is_refused_here(caller: Any, daemon: ScriptedDaemon) -> None:
    with pytest.raises(InputError, match=r"'request.done'; there is request.queued"):
        hear(caller, 1, kinds=["request.ready", "request.done"])
    assert daemon.requests == []
    daemon.replies = [stream(message(event(1)))]
    assert hear(caller, 1, kinds=KINDS)


def test_an_event_that_is_not_understood(caller: Any, daemon: ScriptedDaemon) -> None:
    daemon.replies = [stream(b"id: 1\ndata: {}\n\n")]
    with pytest.raises(PoolError, match="not understood"):
        hear(caller, 1)


# --- Listening ------------------------------------------------------------------------------------


def test_a_stream_goes_on_where_it_ended(caller: Any, daemon: ScriptedDaemon) -> None:
    daemon.replies = [
        stream(LEVELS, message(event(1)), message(event(2))),
        refused(),
        problem(503, "stopping", retry_after="1"),
        stream(LEVELS, message(event(3))),
    ]
    assert [each.id for each in hear(caller, 3)] == [1, 2, 3]
    assert places(daemon) == [None, "2", "2", "2"]


def test_a_daemon_that_is_gone_for_long_is_said_to_be(caller: Any, daemon: ScriptedDaemon) -> None:
    daemon.replies = [stream(message(event(1))), refused()]
    with pytest.raises(PoolUnreachable, match="refused"):
        hear(caller, 2)


def test_iterating_again_goes_on_after_a_failure(daemon: ScriptedDaemon) -> None:
    daemon.replies = [stream(message(event(1))), page(404), stream(message(event(2)))]
    with daemon.connected("RemotePool") as pool:
        events = pool.events()
        assert next(events).id == 1
        with pytest.raises(PoolUnreachable):
            next(events)
        assert next(events).id == 2
    assert list(events) == [], "the pool is closed"


def test_what_is_no_stream_is_no_pools(caller: Any, daemon: ScriptedDaemon) -> None:
    daemon.replies = [httpx.Response(200, text="hello")]
    with pytest.raises(PoolUnreachable, match="not a pool's answer"):
        hear(caller, 1)


def test_a_subscriber_is_called_until_it_ends_that(daemon: ScriptedDaemon) -> None:
    heard: list[int] = []
    stops: queue.Queue[Callable[[], None]] = queue.Queue()
    done = threading.Event()

    def callback(one: Event) -> None:
        heard.append(one.id)
        if one.id == 1:
            raise ValueError("a mistake in a callback is no end")
        if one.id == 3:
            stops.get(timeout=PATIENCE)()
            done.set()

    daemon.replies = [
        stream(message(event(1)), message(event(2))),
        # Longer than the client's patience with a call.
        *[refused()] * 30,
        stream(message(event(3)), message(event(4))),
    ]
    with daemon.connected("RemotePool") as pool:
        stops.put(pool.subscribe(callback))
        assert done.wait(PATIENCE)
    assert heard == [1, 2, 3]
    assert sum(daemon.pauses) > 30.0


class Held(httpx.AsyncByteStream):
    """One event, and then silence on a connection that is held open."""

    def __init__(self) -> None:
        self.closed = threading.Event()

    async def __aiter__(self) -> Any:
        yield message(event(1))
        await asyncio.Event().wait()

    async def aclose(self) -> None:
        self.closed.set()

    def __call__(self, _: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, stream=self)


@pytest.mark.parametrize("ended", ["by its stop", "in its callback", "with the pool"])
def test_a_silent_subscription_ends(daemon: ScriptedDaemon, ended: str) -> None:
    """It does not wait for the next event."""
    held = Held()
    heard, answer = threading.Event(), threading.Event()
    threads: list[threading.Thread] = []
    stops: list[Callable[[], None]] = []

    def callback(_: Event) -> None:
        threads.append(threading.current_thread())
        heard.set()
        if ended == "in its callback":
            assert answer.wait(PATIENCE)
            stops[0]()

    daemon.replies = [held]
    with daemon.connected("RemotePool") as pool:
        stops.append(pool.subscribe(callback))
        answer.set()
        assert heard.wait(PATIENCE)
        if ended == "by its stop":
            stops[0]()
        if ended != "with the pool":
            threads[0].join(PATIENCE)
            assert held.closed.wait(PATIENCE)
    threads[0].join(PATIENCE)
    assert not threads[0].is_alive()
    assert len(daemon.requests) == 1


def test_events_that_nothing_reads_any_more_hold_no_connection(daemon: ScriptedDaemon) -> None:
    held = Held()
    daemon.replies = [held]
    with daemon.connected("RemotePool") as pool:
        for one in pool.events():
            assert one.id == 1
            break
        assert held.closed.wait(PATIENCE)


def test_a_subscription_without_a_daemon_is_refused(daemon: ScriptedDaemon) -> None:
    daemon.replies = [refused()]
    with daemon.connected("RemotePool") as pool, pytest.raises(PoolUnreachable):
        pool.subscribe(print)
