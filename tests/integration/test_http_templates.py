"""``/v1/templates`` over a real connection."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from support.api import Api, Serving


def test_the_status_of_the_pool(served: Serving, api: Api) -> None:
    served.fill()
    api.lease()
    answer = api.get("/v1/templates")
    assert answer.status == 200
    status = answer.json
    assert status["server"] == served.pool.settings.cvat.url
    assert (status["maintainer"], status["hold_reason"]) == (served.process.owner, "")
    assert status["hold_code"] == ""
    scenes, patient, strict = status["templates"]
    assert [each["name"] for each in (scenes, patient, strict)] == ["scenes", "patient", "strict"]
    assert (scenes["target"], scenes["warm"], scenes["leased"], scenes["hits"]) == (2, 1, 1, 1)
    assert scenes["rate"] > 0


def test_pause_and_resume(served: Serving, api: Api) -> None:
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    paused = api.post("/v1/templates/scenes/pause")
    assert (paused.status, paused.json["name"]) == (200, "scenes")
    since = datetime.fromisoformat(paused.json["paused_since"])
    assert before <= since <= datetime.now(UTC)
    assert set(served.process.store.paused()) == {"scenes"}
    resumed = api.post("/v1/templates/scenes/resume")
    assert resumed.json["paused_since"] is None


def test_drain(served: Serving, api: Api) -> None:
    served.fill()
    drained = api.post("/v1/templates/scenes/drain")
    assert (drained.json["warm"], drained.json["deleting"]) == (0, 2)
    assert drained.json["paused_since"] is not None


def test_prewarm(served: Serving, api: Api) -> None:
    answer = api.post("/v1/templates/scenes/prewarm", {"count": 5, "seconds": 60})
    assert (answer.json["prewarm_size"], answer.json["target"]) == (5, 5)
    until = datetime.fromisoformat(answer.json["prewarm_until"])
    assert timedelta(seconds=50) < until - datetime.now(UTC) < timedelta(seconds=61)
    served.fill()
    assert api.get("/v1/templates").json["templates"][0]["warm"] == 5
    ended = api.post("/v1/templates/scenes/prewarm", {"count": 0})
    assert (ended.json["prewarm_size"], ended.json["prewarm_until"]) == (0, None)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"count": -1},
        {"count": 11},
        {"count": 1.5},
        {"count": "5"},
        {"count": 5, "seconds": 0},
        {"count": 5, "seconds": 1e12},
        {"count": 5, "minutes": 5},
    ],
)
def test_a_prewarm_that_cannot_be(refusing: Serving, document: object) -> None:
    answer = refusing.api.post("/v1/templates/scenes/prewarm", document)
    assert (answer.status, answer.code) == (422, "input")
    assert refusing.process.store.prewarms() == {}


@pytest.mark.parametrize("verb", ["pause", "resume", "drain", "prewarm"])
def test_a_template_that_there_is_not(refusing: Serving, verb: str) -> None:
    document = {"count": 1} if verb == "prewarm" else None
    answer = refusing.api.post(f"/v1/templates/nothing/{verb}", document)
    assert (answer.status, answer.code) == (404, "unknown-template")


def test_a_verb_that_there_is_not(refusing: Serving) -> None:
    assert refusing.api.post("/v1/templates/scenes/delete").status == 404
    assert refusing.api.get("/v1/templates/scenes/pause").status == 405
