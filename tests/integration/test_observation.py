"""A daemon is looked at from outside: events, metrics, history, readiness and sinks, of requests
that another process makes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import urllib3
from support.api import in_thread
from support.served import Delivered, receiver
from support.waiting import PATIENCE, wait_until

from pool import TaskPool
from pool.config.settings import EventSettings, SinkSettings
from pool.daemon import Daemon
from pool.errors import ConfigError, ImportFailed


class Seen:
    """A running daemon, a caller of another process's, and a sink."""

    def __init__(self, daemon: Daemon, pool: TaskPool, delivered: list[Delivered]) -> None:
        self.daemon, self.pool, self.delivered = daemon, pool, delivered
        self.http = urllib3.PoolManager(retries=False, timeout=PATIENCE)

    def get(self, path: str) -> urllib3.BaseHTTPResponse:
        return self.http.request("GET", self.daemon.url + path)

    def wait_until_delivered(self, count: int) -> list[Any]:
        assert self.daemon.maintenance is not None
        sinks = self.daemon.maintenance.sinks
        wait_until(self.daemon.process.store, lambda: sinks.states()[0].delivered >= count)
        return [each.json for each in self.delivered]


@pytest.fixture
def seen(pool: TaskPool, monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    monkeypatch.setenv("SINK_SECRET", "s3cret")
    with receiver() as (url, delivered):
        sink = SinkSettings(url=url, secret_env="SINK_SECRET")
        settings = replace(pool.settings, events=EventSettings(sinks=(sink,)))
        with in_thread(Daemon(settings)) as daemon:
            seen = Seen(daemon, pool, delivered)
            yield seen
        seen.http.clear()


def test_everything_is_seen_of_a_request_of_another_process(seen: Seen, image: bytes) -> None:
    stream = seen.http.request("GET", f"{seen.daemon.url}/v1/events", preload_content=False)
    good = seen.pool.submit("scenes", [("a.jpg", image)], name="monday")
    (job,) = good.jobs(timeout=PATIENCE)
    bad = seen.pool.submit("scenes", [("a.jpg", b"no image")])
    with pytest.raises(ImportFailed):
        bad.jobs(timeout=PATIENCE)
    ready, failed = seen.wait_until_delivered(2)

    # The sink
    assert all(each.signed_with("s3cret", header="X-Pool-Signature-256") for each in seen.delivered)
    assert (ready["kind"], failed["kind"]) == ("request.ready", "request.failed")
    assert ready["request"]["id"] == good.id
    assert ready["request"]["jobs"] == [
        {
            "id": job.id,
            "url": job.url,
            "start_frame": 0,
            "stop_frame": 0,
            "assignee": None,
        }
    ]
    assert ready["request"]["name"] == "monday"
    assert failed["request"]["error"]["code"] == "import-failed"

    # The stream
    text = b""
    while f'"request_id":"{bad.id}","state":"failed"'.encode() not in text:
        text += stream.read1()
    assert text.index(b"event: levels") < text.index(b"event: lease.handed_out")
    assert f'"request_id":"{good.id}","state":"ready"'.encode() in text
    stream.close()

    # The history
    first, second = seen.get("/v1/history").json()["requests"]
    assert (first["request_id"], first["state"]) == (good.id, "ready")
    assert first["seconds"] >= first["server_seconds"] > 0
    assert (second["code"], second["state"]) == ("import-failed", "failed")

    # The metrics
    metrics = seen.get("/metrics").data.decode()
    assert 'cvat_pool_requests_total{state="ready",template="scenes"} 1.0' in metrics
    assert 'code="import-failed",template="scenes"} 1.0' in metrics
    assert 'cvat_pool_cvat_calls_total{operation="create_task",result="ok"}' in metrics
    assert 'cvat_pool_service_last_success_timestamp_seconds{service="refill"}' in metrics
    assert 'cvat_pool_sink_deliveries_total{sink="127.0.0.1:' in metrics
    for secret in ("s3cret", good.id):
        assert secret not in metrics

    # How it is doing
    answer = seen.get("/readyz")
    assert answer.status == 200, answer.data
    assert set(json.loads(answer.data)["checks"]["scheduler"]["last_success_seconds_ago"]) > {
        "refill",
        "history",
    }


def test_a_stop_ends_the_stream_in_an_orderly_way(seen: Seen) -> None:
    stream = seen.http.request("GET", f"{seen.daemon.url}/v1/events", preload_content=False)
    beginning = stream.read1()
    assert beginning.startswith(b"retry:")
    seen.daemon.stop()
    while stream.read1():
        pass  # an end in the middle of a message would be an error


def test_a_secret_that_is_missing_is_said_before_anything_begins(pool: TaskPool) -> None:
    sink = SinkSettings(url="http://127.0.0.1:9", secret_env="NO_SUCH_SECRET")
    with pytest.raises(ConfigError, match="NO_SUCH_SECRET, which is not set"):
        Daemon(replace(pool.settings, events=EventSettings(sinks=(sink,))))
