"""How a daemon is doing, over HTTP; what is measured has tests of its own."""

from __future__ import annotations

import time

import pytest
from support.api import Serving, serving, settings_for
from support.happening import serve

from pool.config.settings import Template
from pool.simulator import SimulatorServer


def test_the_last_hour(served: Serving) -> None:
    now = time.time()
    served.state.observation.history.run_once()
    serve(served.process.store, "r1", now=now, took=2.0, server=0.5)
    hour = served.api.get("/v1/history").json
    levels = {"warm": [0.0], "least": [0], "creating": [0.0], "target": [2]}
    assert hour["templates"]["scenes"] == levels
    assert (hour["interval"], hour["at"]) == (10, [pytest.approx(now, abs=60)])
    assert hour["requests"] == [
        {
            "request_id": "r1",
            "template": "scenes",
            "tenant": "",
            "outcome": "hit",
            "at": pytest.approx(now),
            "seconds": pytest.approx(2.0),
            "server_seconds": pytest.approx(0.5),
            "held_seconds": 0.0,
            "state": "ready",
            "code": "",
            "error": "",
        }
    ]


def test_the_history_survives_a_restart(simulator: SimulatorServer, store_url: str) -> None:
    settings = settings_for(simulator.url, store_url, Template(name="scenes"))
    with serving(settings, simulator.access_token) as served:
        served.state.observation.history.run_once()
        before = served.api.get("/v1/history?seconds=604800").json
    with serving(settings, simulator.access_token) as served:
        assert served.api.get("/v1/history?seconds=604800").json == before
    assert (before["interval"], len(before["at"]), list(before["templates"])) == (
        600,
        1,
        ["scenes"],
    )


@pytest.mark.parametrize("seconds", ["299", "604801", "x", ""])
def test_a_history_that_is_not_kept(refusing: Serving, seconds: str) -> None:
    answer = refusing.api.get(f"/v1/history?seconds={seconds}")
    assert (answer.status, answer.code) == (422, "input")


def test_alive_and_ready(refusing: Serving) -> None:
    alive = refusing.api.get("/healthz")
    assert (alive.status, alive.json) == (200, {"status": "ok"})
    answer = refusing.api.get("/readyz")
    assert answer.status == 200
    checks = answer.json.pop("checks")
    assert answer.json == {"ready": True}
    assert checks["store"] == {"ok": True}
    ago = checks["scheduler"].pop("last_success_seconds_ago")
    assert (checks["scheduler"], list(ago)) == ({"ok": True, "stale": []}, ["dispatch"])
    assert checks["maintainer"] == {"ok": True, "here": True}
    assert checks["configuration"] == {"ok": True, "rejected_seconds": None, "restart": []}
    assert set(checks["server"]) == {
        "ok",
        "answered_seconds_ago",
        "held",
        "held_seconds",
        "code",
    }


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [("", "text/plain"), ("application/openmetrics-text", "application/openmetrics-text")],
)
def test_metrics(refusing: Serving, accept: str, media_type: str) -> None:
    answer = refusing.api.get("/metrics", headers={"Accept": accept} if accept else {})
    assert (answer.status, answer.headers["content-type"].split(";")[0]) == (200, media_type)
    assert b'cvat_pool_tasks{state="warm",template="scenes"} 0.0' in answer.body.replace(
        b'template="scenes",state="warm"', b'state="warm",template="scenes"'
    )
