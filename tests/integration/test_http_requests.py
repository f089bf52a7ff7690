"""``/v1/requests`` over a real connection."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.api import Answer, Api, Serving, keyed, waiting
from support.served import files_at
from support.waiting import PATIENCE, wait_until

from pool.errors import IdempotencyConflict
from pool.model import Event, RequestState
from pool.simulator import SimulatorServer
from pool.simulator.faults import Latency

# --- Files ----------------------------------------------------------------------------------------


def test_files_to_jobs_in_one_call(served: Serving, api: Api, image: bytes) -> None:
    served.fill()
    answer = api.submit(
        [("b.jpg", image), ("a.jpg", image)],
        wait=20,
        name="monday",
        assignee=2,
        params='{"sorting_method": "predefined"}',
    )
    assert answer.status == 201
    request = answer.json
    assert answer.headers["location"] == f"/v1/requests/{request['id']}"
    assert answer.headers["preference-applied"] == "wait=20"
    assert (request["state"], request["outcome"]) == ("ready", "hit")
    assert request["files"] == ["b.jpg", "a.jpg"]
    assert (request["name"], request["assignee"]) == ("monday", 2)
    assert request["size"] == 2 * len(image)
    (job,) = request["jobs"]
    assert (job["start_frame"], job["stop_frame"]) == (0, 1)
    assert api.get(answer.headers["location"]).json == request
    assert served.pool.request(request["id"]).jobs(timeout=0)[0].id == job["id"]
    assert served.spooled() == []


def test_what_a_request_has_to_do_without(served: Serving, api: Api, image: bytes) -> None:
    served.fill()
    given_up = threading.Event()

    def hear(event: Event) -> None:
        if event.code == "not-assigned":
            given_up.set()

    stop = served.pool.subscribe(hear, ["request.warned"])
    answer = api.submit([("a.jpg", image)], wait=20, name="monday", assignee=999)
    assert (answer.status, answer.json["error"]) == (201, None)
    assert given_up.wait(PATIENCE)
    stop()
    warnings = api.get(answer.headers["location"]).json["warnings"]
    assert [each["code"] for each in warnings] == ["unknown-assignee", "not-assigned"]
    (listed, *_) = api.get("/v1/requests?state=ready").json["items"]
    assert listed["warnings"] == warnings


def test_accepted_without_waiting(served: Serving, api: Api, image: bytes) -> None:
    served.fill()
    answer = api.submit([("a.jpg", image)])
    assert answer.status == 202
    assert (answer.json["state"], answer.json["jobs"]) == ("uploading", None)
    assert "preference-applied" not in answer.headers
    seen = api.get(answer.headers["location"], headers=waiting(20))
    assert (seen.status, seen.json["state"]) == (200, "ready")


def test_an_empty_pool_creates(served: Serving, api: Api, image: bytes) -> None:
    answer = api.submit([("a.jpg", image)], wait=20)
    assert (answer.status, answer.json["outcome"]) == (201, "cold")
    assert served.spooled() == []


def test_an_empty_pool_that_says_fail(served: Serving, api: Api, image: bytes) -> None:
    answer = api.submit([("a.jpg", image)], template="strict")
    assert (answer.status, answer.code) == (503, "pool-empty")
    assert served.spooled() == []


def test_fields_may_come_after_the_files(served: Serving, api: Api, image: bytes) -> None:
    fields: list[Any] = [("files", ("a.jpg", image)), ("name", "n"), ("template", "scenes")]
    answer = api.post("/v1/requests", fields=fields, headers=waiting(20))
    assert (answer.status, answer.json["name"]) == (201, "n")


def test_folders_in_names_are_dropped_as_cvat_drops_them(api: Api, image: bytes) -> None:
    answer = api.submit([("cam1/ä.jpg", image)], wait=20)
    assert answer.json["files"] == ["ä.jpg"]


def test_an_upload_of_many_pieces(served: Serving, api: Api) -> None:
    content = [bytes([number]) * 700_001 for number in range(3)]
    answer = api.submit([(f"{number}.jpg", piece) for number, piece in enumerate(content)])
    assert answer.status == 202
    assert answer.json["size"] == 3 * 700_001
    # No image; what counts here is that CVAT got to see it.
    end = api.get(answer.headers["location"], headers=waiting(20)).json
    assert end["state"] == "failed"
    assert served.spooled() == []


def test_a_failure_in_time_is_the_problem_that_it_is(served: Serving, api: Api) -> None:
    served.fill()
    answer = api.submit([("a.jpg", b"no image")], wait=20)
    assert (answer.status, answer.code) == (422, "import-failed")
    assert "identify image" in answer.json["detail"]
    request = answer.json["request"]
    assert answer.headers["location"] == f"/v1/requests/{request['id']}"
    assert (request["state"], request["error"]["code"]) == ("failed", "import-failed")
    seen = api.get(answer.headers["location"])
    assert (seen.status, seen.json) == (200, request)
    assert served.spooled() == []


def test_not_in_time(served: Serving, api: Api, simulator: SimulatorServer, image: bytes) -> None:
    served.fill()
    slow = simulator.faults.add(Latency("data:post", seconds=0.5))
    try:
        answer = api.submit([("a.jpg", image)], wait=0)
    finally:
        slow.remove()
    assert (answer.status, answer.json["jobs"]) == (202, None)
    assert answer.headers["preference-applied"] == "wait=0"
    assert api.get(answer.headers["location"], headers=waiting(20)).json["state"] == "ready"


def test_a_wait_is_at_most_a_minute(served: Serving, api: Api, image: bytes) -> None:
    answer = api.submit([("a.jpg", image)], wait=100_000)
    assert answer.headers["preference-applied"] == "wait=60"


# --- Data that CVAT fetches -----------------------------------------------------------------------


def test_names_on_the_share(api: Api) -> None:
    document = {"template": "scenes", "share": ["cam1/a.jpg", "cam1/b.jpg"], "name": "shared"}
    answer = api.post("/v1/requests", document, headers=waiting(20))
    assert (answer.status, answer.json["files"]) == (201, ["cam1/a.jpg", "cam1/b.jpg"])
    assert answer.json["jobs"][0]["stop_frame"] == 1


def test_addresses(api: Api, image: bytes, tmp_path: Any) -> None:
    (tmp_path / "a.jpg").write_bytes(image)
    with files_at(tmp_path) as url:
        document = {"template": "scenes", "urls": [f"{url}/a.jpg"]}
        answer = api.post("/v1/requests", document, headers=waiting(20))
    assert answer.status == 201


def test_keys_of_a_cloud_storage(served: Serving, api: Api) -> None:
    document = {"template": "scenes", "cloud": {"storage_id": 77, "keys": ["a.jpg"]}}
    answer = api.post("/v1/requests", document, headers=waiting(20))
    # The simulator knows of no such storage: what counts is that it was asked for it.
    assert answer.status == 422
    assert answer.json["request"]["files"] == ["a.jpg"]
    assert served.spooled() == []


# --- Into a lease's task --------------------------------------------------------------------------


def test_into_a_task_that_was_leased(served: Serving, api: Api, image: bytes) -> None:
    served.fill()
    lease = api.lease().json
    answer = api.submit([("a.jpg", image)], template=None, lease_id=lease["id"], wait=20)
    assert (answer.status, answer.json["task_id"]) == (201, lease["task_id"])
    assert answer.json["lease_id"] == lease["id"]
    assert api.get(f"/v1/leases/{lease['id']}").json["jobs"] == answer.json["jobs"]
    again = api.submit([("a.jpg", image)], lease_id=lease["id"])
    assert (again.status, again.code) == (409, "lease-ended")
    assert served.spooled() == []


def test_into_a_lease_of_another_template(served: Serving, api: Api, image: bytes) -> None:
    served.fill()
    lease = api.lease().json
    answer = api.submit([("a.jpg", image)], template="strict", lease_id=lease["id"])
    assert (answer.status, answer.code) == (422, "input")
    answer = api.submit([("a.jpg", image)], lease_id="nothing")
    assert (answer.status, answer.code) == (404, "unknown-lease")
    assert served.spooled() == []


def test_into_a_lease_under_a_key(served: Serving, api: Api, image: bytes) -> None:
    served.fill()
    lease, other = api.lease().json["id"], api.lease().json["id"]
    first = api.submit([("a.jpg", image)], lease_id=lease, key="monday", wait=20)
    again = api.submit([("a.jpg", image)], lease_id=lease, key="monday", wait=20)
    assert first.json == again.json
    conflict = api.submit([("a.jpg", image)], lease_id=other, key="monday")
    assert (conflict.status, conflict.code) == (409, "idempotency-conflict")
    assert served.spooled() == []


# --- Under a key ----------------------------------------------------------------------------------


def test_the_same_key_gives_the_same_request(served: Serving, api: Api, image: bytes) -> None:
    served.fill()
    first = api.submit([("a.jpg", image)], key="monday", wait=20)
    again = api.submit([("a.jpg", image)], key="monday", wait=20)
    assert first.status == 201
    assert again.json == first.json
    assert served.spooled() == []
    # The rule is that of the Python API, so it is the same key there too.
    here = served.pool.submit("scenes", [("a.jpg", image)], idempotency_key="monday")
    assert here.id == first.json["id"]
    with pytest.raises(IdempotencyConflict):
        served.pool.submit("scenes", [("a.jpg", image + b"x")], idempotency_key="monday")


@pytest.mark.parametrize(
    "change", ["content", "name of the file", "name", "params", "job size", "template"]
)
def test_the_same_key_with_other_content(
    served: Serving, api: Api, image: bytes, change: str
) -> None:
    served.fill()
    first = api.submit([("a.jpg", image)], key="monday", name="n", params="{}")
    assert first.status == 202
    told: dict[str, Any] = {"name": "n", "params": "{}"}
    files = [("a.jpg", image)]
    match change:
        case "content":
            files = [("a.jpg", image[:-1] + b"x")]
        case "name of the file":
            files = [("b.jpg", image)]
        case "name":
            told["name"] = "m"
        case "job size":
            told["job_size"] = "1"
        case "params":
            told["params"] = '{"image_quality": 50}'
        case "template":
            told["template"] = "patient"
    answer = api.submit(files, key="monday", **told)
    assert (answer.status, answer.code) == (409, "idempotency-conflict")
    api.get(first.headers["location"], headers=waiting(20))
    assert served.spooled() == []


def test_the_same_key_with_names_instead_of_files(served: Serving, api: Api) -> None:
    document = {"template": "scenes", "share": ["cam1/a.jpg"]}
    first = api.post("/v1/requests", document, headers=keyed("monday"))
    again = api.post("/v1/requests", document, headers=keyed("monday"))
    assert first.json["id"] == again.json["id"]
    other = {**document, "share": ["cam1/b.jpg"]}
    assert api.post("/v1/requests", other, headers=keyed("monday")).status == 409


def test_many_calls_with_one_key_make_one_request(served: Serving, api: Api, image: bytes) -> None:
    served.fill()
    with ThreadPoolExecutor(6) as threads:
        calls = [
            threads.submit(api.submit, [("a.jpg", image)], key="monday", wait=20) for _ in range(6)
        ]
        ids = {call.result().json["id"] for call in calls}
    assert len(ids) == 1
    assert len(served.process.store.requests().requests) == 1
    assert served.spooled() == []


# --- What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "fields", "status", "code"),
    [
        ([], {}, 422, "input"),
        ([("a.jpg", b"")], {}, 422, "input"),
        ([(f"{number}.jpg", b"x") for number in range(6)], {}, 422, "input"),
        ([("..", b"x")], {}, 422, "input"),
        ([("/etc/passwd", b"x")], {}, 422, "input"),
        ([("a.jpg ", b"x")], {}, 422, "input"),
        ([("ä" * 128 + ".jpg", b"x")], {}, 422, "input"),
        ([("a.jpg", b"x")], {"template": "nothing"}, 404, "unknown-template"),
        ([("a.jpg", b"x")], {"task": "5"}, 422, "input"),
        ([("a.jpg", b"x")], {"assignee": " me"}, 422, "input"),
        ([("a.jpg", b"x")], {"assignee": "0"}, 422, "input"),
        ([("a.jpg", b"x")], {"priority": "high"}, 422, "input"),
        ([("a.jpg", b"x")], {"job_size": "0"}, 422, "input"),
        ([("a.jpg", b"x")], {"job_size": "two"}, 422, "input"),
        ([("a.jpg", b"x")], {"name": ""}, 422, "input"),
        ([("a.jpg", b"x")], {"params": "[]"}, 422, "input"),
        ([("a.jpg", b"x")], {"params": "{"}, 422, "input"),
        ([("a.jpg", b"x")], {"params": '{"client_files": []}'}, 422, "input"),
        ([("a.jpg", b"x")], {"params": '{"image_quality": "70"}'}, 422, "input"),
        ([("a.jpg", b"x")], {"params": '{"start_frame": 3, "stop_frame": 2}'}, 422, "input"),
        ([("a.jpg", b"x")], {"name": "x" * 70_000}, 413, "too-large"),
    ],
)
def test_forms_that_are_refused(
    refusing: Serving, files: Any, fields: dict[str, Any], status: int, code: str
) -> None:
    answer = refusing.api.submit(files, **fields)
    assert (answer.status, answer.code) == (status, code), answer.json
    assert refusing.spooled() == []


@pytest.mark.parametrize(
    "document",
    [
        {"template": "scenes"},
        {"share": ["a.jpg"]},
        {"template": "scenes", "share": []},
        {"template": "scenes", "share": ["a.jpg"], "urls": ["http://example.org/a.jpg"]},
        {"template": "scenes", "share": ["../a.jpg"]},
        {"template": "scenes", "share": ["/etc/passwd"]},
        {"template": "scenes", "share": ["a.jpg", "a.jpg"]},
        {"template": "scenes", "share": "a.jpg"},
        {"template": "scenes", "share": [f"{number}.jpg" for number in range(6)]},
        {"template": "scenes", "files": ["/etc/passwd"]},
        {"template": "scenes", "urls": ["file:///etc/passwd"]},
        {"template": "scenes", "urls": ["ftp://example.org/a.jpg"]},
        {"template": "scenes", "urls": ["http://"]},
        {"template": "scenes", "urls": ["http://example.org/"]},
        {"template": "scenes", "cloud": {"storage_id": 1, "keys": []}},
        {"template": "scenes", "cloud": {"storage_id": "1", "keys": ["a"]}},
        {"template": "scenes", "share": ["a.jpg"], "params": {"server_files": ["/etc"]}},
        {"template": "scenes", "share": ["a.jpg"], "params": {"job_file_mapping": ["a.jpg"]}},
        {"template": "scenes", "share": ["a.jpg"], "assignee": True},
        {"template": "scenes", "share": ["a.jpg"], "name": "a\x00b"},
    ],
    ids=json.dumps,
)
def test_documents_that_are_refused(refusing: Serving, document: Any) -> None:
    answer = refusing.api.post("/v1/requests", document)
    assert (answer.status, answer.code) == (422, "input")
    assert refusing.spooled() == []


def test_a_body_of_another_type(refusing: Serving) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = refusing.api.post("/v1/requests", body=b"template=scenes", headers=headers)
    assert (answer.status, answer.code) == (415, "media-type")


# --- Looking, cancelling --------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_request_that_there_is_not(refusing: Serving, method: str) -> None:
    for headers in ({}, waiting(5)):
        answer = refusing.api.call(method, "/v1/requests/nothing", headers=headers)
        assert (answer.status, answer.code) == (404, "unknown-request")


def test_cancelling_what_is_queued(served: Serving, api: Api, image: bytes) -> None:
    accepted = api.submit([("a.jpg", image)], template="patient")
    assert accepted.json["state"] == "queued"
    place = accepted.headers["location"]
    with ThreadPoolExecutor(1) as threads:
        waits = threads.submit(api.get, place, headers=waiting(20))
        assert api.delete(place).status == 204
        assert waits.result().json["state"] == "cancelled"
    assert api.delete(place).status == 204
    assert served.spooled() == []


def test_cancelling_tells_who_waits_to_send(served: Serving, api: Api, image: bytes) -> None:
    with ThreadPoolExecutor(1) as threads:
        waits = threads.submit(api.submit, [("a.jpg", image)], template="patient", wait=20)
        wait_until(served.process.store, lambda: served.process.store.requests().requests)
        (queued,) = served.process.store.requests().requests
        assert api.delete(f"/v1/requests/{queued.id}").status == 204
        answer: Answer = waits.result()
    assert (answer.status, answer.code) == (409, "cancelled")


def test_cancelling_too_late(served: Serving, api: Api, image: bytes) -> None:
    place = api.submit([("a.jpg", image)], wait=20).headers["location"]
    answer = api.delete(place)
    assert (answer.status, answer.code) == (409, "too-late")


def test_a_list_page_by_page(served: Serving, api: Api, image: bytes) -> None:
    ids = [api.submit([("a.jpg", image)], wait=20).json["id"] for _ in range(3)]
    queued = api.submit([("a.jpg", image)], template="patient").json["id"]
    first = api.get("/v1/requests?limit=2").json
    assert [item["id"] for item in first["items"]] == [queued, ids[2]]
    assert [item["jobs"] is None for item in first["items"]] == [True, False]
    assert first["items"][1]["jobs"] == api.get(f"/v1/requests/{ids[2]}").json["jobs"]
    assert {item["frames"] for item in first["items"]} == {None}
    second = api.get(f"/v1/requests?limit=2&cursor={first['next_cursor']}").json
    assert [item["id"] for item in second["items"]] == [ids[1], ids[0]]
    assert second["next_cursor"] is None
    assert [each["id"] for each in api.get("/v1/requests?state=queued").json["items"]] == [queued]
    both = api.get("/v1/requests?state=queued&state=ready").json["items"]
    assert [each["id"] for each in both] == [queued, *reversed(ids)]
    assert len(api.get("/v1/requests?template=scenes").json["items"]) == 3
    last = api.get(f"/v1/requests?since={first['items'][1]['created_at']}").json["items"]
    assert [each["id"] for each in last] == [queued, ids[2]]
    assert api.get("/v1/requests?text=A.JPG&limit=1").json["items"][0]["id"] == queued
    assert api.get("/v1/requests?text=b.jpg").json == {"items": [], "next_cursor": None}
    assert served.process.store.request(queued).state is RequestState.QUEUED  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "query",
    [
        *("limit=0", "limit=201", "limit=x", "state=nothing", "state=ready&state=no"),
        *("cursor=nothing", "text=", "text=%00", "text=" + "x" * 201),
        *("since=yesterday", "since=2026-01-01T12:00:00"),
    ],
)
def test_lists_that_cannot_be(refusing: Serving, query: str) -> None:
    answer = refusing.api.get(f"/v1/requests?{query}")
    assert (answer.status, answer.code) == (422, "input")


def test_the_events_of_a_request(served: Serving, api: Api, image: bytes) -> None:
    served.fill()
    request = api.submit([("a.jpg", image)], wait=20).json
    events = api.get(f"/v1/requests/{request['id']}/events").json["items"]
    assert [each["kind"] for each in events if each["kind"].startswith("request")] == [
        "request.uploading",
        "request.importing",
        "request.ready",
    ]
    assert {each["request_id"] for each in events} == {request["id"]}
    (end,) = (each for each in events if each["kind"] == "request.ready")
    assert end["at"] == request["finished_at"]
    answer = api.get("/v1/requests/nothing/events")
    assert (answer.status, answer.code) == (404, "unknown-request")
