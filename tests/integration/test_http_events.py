"""``GET /v1/events`` over a real server: what is told, to whom, and when it ends."""

from __future__ import annotations

import json
import queue
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import urllib3
from support.api import Serving, settings_for
from support.api import serving as api_serving
from support.happening import TEMPLATE, make_warm, serve
from support.statuses import status_with
from support.streams import Stream
from support.waiting import poll_until

from pool.config.settings import Template
from pool.events.feed import Service, Unsubscribe
from pool.http import events as module
from pool.observability.observation import Observation
from pool.simulator import SimulatorServer
from pool.status import Status
from pool.store import Store

PATIENCE = 20.0


class Listened:
    """A daemon whose status is what the test says, and clients of its events."""

    def __init__(self, served: Serving, statuses: Statuses) -> None:
        self.served, self.statuses = served, statuses
        self.store = served.process.store
        self.http = urllib3.PoolManager(maxsize=100, retries=False, timeout=PATIENCE)

    @property
    def clients(self) -> int:
        return self.served.state.broadcaster.clients

    def request(self, query: str = "", **headers: str) -> urllib3.BaseHTTPResponse:
        url = f"{self.served.url}/v1/events{query}"
        return self.http.request("GET", url, headers=headers, preload_content=False)

    @contextmanager
    def listening(self, query: str = "", **headers: str) -> Iterator[Stream]:
        response = self.request(query, **headers)
        try:
            assert response.status == 200, response.data
            assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
            yield Stream(response)
        finally:
            response.close()


@dataclass
class Statuses:
    """What a daemon's status is, and how often it was read."""

    now: Status = field(default_factory=status_with)
    reads: int = 0

    def read(self) -> Status:
        self.reads += 1
        return self.now


@pytest.fixture
def statuses(monkeypatch: pytest.MonkeyPatch) -> Statuses:
    statuses = Statuses()
    monkeypatch.setattr(Observation, "status", statuses.read)
    return statuses


@pytest.fixture
def serving(
    store: Store, store_url: str, simulator: SimulatorServer, statuses: Statuses
) -> Iterator[Listened]:
    """It makes no events by itself; the test does, as another process."""
    settings = settings_for(simulator.url, store_url, *map(named, (TEMPLATE, "others")))
    with api_serving(settings, simulator.access_token) as served:
        listened = Listened(served, statuses)
        yield listened
        listened.http.clear()


def named(name: str) -> Template:
    return Template(name=name)


# --- Events ---------------------------------------------------------------------------------------


def test_what_happens_is_told_as_it_happens(serving: Listened, store: Store) -> None:
    make_warm(store, 1, template="others")
    with serving.listening() as stream:
        assert stream.next("levels")["in_flight"] == 0
        serve(store, "r1", task_id=2, now=1767268800.1234, took=2.0, server=0.5)
        told = [stream.next() for _ in range(6)]
    assert [event["kind"] for event in told] == [
        "task.warm",
        "request.uploading",
        "lease.handed_out",
        "request.importing",
        "lease.used",
        "request.ready",
    ]
    assert told[-1] == {
        "id": 7,
        "kind": "request.ready",
        "at": "2026-01-01T12:00:00.123Z",
        "template": TEMPLATE,
        "tenant": "",
        "task_id": 2,
        "lease_id": told[1]["lease_id"],
        "request_id": "r1",
        "state": "ready",
        "outcome": "hit",
        "code": "",
        "seconds": 2.0,
        "server_seconds": 0.5,
        "held_seconds": 0.0,
    }


@pytest.mark.parametrize("how", ["header", "query", "both"])
def test_a_client_that_comes_back_misses_nothing(serving: Listened, store: Store, how: str) -> None:
    make_warm(store, *range(1, 6))
    query = {"header": "", "query": "?after=2", "both": "?after=1"}[how]
    headers = {} if how == "query" else {"Last-Event-ID": "2"}
    with serving.listening(query, **headers) as stream:
        assert stream.place == 2
        assert stream.ids(3) == [3, 4, 5]
        make_warm(store, 6)
        assert stream.ids(1) == [6]


def test_more_was_missed_than_is_kept_in_memory(
    serving: Listened, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RECENT", 4)
    with serving.listening() as first:
        make_warm(store, *range(1, 11))
        assert first.ids(10) == list(range(1, 11))
        with serving.listening("?after=1") as second:
            assert second.ids(9) == list(range(2, 11))
            make_warm(store, 11)
            assert (first.ids(1), second.ids(1)) == ([11], [11])


def test_a_place_that_there_is_not_yet_is_now(serving: Listened, store: Store) -> None:
    make_warm(store, 1)
    with serving.listening("?after=999999999999999999") as stream:
        assert stream.place == 1
        stream.next("levels")
        make_warm(store, 2)
        assert stream.ids(1) == [2]


def test_one_template_only(serving: Listened, store: Store) -> None:
    with serving.listening("?template=others") as stream:
        make_warm(store, 1, 2)
        make_warm(store, 3, template="others")
        assert stream.next()["task_id"] == 3


@pytest.mark.parametrize(
    ("query", "header", "status", "code"),
    [
        ("?template=nothing", "", 404, "unknown-template"),
        ("?after=-1", "", 422, "input"),
        ("?after=x", "", 422, "input"),
        ("", "x", 422, "input"),
        ("", "9" * 30, 422, "input"),
    ],
)
def test_what_cannot_be_told(
    serving: Listened, query: str, header: str, status: int, code: str
) -> None:
    answer = serving.request(query, **({"Last-Event-ID": header} if header else {}))
    document = json.loads(answer.data)
    assert (answer.status, document["type"]) == (status, f"urn:cvat-task-pool:error:{code}")


def test_all_clients_are_told(serving: Listened, store: Store) -> None:
    before = threading.active_count()
    answers: queue.Queue[list[int]] = queue.Queue()
    streams = [serving.request() for _ in range(40)]
    assert threading.active_count() < before + 10, "no thread for each client"
    make_warm(store, 1, 2, 3)
    for response in streams:
        answers.put(Stream(response).ids(3))
        response.close()
    assert [answers.get() for _ in streams] == [[1, 2, 3]] * 40


def test_too_many_clients(serving: Listened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_CLIENTS", 1)
    with serving.listening():
        refused = serving.request()
        assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
        refused.drain_conn()
    poll_until(lambda: serving.clients == 0)
    with serving.listening() as stream:
        assert stream.next("levels")


# --- Levels and silence ---------------------------------------------------------------------------


def test_levels_are_told_when_they_have_changed(serving: Listened, store: Store) -> None:
    with serving.listening() as stream:
        assert stream.next("levels")["in_flight"] == 0
        store.pause(TEMPLATE, now=1.0)
        serving.statuses.now = status_with(in_flight=1)
        store.resume(TEMPLATE)
        assert stream.next("levels")["in_flight"] == 1


def test_levels_are_looked_at_by_themselves(
    serving: Listened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LEVELS_EVERY", 0.01)
    with serving.listening() as stream:
        assert stream.next("levels")["in_flight"] == 0
        serving.statuses.now = status_with(in_flight=2)
        assert stream.next("levels")["in_flight"] == 2


def test_levels_are_read_once_for_all_clients_and_not_too_often(
    serving: Listened, store: Store
) -> None:
    with serving.listening() as first, serving.listening() as second:
        for stream in (first, second):
            stream.next("levels")
        reads = serving.statuses.reads
        for task_id in range(200):
            make_warm(store, task_id)
        serving.statuses.now = status_with(in_flight=3)
        store.pause(TEMPLATE, now=1.0)
        for stream in (first, second):
            assert stream.next("levels")["in_flight"] == 3
        # However long it took: a few a second, while hundreds of changes were made.
        assert serving.statuses.reads - reads < 50


def test_a_silent_stream_is_heard_from(serving: Listened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT", 0.01)
    with serving.listening() as stream:
        assert stream.comment() == "still here"


# --- The end --------------------------------------------------------------------------------------


def test_a_client_that_goes_is_forgotten_and_the_last_one_ends_the_reading(
    serving: Listened, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = serving.served.process.feed
    readers, on = [], feed.on

    def counted(service: Service, *kinds: str) -> Unsubscribe:
        stop = on(service, *kinds)
        readers.append(service)

        def end() -> None:
            readers.remove(service)
            stop()

        return end

    monkeypatch.setattr(feed, "on", counted)
    with serving.listening() as first:
        first.next("levels")
        with serving.listening() as second:
            second.next("levels")
            assert serving.clients == 2
        poll_until(lambda: serving.clients == 1)
        assert len(readers) == 1
    poll_until(lambda: serving.clients == 0 and not readers)
    with serving.listening() as again:
        make_warm(serving.store, 1)
        assert again.ids(1) == [1]


def test_an_orderly_stop_ends_the_stream(serving: Listened, store: Store) -> None:
    with serving.listening() as stream:
        stream.next("levels")
        make_warm(store, 1)
        stream.ids(1)
        serving.served.daemon.stop()
        assert set(stream.rest()) <= {"levels"}, "and an end, or reading it would have failed"


@pytest.fixture
def many(store: Store) -> None:
    """Far more than the system keeps of what was sent and not read."""
    fill(store, events=2_000, size=10_000)


def test_a_client_that_does_not_read_is_disconnected(
    many: None, serving: Listened, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(PATIENCE)
        client.connect(("127.0.0.1", serving.served.port))
        client.sendall(b"GET /v1/events?after=0 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        poll_until(lambda: serving.clients == 1)
        poll_until(lambda: serving.clients == 0)
        with serving.listening() as other:
            other.next("levels")
            make_warm(store, 1)
            assert other.ids(1) == [2_001], "nobody else was held up"
        got = b""
        while piece := client.recv(2**20):
            got = got[-100:] + piece
    assert not got.endswith(b"0\r\n\r\n"), "cut off, and known to be"


def fill(store: Store, *, events: int, size: int) -> None:
    with store.connections.writing() as db:
        db.changed(
            """
            WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT :events)
            INSERT INTO events (kind, at, template, state)
            SELECT 'task.warm', 1.0, :template, 'warm' FROM n
            """,
            events=events,
            template="x" * size,
        )


def test_the_stream_is_described(serving: Listened) -> None:
    described = serving.served.api.checker.document["paths"][module.PATH]["get"]
    assert set(described["responses"]["200"]["content"]) == {"text/event-stream"}
    assert {each["name"] for each in described["parameters"]} == {
        "template",
        "after",
        "last-event-id",
    }
