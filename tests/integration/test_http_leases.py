"""``/v1/leases`` over a real connection."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import pytest
import urllib3
from support.api import Api, Serving, waiting
from support.waiting import wait_until

from pool.model import LeaseState, TaskState
from pool.simulator import SimulatorServer
from pool.simulator.faults import Error, Latency


def states(served: Serving) -> list[LeaseState]:
    return [lease.state for lease in served.process.store.leases()]


def until(served: Serving, state: LeaseState) -> None:
    """Until the newest lease is in a state."""
    wait_until(served.process.store, lambda: state in states(served)[:1])


# --- Getting one ----------------------------------------------------------------------------------


def test_a_warm_task_at_once(served: Serving, api: Api) -> None:
    served.fill()
    answer = api.lease()
    assert answer.status == 201
    lease = answer.json
    assert answer.headers["location"] == f"/v1/leases/{lease['id']}"
    assert (lease["template"], lease["state"], lease["outcome"]) == ("scenes", "active", "hit")
    assert lease["url"] == served.pool.task_url(lease["task_id"])
    mark = f"[cvat-pool {served.process.store.pool_id}] scenes: empty"
    assert (lease["name"], lease["task_name"].startswith(mark)) == (None, True)
    assert (lease["jobs"], lease["error"]) == (None, None)
    assert api.get(answer.headers["location"]).json == lease
    assert served.pool.lease(lease["id"]).task_id == lease["task_id"]


def test_who_holds_what(served: Serving, api: Api) -> None:
    given, other = api.lease(name="night tour").json, api.lease().json
    assert (given["name"], other["name"]) == ("night tour", None)
    assert given["task_name"].startswith("[cvat-pool ")
    page = api.get("/v1/leases?limit=1").json
    assert page["items"] == [other]
    last = api.get(f"/v1/leases?limit=1&cursor={page['next_cursor']}").json
    assert last == {"items": [given], "next_cursor": None}
    assert given["owner"] == served.process.owner
    assert api.get("/v1/leases?template=strict").json["items"] == []
    api.delete(f"/v1/leases/{other['id']}")
    assert [each["id"] for each in api.get("/v1/leases").json["items"]] == [given["id"]]


def test_it_lasts_as_long_as_was_asked(served: Serving, api: Api) -> None:
    served.fill()
    lease = api.lease(ttl=60).json
    left = datetime.fromisoformat(lease["expires_at"]) - datetime.now().astimezone()
    assert timedelta(seconds=50) < left <= timedelta(seconds=60)


def test_an_empty_pool_creates(api: Api) -> None:
    assert api.lease().json["outcome"] == "cold"


def test_an_empty_pool_that_says_fail(api: Api) -> None:
    answer = api.lease("strict")
    assert (answer.status, answer.code) == (503, "pool-empty")
    assert int(answer.headers["retry-after"]) >= 1


def test_an_empty_pool_that_says_wait(served: Serving, api: Api) -> None:
    answer = api.lease("patient", timeout=0.02)
    assert (answer.status, answer.code) == (503, "pool-empty")
    assert states(served) == [LeaseState.ABANDONED]


def test_who_waits_gets_what_becomes_warm(served: Serving, api: Api) -> None:
    with ThreadPoolExecutor(1) as threads:
        lease = threads.submit(api.lease, "patient")
        until(served, LeaseState.WAITING)
        served.fill()
        assert lease.result().json["outcome"] == "wait"


def test_who_waits_gets_what_another_process_gives_back(served: Serving, api: Api) -> None:
    served.fill()
    taken = api.lease("patient").json["id"]
    with ThreadPoolExecutor(1) as threads:
        lease = threads.submit(api.lease, "patient")
        until(served, LeaseState.WAITING)
        assert served.process.store.give_back(taken, now=served.process.clock.now())
        assert lease.result().json["outcome"] == "wait"


def test_who_came_first_is_served_first(served: Serving, api: Api) -> None:
    with ThreadPoolExecutor(3) as threads:
        leases = []
        for _ in range(3):
            leases.append(threads.submit(api.lease, "patient"))
            wait_until(served.process.store, lambda: len(states(served)) == len(leases))
        order = [lease.id for lease in reversed(served.process.store.leases())]
        for position in range(3):
            served.fill()
            assert leases[position].result().json["id"] == order[position]


def test_a_caller_that_has_gone_waits_no_more(served: Serving) -> None:
    body = b'{"template": "patient"}'
    with socket.create_connection(("127.0.0.1", served.port)) as line:
        line.sendall(
            b"POST /v1/leases HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        until(served, LeaseState.WAITING)
    until(served, LeaseState.ABANDONED)
    served.fill()
    warm = served.process.store.warm_of("patient", served.process.templates["patient"].fingerprint)
    assert warm == 1


def test_cvat_is_away_and_the_pool_empty(served: Serving, simulator: SimulatorServer) -> None:
    simulator.faults.add(Error("tasks:create", status=503, times=1))
    answer = served.api.lease()
    assert (answer.status, answer.code) == (502, "cvat-busy")
    assert states(served) == [LeaseState.ABANDONED]


@pytest.mark.parametrize(
    ("document", "status", "code"),
    [
        ({"template": "nothing"}, 404, "unknown-template"),
        ({}, 422, "input"),
        ({"template": "scenes", "timeout": -1}, 422, "input"),
        ({"template": "scenes", "timeout": "5"}, 422, "input"),
        ({"template": "scenes", "ttl": 0}, 422, "input"),
        ({"template": "scenes", "name": " "}, 422, "input"),
        ({"template": "scenes", "name": "n" * 257}, 422, "input"),
        ({"template": "scenes", "task": 5}, 422, "input"),
        ({"template": 5}, 422, "input"),
        ([], 422, "input"),
    ],
)
def test_what_cannot_be_asked_for(
    refusing: Serving, document: object, status: int, code: str
) -> None:
    answer = refusing.api.post("/v1/leases", document)
    assert (answer.status, answer.code) == (status, code)
    if status == 422:
        assert answer.json["errors"]


@pytest.mark.parametrize(
    ("body", "media_type", "status"),
    [
        (b"{", "application/json", 422),
        (b'{"template": "\xff"}', "application/json", 422),
        (b'{"template": "scenes", "timeout": NaN}', "application/json", 422),
        (b"[" * 50_000, "application/json", 422),
        (b"", "application/json", 422),
        (b'{"template": "scenes"}', "text/plain", 415),
        (b"x" * (2**16 + 1), "application/json", 413),
    ],
)
def test_bodies_that_are_not_read(
    refusing: Serving, body: bytes, media_type: str, status: int
) -> None:
    answer = refusing.api.post("/v1/leases", body=body, headers={"Content-Type": media_type})
    assert answer.status == status


# --- Under a key ----------------------------------------------------------------------------------


def test_the_same_key_gives_the_same_lease(served: Serving, api: Api) -> None:
    served.fill()
    first, second = api.lease(key="monday"), api.lease(key="monday")
    assert (first.status, second.status) == (201, 201)
    assert first.json == second.json
    assert served.pool.acquire("scenes", idempotency_key="monday").id == first.json["id"]


def test_the_same_key_for_something_else(served: Serving, api: Api) -> None:
    served.fill()
    first = api.lease(key="monday", name="monday tour").json
    assert api.lease(key="monday", name="monday tour").json == first
    for answer in (api.lease("strict", key="monday"), api.lease(key="monday", name="another")):
        assert (answer.status, answer.code) == (409, "idempotency-conflict")


def test_a_second_call_with_a_key_waits_with_the_first(served: Serving, api: Api) -> None:
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(api.lease, "patient", key="monday")
        until(served, LeaseState.WAITING)
        second = threads.submit(api.lease, "patient", key="monday")
        served.fill()
        assert first.result().json["id"] == second.result().json["id"]


def test_a_second_call_with_a_key_and_less_patience(served: Serving, api: Api) -> None:
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(api.lease, "patient", key="monday")
        until(served, LeaseState.WAITING)
        second = api.lease("patient", key="monday", timeout=0.02)
        assert (second.status, second.code) == (504, "timeout")
        served.fill()
        assert first.result().status == 201


@pytest.mark.parametrize("key", ["", "ä", "with space", "x" * 256])
def test_keys_that_are_none(refusing: Serving, key: str) -> None:
    answer = refusing.api.post(
        "/v1/leases", {"template": "scenes"}, headers={"Idempotency-Key": key.encode()}
    )
    assert (answer.status, answer.code) == (422, "input")


def test_the_key_of_a_lease_that_was_given_back(served: Serving, api: Api) -> None:
    served.fill()
    first = api.lease(key="monday")
    assert api.delete(first.headers["location"]).status == 204
    again = api.lease(key="monday")
    assert (again.status, again.code) == (409, "lease-ended")


# --- Giving it back -------------------------------------------------------------------------------


def test_giving_back(served: Serving, api: Api) -> None:
    served.fill()
    lease = api.lease()
    place = lease.headers["location"]
    answer = api.delete(place)
    assert (answer.status, answer.body) == (204, b"")
    seen = api.get(place).json
    assert (seen["state"], seen["error"]["code"]) == ("released", "lease-ended")
    again = api.delete(place)
    assert (again.status, again.code) == (409, "lease-ended")


def test_giving_back_what_was_used(served: Serving, api: Api, image: bytes) -> None:
    served.fill()
    lease = api.lease().json
    api.submit([("a.jpg", image)], template=None, lease_id=lease["id"], wait=20)
    answer = api.delete(f"/v1/leases/{lease['id']}")
    assert (answer.status, answer.code) == (409, "lease-in-use")


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_lease_that_there_is_not(refusing: Serving, method: str) -> None:
    answer = refusing.api.call(method, "/v1/leases/nothing")
    assert (answer.status, answer.code) == (404, "unknown-lease")


# --- Its jobs -------------------------------------------------------------------------------------


def upload_by_hand(
    simulator: SimulatorServer, task_id: int, image: bytes, name: str = "a.jpg"
) -> None:
    """As any other tool does."""
    with urllib3.PoolManager() as http:
        answer = http.request(
            "POST",
            f"{simulator.url}/api/tasks/{task_id}/data",
            fields={"image_quality": "70", "client_files[0]": (name, image)},
            headers={"Authorization": f"Bearer {simulator.access_token}"},
        )
    assert answer.status == 202


def test_jobs_of_a_task_whose_caller_uploads(
    served: Serving, api: Api, simulator: SimulatorServer, image: bytes
) -> None:
    served.fill()
    lease = api.lease().json
    with ThreadPoolExecutor(1) as threads:
        seen = threads.submit(api.get, f"/v1/leases/{lease['id']}", headers=waiting(20))
        upload_by_hand(simulator, lease["task_id"], image)
        answer = seen.result()
    assert answer.headers["preference-applied"] == "wait=20"
    assert answer.json["state"] == "used"
    (job,) = answer.json["jobs"]
    assert job["start_frame"] == job["stop_frame"] == 0


def test_a_task_whose_import_fails(served: Serving, api: Api, simulator: SimulatorServer) -> None:
    served.fill()
    lease = api.lease().json
    upload_by_hand(simulator, lease["task_id"], b"no image")
    answer = api.get(f"/v1/leases/{lease['id']}", headers=waiting(20))
    assert (answer.json["state"], answer.json["jobs"]) == ("used", None)
    assert "identify image" in answer.json["error"]["detail"]


def test_no_jobs_in_time(served: Serving, api: Api) -> None:
    served.fill()
    lease = api.lease().json
    answer = api.get(f"/v1/leases/{lease['id']}", headers=waiting(0))
    assert (answer.json["state"], answer.json["jobs"]) == ("active", None)
    assert served.process.store.tasks(states=[TaskState.LEASED])


def test_the_import_of_a_request_keeps_its_pace(
    served: Serving, api: Api, simulator: SimulatorServer, image: bytes
) -> None:
    """Who waits for the lease does not have it polled like one whose caller uploads."""
    served.fill()
    lease = api.lease().json["id"]
    slow = simulator.faults.add(Latency("data:post", seconds=0.3))
    try:
        accepted = api.submit([("a.jpg", image)], lease_id=lease)
        seen = api.get(f"/v1/leases/{lease}", headers=waiting(20))
    finally:
        slow.remove()
    assert seen.json["jobs"]
    request = served.process.store.request(accepted.json["id"])
    assert request is not None
    assert request.finished_at is not None
    assert request.uploaded_at is not None
    assert request.finished_at - request.uploaded_at < 1.0
