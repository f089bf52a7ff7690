"""Sinks from end to end: real receivers, signed deliveries, one thread for each."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.happening import serve
from support.served import Answer, Delivered, receiver
from support.waiting import PATIENCE, wait_until

from pool.clock import SystemClock
from pool.config.settings import EventSettings, SinkSettings
from pool.events import delivery as delivery_module
from pool.events import sinks as sinks_module
from pool.events.delivery import Endpoint
from pool.events.feed import Feed
from pool.events.sinks import Sinks, sink_names
from pool.model import RequestRecord
from pool.store import Store

SIGNATURE = "X-Pool-Signature-256"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks_module, "RETRY_BASE", 0.01)


@contextmanager
def told(
    store: Store, *settings: SinkSettings, environ: Mapping[str, str] | None = None
) -> Iterator[Sinks]:
    clock = SystemClock()
    feed = Feed(store, clock=clock)
    sinks = Sinks(
        EventSettings(sinks=settings),
        store,
        feed,
        describe,
        clock=clock,
        environ=environ or {},
    )
    sinks.start()
    try:
        yield sinks
    finally:
        sinks.stop(PATIENCE)
        feed.close()


def describe(record: RequestRecord) -> dict[str, Any]:
    return {"id": record.id, "name": record.name}


def delivered(sinks: Sinks) -> int:
    """What was delivered to the first sink, ever."""
    return sinks.states()[0].delivered


def ids(deliveries: list[Delivered]) -> list[str]:
    return [each.json["request_id"] for each in deliveries]


def test_a_delivery_is_signed_and_says_what_it_is(store: Store) -> None:
    with (
        receiver() as (url, got),
        told(
            store, SinkSettings(url=url, secret_env="SECRET"), environ={"SECRET": "s3cret\n"}
        ) as sinks,
    ):
        serve(store, "r1")
        wait_until(store, lambda: delivered(sinks) == 1)
    (delivery,) = got
    assert delivery.signed_with("s3cret", header=SIGNATURE)
    assert delivery.headers["Content-Type"] == "application/json"
    assert delivery.headers["X-Pool-Event"] == "request.ready" == delivery.json["kind"]
    assert delivery.headers["X-Pool-Delivery"] == delivery.json["delivery_id"]
    assert delivery.headers["User-Agent"].startswith("cvat-task-pool/")
    assert delivery.json["request"] == {"id": "r1", "name": None}
    assert "s3cret" not in str(delivery.headers)


def test_a_changed_secret_is_taken_over_and_a_missing_one_waited_for(
    store: Store, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    file.write_text("first\n")
    with (
        receiver() as (url, got),
        told(store, SinkSettings(url=url, secret_file=file)) as sinks,
    ):
        serve(store, "r1")
        wait_until(store, lambda: delivered(sinks) == 1)
        file.unlink()
        serve(store, "r2")
        wait_until(store, lambda: sinks.states()[0].failed_tries > 0)
        file.write_text("second")
        wait_until(store, lambda: delivered(sinks) == 2)
    assert [got[0].signed_with("first", header=SIGNATURE), len(got)] == [True, 2]
    assert got[1].signed_with("second", header=SIGNATURE)


def test_without_a_secret_nothing_is_signed(store: Store) -> None:
    with receiver() as (url, got), told(store, SinkSettings(url=url)) as sinks:
        serve(store, "r1")
        wait_until(store, lambda: delivered(sinks) == 1)
    assert SIGNATURE not in got[0].headers


def test_a_dead_and_a_hanging_sink_delay_nobody(store: Store) -> None:
    hang = threading.Event()

    def answer(_: Delivered) -> Answer:
        assert hang.wait(PATIENCE)
        return 200, {}

    with ExitStack() as stack:
        hanging, stuck = stack.enter_context(receiver(answer))
        good, got = stack.enter_context(receiver())
        sinks = stack.enter_context(
            told(
                store,
                SinkSettings(url="http://127.0.0.1:9/dead"),
                SinkSettings(url=hanging),
                SinkSettings(url=good),
            )
        )
        for name in ("r1", "r2", "r3"):
            serve(store, name)
        try:
            wait_until(store, lambda: sinks.states()[2].delivered == 3)
            assert ids(got) == ["r1", "r2", "r3"]
            wait_until(store, lambda: sinks.states()[0].failed_tries > 1)
            assert [state.delivered for state in sinks.states()] == [0, 0, 3]
        finally:
            hang.set()
        wait_until(store, lambda: sinks.states()[1].delivered == 3)
    assert ids(stuck) == ["r1", "r2", "r3"]


def test_redirects_are_not_followed(store: Store) -> None:
    with receiver() as (elsewhere, stolen):

        def redirect(_: Delivered) -> Answer:
            return (307, {"Location": elsewhere}) if len(got) < 3 else (200, {})

        with receiver(redirect) as (url, got), told(store, SinkSettings(url=url)) as sinks:
            serve(store, "r1")
            wait_until(store, lambda: delivered(sinks) == 1)
    assert (len(got), stolen) == (3, [])


def test_what_a_receiver_asks_for_is_told() -> None:
    with receiver(lambda _: (503, {"Retry-After": "3000"})) as (url, _):
        endpoint = Endpoint(SinkSettings(url=url), clock=SystemClock(), environ={})
        reply = endpoint.post(b"{}", delivery_id="d", kind="task.warm")
        endpoint.close()
    assert (reply.status, reply.retry_after, reply.problem) == (503, 3000.0, "HTTP 503")


def test_an_answer_that_does_not_come_is_not_waited_for_for_ever(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_module, "ANSWER_TIMEOUT", 0.05)
    go = threading.Event()

    def answer(_: Delivered) -> Answer:
        if len(got) == 1:
            go.wait(PATIENCE)
        return 200, {}

    with receiver(answer) as (url, got), told(store, SinkSettings(url=url)) as sinks:
        serve(store, "r1")
        wait_until(store, lambda: delivered(sinks) == 1)
        go.set()
    assert ids(got) == ["r1", "r1"]


def test_another_daemon_goes_on_where_one_has_stopped(store: Store) -> None:
    with receiver() as (url, got):
        with told(store, SinkSettings(url=url)) as sinks:
            serve(store, "r1")
            wait_until(store, lambda: delivered(sinks) == 1)
        serve(store, "r2")
        with told(store, SinkSettings(url=url)) as sinks:
            wait_until(store, lambda: delivered(sinks) == 2)
    assert ids(got) == ["r1", "r2"]


def test_without_sinks_there_are_no_threads(store: Store) -> None:
    store.open_sinks(["old"])
    with told(store) as sinks:
        assert sinks.states() == ()
        assert not [each for each in threading.enumerate() if each.name in ("sink", "feed")]
    assert store.sinks() == {}


def test_names_show_the_host_and_no_more() -> None:
    urls = ["https://Hooks.example.org/T0/s3cret?key=1", "http://a:81/x", "http://a:81/x"]
    names = sink_names([SinkSettings(url=url) for url in urls])
    assert names[0].startswith("hooks.example.org-") and "s3cret" not in names[0]
    assert names[1].startswith("a:81-")
    assert names[2] == f"{names[1]}-2"
    assert sink_names([SinkSettings(url=urls[1])]) == (names[1],)
