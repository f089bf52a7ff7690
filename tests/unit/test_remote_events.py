"""The stream of events as a remote client reads it, over as many connections as it takes."""

from __future__ import annotations

import json
import queue
import random
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import httpx
import pytest
from support.blocking import EventLoop
from support.clock import ManualClock

from pool import AsyncRemotePool, InputError, PoolError, PoolUnreachable, RemotePool
from pool.client.events import Following
from pool.model import KINDS, Event, event_document

ADDRESS = "http://pool.test:8765"
PATIENCE = 20.0


def event(number: int, kind: str = "request.ready", **more: Any) -> Event:
    state = kind.partition(".")[2]
    return Event(id=number, kind=kind, at=1_767_000_000.5, template="t", state=state, **more)


def message(told: Event) -> bytes:
    data = json.dumps(event_document(told))
    return f"id: {told.id}\nevent: {told.kind}\ndata: {data}\n\n".encode()


LEVELS = b'retry: 2000\n\nevent: levels\ndata: {"in_flight": 1}\n\n: still here\n\n'


# --- Reading --------------------------------------------------------------------------------------


def test_events_are_read_with_all_that_they_tell() -> None:
    told = event(7, "request.failed", request_id="r1", code="import-failed", seconds=1.5)
    assert Following().feed(LEVELS + message(told) + LEVELS) == [told]


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_where_the_bytes_are_parted_is_no_matter(size: int) -> None:
    stream = LEVELS + message(event(1)) + message(event(2, code="ä\u2028")) + LEVELS
    following, found = Following(), []
    for start in range(0, len(stream), size):
        found += following.feed(stream[start : start + size])
    assert [each.id for each in found] == [1, 2]


def test_only_what_is_wanted_is_told_and_the_place_moves_on_all_the_same() -> None:
    following = Following(kinds=["task.warm"], template="t")
    assert following.feed(message(event(1)) + message(event(2, "task.warm"))) == [
        event(2, "task.warm")
    ]
    assert following.feed(message(event(3))) == []
    call = following.call()
    assert (call.path, call.query) == ("/v1/events", {"template": "t"})
    assert call.headers["Last-Event-ID"] == "3"


def test_an_event_that_was_cut_off_is_read_again() -> None:
    following = Following()
    following.feed(message(event(1)) + message(event(2))[:-1])
    assert following.call().headers["Last-Event-ID"] == "1"
    assert following.feed(message(event(2))) == [event(2)]


def test_where_a_listener_begins() -> None:
    assert "Last-Event-ID" not in Following().call().headers
    assert Following(after=0).call().headers["Last-Event-ID"] == "0"
    named = Following()
    named.feed(b"retry: 2000\nid: 41\n\n")
    assert named.call().headers["Last-Event-ID"] == "41", "the daemon says where now is"


def test_an_unknown_kind_is_refused_here() -> None:
    with pytest.raises(InputError, match=r"'request.done'; there is request.queued"):
        Following(kinds=["request.ready", "request.done"])
    assert Following(kinds=KINDS)


def test_an_event_that_is_not_understood() -> None:
    with pytest.raises(PoolError, match="not understood"):
        Following().feed(b"id: 1\ndata: {}\n\n")


# --- Listening ------------------------------------------------------------------------------------


class Streams:
    """A daemon whose connections each tell something, and end; afterwards, it holds the last."""

    def __init__(self, *streams: Any) -> None:
        self.streams = list(streams)
        self.places: list[str | None] = []
        self.asked = threading.Condition()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        with self.asked:
            self.places.append(request.headers.get("Last-Event-ID"))
            self.asked.notify_all()
            stream = self.streams.pop(0)
        if isinstance(stream, Exception):
            raise stream
        if isinstance(stream, httpx.Response):
            return stream
        return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=stream)


Hear = Callable[[Streams, int], list[Event]]


@pytest.fixture(params=["threads", "asyncio"])
def hear(request: pytest.FixtureRequest, clock: ManualClock) -> Iterator[Hear]:
    """Hears so many events of a scripted daemon."""

    def threads(streams: Streams, count: int) -> list[Event]:
        with httpx.Client(transport=httpx.MockTransport(streams)) as client:
            pool = RemotePool(ADDRESS, client=client, clock=clock, rng=random.Random(1))
            return list(islice(pool.events(), count))

    async def coroutines(streams: Streams, count: int) -> list[Event]:
        async def sleep(seconds: float) -> None:
            clock.sleep(seconds)

        transport = httpx.MockTransport(streams)
        async with httpx.AsyncClient(transport=transport) as client:
            pool = AsyncRemotePool(
                ADDRESS, client=client, clock=clock, sleep=sleep, rng=random.Random(1)
            )
            found: list[Event] = []
            events = pool.events()
            async for each in events:
                found.append(each)
                if len(found) == count:
                    break
            await events.aclose()
            return found

    with EventLoop() as loop:
        if request.param == "threads":
            yield threads
        else:
            yield lambda streams, count: loop.call(coroutines, streams, count)


def test_a_stream_goes_on_where_it_ended(hear: Hear) -> None:
    streams = Streams(
        LEVELS + message(event(1)) + message(event(2)),
        httpx.ConnectError("refused"),
        httpx.Response(503, headers={"Retry-After": "1"}),
        LEVELS + message(event(3)),
    )
    assert [each.id for each in hear(streams, 3)] == [1, 2, 3]
    assert streams.places == [None, "2", "2", "2"]


def test_a_daemon_that_is_gone_for_long_is_said_to_be(hear: Hear) -> None:
    streams = Streams(message(event(1)), *[httpx.ConnectError("refused")] * 99)
    with pytest.raises(PoolUnreachable, match="refused"):
        hear(streams, 2)


def test_what_is_no_stream_is_no_pools(hear: Hear) -> None:
    with pytest.raises(PoolUnreachable, match="not as a pool"):
        hear(Streams(httpx.Response(200, text="hello")), 1)


def test_a_subscriber_is_called_until_it_ends_that(clock: ManualClock) -> None:
    heard: list[int] = []
    stops: queue.Queue[Callable[[], None]] = queue.Queue()
    done = threading.Event()

    def callback(told: Event) -> None:
        heard.append(told.id)
        if told.id == 1:
            raise ValueError("a mistake in a callback is no end")
        if told.id == 3:
            stops.get(timeout=PATIENCE)()
            done.set()

    streams = Streams(
        message(event(1)) + message(event(2)),
        *[httpx.ConnectError("refused")] * 30,
        message(event(3)) + message(event(4)),
    )
    with httpx.Client(transport=httpx.MockTransport(streams)) as client:
        pool = RemotePool(ADDRESS, client=client, clock=clock, rng=random.Random(1))
        stops.put(pool.subscribe(callback))
        assert done.wait(PATIENCE)
    assert heard == [1, 2, 3]
    assert streams.streams == []


def test_a_subscription_to_nobody_is_refused(clock: ManualClock) -> None:
    streams = Streams(*[httpx.ConnectError("refused")] * 99)
    with httpx.Client(transport=httpx.MockTransport(streams)) as client:
        pool = RemotePool(ADDRESS, client=client, clock=clock)
        with pytest.raises(PoolUnreachable):
            pool.subscribe(print)
