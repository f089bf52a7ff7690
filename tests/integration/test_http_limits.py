"""What is refused for now because there is too much of it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from support.api import Serving, serving, settings_for
from support.waiting import PATIENCE, poll_until, wait_until

from pool.config.settings import PoolSettings, StoreSettings, Template
from pool.errors import TooManyUploads
from pool.http import uploads
from pool.http.uploads import UploadLimiter
from pool.simulator import SimulatorServer

PATIENT = Template(name="patient", pool=PoolSettings(max_wait=20.0, on_empty="wait"))
SCENES = Template(name="scenes", pool=PoolSettings(max_wait=0.0))


@pytest.fixture
def small(simulator: SimulatorServer, store_url: str) -> Iterator[Serving]:
    settings = settings_for(
        simulator.url, store_url, PATIENT, SCENES, max_queued=2, max_body=100_000
    )
    settings = replace(settings, store=StoreSettings(url=store_url, spool_limit=60_000))
    with serving(settings, simulator.access_token) as served:
        yield served


def test_too_many_requests_wait(small: Serving) -> None:
    api = small.api
    queued = [api.submit([("a.jpg", b"x")], template="patient") for _ in range(2)]
    assert [each.json["state"] for each in queued] == ["queued", "queued"]
    answer = api.submit([("a.jpg", b"x")], template="patient")
    assert (answer.status, answer.code) == (429, "queue-full")
    assert int(answer.headers["retry-after"]) >= 1
    named = {"template": "patient", "share": ["cam1/a.jpg"]}
    assert api.post("/v1/requests", named).code == "queue-full"
    # With room again, it is taken.
    assert api.delete(queued[0].headers["location"]).status == 204
    assert api.post("/v1/requests", named).status == 202


def test_too_many_wait_for_a_task(small: Serving) -> None:
    with ThreadPoolExecutor(2) as threads:
        waits = [threads.submit(small.api.lease, "patient") for _ in range(2)]
        wait_until(small.process.store, lambda: small.process.store.waiting("patient") == 2)
        answer = small.api.lease("patient")
        assert (answer.status, answer.code) == (429, "queue-full")
        assert small.process.store.waiting("patient") == 2
        small.daemon.stop()
        assert [wait.result().code for wait in waits] == ["stopping", "stopping"]


def test_the_spool_is_full(small: Serving, image: bytes) -> None:
    api = small.api
    queued = api.submit([("a.jpg", b"x" * 40_000)], template="patient")
    assert queued.status == 202
    answer = api.submit([("a.jpg", image)])
    assert (answer.status, answer.code) == (429, "spool-full")
    assert int(answer.headers["retry-after"]) >= 1
    assert api.delete(queued.headers["location"]).status == 204
    assert api.submit([("a.jpg", image)], wait=20).status == 201
    assert small.spooled() == []


def test_a_body_that_is_too_large(small: Serving) -> None:
    answer = small.api.submit([("a.jpg", b"x" * 100_000)])
    assert (answer.status, answer.code) == (413, "too-large")
    assert small.spooled() == []


def test_uploads_wait_for_their_turn(
    small: Serving, image: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that does not come to its end holds the only place."""
    monkeypatch.setattr(uploads, "ADMITTED_WITHIN", 0.2)
    limiter = UploadLimiter(1, most_waiting=0)
    monkeypatch.setattr(small.state.uploads, "_uploads", limiter)
    port = small.port
    with socket.create_connection(("127.0.0.1", port)) as line:
        line.settimeout(PATIENCE)
        line.sendall(
            b"POST /v1/requests HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
            b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
        )
        poll_until(lambda: limiter.full)
        answer = small.api.submit([("a.jpg", image)])
        assert (answer.status, answer.code) == (429, "too-many-uploads")
        assert int(answer.headers["retry-after"]) >= 1
        named = {"template": "scenes", "share": ["cam1/a.jpg"]}
        assert small.api.post("/v1/requests", named).code == "too-many-uploads"
        # Nothing else has to wait for them.
        assert small.api.get("/v1/requests").status == 200
    poll_until(lambda: not limiter.full)
    assert small.api.submit([("a.jpg", image)], wait=20).status == 201


def test_a_place_for_each_in_turn() -> None:
    async def run() -> list[str]:
        limiter, events = UploadLimiter(1, most_waiting=1), []

        async def take(name: str) -> None:
            try:
                async with limiter.admitted():
                    events.append(name)
                    await asyncio.sleep(0.01)
            except TooManyUploads:
                events.append(f"{name} refused")

        await asyncio.gather(*map(take, "abc"))
        return events

    assert asyncio.run(run()) == ["a", "c refused", "b"]


def test_a_turn_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "ADMITTED_WITHIN", 0.01)

    async def run() -> None:
        limiter = UploadLimiter(1)
        async with limiter.admitted():
            with pytest.raises(TooManyUploads):
                async with limiter.admitted():
                    pass
        async with limiter.admitted():
            pass

    asyncio.run(run())
